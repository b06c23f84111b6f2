"""Take snapshots of services and roll them back: lock, check and record what belongs to each."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import msgspec

from castore.errors import ProgramError, StorageError, UsageError
from castore.model.counting import count as counted
from castore.model.generation import Origin
from castore.progress import Progress
from castore.services.config import Service
from castore.services.details import read_details
from castore.services.doubts import doubts
from castore.services.hooks import Hooks
from castore.services.ownership import stored_ownership
from castore.services.recorded import trusted_origins
from castore.services.revision import current
from castore.services.rollback.journal import refuse_interrupted, unfinished
from castore.services.selectors import part_of
from castore.services.snapshot import SnapshotRequest, snapshot
from castore.services.sources import configured_origins, lacking, sources_of, unrestorable
from castore.services.state_revision import filed_under, newest_of, state_revision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from castore.model.generation import Generation
    from castore.services.config import Settings
    from castore.services.drill import Drilled
    from castore.services.rollback.execute import RolledBack
    from castore.services.rollback.plan import RollbackPlan
    from castore.services.rollback.request import RollbackRequest
    from castore.services.sources import Source
    from castore.store import Store


class Snapshot(msgspec.Struct):
    """A generation that was taken, and what went wrong."""

    generation: Generation
    failures: list[str] = []
    """What failed after the generation was committed, such as a hook."""
    skipped_files: list[tuple[str, bytes, str]] = []
    """(part, path, reason) of files that are missing in the generation, or may be inconsistent."""
    missing_parts: tuple[str, ...] = ()
    """Parts that castore.toml describes, but the generation does not have."""


class ServiceOperations(msgspec.Struct):
    """Snapshots, rollbacks and drills of services, for the command line, guard, follow and the Python API.

    Each operation locks its service, and records which revision the live state belongs to.
    """

    store: Store
    settings: Settings | None
    """castore.toml; None: there is none."""
    leave_out: Sequence[str] = ()
    """Directories that trees store empty: castore's own, and those of identities."""
    progress: Callable[[str, Progress], None] = lambda _name, _progress: None
    say: Callable[[str], None] = lambda _text: None
    """Report what the user should notice."""
    note: Callable[[str], None] = lambda _text: None
    """Report what went as expected."""
    progress_paused: Callable[[], AbstractContextManager[None]] = nullcontext
    """Suspend the progress display while a program writes to the terminal."""

    def described(self, service: str) -> Service | None:
        """Return a service's settings, or None. Raises ConfigError if their description has mistakes."""
        return self.settings.of(service) if self.settings is not None else None

    def of(self, service: str) -> Service:
        """Return a service's settings. Raises UsageError if castore.toml does not describe it."""
        found = self.described(service)
        if found is None:
            raise UsageError(f"castore.toml does not describe the service {service!r}")
        return found

    def snapshot(
        self,
        service: str,
        sources: Mapping[str, Source] | None = None,
        *,
        hooks: Hooks | None = None,
        revision: str | None = None,
        after_interruption: bool = False,
    ) -> Snapshot:
        """Take a generation, filed under the revision that the state belongs to.

        sources: the parts; None: those of castore.toml. hooks: None: those of castore.toml, if the parts are
        from there, too. revision: the revision on the command line. after_interruption: take the generation
        even if a rollback is unfinished, and mark it so; otherwise that raises NotIntactError. Raises
        CastoreError; then nothing was committed.
        """
        settings = self.described(service)
        if hooks is None:
            hooks = Hooks.of(settings if sources is None else None)
        parts = dict(sources) if sources is not None else sources_of(self.of(service))
        missing_parts = tuple(lacking(settings, parts))
        configured = current(settings.revision, settings.timeout) if settings is not None else None
        seen: dict[str, Progress] = {}

        def watch(name: str, progress: Progress) -> None:
            seen[name] = progress
            self.progress(name, progress)

        self.store.check_settings()
        with self.store.state.lock(service):
            # Also after a failed rollback: without new generations, its damage would only grow.
            interrupted = self.store.state.has_rollback_journal(service)
            if interrupted and not after_interruption:
                refuse_interrupted(self.store, service)
            filed, noting, warning = filed_under(self.store, service, revision, configured)
            if warning:
                self.say(warning)
            request = SnapshotRequest(
                service=service,
                sources=parts,
                revision=filed,
                interrupted=interrupted,
                missing_parts=missing_parts,
                leave_out=self.leave_out,
                hooks=hooks,
                watch=watch,
            )
            generation = snapshot(self.store, request)
            # A revision on the command line, with only some of the parts, does not cover the other parts.
            noting = noting and not (missing_parts and revision is not None)
            failures = [*hooks.failures, *self._noted(generation, noting=noting)]
        skipped = [(part, path, reason) for part, one in seen.items() for path, reason in one.warnings]
        for note in _notes(generation, parts, missing_parts):
            self.say(note)
        return Snapshot(generation, failures, skipped, missing_parts)

    def _noted(self, generation: Generation, *, noting: bool) -> list[str]:
        """Record the revision of a new generation as that of the live state; return what failed."""
        if generation.interrupted:
            return [f"it is marked, and only its number selects it: {unfinished(generation.service)}"]
        if not noting:
            return []
        try:
            self.store.state.set_live_revision(generation.service, generation.revision)
        except StorageError as error:
            return [f"that its revision is the live one was not recorded: {error}"]
        return []

    def origins_of(
        self,
        target: Generation,
        given: Mapping[str, Origin] | None = None,
        *,
        restore_with: Mapping[str, Sequence[str]] | None = None,
        consent: bool = False,
    ) -> dict[str, Origin]:
        """Return where the parts of a generation belong on this machine, without untrusted origins.

        given: where parts belong, instead of what castore.toml says of them. restore_with: the programs that
        read dumps on their standard input, by part. consent: trust what the generation records. Raises
        NotFoundError for a part in `restore_with` that the generation does not have.
        """
        settings = self.described(target.service)
        configured = configured_origins(settings) if settings is not None else {}
        configured |= given or {}
        recorded = read_details(self.store, target).origins
        origins = trusted_origins(self.store, target, recorded, configured, self.say, consent=consent)
        for name, program in (restore_with or {}).items():
            part_of(target, name)
            known = origins.get(name, Origin())
            origins[name] = msgspec.structs.replace(known, restore=tuple(program))
        return origins

    def doubts(self, request: RollbackRequest) -> list[str]:
        """Return why a rollback may replace other state than the target's own: the user should be asked."""
        recorded = read_details(self.store, request.target).origins
        return doubts(self.store, request.target, recorded, request.origins)

    def plan(self, request: RollbackRequest) -> RollbackPlan:
        """Compare the live state with a target, and return what a rollback would do; nothing is changed.

        Raises CastoreError if the rollback would be refused.
        """
        from castore.content.restore.range_writes import with_range_plans
        from castore.content.streams import StreamReader
        from castore.services.rollback.execute import check_plan
        from castore.services.rollback.plan import plan_rollback
        from castore.services.rollback.request import RollbackContext

        service = self.described(request.target.service)
        context = RollbackContext(service=service or Service(), leave_out=self.leave_out)
        plan = plan_rollback(self.store, request, context)
        check_plan(plan, request.origins, take_pre_rollback=request.take_pre_rollback)
        with StreamReader(self.store) as reader:
            trees = {
                name: with_range_plans(reader, tree, request.ownership) for name, tree in plan.trees.items()
            }
        return msgspec.structs.replace(plan, trees=trees)

    def rollback(
        self, request: RollbackRequest, progress: Progress | None = None, *, check_health: bool = True
    ) -> RolledBack:
        """Restore a generation of a service in one transaction.

        progress: counts the bytes written. check_health: check the health of the service at the end.
        Raises CastoreError; the state is then as before, or the message says what differs.
        """
        from castore.services.rollback.execute import rollback
        from castore.services.rollback.request import RollbackContext

        service = request.target.service
        settings = self.described(service)
        configured = self._configured(service)
        if settings is not None and not check_health:
            settings = msgspec.structs.replace(settings, health=())
        with self.store.state.lock(service):
            live = state_revision(self.store, service, configured).revision
            context = RollbackContext(
                service=settings or Service(),
                revision=live,
                leave_out=self.leave_out,
                watch=self.progress,
                say=self.say,
            )
            return rollback(self.store, request, context, progress or Progress())

    def drill(self, target: Generation, *, scratch: str | None = None, consent: bool = False) -> Drilled:
        """Restore a generation into a scratch directory and check it there; the live state is not touched.

        scratch: where that directory is created; None: the system's temporary directory. consent: use the
        recorded origins of parts that castore.toml does not describe. `note` is called with each finding.
        Raises CastoreError if anything is not sound.
        """
        from castore.services.drill import DrillRequest, drill

        settings = self.described(target.service)
        request = DrillRequest(
            target,
            configured_origins(settings) if settings is not None else {},
            settings or Service(),
            stored_ownership(),
            scratch,
            trust_recorded=consent,
        )
        return drill(self.store, request, note_finding=self.note, say=self.say, watch=self.progress)

    def take(self, service: str) -> Generation:
        """Take a generation of the parts in castore.toml, and report what went wrong. Raises CastoreError."""
        self.of(service)
        generation = self.snapshot(service)
        for failure in generation.failures:
            self.say(f"{service}: {failure}")
        if self.store.generations.older:
            self.say(f"warning: {self.store.generations.older}")
        return generation.generation

    def roll_back_configured(
        self, target: Generation, *, take_pre_rollback: bool = True, check_health: bool = True
    ) -> None:
        """Roll back with the settings of castore.toml; report files that could not be restored exactly."""
        from castore.services.rollback.request import RollbackRequest

        service = target.service
        self.of(service)
        named = msgspec.structs.replace(self, say=lambda text: self.say(f"{service}: {text}"))
        origins = named.origins_of(target)
        request = RollbackRequest(target=target, origins=origins, take_pre_rollback=take_pre_rollback)
        done = named.rollback(request, check_health=check_health)
        if done.problems:
            problems = counted(len(done.problems), "file or attribute", "files or attributes")
            named.say(f"not restored as before: {problems}")

    def _configured(self, service: str) -> str | None:
        """Return the configured revision, or None if its source fails, which must not stop a rollback."""
        settings = self.described(service)
        if settings is None:
            return None
        try:
            return current(settings.revision, settings.timeout)
        except (ProgramError, UsageError) as error:
            self.say(f"the configured revision of {service} is not known: {error}")
            return None

    def newest_of(self, service: str, revision: str) -> Generation | None:
        """Return the newest generation of exactly this revision, or None."""
        return newest_of(self.store, service, revision)


def _notes(generation: Generation, parts: dict[str, Source], missing_parts: Sequence[str]) -> list[str]:
    """Return why a generation is not restored, or not selected, as others are."""
    notes = [
        f"no program is known that restores the part {name!r}; a rollback needs --restore {name}='PROGRAM "
        "...', or 'restore' of the part in castore.toml"
        for name in unrestorable(parts)
    ]
    if missing_parts:
        notes.append(
            f"{generation.service}@{generation.number} is partial, since castore.toml also describes "
            f"{', '.join(missing_parts)}: only its number selects it"
        )
    return notes
