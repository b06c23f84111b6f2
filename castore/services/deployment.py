"""State that follows the configuration: what a deployment changes, and what a boot finds."""

from __future__ import annotations

import contextlib
import shlex
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from castore.errors import CastoreError, ProgramError, StoppedError, UsageError
from castore.model.counting import count as counted
from castore.model.names import short_revision
from castore.model.tally import Tally
from castore.services.events import event
from castore.services.hooks import Around
from castore.services.interrupts import Shield
from castore.services.plan import read_details
from castore.services.programs import run
from castore.services.recorded import trusted_origins
from castore.services.revision import current
from castore.services.rollback import roll_back
from castore.services.snapshot import configured_origins, snapshot, sources_of
from castore.services.state_revision import newest_of, state_revision
from castore.services.transaction import check_health, refuse_interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from castore.content.attributes import Ownership
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
    progress: Callable[[str, Tally], None] = lambda _name, _tally: None
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
            around = Around.of(settings)
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

    def restore(self, service: str, target: Generation, *, with_safety: bool = True) -> None:
        """Put a generation of a service back."""
        settings = self.of(service)
        recorded = read_details(self.store, target).origins
        configured_parts = configured_origins(settings)
        origins = trusted_origins(self.store, service, recorded, configured_parts, self.say)
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
                tally=Tally(),
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
    """What was kept before, by service."""
    failure: str = ""
    """Why it was taken back; empty: it was not."""
    known: dict[str, Generation] = field(default_factory=dict)
    """Of services whose revision is now one that was here before: its newest generation."""
    restored: list[str] = field(default_factory=list)
    """Those of them of which that was put back."""


def guard(
    work: Work,
    services: Sequence[str],
    command: Sequence[str],
    wanted: Callable[[str, Generation], bool] = lambda _service, _generation: False,
) -> Guarded:
    """Run a deployment between a snapshot and a health check of services; take all back if it fails.

    wanted: whether the newest generation of a revision that was here before is to be restored. Raises
    CastoreError if the state could not be put back, or the snapshot fails: then the command was not
    run. Raises BusyError if another guards one of the services: what it takes back would be of both.
    """
    services = list(dict.fromkeys(services))
    if not services or not command:
        raise UsageError("name a service and a command: castore guard SERVICE... -- COMMAND")
    for service in services:
        work.of(service)
    with ExitStack() as stack:
        for service in services:
            stack.enter_context(work.store.guard_lock(service))
        done = _guard(work, services, command)
        for service, generation in done.known.items():
            if wanted(service, generation):
                work.restore(service, generation)
                done.restored.append(service)
    return done


def _guard(work: Work, services: Sequence[str], command: Sequence[str]) -> Guarded:
    done = Guarded()
    for service in services:
        done.taken[service] = work.snapshot(service)
        work.note(f"kept {service}@{done.taken[service].number}")
    try:
        with work.hushed():
            run(command, grace=None)
        for service in services:
            check_health(work.of(service))
    except (CastoreError, KeyboardInterrupt) as error:
        done.failure = str(error) or "interrupted"
        _take_back(work, services, done)
        return done
    for service in services:
        try:
            settings = work.of(service)
            now = current(settings.revision, settings.timeout)
        except CastoreError as error:
            raise CastoreError(f"deployed, but the revision of {service!r} is not known: {error}") from error
        before = done.taken[service]
        with event(work.store, "guard", service) as note:
            note.number, note.revision = before.number, now or ""
            note.text = f"deployed; before it: {short_revision(before.revision) or 'no revision'}"
        if now is None:
            continue
        state = state_revision(work.store, service, now)
        if state.left_behind:
            found = work.newest_of(service, now)
            assert found is not None
            done.known[service] = found
        elif state.revision != state.noted:
            work.store.set_live_revision(service, state.revision)
    return done


def _take_back(work: Work, services: Sequence[str], done: Guarded) -> None:
    """Take the deployment back, then the state of all services."""
    failed = []
    work.say(f"failed: {done.failure}")
    undos = list(dict.fromkeys(work.of(service).undo for service in services if work.of(service).undo))
    left = list(services)

    def tell() -> None:
        work.say("the deployment is being taken back, which goes on; interrupt it again to stop that")

    try:
        with Shield(tell):
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
                except StoppedError:
                    raise
                except CastoreError as error:
                    failed.append(f"{service}: {error}; {_way_back(work, done.taken[service])}")
                left.pop(0)
    except (KeyboardInterrupt, StoppedError):
        raise StoppedError(_stopped(work, done, undos, left)) from None
    if failed:
        raise CastoreError(f"{done.failure}; and not all could be taken back: {'; '.join(failed)}")


def _stopped(work: Work, done: Guarded, undos: Sequence[tuple[str, ...]], left: Sequence[str]) -> str:
    """Say, also as events, what was not taken back when that was interrupted, and how it is."""
    told = [f"{shlex.join(undo)} has not ended, or was not run" for undo in undos]
    for service in left:
        taken = done.taken[service]
        half = work.store.has_begun_rollback(service)
        state = "may be half of each" if half else "is that of the deployment"
        told.append(f"the state of {service!r} {state}: {_way_back(work, taken)}")
        with contextlib.suppress(StoppedError), event(work.store, "guard", service) as note:
            note.of(taken)
            raise StoppedError(f"taking it back was interrupted: {told[-1]}")
    return f"{done.failure}; and taking it back was interrupted: {'; '.join(told) or 'all was done'}"


def _way_back(work: Work, taken: Generation) -> str:
    """Say how to go back to what was kept before a deployment."""
    first = ""
    if work.store.has_begun_rollback(taken.service):
        first = f"castore recover {taken.service}, then "
    return f"to go back: {first}castore rollback {taken.service} --to {taken.number}"


def _put_back(work: Work, service: str, taken: Generation) -> None:
    try:
        work.restore(service, taken)
    except ProgramError as error:
        # What a deployment has broken may be past dumping; what was before it is kept.
        refuse_interrupted(work.store, service)
        work.say(f"{service}: {error}; trying without a safety generation")
        work.restore(service, taken, with_safety=False)


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
