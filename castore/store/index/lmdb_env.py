"""The LMDB environment of an index: its transactions, and its map, which grows when it is full.

LMDB maps its file, and who opens it says how much; what does not fit is refused. So the map is made larger
when a transaction finds it full, and that transaction is run again. The map must not move below an open
transaction of this process: all are counted, and who wants to make it larger waits until there is none, while
new ones wait for that. So a transaction is short, and no thread opens one while it has another.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import fcntl
import itertools
import mmap
import os
import shutil
import struct
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

import lmdb

from castore.storage.os_files import sync_if_supported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_FIRST_BYTES: Final = 1 << 30
"""How much is mapped of an index that is smaller than half of it."""
LEAST_STEP: Final = 16 << 20
"""A map that cannot become larger by this much does not; as much address space is left to the process."""
_READERS: Final = 254
_COPIED: Final = 1 << 14
"""Entries of a table that are copied at once."""
_LOCK_BYTES: Final = 20 << 10
"""What LMDB's file of locks takes for so many readers, and a little."""

TABLES: Final = (
    "chunks",
    "nodes",
    "copies",
    "bases",
    "features",
    "uses",
    "packs",
    "pack_numbers",
    "sessions",
    "session_numbers",
    "generations",
    "revisions",
    "records",
    "meta",
    "verified",
    "ended",
    "owners",
)
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
"""What LMDB raises for a file that is none of its own, or was changed."""
WRONG: Final = (lmdb.Error, struct.error, IndexError, UnicodeDecodeError)
"""What looking at the tables raises: LMDB's own, and what values lead to that a disk has changed."""

CRASHES: Final = "crashes"
"""A file in the index's folder: not empty, it was found damaged, or ended a process by a fault."""

_Result = TypeVar("_Result")


class Environment:
    """An open LMDB environment. A process opens one only once, as lmdb.h demands."""

    def __init__(self, path: str, *, durable: bool = True) -> None:
        """Durable: what is written is so by the end of its transaction."""
        self.path = path
        self.users = 0
        self.condemned = False
        """Whether it was found damaged: who opens it from now on begins anew."""
        self._crashes = -1
        self.failed: Exception | None = None
        """Why nothing more is written: after an error nobody knows what of the file is on the disk."""
        self.tables: dict[str, Any] = {}
        """By their names; asked for within a transaction: a rebuild has others."""
        # One entry an open transaction; to append and to pop are one step of the interpreter each.
        self._open: list[None] = []
        self._enter, self._leave = self._open.append, self._open.pop
        self._growing = False
        self._idle = threading.Condition()
        self._take(path, durable=durable)

    def _take(self, path: str, *, durable: bool) -> None:
        """Open what is in a folder."""
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
        """Open a table, with the size that another process may give the map meanwhile."""
        while True:
            try:
                return self.env.open_db(name.encode())
            except lmdb.MapResizedError:
                self._fit()

    def close(self) -> None:
        """Close it; what was open before a fork is only let go of."""
        self.env.close()
        self._watch_no_more()

    def condemn(self) -> bool:
        """Note in its folder that it is damaged; tell whether that was possible, and needed."""
        self.condemned = True
        try:
            # Another may have taken its place, and is none the worse.
            if os.path.samestat(os.stat(self.path), self._folder):
                with open(os.path.join(self.path, CRASHES), "a", encoding="ascii") as file:
                    file.write("damaged\n")
        except FileNotFoundError:
            pass
        except OSError:
            return False
        return True

    def _watch_no_more(self) -> None:
        if self._crashes >= 0:
            faulthandler.disable()
            os.close(self._crashes)
            self._crashes = -1

    def _watch(self, path: str) -> None:
        """Have it noted in the index's folder if the process is ended by a fault.

        LMDB believes its pages: one that a disk has changed can lead it anywhere (SIGBUS, SIGSEGV), or make
        it give up (SIGABRT). Whoever comes next builds the index again.
        """
        if not faulthandler.is_enabled():
            with contextlib.suppress(OSError):
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._crashes = os.open(os.path.join(path, CRASHES), flags, 0o600)
                faulthandler.enable(self._crashes, all_threads=False)

    def _check_length(self, path: str) -> None:
        """Refuse a file that was cut: touching a mapped page behind its end is a SIGBUS."""
        pages = self.env.info()["last_pgno"] + 1
        if os.path.getsize(os.path.join(path, "data.mdb")) < pages * self.env.stat()["psize"]:
            raise lmdb.CorruptedError("the file is shorter than it says")

    # Transactions

    def begin(self, table: str | None = None, *, write: bool = False) -> Any:
        """Return a transaction, for `end`; table: which one it is about, mostly."""
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
            # Those of processes that were killed are given back.
            if not self.env.reader_check():
                raise
        except BaseException:
            self.end()
            raise
        return self.begin(table, write=write)

    def end(self) -> None:
        """Say that a transaction has ended."""
        self._leave()
        if self._growing:
            with self._idle:
                self._idle.notify_all()

    def try_again(self) -> None:
        """Write again, after an error, for somebody who has not been told of it.

        What the kernel may have forgotten is of the transaction that failed: others write pages of their own.
        """
        self.failed = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any]:
        """Give a transaction that reads."""
        txn = self.begin()
        try:
            yield txn
        finally:
            txn.abort()
            self.end()

    def write(self, change: Callable[[Any], _Result]) -> _Result:
        """Run `change` in a transaction that writes, again if the map was full; return what it does."""
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
                # Its file is not synced again: the kernel may have forgotten what it could not write.
                if type(error) in {lmdb.Error, lmdb.DiskError}:
                    self.failed = error
                raise
            finally:
                self.end()
            self._grow(size)

    def become(self, made: Environment, kept: Iterable[str]) -> None:
        """Take what was made in another folder instead, which is then durable; kept: tables to take over.

        Processes that have the old one open keep it, without its name: it is brought up to date with the
        store as ever, and what is only in it is found there again.
        """
        olds = [f"{made.path}.0"]
        with self._alone(), contextlib.ExitStack() as place:
            self._fit()
            # Its place before the right to write: in this order who opens it takes them. If it is gone,
            # another process begins anew, since it was damaged.
            with contextlib.suppress(FileNotFoundError):
                place.enter_context(kept_in_place(self.path, fcntl.LOCK_EX))
            # Of other processes, none writes to it any more.
            with self.env.begin(write=True) as txn:
                for name in kept:
                    cursor = txn.cursor(self.tables[name])
                    pairs = iter(cursor)
                    while batch := list(itertools.islice(pairs, _COPIED)):
                        made.append(name, [batch])
                told = dict(txn.cursor(self.tables["meta"]))
                made.write(lambda to: _put_missing(to, made.tables["meta"], told))
                made.env.sync(True)
                made.env.close()
                with contextlib.suppress(FileNotFoundError):
                    os.rename(self.path, olds[0])
                # Another process may have begun an empty one at this very moment.
                while not _rename(made.path, self.path):
                    olds.append(f"{made.path}.{len(olds)}")
                    with (
                        contextlib.suppress(FileNotFoundError),
                        kept_in_place(self.path, fcntl.LOCK_EX),
                    ):
                        os.rename(self.path, olds[-1])
                sync_if_supported(os.path.dirname(self.path))
            self.close()
            with kept_in_place(self.path, fcntl.LOCK_SH):
                self._take(self.path, durable=True)
            self.condemned = False
        for old in olds:
            shutil.rmtree(old, ignore_errors=True)

    def append(self, table: str, blocks: Iterable[Iterable[tuple[bytes, bytes]]]) -> None:
        """Put pairs, sorted, behind all that are in a table; the blocks can be asked for again."""

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
        """Wait, with a transaction that is counted but not begun, while the map is made larger."""
        while self._growing:
            self._leave()
            with self._idle:
                self._idle.notify_all()
                while self._growing:
                    self._idle.wait()
            self._enter(None)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold back all transactions of this process. The caller has none."""
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
        """Make the map larger than the size at which it was full."""
        with self._alone():
            if self._size <= full:
                self._map(2 * full)

    def _adopt(self) -> None:
        """Map what another process has written behind the end of this one's map."""
        with self._alone():
            self._fit()

    def _fit(self) -> None:
        """Map all that is written, at least. There is no transaction."""
        # Not what another process has mapped: this one may have less address space.
        written = (self.env.info()["last_pgno"] + 1) * self.env.stat()["psize"]
        size = self._size
        while size < written:
            size *= 2
        self._map(size)

    def _map(self, size: int) -> None:
        """Map `size` bytes, or as much of that as can be had."""
        before = self._size
        while not _has_room(size - before):
            size = before + (size - before) // 2
            if size - before < LEAST_STEP:
                raise lmdb.MemoryError(f"it is full with {before} bytes")
        try:
            self.env.set_mapsize(size)
        except lmdb.Error:
            # Now it has no map at all: nothing may touch it any more.
            self.env.close()
            raise


