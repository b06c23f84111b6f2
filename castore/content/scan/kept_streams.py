"""The small-file streams of directories that a later scan keeps."""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from castore.content.ref_tree import iter_chunks
from castore.errors import CastoreError, DamageError
from castore.model.refs import REF_BYTES, decode_node, encode_node

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castore.kernel.dir_listing import Record
    from castore.kernel.small_streams import KeptFiles
    from castore.model.refs import RecordId, Ref
    from castore.store import Store

_HEAD: Final = struct.Struct("<QQ")
"""Number of streams, and whether the runs may be used. The streams and the runs follow."""


class SmallStreams(NamedTuple):
    """The small-file streams of a directory, as a scan cache has them."""

    refs: Sequence[Ref]
    runs: Sequence[int]
    """Where the small files are: see castore.model.tree.Owners."""
    usable: bool
    """Whether the listing has the sizes that the small files have in the streams."""


def places_length(streams: int, runs: Sequence[int]) -> int:
    """Return the length of what `encode_places` returns for so many streams."""
    return _HEAD.size + REF_BYTES * streams + 8 * len(runs) if streams else 0


def encode_places(streams: SmallStreams) -> bytes:
    """Return the places in a record of a scan cache; empty if the directory has no small-file stream."""
    refs, runs, usable = streams
    if not refs:
        return b""
    return _HEAD.pack(len(refs), usable) + encode_node([*refs]) + array("Q", runs).tobytes()


def decode_places(record: Record) -> SmallStreams:
    """Return the small-file streams of a record. Raises DamageError if they are not valid."""
    if not record.places:
        return SmallStreams((), (), usable=True)
    try:
        count, usable = _HEAD.unpack_from(record.places)
        at = _HEAD.size + REF_BYTES * count
        refs, runs = decode_node(record.places[_HEAD.size : at]), array("Q", record.places[at:])
    except (struct.error, ValueError) as error:
        raise DamageError(f"a record of a scan cache is damaged: {error}") from None
    return SmallStreams(refs, runs, usable=bool(usable))


_MOST_STREAMS: Final = 8
_LEAST_USED: Final = 0.5
"""When the small files of a directory move to another stream.

Measured over 30 nights, with 1 of 100 files of 2 KB changed in each of 300 directories. Stored bytes for each
directory and night: 2637 if there is only one stream, which is read and stored again; 2406 with up to 4
streams, 2207 with up to 8; with up to 8 of which 3/4 are used, 2676. CPU time of a snapshot, beyond that of
an unchanged tree: 0.47 s with one stream, 0.32 s with 4, 0.28 s with 8. A restore after these nights takes
1.50 s of CPU time with one stream, and 1.67 s with 8.
"""
_LEAST_SIZE: Final = 4096
_MOST_SHARE: Final = 16
"""A file is compared with its earlier version if it has at least 4 KiB, or 1/16 of the chunk that has that.

A delta costs about 0.4 ms for a base of 200 KB, which has to be decompressed and indexed.
"""


class FormerFiles:
    """The earlier versions of the small files of a directory that have changed."""

    def __init__(self, store: Store, streams: Sequence[Ref], files: KeptFiles) -> None:
        self._store = store
        self._streams = streams
        self._files = files
        self._chunks: dict[int, list[tuple[int, Ref]]] = {}

    def bases(self, position: int, start: int, size: int) -> list[tuple[int, int, RecordId]]:
        """Return the chunks with which the file at [start, start + size) of a new stream is compared."""
        number = self._files.former[position]
        if number >= len(self._streams):
            return []
        first = self._files.offsets[position]
        found = [
            chunk
            for offset, chunk in self._chunks_of(number)
            if offset < first + size and first < offset + chunk.size
        ]
        return [
            (start, start + size, chunk.id)
            for chunk in found
            if size >= _LEAST_SIZE or chunk.size <= _MOST_SHARE * size
        ]

    def _chunks_of(self, number: int) -> list[tuple[int, Ref]]:
        if number not in self._chunks:
            try:
                self._chunks[number] = list(iter_chunks(self._store, self._streams[number]))
            except CastoreError:
                self._chunks[number] = []  # this affects only size
        return self._chunks[number]


def streams_to_drop(sizes: Sequence[int], files: KeptFiles) -> set[int]:
    """Return the streams of which no file should be kept: they are read again, into the new stream.

    sizes: the bytes of each stream.
    """
    used, new = files.used, files.to_read
    unsure = [number for number, size in enumerate(files.unsure) if size]
    if len(unsure) == 1 and files.unsure[unsure[0]] == new and used[unsure[0]] + new == sizes[unsure[0]]:
        # No file is known to have changed, and those that may have are in one stream. Read as a whole it is
        # probably the same stream again, which takes no space.
        return {unsure[0]}
    kept = [number for number, size in enumerate(used) if size and size >= _LEAST_USED * sizes[number]]
    if len(kept) >= _MOST_STREAMS:
        # The small ones become one. The largest, which is most of the work, stays while it is the majority.
        largest = max(kept, key=lambda number: used[number])
        others = new + sum(used) - used[largest]
        kept = [largest] if used[largest] > others else []
    return {number for number, size in enumerate(used) if size} - {*kept}
