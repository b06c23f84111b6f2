"""Which small-file streams a directory keeps, and how a scan cache has them."""

from __future__ import annotations

import pytest

from castore.content.scan.kept_streams import (
    SmallStreams,
    decode_places,
    encode_places,
    places_length,
    streams_to_drop,
)
from castore.errors import DamageError
from castore.kernel.dir_listing import Record
from castore.model.refs import RecordId, Ref, RefKind


def test_streams_that_are_mostly_used_are_kept() -> None:
    assert streams_to_drop([1000, 10], [990, 10], 5) == set()
    assert streams_to_drop([1000, 10, 0], [500, 10, 0], 5) == set()


def test_files_of_a_stream_that_is_mostly_unused_are_read_again() -> None:
    assert streams_to_drop([1000, 10], [499, 10], 5) == {0}


def test_small_streams_are_merged_when_there_are_many_and_a_large_one_stays() -> None:
    assert streams_to_drop([10_000, *[10] * 20], [9_000, *[10] * 20], 5) == {*range(1, 21)}


def test_all_streams_are_merged_when_the_largest_is_not_the_majority() -> None:
    assert streams_to_drop([100] * 20, [100] * 20, 5) == {*range(20)}


def record(places: bytes) -> Record:
    return Record(0, 0, 0, b"", b"", places, 0, b"")


def test_places_in_a_scan_cache_are_decoded_as_they_were() -> None:
    refs = [Ref(RefKind.CHUNK, RecordId(bytes([one]) * 32), 10 + one) for one in range(3)]
    streams = SmallStreams(refs, [1, 2, 0, 4, 0, 7], usable=True)
    encoded = encode_places(streams)
    assert len(encoded) == places_length(3, streams.runs)
    found = decode_places(record(encoded))
    assert (found.refs, list(found.runs), found.usable) == (refs, [1, 2, 0, 4, 0, 7], True)
    assert encode_places(SmallStreams((), (), usable=True)) == b""
    assert decode_places(record(b"")).refs == ()
    for cut in (1, 15, 16, 40, len(encoded) - 1):
        with pytest.raises(DamageError):
            decode_places(record(encoded[:cut]))
