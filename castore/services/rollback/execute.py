"""Roll a service back to a generation: one transaction over all its parts.

1. Make a plan, which is data.
2. Restore every dump to a staging copy next to the live state.
3. Stop the service, and take a pre-rollback generation of its state.
4. Swap every part that differs from the target.
5. Start the service, and check its health.
6. Delete what was replaced.

A journal on this machine records every step. After a failure or a kill before the end of step 5, the rollback
is reverted; after it, the rollback is completed. This process does that, or `castore recover` in another one.
"""

from __future__ import annotations

import contextlib
import os
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from castore.content.streams import StreamReader
from castore.errors import StorageError
from castore.model.generation import Origin
from castore.process.signal_shield import interrupt_note
from castore.services import folders
from castore.services.events import event
from castore.services.hosts import take_over
from castore.services.restore import plan_size
from castore.services.rollback.journal import Journal, refuse_interrupted
from castore.services.rollback.plan import plan_rollback, present_sources, tree_planner
from castore.services.rollback.pre_rollback import PreRollback
from castore.services.rollback.preparation import Preparation
from castore.services.rollback.request import RESTORING
from castore.services.rollback.transaction import Transaction
from castore.services.state_revision import after_rollback

if TYPE_CHECKING:
    from castore.content.restore.plan import TreePlan
    from castore.model.generation import Generation
    from castore.progress import Progress
    from castore.services.rollback.plan import RollbackPlan
    from castore.services.rollback.request import RollbackContext, RollbackRequest
    from castore.store import Store


class RolledBack(msgspec.Struct):
    """The result of a rollback."""

    target: Generation
    pre_rollback: Generation | None
    """The pre-rollback generation; None: none was taken."""
    problems: list[tuple[str, bytes, str]] = []
    """(part, path, reason) of what could not be restored exactly, and of what could not be removed."""
    parts: tuple[str, ...] = ()
    """The parts that differed from the target."""
    new_directories: tuple[str, ...] = ()
    """The directories above parts that were created."""
    creations: tuple[str, ...] = ()
    """What engines created, each as "PART: the role NAME"."""


def rollback(
    store: Store, request: RollbackRequest, context: RollbackContext, progress: Progress
) -> RolledBack:
    """Restore the state of the target. The caller holds the service's lock.

    progress: counts the bytes that are written. Raises CastoreError; the state is then as before, or the
    message says what differs.
    """
    target = request.target
    as_before = f"nothing was replaced: the state of {target.service!r} is as before"
    with event(store, "rollback", target.service) as note, interrupt_note(as_before):
        note.of(target)
        refuse_interrupted(store, target.service)
        done = _roll_back(store, request, context, progress)
        replaced = f"; what it replaced is generation {done.pre_rollback.number}" if done.pre_rollback else ""
        note.text = f"restored {', '.join(done.parts)}{replaced}" if done.parts else "no part differed"
    return done


def _roll_back(
    store: Store, request: RollbackRequest, context: RollbackContext, progress: Progress
) -> RolledBack:
    target, say = request.target, context.say
    # The plan fails before anything is changed if a part has no destination. Trees are compared again when
    # the service is stopped.
    plan = plan_rollback(store, msgspec.structs.replace(request, trust_times=True), context)
    check_plan(plan, request.origins, take_pre_rollback=request.take_pre_rollback)
    if plan.untouched:
        say(f"not in generation {target.number}, and left as they are: {', '.join(plan.untouched)}")
    new_directories = tuple(missing_folders(plan, request.origins))
    created = tuple(creations(store, plan))
    folders.make_missing(_wanted(plan, request.origins), request.ownership, say)
    for dump in plan.dumps:
        if dump.warning:
            say(f"{dump.part.name}: {dump.warning}")
    with StreamReader(store) as reader:
        pre_rollback = PreRollback(store, request, context, plan, progress)
        trees = tree_planner(store, reader, request, context)
        preparation = Preparation(trees, context, pre_rollback, progress)
        preparation.prepare(plan)
        journal = _journal(store, request, context)
        journal.parts = [step.journal for step in preparation.steps]
        _expect(plan, progress)
        context.watch(RESTORING, progress)
        work = Transaction(store, journal, preparation.steps, pre_rollback, context)
        work.run(target, preparation.created)
    restored = f"{target.service}@{target.number} is restored"
    # The state is restored: only the selection of later generations depends on this.
    with interrupt_note(restored), contextlib.suppress(StorageError):
        take_over(store, target)
    return RolledBack(target, pre_rollback.generation, work.problems, work.changed, new_directories, created)


def _journal(store: Store, request: RollbackRequest, context: RollbackContext) -> Journal:
    """Return the journal of a rollback that has not begun."""
    target, service = request.target, context.service
    return Journal(
        target.service,
        target.number,
        None,
        [],
        service.stop,
        service.start,
        service.timeout,
        service.run_as,
        revision=after_rollback(store, target, context.revision),
        before=context.revision,
    )


def _expect(plan: RollbackPlan, progress: Progress) -> None:
    """Set how much a rollback is expected to write."""
    target = plan.target
    progress.total = sum(dump.part.size for dump in plan.dumps)
    progress.total += sum(_size_of(target, name, tree) for name, tree in plan.trees.items())
    progress.most_files = sum(part.files for part in target.parts)


def _size_of(target: Generation, name: str, tree: TreePlan) -> int:
    """Estimate the bytes of content that the steps of a plan write."""
    part = target.part(name)
    return plan_size(part, tree) if part is not None else 0


def _wanted(plan: RollbackPlan, origins: dict[str, Origin]) -> list[Origin]:
    return [origins[part.name] for part in plan.target.parts if part.name in origins]


def missing_folders(plan: RollbackPlan, origins: dict[str, Origin]) -> list[str]:
    """Return the directories above parts that a rollback creates first."""
    return [os.fsdecode(folder.path) for folder in folders.missing(_wanted(plan, origins))]


def creations(store: Store, plan: RollbackPlan) -> list[str]:
    """Return what engines would create for a rollback, each as "PART: the role NAME"."""
    created = []
    with StreamReader(store) as reader:
        for dump in plan.dumps:
            contents = partial(reader.read, dump.part.content)
            created += [f"{dump.part.name}: {create}" for create in dump.source.engine.creates(contents)]
    return created


def check_plan(plan: RollbackPlan, origins: dict[str, Origin], *, take_pre_rollback: bool) -> None:
    """Raise CastoreError if a rollback would be refused before it changes anything."""
    for dump in plan.dumps:
        # A file whose directory is missing is ready once the directory was made.
        if not folders.missing([origins.get(dump.part.name, Origin())]):
            dump.source.engine.preflight()
    if take_pre_rollback:
        present_sources(plan, origins)
