"""Which packs the last generations use: these are kept in the base cache."""

from __future__ import annotations

import struct
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from castore.model.refs import PackId
from castore.store.index.schema import PACK, Tables

if TYPE_CHECKING:
    from collections.abc import Iterable

_USE: Final = struct.Struct("<4sQ")


class Uses(Tables):
    """Remembers which packs the last generation of each service uses."""

    def set_uses(self, service: str, packs: Counter[bytes]) -> None:
        """Record the packs that the last generation of a service uses, as counted by `contains`."""
        self._write(self._put_uses, service.encode(), packs)

    def _put_uses(self, txn: Any, service: bytes, packs: Counter[bytes]) -> None:
        """Put the bytes used of existing packs, limited to the bytes of their records."""
        uses = []
        for number, size in packs.items():
            value = txn.get(number[::-1], db=self._tables["packs"])
            if value is not None:
                _, _, records = PACK.unpack(value)
                uses.append(_USE.pack(number, min(size, records)))
        txn.put(service, b"".join(uses), db=self._tables["uses"])

    def uses(self, service: str) -> Counter[bytes]:
        """Return the bytes used per pack number, as recorded by `set_uses`."""
        with self._transaction() as txn:
            joined = txn.get(service.encode(), b"", db=self._tables["uses"])
            return Counter(dict(_USE.iter_unpack(joined)))

    def move_uses(self, moved: Iterable[tuple[PackId, PackId]]) -> None:
        """Add the uses of packs to those of the packs that their records were moved to: (old, new).

        The uses of old packs stay until those are removed. If castore is killed in between, they are moved
        once more.
        """
        self._write(self._move_uses, list(moved))

    def _move_uses(self, txn: Any, moved: list[tuple[PackId, PackId]]) -> None:
        table, numbers = self._tables["uses"], self._tables["pack_numbers"]
        pairs = [(txn.get(old, db=numbers), txn.get(new, db=numbers)) for old, new in moved]
        for service, joined in list(txn.cursor(table)):
            used = Counter(dict(_USE.iter_unpack(joined)))
            for old, new in pairs:
                if old and new and old[::-1] in used:
                    used[new[::-1]] += used[old[::-1]]
            self._put_uses(txn, service, used)

    def used_packs(self) -> Counter[PackId]:
        """Return the packs that the last generations use, with the bytes used of each."""
        found: Counter[PackId] = Counter()
        with self._transaction() as txn:
            for _, joined in txn.cursor(self._tables["uses"]):
                for number, size in _USE.iter_unpack(joined):
                    named = txn.get(number[::-1], db=self._tables["packs"])
                    if named is not None:
                        found[PackId(named[:32])] += size
        return found
