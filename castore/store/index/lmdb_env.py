"""The LMDB environment of an index: its transactions, and its memory map, which grows when it is full.

LMDB maps its file with a size that is chosen when it is opened, and refuses what does not fit. So if a
transaction finds the map full, the map is enlarged and the transaction is run again. The map must not move
during an open transaction of this process. So all transactions are counted: enlarging waits until there are
none, and new transactions wait for it. Transactions must therefore be short, and no thread may open a second
one.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import lmdb

from castore.process.own_process import record_crash, stop_recording
from castore.store.index.lmdb_files import CRASHES, available_size, check_length, open_lmdb
from castore.store.index.schema import TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_Result = TypeVar("_Result")


class Environment:
    """An open LMDB environment. A process must open it only once, as lmdb.h demands."""

    def __init__(self, path: str, *, durable: bool = True) -> None:
        """Open it. durable: whether each transaction is made durable when it ends."""
        self.path = path
        self.users = 0
        self.corrupt = False
        """Whether it was found damaged: opening the index then replaces it by an empty one."""
        self._crashes = -1
        self.failed: Exception | None = None
        """Why nothing more is written: after an I/O error it is unknown what of the file is on the disk."""
        self.tables: dict[str, Any] = {}
        """The tables by name. Look them up within a transaction: a rebuild replaces them."""
        # One entry per open transaction; append and pop are each one atomic step of the interpreter.
        self._running: list[None] = []
        self._enter, self._leave = self._running.append, self._running.pop
        self._growing = False
        self._idle = threading.Condition()
        self.open(durable=durable)

    def open(self, *, durable: bool) -> None:
        """Open what is in its folder now, in place of what was open before and is closed."""
        self._folder = os.stat(self.path)
        self.env: Any = open_lmdb(self.path, durable=durable)
        self._begin = self.env.begin
        try:
            self._record_crashes()
            check_length(self.env, self.path)
            self.env.reader_check()
            self.tables.update((name, self._open_table(name)) for name in TABLES)
        except BaseException:
            self.close()
            raise

    def _open_table(self, name: str) -> Any:
        """Open a table; adopt the size that another process may have given the map meanwhile."""
        while True:
            try:
                return self.env.open_db(name.encode())
            except lmdb.MapResizedError:
                self.fit_map()

    def close(self) -> None:
        """Close it. An environment that was open before a fork is only released."""
        self.env.close()
        stop_recording(self._crashes)
        self._crashes = -1

    def mark_corrupt(self) -> bool:
        """Record in its folder that it is damaged; return False if that failed."""
        self.corrupt = True
        try:
            # If another environment has replaced it, that one is not damaged.
            if os.path.samestat(os.stat(self.path), self._folder):
                with open(os.path.join(self.path, CRASHES), "a", encoding="ascii") as file:
                    file.write("damaged\n")
        except FileNotFoundError:
            pass
        except OSError:
            return False
        return True

    def _record_crashes(self) -> None:
        """Record in the index's folder if a process of castore's own crashes.

        LMDB trusts its pages: a page that a failing disk changed can make it access any address (SIGBUS,
        SIGSEGV), or abort (SIGABRT). The next process then rebuilds the index.
        """
        self._crashes = record_crash(os.path.join(self.path, CRASHES))

    # Transactions

    def begin(self, table: str | None = None, *, write: bool = False) -> Any:
        """Return a transaction, to be ended with `end`; table: the table that it mostly reads."""
        self._enter(None)
        if self._growing:
            self._wait_for_map()
        try:
            if table is not None:
                return self._begin(self.tables[table])
            return self._begin(write=write)
        except lmdb.MapResizedError:
            self.end()
            self._adopt()
        except lmdb.ReadersFullError:
            self.end()
            # Reclaim the slots of killed processes.
            if not self.env.reader_check():
                raise
        except BaseException:
            self.end()
            raise
        return self.begin(table, write=write)

    def end(self) -> None:
        """Record that a transaction has ended."""
        self._leave()
        if self._growing:
            with self._idle:
                self._idle.notify_all()

    def reset_error(self) -> None:
        """Allow writing again after an error, for a caller who has not seen that error.

        The pages that the kernel may have lost belong to the failed transaction: later ones write their own.
        """
        self.failed = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any]:
        """Yield a read transaction."""
        txn = self.begin()
        try:
            yield txn
        finally:
            txn.abort()
            self.end()

    def write(self, change: Callable[[Any], _Result]) -> _Result:
        """Run `change` in a write transaction, again if the map was full; return its result."""
        if self.failed is not None:
            raise self.failed
        while True:
            txn = self.begin(write=True)
            size = self.map_size
            try:
                with txn:
                    return change(txn)
            except lmdb.MapFullError:
                pass
            except lmdb.Error as error:
                # Do not sync the file again: the kernel may have dropped the pages that it could not write.
                if type(error) in {lmdb.Error, lmdb.DiskError}:
                    self.failed = error
                raise
            finally:
                self.end()
            self._grow(size)

    def append(self, table: str, blocks: Iterable[Iterable[tuple[bytes, bytes]]]) -> None:
        """Append sorted pairs to a table; the pairs of all blocks must come after its present keys.

        The blocks must be iterable again: the transaction may run more than once.
        """

        def change(txn: Any) -> None:
            cursor = txn.cursor(self.tables[table])
            for block in blocks:
                cursor.putmulti(block, append=True)

        self.write(change)

    # The map

    @property
    def map_size(self) -> int:
        """Bytes of the file that are mapped, or can be."""
        return int(self.env.info()["map_size"])

    def _wait_for_map(self) -> None:
        """Wait while the map is enlarged; the caller's transaction is counted but has not begun."""
        while self._growing:
            self._leave()
            with self._idle:
                self._idle.notify_all()
                while self._growing:
                    self._idle.wait()
            self._enter(None)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold back all transactions of this process. The caller must not have one."""
        with self._idle:
            while self._growing:
                self._idle.wait()
            self._growing = True
            try:
                while self._running:
                    self._idle.wait()
                yield
            finally:
                self._growing = False
                self._idle.notify_all()

    def _grow(self, full: int) -> None:
        """Enlarge the map beyond the size at which it was full."""
        with self.exclusive():
            if self.map_size <= full:
                self._map(2 * full)

    def _adopt(self) -> None:
        """Map what another process wrote after the end of this process's map."""
        with self.exclusive():
            self.fit_map()

    def fit_map(self) -> None:
        """Map at least everything that is written. The caller holds back all transactions."""
        # Do not adopt the other process's size: this process may have less address space.
        written = (self.env.info()["last_pgno"] + 1) * self.env.stat()["psize"]
        size = self.map_size
        while size < written:
            size *= 2
        self._map(size)

    def _map(self, size: int) -> None:
        """Map `size` bytes, or as much of that as is available. Raises lmdb.MemoryError."""
        size = available_size(self.map_size, size)
        try:
            self.env.set_mapsize(size)
        except lmdb.Error:
            # Now it has no map at all: nothing may access it any more.
            self.env.close()
            raise
