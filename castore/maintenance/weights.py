"""The sealed bytes of each record, in memory, found by id."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from castore.store import Store


class RecordWeights:
    """The sealed bytes of all records of one kind, at 16 bytes of memory each.

    Records are found by the first 8 bytes of their ids, which are keyed hashes: two ids that share them are
    taken for one, once in many billions. A record that several chunks share counts for each by its share.
    """

    def __init__(self, store: Store, kind: int) -> None:
        self._ids = array("Q")
        self._weights = array("d")
        for record_id, weight in store.index.liveness.weights(kind):
            self._ids.append(int.from_bytes(record_id[:8], "big"))
            self._weights.append(weight)

    def __len__(self) -> int:
        return len(self._ids)

    def place(self, record_id: bytes) -> int:
        """Return the position of a record; -1 if it is not indexed."""
        prefix = int.from_bytes(record_id[:8], "big")
        at = bisect_left(self._ids, prefix)
        return at if at < len(self._ids) and self._ids[at] == prefix else -1

    def at(self, place: int) -> float:
        """Return the sealed bytes of the record at a position."""
        return self._weights[place]
