"""The streams of a directory, as its record in a scan cache has them.

Without them, a scan would read the directory's node in the store to learn what an unchanged file or directory
references.
"""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from castore.errors import DamageError
from castore.kernel.dir_listing import OWN_STREAM, places_of
from castore.model.refs import REF_BYTES, Ref, decode_refs, encode_node

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from castore.kernel.dir_listing import Record

_HEAD: Final = struct.Struct("<QQQ")
"""Number of streams, number of small-file streams among them, and whether the runs may be used. The streams,
their chunk counts, and the runs follow.
"""
_OWN_STREAM: Final = bytes(mark & OWN_STREAM for mark in range(256))
"""Translates marks: all others are dropped."""


class RecordStreams(NamedTuple):
    """The streams of a directory, in the order in which it references them."""

    refs: Sequence[Ref]
    """Its entries, its small-file streams, and the streams of its large files in the order of names."""
    chunks: Sequence[int]
    """The number of chunks of each."""
    small: int
    """The number of small-file streams."""
    runs: array[int]
    """Where the small files are: see castore.model.tree.Owners."""
    usable: bool
    """Whether the listing has the sizes that the small files have in the streams."""

    @property
    def entries(self) -> Ref:
        """The stream of its entries."""
        return self.refs[0]

    @property
    def small_files(self) -> Sequence[Ref]:
        """The small-file streams."""
        return self.refs[1 : 1 + self.small]

    @property
    def large_files(self) -> Sequence[Ref]:
        """The streams of large files."""
        return self.refs[1 + self.small :]

    @property
    def large_chunks(self) -> Sequence[int]:
        """The number of chunks of each of these."""
        return self.chunks[1 + self.small :]


def encoded_length(streams: int, runs: Sequence[int]) -> int:
    """Return the length of what `encode_streams` returns for so many streams."""
    return _HEAD.size + (REF_BYTES + 8) * streams + 8 * len(runs)


def encode_streams(streams: RecordStreams) -> bytes:
    """Return the streams as a record of a scan cache has them."""
    refs, chunks, small, runs, usable = streams
    head = _HEAD.pack(len(refs), small, usable)
    return head + encode_node(refs) + array("Q", chunks).tobytes() + runs.tobytes()


def decode_streams(record: Record) -> RecordStreams:
    """Return the streams of a record. Raises DamageError if they are not valid."""
    try:
        count, small, usable = _HEAD.unpack_from(record.streams)
        at = _HEAD.size + REF_BYTES * count
        refs, numbers = decode_refs(record.streams[_HEAD.size : at]), array("Q", record.streams[at:])
    except (struct.error, ValueError) as error:
        raise DamageError(f"a record of a scan cache is damaged: {error}") from None
    if not 1 + small <= len(refs) == count <= len(numbers):
        raise DamageError("a record of a scan cache is damaged: it lacks streams")
    return RecordStreams(refs, numbers[:count], small, numbers[count:], usable=bool(usable))


class OwnStream(NamedTuple):
    """A file of a directory that has a stream of its own."""

    place: int
    """The place of its entry in the listing."""
    mark: int
    ref: Ref
    chunks: int
    """The number of chunks of the stream."""


def own_streams(record: Record) -> Iterator[OwnStream]:
    """Yield the files of a directory that have streams of their own, in the order of names.

    Raises DamageError.
    """
    large = marked_own(record)
    if large:
        streams = decode_streams(record)
        found = zip(large, streams.large_files, streams.large_chunks, strict=False)
        yield from (OwnStream(place, mark, ref, chunks) for (place, mark), ref, chunks in found)


def marked_own(record: Record) -> list[tuple[int, int]]:
    """Return place in the listing and mark of the files that have streams of their own."""
    if not record.marks.translate(_OWN_STREAM).strip(b"\0"):
        return []
    marked = zip(places_of(record.listing), record.marks, strict=True)
    return [(place, mark) for place, mark in marked if mark & OWN_STREAM]
