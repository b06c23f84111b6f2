"""Locks of open files and directories (flock(2)): one place decides how they are requested and opened.

The kernel releases a lock when the last copy of its descriptor is closed, which is when the process ends,
however it ends. So no lock is ever stale, and a lock file is never deleted: if it were, two processes could
hold locks on two files of its name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_LOCKS: Final = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Lock an open file, exclusively or shared; return False if another process holds its lock.

    Raises OSError, for example on a file system without locks (see `has_no_locks`).
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(fd: int, *, shared: bool = False) -> None:
    """Lock an open file, exclusively or shared; wait until no other process holds its lock.

    Raises OSError.
    """
    fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


def has_no_locks(error: OSError) -> bool:
    """Return whether an error of locking means that the file system has no locks."""
    return error.errno in _NO_LOCKS


def open_lock_file(path: str) -> int:
    """Open a file that exists only to be locked, and create it for its owner if needed. Raises OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def open_directory(path: str) -> int:
    """Open a directory, to lock or sync it. Raises OSError."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


@contextlib.contextmanager
def directory_lock(path: str, *, shared: bool = False) -> Iterator[int]:
    """Wait for the lock of a directory, and hold it during the block; yield the open directory.

    Raises OSError.
    """
    fd = open_directory(path)
    try:
        wait_for_lock(fd, shared=shared)
        yield fd
    finally:
        os.close(fd)
