"""What of generations does not restore: their graph, walked once a node, and the paths that are lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

from castore.content.ref_tree import MAX_DEPTH
from castore.errors import DamageError, IdentityError
from castore.model.generation import MAX_DETAILS, decode_details
from castore.model.refs import Ref, RefKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from castore.content.streams import StreamReader
    from castore.maintenance.trees import Trees
    from castore.model.generation import Generation, Part
    from castore.model.refs import RecordId
    from castore.store import Store

MOST_PATHS: Final = 1000
"""Of a part; how many more there are is counted."""


@dataclass(frozen=True)
class Affected:
    """A part of a generation that does not restore whole."""

    service: str
    number: int
    part: str
    reason: str
    paths: tuple[str, ...] = field(default=())
    """Of a tree, what is lost: up to MOST_PATHS; none where no identity tells names."""
    more: int = 0
    """How many paths there are besides."""


class Reasons:
    """Says why what is below a reference does not open; each node is walked once.

    bad: chunks and nodes that do not open, by their ids, with the reasons.
    """

    def __init__(self, store: Store, bad: Mapping[bytes, str]) -> None:
        self.nodes = 0
        self.chunks = 0
        self._store = store
        self._bad = bad
        self._of: dict[bytes, str] = {}
        """What is wrong below each node walked so far; empty if nothing. By `key_of`."""
        self._lists: set[bytes] = set()
        """Nodes that hold lists, themselves or by what is spliced into them: they are in no stream."""
        self._heights: dict[bytes, int] = {}
        """On how many levels nodes are spliced into a node, where there are any."""
        self._read: dict[RecordId, tuple[list[Ref], bool]] = {}
        """What was read of nodes before their turn, and whether all chunks in them are well."""

    def expect(self, nodes: list[tuple[Ref, list[Ref]]]) -> None:
        """Take what was read of nodes that are going to be asked for: their chunks are looked up at once."""
        nodes = [(node, refs) for node, refs in nodes if key_of(node) not in self._of]
        chunks = [ref for _, refs in nodes for ref in refs if ref.kind is RefKind.CHUNK]
        sound = not self.of_chunks(chunks)
        if not sound:
            self.chunks -= len(chunks)  # they are counted with their nodes
        self._read |= {node.id: (refs, sound) for node, refs in nodes}

    def below(self, root: Ref) -> str:
        """Return what is wrong below a reference, the first thing found; empty if nothing."""
        if root.kind is RefKind.CHUNK:
            return self.of_chunks([root])
        key = key_of(root)
        if key in self._of:
            return self._of[key]
        # Depth first without recursion: a stack of (node, its references still to do).
        stack = [(root, self._open(root))]
        while True:
            node, refs = stack[-1]
            child = next(refs, None)
            if child is None:
                stack.pop()
                reason = self._of.setdefault(key_of(node), "")
                if not stack:
                    return reason
                self._join(stack[-1][0], node, reason)
            elif (reason_below := self._of.get(key_of(child))) is not None:
                self._join(node, child, reason_below)
            else:
                stack.append((child, self._open(child)))

    def of_stream(self, ref: Ref) -> str:
        """Return what is wrong with a stream, which holds chunks and no lists; empty if nothing."""
        reason = self.below(ref)
        if reason or ref.kind is RefKind.CHUNK:
            return reason
        if key_of(ref) in self._lists:
            return f"the stream {ref.id.hex()} holds something that is no chunk"
        if self._heights.get(key_of(ref), 0) >= MAX_DEPTH:
            return f"the list {ref.id.hex()} is nested deeper than any castore writes"
        return ""

    def of_chunks(self, chunks: list[Ref]) -> str:
        """Return what is wrong with the first of these chunks with which something is."""
        index = self._store.index
        self.chunks += len(chunks)
        lengths: list[int] = []
        known = index.known([chunk.id for chunk in chunks], lengths=lengths)
        for chunk, intact, length in zip(chunks, known, lengths, strict=True):
            if chunk.id in self._bad:
                return self._bad[chunk.id]
            lacking = None if intact else index.lacking(chunk.id)
            if lacking == chunk.id:
                return f"chunk {chunk.id.hex()} is not in the store"
            if lacking is not None:
                return f"chunk {chunk.id.hex()} rests on {lacking.hex()}, which is not in the store"
            if intact and length != chunk.size:
                return f"chunk {chunk.id.hex()} is not as long as the reference to it says"
        return ""

    def _join(self, node: Ref, child: Ref, reason: str) -> None:
        """Note for a node what is known of one that it refers to."""
        self._blame(node, reason)
        if child.kind is RefKind.SPLICE:
            key, below = key_of(node), key_of(child)
            self._heights[key] = max(self._heights.get(key, 0), 1 + self._heights.get(below, 0))
            if below in self._lists:
                self._lists.add(key)

    def _blame(self, node: Ref, reason: str) -> None:
        if reason and not self._of.get(key_of(node)):
            self._of[key_of(node)] = reason

    def _open(self, node: Ref) -> Iterator[Ref]:
        """Return the nodes that a node refers to; its chunks are looked at."""
        self.nodes += 1
        try:
            refs, sound = self._read.pop(node.id, ([], False))
            refs = refs or self._store.read_node(node.id)
            if sum(ref.size for ref in refs) != node.size:
                raise DamageError(  # noqa: TRY301 - reported like the others
                    f"the node {node.id.hex()} does not hold the bytes its parent promises"
                )
        except DamageError as error:
            self._of[key_of(node)] = str(error)
            return iter(())
        chunks = [ref for ref in refs if ref.kind is RefKind.CHUNK and not sound]
        if chunks:
            self._blame(node, self.of_chunks(chunks))
        nodes = [ref for ref in refs if ref.kind is not RefKind.CHUNK]
        if any(ref.kind is RefKind.LIST for ref in nodes):
            self._lists.add(key_of(node))
        return iter(nodes)


def key_of(node: Ref) -> bytes:
    """Return what nodes are remembered by: two references to a node may promise different lengths."""
    return node.id + node.size.to_bytes(8, "little")


def affected(
    generation: Generation, reasons: Reasons, trees: Trees, reader: StreamReader, *, decode: bool
) -> Iterator[Affected]:
    """Yield the parts of a generation that do not restore completely.

    decode: decode trees and details as a restore does, which takes an identity. Paths are reported where
    the reader has one. Raises StorageError; with `decode`, IdentityError.
    """
    for part in generation.parts:
        ref = part.content
        if ref is None:
            continue
        where = generation.service, generation.number, part.name
        if part.kind == "dump":
            if reason := reasons.of_stream(ref):
                yield Affected(*where, reason)
        elif decode or reasons.below(ref):
            decoded, paths, more = _of_tree(part, ref, trees, decode=decode)
            if reason := reasons.below(ref) or decoded:
                yield Affected(*where, reason, paths, more)
    details = generation.details.ref
    reason = reasons.of_stream(details)
    if decode and not reason:
        try:
            decode_details(reader.read_all(details, MAX_DETAILS))
        except DamageError as error:
            reason = str(error)
    if reason:
        yield Affected(generation.service, generation.number, "(details)", reason)


def _of_tree(part: Part, root: Ref, trees: Trees, *, decode: bool) -> tuple[str, tuple[str, ...], int]:
    """Return the first thing that is wrong with a tree, the paths that are lost, and how many more."""
    first = ""
    found: list[str] = []
    more = 0
    try:
        # No more than the tree has: a few directories that refer to each other many times have endless paths.
        for path, reason in islice(trees.lost(root), max(part.files + 1, MOST_PATHS)):
            first = first or reason
            if len(found) < MOST_PATHS:
                found.append(path.decode(errors="backslashreplace") or ".")
            else:
                more += 1
    except IdentityError:
        if decode:
            raise
        return "", (), 0
    return first, tuple(found), more
