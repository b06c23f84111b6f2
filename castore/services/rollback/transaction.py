"""Carry out the steps of a rollback, or revert them: a journal records each step before it begins."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from castore.errors import CastoreError, NotIntactError, RevertInterruptedError
from castore.model.names import short_revision
from castore.process.runners import run
from castore.process.signal_shield import DeferInterrupts
from castore.process.users import account_of
from castore.services.hooks import check_health
from castore.services.rollback.journal import write_journal
from castore.services.rollback.outcome import clean_up_parts, record_state, revert_parts, ways_out
from castore.services.rollback.recover import forget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castore.model.generation import Generation
    from castore.services.rollback.journal import Journal
    from castore.services.rollback.pre_rollback import PreRollback
    from castore.services.rollback.request import RollbackContext
    from castore.services.rollback.steps import RollbackStep
    from castore.store import Store


class Transaction:
    """The steps of one rollback, one for each part of its journal."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        steps: Sequence[RollbackStep],
        pre_rollback: PreRollback,
        context: RollbackContext,
    ) -> None:
        self.problems: list[tuple[str, bytes, str]] = []
        """(part, path, reason) of what could not be restored exactly, or not be removed."""
        self.changed: tuple[str, ...] = ()
        """The parts that differed from the target."""
        self._store = store
        self._journal = journal
        self._steps = steps
        self._pre_rollback = pre_rollback
        self._service = context.service
        self._say = context.say

    def run(self, target: Generation, created: Sequence[str]) -> None:
        """Carry out all steps, or revert them and raise CastoreError.

        created: paths that the rollback creates next to the live state.
        """
        self._save()
        with ExitStack() as shielded:
            try:
                self._stage(created)
                self._swap(target)
                self._start()
                # From here on, an interrupt would leave a rollback that is done but looks interrupted.
                shielded.enter_context(DeferInterrupts(self._report_completing))
                self._journal.phase = "done"
                self._save()
            except BaseException as error:
                self._fail(error)
                raise
            self._complete()

    def _stage(self, created: Sequence[str]) -> None:
        """Stage all parts, stop the service, and take the pre-rollback generation."""
        for step in self._steps:
            self._report(step, step.stage())
        self._stop()
        states = {part.name: part.state for part in self._journal.parts if part.state is not None}
        self._pre_rollback.take(states, created)
        generation = self._pre_rollback.generation
        self._journal.pre_rollback = generation.number if generation is not None else None
        self._save()

    def _swap(self, target: Generation) -> None:
        """Swap the parts that differ from the target."""
        changed = []
        for step in self._steps:
            stored = target.part(step.journal.name)
            if stored is not None and self._pre_rollback.equals(stored):
                continue
            step.journal.swap_begun = True
            changed.append(step.journal.name)
            self._save()
            self._report(step, step.swap())
        self.changed = tuple(changed)

    def _fail(self, error: BaseException) -> None:
        """Revert all steps, and complete the message of the error. Raises NotIntactError."""
        if self._journal.phase == "done":
            # The journal decides what `recover` does, so it is corrected first.
            self._journal.phase = "started"
            self._save()
        self._revert(error)
        if isinstance(error, CastoreError):
            error.args = (f"{error}; {self._reverted()}",)
        elif isinstance(error, KeyboardInterrupt):
            # Of the whole rollback, and not only of the pre-rollback generation that was interrupted.
            error.__notes__ = [self._reverted()]

    def _reverted(self) -> str:
        """Return which state is live after a rollback failed and was reverted."""
        journal = self._journal
        if journal.phase == "begun":
            return f"nothing was replaced: the state of {journal.service!r} is as before"
        of = f" (revision {short_revision(journal.before)})" if journal.before else ""
        return f"the previous state of {journal.service!r}{of} is restored"

    def _report(self, step: RollbackStep, remarks: Sequence[str]) -> None:
        for line in remarks:
            self._say(f"{step.journal.name}: {line}")

    def _report_completing(self) -> None:
        self._say(
            "all parts are restored, and what they replaced is being removed; interrupt it again to stop that"
        )

    def _report_reverting(self) -> None:
        self._say("the previous state is being restored, which goes on; interrupt it again to stop that")

    def _complete(self) -> None:
        """Remove what the restored parts replaced."""
        journal = self._journal
        try:
            record_state(self._store, journal)
            problems = clean_up_parts(self._store, journal, self._steps)
        except KeyboardInterrupt:
            raise RevertInterruptedError(
                "all parts are restored; removing what they replaced was interrupted: to complete it, "
                f"castore recover {journal.service}"
            ) from None
        # Read the problems after the cleanup, which adds what it could not remove.
        for step in self._steps:
            self.problems += [(step.journal.name, path, reason) for path, reason in step.problems]
        self.problems += problems

    def _save(self) -> None:
        write_journal(self._store, self._journal)

    def _stop(self) -> None:
        self._journal.phase = "stopped"
        self._save()
        self._run(self._service.stop)

    def _start(self) -> None:
        self._journal.phase = "started"
        self._save()
        self._run(self._service.start)
        check_health(self._service)

    def _run(self, program: tuple[str, ...]) -> None:
        if program:
            run(program, timeout=self._service.timeout, account=account_of(self._service.run_as))

    def _revert(self, cause: BaseException) -> None:
        journal, service = self._journal, self._journal.service
        why = str(cause) or "interrupted"
        try:
            with DeferInterrupts(self._report_reverting):
                failed = revert_parts(self._store, journal, self._steps)
        except KeyboardInterrupt:
            raise RevertInterruptedError(
                f"{why}; and restoring the previous state was interrupted: first castore recover {service}"
            ) from cause
        if failed and not journal.any_difference:
            # No live state was changed: what is left over must not block the next command.
            self._say("; ".join(failed))
            self._say(forget(self._store, service))
            return
        if failed:
            number = journal.pre_rollback
            copy = f"; generation {number} holds it" if number else ""
            raise NotIntactError(
                f"{why}; and the previous state is not intact: {'; '.join(failed)}{copy}; "
                + ways_out(service, number)
            ) from cause
