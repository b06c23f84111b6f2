"""Let the state of services follow the configured revision, as at every boot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from castore.errors import UsageError
from castore.model.names import short_revision
from castore.services.events import event
from castore.services.revision import current
from castore.services.state_revision import state_revision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castore.model.generation import Generation
    from castore.services.operations import ServiceOperations


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


def follow(work: ServiceOperations, services: Sequence[str], *, dry_run: bool = False) -> list[Followed]:
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
                work.restore(generation)
        found.append(Followed(service, now, before, generation, restoring))
    return found
