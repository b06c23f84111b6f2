"""The locations of records, the bases of chunks, and similar chunks."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

from castore.model.refs import RecordId
from castore.store.format.pack import BASES, CHUNK, MAX_CHAIN, NODE
from castore.store.index.lmdb_files import WRONG
from castore.store.index.location_reader import CompleteChunks, RecordLocation, split_ids
from castore.store.index.schema import BATCH, LOCATION, NUMBER, PLAIN, forwards

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Collection, Container, Iterable, Iterator, Sequence

    from castore.kernel import Sketch
    from castore.model.refs import PackId, SessionId
    from castore.store.index.location_reader import LocationReader
    from castore.store.index.metadata import Metadata
    from castore.store.index.transactions import Tables


class FoundChunks(NamedTuple):
    """The chunks, of those asked for, that the store has."""

    complete: list[bool]
    """For each chunk, whether the store has it, and all its bases, in packs that stay."""
    pack_bytes: Counter[bytes]
    """The bytes that these chunks and their bases take in each pack, by the pack's number."""


class IndexedRecord(NamedTuple):
    """A chunk or node, as `RecordLocations.records` yields it."""

    kind: int
    id: RecordId
    sealed_length: int
    """The length of a shared record is given once, for its first entry, and is 0 for the others."""
    bases: tuple[RecordId, ...]


