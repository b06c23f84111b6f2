"""For maintenance: what is needed of packs, which are pending deletion, and which were verified."""

from __future__ import annotations

import itertools
import struct
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from castore.kernel.index_rows import weigh
from castore.model.refs import PackId
from castore.store.format.pack import CHUNK
from castore.store.index.pack_tables import Packs
from castore.store.index.schema import NUMBER, PACK, PLACE, batches

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from castore.kernel.id_set import IdSet
    from castore.store.format.pack import PackEntry

_VERIFIED: Final = struct.Struct("<QQ")
_DAMAGED: Final = bytes(16)
_RECALLED: Final = b"recalled"
_VERIFYING: Final = (b"verifying 1", b"verifying 2")
"""Keys in `meta`: when a verification of depth 1 or 2 began that has not ended."""


class Marking(Packs):
    """The part of an index that knows what is needed of packs."""

    def mark_pending_deletion(self, packs: Iterable[PackId]) -> None:
        """Set the packs that are pending deletion: nothing new may reference them."""
        with self._transaction() as txn:
            before = self._pending(txn)
            numbers = [txn.get(pack, db=self._tables["pack_numbers"]) for pack in packs]
        now = frozenset(number[::-1] for number in numbers if number is not None)
        if now != before:
            self._write(self._set_pending, now, bool(now - before))

    def mark_bases(self, marks: IdSet) -> None:
        """Mark all bases of marked chunks, wherever they are stored."""
        marked = -1
        # One pass is nearly always enough; a complete pass that marks nothing proves it.
        while marked != len(marks):
            marked = len(marks)
            with self._transaction() as txn:
                for batch in batches(iter(txn.cursor(self._tables["bases"]))):
                    # Keys of 36 bytes begin with the id.
                    is_marked = marks.find(b"".join([key for key, _ in batch]), 36)
                    bases = [joined for _, joined in itertools.compress(batch, is_marked)]
                    self._mark_below(txn, bases, marks)

    def _mark_below(self, txn: Any, todo: list[bytes], marks: IdSet) -> None:
        """Mark chunks, given by their joined ids, and all their bases."""
        cursor = txn.cursor(self._tables["bases"])
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

    def weigh_chunks(self, marks: IdSet) -> tuple[int, int]:
        """Return how many indexed chunks are marked, and their sealed bytes.

        A record of several chunks counts by the share of its chunks that are marked.
        """
        count, weight = 0, 0.0
        with self._transaction() as txn:
            for batch in batches(iter(txn.cursor(self._tables["chunks"]))):
                is_marked = marks.find(b"".join([key for key, _ in batch]))
                for _, value in itertools.compress(batch, is_marked):
                    _, _, sealed, *_, members = PLACE.unpack(value)
                    count += 1
                    weight += sealed / (members or 1)
        return count, round(weight)

    def live_bytes(self, marks: IdSet) -> dict[PackId, tuple[int, int, int]]:
        """Return how many bytes are marked in each pack that stays.

        The values are the pack's length, the bytes of its records, and about how many of these are marked: a
        record of several chunks counts by the share of its chunks that are marked.
        """
        with self._transaction() as txn:
            pending = self._pending(txn)
            live = array("Q", bytes(8 * self._numbers_given(txn)))
            for table in (self._tables["chunks"], self._tables["nodes"]):
                for batch in batches(iter(txn.cursor(table))):
                    is_marked = marks.find(b"".join([key for key, _ in batch]))
                    values = [value for _, value in batch]
                    if pending:
                        values = [
                            next(self._values(txn, key, first, pending), first)
                            if alive and first[:4] in pending
                            else first
                            for (key, first), alive in zip(batch, is_marked, strict=True)
                        ]
                    weigh(b"".join(values), is_marked, live)
            packs = {}
            for number, value in txn.cursor(self._tables["packs"]):
                if number[::-1] in pending:
                    continue
                pack, length, records = PACK.unpack(value)
                packs[PackId(pack)] = length, records, live[NUMBER.unpack(number)[0]]
        return packs

    def _numbers_given(self, txn: Any) -> int:
        """Return how many pack numbers were issued: at least the number of existing packs."""
        given = txn.get(b"next pack", NUMBER.pack(0), db=self._tables["meta"])
        return int(NUMBER.unpack(given)[0])

    def are_chosen(self, pack: PackId, entries: Sequence[PackEntry]) -> list[bool]:
        """Return for each entry of a pack whether its record is to be read from this place.

        If a chunk cannot be reconstructed from any place, all its places count: what it lacks may be stored
        again.
        """
        with self._transaction() as txn:
            number = txn.get(pack, b"", db=self._tables["pack_numbers"])[::-1]
            pending = self._pending(txn)
            found = []
            for entry in entries:
                if entry.kind == CHUNK:
                    value = self._whole_value(txn, entry.id, Counter(), {}, set(), pending)
                else:
                    first = txn.get(entry.id, db=self._tables["nodes"])
                    values = iter(()) if first is None else self._values(txn, entry.id, first, pending)
                    value = next(values, None)
                if value is None:
                    found.append(True)
                    continue
                place = PLACE.unpack(value)
                at = (entry.offset, entry.group_index)
                found.append(value[:4] == number and (place[1], place[7]) == at)
        return found

    def verified(self, depth: int) -> dict[PackId, int]:
        """Return when packs were last found intact at a depth (1 bytes, 2 records): ns since 1970."""
        found = {}
        with self._transaction() as txn:
            for number, value in txn.cursor(self._tables["verified"]):
                named = txn.get(number, db=self._tables["packs"])
                if named is not None:
                    found[PackId(named[:32])] = _VERIFIED.unpack(value)[depth - 1]
        return found

    def doubt(self, packs: Iterable[PackId]) -> None:
        """Record that packs were found damaged, until they are found intact or removed."""
        self._write(self._doubt, list(packs))

    def _doubt(self, txn: Any, packs: list[PackId]) -> None:
        for pack in packs:
            number = txn.get(pack, db=self._tables["pack_numbers"])
            if number is not None:
                txn.put(number, _DAMAGED, db=self._tables["verified"])

    def doubted(self) -> set[PackId]:
        """Return the packs that are recorded as damaged."""
        with self._transaction() as txn:
            numbers = [number for number, value in txn.cursor(self._tables["verified"]) if value == _DAMAGED]
            found = (txn.get(number, db=self._tables["packs"]) for number in numbers)
            return {PackId(named[:32]) for named in found if named is not None}

    def set_verified(self, packs: Iterable[PackId], depth: int, time: int) -> None:
        """Record that packs were found intact at a depth, and so at lower depths. time: ns since 1970."""
        self._write(self._set_verified, list(packs), depth, time)

    def _set_verified(self, txn: Any, packs: list[PackId], depth: int, time: int) -> None:
        table = self._tables["verified"]
        for pack in packs:
            number = txn.get(pack, db=self._tables["pack_numbers"])
            if number is not None:
                _, records_at = _VERIFIED.unpack(txn.get(number, bytes(16), db=table))
                txn.put(number, _VERIFIED.pack(time, time if depth > 1 else records_at), db=table)

    def verification(self) -> dict[bytes, bytes]:
        """Return all results of verification: by pack id, and by `verifying DEPTH`."""
        found: dict[bytes, bytes] = {}
        with self._transaction() as txn:
            for number, value in txn.cursor(self._tables["verified"]):
                named = txn.get(number, db=self._tables["packs"])
                if named is not None:
                    found[bytes(named[:32])] = bytes(value)
            for key in _VERIFYING:
                if (value := txn.get(key, db=self._tables["meta"])) is not None:
                    found[key] = bytes(value)
        return found

    def is_recalled(self) -> bool:
        """Return whether results of verification were loaded into this index."""
        with self._transaction() as txn:
            return txn.get(_RECALLED, db=self._tables["meta"]) is not None

    def recall_verification(self, found: dict[bytes, bytes]) -> None:
        """Load results of verification, in the form that `verification` returned."""
        self._write(self._recall_verification, found)

    def _recall_verification(self, txn: Any, found: dict[bytes, bytes]) -> None:
        for key, value in found.items():
            if key in _VERIFYING and len(value) == 8:
                txn.put(key, value, overwrite=False, db=self._tables["meta"])
            number = txn.get(key, db=self._tables["pack_numbers"])
            if number is not None and len(value) == _VERIFIED.size:
                txn.put(number, value, overwrite=False, db=self._tables["verified"])
        txn.put(_RECALLED, b"1", db=self._tables["meta"])

    def verifying(self, depth: int) -> int:
        """Return when a verification of this depth began that has not ended (ns since 1970), or 0."""
        with self._transaction() as txn:
            return int.from_bytes(txn.get(b"verifying %d" % depth, b"", db=self._tables["meta"]), "big")

    def set_verifying(self, depth: int, time: int) -> None:
        """Record when a verification began (ns since 1970); 0 means that it has ended."""
        key, value = b"verifying %d" % depth, time.to_bytes(8, "big")
        self._write(lambda txn: txn.put(key, value, db=self._tables["meta"]))
