"""What this machine knows of a store: where records lie, and the generations. LMDB, rebuildable.

Everything here can be read again from the store. Entries are put only after what they tell of is
in the store, and by a session only after it is durable there. Reads are short transactions; none stays
open across I/O on the store.

    chunks, nodes   id -> place (27 bytes)
    copies          id | pack number -> place: of a record that the tables above place elsewhere
    bases           id | pack number -> ids of the bases of a delta
    features        super-feature of a sketch -> first 8 bytes of the id of the latest chunk that has it
    uses            service -> (pack number, little-endian | bytes used) of each pack that its last
                    generation is in, bases included
    packs           pack number -> pack id | length | bytes of records;   pack_numbers: the other way round
    sessions        session number -> session id;      session_numbers: the other way round
    generations     service | 0 | number -> plaintext of the record
    revisions       service | 0 | revision | 0 | number -> nothing; safety generations left out
    records         T-N, the name of a generation's object -> its key in generations
    verified        pack number -> when its bytes were last found sound, and its records (ns since 1970)
    meta            version of this layout, store id, the next pack and session number, an epoch, the
                    numbers of condemned packs

Numbers in keys are u32, big-endian, so that they sort.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import lmdb

from castore.errors import DamageError, FormatError
from castore.kernel.marks import Marks
from castore.kernel.rows import are_listed, weigh
from castore.model.events import decode_event, encode_event
from castore.model.generation import decode_generation
from castore.model.refs import PackId, RecordId, SessionId
from castore.store.environment import TABLES, acquire, mark_of, refusal, release
from castore.store.pack import BASES, CHUNK, MAX_CHAIN, NODE, PackEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence

    from castore.errors import StorageError
    from castore.kernel import Sketch
    from castore.model.events import Event
    from castore.model.generation import Generation
    from castore.store.pack import Footer

_MOST_EVENTS: Final = 10_000
_PLACE: Final = struct.Struct("<IIIIIIBBB")
"""Pack, offset, sealed length, plain length, counter, session, codec, member of a group of how many."""
_CODEC: Final = 24
"""Where in it the codec is."""
_USE: Final = struct.Struct("<4sQ")
_VERIFIED: Final = struct.Struct("<QQ")
_NUMBER: Final = struct.Struct(">I")
_PACK: Final = struct.Struct("<32sQQ")
"""Id, length, and how many bytes of it are records."""
_FEW: Final = 200
"""Generations that are read at once."""
_BATCH: Final = 1 << 14
"""Records that are looked at in one call of the kernel."""


_CONDEMNED: Final = b"condemned"
_Result = TypeVar("_Result")
_Item = TypeVar("_Item")


class Place(NamedTuple):
    """Where a record lies, and what it takes to open it."""

    pack: PackId
    offset: int
    sealed_length: int
    plain_length: int
    counter: int
    session: SessionId
    codec: int
    bases: tuple[RecordId, ...]
    member: int

    @classmethod
    def of(cls, pack: PackId, entry: PackEntry) -> Place:
        """Return the place of an entry of a pack."""
        return cls(
            pack,
            entry.offset,
            entry.sealed_length,
            entry.plain_length,
            entry.counter,
            entry.session,
            entry.codec,
            entry.bases,
            entry.member,
        )


class Index:
    """The index in the folder `path`, made where there is none; safe to share between threads."""

    def __init__(self, path: str, store_id: bytes) -> None:
        self.path = path
        self._store_id = store_id
        self._environment = acquire(path, store_id)
        self._begin, self._end = self._environment.begin, self._environment.end
        self._tables = self._environment.tables
        self._closed = False

    def close(self) -> None:
        """Give the index up; the last to do so closes it."""
        if not self._closed:
            self._closed = True
            release(self._environment)

    def epoch(self) -> bytes:
        """Return 16 bytes that are others as soon as anything that was indexed may be gone."""
        with self._transaction() as txn:
            found: bytes | None = txn.get(b"epoch", db=self._tables["meta"])
        return self._write(self._begin_epoch) if found is None else found

    def rebuild(
        self,
        footers: Iterable[tuple[PackId, Footer | Exception]],
        failed: Callable[[PackId, Exception], None],
    ) -> None:
        """Begin anew with all packs of a store, by their footers; failed: is told which cannot be read.

        Generations and events stay. Raises StorageError; then the index is as it was.
        """
        from castore.store.rebuild import rebuild  # noqa: PLC0415 - of little use to most commands

        rebuild(self._environment, mark_of(self._store_id), footers, failed)

    def _begin_epoch(self, txn: Any) -> bytes:
        epoch = os.urandom(16)
        txn.put(b"epoch", epoch, db=self._tables["meta"])
        return epoch

    def clear(self) -> None:
        """Forget everything. Raises StorageError."""
        self._write(self._clear)

    def _clear(self, txn: Any) -> None:
        self._begin_epoch(txn)
        txn.delete(_CONDEMNED, db=self._tables["meta"])
        for name in TABLES:
            if name not in {"meta", "events"}:
                txn.drop(self._tables[name], delete=False)

    def _refusal(self, error: Exception) -> StorageError:
        return refusal(self.path, error)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        """Give a transaction that reads; while it is open, this thread opens no other."""
        try:
            with self._environment.reading() as txn:
                yield txn
        except lmdb.Error as error:
            raise self._refusal(error) from error

    def _write(self, change: Callable[..., _Result], *arguments: Any) -> _Result:
        """Run `change(txn, *arguments)` in a transaction that writes; it may be run more than once."""
        try:
            return self._environment.write(lambda txn: change(txn, *arguments))
        except lmdb.Error as error:
            raise self._refusal(error) from error

    # Records

    def has_chunk(self, chunk: bytes) -> bool:
        """Whether the store has a chunk."""
        try:
            txn = self._begin("chunks")
            try:
                return txn.get(chunk) is not None
            finally:
                txn.abort()
                self._end()
        except lmdb.Error as error:
            raise self._refusal(error) from error

    def has_node(self, node: bytes, *, without: Collection[PackId] = ()) -> bool:
        """Whether the store has a node, in a pack that is to stay; without: packs that are not."""
        try:
            txn = self._begin("nodes")
            try:
                value = txn.get(node)
                if value is None or not (condemned := self._condemned(txn, without)):
                    return value is not None
                return any(True for _ in self._values(txn, node, value, condemned))
            finally:
                txn.abort()
                self._end()
        except lmdb.Error as error:
            raise self._refusal(error) from error

    def known(
        self,
        chunks: Sequence[RecordId],
        packs: Counter[bytes] | None = None,
        *,
        without: Collection[PackId] = (),
    ) -> list[bool]:
        """Say of each chunk whether the store has it, and all that it rests on, in packs that are to stay.

        The bytes that these take are added to `packs`, by the pack's number. without: packs that are not
        to stay, besides those that are condemned.
        """
        packs = Counter() if packs is None else packs
        seen: dict[bytes, bool] = {}
        records: set[bytes] = set()
        with self._transaction() as txn:
            condemned = self._condemned(txn, without)
            found = []
            for chunk in chunks:
                self._whole_value(txn, chunk, packs, seen, records, condemned)
                found.append(seen[chunk])
            return found

    def _whole_value(
        self,
        txn: Any,
        chunk: bytes,
        packs: Counter[bytes],
        seen: dict[bytes, bool],
        records: set[bytes],
        condemned: frozenset[bytes],
    ) -> bytes | None:
        """Return the first of a chunk's places from which it can be put together.

        seen: what is known of chunks; of one that is in it, nothing is returned. records: those counted.
        """
        if chunk in seen:
            return None
        seen[chunk] = False  # what rests on itself is not whole
        first = txn.get(chunk, db=self._tables["chunks"])
        if first is None:
            return None
        for value in self._values(txn, chunk, first, condemned):
            for base in self._bases_of(txn, chunk, value):
                self._whole_value(txn, base, packs, seen, records, condemned)
                if not seen[base]:
                    break
            else:
                # Its pack and offset: several chunks may share a record.
                if value[:8] not in records:
                    records.add(value[:8])
                    packs[value[:4]] += int.from_bytes(value[8:12], "little")
                seen[chunk] = True
                return bytes(value)
        return None

    def _bases_of(self, txn: Any, chunk: bytes, value: bytes) -> list[bytes]:
        """Return the ids that a chunk rests on at one of its places."""
        if not BASES[value[_CODEC]]:
            return []
        number = _NUMBER.pack(int.from_bytes(value[:4], "little"))
        joined = txn.get(chunk + number, b"", db=self._tables["bases"])
        return [joined[at : at + 32] for at in range(0, len(joined), 32)]

    def lacking(self, chunk: RecordId) -> RecordId | None:
        """Return what keeps a chunk from being put together: it is not indexed, or rests on itself.

        None if nothing does.
        """
        return self._lacking(chunk, (), set())

    def _lacking(
        self, chunk: RecordId, above: tuple[RecordId, ...], whole: set[RecordId]
    ) -> RecordId | None:
        if chunk in whole:
            return None
        if chunk in above or len(above) > MAX_CHAIN:
            return chunk
        place = self.locate(CHUNK, chunk)
        lacking: RecordId | None = chunk
        # Two machines that stored the same at once may each have told one chunk by the other: then both
        # have a copy of one of them that does not rest on the other.
        for one in [place, *self.copies(chunk)] if place is not None and place.bases else [place]:
            if one is None:
                continue
            lacking = None
            for base in one.bases:
                lacking = lacking or self._lacking(base, (*above, chunk), whole)
            if lacking is None:
                whole.add(chunk)
                break
        return lacking

    def similar(self, sketches: Iterable[Sketch]) -> list[list[RecordId]]:
        """Return for each sketch the chunks that share features with it, the most alike first."""
        with self._transaction() as txn:
            return [self._similar(txn, sketch) for sketch in sketches]

    def _similar(self, txn: Any, sketch: Sketch) -> list[RecordId]:
        votes: dict[bytes, int] = {}
        for feature in sketch:
            start = txn.get(feature, db=self._tables["features"])
            if start is not None:
                votes[start] = votes.get(start, 0) + 1
        cursor = txn.cursor(self._tables["chunks"])
        return [
            RecordId(cursor.key())
            for start in sorted(votes, key=lambda one: -votes[one])
            if cursor.set_range(start) and cursor.key()[:8] == start
        ]

    def locate(self, kind: int, record_id: RecordId) -> Place | None:
        """Return where a record lies, or None."""
        try:
            txn = self._begin()
            try:
                value = txn.get(record_id, db=self._tables["chunks" if kind == CHUNK else "nodes"])
                return None if value is None else self._place(txn, record_id, value)
            finally:
                txn.abort()
                self._end()
        except lmdb.Error as error:
            raise self._refusal(error) from error

    def locate_chunks(
        self, chunks: Iterable[RecordId], kept: Container[RecordId] = ()
    ) -> dict[RecordId, Place]:
        """Return where chunks lie, and all that they rest on, as far as it is indexed.

        kept: what to leave out, and what only that rests on.
        """
        found: dict[RecordId, Place] = {}
        todo = [chunk for chunk in chunks if chunk not in kept]
        names: dict[int, tuple[bytes, PackId]] = {}
        sessions: dict[int, SessionId] = {}
        unpack, bases_of = _PLACE.unpack, self._tables["bases"]
        with self._transaction() as txn:
            while todo:
                chunk = todo.pop()
                value = None if chunk in found else txn.get(chunk, db=self._tables["chunks"])
                if value is None:
                    continue
                pack, offset, sealed, plain, counter, session, codec, member, _ = unpack(value)
                if pack not in names or session not in sessions:
                    place = self._place(txn, chunk, value)
                    if place is None:
                        continue
                    names[pack] = _NUMBER.pack(pack), place.pack
                    sessions[session] = place.session
                number, pack_id = names[pack]
                bases: tuple[RecordId, ...] = ()
                if BASES[codec]:
                    joined = txn.get(chunk + number, b"", db=bases_of)
                    if len(joined) != 32 * BASES[codec]:
                        continue
                    if len(joined) == 32:
                        bases = (joined,)
                    else:
                        bases = tuple(RecordId(joined[at : at + 32]) for at in range(0, len(joined), 32))
                    todo += [base for base in bases if base not in kept]
                found[chunk] = Place(
                    pack_id, offset, sealed, plain, counter, sessions[session], codec, bases, member
                )
        return found

    def copies(self, record_id: RecordId) -> list[Place]:
        """Return where else a record lies."""
        with self._transaction() as txn:
            found = [self._place(txn, record_id, value) for value in self._copy_values(txn, record_id)]
        return [place for place in found if place is not None]

    def _values(
        self, txn: Any, record_id: bytes, first: bytes, condemned: frozenset[bytes]
    ) -> Iterator[bytes]:
        """Yield a record's places that may be counted on.

        Others than the first only if that is asked for, and it is a delta or condemned.
        """
        stays = first[:4] not in condemned
        if stays:
            yield first
        if BASES[first[_CODEC]] or not stays:
            for value in self._copy_values(txn, record_id):
                if value[:4] not in condemned:
                    yield value

    def _copy_values(self, txn: Any, record_id: bytes) -> list[bytes]:
        found = []
        cursor = txn.cursor(self._tables["copies"])
        more = cursor.set_range(record_id)
        while more and cursor.key()[:32] == record_id:
            found.append(cursor.value())
            more = cursor.next()
        return found

    def _place(self, txn: Any, record_id: bytes, value: bytes) -> Place | None:
        pack, offset, sealed, plain, counter, session, codec, member, _ = _PLACE.unpack(value)
        number = _NUMBER.pack(pack)
        named = txn.get(number, db=self._tables["packs"])
        session_id = txn.get(_NUMBER.pack(session), db=self._tables["sessions"])
        joined = b""
        if BASES[codec]:
            joined = txn.get(record_id + number, b"", db=self._tables["bases"])
        if named is None or session_id is None or len(joined) != 32 * BASES[codec]:
            return None
        bases = tuple(RecordId(joined[at : at + 32]) for at in range(0, len(joined), 32))
        pack_id = PackId(named[:32])
        session_id = SessionId(session_id)
        return Place(pack_id, offset, sealed, plain, counter, session_id, codec, bases, member)

    def records(self) -> Iterator[tuple[int, RecordId, int, tuple[RecordId, ...]]]:
        """Yield kind, id, sealed length and bases of each chunk and node.

        The length of a record that several share is told once, for the first of them.
        """
        for kind, table in ((CHUNK, "chunks"), (NODE, "nodes")):
            start = b""
            while batch := self._records_from(table, start):
                for record_id, value, joined in batch:
                    _, _, sealed, _, _, _, _, member, _ = _PLACE.unpack(value)
                    bases = (RecordId(joined[at : at + 32]) for at in range(0, len(joined), 32))
                    yield kind, RecordId(record_id), 0 if member else sealed, tuple(bases)
                start = batch[-1][0] + b"\0"

    def _records_from(self, table: str, start: bytes) -> list[tuple[bytes, bytes, bytes]]:
        """Return records from an id on, some thousands: id, place and joined ids of bases of each."""
        with self._transaction() as txn:
            cursor = txn.cursor(self._tables[table])
            if not cursor.set_range(start):
                return []
            found = list(itertools.islice(iter(cursor), _BATCH))
            return [
                (record_id, value, b"".join(self._bases_of(txn, record_id, value)))
                for record_id, value in found
            ]

    def size(self) -> int:
        """Return how many bytes the index takes."""
        with self._transaction() as txn:
            pages = sum(
                sum(txn.stat(table)[f"{kind}_pages"] for kind in ("branch", "leaf", "overflow"))
                for table in self._tables.values()
            )
            return int(pages * txn.stat(self._tables["chunks"])["psize"])

    def count(self, table: str) -> int:
        """Return how many entries a table has: chunks, nodes, packs, sessions, generations."""
        with self._transaction() as txn:
            return int(txn.stat(self._tables[table])["entries"])

    # Packs

    def sessions(self) -> set[SessionId]:
        """Return the sessions that the records in packs are of."""
        used: set[bytes] = set()
        with self._transaction() as txn:
            for table in (self._tables["chunks"], self._tables["nodes"], self._tables["copies"]):
                used.update(value[20:24] for _, value in txn.cursor(table))
            found = {txn.get(number[::-1], db=self._tables["sessions"]) for number in used}
        return found - {None}

    def verified(self, depth: int) -> dict[PackId, int]:
        """Return when packs were last found sound at a depth (1 bytes, 2 records): ns since 1970."""
        found = {}
        with self._transaction() as txn:
            for number, value in txn.cursor(self._tables["verified"]):
                named = txn.get(number, db=self._tables["packs"])
                if named is not None:
                    found[PackId(named[:32])] = _VERIFIED.unpack(value)[depth - 1]
        return found

    def set_verified(self, packs: Iterable[PackId], depth: int, time: int) -> None:
        """Remember that packs were found sound at a depth, and so at those above."""
        self._write(self._set_verified, list(packs), depth, time)

    def _set_verified(self, txn: Any, packs: list[PackId], depth: int, time: int) -> None:
        table = self._tables["verified"]
        for pack in packs:
            number = txn.get(pack, db=self._tables["pack_numbers"])
            if number is not None:
                _, records_at = _VERIFIED.unpack(txn.get(number, bytes(16), db=table))
                txn.put(number, _VERIFIED.pack(time, time if depth > 1 else records_at), db=table)

    def verifying(self, depth: int) -> int:
        """Return when a verification of this depth began that has not ended, or 0."""
        with self._transaction() as txn:
            return int.from_bytes(txn.get(b"verifying %d" % depth, b"", db=self._tables["meta"]), "big")

    def set_verifying(self, depth: int, time: int) -> None:
        """Remember when a verification began; 0: it has ended."""
        key, value = b"verifying %d" % depth, time.to_bytes(8, "big")
        self._write(lambda txn: txn.put(key, value, db=self._tables["meta"]))

    def pack_ids(self) -> set[PackId]:
        """Return the packs that are indexed."""
        with self._transaction() as txn:
            keys = txn.cursor(self._tables["pack_numbers"]).iternext(keys=True, values=False)
            return set(keys)

    def entries(self, pack: PackId) -> list[PackEntry]:
        """Return what is known to lie in a pack, in order; of records with all of their entries only."""
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
                        *(place.counter, place.session, place.offset, place.bases, place.member),
                    )
                    found.setdefault(place.offset, [None] * (value[26] or 1))[place.member] = entry
        return [entry for _, group in sorted(found.items()) if None not in group for entry in group if entry]

    def packs(self) -> list[tuple[PackId, int]]:
        """Return the packs that are indexed, with their lengths."""
        with self._transaction() as txn:
            values = txn.cursor(self._tables["packs"]).iternext(keys=False, values=True)
            return [_PACK.unpack(value)[:2] for value in values]

    def put_packs(
        self,
        packs: Iterable[tuple[PackId, int, list[PackEntry]]],
        sketches: Iterable[tuple[RecordId, Sketch]] = (),
    ) -> None:
        """Take in packs that are durable in the store: (name, length, entries) of each.

        sketches: those of chunks among them that can be bases.
        """
        self._write(self._put_packs, list(packs), list(sketches))

    def _put_packs(
        self,
        txn: Any,
        packs: list[tuple[PackId, int, list[PackEntry]]],
        sketches: list[tuple[RecordId, Sketch]],
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
                txn.put(number, _PACK.pack(pack, length, records), db=self._tables["packs"])
                self._put_entries(txn, number, entries)

    def _put_entries(self, txn: Any, number: bytes, entries: list[PackEntry]) -> None:
        (pack,) = _NUMBER.unpack(number)
        sessions: dict[SessionId, int] = {}
        members = Counter(entry.offset for entry in entries)
        before: RecordId | None = None
        # Where a pack has one twice, the first rests on what is in front of it, and is the one to take.
        for entry in sorted(entries, key=lambda entry: (entry.id, entry.offset, entry.member)):
            if entry.id == before:
                continue
            before = entry.id
            session = sessions.get(entry.session)
            if session is None:
                session = sessions[entry.session] = self._session_number(txn, entry.session)
            place = _PLACE.pack(
                pack,
                entry.offset,
                entry.sealed_length,
                entry.plain_length,
                entry.counter,
                session,
                entry.codec,
                entry.member,
                members[entry.offset],
            )
            table = self._tables["chunks"] if entry.kind == CHUNK else self._tables["nodes"]
            if not txn.put(entry.id, place, overwrite=False, db=table):
                txn.put(entry.id + number, place, db=self._tables["copies"])
            if entry.bases:
                txn.put(entry.id + number, b"".join(entry.bases), db=self._tables["bases"])

    def _next_number(self, txn: Any, counter: bytes) -> bytes:
        number: bytes = txn.get(counter, _NUMBER.pack(0), db=self._tables["meta"])
        txn.put(counter, _NUMBER.pack(_NUMBER.unpack(number)[0] + 1), db=self._tables["meta"])
        return number

    def _session_number(self, txn: Any, session: SessionId) -> int:
        number = txn.get(session, db=self._tables["session_numbers"])
        if number is None:
            number = self._next_number(txn, b"next session")
            txn.put(session, number, db=self._tables["session_numbers"])
            txn.put(number, session, db=self._tables["sessions"])
        return int(_NUMBER.unpack(number)[0])

    def remove_packs(
        self, packs: Iterable[PackId], entries: Mapping[PackId, Sequence[RecordId]] | None = None
    ) -> None:
        """Forget packs that are gone from the store; a copy takes the place of what was in them.

        entries: the ids of all that is in each, where that is known: else all that is indexed is looked at.
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
                gone[number] = pack
        if not gone:
            return
        self._begin_epoch(txn)
        self._condemn(txn, self._condemned(txn) - {number[::-1] for number in gone})
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
        """Delete what is known to be in packs, by their numbers; return what had its first place there."""
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
        """Delete all that is in packs, wherever it is; return what had its first place there."""
        listed = b"".join(numbers)
        for name in ("copies", "bases"):
            found: list[bytes] = []
            for keys in _batches(txn.cursor(self._tables[name]).iternext(keys=True, values=False)):
                # The number stands behind the id.
                count, told = are_listed(b"".join(keys)[32:] + bytes(32), 36, listed)
                if count:
                    found += itertools.compress(keys, told)
            for key in found:
                txn.delete(key, db=self._tables[name])
        listed = b"".join(sorted(number[::-1] for number in numbers))
        dead: dict[str, list[bytes]] = {"chunks": [], "nodes": []}
        for name, found in dead.items():
            for batch in _batches(iter(txn.cursor(self._tables[name]))):
                count, told = are_listed(b"".join([value for _, value in batch]), _PLACE.size, listed)
                if count:
                    found += [key for key, _ in itertools.compress(batch, told)]
            for key in found:
                txn.delete(key, db=self._tables[name])
        return dead

    def _delete_features(self, txn: Any, ids: list[bytes]) -> None:
        """Delete the features of chunks that are gone."""
        marks = Marks(len(ids))
        marks.add(b"".join(ids))
        database = self._tables["features"]
        found: list[bytes] = []
        for batch in _batches(iter(txn.cursor(database))) if ids else ():
            told = marks.find(b"".join([start for _, start in batch]), 8)
            if any(told):
                alike = itertools.compress(batch, told)
                found += [feature for feature, start in alike if not self._has(txn, start)]
        for feature in found:
            txn.delete(feature, db=database)

    def _has(self, txn: Any, start: bytes) -> bool:
        """Whether a chunk's id begins so."""
        cursor = txn.cursor(self._tables["chunks"])
        return bool(cursor.set_range(start)) and cursor.key()[:8] == start

    # What is needed of packs, and what is not

    def condemn(self, packs: Iterable[PackId]) -> None:
        """Count no more on what is in exactly these packs: they are about to be removed from the store."""
        with self._transaction() as txn:
            before = self._condemned(txn)
            numbers = [txn.get(pack, db=self._tables["pack_numbers"]) for pack in packs]
        now = frozenset(number[::-1] for number in numbers if number is not None)
        if now != before:
            self._write(self._condemn, now, bool(now - before))

    def _condemn(self, txn: Any, numbers: frozenset[bytes], fresh: bool = False) -> None:
        """Remember which packs are condemned; fresh: some of them were not before."""
        if fresh:
            self._begin_epoch(txn)
        txn.put(_CONDEMNED, b"".join(sorted(numbers)), db=self._tables["meta"])

    def _condemned(self, txn: Any, besides: Iterable[PackId] = ()) -> frozenset[bytes]:
        """Return the numbers of condemned packs, and those of others, as places begin with them."""
        joined = txn.get(_CONDEMNED, b"", db=self._tables["meta"])
        numbers = [txn.get(pack, b"", db=self._tables["pack_numbers"])[::-1] for pack in besides]
        return frozenset([*numbers, *(joined[at : at + 4] for at in range(0, len(joined), 4))])

    def mark_bases(self, marks: Marks) -> None:
        """Mark all that marked chunks rest on, wherever they lie."""
        marked = -1
        # One pass nearly always does; that a whole one marked nothing is what proves it.
        while marked != len(marks):
            marked = len(marks)
            with self._transaction() as txn:
                for batch in _batches(iter(txn.cursor(self._tables["bases"]))):
                    # Keys of 36 bytes begin with the id.
                    told = marks.find(b"".join([key for key, _ in batch]), 36)
                    self._mark_below(txn, [joined for _, joined in itertools.compress(batch, told)], marks)

    def _mark_below(self, txn: Any, todo: list[bytes], marks: Marks) -> None:
        """Mark chunks, whose joined ids are given, and all that they rest on."""
        cursor = txn.cursor(self._tables["bases"])
        # Most are marked, most of the time.
        while todo and (joined := b"".join(todo)):
            todo = []
            told = marks.add(joined)
            at = -1
            while (at := told.find(1, at + 1)) >= 0:
                base = joined[32 * at : 32 * at + 32]
                more = cursor.set_range(base)
                while more and cursor.key()[:32] == base:
                    todo.append(cursor.value())
                    more = cursor.next()

    def live_bytes(self, marks: Marks) -> dict[PackId, tuple[int, int, int]]:
        """Return how much is marked of each pack that is to stay.

        Of a pack: its length, the bytes of its records, and how many of these are marked, about: records
        of several chunks count by the share of those that are.
        """
        with self._transaction() as txn:
            condemned = self._condemned(txn)
            live = array("Q", bytes(8 * self._numbers_given(txn)))
            for table in (self._tables["chunks"], self._tables["nodes"]):
                for batch in _batches(iter(txn.cursor(table))):
                    told = marks.find(b"".join([key for key, _ in batch]))
                    values = [value for _, value in batch]
                    if condemned:
                        values = [
                            next(self._values(txn, key, first, condemned), first)
                            if alive and first[:4] in condemned
                            else first
                            for (key, first), alive in zip(batch, told, strict=True)
                        ]
                    weigh(b"".join(values), told, live)
            packs = {}
            for number, value in txn.cursor(self._tables["packs"]):
                if number[::-1] in condemned:
                    continue
                pack, length, records = _PACK.unpack(value)
                packs[PackId(pack)] = length, records, live[_NUMBER.unpack(number)[0]]
        return packs

    def _numbers_given(self, txn: Any) -> int:
        """Return how many packs have been numbered: more than there are, where some are gone."""
        given = txn.get(b"next pack", _NUMBER.pack(0), db=self._tables["meta"])
        return int(_NUMBER.unpack(given)[0])

    def are_chosen(self, pack: PackId, entries: Sequence[PackEntry]) -> list[bool]:
        """Say of each entry of a pack whether this is the place that its record is to be taken from.

        So are all places of what can be put together from none: what it lacks may be stored again.
        """
        with self._transaction() as txn:
            number = txn.get(pack, b"", db=self._tables["pack_numbers"])[::-1]
            condemned = self._condemned(txn)
            found = []
            for entry in entries:
                if entry.kind == CHUNK:
                    value = self._whole_value(txn, entry.id, Counter(), {}, set(), condemned)
                else:
                    first = txn.get(entry.id, db=self._tables["nodes"])
                    values = iter(()) if first is None else self._values(txn, entry.id, first, condemned)
                    value = next(values, None)
                if value is None:
                    found.append(True)
                    continue
                place = _PLACE.unpack(value)
                found.append(value[:4] == number and (place[1], place[7]) == (entry.offset, entry.member))
        return found

    # What the last generations use

    def set_uses(self, service: str, packs: Counter[bytes]) -> None:
        """Remember which packs the last generation of a service is in, as `known` tells it."""
        joined = b"".join(_USE.pack(number, size) for number, size in packs.items())
        self._write(lambda txn: txn.put(service.encode(), joined, db=self._tables["uses"]))

    def uses(self, service: str) -> Counter[bytes]:
        """Return what was remembered so."""
        with self._transaction() as txn:
            joined = txn.get(service.encode(), b"", db=self._tables["uses"])
            return Counter(dict(_USE.iter_unpack(joined)))

    def move_uses(self, moved: Iterable[tuple[PackId, PackId]]) -> None:
        """What was used of packs is used of those that their records were moved to: (old, new)."""
        self._write(self._move_uses, list(moved))

    def _move_uses(self, txn: Any, moved: list[tuple[PackId, PackId]]) -> None:
        table, numbers = self._tables["uses"], self._tables["pack_numbers"]
        pairs = [(txn.get(old, db=numbers), txn.get(new, db=numbers)) for old, new in moved]
        for service, joined in list(txn.cursor(table)):
            used = Counter(dict(_USE.iter_unpack(joined)))
            for old, new in pairs:
                if old and new and old[::-1] in used:
                    used[new[::-1]] += used[old[::-1]]
            txn.put(service, b"".join(_USE.pack(*use) for use in used.items()), db=table)

    def used_packs(self) -> Counter[PackId]:
        """Return the packs that the last generations are in, and how many bytes of each they use."""
        found: Counter[PackId] = Counter()
        with self._transaction() as txn:
            for _, joined in txn.cursor(self._tables["uses"]):
                for number, size in _USE.iter_unpack(joined):
                    named = txn.get(number[::-1], db=self._tables["packs"])
                    if named is not None:
                        found[PackId(named[:32])] += size
        return found

    def _promote(self, txn: Any, table: str, record_id: bytes) -> None:
        cursor = txn.cursor(self._tables["copies"])
        if cursor.set_range(record_id) and cursor.key()[:32] == record_id:
            txn.put(record_id, cursor.value(), db=self._tables[table])
            cursor.delete()

    # Generations

    def compare_records(self, listed: Iterable[str]) -> tuple[list[str], list[str]]:
        """Compare the names T-N of generations in a store with those that are indexed.

        Returns, sorted, which are not indexed, and which are but not listed.
        """
        fresh = set(listed)
        gone = []
        with self._transaction() as txn:
            keys = txn.cursor(self._tables["records"]).iternext(keys=True, values=False)
            for key in keys:
                name = key.decode()
                if name in fresh:
                    fresh.discard(name)
                else:
                    gone.append(name)
        return sorted(fresh), gone

    def put_generations(self, found: Iterable[tuple[str, Generation, bytes]]) -> None:
        """Take in generations: (T-N, the generation, its plaintext) of each."""
        self._write(self._put_generations, list(found))

    def _put_generations(self, txn: Any, found: list[tuple[str, Generation, bytes]]) -> None:
        for name, generation, plain in found:
            number = _NUMBER.pack(generation.number)
            key = generation.service.encode() + b"\0" + number
            txn.put(key, plain, db=self._tables["generations"])
            txn.put(name.encode(), key, db=self._tables["records"])
            if not generation.safety:
                revision = _revision_key(generation.service, generation.revision)
                txn.put(revision + b"\0" + number, b"", db=self._tables["revisions"])

    def remove_generations(self, names: Iterable[str]) -> None:
        """Forget generations, named T-N, that are gone from the store."""
        self._write(self._remove_generations, list(names))

    def _remove_generations(self, txn: Any, names: list[str]) -> None:
        gone = {txn.pop(name.encode(), db=self._tables["records"]) for name in names}
        for key in gone - {None}:
            plain = txn.pop(key, db=self._tables["generations"])
            try:
                generation = decode_generation(plain)
            except (DamageError, FormatError, TypeError):
                # It is not known which it was of.
                found = txn.cursor(self._tables["revisions"]).iternext(keys=True, values=False)
                keys = [one for one in found if one.startswith(key[:-4]) and one[-4:] == key[-4:]]
            else:
                keys = [_revision_key(generation.service, generation.revision) + b"\0" + key[-4:]]
            for one in keys:
                txn.delete(one, db=self._tables["revisions"])

    def put_event(self, event: Event) -> None:
        """Keep an event; of very many, the oldest are forgotten."""
        self._write(self._put_event, event.time.to_bytes(8, "big") + os.urandom(4), encode_event(event))

    def _put_event(self, txn: Any, key: bytes, value: bytes) -> None:
        table = self._tables["events"]
        txn.put(key, value, db=table)
        cursor = txn.cursor(table)
        for _ in range(txn.stat(table)["entries"] - _MOST_EVENTS):
            if cursor.first():
                cursor.delete()

    def events(self, service: str | None = None) -> list[Event]:
        """Return what was kept, newest first."""
        with self._transaction() as txn:
            values = txn.cursor(self._tables["events"]).iterprev(keys=False, values=True)
            found = [decode_event(value) for value in values]
        return [one for one in found if one is not None and service in {None, one.service}]

    def services(self) -> list[str]:
        """Return the services that have generations."""
        found = []
        with self._transaction() as txn:
            cursor = txn.cursor(self._tables["generations"])
            more = cursor.first()
            while more:
                service = cursor.key()[:-5]
                found.append(service.decode())
                more = cursor.set_range(service + b"\x01")
        return found

    def generations(self, service: str) -> Iterator[bytes]:
        """Yield the plaintexts of a service's records, newest first."""
        prefix = service.encode() + b"\0"
        end = service.encode() + b"\x01"
        while batch := self._generations_below(prefix, end):
            yield from (plain for _, plain in batch)
            end = batch[-1][0]

    def _generations_below(self, prefix: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        """Return keys and values of the last records in front of a key, downwards, some hundreds."""
        found: list[tuple[bytes, bytes]] = []
        with self._transaction() as txn:
            cursor = txn.cursor(self._tables["generations"])
            more = cursor.prev() if cursor.set_range(end) else cursor.last()
            while more and len(found) < _FEW and cursor.key().startswith(prefix):
                found.append(cursor.item())
                more = cursor.prev()
        return found

    def generation(self, service: str, number: int) -> bytes | None:
        """Return the plaintext of a generation's record, or None."""
        with self._transaction() as txn:
            key = service.encode() + b"\0" + _NUMBER.pack(number)
            value: bytes | None = txn.get(key, db=self._tables["generations"])
            return value

    def numbers_by_revision(self, service: str, prefix: str) -> list[int]:
        """Return the numbers of generations whose revision begins with `prefix`, newest first."""
        numbers = []
        start = _revision_key(service, prefix)
        with self._transaction() as txn:
            cursor = txn.cursor(self._tables["revisions"])
            more = cursor.set_range(start)
            while more and cursor.key().startswith(start):
                numbers.append(_NUMBER.unpack(cursor.key()[-4:])[0])
                more = cursor.next()
        return sorted(numbers, reverse=True)


def _batches(items: Iterator[_Item]) -> Iterator[list[_Item]]:
    """Yield what there is of a table, many at a time."""
    while batch := list(itertools.islice(items, _BATCH)):
        yield batch


def _revision_key(service: str, revision: str) -> bytes:
    return service.encode() + b"\0" + revision.encode("utf-8", "surrogateescape")
