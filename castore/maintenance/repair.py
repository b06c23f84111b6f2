"""Repair of a damaged store: delete damaged objects, and keep everything else.

A damaged pack is rewritten without the records that do not open. Generations stay, and the next snapshot that
still has the lost chunks stores them again. Objects that no key can read are deleted.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec

from castore.errors import DamageError, FormatError, IdentityError, ObjectMissingError, StorageError
from castore.maintenance.repack import RecordMover, record_in, records_of
from castore.maintenance.verify import Verification, damaged_of_two, verify
from castore.model.refs import PackId  # noqa: TC001 - help() evaluates it
from castore.store.format.deletion import open_deletion
from castore.store.format.generation import open_generation
from castore.store.format.names import (
    CONFIGS,
    DELETIONS,
    GENERATIONS,
    REMOVALS,
    full_name,
    is_in,
    pack_name,
    pack_of,
    session_name,
    split_session,
)
from castore.store.format.pack import CHUNK
from castore.store.format.removal import damaged_removals, open_removal
from castore.store.format.session_key import decode_session, session_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.progress import Progress
    from castore.store import Store
    from castore.store.format.pack import PackEntry


class RepairPlan(msgspec.Struct):
    """The changes that a repair would make."""

    found: Verification
    """The verification that found the damage."""
    repaired: list[str] = []
    """Objects stored twice that are rewritten from their intact copy."""
    drop: list[str] = []
    """Objects of which nothing can be read."""
    rewrite: list[PackId] = []
    """Packs that are rewritten without the records that do not open."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.repaired or self.drop or self.rewrite)


class RepairResult(msgspec.Struct):
    """The changes that a repair made."""

    after: Verification
    """The verification of the repaired store."""
    kept_records: int = 0
    """Number of intact records in the packs that were rewritten."""
    lost_records: int = 0


@contextlib.contextmanager
def plan_repair(store: Store, progress: Progress) -> Iterator[RepairPlan]:
    """Read everything, and yield the plan of a repair. Carry it out with `repair`, in the block.

    Every record is read if an identity is available, otherwise only the hashes of packs. What the storage
    refuses to read (a failing disk) is left alone. During the block no other process compacts or repairs the
    store, so the plan stays right. Raises BusyError, KeyRotatedError, StorageError.
    """
    with store.state.upkeep_lock():
        _refuse_other_keys(store)
        readable = _can_read(store)
        planned = _plan(store, verify(store, progress, packs=True, read_data=readable))
        planned.drop += _stray(store) if readable else []
        yield planned


def repair(store: Store, plan: RepairPlan, progress: Progress) -> RepairResult:
    """Drop what cannot be read, according to a plan. Call it in the block of `plan_repair`.

    Rewriting a damaged pack needs an identity. Raises IdentityError, StorageError.
    """
    store.keys.check_may_maintain("repair")
    if plan.repaired:
        store.admin.repair_copies()
    if plan.rewrite and not _can_read(store):
        raise IdentityError(
            f"{pack_name(plan.rewrite[0])} is damaged, and only an identity can say which of its "
            "records are intact: use --identity FILE or CASTORE_IDENTITY"
        )
    kept = lost = 0
    for pack in plan.rewrite:
        kept_here, lost_here = _rewrite(store, pack, progress)
        kept, lost = kept + kept_here, lost + lost_here
    # The records that are kept are now durable in new packs.
    _drop(store, plan)
    store.sync()
    return RepairResult(verify(store, progress), kept, lost)


def _drop(store: Store, plan: RepairPlan) -> None:
    """Delete the objects that are not kept, and the packs that were rewritten."""
    with store.storage.lock(exclusive=True):
        _refuse_other_keys(store)
        # A configuration that was only partly read before may be accepted by now.
        stray = store.keys.stray_configurations()
        dropped = [name for name in plan.drop if not name.startswith(f"{CONFIGS}/") or name in stray]
        generations = [name for name in dropped if is_in(GENERATIONS, name)]
        others = [name for name in dropped if not is_in(GENERATIONS, name)]
        store.generations.forget_unreadable(generations)
        store.storage.delete_all([*others, *(pack_name(pack) for pack in plan.rewrite)])