class RecordLocations:
    """Finds chunks and nodes."""

    def __init__(self, tables: Tables, meta: Metadata, locations: LocationReader) -> None:
        self._tables = tables
        self._db = tables.by_name
        self._begin, self._end = tables.begin, tables.end
        self._meta = meta
        self._locations = locations

    def has_node(self, node: bytes, *, without: Collection[PackId] = ()) -> bool:
        """Return whether the store has a node in a pack that stays; without: packs that do not stay."""
        try:
            txn = self._begin("nodes")
            try:
                value = txn.get(node)
                if value is None:
                    return False
                not_referenced = self._meta.not_referenced(txn, without)
                return any(True for _ in self._locations.usable(txn, node, value, not_referenced))
            finally:
                txn.abort()
                self._end()
        except WRONG as error:
            raise self._tables.refusal(error) from error

    def contains(self, chunks: Sequence[RecordId], *, without: Collection[PackId] = ()) -> list[bool]:
        """Return for each chunk whether the store has it, and all its bases, in packs that stay.

        without: packs that do not stay, in addition to those that new snapshots do not reference.
        """
        return self.find(chunks, without=without).complete

    def find(self, chunks: Sequence[RecordId], *, without: Collection[PackId] = ()) -> FoundChunks:
        """Return which chunks the store has, as `contains` does, and how much they use of each pack."""
        with self._tables.reading() as txn:
            complete = CompleteChunks(self._tables, txn, self._meta.not_referenced(txn, without))
            return FoundChunks([complete.has(chunk) for chunk in chunks], complete.pack_bytes)

    def lengths(self, chunks: Sequence[RecordId]) -> list[int | None]:
        """Return the length of each chunk in bytes; None if the store does not have it."""
        with self._tables.reading() as txn:
            values = [txn.get(chunk, db=self._db["chunks"]) for chunk in chunks]
            return [None if value is None else int.from_bytes(value[PLAIN], "little") for value in values]

    def stays(self, chunk: RecordId) -> bool:
        """Return whether a chunk can be reconstructed from packs that new snapshots may reference.

        True without a look if they may reference all packs.
        """
        return self.all_stay() or self.contains([chunk])[0]

    def all_stay(self) -> bool:
        """Return whether new snapshots may reference all packs."""
        with self._tables.reading() as txn:
            return not self._meta.not_referenced(txn)

    def missing_base(self, chunk: RecordId) -> RecordId | None:
        """Return the chunk that prevents reconstructing a chunk: it is not indexed, or is its own base.

        Returns None if nothing prevents it.
        """
        return self._missing_base(chunk, (), set())

    def _missing_base(
        self, chunk: RecordId, above: tuple[RecordId, ...], complete: set[RecordId]
    ) -> RecordId | None:
        if chunk in complete:
            return None
        if chunk in above or len(above) > MAX_CHAIN:
            return chunk
        location = self.locate(CHUNK, chunk)
        missing: RecordId | None = chunk
        # Two machines that stored the same data at once may each have stored one chunk as a delta of the
        # other. Then each also has a copy of one of them that does not depend on the other.
        for copy in (
            [location, *self.copies(chunk)] if location is not None and location.bases else [location]
        ):
            if copy is None:
                continue
            missing = None
            for base in copy.bases:
                missing = missing or self._missing_base(base, (*above, chunk), complete)
            if missing is None:
                complete.add(chunk)
                break
        return missing

    def similar(self, sketches: Iterable[Sketch]) -> list[list[RecordId]]:
        """Return for each sketch the chunks that share features with it, the most similar first."""
        with self._tables.reading() as txn:
            return [self._similar(txn, sketch) for sketch in sketches]

    def _similar(self, txn: Any, sketch: Sketch) -> list[RecordId]:
        votes: dict[bytes, int] = {}
        for feature in sketch:
            start = txn.get(feature, db=self._db["features"])
            if start is not None:
                votes[start] = votes.get(start, 0) + 1
        cursor = txn.cursor(self._db["chunks"])
        return [
            RecordId(cursor.key())
            for start in sorted(votes, key=lambda one: -votes[one])
            if cursor.set_range(start) and cursor.key()[:8] == start
        ]

    def locate(self, kind: int, record_id: RecordId) -> RecordLocation | None:
        """Return where a record is stored, or None."""
        try:
            txn = self._begin()
            try:
                value = self._locations.first(txn, kind, record_id)
                return None if value is None else self._locations.decode(txn, record_id, value)
            finally:
                txn.abort()
                self._end()
        except WRONG as error:
            raise self._tables.refusal(error) from error

    def locate_chunks(
        self, chunks: Iterable[RecordId], skipped: Container[RecordId] = (), kind: int = CHUNK
    ) -> dict[RecordId, RecordLocation]:
        """Return the indexed locations of chunks and of all their bases; or those of nodes (`kind`).

        skipped: chunks to leave out, together with bases that only they need.
        """
        locations: dict[RecordId, RecordLocation] = {}
        todo = [chunk for chunk in chunks if chunk not in skipped]
        names: dict[int, tuple[bytes, PackId]] = {}
        sessions: dict[int, SessionId] = {}
        unpack, bases_of = LOCATION.unpack, self._db["bases"]
        table = self._db["chunks" if kind == CHUNK else "nodes"]
        with self._tables.reading() as txn:
            while todo:
                chunk = todo.pop()
                value = None if chunk in locations else txn.get(chunk, db=table)
                if value is None:
                    continue
                pack, offset, sealed, plain, counter, session, codec, member, _ = unpack(value)
                if pack not in names or session not in sessions:
                    location = self._locations.decode(txn, chunk, value)
                    if location is None:
                        continue
                    names[pack] = NUMBER.pack(pack), location.pack
                    sessions[session] = location.session
                number, pack_id = names[pack]
                bases: tuple[RecordId, ...] = ()
                if BASES[codec]:
                    joined = txn.get(chunk + number, b"", db=bases_of)
                    if len(joined) != 32 * BASES[codec]:
                        continue
                    bases = (joined,) if len(joined) == 32 else tuple(split_ids(joined))
                    todo += [base for base in bases if base not in skipped]
                locations[chunk] = RecordLocation(
                    pack_id, offset, sealed, plain, counter, sessions[session], codec, bases, member
                )
        return locations

    def copies(self, record_id: RecordId) -> list[RecordLocation]:
        """Return the further locations of a record."""
        with self._tables.reading() as txn:
            values = self._locations.copies(txn, record_id)
            decoded = [self._locations.decode(txn, record_id, value) for value in values]
        return [location for location in decoded if location is not None]

    def records(self) -> Iterator[IndexedRecord]:
        """Yield each chunk and node."""
        for kind, table in ((CHUNK, "chunks"), (NODE, "nodes")):
            start = b""
            while batch := self._records_from(kind, table, start):
                yield from batch
                start = batch[-1].id + b"\0"

    def _records_from(self, kind: int, table: str, start: bytes) -> list[IndexedRecord]:
        """Return up to BATCH records from an id on."""
        with self._tables.reading() as txn:
            cursor = txn.cursor(self._db[table])
            if not cursor.set_range(start):
                return []
            records = []
            for record_id, value in itertools.islice(iter(cursor), BATCH):
                _, _, sealed, _, _, _, _, member, _ = LOCATION.unpack(value)
                bases = tuple(self._locations.bases(txn, record_id, value))
                records.append(IndexedRecord(kind, record_id, 0 if member else sealed, bases))
            forwards(start, records[-1].id + b"\0")
            return records
