"""The tables of an open index, and the transactions that read and change them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

from castore.store.index.lmdb_files import WRONG
from castore.store.index.opening import acquire, refusal, release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from castore.errors import StorageError

_Result = TypeVar("_Result")


class Tables:
    """The open environment of an index. Each part of the index has its own tables in it."""

    def __init__(self, path: str, store_id: bytes) -> None:
        """Open the index in the folder `path`. Raises StorageError."""
        self.path = path
        self.environment = acquire(path, store_id)
        self.begin, self.end = self.environment.begin, self.environment.end
        """Begin a read transaction, and record that it has ended: `reading` without its cost per call."""
        self.by_name = self.environment.tables
        """The tables, to be looked up within a transaction: a rebuild replaces them."""
        self._closed = False

    def close(self) -> None:
        """Release the index; its last user closes it."""
        if not self._closed:
            self._closed = True
            release(self.environment)

    def refusal(self, error: Exception) -> StorageError:
        """Return the error to raise for a failure of the index; a damaged index is marked for a rebuild."""
        return refusal(self.path, error, self.environment)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any]:
        """Yield a read transaction; while it is open, this thread must not open another."""
        try:
            with self.environment.reading() as txn:
                yield txn
        except WRONG as error:
            raise self.refusal(error) from error

    def write(self, change: Callable[..., _Result], *arguments: Any) -> _Result:
        """Run `change(txn, *arguments)` in a write transaction; it may be run more than once."""
        try:
            return self.environment.write(lambda txn: change(txn, *arguments))
        except WRONG as error:
            raise self.refusal(error) from error

    def size(self) -> int:
        """Return the bytes that the index takes."""
        with self.reading() as txn:
            pages = sum(
                sum(txn.stat(table)[f"{kind}_pages"] for kind in ("branch", "leaf", "overflow"))
                for table in self.by_name.values()
            )
            return int(pages * txn.stat(self.by_name["chunks"])["psize"])

    def count(self, table: str) -> int:
        """Return the number of entries of a table."""
        with self.reading() as txn:
            return int(txn.stat(self.by_name[table])["entries"])
