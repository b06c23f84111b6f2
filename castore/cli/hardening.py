"""castore's memory, which holds keys, kept from other processes and from core files."""

from __future__ import annotations

import ctypes
from typing import Final

_PR_SET_DUMPABLE: Final = 4


def close_memory() -> None:
    """Let no process of the same user look into this one, and the kernel write no core of it.

    See PR_SET_DUMPABLE in prctl(2). The programs that castore runs are as ever: execve(2) sets it anew.
    For that reason RLIMIT_CORE, which they would inherit, is left alone: core(5) names the attribute as
    enough. What an other process has to read of ours, it has to be given as a descriptor: /proc/PID/fd is
    root's from here on.
    """
    # Where it fails, which the manual page knows no reason for, all else works as well.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
