"""Chunks put together from what they rest on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from castore.errors import DamageError
from castore.kernel import apply_deltas
from castore.store.format.pack import MAX_CHAIN, MAX_PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.model.refs import RecordId


class StoredForm(NamedTuple):
    """How a chunk is stored: as its plaintext or, if it has bases, as a delta from these in order."""

    data: bytes
    length: int
    """Of the chunk."""
    bases: tuple[RecordId, ...] = ()


class BaseChunk(NamedTuple):
    """A chunk that others can be told by."""

    id: RecordId
    data: bytes
    depth: int
    """How many chunks lie below one another under it: 0 for one that is no delta."""
    bases: tuple[RecordId, ...]
    below: frozenset[RecordId]
    """All that it rests on."""


class ChunkCache(Protocol):
    """Chunks that were put together before: a dict, say."""

    def get(self, chunk: RecordId, /) -> BaseChunk | None:
        """Return one, or None."""

    def __setitem__(self, chunk: RecordId, base: BaseChunk, /) -> None:
        """Keep one."""


def assemble(
    chunk: RecordId, layer_of: Callable[[RecordId], StoredForm], kept: ChunkCache, depth: int = 0
) -> BaseChunk:
    """Return a chunk; it, and what ends chains of single bases, is kept.

    layer_of: raises KeyError where a layer is not to be had, which is passed on, as is the KeyError for a
    chain of more than MAX_CHAIN. Raises DamageError.
    """
    chain: list[tuple[bytes, int]] = []
    passed: list[RecordId] = []
    below = chunk
    while (found := kept.get(below)) is None:
        if depth + len(chain) > MAX_CHAIN:
            raise KeyError(chunk)
        data, length, bases = layer_of(below)
        if len(bases) == 1:
            chain.append((data, length))
            passed.append(below)
            below = bases[0]
            continue
        parts = [assemble(one, layer_of, kept, depth + len(chain) + 1) for one in bases]
        if parts:
            data = apply(b"".join(part.data for part in parts), [(data, length)])
        level = max((1 + part.depth for part in parts), default=0)
        under = frozenset(bases).union(*(part.below for part in parts))
        found = kept[below] = BaseChunk(below, data, level, bases, under)
        break  # it may be too large to be kept
    if chain:
        data = apply(found.data, chain[::-1])
        bases = ((*passed, below)[1],)
        under = found.below.union((*passed[1:], below))
        found = kept[chunk] = BaseChunk(chunk, data, found.depth + len(chain), bases, under)
    return found


def apply(base: bytes, deltas: list[tuple[bytes, int]]) -> bytes:
    """Return what a chain of deltas, the lowest first, makes of a base. Raises DamageError.

    Each is given with the length of what it makes.
    """
    whole = max(length for _, length in deltas) <= MAX_PLAIN
    plain = apply_deltas(base, deltas) if whole else None
    if plain is None:
        raise DamageError("it is no delta of its base")
    return plain
