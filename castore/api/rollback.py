"""Plans and results of rollbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from castore.api.generation import Generation
from castore.content.restore.plan import TreePlan  # noqa: TC001 - help() evaluates it
from castore.errors import UsageError
from castore.progress import Progress
from castore.services.follow import after_rollback_note
from castore.services.restore_in_place import estimate_of
from castore.services.rollback.execute import creations, missing_folders
from castore.services.rollback.plan import AddedPart, DumpPlan  # noqa: TC001 - help() evaluates it
from castore.services.rollback.request import RollbackRequest  # noqa: TC001 - help() evaluates it
from castore.state.restore_runs import Estimate  # noqa: TC001 - help() evaluates it

if TYPE_CHECKING:
    from castore.api.store import Store
    from castore.progress import Watch
    from castore.services.operations import ServiceOperations


class RollbackPlan(msgspec.Struct, frozen=True):
    """What a rollback would do. `rollback` computes the steps again once the service has stopped."""

    target: Generation
    doubts: tuple[str, ...]
    """Why it may replace other state than the target's own: that of another host, or at another place."""
    request: RollbackRequest
    """The rollback, as castore's own functions need it."""
    trees: dict[str, TreePlan] = {}
    estimates: dict[str, Estimate] = {}
    """How long each tree probably takes; those without are not known yet on this machine."""
    dumps: tuple[DumpPlan, ...] = ()
    added_parts: tuple[AddedPart, ...] = ()
    """Parts that did not exist in the target."""
    untouched: tuple[str, ...] = ()
    """Live parts of the service that the target does not have."""
    new_directories: tuple[str, ...] = ()
    """Directories above parts that are created first."""
    creations: tuple[str, ...] = ()
    """What engines would create, each as "PART: the role NAME"."""
    hooks: dict[str, tuple[str, ...]] = {}
    """The programs of castore.toml that are run: `stop`, `start`, `health`."""
    run_as: str | None = None
    """The user that runs the hooks."""
    notes: tuple[str, ...] = ()
    """What the caller should know: recorded origins that are not used."""

    @property
    def pre_rollback(self) -> bool:
        """Whether a generation of the present state is taken first."""
        return self.request.take_pre_rollback


def make_plan(
    store: Store,
    operations: ServiceOperations,
    request: RollbackRequest,
    said: list[str],
    *,
    compare: bool,
) -> RollbackPlan:
    """Return the plan of a rollback. said: receives the messages of `operations`. compare: see the plan."""
    target = Generation(store, request.target)
    doubts = tuple(operations.doubts(request))
    if not compare:
        return RollbackPlan(target, doubts, request, notes=tuple(said))
    found = operations.plan(request)
    settings = operations.described(request.target.service)
    programs = {name: getattr(settings, name, ()) for name in ("stop", "start", "health")}
    return RollbackPlan(
        target,
        doubts,
        request,
        found.trees,
        {name: time for name, plan in found.trees.items() if (time := estimate_of(store.internal, plan))},
        found.dumps,
        tuple(removal for removal in found.added_parts if removal.exists),
        found.untouched,
        tuple(missing_folders(found, request.origins)),
        tuple(creations(store.internal, found)),
        {name: argv for name, argv in programs.items() if argv},
        settings.run_as if settings is not None else None,
        tuple(said),
    )


class RollbackResult(msgspec.Struct):
    """What a rollback did."""

    generation: Generation
    """The one that was restored."""
    pre_rollback: Generation | None
    """The state that it replaced, or None if nothing changed or none was requested."""
    parts: tuple[str, ...]
    """The parts that changed."""
    problems: list[tuple[str, bytes, str]]
    """(part, path, reason) of what could not be restored as it was."""
    notes: list[str]
    """What the caller should know."""
    progress: Progress
    """The files and bytes that were written."""
    new_directories: tuple[str, ...] = ()
    """The directories above parts that were created."""
    creations: tuple[str, ...] = ()
    """What engines created, each as "PART: the role NAME"."""

    @property
    def written(self) -> int:
        """Bytes of files."""
        return self.progress.read


def carry_out(
    store: Store, plan: RollbackPlan, progress: Watch | None, *, accept_doubts: bool
) -> RollbackResult:
    """Do what a plan says. Raises UsageError if it has doubts that are not accepted."""
    if plan.doubts and not accept_doubts:
        raise UsageError(
            f"nothing was changed: {'; '.join(plan.doubts)}; to roll back nevertheless: accept_doubts=True"
        )
    operations, said = store.collect_messages(progress)
    written = Progress()
    done = operations.rollback(plan.request, written)
    if note := after_rollback_note(operations, plan.request.target):
        operations.say(note)
    replaced = Generation(store, done.pre_rollback) if done.pre_rollback is not None else None
    return RollbackResult(
        plan.target, replaced, done.parts, done.problems, said, written, done.new_directories, done.creations
    )
