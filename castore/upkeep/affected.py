"""What of generations does not restore: their graph, walked once a node, and the paths that are lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from castore.content.directories import open_directory
from castore.content.lists import iter_chunks
from castore.errors import DamageError, IdentityError
from castore.model.refs import Ref, RefKind
from castore.model.tree import Content

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from castore.content.directories import Child
    from castore.content.streams import StreamReader
    from castore.model.generation import Generation, Part
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
        """What is wrong below each node walked so far; empty if nothing."""

    def below(self, root: Ref) -> str:
        """Return what is wrong below a reference, the first thing found; empty if nothing."""
        if root.kind is RefKind.CHUNK:
            return self.of_chunks([root])
        if root.id in self._of:
            return self._of[root.id]
        # Depth first without recursion: a stack of (node, its references still to do).
        stack = [(root, self._open(root))]
        while True:
            node, refs = stack[-1]
            child = next(refs, None)
            if child is None:
                stack.pop()
                reason = self._of.setdefault(node.id, "")
                if not stack:
                    return reason
                self._blame(stack[-1][0], reason)
            elif child.id in self._of:
                self._blame(node, self._of[child.id])
            else:
                stack.append((child, self._open(child)))

    def of_chunks(self, chunks: list[Ref]) -> str:
        """Return what is wrong with the first of these chunks with which something is."""
        index = self._store.index
        self.chunks += len(chunks)
        known = index.known([chunk.id for chunk in chunks])
        for chunk, whole in zip(chunks, known, strict=True):
            if chunk.id in self._bad:
                return self._bad[chunk.id]
            lacking = None if whole else index.lacking(chunk.id)
            if lacking == chunk.id:
                return f"chunk {chunk.id.hex()} is not in the store"
            if lacking is not None:
                return f"chunk {chunk.id.hex()} rests on {lacking.hex()}, which is not in the store"
        return ""

    def _blame(self, node: Ref, reason: str) -> None:
        if reason and not self._of.get(node.id):
            self._of[node.id] = reason

    def _open(self, node: Ref) -> Iterator[Ref]:
        """Return the nodes that a node refers to; its chunks are looked at."""
        self.nodes += 1
        try:
            refs = self._store.read_node(node.id)
        except DamageError as error:
            self._of[node.id] = str(error)
            return iter(())
        chunks = [ref for ref in refs if ref.kind is RefKind.CHUNK]
        if chunks:
            self._blame(node, self.of_chunks(chunks))
        return iter([ref for ref in refs if ref.kind is not RefKind.CHUNK])


def affected(generation: Generation, reasons: Reasons, reader: StreamReader) -> Iterator[Affected]:
    """Yield the parts of a generation that do not restore whole.

    Paths are told where the reader has an identity. Raises StorageError.
    """
    for part in generation.parts:
        reason = reasons.below(part.content) if part.content is not None else ""
        if reason:
            paths, more = _paths(part, reasons, reader)
            yield Affected(generation.service, generation.number, part.name, reason, paths, more)
    if reason := reasons.below(generation.details.ref):
        yield Affected(generation.service, generation.number, "(details)", reason)


def _paths(part: Part, reasons: Reasons, reader: StreamReader) -> tuple[tuple[str, ...], int]:
    if part.kind != "tree" or part.content is None:
        return (), 0
    found: list[str] = []
    more = 0
    try:
        for path in _lost(reader, part.content, b"", reasons):
            if len(found) < MOST_PATHS:
                found.append(path.decode(errors="backslashreplace") or ".")
            else:
                more += 1
    except IdentityError:
        return (), 0
    return tuple(found), more


def _lost(reader: StreamReader, ref: Ref, path: bytes, reasons: Reasons) -> Iterator[bytes]:
    """Yield the paths in a directory that are lost, or its own where that is all that is known."""
    stack = [(ref, path)]
    while stack:
        ref, path = stack.pop()
        try:
            children = open_directory(reader, ref)
        except DamageError:
            yield path
            continue
        spans = _lost_spans(reader, children, reasons)
        for child in children:
            entry = child.entry
            below = path + b"/" + entry.name if path else entry.name
            if child.ref is None:
                continue
            if entry.content is Content.BUNDLE:
                end = child.offset + entry.size
                if any(start < end and child.offset < stop for start, stop in spans):
                    yield below
            elif reasons.below(child.ref):
                if entry.is_dir:
                    stack.append((child.ref, below))
                else:
                    yield below


def _lost_spans(
    reader: StreamReader, children: list[Child], reasons: Reasons
) -> list[tuple[int, int]]:
    """Return which bytes of a directory's bundle are lost."""
    bundle = next((one.ref for one in children if one.entry.content is Content.BUNDLE), None)
    if bundle is None or not reasons.below(bundle):
        return []
    try:
        chunks = list(iter_chunks(reader.store, bundle))
    except DamageError:
        return [(0, bundle.size)]
    return [(offset, offset + one.size) for offset, one in chunks if reasons.of_chunks([one])]


