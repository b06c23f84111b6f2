"""The `meta` table of an index: its epoch, counters, the last rotation, and packs not to be referenced.

Methods that take a transaction are for the other parts of the index, which change several tables in one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from castore.store.index.schema import EPOCH, NOT_REFERENCED, NUMBER, OF_CONTENT, ROTATION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.model.refs import PackId
    from castore.store.index.transactions import Tables


class Metadata:
    """Values about the index as a whole."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._db = tables.by_name

    def epoch(self) -> bytes:
        """Return 16 bytes that change as soon as anything that was indexed may be missing."""
        with self._tables.reading() as txn:
            value: bytes | None = txn.get(EPOCH, db=self._db["meta"])
        return self._tables.write(self.begin_epoch) if value is None else value

    def begin_epoch(self, txn: Any) -> bytes:
        """Choose a new epoch, and return it."""
        epoch = os.urandom(16)
        txn.put(EPOCH, epoch, db=self._db["meta"])
        return epoch

    def rotation(self) -> int:
        """Return the number of the last rotation of the writer key that was applied to the index, or 0."""
        with self._tables.reading() as txn:
            return int.from_bytes(txn.get(ROTATION, b"", db=self._db["meta"]), "little")

    def set_rotation(self, number: int, *, new_ids: bool) -> None:
        """Record that a rotation was applied. new_ids: ids changed, so that scan caches are of no use."""

        def change(txn: Any) -> None:
            txn.put(ROTATION, number.to_bytes(8, "little"), db=self._db["meta"])
            if new_ids:
                self.begin_epoch(txn)

        self._tables.write(change)

    def clear(self, txn: Any) -> None:
        """Begin an epoch, and forget what refers to indexed content."""
        self.begin_epoch(txn)
        for key in OF_CONTENT - {EPOCH}:
            txn.delete(key, db=self._db["meta"])

    def next_number(self, txn: Any, counter: bytes) -> bytes:
        """Return the next number of a counter, as it is encoded in keys."""
        number: bytes = txn.get(counter, NUMBER.pack(0), db=self._db["meta"])
        txn.put(counter, NUMBER.pack(NUMBER.unpack(number)[0] + 1), db=self._db["meta"])
        return number

    def numbers_issued(self, txn: Any, counter: bytes) -> int:
        """Return how many numbers a counter has issued."""
        return int(NUMBER.unpack(txn.get(counter, NUMBER.pack(0), db=self._db["meta"]))[0])

    def not_referenced(self, txn: Any, also: Iterable[PackId] = ()) -> frozenset[bytes]:
        """Return the numbers, as encoded in locations, of packs that new snapshots do not reference.

        also: packs whose numbers are returned, too.
        """
        joined = txn.get(NOT_REFERENCED, b"", db=self._db["meta"])
        numbers = [txn.get(pack, b"", db=self._db["pack_numbers"])[::-1] for pack in also]
        return frozenset([*numbers, *(joined[at : at + 4] for at in range(0, len(joined), 4))])

    def set_not_referenced(self, txn: Any, numbers: frozenset[bytes], *, added: bool = False) -> None:
        """Record which packs new snapshots do not reference; added: some of them are new in the set."""
        if added:
            self.begin_epoch(txn)
        txn.put(NOT_REFERENCED, b"".join(sorted(numbers)), db=self._db["meta"])
