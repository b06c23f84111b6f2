"""The packs that were verified, and those that are damaged: the table `verified`."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from castore.model.refs import PackId
from castore.store.index.schema import BEGUN, LOADED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.store.index.transactions import Tables

_VERIFIED: Final = struct.Struct("<QQ")
"""When the bytes of a pack, and when its records, were last found intact (ns since 1970)."""
_DAMAGED: Final = bytes(_VERIFIED.size)


class VerificationTable:
    """Results of verification. A depth is 1 for the bytes of packs, and 2 for their records."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._db = tables.by_name

    def verified(self, depth: int) -> dict[PackId, int]:
        """Return when packs were last found intact at a depth (ns since 1970)."""
        results = {}
        with self._tables.reading() as txn:
            for number, value in txn.cursor(self._db["verified"]):
                named = txn.get(number, db=self._db["packs"])
                if named is not None:
                    results[PackId(named[:32])] = _VERIFIED.unpack(value)[depth - 1]
        return results

    def set_verified(self, packs: Iterable[PackId], depth: int, time: int) -> None:
        """Record that packs were found intact at a depth, and so at lower depths. time: ns since 1970."""
        self._tables.write(self._set_verified, list(packs), depth, time)

    def _set_verified(self, txn: Any, packs: list[PackId], depth: int, time: int) -> None:
        table = self._db["verified"]
        for pack in packs:
            number = txn.get(pack, db=self._db["pack_numbers"])
            if number is not None:
                _, records_at = _VERIFIED.unpack(txn.get(number, _DAMAGED, db=table))
                txn.put(number, _VERIFIED.pack(time, time if depth > 1 else records_at), db=table)

    def set_damaged(self, packs: Iterable[PackId]) -> None:
        """Record that packs were found damaged, until they are found intact or removed."""
        self._tables.write(self._set_damaged, list(packs))

    def _set_damaged(self, txn: Any, packs: list[PackId]) -> None:
        for pack in packs:
            number = txn.get(pack, db=self._db["pack_numbers"])
            if number is not None:
                txn.put(number, _DAMAGED, db=self._db["verified"])

    def damaged(self) -> set[PackId]:
        """Return the packs that are recorded as damaged."""
        with self._tables.reading() as txn:
            numbers = [number for number, value in txn.cursor(self._db["verified"]) if value == _DAMAGED]
            names = (txn.get(number, db=self._db["packs"]) for number in numbers)
            return {PackId(named[:32]) for named in names if named is not None}

    def begun(self, depth: int) -> int:
        """Return when a verification of this depth began that has not ended (ns since 1970), or 0."""
        with self._tables.reading() as txn:
            return int.from_bytes(txn.get(BEGUN[depth - 1], b"", db=self._db["meta"]), "big")

    def set_begun(self, depth: int, time: int) -> None:
        """Record when a verification began (ns since 1970); 0 means that it has ended."""
        key, value = BEGUN[depth - 1], time.to_bytes(8, "big")
        self._tables.write(lambda txn: txn.put(key, value, db=self._db["meta"]))

    def results(self) -> dict[bytes, bytes]:
        """Return all results, for `load`: by pack id, and by `verifying DEPTH`."""
        results: dict[bytes, bytes] = {}
        with self._tables.reading() as txn:
            for number, value in txn.cursor(self._db["verified"]):
                named = txn.get(number, db=self._db["packs"])
                if named is not None:
                    results[bytes(named[:32])] = bytes(value)
            for key in BEGUN:
                if (value := txn.get(key, db=self._db["meta"])) is not None:
                    results[key] = bytes(value)
        return results

    def is_loaded(self) -> bool:
        """Return whether earlier results were loaded into this index."""
        with self._tables.reading() as txn:
            return txn.get(LOADED, db=self._db["meta"]) is not None

    def load(self, results: dict[bytes, bytes]) -> None:
        """Add results that `results` returned; results that the index has already are kept."""
        self._tables.write(self._load, results)

    def _load(self, txn: Any, results: dict[bytes, bytes]) -> None:
        for key, value in results.items():
            if key in BEGUN and len(value) == 8:
                txn.put(key, value, overwrite=False, db=self._db["meta"])
            number = txn.get(key, db=self._db["pack_numbers"])
            if number is not None and len(value) == _VERIFIED.size:
                txn.put(number, value, overwrite=False, db=self._db["verified"])
        txn.put(LOADED, b"1", db=self._db["meta"])
