"""How a new chunk is stored shortest: as a delta, of which bases, or whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from castore.kernel import encode_delta
from castore.store.bases import MAX_DEPTH
from castore.store.pack import DELTA, DELTA_PAIR

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from mmap import mmap

    from castore.kernel import Sketch
    from castore.model.refs import RecordId
    from castore.store.bases import Base, Bases
    from castore.store.codecs import Codecs

_GOOD: Final = 6
"""A delta of less than 1/64 of its chunk ends the search for a better base."""
_SURE: Final = 5
"""One of less than 1/32 is stored without looking at what the whole chunk would take."""
_WORTH: Final = 2
"""Any other has to be this many times smaller than that."""
_PATIENCE: Final = (2.5, 9.0, float("inf"))
"""How many units a delta may take that rests 1, 2, 3 below the last of a full chain."""
_LITTLE: Final = 7
"""A difference of 1/128 of a chunk is the least to be taken for a unit: nearly nothing is a bad measure."""


class NewChunk(NamedTuple):
    """A chunk that the store does not have: buffer[start:end]."""

    id: RecordId
    start: int
    end: int
    sketch: Sketch = ()
    alike: tuple[RecordId, ...] = ()
    """Chunks that share features with it, the most alike first."""
    neighbours: tuple[RecordId, ...] = ()
    """The chunks, one or two, that stand at the same place in the stream before this one."""


class Encoded(NamedTuple):
    """How a chunk is to be stored."""

    codec: int
    data: bytes | memoryview
    bases: tuple[RecordId, ...]
    remainder: int


class Deltas:
    """Encodes new chunks; safe to share between threads."""

    def __init__(self, bases: Bases, codecs: Codecs) -> None:
        self._bases = bases
        self._codecs = codecs

    def encode(self, buffer: bytearray | mmap, chunks: Sequence[NewChunk]) -> list[Encoded]:
        """Return how each chunk is stored shortest; one may be told by another in front of it."""
        self._bases.prepare(alike for chunk in chunks for alike in chunk.alike)
        encoded = []
        whole: dict[bytes, NewChunk] = {}
        for new in chunks:
            chunk = new
            if not new.alike and (other := _first(whole, new.sketch)) is not None:
                self._bases.offer(other.id, bytes(buffer[other.start : other.end]))
                chunk = new._replace(alike=(other.id,))
            found = self._encode(buffer, chunk)
            if not found.bases:
                whole |= dict.fromkeys(new.sketch, new)
            encoded.append(found)
        return encoded

    def _encode(self, buffer: bytearray | mmap, chunk: NewChunk) -> Encoded:
        """Return the shortest way to store a chunk."""
        start, end = chunk.start, chunk.end
        length = end - start
        best: tuple[bytes, tuple[Base, ...]] | None = None
        for bases in self._choices(chunk):
            found = self._delta(bases, buffer, start, end)
            if found is not None and (best is None or len(found[0]) < len(best[0])):
                best = found
                if len(best[0]) <= length >> _GOOD:
                    break
        if best is not None:
            raw, bases = best
            data = self._codecs.compress_delta(raw)
            codec = DELTA if len(bases) == 1 else DELTA_PAIR
            delta = Encoded(codec, data, tuple(base.id for base in bases), len(raw))
            if len(data) <= length >> _SURE:
                return delta
        codec, full = self._codecs.compress(memoryview(buffer)[start:end])
        if best is not None and len(data) * _WORTH <= len(full):
            return delta
        return Encoded(codec, full, (), length)

    def _choices(self, chunk: NewChunk) -> Iterator[tuple[Base, ...]]:
        """Yield what a chunk may be told by, the likeliest first."""
        for candidate in chunk.alike:
            if (base := self._bases.get(candidate)) is not None:
                yield (base,)
        found = [self._bases.get(neighbour) for neighbour in chunk.neighbours]
        if bases := tuple(base for base in found if base is not None):
            yield bases

    def _delta(
        self, bases: tuple[Base, ...], buffer: bytearray | mmap, start: int, end: int
    ) -> tuple[bytes, tuple[Base, ...]] | None:
        """Tell a chunk by these bases, or, where none may rest on them, by what they rest on.

        The unit is what the chunk differs by from the last of a chain. Simulated over 60 nights, where
        differences add up and a full chunk costs 24 (48) units, a night takes 3.5 (4.0) units on
        average; the best that any rule can do with chains of 3 is 3.1 (3.7), and a full chunk after
        every chain takes 6.8 (12.8).
        """
        room = (end - start) >> 1
        raw = encode_delta(b"".join(base.data for base in bases), buffer, start, end, room)
        if raw is None:
            return None
        if max(base.depth for base in bases) < MAX_DEPTH:
            return raw, bases
        unit = max(len(raw), (end - start) >> _LITTLE)
        for patience in _PATIENCE:
            deepest = max(base.depth for base in bases)
            below = [
                self._bases.get(one)
                for base in bases
                for one in (base.bases if base.depth == deepest else (base.id,))
            ]
            bases = tuple(base for base in below[:2] if base is not None)
            if not bases:
                return None
            raw = encode_delta(b"".join(base.data for base in bases), buffer, start, end, room)
            if raw is None:
                return None
            if len(raw) <= patience * unit:
                return raw, bases
        return None


def _first(whole: Mapping[bytes, NewChunk], sketch: Sketch) -> NewChunk | None:
    """Return a chunk that shares a feature of a sketch, or None."""
    return next((whole[feature] for feature in sketch if feature in whole), None)
