"""The default thresholds of compaction: which packs it rewrites, and which it keeps for others."""

from __future__ import annotations

from typing import Final, TypedDict

MAX_UNUSED: Final = 0.1
"""A pack is rewritten if no generation needs more than this share of its records."""
GRACE_SECONDS: Final = 86400
"""Far longer than a commit takes from its check of the pending deletions to the end of its write."""

UNFINISHED_SECONDS: Final = 7 * 86400
"""Packs of a session that no generation names are kept this long: its snapshot may still be running."""


class Limits(TypedDict, total=False):
    """Thresholds of `plan` and `compact`."""

    max_unused: float
    unfinished_seconds: float
