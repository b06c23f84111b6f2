"""Folders for a while, and what is left of those whose castore was killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from typing import TYPE_CHECKING

from castore.errors import CastoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TRIES = 100


@contextlib.contextmanager
def scratch(
    prefix: str, folder: str, say: Callable[[str], None] = lambda _text: None
) -> Iterator[str]:
    """Give a folder that lasts as long as the block; what older ones of this prefix left is removed first.

    Each is locked by who uses it, so that nobody else takes it for left. Raises OSError, CastoreError.
    """
    sweep(prefix, folder, say)
    place, lock = _make(prefix, folder)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(lock)


def _make(prefix: str, folder: str) -> tuple[str, int]:
    for _ in range(_TRIES):
        place = tempfile.mkdtemp(prefix=prefix, dir=folder)
        # Between the two somebody may have taken it for left.
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            lock = _hold(place)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(place), os.fstat(lock)):
                    return place, lock
            os.close(lock)
    raise CastoreError(f"cannot make a folder in {folder}: somebody removes it each time")


def _hold(place: str) -> int:
    """Lock a folder; give what holds the lock, which the kernel lets go when the process ends."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def sweep(prefix: str, folder: str, say: Callable[[str], None] = lambda _text: None) -> None:
    """Remove the folders of this prefix that nobody has locked, and that are this user's."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    for place in [os.path.join(folder, name) for name in names if name.startswith(prefix)]:
        # What is in use, or goes meanwhile, cannot be had, and is left.
        with contextlib.suppress(OSError):
            if os.lstat(place).st_uid != os.geteuid():
                continue
            lock = _hold(place)
            try:
                if user := _user_of(place):
                    say(f"{place} is left of a castore that was killed; the process {user} is still in it")
                else:
                    shutil.rmtree(place, ignore_errors=True)
            finally:
                os.close(lock)


def _user_of(place: str) -> str | None:
    """Return the process that works in a place: a server that outlived the castore which started it."""
    real = os.path.realpath(place) + "/"
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if f"{os.readlink(f'/proc/{process}/cwd')}/".startswith(real):
                return process
    return None
