"""The generations in an index, by service, number and revision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from castore.errors import DamageError, FormatError
from castore.model.generation import decode_generation
from castore.store.index.schema import NUMBER, forwards

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from castore.model.generation import Generation
    from castore.store.index.transactions import Tables

_FEW: Final = 200
"""Generations that are read in one transaction."""


class GenerationTable:
    """The tables `generations`, `revisions`, `records` and `ended`."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._db = tables.by_name

    def compare(self, listed: Iterable[str]) -> tuple[list[str], list[str]]:
        """Compare the names T-N of generations in a store with the indexed ones.

        Returns two sorted lists: names that are not indexed, and indexed names that are not listed.
        """
        unindexed = set(listed)
        missing = []
        with self._tables.reading() as txn:
            keys = txn.cursor(self._db["records"]).iternext(keys=True, values=False)
            for key in keys:
                name = key.decode()
                if name in unindexed:
                    unindexed.discard(name)
                else:
                    missing.append(name)
        return sorted(unindexed), missing

    def put(self, generations: Iterable[tuple[str, Generation, bytes]]) -> None:
        """Add generations, each given as (T-N, the generation, its plaintext)."""
        self._tables.write(self._put, list(generations))

    def _put(self, txn: Any, generations: list[tuple[str, Generation, bytes]]) -> None:
        for name, generation, plain in generations:
            number = NUMBER.pack(generation.number)
            key = generation.service.encode() + b"\0" + number
            txn.put(key, plain, db=self._db["generations"])
            txn.put(name.encode(), key, db=self._db["records"])
            if not generation.number_only:
                revision = _revision_key(generation.service, generation.revision)
                txn.put(revision + b"\0" + number, b"", db=self._db["revisions"])

    def remove(self, names: Iterable[str]) -> None:
        """Remove generations, named T-N, that are missing in the store."""
        self._tables.write(self._remove, list(names))

    def _remove(self, txn: Any, names: list[str]) -> None:
        removed = {txn.pop(name.encode(), db=self._db["records"]) for name in names}
        for key in removed - {None}:
            plain = txn.pop(key, db=self._db["generations"])
            try:
                generation = decode_generation(plain)
            except (DamageError, FormatError, TypeError):
                # Its revision is not known: search all revisions for its number.
                found = txn.cursor(self._db["revisions"]).iternext(keys=True, values=False)
                keys = [
                    indexed for indexed in found if indexed.startswith(key[:-4]) and indexed[-4:] == key[-4:]
                ]
            else:
                keys = [_revision_key(generation.service, generation.revision) + b"\0" + key[-4:]]
                txn.put(generation.session, b"", db=self._db["ended"])
            for revision_key in keys:
                txn.delete(revision_key, db=self._db["revisions"])

    def ended_sessions(self) -> set[bytes]:
        """Return the sessions whose generation was indexed, and is deleted."""
        with self._tables.reading() as txn:
            return set(txn.cursor(self._db["ended"]).iternext(keys=True, values=False))

    def forget_ended(self, sessions: Collection[bytes]) -> None:
        """Forget ended sessions whose objects are deleted."""
        if sessions:
            self._tables.write(self._forget_ended, sessions)

    def _forget_ended(self, txn: Any, sessions: Collection[bytes]) -> None:
        for session in sessions:
            txn.delete(session, db=self._db["ended"])

    def services(self) -> list[str]:
        """Return the services that have generations."""
        services_found = []
        with self._tables.reading() as txn:
            cursor = txn.cursor(self._db["generations"])
            service = b""
            more = cursor.first()
            while more:
                service = forwards(service, cursor.key()[:-5])
                services_found.append(service.decode())
                more = cursor.set_range(service + b"\x01")
        return services_found

    def newest_first(self, service: str) -> Iterator[bytes]:
        """Yield the plaintexts of a service's records, newest first."""
        prefix = service.encode() + b"\0"
        end = service.encode() + b"\x01"
        while batch := self._below(prefix, end):
            yield from (plain for _, plain in batch)
            end = batch[-1][0]

    def _below(self, prefix: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        """Return keys and values of some hundred records before a key, in descending order."""
        rows: list[tuple[bytes, bytes]] = []
        with self._tables.reading() as txn:
            cursor = txn.cursor(self._db["generations"])
            more = cursor.prev() if cursor.set_range(end) else cursor.last()
            while more and len(rows) < _FEW and cursor.key().startswith(prefix):
                forwards(cursor.key(), end)
                rows.append(cursor.item())
                more = cursor.prev()
        return rows

    def numbers(self, service: str) -> list[int]:
        """Return the numbers of a service's generations, in ascending order."""
        prefix, numbers_found = service.encode() + b"\0", []
        with self._tables.reading() as txn:
            cursor = txn.cursor(self._db["generations"])
            more = cursor.set_range(prefix)
            while more and cursor.key().startswith(prefix):
                numbers_found.append(NUMBER.unpack(cursor.key()[-4:])[0])
                more = cursor.next()
        return numbers_found

    def get(self, service: str, number: int) -> bytes | None:
        """Return the plaintext of a generation's record, or None."""
        with self._tables.reading() as txn:
            key = service.encode() + b"\0" + NUMBER.pack(number)
            value: bytes | None = txn.get(key, db=self._db["generations"])
            return value

    def numbers_by_revision(self, service: str, prefix: str) -> list[int]:
        """Return the numbers of generations whose revision begins with `prefix`, newest first."""
        numbers = []
        start = _revision_key(service, prefix)
        with self._tables.reading() as txn:
            cursor = txn.cursor(self._db["revisions"])
            more = cursor.set_range(start)
            while more and cursor.key().startswith(start):
                numbers.append(NUMBER.unpack(cursor.key()[-4:])[0])
                more = cursor.next()
        return sorted(numbers, reverse=True)


def _revision_key(service: str, revision: str) -> bytes:
    return service.encode() + b"\0" + revision.encode("utf-8", "surrogateescape")
