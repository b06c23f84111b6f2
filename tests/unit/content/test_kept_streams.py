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
from castore.kernel.small_streams import KeptFiles
from castore.model.refs import RecordId, Ref, RefKind


def files(used: list[int], to_read: int = 5, unsure: list[int] | None = None) -> KeptFiles:
    kept = KeptFiles.empty(bytearray())
    kept.used, kept.to_read, kept.unsure = used, to_read, unsure or [0] * len(used)
    return kept


def test_streams_that_are_mostly_used_are_kept() -> None:
    assert streams_to_drop([1000, 10], files([990, 10])) == set()
    assert streams_to_drop([1000, 10, 0], files([500, 10, 0])) == set()


def test_files_of_a_stream_that_is_mostly_unused_are_read_again() -> None:
    assert streams_to_drop([1000, 10], files([499, 10])) == {0}


def test_small_streams_are_merged_when_there_are_many_and_a_large_one_stays() -> None:
    assert streams_to_drop([10_000, *[10] * 20], files([9_000, *[10] * 20])) == {*range(1, 21)}


def test_all_streams_are_merged_when_the_largest_is_not_the_majority() -> None:
    assert streams_to_drop([100] * 20, files([100] * 20)) == {*range(20)}


def test_a_stream_whose_files_may_have_changed_is_read_again_as_a_whole() -> None:
    assert streams_to_drop([1000, 10], files([900, 10], 100, [100, 0])) == {0}
    assert streams_to_drop([1000, 10], files([1000, 0], 10, [0, 10])) == {1}


def test_it_is_not_if_that_would_make_another_stream() -> None:
    assert streams_to_drop([1000, 10], files([900, 10], 101, [100, 0])) == set(), "a file changed"
    assert streams_to_drop([1000, 100], files([900, 90], 110, [100, 10])) == set(), "two streams become one"
    assert streams_to_drop([1100, 10], files([900, 10], 100, [100, 0])) == set(), "a file was deleted"


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
