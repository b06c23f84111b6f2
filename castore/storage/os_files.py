"""The file operations that a local store uses: the seam at which tests simulate a loss of power.

`Files` is the operating system itself; its methods raise OSError as those of `os` do. Nothing here or above
handles EINTR: Python repeats calls that a signal interrupted (PEP 475).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import Final

from castore.kernel.dir_listing import network_of

NO_SYNC: Final = {errno.EINVAL, errno.ENOTSUP}
"""Errors of fsync(2) of a directory on file systems that do not support it."""
_NO_FLOCK: Final = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def sync_directory(path: str) -> None:
    """Make the names in a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_if_supported(directory: str | int) -> None:
    """Make the names in a directory durable if its file system supports that. Raises OSError.

    directory: its path, or the open directory. Some network and FUSE file systems answer EINVAL or ENOTSUP.
    That is accepted for live and machine state; a store needs `sync_directory`.
    """
    try:
        if isinstance(directory, int):
            os.fsync(directory)
        else:
            sync_directory(directory)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


class Files:
    """All that a local store asks of a file system."""

    write = staticmethod(os.write)
    """Append to an open file; return how many of the bytes were written."""
    pread = staticmethod(os.pread)
    fsync = staticmethod(os.fsync)
    """Make an open file's bytes durable, but not its name."""
    close = staticmethod(os.close)
    link = staticmethod(os.link)
    rename = staticmethod(os.rename)
    unlink = staticmethod(os.unlink)
    sync_directory = staticmethod(sync_directory)
    """Make the names in a directory durable, but not the content of the files."""
    listdir = staticmethod(os.listdir)
    exists = staticmethod(os.path.lexists)
    is_directory = staticmethod(os.path.isdir)

    @staticmethod
    def create(path: str) -> int:
        """Create a new file, for its owner only, and open it for writing."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        # The lock shows that a living process writes the file; it ends with the process, however that ends.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor

    @staticmethod
    def is_abandoned(path: str) -> bool:
        """Return whether no process on this machine writes a file any more; it was created a while ago."""
        if network_of(path) is not None:
            return False
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True

    @staticmethod
    def open(path: str) -> int:
        """Open a file for reading."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    @staticmethod
    def mkdir(path: str) -> None:
        """Create a directory, for its owner only."""
        os.mkdir(path, 0o700)

    @staticmethod
    def length(descriptor: int) -> int:
        """Return the length of an open file."""
        return os.fstat(descriptor).st_size

    @staticmethod
    def stat(path: str) -> tuple[int, float]:
        """Return the length of a file, and when it was last changed, in seconds since 1970."""
        found = os.stat(path)
        return found.st_size, found.st_mtime

    @staticmethod
    def lock(path: str, *, alone: bool) -> int | None:
        """Wait for the lock of a directory, exclusive or shared; return the descriptor that holds it.

        Closing the descriptor releases the lock. Returns None if there is no such lock, or if other machines
        may not see it.
        """
        if network_of(path) is not None:
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _NO_FLOCK:
                raise
            return None
        return descriptor


FILES: Final = Files()
"""The operating system itself."""
