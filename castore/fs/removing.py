"""Remove files and directories below an open directory, without following links."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

from castore.fs.beneath import OPEN_DIRECTORY, open_entry, path_of

if TYPE_CHECKING:
    from collections.abc import Sequence

_WORKERS: Final = 4
_MANY: Final = 64
"""So many names or more are removed on several threads."""


def remove(name: bytes, parent: int) -> None:
    """Remove the file or directory `name` from the directory open as `parent`. Raises OSError."""
    if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        remove_tree(name, parent)
    else:
        os.unlink(name, dir_fd=parent)


def remove_many(names: Sequence[bytes], parent: int) -> list[OSError | None]:
    """Remove files and directories from the directory open as `parent`; return the error of each."""
    attempt = partial(_error_of_removing, parent)
    if len(names) < _MANY:
        return [attempt(name) for name in names]
    # On a busy disk each unlink waits up to some milliseconds for the journal of the file system.
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="castore-remove") as pool:
        return list(pool.map(attempt, names))


def _error_of_removing(parent: int, name: bytes) -> OSError | None:
    try:
        remove(name, parent)
    except OSError as error:
        return error
    return None


def remove_tree(name: bytes, parent: int) -> None:
    """Remove the directory `name` in the one open as `parent`, with everything in it.

    Directories whose mode forbids that get another mode. Raises OSError, with EBUSY if another file system is
    mounted in it.
    """
    device = os.stat(name, dir_fd=parent, follow_symlinks=False).st_dev
    _empty([(name, _open_to_empty(name, parent, device))], parent, device)


def remove_all_in(fd: int) -> None:
    """Remove everything in the directory open as `fd`, as `remove_tree` does. Raises OSError."""
    device = os.fstat(fd).st_dev
    for name in {os.fsencode(entry) for entry in os.listdir(fd)}:
        if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            _empty([(name, _open_to_empty(name, fd, device))], fd, device)
        else:
            os.unlink(name, dir_fd=fd)


def remove_directory(name: bytes, parent: int, fd: int) -> None:
    """Remove the empty directory open as `fd` from the one open as `parent`, whatever its present name is.

    name: its last known name. Does nothing if it is not in that directory any more. Raises OSError.
    """
    wanted = os.fstat(fd)
    for candidate in (name, *map(os.fsencode, os.listdir(parent))):
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(wanted, os.stat(candidate, dir_fd=parent, follow_symlinks=False)):
                os.rmdir(candidate, dir_fd=parent)
                return


def _empty(stack: list[tuple[bytes, int]], parent: int, device: int) -> None:
    """Remove the directory that is open on the stack, with everything in it."""
    try:
        while stack:
            current, fd = stack[-1]
            # A set: some file systems list a name more than once.
            for below in {os.fsencode(entry) for entry in os.listdir(fd)}:
                info = os.stat(below, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    stack.append((below, _open_to_empty(below, fd, device)))
                    break
                os.unlink(below, dir_fd=fd)
            else:
                stack.pop()
                os.close(fd)
                os.rmdir(current, dir_fd=stack[-1][1] if stack else parent)
    finally:
        for _, fd in stack:
            os.close(fd)


def _open_to_empty(name: bytes, parent: int, device: int) -> int:
    try:
        fd = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
    except PermissionError:
        _allow(name, parent)
        fd = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
    info = os.fstat(fd)
    if info.st_dev != device:
        os.close(fd)
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    if info.st_mode & 0o700 != 0o700:
        os.fchmod(fd, 0o700)
    return fd


def _allow(name: bytes, parent: int) -> None:
    """Give the owner of a directory the permission to enter it."""
    held = open_entry(parent, name)
    try:
        if stat.S_ISDIR(os.fstat(held).st_mode):
            os.chmod(path_of(held), 0o700)
    finally:
        os.close(held)
