"""The tables of an index: their layout, and the transactions that read and change them."""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
from typing import TYPE_CHECKING, Any, Final, TypeVar

import lmdb

from castore.store.index.lmdb_env import TABLES, WRONG
from castore.store.index.opening import acquire, refusal, release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from castore.errors import StorageError
    from castore.model.refs import PackId

PLACE: Final = struct.Struct("<IIIIIIBBB")
"""Pack, offset, sealed length, plain length, counter, session, codec, member number, size of its group."""
PLAIN: Final = slice(12, 16)
"""Position of the plain length in a place."""
CODEC: Final = 24
"""Position of the codec in a place."""
NUMBER: Final = struct.Struct(">I")
PACK: Final = struct.Struct("<32sQQ")
"""Id, length, and bytes of records."""
BATCH: Final = 1 << 14
"""Records that are examined in one call of the kernel."""
PENDING: Final = b"deletions"
_Result = TypeVar("_Result")
_Item = TypeVar("_Item")


class Tables:
    """Transactions on the tables of an index, and operations on all of them."""

    def __init__(self, path: str, store_id: bytes) -> None:
        self.path = path
        self._store_id = store_id
        self._environment = acquire(path, store_id)
        self._begin, self._end = self._environment.begin, self._environment.end
        self._tables = self._environment.tables
        self._closed = False

    def close(self) -> None:
        """Release the index; the last user closes it."""
        if not self._closed:
            self._closed = True
            release(self._environment)

    def try_again(self) -> None:
        """Allow writing again after an I/O error."""
        self._environment.reset_error()

    def epoch(self) -> bytes:
        """Return 16 bytes that change as soon as anything that was indexed may be missing."""
        with self._transaction() as txn:
            found: bytes | None = txn.get(b"epoch", db=self._tables["meta"])
        return self._write(self._begin_epoch) if found is None else found

    def era(self) -> int:
        """Return the number of the last rotation of the writer key that this index knows of; 0 for none."""
        with self._transaction() as txn:
            return int.from_bytes(txn.get(b"era", b"", db=self._tables["meta"]), "little")

    def enter_era(self, number: int, *, new_ids: bool) -> None:
        """Record that the writer key was rotated; with new ids, what was seen of trees is of no use."""
        self._write(self._enter_era, number.to_bytes(8, "little"), new_ids)

    def _enter_era(self, txn: Any, number: bytes, new_ids: bool) -> None:
        txn.put(b"era", number, db=self._tables["meta"])
        if new_ids:
            self._begin_epoch(txn)

    def _begin_epoch(self, txn: Any) -> bytes:
        epoch = os.urandom(16)
        txn.put(b"epoch", epoch, db=self._tables["meta"])
        return epoch

    def clear(self) -> None:
        """Forget everything except metadata and ended sessions. Raises StorageError."""
        self._write(self._clear)

    def _clear(self, txn: Any) -> None:
        self._begin_epoch(txn)
        txn.delete(PENDING, db=self._tables["meta"])
        txn.delete(b"recalled", db=self._tables["meta"])
        for name in TABLES:
            if name not in {"meta", "ended"}:
                txn.drop(self._tables[name], delete=False)

    def size(self) -> int:
        """Return the bytes that the index takes."""
        with self._transaction() as txn:
            pages = sum(
                sum(txn.stat(table)[f"{kind}_pages"] for kind in ("branch", "leaf", "overflow"))
                for table in self._tables.values()
            )
            return int(pages * txn.stat(self._tables["chunks"])["psize"])

    def count(self, table: str) -> int:
        """Return the number of entries of a table: chunks, nodes, packs, sessions, generations."""
        with self._transaction() as txn:
            return int(txn.stat(self._tables[table])["entries"])

    def refusal(self, error: Exception) -> StorageError:
        """Return the error to raise for a failure of the index; a damaged index is marked for a rebuild."""
        return refusal(self.path, error, self._environment)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        """Yield a read transaction; while it is open, this thread must not open another."""
        try:
            with self._environment.reading() as txn:
                yield txn
        except WRONG as error:
            raise self.refusal(error) from error

    def _write(self, change: Callable[..., _Result], *arguments: Any) -> _Result:
        """Run `change(txn, *arguments)` in a write transaction; it may be run more than once."""
        try:
            return self._environment.write(lambda txn: change(txn, *arguments))
        except WRONG as error:
            raise self.refusal(error) from error

    def _next_number(self, txn: Any, counter: bytes) -> bytes:
        number: bytes = txn.get(counter, NUMBER.pack(0), db=self._tables["meta"])
        txn.put(counter, NUMBER.pack(NUMBER.unpack(number)[0] + 1), db=self._tables["meta"])
        return number

    def _pending(self, txn: Any, besides: Iterable[PackId] = ()) -> frozenset[bytes]:
        """Return the numbers of packs pending deletion, and of `besides`, as they are encoded in places."""
        joined = txn.get(PENDING, b"", db=self._tables["meta"])
        numbers = [txn.get(pack, b"", db=self._tables["pack_numbers"])[::-1] for pack in besides]
        return frozenset([*numbers, *(joined[at : at + 4] for at in range(0, len(joined), 4))])


def forwards(before: bytes, key: bytes) -> bytes:
    """Return a key, which must come after `before`: a damaged page may lead back, and so loop forever.

    Raises lmdb.CorruptedError.
    """
    if key <= before:
        raise lmdb.CorruptedError("its keys are out of order")
    return key


def batches(items: Iterator[_Item]) -> Iterator[list[_Item]]:
    """Yield the entries of a table in batches."""
    while batch := list(itertools.islice(items, BATCH)):
        yield batch
