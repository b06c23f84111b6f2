"""Detect processes that have a file open: after a rollback they would continue to use the old file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from typing import Final

from castore.errors import CastoreError
from castore.fs.beneath import OPEN_FILE

_MOST_NAMED: Final = 5
_PATIENCE_SECONDS: Final = 5.0
"""How long a process may have the file open before it is reported."""


def refuse_open(path: str) -> None:
    """Raise CastoreError if another process has a file open. The caller must not have it open itself.

    The kernel answers for all processes, also those of other users and containers. If the file system does
    not support leases, the processes that are visible in /proc decide.
    """
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        alone = _is_alone(path)
        holders = [] if alone else _holders(path)
        if alone or (alone is None and not holders):
            return
        # A backup or an indexer may have the file open for a moment.
        if time.monotonic() > end:
            break
        time.sleep(0.1)
    named = f" (process {', '.join(holders[:_MOST_NAMED])})" if holders else ""
    raise CastoreError(
        f"another process has {path} open{named}, and would continue with the old file: stop it, with `stop` "
        "in castore.toml, or by hand"
    )


def _is_alone(path: str) -> bool | None:
    """Return whether no process has a file open; None: the kernel does not answer."""
    try:
        descriptor = os.open(path, OPEN_FILE)
    except OSError as error:
        raise CastoreError(f"cannot check which processes have {path} open: {error.strerror}") from error
    try:
        # A write lease is granted only if no other open file description of the file exists (fcntl(2)).
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return False if error.errno == errno.EAGAIN else None
    else:
        return True
    finally:
        os.close(descriptor)


def _holders(path: str) -> list[str]:
    """Return the visible processes that have a file open, each as "123 sqlite3"."""
    holders = []
    wanted = os.stat(path)
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    info = os.stat(f"/proc/{pid}/fd/{descriptor}")
                    if (info.st_dev, info.st_ino) == (wanted.st_dev, wanted.st_ino):
                        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                            holders.append(f"{pid} {file.read().strip()}")
                        break
    return holders
