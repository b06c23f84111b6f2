"""Read where records are stored, within a transaction: tables `chunks`, `nodes`, `copies` and `bases`.

A location is encoded as `schema.LOCATION`; a `RecordLocation` is a decoded one.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from castore.model.refs import PackId, RecordId, SessionId
from castore.store.format.pack import BASES, CHUNK, MAX_CHAIN
from castore.store.index.schema import CODEC, LOCATION, NUMBER, PACK_NUMBER, RECORD, SEALED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.store.format.pack import PackEntry
    from castore.store.index.transactions import Tables

INCOMPLETE: Final = -1
"""In place of the length of a chunk's chain of bases: the chunk cannot be reconstructed."""


class RecordLocation(NamedTuple):
    """The location of a record, with the values that are needed to open it."""

    pack: PackId
    offset: int
    sealed_length: int
    plain_length: int
    counter: int
    session: SessionId
    codec: int
    bases: tuple[RecordId, ...]
    group_index: int

    @classmethod
    def of(cls, pack: PackId, entry: PackEntry) -> RecordLocation:
        """Return the location of an entry of a pack."""
        return cls(
            pack,
            entry.offset,
            entry.sealed_length,
            entry.plain_length,
            entry.counter,
            entry.session,
            entry.codec,
            entry.bases,
            entry.group_index,
        )


class LocationReader:
    """Reads the locations of records, within transactions of the other parts of the index."""

    def __init__(self, tables: Tables) -> None:
        self._db = tables.by_name

    def first(self, txn: Any, kind: int, record_id: bytes) -> bytes | None:
        """Return the first location of a chunk or node, or None."""
        value: bytes | None = txn.get(record_id, db=self._db["chunks" if kind == CHUNK else "nodes"])
        return value

    def copies(self, txn: Any, record_id: bytes) -> list[bytes]:
        """Return the further locations of a record."""
        values = []
        cursor = txn.cursor(self._db["copies"])
        more = cursor.set_range(record_id)
        while more and cursor.key()[:32] == record_id:
            values.append(cursor.value())
            more = cursor.next()
        return values

    def usable(
        self, txn: Any, record_id: bytes, first: bytes, not_referenced: frozenset[bytes]
    ) -> Iterator[bytes]:
        """Yield a record's locations in packs that may be referenced.

        Locations after the first are only yielded if the first is a delta, or in a pack of `not_referenced`.
        """
        stays = first[PACK_NUMBER] not in not_referenced
        if stays:
            yield first
        if BASES[first[CODEC]] or not stays:
            for value in self.copies(txn, record_id):
                if value[PACK_NUMBER] not in not_referenced:
                    yield value

    def bases(self, txn: Any, chunk: bytes, location: bytes) -> list[RecordId]:
        """Return the bases of a chunk at one of its locations."""
        if not BASES[location[CODEC]]:
            return []
        number = NUMBER.pack(int.from_bytes(location[PACK_NUMBER], "little"))
        return split_ids(txn.get(chunk + number, b"", db=self._db["bases"]))

    def decode(self, txn: Any, record_id: bytes, location: bytes) -> RecordLocation | None:
        """Return the decoded location; None if it is not completely indexed."""
        pack, offset, sealed, plain, counter, session, codec, member, _ = LOCATION.unpack(location)
        number = NUMBER.pack(pack)
        named = txn.get(number, db=self._db["packs"])
        session_id = txn.get(NUMBER.pack(session), db=self._db["sessions"])
        joined = b""
        if BASES[codec]:
            joined = txn.get(record_id + number, b"", db=self._db["bases"])
        if named is None or session_id is None or len(joined) != 32 * BASES[codec]:
            return None
        bases = tuple(split_ids(joined))
        pack_id = PackId(named[:32])
        session_id = SessionId(session_id)
        return RecordLocation(pack_id, offset, sealed, plain, counter, session_id, codec, bases, member)


class CompleteChunks:
    """Finds, within one transaction, the locations from which chunks can be reconstructed.

    That is a location in a pack that stays, of a chunk whose bases can all be reconstructed, too. Each chunk
    and base is examined once. A damaged base counts as stored until `castore repair` has deleted it.
    """

    def __init__(self, tables: Tables, txn: Any, not_referenced: frozenset[bytes]) -> None:
        """not_referenced: the numbers of packs that do not stay, as they are encoded in locations."""
        self.pack_bytes: Counter[bytes] = Counter()
        """Bytes of the records that were found, by pack number as encoded in locations."""
        self._chunks = tables.by_name["chunks"]
        self._locations = LocationReader(tables)
        self._txn = txn
        self._not_referenced = not_referenced
        self._heights: dict[bytes, int] = {}
        """For each chunk examined, the length of its chain of bases, or INCOMPLETE."""
        self._counted: set[bytes] = set()
        """The records that are counted in `pack_bytes`."""

    def has(self, chunk: bytes) -> bool:
        """Return whether a chunk can be reconstructed."""
        self.find(chunk)
        return self._heights[chunk] != INCOMPLETE

    def find(self, chunk: bytes, depth: int = 0) -> bytes | None:
        """Return the first of a chunk's locations from which it can be reconstructed, or None.

        Also returns None for a chunk that was examined before.
        """
        heights = self._heights
        if chunk in heights:
            return None
        # A chunk that is its own base, or whose chain is longer than a reader follows, stays INCOMPLETE.
        heights[chunk] = INCOMPLETE
        first = self._txn.get(chunk, db=self._chunks) if depth <= MAX_CHAIN else None
        if first is None:
            return None
        # Most chunks are no deltas: this is the fast path of the loop below.
        if not BASES[first[CODEC]] and first[PACK_NUMBER] not in self._not_referenced:
            return self._complete(chunk, first, 0)
        for location in self._locations.usable(self._txn, chunk, first, self._not_referenced):
            height = 0
            for base in self._locations.bases(self._txn, chunk, location):
                self.find(base, depth + 1)
                height = max(height, heights[base] + 1)
                if heights[base] == INCOMPLETE or height > MAX_CHAIN:
                    break
            else:
                return self._complete(chunk, location, height)
        return None

    def _complete(self, chunk: bytes, location: bytes, height: int) -> bytes:
        self._heights[chunk] = height
        record = location[RECORD]
        # Several chunks may share a record.
        if record not in self._counted:
            self._counted.add(record)
            self.pack_bytes[location[PACK_NUMBER]] += int.from_bytes(location[SEALED], "little")
        return location


def split_ids(joined: bytes) -> list[RecordId]:
    """Return the ids in a string of ids."""
    return [RecordId(joined[at : at + 32]) for at in range(0, len(joined), 32)]
