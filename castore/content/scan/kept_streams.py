"""The small-file streams of directories that a later scan keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from castore.content.ref_tree import iter_chunks
from castore.errors import CastoreError
from castore.model.refs import RefKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castore.kernel.small_streams import KeptFiles
    from castore.model.refs import RecordId, Ref
    from castore.store import Store

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
        # Of a list, only the last chunk could be short enough for a short file.
        if number >= len(self._streams) or (
            size < _LEAST_SIZE and self._streams[number].kind is not RefKind.CHUNK
        ):
            return []
        first = self._files.offsets[position]
        chunks = [
            chunk
            for offset, chunk in self._chunks_of(number)
            if offset < first + size and first < offset + chunk.size
        ]
        return [
            (start, start + size, chunk.id)
            for chunk in chunks
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
