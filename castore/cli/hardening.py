"""Protection of castore's memory, which holds keys, from other processes and core files."""

from __future__ import annotations

import ctypes
from typing import Final

_PR_SET_DUMPABLE: Final = 4


def close_memory() -> None:
    """Deny other processes of the same user access to this process, and the kernel a core file of it.

    See PR_SET_DUMPABLE in prctl(2). The programs that castore runs are not affected: execve(2) resets the
    attribute. RLIMIT_CORE is not changed, because they would inherit it, and core(5) names the attribute as
    sufficient. From now on /proc/PID/fd belongs to root: what another process has to read of this one must
    be passed to it as a descriptor.
    """
    # The manual page has no reason for a failure; if it fails, everything else works without it.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
