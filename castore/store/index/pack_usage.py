"""The packs that the last generation of each service uses: these are kept in the base cache."""

from __future__ import annotations

import struct
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from castore.model.refs import PackId
from castore.store.index.schema import PACK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.store.index.transactions import Tables

_USAGE: Final = struct.Struct("<4sQ")
"""The number of a pack as it is encoded in locations, and the bytes used of it."""


class PackUsage:
    """The table `usage`."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._db = tables.by_name

    def set(self, service: str, packs: Counter[bytes]) -> None:
        """Record what the last generation of a service uses, as `RecordLocations.find` counts it."""
        with self._tables.reading() as txn:
            recorded = txn.get(service.encode(), db=self._db["usage"])
            if recorded == self._encoded(txn, packs):
                return  # most snapshots: a transaction would take two flushes of the disk
        self._tables.write(self._put, service.encode(), packs)

    def _put(self, txn: Any, service: bytes, packs: Counter[bytes]) -> None:
        txn.put(service, self._encoded(txn, packs), db=self._db["usage"])

    def _encoded(self, txn: Any, packs: Counter[bytes]) -> bytes:
        """Return the bytes used of existing packs, limited to the bytes of their records."""
        usage = []
        for number, size in sorted(packs.items()):
            value = txn.get(number[::-1], db=self._db["packs"])
            if value is not None:
                _, _, records = PACK.unpack(value)
                usage.append(_USAGE.pack(number, min(size, records)))
        return b"".join(usage)

    def of(self, service: str) -> Counter[bytes]:
        """Return the bytes used per pack number, as recorded by `set`."""
        with self._tables.reading() as txn:
            joined = txn.get(service.encode(), b"", db=self._db["usage"])
            return Counter(dict(_USAGE.iter_unpack(joined)))

    def move(self, moved: Iterable[tuple[PackId, PackId]]) -> None:
        """Add the usage of packs to that of the packs that their records were moved to: (old, new).

        The usage of old packs stays until those are removed. If castore is killed in between, it is moved
        once more.
        """
        self._tables.write(self._move, list(moved))

    def _move(self, txn: Any, moved: list[tuple[PackId, PackId]]) -> None:
        table, numbers = self._db["usage"], self._db["pack_numbers"]
        pairs = [(txn.get(old, db=numbers), txn.get(new, db=numbers)) for old, new in moved]
        for service, joined in list(txn.cursor(table)):
            used = Counter(dict(_USAGE.iter_unpack(joined)))
            for old, new in pairs:
                if old and new and old[::-1] in used:
                    used[new[::-1]] += used[old[::-1]]
            self._put(txn, service, used)

    def total(self) -> Counter[PackId]:
        """Return the packs that the last generations use, with the bytes used of each."""
        total: Counter[PackId] = Counter()
        with self._tables.reading() as txn:
            for _, joined in txn.cursor(self._db["usage"]):
                for number, size in _USAGE.iter_unpack(joined):
                    named = txn.get(number[::-1], db=self._db["packs"])
                    if named is not None:
                        total[PackId(named[:32])] += size
        return total