def _refuse_other_keys(store: Store) -> None:
    """Refuse to judge objects under keys that this machine does not have: they are not damaged.

    Raises KeyRotatedError; MissingError or DamageError for the list of objects that former keys sealed.
    """
    store.keys.refresh()
    if store.keys.writer_key.previous_keys:
        store.keys.writer_key.listed()


def _can_read(store: Store) -> bool:
    try:
        store.keys.identity()
    except IdentityError:
        return False
    return True


def _plan(store: Store, verification: Verification) -> RepairPlan:
    planned = RepairPlan(verification, repaired=sorted(damaged_of_two(store)))
    packs = {*verification.damaged_packs}
    for name in [*store.damaged, *_generations(store), *_sessions(store), *_removals(store)]:
        if not _is_damaged(store, name):
            continue
        if (pack := pack_of(name)) is not None:
            packs.add(pack)
        else:
            planned.drop.append(name)
    for pack in sorted(packs):
        if _entries(store, pack):
            planned.rewrite.append(pack)
        elif _is_damaged(store, pack_name(pack)):
            planned.drop.append(pack_name(pack))
    planned.drop = sorted({*planned.drop})
    return planned


def _stray(store: Store) -> list[str]:
    """Return the configurations that may be dropped because they are not accepted. Only an admin decides so.

    A machine could mistake an admin's next configuration for one: if a machine was revoked in it, the
    configuration does not open.
    """
    is_admin = store.keys.identity().admin.public in store.keys.config.admin_keys
    return store.keys.stray_configurations() if is_admin else []


def _generations(store: Store) -> list[str]:
    return [full_name(GENERATIONS, short) for short in store.storage.list(GENERATIONS)]


def _sessions(store: Store) -> list[str]:
    numbers = session_numbers(store.storage)
    return [session_name(session, number) for session in numbers for number in numbers[session]]


def _removals(store: Store) -> list[str]:
    return list(damaged_removals(store.storage, store.keys.writer_key))


def _is_damaged(store: Store, name: str) -> bool:
    """Return whether an object is damaged. An object of a newer castore version is not."""
    try:
        if (pack := pack_of(name)) is not None:
            store.reader.pack_entries(pack)
        elif is_in(GENERATIONS, name):
            open_generation(name, store.storage.get(name), store.keys.writer_key)
        elif is_in(DELETIONS, name):
            open_deletion(name, store.storage.get(name), store.keys.writer_key)
        elif is_in(REMOVALS, name):
            open_removal(name, store.storage.get(name), store.keys.writer_key)
        elif (session := split_session(name)) is not None:
            session_id, number = session
            decode_session(session_id, number, store.storage.get(name), store.keys.writer_key)
    except DamageError:
        return True
    except (FormatError, StorageError):
        return False
    return False


def _entries(store: Store, pack: PackId) -> list[PackEntry]:
    """Return the entries of a pack: from its footer or, if that is damaged, from the index."""
    try:
        return store.reader.pack_entries(pack)
    except ObjectMissingError:
        return []
    except DamageError:
        return store.index.packs.entries(pack)


def _rewrite(store: Store, pack: PackId, progress: Progress) -> tuple[int, int]:
    """Move the records of a pack that open to a new pack; return how many were kept, and how many lost."""
    mover = RecordMover(store)
    kept = lost = 0
    data = store.storage.get(pack_name(pack))
    try:
        for entries in records_of(_entries(store, pack)):
            sealed = record_in(data, entries)
            if _is_intact(store, pack, entries, sealed):
                mover.add(pack, entries, sealed, progress)
                kept += 1
            else:
                lost += 1
        mover.finish()
    finally:
        mover.abort()
    return kept, lost


def _is_intact(store: Store, pack: PackId, entries: list[PackEntry], sealed: memoryview) -> bool:
    """Return whether a record is intact and holds the right content, as far as its bases exist."""
    first = entries[0]
    if len(sealed) != first.sealed_length or not store.reader.is_intact(pack, first, sealed):
        return False
    for entry, _ in store.reader.broken_entries(pack, entries):
        if entry.kind != CHUNK or all(store.index.locations.contains(list(entry.bases))):
            return False
    return True
