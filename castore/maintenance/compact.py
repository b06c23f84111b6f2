"""Space given back: packs that no generation needs go; those of which little is needed are written anew.

All under the writer key: records are moved as they are, sealed. First a plan, which is data; then it is
carried out in steps, each of which leaves a whole store behind, whatever ends it: what is moved is durable
in its new pack before the old one goes, and no pack goes before it was looked at once more, against the
generations that are there at that moment.

Snapshots may run beside it. Where the place has a lock, packs are removed while it is held alone; a snapshot
holds it, with others, while it looks whether all that it counts on is still there, and commits. Where there
is none, packs are condemned first, and removed by a later run, after a time in which no commit is still under
way; a snapshot counts on nothing that is condemned when it commits.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Final, TypedDict

import msgspec
from blake3 import blake3

from castore.errors import DamageError, FormatError, ObjectMissingError
from castore.kernel.id_set import Marks
from castore.maintenance.repack import Mover, record_in, records_of
from castore.model.counting import count as counted
from castore.model.refs import PackId, SessionId
from castore.store.format.deletion import condemn, read_condemned
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

MAX_UNUSED: Final = 0.1
"""A pack is written anew when a larger share of its records is needed by none."""
GRACE_SECONDS: Final = 86400
"""Far longer than a commit takes, from its look at what is condemned to the end of its writing."""

UNFINISHED_SECONDS: Final = 7 * 86400
"""So long what a session has stored stays, of which no generation is known: a snapshot may be under way."""

_SMALL: Final = PACK_BYTES // 16
_FEW: Final = 64
"""So few packs are forgotten entry by entry."""
_MANY_SMALL: Final = 16
"""So many small packs, a night's each, are put together."""
_STEP_BYTES: Final = 1 << 30
"""What is written before old packs go: compaction needs no more room than this."""
_SESSION_SECONDS: Final = 7 * 86400
"""So long nothing is seen of a session before its key is removed: it may be about to write its first pack."""


class Limits(TypedDict, total=False):
    """What `plan` and `compact` leave alone."""

    max_unused: float
    unfinished: float


class Rewrite(msgspec.Struct, frozen=True):
    """A pack of which some is needed."""

    pack: PackId
    length: int
    kept: int
    """Bytes of the records in it that are needed."""


class Plan(msgspec.Struct):
    """What a compaction would do."""

    generations: int = 0
    """Whose needs it looked at."""
    packs: int = 0
    stored: int = 0
    """Bytes of all packs."""
    dead: dict[PackId, int] = {}
    """Packs of which nothing is needed, with their lengths."""
    unfinished: dict[PackId, int] = {}
    """Packs that stay as they are, with their lengths, since a snapshot that has not ended stored to them."""
    rewrites: list[Rewrite] = []
    lost: int = 0
    """Nodes that generations refer to, and that are in no pack."""

    @property
    def written(self) -> int:
        """How many bytes are moved to new packs."""
        return sum(one.kept for one in self.rewrites)

    @property
    def freed(self) -> int:
        """How many bytes the store is shorter behind it, but for footers and padding."""
        return sum(self.dead.values()) + sum(one.length for one in self.rewrites) - self.written


class Compacted(msgspec.Struct):
    """What a compaction did."""

    plan: Plan
    removed: int = 0
    """Packs."""
    removed_bytes: int = 0
    written_bytes: int = 0
    condemned: int = 0
    """Packs that a later run removes."""
    sessions: int = 0
    """Sessions removed, of which nothing is left."""
    damaged: list[str] = []
    """Packs that were to be written anew, and are not what they were: left as they are."""


