"""Compaction: delete packs that no generation references, and rewrite packs that are partly unused.

Compaction needs only the writer key: it moves records as they are, sealed. It first makes a plan, which is
data, and then carries it out in steps. Each step leaves an intact store, even if it is interrupted: moved
records are durable in their new pack before the old pack is deleted. Before a pack is deleted, it is checked
again against the generations that exist at that moment.

Snapshots may run at the same time. If the storage has a lock, packs are deleted under the exclusive lock. A
snapshot holds the lock shared while it checks that everything it references still exists, and commits. If the
storage has no lock, packs are first listed in `deletions/`. A later run deletes them, after a grace time in
which every commit under way has ended. A snapshot does not reference these packs when it commits.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Final

import msgspec
from blake3 import blake3

from castore.errors import DamageError, FormatError, ObjectMissingError
from castore.kernel.id_set import IdSet
from castore.maintenance.limits import GRACE_SECONDS, MAX_UNUSED, UNFINISHED_SECONDS
from castore.maintenance.repack import Mover, record_in, records_of
from castore.model.counting import count as counted
from castore.model.refs import PackId, SessionId
from castore.store.format.deletion import pending_deletions, write_deletion
from castore.store.format.envelope import Refusal
from castore.store.format.pack import CHUNK, PACK_BYTES, pack_name
from castore.store.format.session_key import session_name, session_numbers
from castore.store.reachability import Walk, mark, roots_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.model.generation import Generation
    from castore.model.refs import RecordId
    from castore.progress import Progress
    from castore.store import Store
    from castore.store.format.pack import PackEntry

_SMALL: Final = PACK_BYTES // 16
_FEW: Final = 64
"""Up to this number of deleted packs, the index drops their entries one by one."""
_MANY_SMALL: Final = 16
"""From this number on, small packs are merged: each nightly snapshot leaves one."""
_STEP_BYTES: Final = 1 << 30
"""Bytes written before old packs are deleted: compaction needs no more free space than this."""
_SESSION_SECONDS: Final = 7 * 86400
"""A session without records keeps its key this long: it may be about to write its first pack."""


class Rewrite(msgspec.Struct, frozen=True):
    """A pack of which some records are needed."""

    pack: PackId
    length: int
    kept: int
    """Total length of its records that are needed, in bytes."""


class Plan(msgspec.Struct):
    """What a compaction would do. Lengths are in bytes."""

    generations: int = 0
    """Number of generations that were examined."""
    packs: int = 0
    stored: int = 0
    """Total length of all packs."""
    dead: dict[PackId, int] = {}
    """Packs of which nothing is needed, with their lengths."""
    unfinished: dict[PackId, int] = {}
    """Packs that are kept, with their lengths, because an unfinished snapshot stored records in them."""
    rewrites: list[Rewrite] = []
    lost: int = 0
    """Nodes that generations reference and that are in no pack."""

    @property
    def written(self) -> int:
        """Bytes that are moved to new packs."""
        return sum(one.kept for one in self.rewrites)

    @property
    def freed(self) -> int:
        """Bytes by which the store shrinks, except for footers and padding."""
        return sum(self.dead.values()) + sum(one.length for one in self.rewrites) - self.written


class Compacted(msgspec.Struct):
    """What a compaction did. Lengths are in bytes."""

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
    unfinished: float = UNFINISHED_SECONDS,
    without: Callable[[Generation], bool] | None = None,
) -> Plan:
    """Return what `compact` would do.

    without: selects generations that the plan treats as deleted. Raises DamageError, StorageError.
    """
    return _Compaction(store, max_unused, unfinished, without).plan()


def compact(
    store: Store,
    tally: Progress,
    *,
    max_unused: float = MAX_UNUSED,
    grace: float = GRACE_SECONDS,
    unfinished: float = UNFINISHED_SECONDS,
) -> Compacted:
    """Reclaim the space of what no generation needs. One compaction at a time runs on a machine.

    grace: seconds from the listing of a pack in `deletions/` to its deletion, if the storage has no lock.
    unfinished: seconds for which the packs of an uncommitted snapshot are kept, counted from when this
    machine first saw its session. tally: counts the bytes of packs read and written. If compaction is
    interrupted, the store stays intact, and the next run continues. Raises DamageError if damage makes it
    unknown what is needed; BusyError, StorageError.
    """
    store.check_may_maintain("compact")
    with store.upkeep_lock():
        return _Compaction(store, max_unused, unfinished).run(tally, grace)


class _Compaction:
    def __init__(
        self,
        store: Store,
        max_unused: float,
        unfinished: float,
        without: Callable[[Generation], bool] | None = None,
    ) -> None:
        self._store = store
        self._max_unused = max_unused
        self._unfinished = unfinished
        self._without = without
        self._walk = Walk(store)
        self._mover = Mover(store)
        store.refresh_config()
        store.sync(reread=True)
        self._refuse_damage()
        self._marks = IdSet(store.index.count("chunks") + store.index.count("nodes"))

    def _refuse_damage(self) -> None:
        """Raise DamageError if packs or generations are damaged: what they hold or need is not known."""
        found = self._store.damaged.items()
        if damaged := sorted(name for name, reason in found if not isinstance(reason, Refusal)):
            more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            raise DamageError(
                f"nothing was removed: {damaged[0]}{more} cannot be read, so it is unknown what generations "
                "need ('castore verify' lists the damage, 'castore repair' drops what cannot be read)"
            )

    def _refuse_lost(self) -> None:
        """Raise DamageError if nodes are missing: what they reference is unknown; their packs may return."""
        if self._walk.lost:
            lost = counted(len(self._walk.lost), "node")
            raise DamageError(
                f"nothing was removed: {lost} that generations reference cannot be found in a pack, so it is "
                "unknown what generations need ('castore verify' says which, 'castore forget' deletes "
                "generations that cannot be restored)"
            )

    def _mark(self) -> int:
        """Mark everything that the current generations need; return the number of generations."""
        count = 0
        for generation in self._store.all_generations():
            if self._without is None or not self._without(generation):
                mark(self._walk, roots_of(generation), self._marks)
                count += 1
        # Always: newer packs may encode a chunk that was marked earlier as a delta of other bases.
        self._store.index.liveness.mark_bases(self._marks)
        return count

    def plan(self) -> Plan:
        generations = self._mark()
        packs = self._store.index.liveness.live_bytes(self._marks)
        found = Plan(generations, len(packs), sum(length for length, _, _ in packs.values()))
        found.lost = len(self._walk.lost)
        young = self._young_sessions()
        # Read the footer once of each pack that may be deleted or rewritten.
        held = {
            pack
            for pack, (length, records, live) in packs.items()
            if not live or length < _SMALL or records - live > self._max_unused * records
            if self._holds(pack, young)
        }
        little = (pack for pack, (length, _, live) in packs.items() if live and length < _SMALL)
        small = sum(pack not in held for pack in little) >= _MANY_SMALL
        for pack, (length, records, live) in packs.items():
            few = (small and length < _SMALL) or records - live > self._max_unused * records
            if (few or not live) and pack in held:
                found.unfinished[pack] = length
            elif not live:
                found.dead[pack] = length
            elif few:
                if (kept := self._kept_bytes(pack)) is None:
                    continue
                if (small and length < _SMALL) or records - kept > self._max_unused * records:
                    found.rewrites.append(Rewrite(pack, length, kept))
        self._plan_distrusted(found, young)
        # Rewrite first what frees most for the bytes it writes.
        found.rewrites.sort(key=lambda one: one.kept / one.length)
        return found

    def _plan_distrusted(self, found: Plan, young: set[SessionId]) -> None:
        """Add packs of revoked machines, once no generation needs anything of them."""
        lengths = dict(self._store.packs())
        for pack in self._store.distrusted & lengths.keys():
            if not self._holds(pack, young) and not self._is_needed(pack, {pack}):
                found.dead[pack] = lengths[pack]

    def _young_sessions(self) -> set[SessionId]:
        """Return the sessions of snapshots that may still be running and may still commit.

        These are the sessions that this machine first saw recently, and that no generation names or named
        before it was deleted.
        """
        store, wanted = self._store, int(self._unfinished * 10**9)
        # List sessions after reading `ended`: the listing then has every ended session that still exists.
        ended = store.index.generations.ended_sessions()
        numbers = session_numbers(store.storage).keys()
        store.index.generations.forget_ended(ended - numbers)
        known = ended.union(one.session for one in store.all_generations())
        ages = store.first_seen.observe("unfinished", [one.hex() for one in numbers - known], wanted)
        return {SessionId(bytes.fromhex(one)) for one, age in ages.items() if age < wanted}

    def _holds(self, pack: PackId, sessions: set[SessionId]) -> bool:
        """Return whether a pack has records of one of these sessions."""
        if not sessions:
            return False
        try:
            return any(entry.session in sessions for entry in self._store.pack_entries(pack))
        except ObjectMissingError:
            return False

    def run(self, tally: Progress, grace: float) -> Compacted:
        done = Compacted(self.plan())
        self._refuse_lost()
        self._delete_pending(grace, done)
        self._remove(done.plan.dead, done)
        try:
            self._rewrite(tally, done)
        finally:
            self._mover.abort()
        self._remove_sessions(done)
        return done

    def _rewrite(self, tally: Progress, done: Compacted) -> None:
        """Rewrite packs in steps; make each step durable, then delete the packs it replaces."""
        step: dict[PackId, int] = {}
        tally.total = sum(one.length for one in done.plan.rewrites)
        for one in done.plan.rewrites:
            try:
                data = self._store.storage.get(pack_name(one.pack))
            except ObjectMissingError:
                continue  # another machine compacts at the same time
            tally.read += len(data)
            # A moved record gets a new pack name, which would then vouch for damaged bytes.
            if blake3(data).digest() != one.pack:
                name = pack_name(one.pack)
                done.damaged.append(f"{name} is damaged: its bytes differ from those that were written")
                continue
            for entries in self._kept(one.pack):
                self._mover.add(one.pack, entries, record_in(data, entries), tally)
            step[one.pack] = one.length
            if self._mover.written >= _STEP_BYTES:
                self._end_step(step, done)
                step = {}
        self._end_step(step, done)

    # What is needed of a pack

    def _live(self, entries: list[PackEntry]) -> list[PackEntry]:
        """Return those entries that generations need, from whichever pack they read them."""
        return list(itertools.compress(entries, self._marks.find(b"".join([one.id for one in entries]))))

    def _kept(self, pack: PackId) -> list[list[PackEntry]]:
        """Return the entries of each record that generations read from this pack."""
        entries = self._store.pack_entries(pack)
        live = self._live(entries)
        chosen = self._store.index.liveness.are_chosen(pack, live)
        # The deltas of a group share a record, which is kept with all of them.
        needed = {entry.offset for entry in itertools.compress(live, chosen)}
        return [group for group in records_of(entries) if group[0].offset in needed]

    def _kept_bytes(self, pack: PackId) -> int | None:
        """Return how many bytes of a pack are needed; None if a needed chunk cannot be reconstructed.

        Moving it would not help, and the pack must stay in any case.
        """
        kept = self._kept(pack)
        live = self._live(list(itertools.chain.from_iterable(kept)))
        chunks = [entry.id for entry in live if entry.kind == CHUNK]
        if not all(self._store.index.locations.contains(chunks)):
            return None
        return sum(group[0].sealed_length for group in kept)

    def _is_needed(self, pack: PackId, without: set[PackId]) -> bool:
        """Return whether a generation needs something of a pack that it cannot read without these packs."""
        try:
            entries = self._store.pack_entries(pack)
        except ObjectMissingError:
            return False
        live = self._live(entries)
        locations = self._store.index.locations
        chunks = [entry.id for entry in live if entry.kind == CHUNK]
        nodes = [entry.id for entry in live if entry.kind != CHUNK]
        return not (
            all(locations.contains(chunks, without=without))
            and all(locations.has_node(node, without=without) for node in nodes)
        )

    # Removal

    def _remove(self, packs: dict[PackId, int], done: Compacted) -> None:
        """Delete packs, except those that a newer generation needs."""
        if not packs:
            return
        with self._store.storage.lock(exclusive=True) as held:
            if held:
                self._remove_unneeded(packs, done)
                return
        # Objects that a replaced writer key sealed are not accepted.
        self._store.refresh_config()
        write_deletion(self._store.storage, self._store.writer_key, packs)
        done.pending_deletion += len(packs)
        self._store.sync()

    def _remove_unneeded(self, packs: dict[PackId, int], done: Compacted) -> None:
        """Check packs again, and delete those that are not needed. The caller keeps commits out."""
        store = self._store
        # Records that were moved under a writer key that has been replaced since are not accepted.
        store.refresh_config()
        # A machine that lost its state may have reused the number of another generation.
        store.sync(reread=True)
        self._refuse_damage()
        # A killed castore may have created or deleted these objects without making that durable.
        for folder in ("generations", "sessions", "packs"):
            store.storage.sync_dir(folder)
        self._mark()
        self._refuse_lost()
        gone = set(packs)
        while needed := {pack for pack in gone if self._is_needed(pack, gone)}:
            gone -= needed
        ids = self._ids_of(gone)
        store.storage.delete_all(pack_name(pack) for pack in sorted(gone))
        store.index.packs.remove(gone, ids)
        done.removed += len(gone)
        done.removed_bytes += sum(packs[pack] for pack in gone)

    def _ids_of(self, packs: set[PackId]) -> dict[PackId, list[RecordId]] | None:
        """Return what packs hold that are about to be deleted; None where scanning the index is faster."""
        if len(packs) > _FEW:
            return None
        found = {}
        for pack in packs:
            with contextlib.suppress(ObjectMissingError, DamageError, FormatError):
                found[pack] = [entry.id for entry in self._store.pack_entries(pack)]
        return found

    def _delete_pending(self, grace: float, done: Compacted) -> None:
        """Delete packs whose pending deletion is old enough."""
        store = self._store
        with store.storage.lock(exclusive=True) as held:
            pending = pending_deletions(store.storage, store.writer_key)[0]
            wanted = int(grace * 10**9)
            ages = store.first_seen.observe("deletions", [one.name for one in pending], wanted)
            for one in pending:
                if not held and ages[one.name] < wanted:
                    done.pending_deletion += len(one.packs)
                    continue
                lengths = dict(store.packs())
                self._remove_unneeded({pack: lengths[pack] for pack in one.packs if pack in lengths}, done)
                # Packs that turned out to be needed may be referenced again.
                store.storage.delete_all([one.name])
            store.sync()

    def _end_step(self, step: dict[PackId, int], done: Compacted) -> None:
        """Finish the packs that records were moved to, and delete the packs that they were moved from."""
        done.written_bytes += self._mover.finish()
        self._mover = Mover(self._store)
        self._remove(step, done)

    def _remove_sessions(self, done: Compacted) -> None:
        """Remove the keys of sessions of which no record has been left for days.

        Without a lock they are kept: they are small, and a session may be about to write its first pack.
        """
        store, wanted = self._store, _SESSION_SECONDS * 10**9
        with store.storage.lock(exclusive=True) as held:
            if not held:
                return
            store.sync()
            self._refuse_damage()
            # Packs of sessions that a generation names may be missing only temporarily.
            committed = (SessionId(one.session) for one in store.all_generations())
            used = store.index.packs.sessions().union(committed)
            numbers = session_numbers(store.storage)
            idle = {session.hex(): session for session in numbers.keys() - used}
            ages = store.first_seen.observe("sessions", idle, wanted)
            for session in (idle[one] for one, age in ages.items() if age >= wanted):
                store.storage.delete_all(session_name(session, one) for one in numbers[session])
                done.sessions += 1
