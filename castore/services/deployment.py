"""State that follows the configuration: what a deployment changes, and what a boot finds."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from castore.errors import CastoreError, ProgramError, RevertInterruptedError, UsageError
from castore.model.counting import count as counted
from castore.model.names import short_revision
from castore.process.runners import run
from castore.process.signal_shield import DeferInterrupts
from castore.progress import Progress
from castore.services.events import event
from castore.services.hooks import Hooks, check_health
from castore.services.recorded import trusted_origins
from castore.services.revision import current
from castore.services.rollback.execute import roll_back
from castore.services.rollback.journal import refuse_interrupted
from castore.services.rollback.plan import read_details
from castore.services.snapshot import (
    EngineSource,
    configured_origins,
    present_parts,
    snapshot,
    sources_of,
)
from castore.services.state_revision import newest_of, state_revision

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from castore.content.restore.metadata import Ownership
    from castore.model.generation import Generation
    from castore.services.config import Service
    from castore.store import Store


@dataclass
class Work:
    """What guard and follow need to do their work on services."""

    store: Store
    settings: dict[str, Service]
    """By name."""
    ownership: Ownership
    leave_out: Sequence[str] = ()
    progress: Callable[[str, Progress], None] = lambda _name, _tally: None
    say: Callable[[str], None] = lambda _text: None
    note: Callable[[str], None] = lambda _text: None
    """Says what went as expected."""
    hushed: Callable[[], AbstractContextManager[None]] = nullcontext
    """Keeps the screen clear while a program has it."""

    def of(self, service: str) -> Service:
        """Return what castore.toml says of a service. Raises UsageError."""
        found = self.settings.get(service)
        if found is None:
            raise UsageError(f"castore.toml does not describe the service {service!r}")
        return found

    def snapshot(self, service: str) -> Generation:
        """Take a generation, filed under the revision that the state belongs to."""
        settings = self.of(service)
        configured = current(settings.revision, settings.timeout)
        with self.store.lock(service):
            refuse_interrupted(self.store, service)
            state = state_revision(self.store, service, configured, report_older=True)
            if warning := state.warning(service):
                self.say(warning)
            revision = state.revision if configured else ""
            around = Hooks.of(settings)
            taken = snapshot(
                self.store,
                service,
                sources_of(settings),
                revision=revision,
                leave_out=self.leave_out,
                around=around,
                progress=self.progress,
            )
            self.store.set_live_revision(service, revision)
        for failure in around.failures:
            self.say(f"{service}: {failure}")
        if self.store.older:
            self.say(f"warning: {self.store.older}")
        return taken

    def restore(
        self, service: str, target: Generation, *, with_safety: bool = True, health: bool = True
    ) -> None:
        """Restore a generation of a service. health: check the service's health then."""
        settings = self.of(service)
        if not health:
            settings = msgspec.structs.replace(settings, health=())
        recorded = read_details(self.store, target).origins
        configured_parts = configured_origins(settings)
        origins = trusted_origins(self.store, target, recorded, configured_parts, self.say)
        configured = self._configured(settings)
        with self.store.lock(service):
            live = state_revision(self.store, service, configured).revision
            done = roll_back(
                self.store,
                target,
                origins,
                self.ownership,
                settings=settings,
                with_safety=with_safety,
                revision=live,
                leave_out=self.leave_out,
                progress=self.progress,
                say=lambda text: self.say(f"{service}: {text}"),
                tally=Progress(),
            )
        if done.problems:
            problems = counted(len(done.problems), "file or attribute", "files or attributes")
            self.say(f"{service}: not restored as before: {problems}")

    def _configured(self, settings: Service) -> str | None:
        """Return the configured revision; None if its source fails, which stops no rollback."""
        try:
            return current(settings.revision, settings.timeout)
        except CastoreError as error:
            self.say(f"the configured revision is unknown: {error}")
            return None

    def newest_of(self, service: str, revision: str) -> Generation | None:
        """Return the newest generation of exactly this revision."""
        return newest_of(self.store, service, revision)


