"""The stream that stood here before: what a new one is expected to be like, and where.

A night's dump is mostly the last night's. Following that one's list of chunks tells a cutter where
borders will be, and a chunk that is new which stored ones stand at its place.
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
"""How far in front a chunk that was moved is looked for."""
_BEHIND: Final = 16 << 20
_MARGIN: Final = 4 << 20
"""How far beside its expected place a chunk may be resembled."""
_TRIM: Final = 2048
_SLIVER: Final = 16
"""1/16 of a chunk: a smaller overlap is not worth a base, a larger difference in size is no match."""


class Window:
    """A piece of a stored stream, laid beside the piece of a new one that stands in its place.

    Where they match is told by `anchor`; what lies between anchors is taken to be in step with the
    nearest one.
    """

    def __init__(self, offsets: list[int], chunks: list[Ref], shift: int) -> None:
        self._offsets = offsets
        self._chunks = chunks
        self._by_id = {chunk.id: (at, chunk.size) for at, chunk in zip(offsets, chunks, strict=True)}
        self._anchors = [(-1, shift)]

    @property
    def shift(self) -> int:
        """By how much the new stream is ahead where they last match."""
        return self._anchors[-1][1]

    def anchor(self, offset: int, size: int, chunk: RecordId) -> None:
        """Say that the new stream has at `offset` something like `chunk`; offsets ascend."""
        found, found_size = self._by_id.get(chunk, (0, 0))
        # Chunks may be alike though only a part of one is the other's: then they begin elsewhere.
        if abs(found_size - size) <= size // _SLIVER:
            self._anchors.append((offset, offset - found))

    def neighbours(self, offset: int, size: int) -> tuple[RecordId, ...]:
        """Return the chunks, at most MAX_BASES, that stand where the new stream has another one."""
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
        found = [at for common, at in overlaps if common >= least]
        return tuple(self._chunks[at].id for at in found[:MAX_BASES])


class PreviousStream:
    """A stored stream, followed from its beginning to its end in bounded memory.

    runs: its chunks, as `iter_runs_of_chunks` gives them. Where they cannot be read the stream just
    seems to end: nothing depends on it but size and speed.
    """

    def __init__(self, runs: Iterator[tuple[int, list[Ref]]]) -> None:
        self._rest = runs
        self._offsets: list[int] = []
        self._chunks: list[Ref] = []
        self._by_id: dict[RecordId, int] = {}
        self._end = 0
        self._shift = 0
        """What to subtract from an offset in the new stream, to get this one's."""
        self.aligned = True
        """Whether the last chunk that was followed is one of this stream's."""

    def follow(self, chunk: Ref, offset: int) -> bool:
        """Take note that the new stream has `chunk` at `offset`; say whether this one has it too."""
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
        """Return what lies around [start, end) of the new stream."""
        low, high = start - self._shift - _MARGIN, end - self._shift + _MARGIN
        self._load(start - self._shift)
        first = max(bisect_right(self._offsets, low) - 1, 0)
        last = bisect_right(self._offsets, high)
        return Window(self._offsets[first:last], self._chunks[first:last], self._shift)

    def realign(self, shift: int) -> None:
        """Take note of where a chunk that only resembles one of this stream's was found."""
        self._shift = shift

    def expected(self, start: int, end: int) -> tuple[int, list[Ref], int]:
        """Return the chunks that should lie in [start, end) of the new stream, and where they do.

        That is: where the chunk begins that should be under way at `start`; it and those behind it
        that end by `end`; where the last of them ends. This stream's own last chunk is never among
        them: it ends where it does because the stream did.
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
        """Have the chunks from somewhat before an offset to well behind it."""
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
