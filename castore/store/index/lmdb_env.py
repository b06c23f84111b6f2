"""The LMDB environment of an index: its transactions, and its memory map, which grows when it is full.

LMDB maps its file with a size that is chosen when it is opened, and refuses what does not fit. So if a
transaction finds the map full, the map is enlarged and the transaction is run again. The map must not move
during an open transaction of this process. So all transactions are counted: enlarging waits until there are
none, and new transactions wait for it. Transactions must therefore be short, and no thread may open a second
one.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import shutil
import struct
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

import lmdb

from castore.fs.durable import sync_if_supported
from castore.fs.flock import directory_lock, open_lock_file
from castore.process.own_process import record_crash, stop_recording
from castore.store.index.schema import OF_CONTENT, TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_FIRST_BYTES: Final = 1 << 30
"""Bytes that are mapped for an index of less than half of that."""
LEAST_STEP: Final = 16 << 20
"""The map grows by at least this many bytes or not at all; as much address space is left to the process."""
_READERS: Final = 254
_COPIED: Final = 1 << 14
"""Entries of a table that are copied in one batch."""
_LOCK_BYTES: Final = 20 << 10
"""A little more than LMDB's lock file takes for that many readers."""

BROKEN: Final = (
    lmdb.BadTxnError,
    lmdb.BadValsizeError,
    lmdb.CorruptedError,
    lmdb.CursorFullError,
    lmdb.IncompatibleError,
    lmdb.InvalidError,
    lmdb.PageFullError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
)
"""Errors of LMDB for a file that is not its own, or that was changed."""
WRONG: Final = (lmdb.Error, struct.error, IndexError, UnicodeDecodeError)
"""Errors of reading the tables: LMDB's own, and those of decoding values that a failing disk changed."""

CRASHES: Final = "crashes"
"""A file in the index's folder. If it is not empty, the index was found damaged, or crashed a process."""

_Result = TypeVar("_Result")


class Environment:
    """An open LMDB environment. A process must open it only once, as lmdb.h demands."""

    def __init__(self, path: str, *, durable: bool = True) -> None:
        """Open it. durable: whether each transaction is made durable when it ends."""
        self.path = path
        self.users = 0
        self.corrupt = False
        """Whether it was found damaged: whoever opens the index next replaces it by an empty one."""
        self._crashes = -1
        self.failed: Exception | None = None
        """Why nothing more is written: after an I/O error it is unknown what of the file is on the disk."""
        self.tables: dict[str, Any] = {}
        """The tables by name. Look them up within a transaction: a rebuild replaces them."""
        # One entry per open transaction; append and pop are each one atomic step of the interpreter.
        self._open: list[None] = []
        self._enter, self._leave = self._open.append, self._open.pop
        self._growing = False
        self._idle = threading.Condition()
        self._take(path, durable=durable)

    def _take(self, path: str, *, durable: bool) -> None:
        """Open the environment in a folder."""
        self._folder = os.stat(path)
        _allocate_locks(path)
        self.env: Any = _open(path, durable=durable)
        self._begin = self.env.begin
        try:
            self._watch(path)
            self._check_length(path)
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
                self._fit_map()

    def close(self) -> None:
        """Close it. An environment that was open before a fork is only released."""
        self.env.close()
        self._watch_no_more()

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

    def _watch_no_more(self) -> None:
        stop_recording(self._crashes)
        self._crashes = -1

    def _watch(self, path: str) -> None:
        """Record in the index's folder if a process of castore's own crashes.

        LMDB trusts its pages: a page that a failing disk changed can make it access any address (SIGBUS,
        SIGSEGV), or abort (SIGABRT). The next process then rebuilds the index.
        """
        self._crashes = record_crash(os.path.join(path, CRASHES))

    def _check_length(self, path: str) -> None:
        """Refuse a truncated file: touching a mapped page after its end is a SIGBUS."""
        pages = self.env.info()["last_pgno"] + 1
        if os.path.getsize(os.path.join(path, "data.mdb")) < pages * self.env.stat()["psize"]:
            raise lmdb.CorruptedError("the file is shorter than its header says")

    # Transactions

    def begin(self, table: str | None = None, *, write: bool = False) -> Any:
        """Return a transaction, to be ended with `end`; table: the table that it mostly reads."""
        self._enter(None)
        if self._growing:
            self._stand_back()
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
            size = self._size
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

    def replace_with(self, made: Environment, kept: Iterable[str]) -> None:
        """Switch to an environment that was built in another folder, and make it durable.

        kept: tables to copy from this one. Processes that have the old one open keep it, without its name:
        syncing with the store updates it as usual, and what only it has is found in the store again.
        """
        olds = [f"{made.path}.0"]
        with self._exclusive(), contextlib.ExitStack() as place:
            self._fit_map()
            # Lock the folder before the write lock, in the order in which an opening process takes them. If
            # the folder is missing, another process replaces the index because it was damaged.
            with contextlib.suppress(FileNotFoundError):
                place.enter_context(kept_in_place(self.path, shared=False))
            # From here on, no other process writes to the old one.
            with self.env.begin(write=True) as txn:
                for name in kept:
                    cursor = txn.cursor(self.tables[name])
                    pairs = iter(cursor)
                    while batch := list(itertools.islice(pairs, _COPIED)):
                        made.append(name, [batch])
                meta = dict(txn.cursor(self.tables["meta"]))
                made.write(lambda to: _put_missing(to, made.tables["meta"], meta))
                made.env.sync(True)
                made.env.close()
                with contextlib.suppress(FileNotFoundError):
                    os.rename(self.path, olds[0])
                # Another process may have created an empty one at this very moment.
                while not _rename(made.path, self.path):
                    olds.append(f"{made.path}.{len(olds)}")
                    with (
                        contextlib.suppress(FileNotFoundError),
                        kept_in_place(self.path, shared=False),
                    ):
                        os.rename(self.path, olds[-1])
                sync_if_supported(os.path.dirname(self.path))
            self.close()
            with kept_in_place(self.path, shared=True):
                self._take(self.path, durable=True)
            self.corrupt = False
        for old in olds:
            shutil.rmtree(old, ignore_errors=True)

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
    def _size(self) -> int:
        return int(self.env.info()["map_size"])

    def _stand_back(self) -> None:
        """Wait while the map is enlarged; the caller's transaction is counted but has not begun."""
        while self._growing:
            self._leave()
            with self._idle:
                self._idle.notify_all()
                while self._growing:
                    self._idle.wait()
            self._enter(None)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold back all transactions of this process. The caller must not have one."""
        with self._idle:
            while self._growing:
                self._idle.wait()
            self._growing = True
            try:
                while self._open:
                    self._idle.wait()
                yield
            finally:
                self._growing = False
                self._idle.notify_all()

    def _grow(self, full: int) -> None:
        """Enlarge the map beyond the size at which it was full."""
        with self._exclusive():
            if self._size <= full:
                self._map(2 * full)

    def _adopt(self) -> None:
        """Map what another process wrote after the end of this process's map."""
        with self._exclusive():
            self._fit_map()

    def _fit_map(self) -> None:
        """Map at least everything that is written. The caller holds back all transactions."""
        # Do not adopt the other process's size: this process may have less address space.
        written = (self.env.info()["last_pgno"] + 1) * self.env.stat()["psize"]
        size = self._size
        while size < written:
            size *= 2
        self._map(size)

    def _map(self, size: int) -> None:
        """Map `size` bytes, or as much of that as is available. Raises lmdb.MemoryError."""
        before = self._size
        while not _has_room(size - before):
            size = before + (size - before) // 2
            if size - before < LEAST_STEP:
                raise lmdb.MemoryError(f"it is full with {before} bytes")
        try:
            self.env.set_mapsize(size)
        except lmdb.Error:
            # Now it has no map at all: nothing may access it any more.
            self.env.close()
            raise


