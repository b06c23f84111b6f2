"""Count the bytes that only one generation needs: what would be reclaimed if it were forgotten."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from castore.errors import DamageError
from castore.maintenance.weights import RecordWeights
from castore.model.refs import RefKind
from castore.store.format.pack import CHUNK, NODE
from castore.store.reachability import roots_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.model.generation import Generation
    from castore.model.refs import RecordId, Ref
    from castore.store import Store

_NOBODY: Final = -1
_SEVERAL: Final = -2


class _Owners:
    """Which generation needs each record of one kind: none, one, or several. It takes 20 bytes per record."""

    def __init__(self, store: Store, kind: int) -> None:
        self._weights = RecordWeights(store, kind)
        self._owners = array("i", [_NOBODY]) * len(self._weights)

    def need(self, record_id: bytes, owner: int, unique: list[float]) -> bool:
        """Record that a generation needs a record, and count it; return whether this changed anything.

        unique: the bytes that only each generation needs.
        """
        place = self._weights.place(record_id)
        if place < 0:
            return False
        present = self._owners[place]
        if present in {owner, _SEVERAL}:
            return False
        if present == _NOBODY:
            self._owners[place] = owner
            unique[owner] += self._weights.at(place)
        else:
            self._owners[place] = _SEVERAL
            unique[present] -= self._weights.at(place)
        return True


class _Counting:
    """Walks generations one after the other. Each node is read for its first owner, and for its second."""

    def __init__(self, store: Store, count: int) -> None:
        self._store = store
        self._chunks = _Owners(store, CHUNK)
        self._nodes = _Owners(store, NODE)
        self.unique = [0.0] * count

    def take(self, owner: int, generation: Generation) -> None:
        """Count what a generation needs."""
        todo = self._changed(owner, roots_of(generation))
        while todo:
            try:
                refs = self._store.reader.read_node(todo.pop())
            except DamageError:
                continue  # what is below it is lost, and takes no space that could be reclaimed with it
            todo += self._changed(owner, refs)

    def _changed(self, owner: int, refs: Iterable[Ref]) -> list[RecordId]:
        """Count references; return the nodes below which something may change."""
        nodes: list[RecordId] = []
        chunks: list[RecordId] = []
        for ref in refs:
            chunk = ref.kind is RefKind.CHUNK
            if (self._chunks if chunk else self._nodes).need(ref.id, owner, self.unique):
                (chunks if chunk else nodes).append(ref.id)
        # With all their bases.
        for base in self._store.index.locations.locate_chunks(chunks).keys() - set(chunks):
            self._chunks.need(base, owner, self.unique)
        return nodes


def unique_bytes(store: Store, generations: list[Generation]) -> list[int]:
    """Return for each of all generations of a store how many bytes of packs only it needs, bases included.

    A record that several chunks share counts by the share of its chunks. Pruning reclaims these bytes when it
    rewrites the packs. Raises StorageError.
    """
    counting = _Counting(store, len(generations))
    for owner, generation in enumerate(generations):
        counting.take(owner, generation)
    return [round(count) for count in counting.unique]