@dataclass
class Guarded:
    """How a deployment went."""

    taken: dict[str, Generation] = field(default_factory=dict)
    """The generation that was taken before, by service."""
    failure: str = ""
    """Why it was reverted; empty: it was not."""
    known: dict[str, Generation] = field(default_factory=dict)
    """The newest generation of the configured revision, of services that had this revision before."""
    restored: dict[str, str] = field(default_factory=dict)
    """Of those, by service: the revision that the state belonged to before it was restored."""
    outcome: dict[str, str] = field(default_factory=dict)
    """By service: what was restored, which revision is live, and what is left to do."""


Wanted = Callable[[str, "Generation"], bool]


def guard(
    work: Work,
    services: Sequence[str],
    command: Sequence[str],
    wanted: Wanted = lambda _service, _generation: False,
) -> Guarded:
    """Run a deployment between a snapshot and a health check of services; revert all if it fails.

    If the deployment went back to a revision that was configured before, its state is restored before the
    health check: the earlier programs do not have to work with the later state. wanted: whether the newest
    generation of such a revision is to be restored. Raises CastoreError if the state could not be reverted,
    or the snapshot fails: then the command was not run. Raises BusyError if another guard is at work on one
    of the services: what it reverts would be of both.
    """
    services = list(dict.fromkeys(services))
    if not services or not command:
        raise UsageError("name a service and a command: castore guard SERVICE... -- COMMAND")
    for service in services:
        work.of(service)
    with ExitStack() as stack:
        for service in services:
            stack.enter_context(work.store.guard_lock(service))
        return _guard(work, services, command, wanted)


def _guard(work: Work, services: Sequence[str], command: Sequence[str], wanted: Wanted) -> Guarded:
    done = Guarded()
    for service in services:
        _refuse_unready(work, service)
    for service in services:
        done.taken[service] = work.snapshot(service)
        work.note(f"kept {service}@{done.taken[service].number}")
    try:
        with work.hushed():
            run(command, grace=None)
        revisions = {service: _configured_now(work, service) for service in services}
        _restore_known(work, revisions, done, wanted)
        for service in services:
            check_health(work.of(service))
    except RevertInterruptedError as error:
        done.failure = str(error)
        raise RevertInterruptedError(_stopped(work, done, _undos(work, services), services)) from None
    except (CastoreError, KeyboardInterrupt) as error:
        done.failure = (str(error) or "interrupted") + _hint(done)
        _take_back(work, services, done)
        return done
    for service, now in revisions.items():
        if isinstance(now, CastoreError):
            raise CastoreError(f"deployed, but the revision of {service!r} is not known: {now}") from now
        _note_deployment(work, service, now, done)
    return done


def _refuse_unready(work: Work, service: str) -> None:
    """Raise CastoreError where a deployment that fails could not be reverted."""
    for name, source in present_parts(sources_of(work.of(service))).items():
        if isinstance(source, EngineSource) and source.engine.there():
            try:
                source.engine.ready()
            except CastoreError as error:
                raise type(error)(f"nothing was deployed: {service}:{name}: {error}") from error


def _configured_now(work: Work, service: str) -> str | CastoreError | None:
    """Return the configured revision, or why it is not known; None: castore.toml names no source of it."""
    try:
        settings = work.of(service)
        return current(settings.revision, settings.timeout)
    except CastoreError as error:
        return error


def _restore_known(
    work: Work, revisions: dict[str, str | CastoreError | None], done: Guarded, wanted: Wanted
) -> None:
    """Restore the state of each service whose configured revision is an earlier one, if that is wanted."""
    for service, now in revisions.items():
        if not isinstance(now, str):
            continue
        state = state_revision(work.store, service, now)
        found = work.newest_of(service, now) if state.left_behind else None
        if found is None:
            continue
        done.known[service] = found
        if wanted(service, found):
            # Services may depend on each other: health is checked when all of them are restored.
            work.restore(service, found, health=False)
            done.restored[service] = state.revision