def _put_missing(txn: Any, meta: Any, entries: dict[bytes, bytes]) -> None:
    """Copy metadata of an index, except what refers to its pack numbers, or to what it had indexed."""
    for key, value in entries.items():
        if key not in OF_CONTENT:
            txn.put(key, value, overwrite=False, db=meta)


@contextlib.contextmanager
def kept_in_place(path: str, *, shared: bool) -> Iterator[None]:
    """Keep a folder at its path during the block, with a shared or an exclusive lock on it.

    Opening an index opens two files by name, which must be in the same folder. So a process that gives
    another folder that name takes the lock exclusively. Raises FileNotFoundError while there is no folder.
    """
    while True:
        with directory_lock(path, shared=shared) as held:
            if os.path.samestat(os.fstat(held), os.stat(path)):
                yield
                return


def _rename(old: str, new: str) -> bool:
    """Rename a folder; return whether the new name was free."""
    try:
        os.rename(old, new)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
            return False
        raise
    return True


def _has_room(size: int) -> bool:
    """Return whether `size` more bytes, and a reserve, can be mapped: a failing set_mapsize loses the map."""
    if size <= 0:
        return True
    size += LEAST_STEP
    with contextlib.suppress(OSError):
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ).close()
        return True
    return False


def _allocate_locks(path: str) -> None:
    """Allocate LMDB's lock file: it is written through a map, where a full disk causes a SIGBUS."""
    name = os.path.join(path, "lock.mdb")
    try:
        descriptor = open_lock_file(name)
        try:
            os.posix_fallocate(descriptor, 0, os.fstat(descriptor).st_size or _LOCK_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}:
            raise


def _open(path: str, *, durable: bool) -> Any:
    """Open the environment in a folder, with a map twice as large, or as large as possible."""
    file = os.path.join(path, "data.mdb")
    length = os.path.getsize(file) if os.path.exists(file) else 0
    size = _FIRST_BYTES
    while size < 2 * length:
        size *= 2
    while size // 2 >= max(length, LEAST_STEP) and not _has_room(size):
        size //= 2
    try:
        return lmdb.open(
            path, map_size=size, mode=0o600, max_dbs=len(TABLES), max_readers=_READERS, sync=durable
        )
    except lmdb.Error as error:
        # The Python package checks the version itself, and has no error class for it.
        if type(error) is lmdb.Error and "data format" in str(error):
            raise lmdb.VersionMismatchError(str(error)) from error
        raise
