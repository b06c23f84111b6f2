"""Compare live trees with those of the target generation."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from castore.content.allowance import Allowance
from castore.content.diff import TIMES, diff_trees
from castore.content.restore.in_place import InPlace
from castore.content.restore.plan import Comparison, Step, TreePlan
from castore.content.restore.planner import plan_removal, plan_tree
from castore.content.stored_dirs import open_top
from castore.errors import UsageError
from castore.model.generation import Origin
from castore.services.last_scan import last_scan
from castore.services.sources import left_out, rules_of
from castore.services.underway import refuse_unfinished, report_foreign
from castore.services.unread import unread_paths

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from castore.content.restore.metadata import Ownership
    from castore.content.streams import StreamReader
    from castore.model.generation import Generation, Part
    from castore.progress import Progress
    from castore.store import Store


class TreePlanner(msgspec.Struct, frozen=True, kw_only=True):
    """Plans how live trees become those of a generation."""

    store: Store
    reader: StreamReader
    target: Generation
    origins: dict[str, Origin]
    """Where each part belongs."""
    ownership: Ownership
    leave_out: Sequence[str]
    """Castore's own directories, which are never changed."""
    trust_times: bool
    """Whether files without a pre-rollback generation are compared by size and time, not by content."""
    range_writes: bool
    """Whether ranges of large live files may be overwritten."""

    def plan(self, part: Part, apart: AbstractSet[bytes], pre_rollback: Generation | None = None) -> TreePlan:
        """Compare a live tree with the stored one.

        apart: paths in the tree that belong to other parts. pre_rollback: a pre-rollback generation of the
        live state: files differ if their content in it does, whatever their times are. Raises UsageError if
        it is not known where the tree belongs.
        """
        origin = self.origins.get(part.name, Origin())
        if not origin.path or part.content is None:
            target = f"{self.target.service}@{self.target.number}:{part.name}"
            raise UsageError(
                f"it is not known where the tree {part.name!r} belongs: describe the part in castore.toml, "
                f"or restore it into a directory: castore restore {target} DIR"
            )
        live = os.fsdecode(origin.path)
        if not os.path.lexists(live):
            # The rollback makes the directory first; this step is what `--dry-run` shows.
            return TreePlan(live, (Step("create", (), open_top(self.reader, part.content)),), {})
        refuse_unfinished(self.store.paths.journals, live)
        report_foreign(self.store, live)
        rules = rules_of(origin, left_out(self.store, self.leave_out))
        with last_scan(self.store, self.target.service, part.name, live, rules) as scan:
            unread = [
                unread_paths(self.reader, generation, part.name) for generation in (self.target, pre_rollback)
            ]
            comparison = Comparison(
                self._changed(part, pre_rollback),
                checksum=pre_rollback is None and not self.trust_times,
                rules=rules,
                apart=apart,
                unread=unread[0].paths | unread[1].paths,
                unread_attributes=unread[0].attributes | unread[1].attributes,
                scan=scan,
                range_writes=self.range_writes,
            )
            top = open_top(self.reader, part.content)
            return plan_tree(self.reader, top, live, self.ownership, comparison)

    def _changed(self, part: Part, pre_rollback: Generation | None) -> set[bytes]:
        """Return the paths whose content differs between the pre-rollback generation and the target."""
        before = pre_rollback.part(part.name) if pre_rollback is not None else None
        if before is None or before.content is None or part.content is None:
            return set()
        allowance = Allowance.of([before, part], TIMES)
        differences = diff_trees(self.reader, before.content, part.content, allowance)
        return {found.path for found in differences if found.change == "content"}

    def plan_removal(
        self, name: str, path: str, apart: AbstractSet[bytes], pre_rollback: Generation | None
    ) -> tuple[TreePlan, bool]:
        """Return how a tree that the target lacks is removed, and whether nothing in it has to stay."""
        rules = rules_of(self.origins.get(name, Origin()), left_out(self.store, self.leave_out))
        unread = unread_paths(self.reader, pre_rollback, name)
        return plan_removal(self.reader, path, Comparison(rules=rules, apart=apart, unread=unread.paths))

    def in_place(self, plan: TreePlan, progress: Progress) -> InPlace:
        """Return the change in place that carries out a plan."""
        return InPlace(self.reader, plan, self.ownership, progress, self.target.service)
