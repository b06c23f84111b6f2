"""The streams of a directory, as a scan cache has them."""

from __future__ import annotations

from array import array

import pytest

from castore.content.scan.record_streams import (
    RecordStreams,
    decode_streams,
    encode_streams,
    encoded_length,
)
from castore.errors import DamageError
from castore.kernel.dir_listing import Record
from castore.model.refs import REF_BYTES, RecordId, Ref, RefKind


def record(streams: bytes) -> Record:
    return Record(0, 0, 0, b"", b"", streams, 0, b"")


def refs(count: int) -> list[Ref]:
    return [Ref(RefKind.CHUNK, RecordId(number.to_bytes(32, "little")), 10 + number) for number in range(count)]


def test_streams_in_a_scan_cache_are_decoded_as_they_were() -> None:
    streams = RecordStreams(refs(6), [1, 1, 5, 9, 2, 3], 3, array("Q", [1, 2, 0, 4, 0, 7]), usable=True)
    encoded = encode_streams(streams)
    assert len(encoded) == encoded_length(6, streams.runs)
    found = decode_streams(record(encoded))
    assert (found.refs, list(found.chunks), list(found.runs)) == (refs(6), [1, 1, 5, 9, 2, 3], [1, 2, 0, 4, 0, 7])
    assert (found.small_files, found.large_files, list(found.large_chunks)) == (refs(6)[1:4], refs(6)[4:], [2, 3])
    assert found.usable
    for cut in (0, 1, 15, 24, 40, 24 + 6 * REF_BYTES, 24 + 6 * REF_BYTES + 16, len(encoded) - 1):
        with pytest.raises(DamageError):
            decode_streams(record(encoded[:cut]))


def test_a_directory_may_have_more_streams_than_a_node_has_references() -> None:
    streams = RecordStreams(refs(1000), [1] * 1000, 0, array("Q"), usable=False)
    found = decode_streams(record(encode_streams(streams)))
    assert (found.large_files, found.usable) == (refs(1000)[1:], False)


def test_more_small_file_streams_than_streams_are_damage() -> None:
    with pytest.raises(DamageError):
        decode_streams(record(encode_streams(RecordStreams(refs(2), [1, 1], 2, array("Q"), usable=True))))
