"""Find what damage makes unrestorable: walk the graph, each node once, and list the lost paths."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

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
"""Paths listed for a part; further lost paths are only counted."""


class Affected(msgspec.Struct, frozen=True):
    """A part of a generation that does not restore completely."""

    service: str
    number: int
    part: str
    reason: str
    paths: tuple[str, ...] = ()
    """The lost paths of a tree, up to MOST_PATHS; empty if no identity is at hand to read names."""
    more: int = 0
    """Number of lost paths beyond those in `paths`."""


class Reasons:
    """Says why content below a reference does not open; each node is walked once.

    bad: the chunks and nodes that do not open, by id, with the reasons.

    This is a walk of its own, and not `reachability.Walk`: the reason of a node is known only after all nodes
    below it were visited, it is kept for each length that a reference claims, and a node that does not open
    is a result, not an error. `Walk` visits nodes in any order, as raw bytes: it marks 100 million chunks.
    """

    def __init__(self, store: Store, bad: Mapping[bytes, str]) -> None:
        self.nodes = 0
        self.chunks = 0
        self._store = store
        self._bad = bad
        self._of: dict[bytes, str] = {}
        """The first problem below each node walked so far, by `key_of`; empty if there is none."""
        self._lists: set[bytes] = set()
        """Nodes that hold lists, directly or through an inner node: they cannot be part of a stream."""
        self._heights: dict[bytes, int] = {}
        """How many levels of inner nodes are below a node, for nodes that have any."""
        self._read: dict[RecordId, tuple[list[Ref], bool]] = {}
        """References of nodes that were read early, and whether all chunks among them are intact."""

    def expect(self, nodes: list[tuple[Ref, list[Ref]]]) -> None:
        """Keep the references of nodes that are walked next, to look up all their chunks in one batch."""
        nodes = [(node, refs) for node, refs in nodes if key_of(node) not in self._of]
        chunks = [ref for _, refs in nodes for ref in refs if ref.kind is RefKind.CHUNK]
        sound = not self.of_chunks(chunks)
        if not sound:
            self.chunks -= len(chunks)  # they are counted again with their nodes
        self._read |= {node.id: (refs, sound) for node, refs in nodes}

    def below(self, root: Ref) -> str:
        """Return the first problem found below a reference; empty if there is none."""
        if root.kind is RefKind.CHUNK:
            return self.of_chunks([root])
        key = key_of(root)
        if key in self._of:
            return self._of[key]
        # Depth first without recursion: a stack of (node, its remaining references).
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
        """Return what is wrong with a stream, which may hold chunks and no lists; empty if nothing."""
        reason = self.below(ref)
        if reason or ref.kind is RefKind.CHUNK:
            return reason
        if key_of(ref) in self._lists:
            return f"the stream {ref.id.hex()} holds something other than chunks"
        if self._heights.get(key_of(ref), 0) >= MAX_DEPTH:
            return f"the list {ref.id.hex()} is nested deeper than castore writes"
        return ""

    def of_chunks(self, chunks: list[Ref]) -> str:
        """Return what is wrong with the first bad chunk among these; empty if all are intact."""
        locations = self._store.index.locations
        self.chunks += len(chunks)
        ids = [chunk.id for chunk in chunks]
        lengths, known = locations.lengths(ids), locations.contains(ids)
        for chunk, intact, length in zip(chunks, known, lengths, strict=True):
            if chunk.id in self._bad:
                return self._bad[chunk.id]
            lacking = None if intact else locations.missing_base(chunk.id)
            if lacking == chunk.id:
                return f"chunk {chunk.id.hex()} is not in the store"
            if lacking is not None:
                return f"chunk {chunk.id.hex()} is a delta of {lacking.hex()}, which is not in the store"
            if intact and length not in {None, chunk.size}:
                return f"chunk {chunk.id.hex()} does not have the length that its reference says"
        return ""

    def _join(self, node: Ref, child: Ref, reason: str) -> None:
        """Record for a node what is known of a node that it references."""
        self._blame(node, reason)
        if child.kind is RefKind.INNER:
            key, below = key_of(node), key_of(child)
            self._heights[key] = max(self._heights.get(key, 0), 1 + self._heights.get(below, 0))
            if below in self._lists:
                self._lists.add(key)

    def _blame(self, node: Ref, reason: str) -> None:
        if reason and not self._of.get(key_of(node)):
            self._of[key_of(node)] = reason

    def _open(self, node: Ref) -> Iterator[Ref]:
        """Return the nodes that a node references, after checking its chunks."""
        self.nodes += 1
        try:
            refs, sound = self._read.pop(node.id, ([], False))
            refs = refs or self._store.reader.read_node(node.id)
            if sum(ref.size for ref in refs) != node.size:
                raise DamageError(  # noqa: TRY301 - reported like the others
                    f"the node {node.id.hex()} does not hold the number of bytes that its parent says"
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
    """Return the key of a node in the tables: two references to a node may claim different lengths."""
    return node.id + node.size.to_bytes(8, "little")


def affected(
    generation: Generation, reasons: Reasons, trees: Trees, reader: StreamReader, *, decode: bool
) -> Iterator[Affected]:
    """Yield the parts of a generation that do not restore completely.

    decode: decode trees and details as a restore does, which needs an identity. Paths are reported if the
    reader has an identity. Raises StorageError; with `decode`, IdentityError.
    """
    for part in generation.parts:
        ref = part.content
        if ref is None:
            continue
        lost = partial(Affected, generation.service, generation.number, part.name)
        if part.kind == "dump":
            if reason := reasons.of_stream(ref):
                yield lost(reason)
        elif decode or reasons.below(ref):
            decoded, paths, more = _of_tree(part, ref, trees, decode=decode)
            if reason := reasons.below(ref) or decoded:
                yield lost(reason, paths, more)
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
    """Return the first problem of a tree, the lost paths, and the number of further lost paths."""
    first = ""
    paths: list[str] = []
    more = 0
    try:
        # Stop at the tree's number of files: a few directories that reference each other have endless paths.
        for path, reason in islice(trees.lost(root), max(part.files + 1, MOST_PATHS)):
            first = first or reason
            if len(paths) < MOST_PATHS:
                paths.append(path.decode(errors="backslashreplace") or ".")
            else:
                more += 1
    except IdentityError:
        if decode:
            raise
        return "", (), 0
    return first, tuple(paths), more
