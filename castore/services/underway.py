"""Detect restores in place that were interrupted or are running where a tree is read or changed."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from castore.content.restore import undo_journal
from castore.content.restore.recover import foreign_asides
from castore.fs.beneath import real_path

if TYPE_CHECKING:
    from castore.store import Store


def refuse_unfinished(journals: str, top: str) -> None:
    """Raise CastoreError if a restore in place is unfinished at the directory `top`, below it, or above it.

    journals: the directory with the journals of such restores.
    """
    with contextlib.suppress(OSError):  # the code that reads the tree reports it
        undo_journal.refuse_unfinished(journals, real_path(top))


def report_foreign(store: Store, top: str) -> None:
    """Report directories in `top` that look like undo areas, but belong to no known restore."""
    with contextlib.suppress(OSError):
        for name in foreign_asides(store.paths.journals, real_path(top)):
            store.options.say(
                f"{os.path.join(top, name)} belongs to no restore that this user's castore began, and is "
                "treated like any other directory: look at it, and remove it; if another user's restore was "
                f"interrupted, that user runs castore recover {top}"
            )
