"""Prepare a rollback: one step for each part, which knows what it replaces. Nothing is created yet."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from castore.engines.base import settings_of
from castore.errors import CastoreError
from castore.model.generation import Origin
from castore.services import folders
from castore.services.nested_parts import below, refuse_same, with_endings
from castore.services.rollback.journal import PartJournal
from castore.services.rollback.steps import (
    AddedDumpStep,
    AddedTreeStep,
    DumpStep,
    RollbackStep,
    TreeStep,
    contents_of,
    planned_move,
)

if TYPE_CHECKING:
    from castore.content.restore.in_place import InPlace
    from castore.content.restore.plan import TreePlan
    from castore.engines.state import EngineState
    from castore.model.generation import FileOwner, Generation, Part
    from castore.progress import Progress
    from castore.services.rollback.plan import AddedPart, RollbackPlan
    from castore.services.rollback.pre_rollback import PreRollback
    from castore.services.rollback.request import RollbackContext
    from castore.services.rollback.trees import TreePlanner
    from castore.services.sources import EngineSource


class Preparation:
    """The steps of a rollback, and the paths of its parts, which trees that contain them leave alone."""

    def __init__(
        self, trees: TreePlanner, context: RollbackContext, pre_rollback: PreRollback, progress: Progress
    ) -> None:
        self.steps: list[RollbackStep] = []
        self.created: list[str] = []
        """Paths that the rollback creates next to the live state."""
        self._trees = trees
        self._context = context
        self._pre_rollback = pre_rollback
        self._progress = progress
        self._live: dict[str, list[str]] = {}
        """Paths of the parts, by name."""
        self._apart: dict[str, list[str]] = {}
        """The same paths with the files next to them that belong to the parts, by part."""

    def prepare(self, plan: RollbackPlan) -> None:
        """Add a step for each part. Raises ConfigError, CastoreError."""
        sources = {dump.part.name: dump.source for dump in plan.dumps}
        for part in plan.target.parts:
            if part.kind == "tree":
                self._add_tree(part)
            else:
                self._add_dump(part, sources[part.name])
        for added in plan.added_parts:
            if added.exists and added.source is None:
                self._add_added_tree(added)
            elif added.exists and added.source is not None:
                self._add_added_dump(added.name, added.source)
        refuse_same(self._live)

    def _origin(self, name: str) -> Origin:
        return self._trees.origins.get(name, Origin())

    def _add_tree(self, part: Part) -> None:
        path = self._origin(part.name).path
        journal = PartJournal(part.name, path=path, existed=os.path.lexists(path))
        apply = partial(self._trees.in_place, progress=self._progress)
        self._add(TreeStep(journal, partial(self._plan, part, path), apply))

    def _add_dump(self, part: Part, source: EngineSource) -> None:
        journal, state = _journal_of(part.name, source)
        contents = contents_of(self._trees.reader, part, self._taken, self._progress)
        own = partial(self._own, self._origin(part.name).file)
        engine = source.engine
        self._add(DumpStep(engine, state, journal, contents, own), engine.sidecar_suffixes)

    def _add_added_tree(self, added: AddedPart) -> None:
        move = planned_move(added.path)
        journal = PartJournal(added.name, path=os.fsencode(added.path), move=move)
        work = partial(self._removal, added.name, added.path)
        self._add(AddedTreeStep(journal, move, self._trees.store.paths.journals, work))

    def _add_added_dump(self, name: str, source: EngineSource) -> None:
        journal, state = _journal_of(name, source)
        contents = contents_of(self._trees.reader, None, self._taken)
        may_delete = partial(self._pre_rollback.may_delete, name)
        engine = source.engine
        self._add(AddedDumpStep(engine, state, journal, contents, may_delete), engine.sidecar_suffixes)

    def _add(self, step: RollbackStep, endings: tuple[str, ...] = ()) -> None:
        self.steps.append(step)
        name = step.journal.name
        live, created = step.journal.paths
        self._live[name] = live
        self._apart[name] = with_endings(live, endings)
        self.created += with_endings(created, endings)

    def _taken(self) -> Generation | None:
        return self._pre_rollback.generation

    def _plan(self, part: Part, path: bytes) -> TreePlan:
        others = [other for name, paths in self._apart.items() if name != part.name for other in paths]
        apart = below(os.fsdecode(path), [*others, *self.created])
        return self._trees.plan(part, apart, self._taken())

    def _removal(self, name: str, path: str) -> tuple[InPlace, bool]:
        """Return the in-place removal of a tree, and whether nothing in it has to stay."""
        # Keep the directory only for parts that the target has, not for what is removed together with it.
        kept = [other for part in self._trees.target.parts for other in self._apart.get(part.name, [])]
        apart = below(path, kept)
        if apart:
            apart = below(path, [*kept, *self.created])
        plan, complete = self._trees.plan_removal(name, path, apart, self._taken())
        return self._trees.in_place(plan, self._progress), complete

    def _own(self, file: FileOwner | None, path: str, inode: tuple[int, int]) -> None:
        """Set the recorded owner and mode of a staged file."""
        if file is not None:
            try:
                folders.give(path, inode, file, self._trees.ownership, self._context.say)
            except OSError as error:
                raise CastoreError(f"cannot set the recorded owner and mode of {path}: {error}") from error


def _journal_of(name: str, source: EngineSource) -> tuple[PartJournal, EngineState]:
    settings, state = settings_of(source.engine), source.engine.prepare()
    return PartJournal(name, engine=source.name, settings=settings, state=state), state
