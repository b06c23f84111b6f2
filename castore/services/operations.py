"""Snapshots and restores of configured services, as guard and follow do them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from castore.errors import CastoreError, UsageError
from castore.model.counting import count as counted
from castore.progress import Progress
from castore.services.hooks import Hooks
from castore.services.recorded import trusted_origins
from castore.services.revision import current
from castore.services.rollback.execute import roll_back
from castore.services.rollback.journal import refuse_interrupted
from castore.services.rollback.plan import read_details
from castore.services.snapshot import configured_origins, snapshot, sources_of
from castore.services.state_revision import newest_of, state_revision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
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
