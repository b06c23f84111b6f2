"""Reconstruct chunks from their deltas and bases.

`StoredForms` decodes one record. `assemble` follows the bases of a chunk and applies a whole chain of deltas
at once, which is fast. `assemble_verified` applies one delta at a time: each base can be verified, and read
from another copy if it is damaged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from castore.errors import DamageError
from castore.kernel import apply_deltas
from castore.store.format.codecs import Groups, member_of
from castore.store.format.pack import DELTA, MAX_CHAIN, MAX_PLAIN

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
    """The fields by which a stored form is decoded: of a location in a pack, finished or being written."""

    @property
    def plain_length(self) -> int:
        """Length of the chunk in bytes."""

    @property
    def codec(self) -> int:
        """The encoding of its record."""

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

    def decode(self, record: Hashable, chunk: StoredChunk, read: Callable[[], bytes]) -> StoredForm:
        """Return the stored form of a chunk, or of a node, in a record.

        record: identifies the record. read: returns its payload, if that is needed. Raises DamageError, and
        what `read` raises.
        """
        if chunk.codec < DELTA:
            data = self._codecs.plain(chunk.codec, read(), chunk.plain_length)
        else:
            deltas = self._groups.get(record)
            if deltas is None:
                deltas = self._groups.open(record, read)
            data = member_of(deltas, chunk.group_index)
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
    chunk: RecordId, form_of: Callable[[RecordId], StoredForm], chunks: ChunkCache, depth: int = 0
) -> BaseChunk:
    """Return a chunk; keep it, and the end of its chain of single bases, in `chunks`.

    form_of: returns a stored form, or raises KeyError if it is unavailable. depth: the number of deltas that
    are to be applied to the chunk. Raises that KeyError, KeyError for a chain of more than MAX_CHAIN,
    DamageError, and what `chunks` raises.
    """
    base = chunks.get(chunk)
    if base is not None:
        return base
    if depth > MAX_CHAIN:
        raise KeyError(chunk)
    return _resolve(chunk, form_of(chunk), form_of, chunks, depth)


def _resolve(
    chunk: RecordId,
    form: StoredForm,
    form_of: Callable[[RecordId], StoredForm],
    chunks: ChunkCache,
    depth: int = 0,
) -> BaseChunk:
    """Return the chunk that has this stored form, as `assemble` does."""
    chain: list[tuple[bytes, int]] = []
    passed: list[RecordId] = []
    below, base = chunk, None
    while base is None and len(form.bases) == 1:
        chain.append((form.data, form.length))
        passed.append(below)
        below = form.bases[0]
        base = chunks.get(below)
        if base is None:
            if depth + len(chain) > MAX_CHAIN:
                raise KeyError(chunk)
            form = form_of(below)
    if base is None:
        level = depth + len(chain) + 1
        bases = [assemble(other, form_of, chunks, level) for other in form.bases]
        base = chunks[below] = _join(below, form, bases)  # `chunks` may discard a large chunk at once
    if chain:
        plain = apply(base.data, chain[::-1])
        ancestors = base.ancestors.union((*passed[1:], below))
        base = chunks[chunk] = BaseChunk(
            chunk, plain, base.depth + len(chain), ((*passed, below)[1],), ancestors
        )
    return base


def _join(chunk: RecordId, form: StoredForm, bases: list[BaseChunk]) -> BaseChunk:
    """Return a chunk that is stored in full, or as a delta of several bases."""
    plain = form.data
    if bases:
        plain = apply(b"".join(base.data for base in bases), [(form.data, form.length)])
    depth = max((1 + base.depth for base in bases), default=0)
    ancestors = frozenset(form.bases).union(*(base.ancestors for base in bases))
    return BaseChunk(chunk, plain, depth, form.bases, ancestors)


def assemble_verified(chunk: RecordId, form: StoredForm, read: Callable[[RecordId], bytes]) -> bytes:
    """Return the plaintext of the chunk that has this stored form.

    read: returns the plaintext of a base, verified. Raises DamageError, and what `read` raises.
    """
    no_forms: dict[RecordId, StoredForm] = {}
    return _resolve(chunk, form, no_forms.__getitem__, _VerifiedChunks(read)).data


class _VerifiedChunks:
    """A `ChunkCache` that seems to have every chunk: it reads each when it is asked for."""

    def __init__(self, read: Callable[[RecordId], bytes]) -> None:
        self._read = read

    def get(self, chunk: RecordId, /) -> BaseChunk | None:
        return BaseChunk(chunk, self._read(chunk), 0, (), frozenset())

    def __setitem__(self, chunk: RecordId, base: BaseChunk, /) -> None:
        pass


def apply(base: bytes, deltas: list[tuple[bytes, int]]) -> bytes:
    """Return the result of applying a chain of deltas, the lowest first, to a base. Raises DamageError.

    Each delta is given with the length of its result.
    """
    is_bounded = max(length for _, length in deltas) <= MAX_PLAIN
    plain = apply_deltas(base, deltas) if is_bounded else None
    if plain is None:
        raise DamageError("it is not a delta of its base")
    return plain