def _hint(done: Guarded) -> str:
    """Say of which services the state was not restored, so that earlier programs had the later state."""
    return "".join(
        f"; revision {short_revision(one.revision)} was configured before, and the state of {service!r} was "
        "not restored before the health check: castore guard --restore does that"
        for service, one in done.known.items()
        if service not in done.restored
    )


def _note_deployment(work: Work, service: str, now: str | None, done: Guarded) -> None:
    """Record a deployment that succeeded, and say what is live and what is left to do."""
    before = done.taken[service]
    earlier = short_revision(before.revision) or "no revision"
    with event(work.store, "guard", service) as note:
        note.number, note.revision = before.number, now or ""
        note.text = f"deployed; before it: {earlier}"
    if now is not None and service not in done.known:
        state = state_revision(work.store, service, now)
        if state.revision != state.noted:
            work.store.set_live_revision(service, state.revision)
    healthy = "healthy" if work.of(service).health else "castore.toml names no health check"
    live = f"deployed, {healthy}; revision {short_revision(now or '') or 'unknown'} is live"
    if service in done.restored:
        known = done.known[service]
        text = f"{live}, its state restored from generation {known.number}; to undo that: "
        done.outcome[service] = text + f"castore rollback --undo {service}"
    elif service in done.known:
        text = f"{live}, but the state still belongs to revision {earlier}; left to do: "
        done.outcome[service] = text + f"castore follow {service}, or castore rollback {service}"
    else:
        text = f"{live}; before it: generation {before.number} of {earlier}; to restore that state: "
        done.outcome[service] = text + f"castore rollback {service} --to {before.number}"


def _undos(work: Work, services: Sequence[str]) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(work.of(service).undo for service in services if work.of(service).undo))


def _take_back(work: Work, services: Sequence[str], done: Guarded) -> None:
    """Revert the deployment, then the state of all services."""
    failed = []
    work.say(f"failed: {done.failure}")
    undos = _undos(work, services)
    left = list(services)

    def tell() -> None:
        work.say("the deployment is being taken back, which goes on; interrupt it again to stop that")

    try:
        with DeferInterrupts(tell):
            while undos:
                try:
                    run(undos[0])
                except CastoreError as error:
                    failed.append(str(error))
                undos.pop(0)
            while left:
                service = left[0]
                try:
                    with event(work.store, "guard", service) as note:
                        note.of(done.taken[service])
                        note.text = f"taken back: {done.failure}"
                        _put_back(work, service, done.taken[service])
                except RevertInterruptedError:
                    raise
                except CastoreError as error:
                    failed.append(f"{service}: {error}; {_way_back(work, done.taken[service])}")
                left.pop(0)
            # Services may depend on each other: health is checked when the state of all is restored.
            found = (_unhealthy(work, service, done.taken[service]) for service in services)
            failed += filter(None, found)
    except (KeyboardInterrupt, RevertInterruptedError):
        raise RevertInterruptedError(_stopped(work, done, undos, left)) from None
    if failed:
        raise CastoreError(f"{done.failure}; and not everything could be reverted: {'; '.join(failed)}")
    done.outcome = {service: _reverted(work, service, done.taken[service]) for service in services}


def _reverted(work: Work, service: str, taken: Generation) -> str:
    """Say which state and which revision are live after a deployment was reverted, and what is left to do."""
    text = f"the state of generation {taken.number}"
    if taken.revision:
        text += f" (revision {short_revision(taken.revision)})"
    text += " is restored"
    undo = work.of(service).undo
    text += "; `undo` was run" if undo else "; castore.toml names no `undo`"
    now = _configured_now(work, service)
    if not isinstance(now, str):
        return text if undo else f"{text}: revert the configuration, if the deployment changed it"
    live = f"{text}; revision {short_revision(now)} is live"
    if now == taken.revision or not taken.revision:
        return f"{live}; nothing is left to do"
    return f"{live}, but the state belongs to another; left to do: revert the configuration"


