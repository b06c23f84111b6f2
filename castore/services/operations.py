"""Take snapshots of services and roll them back: lock, check and record what belongs to each."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec

from castore.errors import ProgramError, StorageError, UsageError
from castore.model.counting import count as counted
from castore.progress import Progress
from castore.services.hooks import Hooks
from castore.services.recorded import trusted_origins
from castore.services.revision import current
from castore.services.rollback.execute import rollback
from castore.services.rollback.journal import refuse_interrupted, unfinished
from castore.services.rollback.plan import read_details
from castore.services.snapshot import configured_origins, lacking, snapshot, sources_of
from castore.services.state_revision import filed_under, newest_of, state_revision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from castore.content.restore.metadata import Ownership
    from castore.model.generation import Generation, Origin
    from castore.services.config import Service
    from castore.services.rollback.execute import RolledBack
    from castore.services.snapshot import Source
    from castore.store import Store


@dataclass
class Snapshot:
    """A generation that was taken, and what went wrong."""

    generation: Generation
    failures: list[str] = field(default_factory=list)
    """What failed after the generation was committed, such as a hook."""
    skipped_files: list[tuple[str, bytes, str]] = field(default_factory=list)
    """(part, path, reason) of files that are missing in the generation, or may be inconsistent."""
    missing_parts: tuple[str, ...] = ()
    """Parts that castore.toml describes, but the generation does not have."""


@dataclass
class ServiceOperations:
    """Snapshots and rollbacks of services, for the command line, guard, follow and the Python API.

    Each operation locks its service, and records which revision the live state belongs to.
    """

    store: Store
    settings: Mapping[str, Service]
    """The services in castore.toml, by name; a service may be missing."""
    ownership: Ownership
    leave_out: Sequence[str] = ()
    """Directories that trees store empty: castore's own, and those of identities."""
    progress: Callable[[str, Progress], None] = lambda _name, _progress: None
    say: Callable[[str], None] = lambda _text: None
    """Report what the user should notice."""
    note: Callable[[str], None] = lambda _text: None
    """Report what went as expected."""
    hushed: Callable[[], AbstractContextManager[None]] = nullcontext
    """Suspend the progress display while a program writes to the terminal."""

    def of(self, service: str) -> Service:
        """Return a service's settings. Raises UsageError if castore.toml does not describe it."""
        found = self.settings.get(service)
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
        settings = self.settings.get(service)
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
        with self.store.lock(service):
            # Also after a failed rollback: without new generations, its damage would only grow.
            interrupted = self.store.has_begun_rollback(service)
            if interrupted and not after_interruption:
                refuse_interrupted(self.store, service)
            filed, noting, warning = filed_under(self.store, service, revision, configured)
            if warning:
                self.say(warning)
            generation = snapshot(
                self.store,
                service,
                parts,
                revision=filed,
                interrupted=interrupted,
                missing_parts=missing_parts,
                leave_out=self.leave_out,
                around=hooks,
                progress=watch,
            )
            failures = list(hooks.failures)
            if interrupted:
                failures.append(f"it is marked, and only its number selects it: {unfinished(service)}")
            elif noting and not (missing_parts and revision is not None):
                # A revision on the command line, with only some of the parts, does not cover the other parts.
                try:
                    self.store.set_live_revision(service, generation.revision)
                except StorageError as error:
                    failures.append(f"that its revision is the live one was not recorded: {error}")
        missed = [(part, path, reason) for part, one in seen.items() for path, reason in one.warnings]
        return Snapshot(generation, failures, missed, missing_parts)

    def origins_of(
        self, target: Generation, configured: Mapping[str, Origin] | None = None, *, consent: bool = False
    ) -> dict[str, Origin]:
        """Return where the parts of a generation belong on this machine, without untrusted origins.

        configured: the parts in castore.toml; None: look them up. consent: trust what the generation records.
        """
        if configured is None:
            settings = self.settings.get(target.service)
            configured = configured_origins(settings) if settings is not None else {}
        recorded = read_details(self.store, target).origins
        return trusted_origins(self.store, target, recorded, dict(configured), self.say, consent=consent)

    def rollback(
        self,
        target: Generation,
        origins: dict[str, Origin] | None = None,
        *,
        take_pre_rollback: bool = True,
        trust_times: bool = False,
        health: bool = True,
        progress: Progress | None = None,
    ) -> RolledBack:
        """Restore a generation of a service in one transaction.

        origins: where its parts belong; None: as `origins_of` returns. take_pre_rollback: take a pre-rollback
        generation first. trust_times: as for `rollback`. health: check the service's health at the end.
        progress: counts the bytes written. Raises CastoreError; the state is then as before, or the message
        says what differs.
        """
        service = target.service
        settings = self.settings.get(service)
        if origins is None:
            origins = self.origins_of(target)
        configured = self._configured(service)
        if settings is not None and not health:
            settings = msgspec.structs.replace(settings, health=())
        with self.store.lock(service):
            live = state_revision(self.store, service, configured).revision
            return rollback(
                self.store,
                target,
                origins,
                self.ownership,
                settings=settings,
                take_pre_rollback=take_pre_rollback,
                trust_times=trust_times,
                revision=live,
                leave_out=self.leave_out,
                progress=self.progress,
                say=self.say,
                tally=progress if progress is not None else Progress(),
            )

    def take(self, service: str) -> Generation:
        """Take a generation of the parts in castore.toml, and report what went wrong. Raises CastoreError."""
        self.of(service)
        taken = self.snapshot(service)
        for failure in taken.failures:
            self.say(f"{service}: {failure}")
        if self.store.older:
            self.say(f"warning: {self.store.older}")
        return taken.generation

    def restore(self, target: Generation, *, take_pre_rollback: bool = True, health: bool = True) -> None:
        """Roll back with the settings of castore.toml; report files that could not be restored exactly."""
        service = target.service
        self.of(service)
        named = replace(self, say=lambda text: self.say(f"{service}: {text}"))
        done = named.rollback(target, take_pre_rollback=take_pre_rollback, health=health)
        if done.problems:
            problems = counted(len(done.problems), "file or attribute", "files or attributes")
            named.say(f"not restored as before: {problems}")

    def _configured(self, service: str) -> str | None:
        """Return the configured revision, or None if its source fails, which must not stop a rollback."""
        settings = self.settings.get(service)
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
