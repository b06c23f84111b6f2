"""Checks of a directory before a store is created in it."""

from __future__ import annotations

import contextlib
import os

from castore.errors import UsageError
from castore.storage import is_url
from castore.store.format.names import FOLDERS


def refuse_others(address: str) -> None:
    """Refuse to create a store in a directory that has other files. Raises UsageError."""
    if is_url(address):
        return  # an object store has no directories, and a bucket may have other objects
    with contextlib.suppress(OSError):
        if others := sorted({*os.listdir(address)} - FOLDERS - {"lost+found"}):
            raise UsageError(
                f"{address} contains {others[0]!r} already: give the store a directory of its own"
            )