def _stopped(work: Work, done: Guarded, undos: Sequence[tuple[str, ...]], left: Sequence[str]) -> str:
    """Say, also as events, what was not taken back when that was interrupted, and how it is."""
    told = [f"{shlex.join(undo)} has not ended, or was not run" for undo in undos]
    for service in left:
        taken = done.taken[service]
        half = work.store.has_begun_rollback(service)
        state = "may be half of each" if half else "is that of the deployment"
        told.append(f"the state of {service!r} {state}: {_way_back(work, taken)}")
        with contextlib.suppress(RevertInterruptedError), event(work.store, "guard", service) as note:
            note.of(taken)
            raise RevertInterruptedError(f"taking it back was interrupted: {told[-1]}")
    return f"{done.failure}; and taking it back was interrupted: {'; '.join(told) or 'all was done'}"


def _way_back(work: Work, taken: Generation) -> str:
    """Say how to go back to what was kept before a deployment."""
    first = ""
    if work.store.has_begun_rollback(taken.service):
        first = f"castore recover {taken.service}, then "
    return f"to go back: {first}castore rollback {taken.service} --to {taken.number}"


def _unhealthy(work: Work, service: str, taken: Generation) -> str:
    """Check a service whose deployment was reverted; return what is wrong, and empty if it is healthy."""
    if work.store.has_begun_rollback(service):
        return ""
    try:
        check_health(work.of(service))
    except CastoreError as error:
        return f"{service}: the state of generation {taken.number} is restored, but {error}"
    return ""


def _put_back(work: Work, service: str, taken: Generation) -> None:
    try:
        work.restore(service, taken, health=False)
    except ProgramError as error:
        # What a deployment has broken may be past dumping; what was before it is kept.
        refuse_interrupted(work.store, service)
        work.say(f"{service}: {error}; trying without a safety generation")
        work.restore(service, taken, with_safety=False, health=False)


@dataclass(frozen=True)
class Followed:
    """What `follow` found of a service, and did."""

    service: str
    revision: str
    before: str
    """The revision that its state belonged to."""
    generation: Generation | None = None
    """The newest of the present revision, if that is another, and was here before."""
    restored: bool = False

    @property
    def _selector(self) -> str:
        """What selects the generation: a pre-rollback generation is selected by number only."""
        assert self.generation is not None
        if self.generation.safety:
            return f"{self.generation.number}"
        return f"'={short_revision(self.revision)}'"

    @property
    def text(self) -> str:
        """What happened, for people."""
        short = short_revision(self.revision)
        if self.revision == self.before:
            return f"{self.service}: revision {short}, as before"
        if self.generation is None:
            what = "is new, and noted" if self.before else "is noted: what the state was of is not known here"
            return f"{self.service}: revision {short} {what}"
        what = "restored" if self.restored else "would be restored: castore rollback"
        where = f"{self.service}@{self.generation.number}"
        return (
            f"{self.service}: revision {short} was here before; its newest generation {where} "
            + (f"is {what}" if self.restored else f"{what} {self.service} --to {self._selector}")
        )


def follow(work: Work, services: Sequence[str], *, dry_run: bool = False) -> list[Followed]:
    """Let the state of services follow their present revisions, which may have gone back; for every boot.

    Raises CastoreError; of services that come behind one that fails, nothing was done.
    """
    found = []
    for service in services:
        settings = work.of(service)
        now = current(settings.revision, settings.timeout)
        if now is None:
            raise UsageError(f"castore.toml does not say where the revision of {service!r} comes from")
        # Where it is not known what the state belongs to (a new machine), it is not replaced unasked.
        state = state_revision(work.store, service, now)
        before = state.noted
        if now == before:
            found.append(Followed(service, now, before))
            continue
        generation = work.newest_of(service, now) if state.left_behind else None
        if generation is None:
            if not dry_run:
                with event(work.store, "follow", service) as note:
                    note.revision, note.text = now, "a new revision"
                    work.store.set_live_revision(service, now)
            found.append(Followed(service, now, before))
            continue
        restoring = settings.follow == "restore" and not dry_run
        if restoring:
            with event(work.store, "follow", service) as note:
                note.of(generation)
                note.text = f"revision {short_revision(now)} is back"
                work.restore(service, generation)
        found.append(Followed(service, now, before, generation, restoring))
    return found