def _put_missing(txn: Any, meta: Any, told: dict[bytes, bytes]) -> None:
    """Take over what an index remembers, but what is of its numbers of packs, or of what was indexed."""
    for key, value in told.items():
        if key not in {b"epoch", b"condemned", b"recalled"}:
            txn.put(key, value, overwrite=False, db=meta)


@contextlib.contextmanager
def kept_in_place(path: str, how: int) -> Iterator[None]:
    """Keep a folder where it is, with others or alone (fcntl.LOCK_SH, LOCK_EX), through the block.

    Who opens an index opens two files by their names, which have to be in one folder; so who gives another
    folder that name is alone. Raises FileNotFoundError while there is none.
    """
    while True:
        held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(held, how)
            if os.path.samestat(os.fstat(held), os.stat(path)):
                yield
                return
        finally:
            os.close(held)


def _rename(old: str, new: str) -> bool:
    """Give a folder a name; tell whether that was free."""
    try:
        os.rename(old, new)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
            return False
        raise
    return True


def _has_room(size: int) -> bool:
    """Whether so much more can be mapped, and a little: where set_mapsize fails, the old map is gone."""
    if size <= 0:
        return True
    size += LEAST_STEP
    with contextlib.suppress(OSError):
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ).close()
        return True
    return False


def _allocate_locks(path: str) -> None:
    """Make room for LMDB's file of locks: it is written through a map, where a full disk is a SIGBUS."""
    name = os.path.join(path, "lock.mdb")
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, os.fstat(descriptor).st_size or _LOCK_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}:
            raise


def _open(path: str, *, durable: bool) -> Any:
    """Open what is in a folder, with a map that is twice as large, or as large as can be had."""
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
        # The Python package looks at the version itself, and has no kind of error for it.
        if type(error) is lmdb.Error and "data format" in str(error):
            raise lmdb.VersionMismatchError(str(error)) from error
        raise
