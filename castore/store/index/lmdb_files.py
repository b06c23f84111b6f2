"""The files of an LMDB environment: open them safely, keep them in place, find room for the memory map."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
from typing import TYPE_CHECKING, Any, Final

import lmdb

from castore.fs.flock import directory_lock, open_lock_file
from castore.store.index.schema import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

_FIRST_BYTES: Final = 1 << 30
"""Bytes that are mapped for an index of less than half of that."""
LEAST_STEP: Final = 16 << 20
"""The map grows by at least this many bytes or not at all; as much address space is left to the process."""
_READERS: Final = 254
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


def open_lmdb(path: str, *, durable: bool) -> Any:
    """Open the environment in a folder, with a map twice as large, or as large as possible."""
    _allocate_locks(path)
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


def check_length(env: Any, path: str) -> None:
    """Refuse a truncated file: touching a mapped page after its end is a SIGBUS."""
    pages = env.info()["last_pgno"] + 1
    if os.path.getsize(os.path.join(path, "data.mdb")) < pages * env.stat()["psize"]:
        raise lmdb.CorruptedError("the file is shorter than its header says")


def available_size(before: int, wanted: int) -> int:
    """Return the size that a map of `before` bytes can have: `wanted`, or as much of it as is available.

    Raises lmdb.MemoryError.
    """
    size = wanted
    while not _has_room(size - before):
        size = before + (size - before) // 2
        if size - before < LEAST_STEP:
            raise lmdb.MemoryError(f"it is full with {before} bytes")
    return size


def _has_room(size: int) -> bool:
    """Return whether `size` more bytes, and a reserve, can be mapped: a failing set_mapsize loses the map."""
    if size <= 0:
        return True
    size += LEAST_STEP
    with contextlib.suppress(OSError):
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ).close()
        return True
    return False


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
