"""The default thresholds of compaction: which packs it rewrites, and which it keeps for others."""

from __future__ import annotations

from typing import Final

import msgspec

MAX_UNUSED: Final = 0.1
"""A pack is rewritten if no generation needs more than this share of its records."""
GRACE_SECONDS: Final = 86400
"""Far longer than a commit takes from its check of the pending deletions to the end of its write."""

UNFINISHED_SECONDS: Final = 7 * 86400
"""Packs of a session that no generation names are kept this long: its snapshot may still be running."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The thresholds of a compaction."""

    max_unused: float = MAX_UNUSED
    """A pack is rewritten only if more than this share of it is unused."""
    grace_seconds: float = GRACE_SECONDS
    """Time between marking a pack and deleting it, if the users of the store do not share a file lock."""
    unfinished_seconds: float = UNFINISHED_SECONDS
    """How long the packs of interrupted snapshots are kept."""
