"""The records of packs that generations need, and the packs that new snapshots do not reference."""

from __future__ import annotations

import itertools
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

from castore.kernel.index_rows import weigh
from castore.model.refs import PackId
from castore.store.format.pack import CHUNK
from castore.store.index.location_reader import CompleteChunks
from castore.store.index.schema import LOCATION, NEXT_PACK, NUMBER, PACK, PACK_NUMBER, batches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from castore.kernel.id_set import IdSet
    from castore.store.format.pack import PackEntry
    from castore.store.index.location_reader import LocationReader
    from castore.store.index.metadata import Metadata
    from castore.store.index.transactions import Tables


class PackLiveness(NamedTuple):
    """The marked bytes of a pack."""

    length: int
    records: int
    live: int
    """About how much of its records is marked; a shared record counts by the share of its chunks that are."""


class Liveness:
    """Marks what is needed, and counts it by pack."""

    def __init__(self, tables: Tables, meta: Metadata, locations: LocationReader) -> None:
        self._tables = tables
        self._db = tables.by_name
        self._meta = meta
        self._locations = locations

    def set_not_referenced(self, packs: Iterable[PackId]) -> None:
        """Set the packs that new snapshots do not reference.

        They are pending deletion, damaged, without a key, or of machines that this machine distrusts.
        """
        with self._tables.reading() as txn:
            before = self._meta.not_referenced(txn)
            numbers = [txn.get(pack, db=self._db["pack_numbers"]) for pack in packs]
        now = frozenset(number[::-1] for number in numbers if number is not None)
        if now != before:
            added = bool(now - before)
            self._tables.write(lambda txn: self._meta.set_not_referenced(txn, now, added=added))

    def mark_bases(self, marks: IdSet) -> None:
        """Mark all bases of marked chunks, wherever they are stored."""
        marked = -1
        # One pass is nearly always enough; a complete pass that marks nothing proves it.
        while marked != len(marks):
            marked = len(marks)
            with self._tables.reading() as txn:
                for batch in batches(iter(txn.cursor(self._db["bases"]))):
                    # Keys of 36 bytes begin with the id.
                    is_marked = marks.find(b"".join([key for key, _ in batch]), 36)
                    bases = [joined for _, joined in itertools.compress(batch, is_marked)]
                    self._mark_below(txn, bases, marks)

    def _mark_below(self, txn: Any, todo: list[bytes], marks: IdSet) -> None:
        """Mark chunks, given by their joined ids, and all their bases."""
        cursor = txn.cursor(self._db["bases"])
        # Usually, most of them are marked already.
        while todo and (joined := b"".join(todo)):
            todo = []
            is_new = marks.add(joined)
            at = -1
            while (at := is_new.find(1, at + 1)) >= 0:
                base = joined[32 * at : 32 * at + 32]
                more = cursor.set_range(base)
                while more and cursor.key()[:32] == base:
                    todo.append(cursor.value())
                    more = cursor.next()

    def weights(self, kind: int) -> Iterator[tuple[bytes, float]]:
        """Yield each chunk or node, by ascending id, with its sealed bytes.

        A record of several chunks counts for each by the share of it.
        """
        with self._tables.reading() as txn:
            cursor = txn.cursor(self._db["chunks" if kind == CHUNK else "nodes"])
            for record_id, value in cursor:
                _, _, sealed, *_, members = LOCATION.unpack(value)
                yield record_id, sealed / (members or 1)

    def weigh_chunks(self, marks: IdSet) -> tuple[int, int]:
        """Return how many indexed chunks are marked, and their sealed bytes.

        A record of several chunks counts by the share of its chunks that are marked.
        """
        count, weight = 0, 0.0
        with self._tables.reading() as txn:
            for batch in batches(iter(txn.cursor(self._db["chunks"]))):
                is_marked = marks.find(b"".join([key for key, _ in batch]))
                for _, value in itertools.compress(batch, is_marked):
                    _, _, sealed, *_, members = LOCATION.unpack(value)
                    count += 1
                    weight += sealed / (members or 1)
        return count, round(weight)

    def live_bytes(self, marks: IdSet) -> dict[PackId, PackLiveness]:
        """Return how much is marked in each pack that stays."""
        with self._tables.reading() as txn:
            not_referenced = self._meta.not_referenced(txn)
            live = self._live_by_number(txn, marks, not_referenced)
            packs = {}
            for number, value in txn.cursor(self._db["packs"]):
                if number[::-1] in not_referenced:
                    continue
                pack, length, records = PACK.unpack(value)
                packs[PackId(pack)] = PackLiveness(length, records, live[NUMBER.unpack(number)[0]])
        return packs

    def _live_by_number(self, txn: Any, marks: IdSet, not_referenced: frozenset[bytes]) -> array[int]:
        """Return how many bytes are marked in each pack, by its number."""
        # There are at most as many packs as numbers were issued.
        live = array("Q", bytes(8 * self._meta.numbers_issued(txn, NEXT_PACK)))
        for table in (self._db["chunks"], self._db["nodes"]):
            for batch in batches(iter(txn.cursor(table))):
                is_marked = marks.find(b"".join([key for key, _ in batch]))
                values = [value for _, value in batch]
                if not_referenced:
                    values = [
                        next(self._locations.usable(txn, key, first, not_referenced), first)
                        if marked and first[PACK_NUMBER] in not_referenced
                        else first
                        for (key, first), marked in zip(batch, is_marked, strict=True)
                    ]
                weigh(b"".join(values), is_marked, live)
        return live

    def are_chosen(self, pack: PackId, entries: Sequence[PackEntry]) -> list[bool]:
        """Return for each entry of a pack whether its record is to be read from this location.

        If a chunk cannot be reconstructed from any location, all its locations count: its missing bases may
        be stored again.
        """
        with self._tables.reading() as txn:
            number = txn.get(pack, b"", db=self._db["pack_numbers"])[::-1]
            not_referenced = self._meta.not_referenced(txn)
            chosen = []
            for entry in entries:
                value = self._chosen_place(txn, entry, not_referenced)
                if value is None:
                    chosen.append(True)
                    continue
                location = LOCATION.unpack(value)
                at = (entry.offset, entry.group_index)
                chosen.append(value[PACK_NUMBER] == number and (location[1], location[7]) == at)
        return chosen

    def _chosen_place(self, txn: Any, entry: PackEntry, not_referenced: frozenset[bytes]) -> bytes | None:
        """Return the location that a record is read from; None if there is none in a pack that stays."""
        if entry.kind == CHUNK:
            return CompleteChunks(self._tables, txn, not_referenced).find(entry.id)
        first = self._locations.first(txn, entry.kind, entry.id)
        if first is None:
            return None
        return next(self._locations.usable(txn, entry.id, first, not_referenced), None)
