"""Roll a service back to a generation: one transaction over all its parts.

1. Make a plan, which is data.
2. Restore every dump to a staging copy next to the live state.
3. Stop the service, and take a pre-rollback generation of its state.
4. Swap every part that differs from the target.
5. Start the service, and check its health.
6. Delete what was replaced.

A journal on this machine records every step. After a failure or a kill before the end of step 5, the rollback
is undone; after it, the rollback is completed. This process does that, or `castore recover` in another one.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from castore.content.restore.in_place import InPlace
from castore.content.restore.plan import Comparison
from castore.content.restore.planner import plan_removal
from castore.content.streams import StreamReader
from castore.engines.base import settings_of
from castore.errors import CastoreError, NotIntactError, RevertInterruptedError, StorageError
from castore.model.generation import Origin
from castore.model.names import short_revision
from castore.process.runners import run
from castore.process.signal_shield import DeferInterrupts
from castore.process.users import account_of
from castore.services import folders
from castore.services.config import Service
from castore.services.events import event
from castore.services.hooks import Hooks, check_health
from castore.services.hosts import take_over
from castore.services.nested_parts import (
    below,
    refuse_same,
    with_endings,
)
from castore.services.restore import plan_size
from castore.services.rollback.journal import Journal, PartJournal, refuse_interrupted, write_journal
from castore.services.rollback.plan import RollbackPlan, plan_live_tree, plan_rollback, present_sources
from castore.services.rollback.recover import finish, forget, remember, undo, ways_out
from castore.services.rollback.steps import (
    DumpStep,
    EngineRemoval,
    RollbackStep,
    TreeRemoval,
    TreeStep,
    contents_of,
    planned_move,
)
from castore.services.snapshot import SnapshotRequest, snapshot
from castore.services.sources import EngineSource, Tree, left_out, rules_of
from castore.services.state_revision import after_rollback
from castore.services.unread import unread_paths

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from castore.content.restore.metadata import Ownership
    from castore.content.restore.plan import TreePlan
    from castore.engines.state import EngineState
    from castore.model.generation import FileOwner, Generation, Part
    from castore.progress import Progress
    from castore.store import Store

_NO_SERVICE: Final = Service()
RESTORING: Final = "restoring"
"""The name that progress shows for work that concerns all parts."""


@dataclass
class RolledBack:
    """The result of a rollback."""

    target: Generation
    pre_rollback: Generation | None
    """The pre-rollback generation; None: none was taken."""
    problems: list[tuple[str, bytes, str]] = field(default_factory=list)
    """(part, path, reason) of what could not be restored exactly, and of what could not be removed."""
    parts: tuple[str, ...] = ()
    """The parts that differed from the target."""


def rollback(
    store: Store,
    target: Generation,
    origins: dict[str, Origin],
    ownership: Ownership,
    *,
    settings: Service | None = None,
    take_pre_rollback: bool = True,
    trust_times: bool = False,
    revision: str = "",
    leave_out: Sequence[str] = (),
    progress: Callable[[str, Progress], None] = lambda _name, _tally: None,
    say: Callable[[str], None] = lambda _text: None,
    tally: Progress,
) -> RolledBack:
    """Restore the state of `target`. The caller holds the service's lock.

    origins: where each part belongs. settings: the service in castore.toml, with its hooks.
    take_pre_rollback: take a pre-rollback generation. trust_times: without a pre-rollback generation, compare
    files by size and time only. revision: of the present state, recorded with the pre-rollback generation.
    leave_out: directories that trees do not include. Raises CastoreError; the state is then as before, or the
    message says what differs.
    """
    with event(store, "rollback", target.service) as note:
        note.of(target)
        refuse_interrupted(store, target.service)
        done = _roll_back(
            *(store, target, origins, ownership, settings or _NO_SERVICE),
            *(revision, leave_out, progress, say, tally),
            take_pre_rollback=take_pre_rollback,
            trust_times=trust_times,
        )
        kept = f"; what it replaced is generation {done.pre_rollback.number}" if done.pre_rollback else ""
        note.text = f"restored {', '.join(done.parts)}{kept}" if done.parts else "no part differed"
    return done


def _roll_back(
    store: Store,
    target: Generation,
    origins: dict[str, Origin],
    ownership: Ownership,
    service: Service,
    revision: str,
    leave_out: Sequence[str],
    progress: Callable[[str, Progress], None],
    say: Callable[[str], None],
    tally: Progress,
    *,
    take_pre_rollback: bool,
    trust_times: bool,
) -> RolledBack:
    # The plan fails before anything is changed if a part has no destination. Trees are compared again when
    # the service is stopped.
    plan = plan_rollback(
        store, target, origins, ownership, leave_out=leave_out, settings=service, trust_times=True
    )
    check_plan(plan, origins, take_pre_rollback=take_pre_rollback)
    if plan.untouched:
        say(f"not in generation {target.number}, and left as they are: {', '.join(plan.untouched)}")
    folders.make_missing(_wanted(plan, origins), ownership, say)
    for dump in plan.dumps:
        if dump.warning:
            say(f"{dump.part.name}: {dump.warning}")

    def keep(states: dict[str, EngineState], made: Sequence[str]) -> Generation | None:
        """Take the pre-rollback generation. The service is stopped, so no later change is missed.

        made: paths that the rollback created next to the live state, which trees leave out.
        """
        if not take_pre_rollback:
            return None
        around = Hooks.of(service) if not service.stop else Hooks(())
        taken = None
        now, absent = present_sources(plan, origins)
        for name, source in now.items():
            if isinstance(source, Tree):
                now[name] = replace(source, own=below(source.path, made))
            elif isinstance(source, EngineSource) and service.stop and name in states:
                now[name] = EngineSource(source.name, source.engine.when_stopped(states[name]))
        if now or absent.kinds:
            # On a new machine, what exists at the paths of the service is the state of no revision. 'follow'
            # would restore it if it were filed under the configured one.
            empty = bool(absent.kinds) and store.state.live_revision(target.service) is None
            request = SnapshotRequest(
                service=target.service,
                sources=now,
                revision="" if empty else revision,
                pre_rollback=True,
                missing_parts=plan.untouched,
                leave_out=leave_out,
                hooks=around,
                absent=absent,
                watch=progress,
            )
            taken = snapshot(store, request)
        for failure in around.failures:
            say(failure)
        progress(RESTORING, tally)
        return taken

    with StreamReader(store) as reader:
        work = _Transaction(
            store, reader, plan, service, origins, keep, say, revision, trust_times=trust_times
        )
        work.prepare(ownership, leave_out, tally)
        tally.total = sum(dump.part.size for dump in plan.dumps)
        tally.total += sum(_size_of(target, name, tree) for name, tree in plan.trees.items())
        tally.most_files = sum(part.files for part in target.parts)
        progress(RESTORING, tally)
        work.run()
    with contextlib.suppress(StorageError):  # the state is restored: only selection depends on it
        take_over(store, target)
    return RolledBack(target, work.pre_rollback, work.problems, work.changed)


def _size_of(target: Generation, name: str, tree: TreePlan) -> int:
    """Estimate the bytes of content that the steps of a plan write."""
    part = target.part(name)
    return plan_size(part, tree) if part is not None else 0


def _wanted(plan: RollbackPlan, origins: dict[str, Origin]) -> list[Origin]:
    return [origins[part.name] for part in plan.target.parts if part.name in origins]


def missing_folders(plan: RollbackPlan, origins: dict[str, Origin]) -> list[str]:
    """Return the directories above parts that a rollback makes first."""
    return [os.fsdecode(one.path) for one in folders.missing(_wanted(plan, origins))]


def creations(store: Store, plan: RollbackPlan) -> list[str]:
    """Return what engines would create for a rollback, each as "PART: the role NAME"."""
    found = []
    with StreamReader(store) as reader:
        for dump in plan.dumps:
            contents = partial(reader.read, dump.part.content)
            found += [f"{dump.part.name}: {one}" for one in dump.source.engine.creates(contents)]
    return found


def check_plan(plan: RollbackPlan, origins: dict[str, Origin], *, take_pre_rollback: bool) -> None:
    """Raise CastoreError if a rollback would be refused before it changes anything."""
    for dump in plan.dumps:
        # A file whose directory is missing is ready once the directory was made.
        if not folders.missing([origins.get(dump.part.name, Origin())]):
            dump.source.engine.preflight()
    if take_pre_rollback:
        present_sources(plan, origins)


def _is_equal(part: Part, pre_rollback: Generation | None) -> bool:
    """Whether the live state, as the pre-rollback generation has it, equals the target's."""
    before = pre_rollback.part(part.name) if pre_rollback is not None else None
    if before is None or before.skipped_files:
        return False
    return (before.kind, before.root) == (part.kind, part.root)