def plan(
    store: Store,
    *,
    max_unused: float = MAX_UNUSED,
    unfinished: float = UNFINISHED_SECONDS,
    without: Callable[[Generation], bool] | None = None,
) -> Plan:
    """Return what `compact` would do; without: generations that are taken to be gone.

    Raises DamageError, StorageError.
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
    """Give back what no generation needs. One at a time on a machine.

    grace: seconds from condemning a pack to its removal, where the place has no lock. unfinished: seconds
    for which what a snapshot has stored that did not commit, or not yet, stays, from when this machine
    first looked. tally: bytes of packs read, and stored anew. Interrupted anywhere, it leaves a whole
    store; the next goes on. Raises DamageError if the store is damaged so that it cannot be known what is
    needed; BusyError, StorageError.
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
        self._marks = Marks(store.index.count("chunks") + store.index.count("nodes"))

    def _refuse_damage(self) -> None:
        """What a damaged pack or generation holds or needs is not known: nothing is removed then."""
        found = self._store.damaged.items()
        if damaged := sorted(name for name, reason in found if not isinstance(reason, Refusal)):
            more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            raise DamageError(
                f"nothing was removed: {damaged[0]}{more} cannot be read, and what is needed is not known; "
                "'castore verify' tells more, 'castore repair' drops what cannot be read"
            )

    def _refuse_lost(self) -> None:
        """What lies below a node that is in no pack is not known either: its pack may come back."""
        if self._walk.lost:
            lost = counted(len(self._walk.lost), "node")
            raise DamageError(
                f"nothing was removed: {lost} that generations refer to cannot be found in a pack, and what "
                "is needed is not known; 'castore verify' says which, "
                "'castore forget' lets go of what cannot be restored"
            )

    def _mark(self) -> int:
        """Mark all that the generations need that are there now; return how many there are."""
        count = 0
        for generation in self._store.all_generations():
            if self._without is None or not self._without(generation):
                mark(self._walk, roots_of(generation), self._marks)
                count += 1
        # Always: packs that came since may tell what was marked long ago by other bases.
        self._store.index.mark_bases(self._marks)
        return count

    def plan(self) -> Plan:
        generations = self._mark()
        packs = self._store.index.live_bytes(self._marks)
        found = Plan(generations, len(packs), sum(length for length, _, _ in packs.values()))
        found.lost = len(self._walk.lost)
        young = self._young_sessions()
        # Of each pack that may go, or be written anew, the footer is read once.
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
        # What frees most for what it writes comes first.
        found.rewrites.sort(key=lambda one: one.kept / one.length)
        return found

    def _plan_distrusted(self, found: Plan, young: set[SessionId]) -> None:
        """Add packs of machines that were revoked, once no generation needs anything of them."""
        lengths = dict(self._store.packs())
        for pack in self._store.distrusted & lengths.keys():
            if not self._holds(pack, young) and not self._is_needed(pack, {pack}):
                found.dead[pack] = lengths[pack]

    def _young_sessions(self) -> set[SessionId]:
        """Return the sessions that a snapshot under way may be storing to: it commits in the end.

        By what this machine has seen: not long ago, no generation of it, nor one that has been let go.
        """
        store, wanted = self._store, int(self._unfinished * 10**9)
        # What is listed behind them is all that may have ended by then.
        ended = store.index.ended_sessions()
        numbers = session_numbers(store.storage).keys()
        store.index.forget_ended(ended - numbers)
        known = ended.union(one.session for one in store.all_generations())
        ages = store.ages.look("unfinished", [one.hex() for one in numbers - known], wanted)
        return {SessionId(bytes.fromhex(one)) for one, age in ages.items() if age < wanted}

    def _holds(self, pack: PackId, sessions: set[SessionId]) -> bool:
        """Whether a pack has records of one of these sessions."""
        if not sessions:
            return False
        try:
            return any(entry.session in sessions for entry in self._store.pack_entries(pack))
        except ObjectMissingError:
            return False

    def run(self, tally: Progress, grace: float) -> Compacted:
        done = Compacted(self.plan())
        self._refuse_lost()
        self._finish_condemned(grace, done)
        self._remove(done.plan.dead, done)
        try:
            self._rewrite(tally, done)
        finally:
            self._mover.abort()
        self._remove_sessions(done)
        return done

    def _rewrite(self, tally: Progress, done: Compacted) -> None:
        """Write packs anew, in steps that are each made durable, and followed by a removal."""
        step: dict[PackId, int] = {}
        tally.total = sum(one.length for one in done.plan.rewrites)
        for one in done.plan.rewrites:
            try:
                data = self._store.storage.get(pack_name(one.pack))
            except ObjectMissingError:
                continue  # another machine compacts, too
            tally.read += len(data)
            # Moved, its bytes get a new name, which would vouch for whatever they are.
            if blake3(data).digest() != one.pack:
                name = pack_name(one.pack)
                done.damaged.append(f"{name} is damaged: its bytes are not those that were written")
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
        """Return those of entries that generations need, wherever they take them from."""
        return list(itertools.compress(entries, self._marks.find(b"".join([one.id for one in entries]))))

    def _kept(self, pack: PackId) -> list[list[PackEntry]]:
        """Return the entries of each record of a pack that is needed from there."""
        entries = self._store.pack_entries(pack)
        live = self._live(entries)
        chosen = self._store.index.are_chosen(pack, live)
        # The deltas of a group share a record, which goes with all of them.
        needed = {entry.offset for entry in itertools.compress(live, chosen)}
        return [group for group in records_of(entries) if group[0].offset in needed]

    def _kept_bytes(self, pack: PackId) -> int | None:
        """Return how many bytes of a pack are needed; None if what is needed of it cannot be put together.

        Moved, that would be no better, and the pack is to stay in any case.
        """
        kept = self._kept(pack)
        live = self._live(list(itertools.chain.from_iterable(kept)))
        if not all(self._store.index.known([entry.id for entry in live if entry.kind == CHUNK])):
            return None
        return sum(group[0].sealed_length for group in kept)

    def _is_needed(self, pack: PackId, without: set[PackId]) -> bool:
        """Whether a generation needs anything of a pack that it would not have without those packs."""
        try:
            entries = self._store.pack_entries(pack)
        except ObjectMissingError:
            return False
        live = self._live(entries)
        index = self._store.index
        chunks = [entry.id for entry in live if entry.kind == CHUNK]
        nodes = [entry.id for entry in live if entry.kind != CHUNK]
        return not (
            all(index.known(chunks, without=without))
            and all(index.has_node(node, without=without) for node in nodes)
        )

    # Removal

    def _remove(self, packs: dict[PackId, int], done: Compacted) -> None:
        """Remove packs, but those that a generation needs that has come since."""
        if not packs:
            return
        with self._store.storage.hold(alone=True) as held:
            if held:
                self._remove_unneeded(packs, done)
                return
        # What a writer key seals that has been replaced since does not count.
        self._store.refresh_config()
        condemn(self._store.storage, self._store.writer_key, packs)
        done.condemned += len(packs)
        self._store.sync()

    def _remove_unneeded(self, packs: dict[PackId, int], done: Compacted) -> None:
        """Look at packs once more, and remove those that are not needed. The caller keeps commits out."""
        store = self._store
        # What was moved under a writer key that has been replaced since does not count.
        store.refresh_config()
        # Whoever lost its memory may have given a number again that another generation had here.
        store.sync(reread=True)
        self._refuse_damage()
        # What is seen to have gone, or come, may be what a killed castore did not come to make durable.
        for folder in ("generations", "sessions", "packs"):
            store.storage.settle(folder)
        self._mark()
        self._refuse_lost()
        gone = set(packs)
        while needed := {pack for pack in gone if self._is_needed(pack, gone)}:
            gone -= needed
        ids = self._ids_of(gone)
        store.storage.delete_all(pack_name(pack) for pack in sorted(gone))
        store.index.remove_packs(gone, ids)
        done.removed += len(gone)
        done.removed_bytes += sum(packs[pack] for pack in gone)

    def _ids_of(self, packs: set[PackId]) -> dict[PackId, list[RecordId]] | None:
        """Return what lies in packs that are about to go; None where the whole index is read sooner."""
        if len(packs) > _FEW:
            return None
        found = {}
        for pack in packs:
            with contextlib.suppress(ObjectMissingError, DamageError, FormatError):
                found[pack] = [entry.id for entry in self._store.pack_entries(pack)]
        return found

    def _finish_condemned(self, grace: float, done: Compacted) -> None:
        """Remove what was condemned long enough ago."""
        store = self._store
        with store.storage.hold(alone=True) as held:
            condemned = read_condemned(store.storage, store.writer_key)[0]
            wanted = int(grace * 10**9)
            ages = store.ages.look("condemned", [one.name for one in condemned], wanted)
            for one in condemned:
                if not held and ages[one.name] < wanted:
                    done.condemned += len(one.packs)
                    continue
                lengths = dict(store.packs())
                self._remove_unneeded({pack: lengths[pack] for pack in one.packs if pack in lengths}, done)
                # What is needed all the same may be counted on again.
                store.storage.delete_all([one.name])
            store.sync()

    def _end_step(self, step: dict[PackId, int], done: Compacted) -> None:
        """Finish the packs that records were moved to, and remove those that they were moved from."""
        done.written_bytes += self._mover.finish()
        self._mover = Mover(self._store)
        self._remove(step, done)

    def _remove_sessions(self, done: Compacted) -> None:
        """Remove the keys of sessions of which no record has been left for days.

        Where there is no lock they stay: they are small, and one may be about to write its first pack.
        """
        store, wanted = self._store, _SESSION_SECONDS * 10**9
        with store.storage.hold(alone=True) as held:
            if not held:
                return
            store.sync()
            self._refuse_damage()
            # Of those that a generation names, packs may be gone only for now.
            used = store.index.sessions().union(SessionId(one.session) for one in store.all_generations())
            numbers = session_numbers(store.storage)
            idle = {session.hex(): session for session in numbers.keys() - used}
            ages = store.ages.look("sessions", idle, wanted)
            for session in (idle[one] for one, age in ages.items() if age >= wanted):
                store.storage.delete_all(session_name(session, one) for one in numbers[session])
                done.sessions += 1
