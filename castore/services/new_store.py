"""Checks of a directory before a store is created in it."""

from __future__ import annotations

import contextlib
import os

from castore.errors import UsageError
from castore.store.format.names import FOLDERS


def refuse_others(path: str) -> None:
    """Refuse to create a store in a directory that has other files. Raises UsageError."""
    with contextlib.suppress(OSError):
        if others := sorted({*os.listdir(path)} - FOLDERS - {"lost+found"}):
            raise UsageError(f"{path} contains {others[0]!r} already: give the store a directory of its own")
