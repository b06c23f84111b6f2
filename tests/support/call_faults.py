"""Run an action in a child process in which one system call fails, or kills it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from castore.errors import CastoreError

CALLS = ("write", "pwrite", "sendfile", "ftruncate", "fsync", "rename", "unlink", "mkdir", "rmdir", "chmod", "utime")
FAILED = 9
"""The exit code of a child whose action failed with an error that it explained."""
WARNED = 3
"""The exit code of a child that restored everything, and could not remove what it had saved."""


def struck_at(action: Callable[[], Any], point: int, strike: Callable[[], None], *, torn: bool = False) -> int:
    """Run an action in a child, in which a call is struck; return its wait status.

    torn: half of what the call would write is written before.
    """
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 1
    try:
        left = [point]
        for name in CALLS:
            setattr(os, name, _watched(getattr(os, name), name, left, strike, torn=torn))
        action()
        code = 0
    except CastoreError:
        code = FAILED
    except AssertionError:
        code = WARNED  # Sandbox.in_place expects no warnings
    finally:
        os._exit(code)


def _watched(real: Callable[..., Any], name: str, left: list[int], strike: Callable[[], None], *, torn: bool) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            if torn and name in {"write", "pwrite"}:
                file, data, *rest = arguments
                real(file, memoryview(data)[: len(data) // 2], *rest)
            elif torn and name == "sendfile":
                real(*arguments[:3], arguments[3] // 2)
            strike()
        return real(*arguments, **options)

    return call


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()
