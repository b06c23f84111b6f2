"""The pre-rollback generation: a snapshot of the state that a rollback replaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from castore.services.hooks import Hooks
from castore.services.nested_parts import below
from castore.services.rollback.plan import present_sources
from castore.services.rollback.request import RESTORING
from castore.services.snapshot import SnapshotRequest, snapshot
from castore.services.sources import EngineSource, Tree

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from castore.engines.state import EngineState
    from castore.model.generation import Generation, Part
    from castore.progress import Progress
    from castore.services.rollback.plan import RollbackPlan
    from castore.services.rollback.request import RollbackContext, RollbackRequest
    from castore.services.sources import Source
    from castore.store import Store


class PreRollback:
    """The pre-rollback generation of one rollback, as the steps of the rollback use it."""

    def __init__(
        self,
        store: Store,
        request: RollbackRequest,
        context: RollbackContext,
        plan: RollbackPlan,
        progress: Progress,
    ) -> None:
        """progress: of the rollback, which is shown again after the snapshot."""
        self.generation: Generation | None = None
        """The generation; None: it was not taken yet, or none is taken."""
        self._store = store
        self._request = request
        self._context = context
        self._plan = plan
        self._progress = progress

    def take(self, states: Mapping[str, EngineState], created: Sequence[str]) -> None:
        """Take the generation. The service is stopped, so no later change is missed. Raises CastoreError.

        states: those of the engines, by part. created: paths that the rollback created next to the live
        state, which trees leave out.
        """
        if not self._request.take_pre_rollback:
            return
        context, target = self._context, self._plan.target
        hooks = Hooks.of(context.service) if not context.service.stop else Hooks(())
        sources, absent = present_sources(self._plan, self._request.origins)
        if sources or absent.kinds:
            # On a new machine, what exists at the paths of the service is the state of no revision. 'follow'
            # would restore it if it were filed under the configured one.
            empty = bool(absent.kinds) and self._store.state.live_revision(target.service) is None
            request = SnapshotRequest(
                service=target.service,
                sources={name: self._stopped(name, one, states, created) for name, one in sources.items()},
                revision="" if empty else context.revision,
                pre_rollback=True,
                missing_parts=self._plan.untouched,
                leave_out=context.leave_out,
                hooks=hooks,
                absent=absent,
                watch=context.watch,
            )
            self.generation = snapshot(self._store, request)
        for failure in hooks.failures:
            context.say(failure)
        context.watch(RESTORING, self._progress)

    def _stopped(
        self, name: str, source: Source, states: Mapping[str, EngineState], created: Sequence[str]
    ) -> Source:
        """Return the source of a part while the service is stopped."""
        if isinstance(source, Tree):
            return msgspec.structs.replace(source, own=below(source.path, created))
        if isinstance(source, EngineSource) and self._context.service.stop and name in states:
            return EngineSource(source.name, source.engine.when_stopped(states[name]))
        return source

    def equals(self, part: Part) -> bool:
        """Whether the live state of a part of the target, as the generation has it, equals the target's."""
        before = self.generation.part(part.name) if self.generation is not None else None
        if before is None or before.skipped_files:
            return False
        return (before.kind, before.root) == (part.kind, part.root)

    def may_delete(self, name: str) -> bool:
        """Whether the live state of a part may be deleted.

        It may if the generation has all of it, or if no generation was taken.
        """
        part = self.generation.part(name) if self.generation is not None else None
        return self.generation is None or (part is not None and not part.skipped_files)
