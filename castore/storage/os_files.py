"""The file operations that a local store uses: the seam at which tests simulate a loss of power.

`Files` is the operating system itself; its methods raise OSError as those of `os` do. Nothing here or above
handles EINTR: Python repeats calls that a signal interrupted (PEP 475).
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from castore.fs.durable import FileNames, create_file, sync_directory
from castore.fs.filesystem import network_of
from castore.fs.flock import has_no_locks, open_directory, try_lock, wait_for_lock


class Files(FileNames):
    """All that a local store asks of a file system."""

    write = staticmethod(os.write)
    """Append to an open file; return how many of the bytes were written."""
    pread = staticmethod(os.pread)
    fsync = staticmethod(os.fsync)
    """Make an open file's bytes durable, but not its name."""
    close = staticmethod(os.close)
    sync_directory = staticmethod(sync_directory)
    """Make the names in a directory durable, but not the content of the files."""
    listdir = staticmethod(os.listdir)
    is_directory = staticmethod(os.path.isdir)

    @staticmethod
    def create(path: str) -> int:
        """Create a new file, for its owner only, and open it for writing."""
        descriptor = create_file(path)
        # The lock shows that a living process writes the file.
        with contextlib.suppress(OSError):
            try_lock(descriptor)
        return descriptor

    @staticmethod
    def is_abandoned(path: str) -> bool:
        """Return whether no process on this machine writes a file any more; it was created a while ago."""
        if network_of(path) is not None:
            return False
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return try_lock(descriptor)
        except OSError:
            return False
        finally:
            os.close(descriptor)

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
        status = os.stat(path)
        return status.st_size, status.st_mtime

    @staticmethod
    def lock(path: str, *, exclusive: bool) -> int | None:
        """Wait for the lock of a directory, exclusive or shared; return the descriptor that holds it.

        Closing the descriptor releases the lock. Returns None if there is no such lock, or if other machines
        may not see it.
        """
        if network_of(path) is not None:
            return None
        descriptor = open_directory(path)
        try:
            wait_for_lock(descriptor, shared=not exclusive)
        except OSError as error:
            os.close(descriptor)
            if not has_no_locks(error):
                raise
            return None
        return descriptor


FILES: Final = Files()
"""The operating system itself."""
