"""The graph from generations to chunks, walked under the index key in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from castore.errors import DamageError, MissingError
from castore.model.refs import MAX_NODE_REFS, RecordId, RefKind, decode_node, encode_node
from castore.store.format.pack import NODE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from castore.kernel.id_set import IdSet
    from castore.model.generation import Generation
    from castore.model.refs import Ref
    from castore.store.store import Store

_REF: Final = 40
_KIND: Final = 39
"""Offset of the kind byte in a reference of `_REF` bytes."""


def roots_of(generation: Generation) -> list[Ref]:
    """Return the references from which all content of a generation can be reached."""
    roots = [part.content for part in generation.parts] + [generation.details.ref]
    return [root for root in roots if root is not None]


class Walk:
    """Walks from roots to chunks, visiting each node once, however many roots share it.

    It keeps the exact set of visited nodes, at about 100 bytes a node; a node has about a hundred chunks.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: set[bytes] = set()
        self.lost: list[RecordId] = []
        """Nodes that are in no pack: what was below them is lost to every generation."""

    def mark(self, roots: Iterable[Ref], marks: IdSet) -> None:
        """Mark all nodes and chunks below roots, but not the bases of chunks: see `Liveness.mark_bases`."""
        for run in self.runs(roots):
            marks.add(run, _REF)

    def refs(self, roots: Iterable[Ref]) -> Iterator[list[Ref]]:
        """Yield the references of each node below roots, and the roots. Raises as `runs` does.

        Also raises MissingError, after all others, for a node that is in no pack.
        """
        for run in self.runs(roots):
            yield decode_node(run)
        self.check_complete()

    def check_complete(self) -> None:
        """Raise MissingError if a node was in no pack."""
        for node in self.lost:
            self._store.reader.read_node(node)  # raises the error that says what is missing

    def runs(self, roots: Iterable[Ref]) -> Iterator[bytes]:
        """Yield the content of each node as concatenated references of 40 bytes; root references, too.

        Raises DamageError for a node that exists but does not open, StorageError.
        """
        todo: list[bytes] = []
        for root in roots:
            yield encode_node([root])
            if root.kind is not RefKind.CHUNK and root.id not in self._seen:
                self._seen.add(root.id)
                todo.append(root.id)
        while todo:
            node = todo.pop()
            try:
                plain = self._store.reader.read_node_bytes(RecordId(node))
            except MissingError as error:
                if self._store.index.locations.locate(NODE, RecordId(node)) is not None:
                    # It exists, but its key is missing, perhaps only for now: what is below is unknown.
                    raise DamageError(str(error)) from None
                self.lost.append(RecordId(node))
                continue
            kinds = plain[_KIND::_REF]
            count = len(plain) // _REF
            if len(plain) % _REF or not 0 < count <= MAX_NODE_REFS or max(kinds) > RefKind.INNER:
                raise DamageError(f"node {node.hex()} does not hold references")
            yield plain
            if any(kinds):
                below = [plain[_REF * at : _REF * at + 32] for at, kind in enumerate(kinds) if kind]
                fresh = [fromkey for fromkey in dict.fromkeys(below) if fromkey not in self._seen]
                self._seen.update(fresh)
                todo += fresh


def is_whole(store: Store, roots: Iterable[Ref]) -> bool:
    """Return whether everything below roots is in the store, in packs that may be referenced."""
    walk, locations = Walk(store), store.index.locations
    try:
        for run in walk.runs(roots):
            kinds = run[_KIND::_REF]
            ids = [run[at : at + 32] for at in range(0, len(run), _REF)]
            chunks = [RecordId(child) for child, kind in zip(ids, kinds, strict=True) if not kind]
            nodes = [child for child, kind in zip(ids, kinds, strict=True) if kind]
            if not all(locations.contains(chunks)) or not all(map(locations.has_node, nodes)):
                return False
    except DamageError:
        return False
    return not walk.lost
