"""Decide how restored files are owned."""

from __future__ import annotations

import os

from castore.content.restore.metadata import Ownership


def stored_ownership(change: bool | None = None, *, numeric: bool = False) -> Ownership:
    """Return how restored files are owned.

    change: restore the stored owners and groups; None: if castore runs as root. numeric: by the stored
    numbers, not by the names.
    """
    return Ownership(change=os.geteuid() == 0 if change is None else change, numeric=numeric)
