"""Compaction: delete packs that no generation references, and rewrite packs that are partly unused.

Compaction needs only the writer key: it moves records as they are, sealed. It first makes a plan, which is
data, and then carries it out in steps. Each step leaves an intact store, even if it is interrupted: moved
records are durable in their new pack before the old pack is deleted. Before a pack is deleted, it is checked
again against the generations that exist at that moment.

Snapshots may run at the same time. If the storage has a lock, packs are deleted under the exclusive lock. A
snapshot holds the lock shared while it checks that everything it references still exists, and commits. If the
storage has no lock, packs are first listed in `deletions/`. A later run deletes them, after a grace time in
which every commit under way has ended. A snapshot does not reference these packs when it commits.

`compaction_plan` makes the plan; `needed` decides what generations need of packs.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import msgspec
from blake3 import blake3

from castore.errors import DamageError, FormatError, ObjectMissingError
from castore.maintenance.compaction_plan import Plan, Planner
from castore.maintenance.limits import GRACE_SECONDS, MAX_UNUSED, UNFINISHED_SECONDS
from castore.maintenance.needed import NeededRecords, refuse_damage
from castore.maintenance.repack import RecordMover, record_in
from castore.model.refs import PackId, SessionId
from castore.store.format.deletion import pending_deletions, write_deletion
from castore.store.format.names import GENERATIONS, PACKS, SESSIONS, pack_name, session_name
from castore.store.format.session_key import session_numbers

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.model.generation import Generation
    from castore.model.refs import RecordId
    from castore.progress import Progress
    from castore.store import Store

_FEW: Final = 64
"""Up to this number of deleted packs, the index drops their entries one by one."""
_STEP_BYTES: Final = 1 << 30
"""Bytes written before old packs are deleted: compaction needs no more free space than this."""
_SESSION_SECONDS: Final = 7 * 86400
"""A session without records keeps its key this long: it may be about to write its first pack."""


class Compacted(msgspec.Struct):
    """The changes that a compaction made. Lengths are in bytes."""

    plan: Plan
    removed: int = 0
    """Number of packs deleted."""
    removed_bytes: int = 0
    written_bytes: int = 0
    pending_deletion: int = 0
    """Number of packs that a later run deletes."""
    sessions: int = 0
    """Number of sessions removed because no record of them is left."""
    damaged: list[str] = []
    """Packs that were to be rewritten but are damaged: they are left as they are."""


def plan(
    store: Store,
    *,
    max_unused: float = MAX_UNUSED,
    unfinished_seconds: float = UNFINISHED_SECONDS,
    without: Callable[[Generation], bool] | None = None,
) -> Plan:
    """Return what `compact` would do.

    without: selects generations that the plan treats as deleted. Raises DamageError, StorageError.
    """
    return Planner(store, _needed_now(store, without), max_unused, unfinished_seconds).plan()


def compact(
    store: Store,
    progress: Progress,
    *,
    max_unused: float = MAX_UNUSED,
    grace_seconds: float = GRACE_SECONDS,
    unfinished_seconds: float = UNFINISHED_SECONDS,
) -> Compacted:
    """Reclaim the space of what no generation needs. One compaction at a time runs on a machine.

    grace_seconds: time from the listing of a pack in `deletions/` to its deletion if the storage has no lock.
    unfinished_seconds: time for which the packs of an uncommitted snapshot are kept, counted from when this
    machine first saw its session. progress: counts the bytes of packs read and written. If compaction is
    interrupted, the store stays intact, and the next run continues. Raises DamageError if damage makes it
    unknown what is needed; BusyError, StorageError.
    """
    store.keys.check_may_maintain("compact")
    with store.state.upkeep_lock():
        needed = _needed_now(store)
        planned = Planner(store, needed, max_unused, unfinished_seconds).plan()
        return _Compaction(store, needed, planned).run(progress, grace_seconds)


def _needed_now(store: Store, without: Callable[[Generation], bool] | None = None) -> NeededRecords:
    """Bring the index up to date, and return what is to find out what generations need."""
    store.keys.refresh()
    store.sync(reread=True)
    refuse_damage(store)
    return NeededRecords(store, without)


class _Compaction:
    """Carries out a plan."""

    def __init__(self, store: Store, needed: NeededRecords, planned: Plan) -> None:
        self._store = store
        self._needed = needed
        self._mover = RecordMover(store)
        self._done = Compacted(planned)

    def run(self, progress: Progress, grace_seconds: float) -> Compacted:
        self._needed.refuse_lost()
        self._delete_pending(grace_seconds)
        self._delete(self._done.plan.dead)
        try:
            self._rewrite(progress)
        finally:
            self._mover.abort()
        self._remove_sessions()
        return self._done

    def _rewrite(self, progress: Progress) -> None:
        """Rewrite packs in steps; make each step durable, then delete the packs it replaces."""
        step: dict[PackId, int] = {}
        progress.total = sum(rewrite.length for rewrite in self._done.plan.rewrites)
        for rewrite in self._done.plan.rewrites:
            try:
                data = self._store.storage.get(pack_name(rewrite.pack))
            except ObjectMissingError:
                continue  # another machine compacts at the same time
            progress.read += len(data)
            # A moved record gets a new pack name, which would then vouch for damaged bytes.
            if blake3(data).digest() != rewrite.pack:
                name = pack_name(rewrite.pack)
                self._done.damaged.append(f"{name} is damaged: its bytes differ from those that were written")
                continue
            for entries in self._needed.records(rewrite.pack):
                self._mover.add(rewrite.pack, entries, record_in(data, entries), progress)
            step[rewrite.pack] = rewrite.length
            if self._mover.written >= _STEP_BYTES:
                self._end_step(step)
                step = {}
        self._end_step(step)

    def _end_step(self, step: dict[PackId, int]) -> None:
        """Finish the packs that records were moved to, and delete the packs that they were moved from."""
        self._done.written_bytes += self._mover.finish()
        self._mover = RecordMover(self._store)
        self._delete(step)

    def _delete(self, packs: dict[PackId, int]) -> None:
        """Delete packs, except those that a newer generation needs."""
        if not packs:
            return
        with self._store.storage.lock(exclusive=True) as held:
            if held:
                self._delete_unneeded(packs)
                return
        # Objects that a replaced writer key sealed are not accepted.
        self._store.keys.refresh()
        write_deletion(self._store.storage, self._store.keys.writer_key, packs)
        self._done.pending_deletion += len(packs)
        self._store.sync()

    def _delete_unneeded(self, packs: dict[PackId, int]) -> None:
        """Check packs again, and delete those that are not needed. The caller keeps commits out."""
        store = self._store
        # Records that were moved under a writer key that has been replaced since are not accepted.
        store.keys.refresh()
        # A machine that lost its state may have reused the number of another generation.
        store.sync(reread=True)
        refuse_damage(store)
        # A killed castore may have created or deleted these objects without making that durable.
        for folder in (GENERATIONS, SESSIONS, PACKS):
            store.storage.sync_dir(folder)
        self._needed.mark()
        self._needed.refuse_lost()
        unneeded = self._needed.unneeded(set(packs))
        ids = self._ids_of(unneeded)
        store.storage.delete_all(pack_name(pack) for pack in sorted(unneeded))
        store.index.packs.remove(unneeded, ids)
        self._done.removed += len(unneeded)
        self._done.removed_bytes += sum(packs[pack] for pack in unneeded)

    def _ids_of(self, packs: set[PackId]) -> dict[PackId, list[RecordId]] | None:
        """Return what packs hold that are about to be deleted; None where scanning the index is faster."""
        if len(packs) > _FEW:
            return None
        ids_of = {}
        for pack in packs:
            with contextlib.suppress(ObjectMissingError, DamageError, FormatError):
                ids_of[pack] = [entry.id for entry in self._store.reader.pack_entries(pack)]
        return ids_of

    def _delete_pending(self, grace_seconds: float) -> None:
        """Delete packs whose pending deletion is old enough."""
        store = self._store
        with store.storage.lock(exclusive=True) as held:
            pending = pending_deletions(store.storage, store.keys.writer_key)[0]
            wanted = int(grace_seconds * 10**9)
            ages = store.state.first_seen.observe(
                "deletions", [deletion.name for deletion in pending], wanted
            )
            for deletion in pending:
                if not held and ages[deletion.name] < wanted:
                    self._done.pending_deletion += len(deletion.packs)
                    continue
                lengths = dict(store.index.packs.lengths())
                self._delete_unneeded({pack: lengths[pack] for pack in deletion.packs if pack in lengths})
                # Packs that turned out to be needed may be referenced again.
                store.storage.delete_all([deletion.name])
            store.sync()

    def _remove_sessions(self) -> None:
        """Remove the keys of sessions of which no record has been left for days.

        Without a lock they are kept: they are small, and a session may be about to write its first pack.
        """
        store, wanted = self._store, _SESSION_SECONDS * 10**9
        with store.storage.lock(exclusive=True) as held:
            if not held:
                return
            store.sync()
            refuse_damage(store)
            # Packs of sessions that a generation names may be missing only temporarily.
            committed = (SessionId(generation.session) for generation in store.generations.iterate())
            used = store.index.packs.sessions().union(committed)
            numbers = session_numbers(store.storage)
            idle = {session.hex(): session for session in numbers.keys() - used}
            ages = store.state.first_seen.observe("sessions", idle, wanted)
            for session in (idle[name] for name, age in ages.items() if age >= wanted):
                store.storage.delete_all(session_name(session, number) for number in numbers[session])
                self._done.sessions += 1
