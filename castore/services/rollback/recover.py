"""Revert or complete a rollback that another process began, and that was interrupted.

If the service had been started and was healthy, only the clean-up is left: `castore recover` completes it.
Otherwise it reverts all parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.content.streams import StreamReader
from castore.errors import CastoreError, NotFoundError, NotIntactError
from castore.services.events import event
from castore.services.rollback.journal import Journal, PartJournal, read_journal
from castore.services.rollback.outcome import clean_up_parts, record_state, revert_parts, ways_out
from castore.services.rollback.steps import (
    AddedTreeStep,
    DumpStep,
    RecoveredTreeStep,
    RollbackStep,
    contents_of,
)
from castore.services.sources import recorded_engine

if TYPE_CHECKING:
    from castore.model.generation import Generation
    from castore.store import Store


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
    leftovers = [f"{part.name}: {part.left}" for part in journal.parts if part.left]
    store.state.delete_rollback_journal(service)
    return f"the rollback of {service} is forgotten; it may have left: {'; '.join(leftovers) or 'nothing'}"


def recover(store: Store, service: str) -> str:
    """Complete or revert an interrupted rollback; say which. The caller holds the service's lock.

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
        steps = [_step(store, reader, part, target, pre_rollback) for part in journal.parts]
        if journal.phase == "done":
            record_state(store, journal)
            problems = clean_up_parts(store, journal, steps)
            if problems:
                raise CastoreError("; ".join(f"{name}: {reason}" for name, _, reason in problems))
            return f"{service} is at generation {journal.target}: what it replaced is removed"
        failed = revert_parts(store, journal, steps, later=True)
    if failed:
        raise NotIntactError(
            f"the state of {service!r} is not intact: {'; '.join(failed)}; "
            + ways_out(service, journal.pre_rollback)
        )
    return f"{service} is as it was before the rollback to generation {journal.target}"


def _step(
    store: Store,
    reader: StreamReader,
    part: PartJournal,
    target: Generation | None,
    pre_rollback: Generation | None,
) -> RollbackStep:
    """Return the step that another process has begun. pre_rollback: the pre-rollback generation."""
    if part.state is None:
        journals = store.paths.journals
        if part.move is not None:
            return AddedTreeStep(part, part.move, journals)
        return RecoveredTreeStep(part, journals)
    source = recorded_engine(part.engine, part.settings)
    recorded = target.part(part.name) if target is not None else None
    return DumpStep(source.engine, part.state, part, contents_of(reader, recorded, lambda: pre_rollback))
