"""The previous stream of a part: what a new one is expected to resemble, and where.

A dump is mostly the same as the previous one. The previous list of chunks shows a cutter where borders will
be, and shows for a new chunk which stored chunks are at its place.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from castore.errors import CastoreError
from castore.store.format.pack import MAX_BASES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.model.refs import RecordId, Ref

_AHEAD: Final = 64 << 20
"""How many bytes ahead a moved chunk is searched for."""
_BEHIND: Final = 16 << 20
_MARGIN: Final = 4 << 20
"""How many bytes before or after its expected place a similar chunk may be."""
_TRIM: Final = 2048
_SLIVER: Final = 16
"""1/16 of a chunk: a smaller overlap is not worth a base, and a larger difference in size is no match."""


class Window:
    """A piece of a stored stream, aligned with the corresponding piece of a new one.

    `anchor` sets where they match. Between anchors, both are taken to advance in step with the nearest
    anchor.
    """

    def __init__(self, offsets: list[int], chunks: list[Ref], shift: int) -> None:
        self._offsets = offsets
        self._chunks = chunks
        self._by_id = {chunk.id: (at, chunk.size) for at, chunk in zip(offsets, chunks, strict=True)}
        self._anchors = [(-1, shift)]

    @property
    def shift(self) -> int:
        """By how many bytes the new stream is ahead at their last match."""
        return self._anchors[-1][1]

    def anchor(self, offset: int, size: int, chunk: RecordId) -> None:
        """Record that the new stream has at `offset` a chunk that resembles `chunk`; offsets ascend."""
        found, found_size = self._by_id.get(chunk, (0, 0))
        # Chunks may be similar although only a part of one is in the other: then their beginnings differ.
        if abs(found_size - size) <= size // _SLIVER:
            self._anchors.append((offset, offset - found))

    def aligned_ids(self, offset: int, size: int) -> tuple[RecordId, ...]:
        """Return the chunks, at most MAX_BASES, that are at the place of the new stream's chunk."""
        position = bisect_right(self._anchors, (offset, 1 << 62)) - 1
        if position == 0 and len(self._anchors) > 1:
            position = 1
        start = offset - self._anchors[position][1]
        end = start + size
        overlaps = []
        for at in range(max(bisect_right(self._offsets, start) - 1, 0), len(self._offsets)):
            begin = self._offsets[at]
            if begin >= end:
                break
            common = min(end, begin + self._chunks[at].size) - max(start, begin)
            if common > 0:
                overlaps.append((common, at))
        if not overlaps:
            return ()
        least = min(size // _SLIVER, max(overlaps)[0])
        positions = [at for common, at in overlaps if common >= least]
        return tuple(self._chunks[at].id for at in positions[:MAX_BASES])


class PreviousStream:
    """A stored stream, followed from its beginning to its end in bounded memory.

    runs: its chunks, as `iter_runs_of_chunks` yields them. If they cannot be read, the stream seems to end
    there: that affects only size and speed.
    """

    def __init__(self, runs: Iterator[tuple[int, list[Ref]]]) -> None:
        self._rest = runs
        self._offsets: list[int] = []
        self._chunks: list[Ref] = []
        self._by_id: dict[RecordId, int] = {}
        self._end = 0
        self._shift = 0
        """What to subtract from an offset in the new stream, to get the offset in this one."""
        self.aligned = True
        """Whether the last chunk that was followed is one of this stream's."""

    def track(self, chunk: Ref, offset: int) -> bool:
        """Record that the new stream has `chunk` at `offset`; return whether this one has it too."""
        here = offset - self._shift
        self._load(here)
        position = bisect_right(self._offsets, here) - 1
        if not (position >= 0 and self._chunks[position].id == chunk.id):
            found = self._by_id.get(chunk.id)
            if found is None:
                self.aligned = False
                return False
            self._shift = offset - found
        self.aligned = True
        return True

    def window(self, start: int, end: int) -> Window:
        """Return the part of this stream around [start, end) of the new stream."""
        low, high = start - self._shift - _MARGIN, end - self._shift + _MARGIN
        self._load(start - self._shift)
        first = max(bisect_right(self._offsets, low) - 1, 0)
        last = bisect_right(self._offsets, high)
        return Window(self._offsets[first:last], self._chunks[first:last], self._shift)

    def set_shift(self, shift: int) -> None:
        """Set the shift from a chunk that only resembles one of this stream's."""
        self._shift = shift

    def predict(self, start: int, end: int) -> tuple[int, list[Ref], int]:
        """Return the chunks that should be in [start, end) of the new stream, and where they are.

        That is: where the chunk begins that should contain `start`; this chunk and those after it that end by
        `end`; where the last of them ends. This stream's own last chunk is never among them: it ends where it
        does because the stream ended.
        """
        self._load(end - self._shift)
        first = bisect_right(self._offsets, start - self._shift) - 1
        if first < 0:
            return start, [], start
        begin = border = self._offsets[first] + self._shift
        found = []
        for chunk in self._chunks[first : len(self._chunks) - 1]:
            if border + chunk.size > end:
                break
            found.append(chunk)
            border += chunk.size
        return begin, found, border

    def _load(self, offset: int) -> None:
        """Load the chunks from somewhat before an offset to far after it."""
        try:
            while self._end < offset + _AHEAD:
                at, run = next(self._rest)
                self._chunks += run
                for chunk in run:
                    self._offsets.append(at)
                    self._by_id[chunk.id] = at
                    at += chunk.size
                self._end = at
        except (StopIteration, CastoreError):
            self._rest = iter(())
        if len(self._offsets) > _TRIM and self._offsets[_TRIM] < offset - _BEHIND:
            for at, chunk in zip(self._offsets[:_TRIM], self._chunks, strict=False):
                if self._by_id.get(chunk.id) == at:
                    del self._by_id[chunk.id]
            del self._offsets[:_TRIM], self._chunks[:_TRIM]
