"""Add packs to an index, and remove them."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

from castore.kernel.id_set import IdSet
from castore.kernel.index_rows import are_listed
from castore.model.refs import PackId, RecordId, SessionId
from castore.store.format.pack import CHUNK, NODE, PackEntry
from castore.store.index.locations import LookUp
from castore.store.index.opening import mark_of
from castore.store.index.schema import NUMBER, PACK, PENDING, PLACE, batches

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from castore.kernel import Sketch
    from castore.store.format.pack import Footer


class Packs(LookUp):
    """The part of an index that knows packs and their content."""

    def rebuild(
        self,
        footers: Iterable[tuple[PackId, Footer | Exception]],
        failed: Callable[[PackId, Exception], None],
    ) -> None:
        """Rebuild the index from the footers of all packs; failed: is called with each unreadable pack.

        Generations stay. Raises StorageError; then the index is unchanged.
        """
        from castore.store.index.bulk_load import rebuild  # noqa: PLC0415 - most commands do not need it

        rebuild(self._environment, mark_of(self._store_id), footers, failed)

    def pack_ids(self) -> set[PackId]:
        """Return the ids of the indexed packs."""
        with self._transaction() as txn:
            keys = txn.cursor(self._tables["pack_numbers"]).iternext(keys=True, values=False)
            return set(keys)

    def packs(self) -> list[tuple[PackId, int]]:
        """Return the ids of the indexed packs, with their lengths."""
        with self._transaction() as txn:
            values = txn.cursor(self._tables["packs"]).iternext(keys=False, values=True)
            return [PACK.unpack(value)[:2] for value in values]

    def owners(self) -> list[tuple[PackId, int, bytes, list[SessionId]]]:
        """Return for each pack its id, its length, the public key that signed it, and its sessions."""
        found = []
        with self._transaction() as txn:
            for number, value in list(txn.cursor(self._tables["owners"])):
                pack = txn.get(number, db=self._tables["packs"])
                if pack is None:
                    continue
                numbers = [value[at : at + 4] for at in range(32, len(value), 4)]
                sessions = [txn.get(one, db=self._tables["sessions"]) for one in numbers]
                pack_id, length, _ = PACK.unpack(pack)
                found.append((pack_id, length, value[:32], [one for one in sessions if one is not None]))
        return found

    def sessions(self) -> set[SessionId]:
        """Return the sessions of the records in packs."""
        used: set[bytes] = set()
        with self._transaction() as txn:
            for table in (self._tables["chunks"], self._tables["nodes"], self._tables["copies"]):
                used.update(value[20:24] for _, value in txn.cursor(table))
            found = {txn.get(number[::-1], db=self._tables["sessions"]) for number in used}
        return found - {None}

    def entries(self, pack: PackId) -> list[PackEntry]:
        """Return the indexed entries of a pack, in order; only of records that are completely indexed."""
        found: dict[int, list[PackEntry | None]] = {}
        with self._transaction() as txn:
            number = txn.get(pack, b"", db=self._tables["pack_numbers"])
            for kind, table in ((CHUNK, "chunks"), (NODE, "nodes"), (None, "copies")):
                for key, value in txn.cursor(self._tables[table]):
                    if value[:4] != number[::-1] or (place := self._place(txn, key[:32], value)) is None:
                        continue
                    known = kind
                    if known is None:
                        known = CHUNK if txn.get(key[:32], db=self._tables["chunks"]) is not None else NODE
                    entry = PackEntry(
                        *(RecordId(key[:32]), known, place.codec, place.plain_length, place.sealed_length),
                        *(place.counter, place.session, place.offset, place.bases, place.group_index),
                    )
                    found.setdefault(place.offset, [None] * (value[26] or 1))[place.group_index] = entry
        return [entry for _, group in sorted(found.items()) if None not in group for entry in group if entry]

    def packs_without_key(self, listed: Callable[[], Collection[SessionId]]) -> set[PackId]:
        """Return the packs with records of sessions whose objects are missing: nobody can open those.

        listed: returns the existing sessions; it is called after this index is read.
        """
        with self._transaction() as txn:
            known = dict(txn.cursor(self._tables["session_numbers"]))
        if not (missing := known.keys() - set(listed())):
            return set()
        # Places have the number in little-endian order.
        numbers = {known[session][::-1]: session for session in missing}
        found: set[bytes] = set()
        with self._transaction() as txn:
            for table in ("chunks", "nodes", "copies"):
                for _, value in txn.cursor(self._tables[table]):
                    if value[20:24] in numbers:
                        found.add(value[:4])
                        missing.discard(numbers[value[20:24]])
            named = [txn.get(number[::-1], db=self._tables["packs"]) for number in found]
        if missing:
            # No pack has records of the remaining sessions: forget them.
            self._write(self._forget_sessions, [(one, known[one]) for one in missing])
        return {PackId(one[:32]) for one in named if one is not None}

    def _forget_sessions(self, txn: Any, sessions: list[tuple[bytes, bytes]]) -> None:
        for session, number in sessions:
            txn.delete(session, db=self._tables["session_numbers"])
            txn.delete(number, db=self._tables["sessions"])

    def put_packs(
        self,
        packs: Iterable[tuple[PackId, int, list[PackEntry]]],
        sketches: Iterable[tuple[RecordId, Sketch]] = (),
        *,
        signers: Mapping[PackId, bytes] | None = None,
    ) -> None:
        """Add packs that are durable in the store: (name, length, entries) of each.

        sketches: of those of their chunks that can be bases. signers: the public key that signed each pack.
        """
        self._write(self._put_packs, list(packs), list(sketches), signers or {})

    def _put_packs(
        self,
        txn: Any,
        packs: list[tuple[PackId, int, list[PackEntry]]],
        sketches: list[tuple[RecordId, Sketch]],
        signers: Mapping[PackId, bytes],
    ) -> None:
        table = self._tables["features"]
        for chunk, sketch in sketches:
            for feature in sketch:
                txn.put(feature, chunk[:8], db=table)
        for pack, length, entries in packs:
            if txn.get(pack, db=self._tables["pack_numbers"]) is None:
                number = self._next_number(txn, b"next pack")
                txn.put(pack, number, db=self._tables["pack_numbers"])
                records = sum({entry.offset: entry.sealed_length for entry in entries}.values())
                txn.put(number, PACK.pack(pack, length, records), db=self._tables["packs"])
                self._put_entries(txn, number, entries)
                sessions = dict.fromkeys(entry.session for entry in entries)
                numbers = b"".join(NUMBER.pack(self._session_number(txn, one)) for one in sessions)
                txn.put(number, signers.get(pack, bytes(32)) + numbers, db=self._tables["owners"])

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
            place = PLACE.pack(
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
            table = self._tables["chunks"] if entry.kind == CHUNK else self._tables["nodes"]
            if not txn.put(entry.id, place, overwrite=False, db=table):
                txn.put(entry.id + number, place, db=self._tables["copies"])
            if entry.bases:
                txn.put(entry.id + number, b"".join(entry.bases), db=self._tables["bases"])

    def _session_number(self, txn: Any, session: SessionId) -> int:
        number = txn.get(session, db=self._tables["session_numbers"])
        if number is None:
            number = self._next_number(txn, b"next session")
            txn.put(session, number, db=self._tables["session_numbers"])
            txn.put(number, session, db=self._tables["sessions"])
        return int(NUMBER.unpack(number)[0])

    def remove_packs(
        self, packs: Iterable[PackId], entries: Mapping[PackId, Sequence[RecordId]] | None = None
    ) -> None:
        """Remove packs that are missing in the store; copies replace the records in them.

        entries: the ids of everything in each pack, if known; otherwise the whole index is scanned.
        """
        self._write(self._remove_packs, list(packs), entries)

    def _remove_packs(
        self, txn: Any, packs: list[PackId], entries: Mapping[PackId, Sequence[RecordId]] | None
    ) -> None:
        gone: dict[bytes, PackId] = {}
        for pack in packs:
            number = txn.pop(pack, db=self._tables["pack_numbers"])
            if number is not None:
                txn.delete(number, db=self._tables["packs"])
                txn.delete(number, db=self._tables["verified"])
                txn.delete(number, db=self._tables["owners"])
                gone[number] = pack
        if not gone:
            return
        self._begin_epoch(txn)
        self._set_pending(txn, self._pending(txn) - {number[::-1] for number in gone})
        known = entries is not None and all(pack in entries for pack in gone.values())
        if entries is not None and known:
            dead = self._delete_named(txn, {number: entries[pack] for number, pack in gone.items()})
        else:
            dead = self._delete_scanned(txn, sorted(gone))
        for name, keys in dead.items():
            for key in keys:
                self._promote(txn, name, key)
        self._delete_features(txn, [*dead["chunks"], *dead["nodes"]])

    def _delete_named(self, txn: Any, ids: dict[bytes, Sequence[RecordId]]) -> dict[str, list[bytes]]:
        """Delete entries of packs by their ids; return the ids whose first place was there."""
        dead: dict[str, list[bytes]] = {"chunks": [], "nodes": []}
        for number, found in ids.items():
            for one in sorted(set(found)):
                for name in ("copies", "bases"):
                    txn.delete(one + number, db=self._tables[name])
                for name, keys in dead.items():
                    value = txn.get(one, db=self._tables[name])
                    if value is not None and value[:4] == number[::-1]:
                        txn.delete(one, db=self._tables[name])
                        keys.append(one)
        return dead

    def _delete_scanned(self, txn: Any, numbers: list[bytes]) -> dict[str, list[bytes]]:
        """Delete all entries of packs by a scan; return the ids whose first place was there."""
        listed = b"".join(numbers)
        for name in ("copies", "bases"):
            found: list[bytes] = []
            for keys in batches(txn.cursor(self._tables[name]).iternext(keys=True, values=False)):
                # The number comes after the id.
                count, is_listed = are_listed(b"".join(keys)[32:] + bytes(32), 36, listed)
                if count:
                    found += itertools.compress(keys, is_listed)
            for key in found:
                txn.delete(key, db=self._tables[name])
        listed = b"".join(sorted(number[::-1] for number in numbers))
        dead: dict[str, list[bytes]] = {"chunks": [], "nodes": []}
        for name, found in dead.items():
            for batch in batches(iter(txn.cursor(self._tables[name]))):
                count, is_listed = are_listed(b"".join([value for _, value in batch]), PLACE.size, listed)
                if count:
                    found += [key for key, _ in itertools.compress(batch, is_listed)]
            for key in found:
                txn.delete(key, db=self._tables[name])
        return dead

    def _delete_features(self, txn: Any, ids: list[bytes]) -> None:
        """Delete the features of chunks that are missing now."""
        marks = IdSet(len(ids))
        marks.add(b"".join(ids))
        database = self._tables["features"]
        found: list[bytes] = []
        for batch in batches(iter(txn.cursor(database))) if ids else ():
            marked = marks.find(b"".join([start for _, start in batch]), 8)
            if any(marked):
                candidates = itertools.compress(batch, marked)
                found += [feature for feature, start in candidates if not self._has(txn, start)]
        for feature in found:
            txn.delete(feature, db=database)

    def _has(self, txn: Any, start: bytes) -> bool:
        """Return whether the id of a chunk begins with `start`."""
        cursor = txn.cursor(self._tables["chunks"])
        return bool(cursor.set_range(start)) and cursor.key()[:8] == start

    def _promote(self, txn: Any, table: str, record_id: bytes) -> None:
        cursor = txn.cursor(self._tables["copies"])
        if cursor.set_range(record_id) and cursor.key()[:32] == record_id:
            txn.put(record_id, cursor.value(), db=self._tables[table])
            cursor.delete()

    def _set_pending(self, txn: Any, numbers: frozenset[bytes], fresh: bool = False) -> None:
        """Record which packs are pending deletion; fresh: some of them were not before."""
        if fresh:
            self._begin_epoch(txn)
        txn.put(PENDING, b"".join(sorted(numbers)), db=self._tables["meta"])
