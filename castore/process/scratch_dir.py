"""Temporary directories that are removed even if castore is killed: by the next process that needs one.

The process that creates one holds a lock on it for its lifetime, which no other process inherits. A
directory without a lock was left by a killed process. The next process that creates one with the same prefix
in the same directory removes it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
from typing import TYPE_CHECKING

from castore.errors import CastoreError, UntrustedPathError
from castore.fs.flock import open_directory, try_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _silent(_text: str) -> None:
    pass


@contextlib.contextmanager
def scratch_folder(
    prefix: str,
    where: str | None = None,
    *,
    mode: int = 0o700,
    say: Callable[[str], None] = _silent,
    anywhere: bool = False,
) -> Iterator[str]:
    """Create a directory that is removed at the end of the block; remove those of killed processes, too.

    where: the directory to create it in; None: that of the system. mode: of the directory. say: called with
    directories that cannot be removed. Raises CastoreError if other users could replace the directory there,
    unless `anywhere`. Raises OSError.
    """
    where = where or tempfile.gettempdir()
    if not anywhere:
        _refuse_loose(where)
    sweep(prefix, where, say)
    folder, lock = _make(prefix, where)
    try:
        os.chmod(folder, mode)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _refuse_loose(where: str) -> None:
    # Imported late: processes that run as another user do not need it, and may not be able to import it.
    from castore.fs.trusted import refuse_loose  # noqa: PLC0415

    try:
        refuse_loose(where)
    except UntrustedPathError as error:
        raise CastoreError(f"cannot make a scratch directory in {where}: {error}") from error
    except OSError as error:
        raise CastoreError(
            f"cannot make a scratch directory in {where}: {error.strerror}; name another one with "
            "--scratch or TMPDIR"
        ) from error


def _make(prefix: str, where: str) -> tuple[str, int]:
    """Create a directory and lock it; return its path and the descriptor with the lock."""
    while True:
        folder = tempfile.mkdtemp(prefix=prefix, dir=where)
        # Before it is locked, another process may take it for left over, and remove it.
        with contextlib.suppress(FileNotFoundError):
            lock = open_directory(folder)
            # On a file system without locks, `sweep` removes nothing either.
            with contextlib.suppress(OSError):
                try_lock(lock)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(folder), os.fstat(lock)):
                    return folder, lock
            os.close(lock)


def sweep(prefix: str, where: str, say: Callable[[str], None] = _silent) -> None:
    """Remove the directories that killed castore processes of this user left."""
    name = re.compile(re.escape(prefix) + "[a-z0-9_]{8}")
    with contextlib.suppress(OSError):
        for found in os.listdir(where):
            if name.fullmatch(found):
                _remove_if_left(os.path.join(where, found), say)


def _remove_if_left(folder: str, say: Callable[[str], None]) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        info = os.fstat(descriptor)
        if info.st_uid != os.geteuid() or not stat.S_ISDIR(info.st_mode):
            return
        if not try_lock(descriptor):
            return
        if user := _user_of(folder):
            say(f"{folder} was left by a killed castore, but is not removed: process {user} works in it")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # a file system without locks, or a folder that another process has removed
    finally:
        os.close(descriptor)


def _user_of(folder: str) -> str | None:
    """Return a process that works in a directory, such as a server that outlived its castore."""
    real = os.path.realpath(folder) + "/"
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if f"{os.readlink(f'/proc/{process}/cwd')}/".startswith(real):
                return process
    return None
