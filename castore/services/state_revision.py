"""Determine the revision that the live state of a service belongs to, which generations are filed under.

The configured revision and the state's revision differ after a system rollback, until the state follows.

- If the configured revision is the one noted for the state, or none is noted, the state belongs to it.
- If no generation has the configured revision, there was a deployment, and the state belongs to it.
- If a generation has it, even a pre-rollback one, the system was rolled back, and the state still belongs to
  the noted revision. `follow` or `rollback` restores the state of the configured revision.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import msgspec

from castore.model.names import short_revision
from castore.services.hosts import own

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.model.generation import Generation
    from castore.store import Store


class StateRevision(msgspec.Struct, frozen=True):
    """The revision of the live state, and the configured one."""

    revision: str
    """The revision that the live state belongs to; empty: unknown."""
    configured: str
    """The configured revision; empty: castore.toml names no source of it."""
    noted: str
    """The revision that this machine noted for the state; empty: none."""

    @property
    def left_behind(self) -> bool:
        """Whether the system returned to an earlier revision, and the state has not followed."""
        return bool(self.configured) and self.configured != self.revision

    def warning(self, service: str) -> str:
        """Return why the state is filed under another revision than the configured one, or an empty text."""
        if not self.left_behind:
            return ""
        state, configured = short_revision(self.revision), short_revision(self.configured)
        return (
            f"the configured revision {configured} was here before, and the state still belongs to revision "
            f"{state}: it is filed under {state} (restore the state of {configured} with: castore follow "
            f"{service}; if the state already belongs to it: castore snapshot {service} "
            f"--revision {shlex.quote(self.configured)})"
        )


def decide(configured: str | None, noted: str | None, here_before: Callable[[str], bool]) -> StateRevision:
    """Apply the rules above. here_before: return whether a generation has a revision."""
    if not configured:
        return StateRevision(noted or "", "", noted or "")
    left_behind = noted and noted != configured and here_before(configured)
    return StateRevision((noted or "") if left_behind else configured, configured, noted or "")


def state_revision(
    store: Store, service: str, configured: str | None, *, report_older: bool = False
) -> StateRevision:
    """Return the revision of a service's live state. Raises StorageError, StaleStoreError.

    report_older: for a snapshot: if the store is older than before, note that in `store.older`, and continue.
    """
    noted = store.state.live_revision(service)
    if configured and noted and noted != configured:
        # A new index has no generations until it is synchronised.
        store.generations.sync(report_older=report_older)
    return decide(configured, noted, lambda revision: newest_of(store, service, revision) is not None)


def filed_under(
    store: Store, service: str, given: str | None, configured: str | None
) -> tuple[str, bool, str]:
    """Return the revision to file a snapshot under, whether to note it for the state, and a warning or "".

    given: the revision on the command line, or None. Raises StorageError.
    """
    if given is None:
        state = state_revision(store, service, configured, report_older=True)
        return (state.revision if configured else ""), True, state.warning(service)
    noted = store.state.live_revision(service)
    warning = ""
    if given and noted and given != noted:
        store.generations.sync(report_older=True)
        if newest_of(store, service, given) is not None:
            warning = (
                f"the state was noted as of revision {short_revision(noted)}, and {short_revision(given)} "
                "was configured before: the snapshot is filed under the revision that was given"
            )
    return given, _is_statement(given, configured), warning


def _is_statement(given: str, configured: str | None) -> bool:
    """Whether a revision on the command line states what the live state belongs to, so that it is noted.

    The configured revision does, and so does any revision if none is configured. Other names are labels only.
    """
    return not configured or given == configured


def after_rollback(store: Store, target: Generation, before: str) -> str:
    """Return the revision that the state belongs to when `target` has been restored.

    before: the one that it belongs to now. A partial generation changes only some parts, so the state still
    belongs to `before`; undoing such a rollback reverts exactly what it changed.
    """
    if target.partial and target.number != store.state.undo_number(target.service):
        return before
    return target.revision


def newest_of(store: Store, service: str, revision: str) -> Generation | None:
    """Return this host's newest complete generation of exactly this revision, or None.

    If only a pre-rollback generation has the state of the revision, return that one.
    """
    mine = own(store, service)
    indexed = map(store.generations.confirmed, filter(mine, store.generations.by_revision(service, revision)))
    found = next(
        (
            generation
            for generation in indexed
            if generation.revision == revision and not generation.interrupted
        ),
        None,
    )
    if found is not None:
        return found
    # After an interrupted rollback, parts belong to two revisions; a partial generation lacks parts.
    reverted = (
        generation
        for generation in store.generations.newest_first(service)
        if generation.pre_rollback
        and not generation.interrupted
        and not generation.partial
        and mine(generation)
    )
    found = next((generation for generation in reverted if generation.revision == revision), None)
    return None if found is None else store.generations.confirmed(found)
