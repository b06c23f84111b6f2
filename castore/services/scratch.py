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
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_YOUNG_SECONDS: Final = 60.0
"""One that is younger may not be locked yet."""


@contextlib.contextmanager
def scratch_folder(prefix: str, where: str | None = None, *, mode: int = 0o700) -> Iterator[str]:
    """Give a new directory that is removed when the block is left; where: None is the system's own place."""
    where = where or tempfile.gettempdir()
    sweep(prefix, where)
    folder = tempfile.mkdtemp(prefix=prefix, dir=where)
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # Some file systems have no locks: there nothing is ever swept either.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.chmod(folder, mode)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
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
        young = time.time() - info.st_mtime < _YOUNG_SECONDS
        if young or info.st_uid != os.geteuid() or not stat.S_ISDIR(info.st_mode):
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # somebody is at work in it
    finally:
        os.close(descriptor)
