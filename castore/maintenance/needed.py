"""Decide which packs may be deleted, and which records must be moved, because generations need them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from castore.errors import DamageError, ObjectMissingError
from castore.kernel.id_set import IdSet
from castore.maintenance.repack import records_of
from castore.model.counting import count as counted
from castore.store.format.envelope import Refusal
from castore.store.format.pack import CHUNK
from castore.store.reachability import Walk, roots_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.model.generation import Generation
    from castore.model.refs import PackId
    from castore.store import Store
    from castore.store.format.pack import PackEntry
    from castore.store.index.liveness import PackLiveness


class NeededRecords:
    """The chunks and nodes that the generations of a store need, bases included."""

    def __init__(self, store: Store, without: Callable[[Generation], bool] | None = None) -> None:
        """without: selects generations that are treated as deleted. The store must be synchronised."""
        self._store = store
        self._without = without
        self._walk = Walk(store)
        self._marks = IdSet(store.index.count("chunks") + store.index.count("nodes"))

    @property
    def lost(self) -> int:
        """Number of nodes that generations reference and that are in no pack."""
        return len(self._walk.lost)

    def mark(self) -> int:
        """Mark everything that the current generations need; return the number of generations.

        What was marked before stays marked. Raises DamageError, StorageError.
        """
        count = 0
        for generation in self._store.generations.iterate():
            if self._without is None or not self._without(generation):
                self._walk.mark(roots_of(generation), self._marks)
                count += 1
        # Always: newer packs may encode a chunk that was marked earlier as a delta of other bases.
        self._store.index.liveness.mark_bases(self._marks)
        return count

    def refuse_lost(self) -> None:
        """Raise DamageError if nodes are missing: what they reference is unknown; their packs may return."""
        if self.lost:
            lost = counted(self.lost, "node")
            raise DamageError(
                f"nothing was removed: {lost} that generations reference cannot be found in a pack, so it is "
                "unknown what generations need ('castore verify' says which, 'castore forget' deletes "
                "generations that cannot be restored)"
            )

    def by_pack(self) -> dict[PackId, PackLiveness]:
        """Return about how much is needed of each pack that stays."""
        return self._store.index.liveness.live_bytes(self._marks)

    def records(self, pack: PackId) -> list[list[PackEntry]]:
        """Return the entries of each record that generations read from this pack."""
        entries = self._store.reader.pack_entries(pack)
        live = self._live(entries)
        chosen = self._store.index.liveness.are_chosen(pack, live)
        # The deltas of a group share a record, which is kept with all of them.
        needed = {entry.offset for entry in itertools.compress(live, chosen)}
        return [group for group in records_of(entries) if group[0].offset in needed]

    def movable_bytes(self, pack: PackId) -> int | None:
        """Return how many bytes of a pack are needed; None if a needed chunk cannot be reconstructed.

        Moving it would not help, and the pack must stay in any case.
        """
        records = self.records(pack)
        live = self._live(list(itertools.chain.from_iterable(records)))
        chunks = [entry.id for entry in live if entry.kind == CHUNK]
        if not all(self._store.index.locations.contains(chunks)):
            return None
        return sum(group[0].sealed_length for group in records)

    def is_pack_needed(self, pack: PackId, without: set[PackId]) -> bool:
        """Return whether a generation needs something of a pack that it cannot read without these packs."""
        try:
            entries = self._store.reader.pack_entries(pack)
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

    def unneeded(self, packs: set[PackId]) -> set[PackId]:
        """Return those of the packs that can be deleted together: no generation needs anything of them."""
        unneeded = set(packs)
        while needed := {pack for pack in unneeded if self.is_pack_needed(pack, unneeded)}:
            unneeded -= needed
        return unneeded

    def _live(self, entries: list[PackEntry]) -> list[PackEntry]:
        """Return those entries that generations need, from whichever pack they read them."""
        return list(itertools.compress(entries, self._marks.find(b"".join([entry.id for entry in entries]))))


def refuse_damage(store: Store) -> None:
    """Raise DamageError if packs or generations are damaged: what they hold or need is not known."""
    if damaged := sorted(name for name, reason in store.damaged.items() if not isinstance(reason, Refusal)):
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise DamageError(
            f"nothing was removed: {damaged[0]}{more} cannot be read, so it is unknown what generations "
            "need ('castore verify' lists the damage, 'castore repair' deletes damaged objects)"
        )
