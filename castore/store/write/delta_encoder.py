"""How new chunks are stored shortest: as deltas, of which bases, or whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from castore.kernel import MAX_GROUP, encode_delta
from castore.store.format.pack import GROUPED
from castore.store.write.base_provider import MAX_DEPTH

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from mmap import mmap

    from castore.kernel import Sketch
    from castore.model.refs import RecordId
    from castore.store.format.codecs import Codecs
    from castore.store.read.delta_resolver import BaseChunk
    from castore.store.write.base_provider import Bases

_GROUP_BYTES: Final = 1 << 17
"""How many bytes of deltas make a group: more of them save little, and are opened together."""
_GOOD: Final = 6
"""A delta of less than 1/64 of its chunk ends the search for a better base."""
_SURE: Final = 4
"""One of less than 1/16 is taken without looking at what the whole chunk would take."""
_WORTH: Final = 2
"""Any other has to be, compressed alone, this many times smaller than that."""
_PATIENCE: Final = (2.5, 5.5, 11.0, float("inf"))
"""How many units a delta may take that rests 1, 2, 3, 4 below the last of a full chain."""
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


class Member(NamedTuple):
    """A chunk in a record."""

    id: RecordId
    length: int
    codec: int
    bases: tuple[RecordId, ...]
    sketch: Sketch
    remainder: int
    """Its length as a delta, before compression, or else as it is."""


class Encoded(NamedTuple):
    """What a record is to hold: a chunk, or a group of deltas."""

    data: bytes | memoryview
    members: list[Member]


class Deltas:
    """Encodes new chunks; safe to share between threads."""

    def __init__(self, bases: Bases, codecs: Codecs) -> None:
        self._bases = bases
        self._codecs = codecs

    def encode(self, buffer: bytearray | mmap, chunks: Sequence[NewChunk]) -> list[Encoded]:
        """Return how chunks are stored shortest; one may be told by another in front of it.

        What is told by something comes behind it.
        """
        self._bases.prepare(alike for chunk in chunks for alike in chunk.alike)
        encoded = []
        deltas: list[bytes] = []
        members: list[Member] = []
        whole: dict[bytes, NewChunk] = {}
        for new in chunks:
            chunk = new
            if not new.alike and (other := _first(whole, new.sketch)) is not None:
                self._bases.offer(other.id, bytes(buffer[other.start : other.end]))
                chunk = new._replace(alike=(other.id,))
            delta = self._delta(buffer, chunk)
            data: bytes | memoryview
            bases: tuple[RecordId, ...]
            codec, data, bases = delta or (*self._compressed(buffer, chunk), ())
            length = new.end - new.start
            remainder = len(data) if bases else length
            member = Member(new.id, length, codec, bases, new.sketch, remainder)
            if not delta:
                whole |= dict.fromkeys(new.sketch, new)
                encoded.append(Encoded(data, [member]))
                continue
            deltas.append(bytes(data))
            members.append(member)
            if len(deltas) == MAX_GROUP or sum(map(len, deltas)) >= _GROUP_BYTES:
                encoded.append(Encoded(self._codecs.compress_group(deltas), members))
                deltas, members = [], []
        if deltas:
            encoded.append(Encoded(self._codecs.compress_group(deltas), members))
        return encoded

    def _compressed(
        self, buffer: bytearray | mmap, chunk: NewChunk
    ) -> tuple[int, bytes | memoryview]:
        return self._codecs.compress(memoryview(buffer)[chunk.start : chunk.end])

    def _delta(
        self, buffer: bytearray | mmap, chunk: NewChunk
    ) -> tuple[int, bytes, tuple[RecordId, ...]] | None:
        """Return the shortest delta that tells a chunk, if it is worth it: codec, delta, bases."""
        start, end = chunk.start, chunk.end
        length = end - start
        best: tuple[bytes, tuple[BaseChunk, ...]] | None = None
        for choice in self._choices(chunk):
            found = self._rebased(choice, buffer, start, end)
            if found is not None and (best is None or len(found[0]) < len(best[0])):
                best = found
                if len(best[0]) <= length >> _GOOD:
                    break
        if best is None:
            return None
        raw, bases = best
        if len(raw) > length >> _SURE:
            whole = self._compressed(buffer, chunk)[1]
            if len(self._codecs.compress_group([raw])) * _WORTH > len(whole):
                return None
        return GROUPED + len(bases) - 1, raw, tuple(base.id for base in bases)

    def _choices(self, chunk: NewChunk) -> Iterator[tuple[BaseChunk, ...]]:
        """Yield what a chunk may be told by, the likeliest first."""
        for candidate in chunk.alike:
            if (base := self._base(chunk, candidate)) is not None:
                yield (base,)
        found = [self._base(chunk, neighbour) for neighbour in chunk.neighbours]
        if bases := tuple(base for base in found if base is not None):
            yield bases

    def _base(self, chunk: NewChunk, candidate: RecordId) -> BaseChunk | None:
        # Another process may have stored the same chunk meanwhile: it must not be told by itself.
        base = self._bases.get(candidate) if candidate != chunk.id else None
        return None if base is None or chunk.id in base.below else base

    def _rebased(
        self, bases: tuple[BaseChunk, ...], buffer: bytearray | mmap, start: int, end: int
    ) -> tuple[bytes, tuple[BaseChunk, ...]] | None:
        """Tell a chunk by these bases, or, where none may rest on them, by what they rest on.

        The unit is what the chunk differs by from the last of a chain. Simulated over 60 nights, where
        differences add up and a full chunk costs 24 (48) units, a night takes 3.0 (3.6) units on
        average, with chains of 3 3.5 (4.0), of 6 2.6 (2.9); a full chunk after every chain takes 5.6
        (10.4). Each link more takes 6 % of the speed at which the newest night is read.
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
