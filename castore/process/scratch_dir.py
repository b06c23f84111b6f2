"""Folders that are needed for a while, and go even if castore is killed: at the next time.

Whoever makes one holds a lock on it as long as it lives, which no other process inherits. What nobody
holds was left behind, and is removed by whoever makes one of that name beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
from typing import TYPE_CHECKING

from castore.errors import CastoreError, UntrustedPathError

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
    """Give a new directory that is removed when the block is left, and remove what older ones left.

    where: None is the system's own place. say: is passed what cannot be removed, and why. Raises CastoreError
    for a place in which other users could exchange the directory, unless `anywhere`; OSError.
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
    # Not needed by processes that make scratch directories as another user, which lack what it imports.
    from castore.fs.trusted import refuse_loose  # noqa: PLC0415

    try:
        refuse_loose(where)
    except UntrustedPathError as error:
        raise CastoreError(f"no scratch directory is made in {where}: {error}") from error
    except OSError as error:
        raise CastoreError(
            f"no scratch directory is made in {where}: {error.strerror}; name another one with --scratch or "
            "TMPDIR"
        ) from error


def _make(prefix: str, where: str) -> tuple[str, int]:
    """Make a directory and lock it; return it, and what holds the lock."""
    while True:
        folder = tempfile.mkdtemp(prefix=prefix, dir=where)
        # Between the two somebody may have taken it for left.
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            # Some file systems have no locks: there nothing is ever swept either.
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(folder), os.fstat(lock)):
                    return folder, lock
            os.close(lock)


def sweep(prefix: str, where: str, say: Callable[[str], None] = _silent) -> None:
    """Remove what a killed castore of this user has left behind."""
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
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if user := _user_of(folder):
            say(f"{folder} is left of a castore that was killed; the process {user} is still in it")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # somebody is at work in it
    finally:
        os.close(descriptor)


def _user_of(folder: str) -> str | None:
    """Return the process that works in a folder: a server that outlived the castore which started it."""
    real = os.path.realpath(folder) + "/"
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if f"{os.readlink(f'/proc/{process}/cwd')}/".startswith(real):
                return process
    return None
