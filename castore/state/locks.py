"""Locks on this machine: one castore at a time works on a service, removes from a store, or writes a file."""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import os
import re
from typing import TYPE_CHECKING

from castore.errors import BusyError
from castore.state.paths import make_private_directory, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def named_lock(path: str, what: str, doing: str = "at work on") -> Iterator[None]:
    """Hold the lock on `what`, which is the file `path`, during the block.

    doing: what the holder does to `what`, for the message. The kernel releases the lock when the process
    ends, however it ends, so no lock is ever stale.
    Raises BusyError if another process holds the lock, StorageError.
    """
    make_private_directory(os.path.dirname(path))
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise refusal("open the lock", path, error) from error
    try:
        _take(descriptor, path, what, doing)
        now = dt.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        # This only lets other processes report the holder. On a full disk the lock is held nevertheless.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} on {os.uname().nodename} since {now}\n".encode(), 0)
        yield
    finally:
        # The file stays: if it were deleted, two processes could hold locks on two files of its name.
        os.close(descriptor)


@contextlib.contextmanager
def waiting_lock(path: str) -> Iterator[None]:
    """Hold the lock that is the file `path` during the block, which must be short: others wait for it.

    Raises StorageError.
    """
    make_private_directory(os.path.dirname(path))
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise refusal("open the lock", path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise refusal("lock", path, error) from error
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: str, what: str, doing: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
        holder = f" ({text})" if re.fullmatch(r"pid \d+ on [-.\w]+ since [-+: 0-9]+", text) else ""
        raise BusyError(
            f"another castore{holder} is {doing} {what}; try again when it has ended"
        ) from None
    except OSError as error:
        raise refusal("lock", path, error) from error
