"""Add packs to an index, list them, and remove them."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from castore.kernel.index_rows import are_listed
from castore.model.refs import PackId, RecordId, SessionId
from castore.store.format.pack import CHUNK, NODE, PackEntry
from castore.store.index.schema import (
    GROUP_SIZE,
    LOCATION,
    NEXT_PACK,
    NEXT_SESSION,
    NUMBER,
    PACK,
    PACK_NUMBER,
    SESSION_NUMBER,
    batches,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from castore.kernel import Sketch
    from castore.store.index.location_reader import LocationReader, RecordLocation
    from castore.store.index.metadata import Metadata
    from castore.store.index.transactions import Tables


class PackContent(NamedTuple):
    """A pack to be indexed; it must be durable in the store."""

    id: PackId
    length: int
    entries: list[PackEntry]
    signer: bytes = bytes(32)
    """The public key that signed it."""


class PackOwner(NamedTuple):
    """The signer of a pack, and the sessions of its records."""

    pack: PackId
    length: int
    signer: bytes
    """The public key that signed the pack."""
    sessions: list[SessionId]
    """The sessions of its records."""


class PackTable:
    """The tables of packs and sessions; adds the records of packs, and removes them with the packs."""

    def __init__(self, tables: Tables, meta: Metadata, locations: LocationReader) -> None:
        self._tables = tables
        self._db = tables.by_name
        self._meta = meta
        self._locations = locations

    def ids(self) -> set[PackId]:
        """Return the ids of the indexed packs."""
        with self._tables.reading() as txn:
            keys = txn.cursor(self._db["pack_numbers"]).iternext(keys=True, values=False)
            return set(keys)

    def lengths(self) -> list[tuple[PackId, int]]:
        """Return the ids of the indexed packs, with their lengths."""
        with self._tables.reading() as txn:
            values = txn.cursor(self._db["packs"]).iternext(keys=False, values=True)
            return [PACK.unpack(value)[:2] for value in values]

    def owners(self) -> list[PackOwner]:
        """Return for each pack who added it, and its records."""
        owners = []
        with self._tables.reading() as txn:
            for number, value in list(txn.cursor(self._db["owners"])):
                pack = txn.get(number, db=self._db["packs"])
                if pack is None:
                    continue
                numbers = [value[at : at + 4] for at in range(32, len(value), 4)]
                sessions = [txn.get(session, db=self._db["sessions"]) for session in numbers]
                pack_id, length, _ = PACK.unpack(pack)
                known = [session for session in sessions if session is not None]
                owners.append(PackOwner(pack_id, length, value[:32], known))
        return owners

    def sessions(self) -> set[SessionId]:
        """Return the sessions of the records in packs."""
        used: set[bytes] = set()
        with self._tables.reading() as txn:
            for table in (self._db["chunks"], self._db["nodes"], self._db["copies"]):
                used.update(value[SESSION_NUMBER] for _, value in txn.cursor(table))
            sessions = {txn.get(number[::-1], db=self._db["sessions"]) for number in used}
        return sessions - {None}

    def entries(self, pack: PackId) -> list[PackEntry]:
        """Return the indexed entries of a pack, in order; only of records that are completely indexed."""
        entries_of: dict[int, list[PackEntry | None]] = {}
        for entry, size in self._entries_of(pack):
            entries_of.setdefault(entry.offset, [None] * size)[entry.group_index] = entry
        return [
            entry for _, group in sorted(entries_of.items()) if None not in group for entry in group if entry
        ]

    def _entries_of(self, pack: PackId) -> Iterator[tuple[PackEntry, int]]:
        """Yield each indexed entry of a pack, and the number of entries that share its record."""
        with self._tables.reading() as txn:
            number = txn.get(pack, b"", db=self._db["pack_numbers"])
            for kind, table in ((CHUNK, "chunks"), (NODE, "nodes"), (None, "copies")):
                for key, value in txn.cursor(self._db[table]):
                    if value[PACK_NUMBER] != number[::-1]:
                        continue
                    location = self._locations.decode(txn, key[:32], value)
                    if location is None:
                        continue
                    known = kind
                    if known is None:
                        known = CHUNK if txn.get(key[:32], db=self._db["chunks"]) is not None else NODE
                    yield _entry_at(location, RecordId(key[:32]), known), value[GROUP_SIZE] or 1

    def without_key(self, listed: Callable[[], Collection[SessionId]]) -> set[PackId]:
        """Return the packs with records of sessions whose objects are missing: nobody can open those.

        listed: returns the existing sessions; it is called after this index is read.
        """
        with self._tables.reading() as txn:
            known = dict(txn.cursor(self._db["session_numbers"]))
        if not (missing := known.keys() - set(listed())):
            return set()
        # Locations have the number in little-endian order.
        numbers = {known[session][::-1]: session for session in missing}
        packs: set[bytes] = set()
        with self._tables.reading() as txn:
            for table in ("chunks", "nodes", "copies"):
                for _, value in txn.cursor(self._db[table]):
                    if value[SESSION_NUMBER] in numbers:
                        packs.add(value[PACK_NUMBER])
                        missing.discard(numbers[value[SESSION_NUMBER]])
            named = [txn.get(number[::-1], db=self._db["packs"]) for number in packs]
        if missing:
            # No pack has records of the remaining sessions: forget them.
            self._tables.write(self._forget_sessions, [(number, known[number]) for number in missing])
        return {PackId(value[:32]) for value in named if value is not None}

    def _forget_sessions(self, txn: Any, sessions: list[tuple[bytes, bytes]]) -> None:
        for session, number in sessions:
            txn.delete(session, db=self._db["session_numbers"])
            txn.delete(number, db=self._db["sessions"])

    def put(self, packs: Iterable[PackContent], sketches: Iterable[tuple[RecordId, Sketch]] = ()) -> None:
        """Add packs. sketches: of those of their chunks that can be bases."""
        self._tables.write(self._put, list(packs), list(sketches))

    def _put(self, txn: Any, packs: list[PackContent], sketches: list[tuple[RecordId, Sketch]]) -> None:
        table = self._db["features"]
        for chunk, sketch in sketches:
            for feature in sketch:
                txn.put(feature, chunk[:8], db=table)
        for pack, length, entries, signer in packs:
            if txn.get(pack, db=self._db["pack_numbers"]) is None:
                number = self._meta.next_number(txn, NEXT_PACK)
                txn.put(pack, number, db=self._db["pack_numbers"])
                records = sum({entry.offset: entry.sealed_length for entry in entries}.values())
                txn.put(number, PACK.pack(pack, length, records), db=self._db["packs"])
                self._put_entries(txn, number, entries)
                sessions = dict.fromkeys(entry.session for entry in entries)
                numbers = b"".join(NUMBER.pack(self._session_number(txn, session)) for session in sessions)
                txn.put(number, signer + numbers, db=self._db["owners"])

    def _put_entries(self, txn: Any, number: bytes, entries: list[PackEntry]) -> None:
        (pack,) = NUMBER.unpack(number)
        sessions: dict[SessionId, int] = {}
        members = Counter(entry.offset for entry in entries)
        before: RecordId | None = None
        # If a pack has a chunk twice, use the first one: its bases come before it.
        for entry in sorted(entries, key=lambda entry: (entry.id, entry.offset, entry.group_index)):
            if entry.id == before:
                continue
            before = entry.id
            session = sessions.get(entry.session)
            if session is None:
                session = sessions[entry.session] = self._session_number(txn, entry.session)
            location = LOCATION.pack(
                pack,
                entry.offset,
                entry.sealed_length,
                entry.plain_length,
                entry.counter,
                session,
                entry.codec,
                entry.group_index,
                members[entry.offset],
            )
            table = self._db["chunks"] if entry.kind == CHUNK else self._db["nodes"]
            if not txn.put(entry.id, location, overwrite=False, db=table):
                txn.put(entry.id + number, location, db=self._db["copies"])
            if entry.bases:
                txn.put(entry.id + number, b"".join(entry.bases), db=self._db["bases"])

    def _session_number(self, txn: Any, session: SessionId) -> int:
        number = txn.get(session, db=self._db["session_numbers"])
        if number is None:
            number = self._meta.next_number(txn, NEXT_SESSION)
            txn.put(session, number, db=self._db["session_numbers"])
            txn.put(number, session, db=self._db["sessions"])
        return int(NUMBER.unpack(number)[0])

    def remove(
        self, packs: Iterable[PackId], entries: Mapping[PackId, Sequence[RecordId]] | None = None
    ) -> None:
        """Remove packs that are missing in the store; copies replace the records in them.

        entries: the ids of everything in each pack, if known; otherwise the whole index is scanned.
        """
        self._tables.write(self._remove, list(packs), entries)

    def _remove(
        self, txn: Any, packs: list[PackId], entries: Mapping[PackId, Sequence[RecordId]] | None
    ) -> None:
        removed: dict[bytes, PackId] = {}
        for pack in packs:
            number = txn.pop(pack, db=self._db["pack_numbers"])
            if number is not None:
                for name in ("packs", "owners", "verified"):
                    txn.delete(number, db=self._db[name])
                removed[number] = pack
        if not removed:
            return
        self._meta.begin_epoch(txn)
        left = self._meta.not_referenced(txn) - {number[::-1] for number in removed}
        self._meta.set_not_referenced(txn, left)
        if entries is not None and all(pack in entries for pack in removed.values()):
            dead = self._delete_named(txn, {number: entries[pack] for number, pack in removed.items()})
        else:
            dead = self._delete_scanned(txn, sorted(removed))
        for name, keys in dead.items():
            for key in keys:
                self._promote(txn, name, key)
        self._delete_features(txn, [*dead["chunks"], *dead["nodes"]])

    def _delete_named(self, txn: Any, ids: dict[bytes, Sequence[RecordId]]) -> dict[str, list[bytes]]:
        """Delete entries of packs by their ids; return the ids whose first location was there."""
        dead: dict[str, list[bytes]] = {"chunks": [], "nodes": []}
        for number, record_ids in ids.items():
            for record_id in sorted(set(record_ids)):
                for name in ("copies", "bases"):
                    txn.delete(record_id + number, db=self._db[name])
                for name, keys in dead.items():
                    value = txn.get(record_id, db=self._db[name])
                    if value is not None and value[PACK_NUMBER] == number[::-1]:
                        txn.delete(record_id, db=self._db[name])
                        keys.append(record_id)
        return dead

    def _delete_scanned(self, txn: Any, numbers: list[bytes]) -> dict[str, list[bytes]]:
        """Delete all entries of packs by a scan; return the ids whose first location was there."""
        listed = b"".join(numbers)
        for name in ("copies", "bases"):
            chunks: list[bytes] = []
            for keys in batches(txn.cursor(self._db[name]).iternext(keys=True, values=False)):
                # The number comes after the id.
                count, is_listed = are_listed(b"".join(keys)[32:] + bytes(32), 36, listed)
                if count:
                    chunks += itertools.compress(keys, is_listed)
            for key in chunks:
                txn.delete(key, db=self._db[name])
        listed = b"".join(sorted(number[::-1] for number in numbers))
        dead: dict[str, list[bytes]] = {"chunks": [], "nodes": []}
        for name, chunks in dead.items():
            for batch in batches(iter(txn.cursor(self._db[name]))):
                count, is_listed = are_listed(b"".join([value for _, value in batch]), LOCATION.size, listed)
                if count:
                    chunks += [key for key, _ in itertools.compress(batch, is_listed)]
            for key in chunks:
                txn.delete(key, db=self._db[name])
        return dead

    def _delete_features(self, txn: Any, ids: list[bytes]) -> None:
        """Delete the features of chunks that are missing now."""
        database = self._db["features"]
        starts = {one[:8] for one in ids}
        features: list[bytes] = []
        for batch in batches(iter(txn.cursor(database))) if ids else ():
            features += [feature for feature, start in batch if start in starts and not self._has(txn, start)]
        for feature in features:
            txn.delete(feature, db=database)

    def _has(self, txn: Any, start: bytes) -> bool:
        """Return whether the id of a chunk begins with `start`."""
        cursor = txn.cursor(self._db["chunks"])
        return bool(cursor.set_range(start)) and cursor.key()[:8] == start

    def _promote(self, txn: Any, table: str, record_id: bytes) -> None:
        cursor = txn.cursor(self._db["copies"])
        if cursor.set_range(record_id) and cursor.key()[:32] == record_id:
            txn.put(record_id, cursor.value(), db=self._db[table])
            cursor.delete()


def _entry_at(location: RecordLocation, record_id: RecordId, kind: int) -> PackEntry:
    """Return the entry that a pack has for a record at a location."""
    return PackEntry(
        id=record_id,
        kind=kind,
        codec=location.codec,
        plain_length=location.plain_length,
        sealed_length=location.sealed_length,
        counter=location.counter,
        session=location.session,
        offset=location.offset,
        bases=location.bases,
        group_index=location.group_index,
    )
