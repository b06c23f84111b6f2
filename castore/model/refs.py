"""References, nodes, lists: the graph that ties chunks to generations.

A *chunk* is a piece of content. A *node* is a sequence of references. A *list* is what a node represents: its
references in order, with each INNER replaced by the references of the node that it names. A stream is a list
of chunks; a directory is a list of its streams and subdirectories. A store *must* only hold a node after
everything that the node references.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, NewType

from castore.errors import DamageError

if TYPE_CHECKING:
    from collections.abc import Iterable

RecordId = NewType("RecordId", bytes)
"""The 32-byte name of a chunk or node: BLAKE3 of its plaintext, keyed with a key for each kind."""

PackId = NewType("PackId", bytes)
"""The 32-byte name of a pack: BLAKE3, without a key, of all its bytes."""

SessionId = NewType("SessionId", bytes)
"""The 16 random bytes that name a session."""

ID_BYTES = 32
_REF = struct.Struct("<32sQ")
REF_BYTES = _REF.size
"""Bytes of a reference in a node; the last one is the kind."""
_SIZE_BITS = 56
MAX_NODE_REFS = 512
"""No node has more references than this."""


class RefKind(IntEnum):
    """What a reference names, and how a list reads it."""

    CHUNK = 0
    """A chunk."""
    LIST = 1
    """A node that is a list of its own: a stream of several chunks, or a directory."""
    INNER = 2
    """A node whose references belong in this list, at this place."""


_KINDS = tuple(RefKind)
"""By their numbers: calling the enumeration costs more than all other steps of decoding a reference."""


class Ref(NamedTuple):
    """A reference: the kind of its target, the target's id, and the bytes of content below it."""

    kind: RefKind
    id: RecordId
    size: int


def encode_node(refs: Iterable[Ref]) -> bytes:
    """Return the plaintext of the node that holds `refs`."""
    return b"".join(_REF.pack(ref.id, ref.kind << _SIZE_BITS | ref.size) for ref in refs)


def decode_node(data: bytes) -> list[Ref]:
    """Return the references of a node's plaintext. Raises DamageError."""
    count, rest = divmod(len(data), _REF.size)
    if rest or not 0 < count <= MAX_NODE_REFS:
        raise DamageError(f"a node of {len(data)} bytes is not 1 to {MAX_NODE_REFS} references")
    return decode_refs(data)


def decode_refs(data: bytes) -> list[Ref]:
    """Return references that were joined, any number of them. Raises DamageError."""
    if len(data) % _REF.size:
        raise DamageError(f"{len(data)} bytes are no references")
    refs = []
    for record_id, word in _REF.iter_unpack(data):
        kind, size = word >> _SIZE_BITS, word & ((1 << _SIZE_BITS) - 1)
        if kind > RefKind.INNER:
            raise DamageError(f"a reference of the unknown kind {kind}")
        if not size:
            # Stored content is never empty, and a list's length would not bound how many of these it has.
            raise DamageError("a reference in it has a size of 0 bytes")
        refs.append(Ref(_KINDS[kind], record_id, size))
    return refs
