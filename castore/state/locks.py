"""Locks on this machine: one castore at a time works on a service, removes from a store, or writes a file."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
from typing import TYPE_CHECKING

from castore.errors import BusyError
from castore.fs.durable import make_private_directory, refusal
from castore.fs.flock import open_lock_file, try_lock, wait_for_lock

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def named_lock(path: str, what: str, doing: str = "at work on") -> Iterator[None]:
    """Hold the lock on `what`, which is the file `path`, during the block.

    doing: what the holder does to `what`, for the message. Raises BusyError if another process holds the
    lock, StorageError.
    """
    descriptor = _opened(path)
    try:
        _take(descriptor, path, what, doing)
        now = dt.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        # This only lets other processes report the holder. On a full disk the lock is held nevertheless.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} on {os.uname().nodename} since {now}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def waiting_lock(path: str) -> Iterator[None]:
    """Hold the lock that is the file `path` during the block, which must be short: others wait for it.

    Raises StorageError.
    """
    descriptor = _opened(path)
    try:
        try:
            wait_for_lock(descriptor)
        except OSError as error:
            raise refusal("lock", path, error) from error
        yield
    finally:
        os.close(descriptor)


def _opened(path: str) -> int:
    make_private_directory(os.path.dirname(path))
    try:
        return open_lock_file(path)
    except OSError as error:
        raise refusal("open the lock", path, error) from error


def _take(descriptor: int, path: str, what: str, doing: str) -> None:
    try:
        if try_lock(descriptor):
            return
    except OSError as error:
        raise refusal("lock", path, error) from error
    text = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
    holder = f" ({text})" if re.fullmatch(r"pid \d+ on [-.\w]+ since [-+: 0-9]+", text) else ""
    raise BusyError(f"another castore{holder} is {doing} {what}; try again when it has ended")
