"""Make the state of services match their configured revisions, for example at every boot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from castore.errors import ProgramError, UsageError
from castore.model.names import short_revision
from castore.services.events import event
from castore.services.revision import current
from castore.services.state_revision import state_revision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castore.model.generation import Generation
    from castore.services.operations import ServiceOperations


class Followed(msgspec.Struct, frozen=True):
    """What `follow` found and did for one service."""

    service: str
    revision: str
    """The configured revision."""
    before: str
    """The revision that the state belonged to; empty: not known."""
    generation: Generation | None = None
    """The newest generation of the configured revision, if the state belongs to another one."""
    restored: bool = False
    """Whether that generation was restored."""

    @property
    def _selector(self) -> str:
        """The selector of the generation: only its number selects a pre-rollback generation."""
        assert self.generation is not None
        if self.generation.pre_rollback:
            return f"{self.generation.number}"
        return f"'={short_revision(self.revision)}'"

    @property
    def text(self) -> str:
        """What happened, for people."""
        short = short_revision(self.revision)
        if self.revision == self.before:
            return f"{self.service}: revision {short}, as before"
        if self.generation is None:
            unknown = "is noted: it was not known which revision the state belonged to"
            what = "is new, and noted" if self.before else unknown
            return f"{self.service}: revision {short} {what}"
        what = "restored" if self.restored else "would be restored: castore rollback"
        where = f"{self.service}@{self.generation.number}"
        return f"{self.service}: revision {short} was here before; its newest generation {where} " + (
            f"is {what}" if self.restored else f"{what} {self.service} --to {self._selector}"
        )


def after_rollback_note(work: ServiceOperations, target: Generation) -> str:
    """Return why the next `follow` would replace the state that was rolled back to; empty: it would not."""
    settings = work.described(target.service)
    if settings is None or settings.follow != "restore":
        return ""
    try:
        now = current(settings.revision, settings.timeout)
    except (ProgramError, UsageError):
        return ""
    if not now or now == target.revision:
        return ""
    short = short_revision(now)
    return (
        f"the configured revision is {short}, and the state is of another now: the next 'castore follow "
        f"{target.service}' restores the newest generation of {short}, if any exists"
    )


def follow(work: ServiceOperations, services: Sequence[str], *, dry_run: bool = False) -> list[Followed]:
    """Make the state of services match their configured revisions, which may have returned to earlier ones.

    dry_run: change nothing. Raises CastoreError at the first service that fails; later ones are unchanged.
    """
    results = []
    for service in services:
        settings = work.of(service)
        now = current(settings.revision, settings.timeout)
        if now is None:
            raise UsageError(
                f"castore.toml names no source of the revision of {service!r}: add the key 'revision' to it"
            )
        # On a new machine it is not known which revision the state belongs to: it is not replaced unasked.
        state = state_revision(work.store, service, now)
        before = state.noted
        if now == before:
            results.append(Followed(service, now, before))
            continue
        generation = work.newest_of(service, now) if state.left_behind else None
        if generation is None:
            if not dry_run:
                with event(work.store, "follow", service) as note:
                    note.revision, note.text = now, "a new revision"
                    work.store.state.set_live_revision(service, now)
            results.append(Followed(service, now, before))
            continue
        restoring = settings.follow == "restore" and not dry_run
        if restoring:
            with event(work.store, "follow", service) as note:
                note.of(generation)
                note.text = f"revision {short_revision(now)} is back"
                work.roll_back_configured(generation)
        results.append(Followed(service, now, before, generation, restoring))
    return results
