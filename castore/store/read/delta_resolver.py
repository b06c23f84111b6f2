"""Reconstruct chunks from their deltas and bases.

`StoredForms` decodes one record, `assemble` follows the bases of a chunk, `apply` applies deltas. If a record
is damaged, `RecordReader.open` follows the bases by itself, to verify each one and to try other copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from castore.errors import DamageError
from castore.kernel import apply_deltas
from castore.store.format.codecs import Groups, member_of
from castore.store.format.pack import DICTIONARY, GROUPED, MAX_CHAIN, MAX_PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from castore.model.refs import RecordId
    from castore.store.format.codecs import Codecs


class StoredForm(NamedTuple):
    """The stored form of a chunk: its plaintext or, if it has bases, a delta of these, in order."""

    data: bytes
    length: int
    """Length of the chunk in bytes."""
    bases: tuple[RecordId, ...] = ()


class StoredChunk(Protocol):
    """What a stored form is decoded by: a location in a pack, or in a pack that is being written."""

    @property
    def plain_length(self) -> int:
        """Length of the chunk in bytes."""

    @property
    def codec(self) -> int:
        """How its record is encoded."""

    @property
    def bases(self) -> tuple[RecordId, ...]:
        """The chunks from which it is made."""

    @property
    def group_index(self) -> int:
        """Its position in the group of deltas that the record holds."""


class StoredForms:
    """Decodes the payloads of records to stored forms, and keeps the most recently opened groups of deltas.

    Safe to share between threads.
    """

    def __init__(self, codecs: Codecs) -> None:
        self._codecs = codecs
        self._groups = Groups(codecs)

    def has_group(self, record: Hashable) -> bool:
        """Return whether the deltas of a group are kept, for now."""
        return self._groups.get(record) is not None

    def decode(
        self,
        record: Hashable,
        chunk: StoredChunk,
        read: Callable[[], bytes],
        dictionary: Callable[[], bytes] = bytes,
    ) -> StoredForm:
        """Return the stored form of a chunk, or of a node, in a record.

        record: identifies the record. read: returns its payload, if that is needed. dictionary: returns the
        base, for codec DICTIONARY. Raises DamageError, and what these functions raise.
        """
        if chunk.codec >= GROUPED:
            deltas = self._groups.get(record)
            if deltas is None:
                deltas = self._groups.open(record, read)
            data = member_of(deltas, chunk.group_index)
        else:
            payload = read()
            words = dictionary() if chunk.codec == DICTIONARY else b""
            data = self._codecs.body(chunk.codec, payload, chunk.plain_length, words)
        return StoredForm(data, chunk.plain_length, chunk.bases)


class BaseChunk(NamedTuple):
    """A chunk that can be a base of others."""

    id: RecordId
    data: bytes
    depth: int
    """Length of the chain of bases below it: 0 if it is not a delta."""
    bases: tuple[RecordId, ...]
    ancestors: frozenset[RecordId]
    """All direct and indirect bases."""


class ChunkCache(Protocol):
    """Chunks that were reconstructed before; a dict, for example."""

    def get(self, chunk: RecordId, /) -> BaseChunk | None:
        """Return a chunk, or None."""

    def __setitem__(self, chunk: RecordId, base: BaseChunk, /) -> None:
        """Keep a chunk."""


def assemble(
    chunk: RecordId, form_of: Callable[[RecordId], StoredForm], kept: ChunkCache, depth: int = 0
) -> BaseChunk:
    """Return a chunk; keep it, and the end of its chain of single bases, in `kept`.

    form_of: returns a stored form, or raises KeyError if it is unavailable. Raises that KeyError, KeyError
    for a chain of more than MAX_CHAIN, and DamageError.
    """
    chain: list[tuple[bytes, int]] = []
    passed: list[RecordId] = []
    below = chunk
    while (found := kept.get(below)) is None:
        if depth + len(chain) > MAX_CHAIN:
            raise KeyError(chunk)
        data, length, bases = form_of(below)
        if len(bases) == 1:
            chain.append((data, length))
            passed.append(below)
            below = bases[0]
            continue
        parts = [assemble(one, form_of, kept, depth + len(chain) + 1) for one in bases]
        if parts:
            data = apply(b"".join(part.data for part in parts), [(data, length)])
        level = max((1 + part.depth for part in parts), default=0)
        under = frozenset(bases).union(*(part.ancestors for part in parts))
        found = kept[below] = BaseChunk(below, data, level, bases, under)
        break  # `kept` may discard a large chunk at once
    if chain:
        data = apply(found.data, chain[::-1])
        bases = ((*passed, below)[1],)
        under = found.ancestors.union((*passed[1:], below))
        found = kept[chunk] = BaseChunk(chunk, data, found.depth + len(chain), bases, under)
    return found


def apply(base: bytes, deltas: list[tuple[bytes, int]]) -> bytes:
    """Return the result of applying a chain of deltas, the lowest first, to a base. Raises DamageError.

    Each delta is given with the length of its result.
    """
    is_bounded = max(length for _, length in deltas) <= MAX_PLAIN
    plain = apply_deltas(base, deltas) if is_bounded else None
    if plain is None:
        raise DamageError("it is not a delta of its base")
    return plain
