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

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def scratch_folder(prefix: str, where: str | None = None, *, mode: int = 0o700) -> Iterator[str]:
    """Give a new directory that is removed when the block is left; where: None is the system's own place."""
    where = where or tempfile.gettempdir()
    sweep(prefix, where)
    made = tempfile.mkdtemp(prefix=f"{prefix}new-", dir=where)
    folder = os.path.join(where, prefix + made[-8:])
    descriptor = None
    try:
        descriptor = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # Some file systems have no locks: there nothing is ever swept either.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.chmod(made, mode)
        # It gets the name that is swept now that it is locked.
        os.rename(made, folder)
        yield folder
    finally:
        for path in (made, folder):
            shutil.rmtree(path, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def sweep(prefix: str, where: str) -> None:
    """Remove what a killed castore of this user has left behind."""
    name = re.compile(re.escape(prefix) + "[a-z0-9_]{8}")
    with contextlib.suppress(OSError):
        for found in os.listdir(where):
            if name.fullmatch(found):
                _remove_if_left(os.path.join(where, found))


def _remove_if_left(folder: str) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        info = os.fstat(descriptor)
        if info.st_uid != os.geteuid() or not stat.S_ISDIR(info.st_mode):
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # somebody is at work in it
    finally:
        os.close(descriptor)
