"""Look up where records are stored, what their bases are, and which chunks are similar."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from castore.model.refs import PackId, RecordId, SessionId
from castore.store.format.pack import BASES, CHUNK, MAX_CHAIN, NODE
from castore.store.index.lmdb_env import WRONG
from castore.store.index.schema import BATCH, CODEC, NUMBER, PLACE, PLAIN, Tables, forwards

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Iterator, Sequence

    from castore.kernel import Sketch
    from castore.store.format.pack import PackEntry

_LACKING: Final = -1


class RecordLocation(NamedTuple):
    """Where a record is stored, and what is needed to open it."""

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
            entry.group_index,
        )


class LookUp(Tables):
    """The part of an index that looks records up."""

    def has_chunk(self, chunk: bytes) -> bool:
        """Return whether the store has a chunk."""
        try:
            txn = self._begin("chunks")
            try:
                return txn.get(chunk) is not None
            finally:
                txn.abort()
                self._end()
        except WRONG as error:
            raise self.refusal(error) from error

    def has_node(self, node: bytes, *, without: Collection[PackId] = ()) -> bool:
        """Return whether the store has a node in a pack that stays; without: packs that do not stay."""
        try:
            txn = self._begin("nodes")
            try:
                value = txn.get(node)
                if value is None or not (pending := self._pending(txn, without)):
                    return value is not None
                return any(True for _ in self._values(txn, node, value, pending))
            finally:
                txn.abort()
                self._end()
        except WRONG as error:
            raise self.refusal(error) from error

    def contains(
        self,
        chunks: Sequence[RecordId],
        packs: Counter[bytes] | None = None,
        *,
        without: Collection[PackId] = (),
        lengths: list[int] | None = None,
    ) -> list[bool]:
        """Return for each chunk whether the store has it, and all its bases, in packs that stay.

        packs: the bytes that these take are added to it, by the pack's number. without: packs that do not
        stay, in addition to those pending deletion. lengths: the length of each chunk is appended to it, or
        -1 if the store does not have the chunk.
        """
        packs = Counter() if packs is None else packs
        seen: dict[bytes, int] = {}
        records: set[bytes] = set()
        with self._transaction() as txn:
            pending = self._pending(txn, without)
            found = []
            for chunk in chunks:
                self._whole_value(txn, chunk, packs, seen, records, pending)
                found.append(seen[chunk] != _LACKING)
                if lengths is not None:
                    value = txn.get(chunk, db=self._tables["chunks"])
                    lengths.append(-1 if value is None else int.from_bytes(value[PLAIN], "little"))
            return found

    def stays(self, chunk: RecordId) -> bool:
        """Return whether a chunk can be reconstructed without any pack pending deletion."""
        with self._transaction() as txn:
            pending = self._pending(txn)
        return not pending or self.contains([chunk])[0]

    def _whole_value(
        self,
        txn: Any,
        chunk: bytes,
        packs: Counter[bytes],
        seen: dict[bytes, int],
        records: set[bytes],
        pending: frozenset[bytes],
        depth: int = 0,
    ) -> bytes | None:
        """Return the first of a chunk's places from which it can be reconstructed, or None.

        seen: for each chunk examined, the length of its chain of bases, or _LACKING; for a chunk that it
        contains, None is returned. records: the records that were counted in `packs`.
        """
        if chunk in seen:
            return None
        # A chunk that is its own base, or whose chain is longer than a reader follows, stays _LACKING.
        seen[chunk] = _LACKING
        first = txn.get(chunk, db=self._tables["chunks"]) if depth <= MAX_CHAIN else None
        if first is None:
            return None
        for value in self._values(txn, chunk, first, pending):
            height = 0
            for base in self._bases_of(txn, chunk, value):
                self._whole_value(txn, base, packs, seen, records, pending, depth + 1)
                height = max(height, seen[base] + 1)
                if seen[base] == _LACKING or height > MAX_CHAIN:
                    break
            else:
                # The record is identified by pack and offset: several chunks may share it.
                if value[:8] not in records:
                    records.add(value[:8])
                    packs[value[:4]] += int.from_bytes(value[8:12], "little")
                seen[chunk] = height
                return bytes(value)
        return None

    def _bases_of(self, txn: Any, chunk: bytes, value: bytes) -> list[bytes]:
        """Return the ids of the bases of a chunk at one of its places."""
        if not BASES[value[CODEC]]:
            return []
        number = NUMBER.pack(int.from_bytes(value[:4], "little"))
        joined = txn.get(chunk + number, b"", db=self._tables["bases"])
        return [joined[at : at + 32] for at in range(0, len(joined), 32)]

    def missing_base(self, chunk: RecordId) -> RecordId | None:
        """Return the chunk that prevents reconstructing a chunk: it is not indexed, or is its own base.

        Returns None if nothing prevents it.
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
        # Two machines that stored the same data at once may each have stored one chunk as a delta of the
        # other. Then each also has a copy of one of them that does not depend on the other.
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
        """Return for each sketch the chunks that share features with it, the most similar first."""
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

    def locate(self, kind: int, record_id: RecordId) -> RecordLocation | None:
        """Return where a record is stored, or None."""
        try:
            txn = self._begin()
            try:
                value = txn.get(record_id, db=self._tables["chunks" if kind == CHUNK else "nodes"])
                return None if value is None else self._place(txn, record_id, value)
            finally:
                txn.abort()
                self._end()
        except WRONG as error:
            raise self.refusal(error) from error

    def locate_chunks(
        self, chunks: Iterable[RecordId], kept: Container[RecordId] = (), kind: int = CHUNK
    ) -> dict[RecordId, RecordLocation]:
        """Return the indexed places of chunks and of all their bases; or those of nodes (`kind`).

        kept: chunks to leave out, together with bases that only they need.
        """
        found: dict[RecordId, RecordLocation] = {}
        todo = [chunk for chunk in chunks if chunk not in kept]
        names: dict[int, tuple[bytes, PackId]] = {}
        sessions: dict[int, SessionId] = {}
        unpack, bases_of = PLACE.unpack, self._tables["bases"]
        table = self._tables["chunks" if kind == CHUNK else "nodes"]
        with self._transaction() as txn:
            while todo:
                chunk = todo.pop()
                value = None if chunk in found else txn.get(chunk, db=table)
                if value is None:
                    continue
                pack, offset, sealed, plain, counter, session, codec, member, _ = unpack(value)
                if pack not in names or session not in sessions:
                    place = self._place(txn, chunk, value)
                    if place is None:
                        continue
                    names[pack] = NUMBER.pack(pack), place.pack
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
                found[chunk] = RecordLocation(
                    pack_id, offset, sealed, plain, counter, sessions[session], codec, bases, member
                )
        return found

    def copies(self, record_id: RecordId) -> list[RecordLocation]:
        """Return the further places of a record."""
        with self._transaction() as txn:
            found = [self._place(txn, record_id, value) for value in self._copy_values(txn, record_id)]
        return [place for place in found if place is not None]

    def _values(
        self, txn: Any, record_id: bytes, first: bytes, pending: frozenset[bytes]
    ) -> Iterator[bytes]:
        """Yield a record's places in packs that are not pending deletion.

        Places after the first are only yielded if the first is a delta or pending deletion.
        """
        stays = first[:4] not in pending
        if stays:
            yield first
        if BASES[first[CODEC]] or not stays:
            for value in self._copy_values(txn, record_id):
                if value[:4] not in pending:
                    yield value

    def _copy_values(self, txn: Any, record_id: bytes) -> list[bytes]:
        found = []
        cursor = txn.cursor(self._tables["copies"])
        more = cursor.set_range(record_id)
        while more and cursor.key()[:32] == record_id:
            found.append(cursor.value())
            more = cursor.next()
        return found

    def _place(self, txn: Any, record_id: bytes, value: bytes) -> RecordLocation | None:
        pack, offset, sealed, plain, counter, session, codec, member, _ = PLACE.unpack(value)
        number = NUMBER.pack(pack)
        named = txn.get(number, db=self._tables["packs"])
        session_id = txn.get(NUMBER.pack(session), db=self._tables["sessions"])
        joined = b""
        if BASES[codec]:
            joined = txn.get(record_id + number, b"", db=self._tables["bases"])
        if named is None or session_id is None or len(joined) != 32 * BASES[codec]:
            return None
        bases = tuple(RecordId(joined[at : at + 32]) for at in range(0, len(joined), 32))
        pack_id = PackId(named[:32])
        session_id = SessionId(session_id)
        return RecordLocation(pack_id, offset, sealed, plain, counter, session_id, codec, bases, member)

    def records(self) -> Iterator[tuple[int, RecordId, int, tuple[RecordId, ...]]]:
        """Yield kind, id, sealed length and bases of each chunk and node.

        The length of a shared record is given once, for its first entry, and is 0 for the others.
        """
        for kind, table in ((CHUNK, "chunks"), (NODE, "nodes")):
            start = b""
            while batch := self._records_from(table, start):
                for record_id, value, joined in batch:
                    _, _, sealed, _, _, _, _, member, _ = PLACE.unpack(value)
                    bases = (RecordId(joined[at : at + 32]) for at in range(0, len(joined), 32))
                    yield kind, RecordId(record_id), 0 if member else sealed, tuple(bases)
                start = batch[-1][0] + b"\0"

    def _records_from(self, table: str, start: bytes) -> list[tuple[bytes, bytes, bytes]]:
        """Return up to BATCH records from an id on: id, place and joined ids of bases of each."""
        with self._transaction() as txn:
            cursor = txn.cursor(self._tables[table])
            if not cursor.set_range(start):
                return []
            found = list(itertools.islice(iter(cursor), BATCH))
            forwards(start, found[-1][0] + b"\0")
            return [
                (record_id, value, b"".join(self._bases_of(txn, record_id, value)))
                for record_id, value in found
            ]