class _Transaction:
    def __init__(
        self,
        store: Store,
        reader: StreamReader,
        plan: RollbackPlan,
        service: Service,
        origins: dict[str, Origin],
        keep: Callable[[dict[str, EngineState], Sequence[str]], Generation | None],
        say: Callable[[str], None],
        revision: str,
        *,
        trust_times: bool,
    ) -> None:
        self.problems: list[tuple[str, bytes, str]] = []
        self.pre_rollback: Generation | None = None
        self.changed: tuple[str, ...] = ()
        self._store = store
        self._reader = reader
        self._target = target = plan.target
        self._sources = {dump.part.name: dump.source for dump in plan.dumps}
        self._removals = plan.removals
        self._live_paths: dict[str, list[str]] = {}
        """Paths of the parts, by name."""
        self._apart: dict[str, list[str]] = {}
        """Those paths, and the files next to them that belong to the parts, by name."""
        self._made: list[str] = []
        """Paths that the rollback creates next to the live state."""
        self._service = service
        self._keep = keep
        self._say = say
        self._changes: list[RollbackStep] = []
        self._journal = Journal(
            target.service,
            target.number,
            None,
            [],
            service.stop,
            service.start,
            service.timeout,
            service.run_as,
            revision=after_rollback(store, target, revision),
            before=revision,
        )
        self._origins = origins
        self._trust_times = trust_times

    def prepare(self, ownership: Ownership, leave_out: Sequence[str], tally: Progress) -> None:
        """Add a step for each part; nothing is created yet. Raises ConfigError, CastoreError."""
        for part in self._target.parts:
            found = self._origins.get(part.name, Origin())
            if part.kind == "tree":
                plan = partial(self._plan, part, found, ownership, leave_out)
                exists = os.path.lexists(found.path)
                journal = PartJournal(part.name, path=found.path, existed=exists)
                apply = partial(self._in_place, ownership=ownership, tally=tally)
                self._add(TreeStep(journal, plan, apply))
                continue
            source = self._sources[part.name]
            journal, state = self._journal_of(part.name, source)
            contents = contents_of(self._reader, part, lambda: self.pre_rollback, tally)
            own = partial(self._own, found.file, ownership)
            self._add(DumpStep(source.engine, state, journal, contents, own), source.engine.sidecar_suffixes)
        # Parts that did not exist in the target.
        for removal in self._removals:
            if not removal.there:
                continue
            if removal.source is None:
                path = os.fsencode(removal.path)
                work = partial(self._removal, removal.name, removal.path, ownership, leave_out, tally)
                move = planned_move(removal.path)
                journal = PartJournal(removal.name, path=path, move=move)
                self._add(TreeRemoval(journal, move, self._store.places.journals, work))
                continue
            journal, state = self._journal_of(removal.name, removal.source)
            contents = contents_of(self._reader, None, lambda: self.pre_rollback)
            kept = partial(self._has_all_of, removal.name)
            engine = removal.source.engine
            self._add(EngineRemoval(engine, state, journal, contents, kept), engine.sidecar_suffixes)
        refuse_same(self._live_paths)

    def _own(self, file: FileOwner | None, ownership: Ownership, path: str, inode: tuple[int, int]) -> None:
        if file is not None:
            try:
                folders.give(path, inode, file, ownership, self._say)
            except OSError as error:
                raise CastoreError(f"cannot set the recorded owner and mode of {path}: {error}") from error

    @staticmethod
    def _journal_of(name: str, source: EngineSource) -> tuple[PartJournal, EngineState]:
        settings, state = settings_of(source.engine), source.engine.prepare()
        return PartJournal(name, engine=source.name, settings=settings, state=state), state

    def _add(self, change: RollbackStep, endings: tuple[str, ...] = ()) -> None:
        self._changes.append(change)
        journal = change.journal
        self._journal.parts.append(journal)
        live, made = journal.paths
        self._live_paths[journal.name] = live
        self._apart[journal.name] = with_endings(live, endings)
        self._made += with_endings(made, endings)

    def _in_place(self, plan: TreePlan, *, ownership: Ownership, tally: Progress) -> InPlace:
        return InPlace(self._reader, plan, ownership, tally, self._target.service)

    def _plan(
        self, part: Part, found: Origin, ownership: Ownership, leave_out: Sequence[str]
    ) -> TreePlan:
        given = (self._store, self._reader, self._target, part, found, ownership)
        others = [path for name, paths in self._apart.items() if name != part.name for path in paths]
        apart = below(os.fsdecode(found.path), [*others, *self._made])
        return plan_live_tree(*given, self.pre_rollback, leave_out, apart, trust_times=self._trust_times)

    def _removal(
        self, name: str, path: str, ownership: Ownership, leave_out: Sequence[str], tally: Progress
    ) -> tuple[InPlace, bool]:
        """Return the in-place removal of a tree, and whether nothing in it has to stay."""
        rules = rules_of(self._origins.get(name, Origin()), left_out(self._store, leave_out))
        # Keep the directory only for parts that the target has, not for what is removed together with it.
        kept = [where for part in self._target.parts for where in self._apart.get(part.name, [])]
        apart = below(path, kept)
        if apart:
            apart = below(path, [*kept, *self._made])
        unread = unread_paths(self._reader, self.pre_rollback, name)
        comparison = Comparison(rules=rules, apart=apart, unread=unread.paths)
        plan, complete = plan_removal(self._reader, path, comparison)
        return InPlace(self._reader, plan, ownership, tally, self._target.service), complete

    def _has_all_of(self, name: str) -> bool:
        """Whether the pre-rollback generation, if one was to be taken, has all of a part."""
        part = self.pre_rollback.part(name) if self.pre_rollback is not None else None
        return self.pre_rollback is None or (part is not None and not part.skipped_files)

    def run(self) -> None:
        """Carry out all steps, or revert them and raise."""
        with ExitStack() as shielded:
            self._swap_all(shielded)
            self._complete()

    def _swap_all(self, shielded: ExitStack) -> None:
        """Swap all parts, or revert them and raise. After the last swap, interrupts are deferred."""
        journal = self._journal
        self._save()
        try:
            for part, change in zip(journal.parts, self._changes, strict=True):
                self._report(part, change.stage())
            self._stop()
            states = {part.name: part.state for part in journal.parts if part.state is not None}
            self.pre_rollback = self._keep(states, self._made)
            journal.pre_rollback = self.pre_rollback.number if self.pre_rollback is not None else None
            self._save()
            changed = []
            for part, change in zip(journal.parts, self._changes, strict=True):
                stored = self._target.part(part.name)
                if stored is not None and _is_equal(stored, self.pre_rollback):
                    continue
                part.swapped = True
                changed.append(part.name)
                self._save()
                self._report(part, change.swap())
            self.changed = tuple(changed)
            self._start()
            # From here on, an interrupt would leave a rollback that is done but looks interrupted.
            shielded.enter_context(DeferInterrupts(self._defer))
            journal.phase = "done"
            self._save()
        except BaseException as error:
            if journal.phase == "done":
                # The journal decides what `recover` does, so it is corrected first.
                journal.phase = "started"
                self._save()
            self._revert(error)
            if isinstance(error, CastoreError):
                error.args = (f"{error}; {self._reverted()}",)
            raise

    def _reverted(self) -> str:
        """Return which state is live after a rollback failed and was reverted."""
        if self._journal.phase == "begun":
            return f"nothing was replaced: the state of {self._target.service!r} is as before"
        of = f" (revision {short_revision(self._journal.before)})" if self._journal.before else ""
        return f"the previous state of {self._target.service!r}{of} is restored"

    def _report(self, part: PartJournal, remarks: list[str]) -> None:
        for line in remarks:
            self._say(f"{part.name}: {line}")

    def _defer(self) -> None:
        self._say(
            "all parts are restored, and what they replaced is being removed; interrupt it again to stop that"
        )

    def _complete(self) -> None:
        """Remove what the restored parts replaced."""
        journal = self._journal
        try:
            remember(self._store, journal)
            problems = finish(self._store, journal, self._changes)
        except KeyboardInterrupt:
            raise RevertInterruptedError(
                "all parts are restored; removing what they replaced was interrupted: to complete it, "
                f"castore recover {journal.service}"
            ) from None
        # Read the problems after the cleanup, which adds what it could not remove.
        for part, change in zip(journal.parts, self._changes, strict=True):
            self.problems += [(part.name, path, reason) for path, reason in change.problems]
        self.problems += problems

    def _save(self) -> None:
        write_journal(self._store, self._journal)

    def _stop(self) -> None:
        self._journal.phase = "stopped"
        self._save()
        if self._service.stop:
            account = account_of(self._service.run_as)
            run(self._service.stop, timeout=self._service.timeout, account=account)

    def _start(self) -> None:
        self._journal.phase = "started"
        self._save()
        if self._service.start:
            account = account_of(self._service.run_as)
            run(self._service.start, timeout=self._service.timeout, account=account)
        check_health(self._service)

    def _revert(self, cause: BaseException) -> None:
        service = self._target.service
        why = str(cause) or "interrupted"

        def defer() -> None:
            self._say("the previous state is being restored, which goes on; interrupt it again to stop that")

        try:
            with DeferInterrupts(defer):
                failed = undo(self._store, self._journal, self._changes)
        except KeyboardInterrupt:
            raise RevertInterruptedError(
                f"{why}; and restoring the previous state was interrupted: first castore recover {service}"
            ) from cause
        if failed and not self._journal.changed:
            # No live state was changed: what is left over must not block the next command.
            self._say("; ".join(failed))
            self._say(forget(self._store, service))
            return
        if failed:
            number = f"; generation {self.pre_rollback.number} holds it" if self.pre_rollback else ""
            pre_rollback = self.pre_rollback.number if self.pre_rollback else None
            raise NotIntactError(
                f"{why}; and the previous state is not intact: {'; '.join(failed)}{number}; "
                + ways_out(service, pre_rollback)
            ) from cause
