"""The stored bytes of streams, where each chunk counts once: for the first stream that has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.content.ref_tree import iter_chunks
from castore.maintenance.weights import RecordWeights
from castore.store.format.pack import CHUNK

if TYPE_CHECKING:
    from castore.model.refs import RecordId, Ref
    from castore.store import Store


class FirstSeen:
    """Weighs streams of a store, one after the other."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._weights = RecordWeights(store, CHUNK)
        self._taken = bytearray(len(self._weights))

    def weigh(self, ref: Ref) -> float:
        """Return the stored bytes of the chunks of a stream that were not counted before."""
        return sum(self.take(chunk.id) for _, chunk in iter_chunks(self._store, ref))

    def take(self, chunk: RecordId) -> float:
        """Return the stored bytes of a chunk; 0 if it was counted before."""
        place = self._weights.place(chunk)
        if place < 0 or self._taken[place]:
            return 0.0
        self._taken[place] = 1
        return self._weights.at(place)
