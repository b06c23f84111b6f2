"""End a rollback, in the process that began it or, after a kill, in another one.

Either all parts are reverted to the previous state, or what the rollback replaced is cleaned up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.errors import CastoreError
from castore.process.runners import run
from castore.process.users import account_of
from castore.services.rollback.journal import Journal, write_journal
from castore.services.rollback.steps import DumpStep, RollbackStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castore.store import Store


def revert_parts(
    store: Store, journal: Journal, steps: Sequence[RollbackStep], *, later: bool = False
) -> list[str]:
    """Restore the previous state; return what failed. The journal is deleted if nothing failed.

    later: another process was interrupted, and the service that it stopped may have been started since.
    """
    failed = []
    runs = journal.phase == "started"
    if later and journal.phase == "stopped":
        runs = any(part.may_be_changed for part in journal.parts)
    if runs:
        failed += _run(journal.stop, journal)
    unreverted = []
    for step in reversed(steps):
        if step.journal.reverted:
            continue
        try:
            step.revert()
            # Never twice: from now on the part belongs to the service, which may change it.
            step.journal.reverted = True
            write_journal(store, journal)
        except (CastoreError, OSError) as error:
            unreverted.append(f"the previous state of {step.journal.name!r} could not be restored: {error}")
    failed += unreverted
    if unreverted and journal.any_difference and journal.start:
        # A service that runs on an inconsistent state does more harm than one that is down.
        failed.append(f"so {journal.service!r} is not started")
    elif journal.phase != "begun":
        failed += _run(journal.start, journal)
    if not failed:
        store.state.delete_rollback_journal(journal.service)
    return failed


def _run(program: tuple[str, ...], journal: Journal) -> list[str]:
    """Run `stop` or `start` of the service, if there is such a program; return what failed."""
    try:
        if program:
            run(program, timeout=journal.timeout, account=account_of(journal.run_as))
    except CastoreError as error:
        return [str(error)]
    return []


def clean_up_parts(
    store: Store, journal: Journal, steps: Sequence[RollbackStep]
) -> list[tuple[str, bytes, str]]:
    """Delete what the rollback replaced; return (part, path, reason) of what could not be deleted.

    The journal stays if `castore recover` can try again, which is so for dumps.
    """
    problems = []
    is_incomplete = False
    for step in steps:
        try:
            if step.journal.swap_begun:
                step.cleanup()
            else:
                step.revert()  # the part was equal to the target: delete what was staged
        except (CastoreError, OSError) as error:
            reason = f"the state that was replaced cannot be removed: {error}"
            problems.append((step.journal.name, b".", reason))
            # Files of a tree that are left over would fail again in the next try. They must not block the
            # next command.
            is_incomplete = is_incomplete or isinstance(step, DumpStep)
    if not is_incomplete:
        store.state.delete_rollback_journal(journal.service)
    return problems


def record_state(store: Store, journal: Journal) -> None:
    """Record, after a rollback, the revision of the state and the generation that `--undo` restores."""
    store.state.set_live_revision(journal.service, journal.revision)
    if journal.any_difference or (journal.pre_rollback is not None and journal.before != journal.revision):
        store.state.set_undo_number(journal.service, journal.pre_rollback)


def ways_out(service: str, pre_rollback: int | None) -> str:
    """Return the commands that continue where the previous state could not be restored."""
    then = f", then castore rollback {service} --to {pre_rollback or 'NUMBER'}"
    return (
        f"when the cause is fixed: castore recover {service}; if that cannot succeed: castore recover "
        f"--forget {service}{then} (a dump that a program restores: with another --restore)"
    )
