"""Kill a program with everything that it started."""

from __future__ import annotations

import contextlib
import glob
import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Final

from castore.errors import ProgramError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable

MARK: Final = "CASTORE_PROGRAM"
"""Environment variable that a program passes on: it identifies all processes that the program started."""


def pidfd_of(process: subprocess.Popen[bytes]) -> int:
    """Return a pidfd of a process that was not waited for: its number cannot be reused before that."""
    try:
        return os.pidfd_open(process.pid)
    except OSError as error:
        process.kill()
        process.wait()
        raise ProgramError(f"cannot watch a program that was started: {error.strerror}") from error


def kill_tree(pid: int, pidfd: int, mark: str = "") -> None:
    """Kill a program, its descendants, and every process with its mark.

    For each process a pidfd is opened first, and then the process is checked again: its number alone may
    belong to another process by now.
    """
    held, left = {pid: pidfd}, [pid]
    try:
        while left:
            while left:
                one = left.pop()
                # A stopped process starts no others while the children of each of its threads are listed.
                send(held[one], signal.SIGSTOP)
                left += _hold(held, children_of(one), partial(_is_child, one, held[one]))
            # Processes whose parent has ended have another parent now: the mark identifies them.
            left += _hold(held, _marked(mark), partial(_bears, mark))
    finally:
        # Also after an error: the stopped processes would stay stopped for ever.
        for descriptor in held.values():
            send(descriptor, signal.SIGKILL)
        for descriptor in held.values():
            if descriptor != pidfd:
                os.close(descriptor)


def _hold(held: dict[int, int], processes: Iterable[int], is_own: Callable[[int], bool]) -> list[int]:
    """Add pidfds of those processes to `held` that `is_own` accepts; return their numbers."""
    added = []
    for pid in processes:
        if pid in held:
            continue
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            continue  # it has ended, or no descriptor is available: kill the others nevertheless
        if is_own(pid):
            held[pid] = descriptor
            added.append(pid)
        else:
            os.close(descriptor)
    return added


def send(pidfd: int, number: int) -> bool:
    """Send a signal; return whether the process still exists."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def children_of(pid: int) -> list[int]:
    """Return the children of all threads of a process."""
    found: list[int] = []
    for children in glob.glob(f"/proc/{pid}/task/*/children"):
        with contextlib.suppress(OSError), open(children, encoding="ascii") as file:
            found += map(int, file.read().split())
    return found


def _is_child(parent: int, parent_fd: int, pid: int) -> bool:
    """Whether a process is the child of `parent`, which must still exist."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name may contain any characters. The state and the parent come after it.
            is_child = int(file.read().rpartition(b")")[2].split()[1]) == parent
    except (OSError, IndexError):
        return False
    return is_child and send(parent_fd, 0)


def _bears(mark: str, pid: int) -> bool:
    """Whether a process has inherited the mark of a program."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"{MARK}={mark}".encode() in file.read().split(b"\0")
    except OSError:
        return False


def _marked(mark: str) -> list[int]:
    """Return the processes that have inherited the mark of a program."""
    if not mark:
        return []
    return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _bears(mark, pid)]
