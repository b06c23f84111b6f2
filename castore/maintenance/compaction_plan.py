"""Plan a compaction: which packs to delete, and which to rewrite. A plan is data, and changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from castore.errors import ObjectMissingError
from castore.model.refs import PackId, SessionId
from castore.store.format.pack import PACK_BYTES
from castore.store.format.session_key import session_numbers

if TYPE_CHECKING:
    from castore.maintenance.needed import NeededRecords
    from castore.store import Store
    from castore.store.index.liveness import PackLiveness

_SMALL: Final = PACK_BYTES // 16
_MANY_SMALL: Final = 16
"""From this number on, small packs are merged: each nightly snapshot leaves one."""


class Rewrite(msgspec.Struct, frozen=True):
    """A pack of which some records are needed."""

    pack: PackId
    length: int
    kept: int
    """Total length of its records that are needed, in bytes."""


class Plan(msgspec.Struct):
    """The changes that a compaction would make. Lengths are in bytes."""

    generations: int = 0
    """Number of generations that were examined."""
    packs: int = 0
    stored: int = 0
    """Total length of all packs."""
    dead: dict[PackId, int] = {}
    """Packs of which nothing is needed, with their lengths."""
    unfinished_packs: dict[PackId, int] = {}
    """Packs that are kept, with their lengths, because an unfinished snapshot stored records in them."""
    rewrites: list[Rewrite] = []
    lost: int = 0
    """Nodes that generations reference and that are in no pack."""

    @property
    def written(self) -> int:
        """Bytes that are moved to new packs."""
        return sum(rewrite.kept for rewrite in self.rewrites)

    @property
    def freed(self) -> int:
        """Bytes by which the store shrinks, except for footers and padding."""
        return sum(self.dead.values()) + sum(rewrite.length for rewrite in self.rewrites) - self.written


class Planner:
    """Makes the plan of a compaction."""

    def __init__(
        self, store: Store, needed: NeededRecords, max_unused: float, unfinished_seconds: float
    ) -> None:
        """unfinished_seconds: time for which the packs of an uncommitted snapshot are kept."""
        self._store = store
        self._needed = needed
        self._max_unused = max_unused
        self._unfinished_seconds = unfinished_seconds

    def plan(self) -> Plan:
        """Mark what generations need, and return the plan. Raises DamageError, StorageError."""
        generations = self._needed.mark()
        packs = self._needed.by_pack()
        result = Plan(generations, len(packs), sum(pack.length for pack in packs.values()))
        result.lost = self._needed.lost
        young = self._young_sessions()
        # Read the footer once of each pack that may be deleted or rewritten.
        held = {pack for pack, one in packs.items() if self._is_candidate(one) if self._holds(pack, young)}
        small = [pack for pack, one in packs.items() if one.live and one.length < _SMALL]
        merged = set(small) if sum(pack not in held for pack in small) >= _MANY_SMALL else set()
        for pack, one in packs.items():
            rewrite = pack in merged or self._is_sparse(one.records, one.live)
            if pack in held and (rewrite or not one.live):
                result.unfinished_packs[pack] = one.length
            elif not one.live:
                result.dead[pack] = one.length
            elif rewrite:
                kept = self._needed.movable_bytes(pack)
                if kept is not None and (pack in merged or self._is_sparse(one.records, kept)):
                    result.rewrites.append(Rewrite(pack, one.length, kept))
        self._plan_distrusted(result, young)
        # Rewrite first what frees most for the bytes it writes.
        result.rewrites.sort(key=lambda one: one.kept / one.length)
        return result

    def _is_candidate(self, pack: PackLiveness) -> bool:
        """Return whether a pack may be deleted or rewritten."""
        return not pack.live or pack.length < _SMALL or self._is_sparse(pack.records, pack.live)

    def _is_sparse(self, records: int, live: int) -> bool:
        """Return whether so much of a pack's records is unused that it is rewritten. Both are in bytes."""
        return records - live > self._max_unused * records

    def _plan_distrusted(self, result: Plan, young: set[SessionId]) -> None:
        """Add packs of revoked machines, once no generation needs anything of them."""
        lengths = dict(self._store.index.packs.lengths())
        for pack in self._store.updater.distrusted & lengths.keys():
            if not self._holds(pack, young) and not self._needed.is_pack_needed(pack, {pack}):
                result.dead[pack] = lengths[pack]

    def _young_sessions(self) -> set[SessionId]:
        """Return the sessions of snapshots that may still be running and may still commit.

        These are the sessions that this machine first saw recently, and that no generation names or named
        before it was deleted.
        """
        store, wanted = self._store, int(self._unfinished_seconds * 10**9)
        # List sessions after reading `ended`: the listing then has every ended session that still exists.
        ended = store.index.generations.ended_sessions()
        numbers = session_numbers(store.storage).keys()
        store.index.generations.forget_ended(ended - numbers)
        known = ended.union(generation.session for generation in store.generations.iterate())
        ages = store.state.first_seen.observe(
            "unfinished", [session.hex() for session in numbers - known], wanted
        )
        return {SessionId(bytes.fromhex(session)) for session, age in ages.items() if age < wanted}

    def _holds(self, pack: PackId, sessions: set[SessionId]) -> bool:
        """Return whether a pack has records of one of these sessions."""
        if not sessions:
            return False
        try:
            return any(entry.session in sessions for entry in self._store.reader.pack_entries(pack))
        except ObjectMissingError:
            return False
