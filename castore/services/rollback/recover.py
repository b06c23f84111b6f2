"""Undo or complete a rollback, in the process that began it or, after a kill, in another one.

`castore recover` undoes an interrupted rollback. If all parts had been swapped, it completes the rollback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.content.streams import StreamReader
from castore.errors import CastoreError, NotFoundError, NotIntactError
from castore.process.runners import run
from castore.process.users import account_of
from castore.services.events import event
from castore.services.rollback.journal import Journal, read_journal, write_journal
from castore.services.rollback.steps import (
    DumpStep,
    RecoveredTreeStep,
    RollbackStep,
    TreeRemoval,
    contents_of,
)
from castore.services.sources import recorded_engine

if TYPE_CHECKING:
    from castore.store import Store


def undo(store: Store, journal: Journal, changes: list[RollbackStep], *, later: bool = False) -> list[str]:
    """Restore the previous state; return what failed. The journal is deleted if nothing failed.

    later: another process was interrupted, and the service that it stopped may have been started since.
    """
    failed = []
    runs = journal.phase == "started"
    if later and journal.phase == "stopped":
        runs = any(part.is_changed for part in journal.parts)
    if runs and journal.stop:
        try:
            run(journal.stop, timeout=journal.timeout, account=account_of(journal.run_as))
        except CastoreError as error:
            failed.append(str(error))
    left = []
    for part, change in reversed(list(zip(journal.parts, changes, strict=True))):
        if part.reverted:
            continue
        try:
            change.revert()
            # Never twice: from now on the part belongs to the service, which may change it.
            part.reverted = True
            write_journal(store, journal)
        except (CastoreError, OSError) as error:
            left.append(f"the previous state of {part.name!r} could not be restored: {error}")
    failed += left
    if left and journal.changed and journal.start:
        # A service that runs on an inconsistent state does more harm than one that is down.
        failed.append(f"so {journal.service!r} is not started")
    elif journal.phase != "begun" and journal.start:
        try:
            run(journal.start, timeout=journal.timeout, account=account_of(journal.run_as))
        except CastoreError as error:
            failed.append(str(error))
    if not failed:
        store.state.delete_rollback_journal(journal.service)
    return failed


def finish(store: Store, journal: Journal, changes: list[RollbackStep]) -> list[tuple[str, bytes, str]]:
    """Delete what the rollback replaced; return (part, path, reason) of what could not be deleted.

    The journal stays if `castore recover` can try again, which is so for dumps.
    """
    problems = []
    left = False
    for part, change in zip(journal.parts, changes, strict=True):
        try:
            if part.swapped:
                change.cleanup()
            else:
                change.revert()  # the part was equal to the target: delete what was staged
        except (CastoreError, OSError) as error:
            problems.append((part.name, b".", f"the state that was replaced cannot be removed: {error}"))
            # Files of a tree that are left over would fail again in the next try. They must not block the
            # next command.
            left = left or isinstance(change, DumpStep)
    if not left:
        store.state.delete_rollback_journal(journal.service)
    return problems


def remember(store: Store, journal: Journal) -> None:
    """Record, after a rollback, the revision of the state and the generation that `--undo` restores."""
    store.state.set_live_revision(journal.service, journal.revision)
    if journal.changed or (journal.pre_rollback is not None and journal.before != journal.revision):
        store.state.set_undo_number(journal.service, journal.pre_rollback)


def ways_out(service: str, pre_rollback: int | None) -> str:
    """Return the commands that continue where the previous state could not be restored."""
    then = f", then castore rollback {service} --to {pre_rollback or 'NUMBER'}"
    return (
        f"when the cause is fixed: castore recover {service}; if that cannot succeed: castore recover "
        f"--forget {service}{then} (a dump that a program restores: with another --restore)"
    )


def forget(store: Store, service: str) -> str:
    """Delete the journal of an interrupted rollback and change nothing else; say what the rollback left.

    Raises NotFoundError if there is none.
    """
    try:
        journal = read_journal(store, service)
    except CastoreError:
        store.state.delete_rollback_journal(service)
        return (
            f"the rollback of {service} is forgotten; its journal is damaged or of another version, so it is "
            "not known what the rollback left next to its parts: look there for names with 'castore' in them"
        )
    if journal is None:
        raise NotFoundError(f"no rollback of {service!r} was interrupted on this machine")
    left = [f"{part.name}: {part.left}" for part in journal.parts if part.left]
    store.state.delete_rollback_journal(service)
    return f"the rollback of {service} is forgotten; it may have left: {'; '.join(left) or 'nothing'}"


def recover(store: Store, service: str) -> str:
    """Complete or undo an interrupted rollback; say which. The caller holds the service's lock.

    Raises NotFoundError if there is none, CastoreError if what it replaced cannot be removed, and
    NotIntactError if the state is still not intact.
    """
    journal = read_journal(store, service)
    if journal is None:
        raise NotFoundError(f"no rollback of {service!r} was interrupted on this machine")
    with event(store, "recover", service) as note:
        note.number, note.revision = journal.target, journal.revision
        note.text = _recover(store, service, journal)
    return note.text


def _recover(store: Store, service: str, journal: Journal) -> str:
    target = store.generations.get(service, journal.target)
    number = journal.pre_rollback
    pre_rollback = store.generations.get(service, number) if number is not None else None
    with StreamReader(store) as reader:
        changes: list[RollbackStep] = []
        for part in journal.parts:
            if part.state is None:
                journals = store.places.journals
                tree = RecoveredTreeStep(part, journals)
                changes.append(tree if part.move is None else TreeRemoval(part, part.move, journals))
                continue
            source = recorded_engine(part.engine, part.settings)
            found = target.part(part.name) if target is not None else None
            contents = contents_of(reader, found, lambda: pre_rollback)
            changes.append(DumpStep(source.engine, part.state, part, contents))
        if journal.phase == "done":
            remember(store, journal)
            problems = finish(store, journal, changes)
            if problems:
                raise CastoreError("; ".join(f"{name}: {reason}" for name, _, reason in problems))
            return f"{service} is at generation {journal.target}: what it replaced is removed"
        failed = undo(store, journal, changes, later=True)
    if failed:
        raise NotIntactError(
            f"the state of {service!r} is not intact: {'; '.join(failed)}; "
            + ways_out(service, journal.pre_rollback)
        )
    return f"{service} is as it was before the rollback to generation {journal.target}"
