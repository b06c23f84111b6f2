"""Lists: sequences of references, stored as trees of nodes that are themselves cut by content.

Where a node ends depends only on the references in it. So a long run of references that two generations share
consists of the same nodes in both, and takes no space the second time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from castore.errors import DamageError
from castore.model.refs import MAX_NODE_REFS, Ref, RefKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from castore.model.refs import RecordId
    from castore.store import Store

_MIN_REFS: Final = 32
_BORDER: Final = 128
_FEW_CHUNKS: Final = 16
"""A stream may have one chunk per quarter of the shortest chunk's length, plus this number."""
MAX_DEPTH: Final = 64
"""Deeper lists than any store can contain are those of a damaged or hostile store."""


class ListBuilder:
    """Creates the nodes of one list from its references, in order, in bounded memory.

    put_node: stores a node's references and returns its id.
    """

    def __init__(self, put_node: Callable[[list[Ref]], RecordId]) -> None:
        self._put_node = put_node
        self._levels: list[list[Ref]] = [[]]
        self.count = 0
        """The number of references that were added."""

    def add(self, ref: Ref) -> None:
        """Append a reference."""
        self.count += 1
        self._push(0, ref)

    def stream(self) -> Ref | None:
        """End the list as a stream: return None if it is empty, its chunk if it has only one."""
        bottom = self._levels[0]
        if len(self._levels) == 1 and len(bottom) <= 1:
            return bottom[0] if bottom else None
        return self.list()

    def list(self) -> Ref:
        """End the list, which must not be empty, and return a LIST."""
        level = 0
        while level + 1 < len(self._levels):
            if self._levels[level]:
                self._close(level)
            level += 1
        top = self._levels[level]
        if len(top) == 1 and top[0].kind is RefKind.INNER:
            return top[0]._replace(kind=RefKind.LIST)
        return Ref(RefKind.LIST, self._put_node(top), sum(ref.size for ref in top))

    def _push(self, level: int, ref: Ref) -> None:
        if level == len(self._levels):
            self._levels.append([])
        refs = self._levels[level]
        refs.append(ref)
        count = len(refs)
        if count >= MAX_NODE_REFS or (
            count >= _MIN_REFS and int.from_bytes(ref.id[:4], "little") % _BORDER == 0
        ):
            self._close(level)

    def _close(self, level: int) -> None:
        refs = self._levels[level]
        self._levels[level] = []
        inner = Ref(RefKind.INNER, self._put_node(refs), sum(ref.size for ref in refs))
        self._push(level + 1, inner)


def put_list(put_node: Callable[[list[Ref]], RecordId], refs: list[Ref]) -> Ref:
    """Store a list of references, not empty, that are not INNER; return its LIST."""
    if len(refs) < _MIN_REFS:
        return Ref(RefKind.LIST, put_node(refs), sum([ref.size for ref in refs]))
    builder = ListBuilder(put_node)
    for ref in refs:
        builder.add(ref)
    return builder.list()


def iter_list(store: Store, ref: Ref, start: int = 0) -> Iterator[tuple[int, Ref]]:
    """Yield the references of the list that `ref` names, each with the offset of its content.

    References whose content ends at or before byte `start` are skipped without being read.
    Raises DamageError, MissingError.
    """
    yield from _from_byte(_iter_runs(store, ref, start), start)


def _iter_runs(store: Store, ref: Ref, start: int) -> Iterator[tuple[int, list[Ref]]]:
    """Yield runs of a list's references that are in one node, each with its offset.

    Nodes that end at or before byte `start` are skipped.
    """
    stack = [(0, iter(_children(store, ref)))]
    while stack:
        offset, children = stack.pop()
        run: list[Ref] = []
        begin = offset
        for child in children:
            if child.kind is not RefKind.INNER:
                run.append(child)
                offset += child.size
                continue
            if run:
                yield begin, run
            following = offset + child.size
            stack.append((following, children))
            if following > start:
                if len(stack) >= MAX_DEPTH:
                    raise DamageError(
                        f"the list {ref.id.hex()} is nested deeper than any castore writes"
                    )
                stack.append((offset, iter(_children(store, child))))
            break
        else:
            if run:
                yield begin, run


def _from_byte(runs: Iterable[tuple[int, list[Ref]]], start: int) -> Iterator[tuple[int, Ref]]:
    """Yield the references of runs, each with its offset, except those that end at or before `start`."""
    for first, run in runs:
        offset = first
        for ref in run:
            if offset + ref.size > start:
                yield offset, ref
            offset += ref.size


def _children(store: Store, parent: Ref) -> list[Ref]:
    refs = store.reader.read_node(parent.id)
    if sum(ref.size for ref in refs) != parent.size:
        raise DamageError(
            f"the node {parent.id.hex()} has a content of another length than the reference to it says"
        )
    return refs


def iter_chunks(store: Store, ref: Ref | None, start: int = 0) -> Iterator[tuple[int, Ref]]:
    """Yield the chunks of a stream, each with its offset, from the chunk that contains byte `start`.

    Raises DamageError, MissingError.
    """
    yield from _from_byte(iter_runs_of_chunks(store, ref, start), start)


def iter_runs_of_chunks(
    store: Store, ref: Ref | None, start: int = 0
) -> Iterator[tuple[int, list[Ref]]]:
    """Yield the chunks of a stream in runs, each with the offset of its first chunk.

    Some chunks that end before byte `start` may be among them. Raises DamageError, MissingError.
    """
    if ref is None:
        return
    if ref.kind is RefKind.CHUNK:
        yield 0, [ref]
        return
    # A few nodes that often name a chunk of one byte can represent more references than any machine can
    # process.
    room = _FEW_CHUNKS + ref.size // max(store.keys.cutter.min // 4, 1)
    for offset, run in _iter_runs(store, ref, start):
        room -= len(run)
        if room < 0:
            raise DamageError(f"the stream {ref.id.hex()} has more chunks than castore cuts of its length")
        if any(chunk.kind is not RefKind.CHUNK for chunk in run):
            raise DamageError(f"the stream {ref.id.hex()} contains a reference that is not to a chunk")
        yield offset, run
