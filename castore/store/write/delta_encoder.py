"""The encoder of new chunks: choose whether a chunk is stored in full or as a delta, and of which bases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from castore.kernel import MAX_GROUP, encode_delta
from castore.store.format.pack import DELTA
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
"""Bytes of deltas that make a group: a larger group saves little, and is always opened as a whole."""
_GOOD_SHARE: Final = 64
"""A delta of at most 1/64 of its chunk ends the search for a better base."""
_SURE_SHARE: Final = 16
"""A delta of at most 1/16 is used without compressing the full chunk for comparison."""
_WORTH: Final = 2
"""Any other delta must be this many times smaller than the compressed chunk, when compressed alone."""
_PATIENCE: Final = (2.5, 5.5, 11.0, float("inf"))
"""The longest delta, in units, whose base is 1, 2, 3, 4 levels below the end of a full chain."""
_LEAST_SHARE: Final = 128
"""The unit is at least 1/128 of the chunk: a difference of almost nothing is a bad measure."""


class NewChunk(NamedTuple):
    """A chunk that the store does not have: buffer[start:end]."""

    id: RecordId
    start: int
    end: int
    sketch: Sketch = ()
    similar_ids: tuple[RecordId, ...] = ()
    """Chunks that share features with it, the most similar first."""
    aligned_ids: tuple[RecordId, ...] = ()
    """At most MAX_BASES chunks, which were at the same position in the previous version of the stream."""


class DeltaMember(NamedTuple):
    """A chunk in a record."""

    id: RecordId
    length: int
    codec: int
    bases: tuple[RecordId, ...]
    sketch: Sketch
    delta_size: int
    """Its length before compression: that of the delta, or of the chunk."""


class Encoded(NamedTuple):
    """The content of a record: a chunk, or a group of deltas."""

    data: bytes | memoryview
    members: list[DeltaMember]


class _RecordBuilder:
    """Forms records: one for each full chunk, and one for each group of consecutive deltas."""

    def __init__(self, codecs: Codecs) -> None:
        self._codecs = codecs
        self._records: list[Encoded] = []
        self._deltas: list[bytes] = []
        """The deltas of the group that is being formed."""
        self._members: list[DeltaMember] = []

    def add_full(self, data: bytes | memoryview, member: DeltaMember) -> None:
        self._records.append(Encoded(data, [member]))

    def add_delta(self, delta: bytes, member: DeltaMember) -> None:
        self._deltas.append(delta)
        self._members.append(member)
        if len(self._deltas) == MAX_GROUP or sum(map(len, self._deltas)) >= _GROUP_BYTES:
            self._end_group()

    def finish(self) -> list[Encoded]:
        """Return all records."""
        if self._deltas:
            self._end_group()
        return self._records

    def _end_group(self) -> None:
        self._records.append(Encoded(self._codecs.compress_group(self._deltas), self._members))
        self._deltas, self._members = [], []


class Deltas:
    """Encodes new chunks; safe to share between threads."""

    def __init__(self, bases: Bases, codecs: Codecs) -> None:
        self._bases = bases
        self._codecs = codecs

    def encode(self, buffer: bytearray | mmap, chunks: Sequence[NewChunk]) -> list[Encoded]:
        """Return the shortest encoding of chunks; a chunk may be a delta of an earlier one.

        A delta comes after its bases.
        """
        self._bases.prepare(similar for chunk in chunks for similar in chunk.similar_ids)
        records = _RecordBuilder(self._codecs)
        full: dict[bytes, NewChunk] = {}
        for new in chunks:
            chunk = new
            if not new.similar_ids and (other := _first(full, new.sketch)) is not None:
                self._bases.offer(other.id, bytes(buffer[other.start : other.end]))
                chunk = new._replace(similar_ids=(other.id,))
            length = new.end - new.start
            if (delta := self._delta(buffer, chunk)) is not None:
                codec, data, bases = delta
                records.add_delta(data, DeltaMember(new.id, length, codec, bases, new.sketch, len(data)))
            else:
                full |= dict.fromkeys(new.sketch, new)
                codec, content = self._compressed(buffer, chunk)
                records.add_full(content, DeltaMember(new.id, length, codec, (), new.sketch, length))
        return records.finish()

    def _compressed(self, buffer: bytearray | mmap, chunk: NewChunk) -> tuple[int, bytes | memoryview]:
        return self._codecs.compress(memoryview(buffer)[chunk.start : chunk.end])

    def _delta(
        self, buffer: bytearray | mmap, chunk: NewChunk
    ) -> tuple[int, bytes, tuple[RecordId, ...]] | None:
        """Return the shortest delta for a chunk as (codec, delta, bases); None if none is worth it."""
        start, end = chunk.start, chunk.end
        length = end - start
        best: tuple[bytes, tuple[BaseChunk, ...]] | None = None
        for choice in self._choices(chunk):
            found = self._rebased(choice, buffer, start, end)
            if found is not None and (best is None or len(found[0]) < len(best[0])):
                best = found
                if len(best[0]) <= length // _GOOD_SHARE:
                    break
        if best is None:
            return None
        raw, bases = best
        if len(raw) > length // _SURE_SHARE:
            full = self._compressed(buffer, chunk)[1]
            if len(self._codecs.compress_group([raw])) * _WORTH > len(full):
                return None
        return DELTA + len(bases) - 1, raw, tuple(base.id for base in bases)

    def _choices(self, chunk: NewChunk) -> Iterator[tuple[BaseChunk, ...]]:
        """Yield possible bases of a chunk, the most promising first."""
        for candidate in chunk.similar_ids:
            if (base := self._base(chunk, candidate)) is not None:
                yield (base,)
        choices = [self._base(chunk, neighbour) for neighbour in chunk.aligned_ids]
        if bases := tuple(base for base in choices if base is not None):
            yield bases

    def _base(self, chunk: NewChunk, candidate: RecordId) -> BaseChunk | None:
        # Another process may have stored the same chunk meanwhile: it must not become its own base.
        base = self._bases.get(candidate) if candidate != chunk.id else None
        return None if base is None or chunk.id in base.ancestors else base

    def _rebased(
        self, bases: tuple[BaseChunk, ...], buffer: bytearray | mmap, start: int, end: int
    ) -> tuple[bytes, tuple[BaseChunk, ...]] | None:
        """Encode a chunk as a delta of these bases or, if their chains are full, of bases below them.

        The unit is the difference of the chunk from the last chunk of a chain. This was simulated over 60
        nights, where differences add up and a full chunk costs 24 (48) units. On average 3.0 (3.6) units are
        stored per night; with chains of 3, 3.5 (4.0); with chains of 6, 2.6 (2.9). Storing a full chunk after
        every chain takes 5.6 (10.4). Each further link costs 6 % of the speed of reading the newest version.
        """
        room = (end - start) >> 1
        raw = encode_delta(b"".join(base.data for base in bases), buffer, start, end, room)
        if raw is None:
            return None
        if max(base.depth for base in bases) < MAX_DEPTH:
            return raw, bases
        unit = max(len(raw), (end - start) // _LEAST_SHARE)
        for patience in _PATIENCE:
            deepest = max(base.depth for base in bases)
            below = [
                self._bases.get(chunk)
                for base in bases
                for chunk in (base.bases if base.depth == deepest else (base.id,))
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


def _first(full: Mapping[bytes, NewChunk], sketch: Sketch) -> NewChunk | None:
    """Return a chunk that shares a feature of a sketch, or None."""
    return next((full[feature] for feature in sketch if feature in full), None)
