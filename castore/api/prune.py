"""The public results of `Store.prune` and `Store.compact`."""

from __future__ import annotations

import msgspec

from castore.api.generation import Generation  # noqa: TC001 - help() evaluates it
from castore.errors import CastoreError  # noqa: TC001 - help() evaluates it
from castore.maintenance.compact import Compacted  # noqa: TC001 - help() evaluates it
from castore.maintenance.compaction_plan import Plan  # noqa: TC001 - help() evaluates it
from castore.services.retention import RetentionDecision  # noqa: TC001 - help() evaluates it


class PrunePlan(msgspec.Struct):
    """What `prune`, `compact` or `forget` would do."""

    space: Plan
    """The packs that compaction would delete and rewrite, after the generations were deleted."""
    deleted: list[Generation] = []
    """The generations that would be deleted."""
    left_out: list[CastoreError] = []
    """An error for each service that would not be pruned, because its settings are wrong."""
    decisions: list[RetentionDecision] = []
    """The rules that keep each generation."""

    @property
    def reclaimed(self) -> int:
        """Bytes that would be reclaimed."""
        return self.space.freed


class PruneReport(msgspec.Struct):
    """What `prune` or `compact` did."""

    compacted: Compacted
    """What compaction did."""
    deleted: list[Generation] = []
    left_out: list[CastoreError] = []
    """An error for each service that was not pruned: its settings are wrong, another castore uses it, or a
    rollback was interrupted."""

    @property
    def reclaimed(self) -> int:
        """Bytes that were reclaimed."""
        return max(self.compacted.removed_bytes - self.compacted.written_bytes, 0)

    @property
    def damaged(self) -> list[str]:
        """Packs that were to be rewritten but are damaged: they are unchanged until the store is repaired."""
        return self.compacted.damaged
