"""Write files that exist completely or not at all, whenever the process is killed or the power fails.

A file is written under a temporary name, synced, and then renamed; the directory is synced last. What need
not survive a loss of power, such as a cache, is written in the same way, without the syncs.

The objects of a store are not written here: `castore.storage.local` never replaces a file, names the next
step in each error, and runs on a simulated disk in tests.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final

from castore.errors import StorageError
from castore.fs.flock import open_directory

Data = bytes | bytearray | memoryview
NO_SYNC: Final = {errno.EINVAL, errno.ENOTSUP}
"""Errors of fsync(2) of a directory on file systems that do not support it."""
_CREATE: Final = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class FileNames:
    """The operations on names that `give_new_name` uses."""

    link = staticmethod(os.link)
    rename = staticmethod(os.rename)
    unlink = staticmethod(os.unlink)
    exists = staticmethod(os.path.lexists)


_NAMES: Final = FileNames()
_NO_LINKS: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""Errors of link(2) on file systems without hard links: FAT, some network ones."""


def refusal(doing: str, path: str, error: OSError) -> StorageError:
    """Return the error for an operation that this machine refused."""
    return StorageError(f"cannot {doing} {path}: {error.strerror or error}")


def sync_directory(path: str) -> None:
    """Make the names in a directory durable. Raises OSError."""
    descriptor = open_directory(path)
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


def write_all(fd: int, data: Data) -> None:
    """Write all of `data` at the position of an open file. Raises OSError."""
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.write(fd, view[done:])


def create_file(name: str | bytes, *, folder: int | None = None, read: bool = False) -> int:
    """Create a new file, which only its owner may access, and open it for writing. Raises OSError.

    folder: the open directory that `name` is relative to. read: open it for reading, too. A symbolic link of
    that name is not followed.
    """
    return os.open(name, _CREATE | (os.O_RDWR if read else os.O_WRONLY), 0o600, dir_fd=folder)


def give_new_name(temporary: str, path: str, names: FileNames = _NAMES) -> None:
    """Rename a file without ever replacing another one. Raises FileExistsError, OSError.

    names: the file system, for tests that simulate one.
    """
    try:
        names.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Without links, two processes that use one name at the same moment cannot be kept apart.
        if names.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
        names.rename(temporary, path)
        return
    # The file is complete: a second name that remains costs only a directory entry.
    with contextlib.suppress(OSError):
        names.unlink(temporary)


class NewFile:
    """A file that only its owner may access, and that gets its name in one step, once it is complete."""

    def __init__(self, temporary: str) -> None:
        """Create it under a temporary name, open for reading and writing. Raises OSError."""
        self.fd = create_file(temporary, read=True)
        self._temporary = temporary

    @property
    def is_open(self) -> bool:
        """Whether it was neither committed nor discarded."""
        return self.fd >= 0

    def write(self, data: Data) -> None:
        """Append `data`. Raises OSError."""
        write_all(self.fd, data)

    def commit(self, path: str, *, durable: bool, replace: bool = True) -> None:
        """Give the file its name, or discard it on failure.

        durable: sync the content before, so that the name never leads to less. The name itself is durable
        once the directory is synced. replace: an existing file. Raises FileExistsError, OSError.
        """
        try:
            if durable:
                os.fsync(self.fd)
            if replace:
                os.rename(self._temporary, path)
            else:
                give_new_name(self._temporary, path)
        except BaseException:
            self.discard()
            raise
        self._close()

    def discard(self) -> None:
        """Delete the file unless it was committed."""
        if self.is_open:
            self._close()
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        os.close(fd)


def write_file(path: str, data: Data, *, replace: bool = True) -> None:
    """Write `data` to the file `path`, in one step; its content is durable before its name exists.

    Only its owner may access it. replace: an existing file. Raises FileExistsError, OSError.
    """
    file = NewFile(f"{path}.{os.urandom(8).hex()}")
    try:
        file.write(data)
        file.commit(path, durable=True, replace=replace)
    finally:
        file.discard()


def make_private_directory(path: str) -> None:
    """Create `path` and its missing parents, accessible to the owner only. Raises StorageError."""
    missing = []
    step = os.path.abspath(path)
    while not os.path.isdir(step):
        missing.append(step)
        if (above := os.path.dirname(step)) == step:
            break
        step = above
    for step in reversed(missing):
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(step, 0o700)
            sync_if_supported(os.path.dirname(step))
        except OSError as error:
            raise refusal("create the directory", step, error) from error


def write_private(path: str, data: Data) -> None:
    """Write `data` to the file `path`, durably, in one step, readable by its owner only.

    Missing directories are created; an existing file is replaced. Raises StorageError.
    """
    folder = os.path.dirname(path)
    make_private_directory(folder)
    try:
        write_file(path, data)
    except OSError as error:
        raise refusal("write", path, error) from error
    sync_names(path)


def sync_names(path: str) -> None:
    """Make the name of a file that `write_private` wrote durable. Raises StorageError."""
    folder = os.path.dirname(path)
    try:
        sync_if_supported(folder)
        # The process that created the folder may have been killed before it synced the folder's name.
        sync_if_supported(os.path.dirname(folder))
    except OSError as error:
        raise refusal("write", path, error) from error


def read_private(path: str) -> str | None:
    """Return the text of a file, or None if it does not exist. Raises StorageError."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refusal("read", path, error) from error


def remove_private(path: str) -> None:
    """Delete a file, durably, if it exists. Raises StorageError."""
    try:
        os.unlink(path)
        sync_if_supported(os.path.dirname(path))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise refusal("remove", path, error) from error
