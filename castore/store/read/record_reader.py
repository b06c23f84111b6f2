"""Records of a store, opened and verified."""

from __future__ import annotations

import contextlib
import itertools
import threading
from functools import partial
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from castore.errors import DamageError, FormatError, MissingError, ObjectMissingError, StorageError
from castore.model.counting import count as counted
from castore.model.refs import MAX_NODE_REFS, REF_BYTES, RecordId
from castore.store.format.codecs import Codecs, Groups, member_of
from castore.store.format.pack import (
    CHUNK,
    DELTA,
    DICTIONARY,
    GROUPED,
    MAX_CHAIN,
    MAX_PLAIN,
    NODE,
    pack_name,
    record_names,
)
from castore.store.index import RecordLocation
from castore.store.read.delta_resolver import StoredForm, apply, assemble

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from castore.crypto import WriterKey
    from castore.model.refs import PackId
    from castore.storage import Storage
    from castore.store.format.pack import PackEntry
    from castore.store.index import Index
    from castore.store.keys.keyring import Keyring
    from castore.store.read.delta_resolver import BaseChunk

    _Where = tuple[PackId, int]

_TOGETHER: Final = 64
"""Entries of a pack that are opened at once: more than stand in a group."""
_AT_ONCE: Final = 256 << 20
"""Bytes of chunks, with all that they depend on, that are opened together; else one by one."""
_MOST_OPENED: Final = 1024
"""Records that are opened for one chunk: one with four bases, on four levels, takes 341."""
_MAX_NODE: Final = MAX_NODE_REFS * REF_BYTES
_GAP: Final = 1 << 16
"""Bytes of a pack that are read and thrown away rather than asking twice."""


class RecordReader:
    """Reads chunks and nodes; safe to share between threads."""

    def __init__(
        self, storage: Storage, index: Index, writer: WriterKey, keyring: Keyring, longest: int = MAX_PLAIN
    ) -> None:
        """Read from these; longest: bytes of the longest chunk that the store's cutter makes."""
        self._storage = storage
        self._longest = longest
        self._index = index
        self._id_keys = writer.id_keys
        self._keyring = keyring
        self._codecs = Codecs()
        self._groups = Groups(self._codecs)
        self._local = threading.local()

    def chunk_id(self, data: bytes | memoryview) -> RecordId:
        """Return the id that bytes have as a chunk."""
        return RecordId(blake3(data, key=self._id_keys[0][CHUNK]).digest())

    def is_chunk(self, chunk: RecordId, data: bytes | memoryview) -> bool:
        """Whether bytes have this id as a chunk."""
        return self._is_named(CHUNK, data, chunk)

    def _is_named(self, kind: int, data: bytes | memoryview, record_id: RecordId) -> bool:
        """Whether bytes have this id, by the keys that ids are made with, or were before."""
        return any(blake3(data, key=keys[kind]).digest() == record_id for keys in self._id_keys)

    def read(self, kind: int, record_id: RecordId, depth: int = 0) -> bytes | None:
        """Return the plaintext of a chunk or node; None if it is not indexed.

        Of several copies, one that is whole is returned. Raises DamageError if there is none,
        naming record and pack; ObjectMissingError if its pack is gone; IdentityError for a chunk.
        """
        place = self._index.locate(kind, record_id)
        if place is None:
            return None
        if not depth:
            self._local.left = _MOST_OPENED
        try:
            return self.open(kind, record_id, place, depth)
        except (DamageError, ObjectMissingError) as error:
            failure = error
        for copy in self._index.copies(record_id):
            with contextlib.suppress(DamageError, ObjectMissingError):
                return self.open(kind, record_id, copy, depth)
        raise failure

    def read_chunks(self, chunks: Sequence[RecordId]) -> list[bytes] | None:
        """Return chunks that stand near each other in a stream, opened together.

        All that they rest on is located at once, what lies together in a pack is read at once, and
        what several of them rest on is opened once. None if that does not succeed, whatever the
        reason: `read` tells it, or finds another copy.
        """
        before: dict[RecordId, BaseChunk] = getattr(self._local, "bases", {})
        kept = before.copy()
        try:
            layers = self._layers(self._index.locate_chunks(chunks, kept))
            found = [assemble(chunk, layers.__getitem__, kept).data for chunk in chunks]
        except (KeyError, DamageError, FormatError, StorageError):
            return None
        for chunk, data in zip(chunks, found, strict=True):
            if not self._is_named(CHUNK, data, chunk):
                return None
        # The next chunks rest on the same ones, or on those behind.
        opened = kept.keys() - before.keys()
        self._local.bases = {chunk: kept[chunk] for chunk in opened.difference(chunks)}
        return found

    def read_nodes(self, nodes: Sequence[RecordId]) -> list[bytes] | None:
        """Return the plaintexts of nodes, read together; None if that does not succeed, as `read_chunks`."""
        opened: dict[RecordId, bytes] = {}
        try:
            places = self._index.locate_chunks(nodes, kind=NODE)
            at = {(place.pack, place.offset): (node, place) for node, place in places.items()}
            for where, sealed in self._fetch(sorted(place[:3] for place in places.values())):
                node, place = at[where]
                self._check_length(NODE, place)
                plain = self._codecs.body(
                    place.codec, self._unseal(NODE, node, place, sealed), place.plain_length
                )
                if place.bases or not self._is_named(NODE, plain, node):
                    return None
                opened[node] = plain
            return [opened[node] for node in nodes]
        except (KeyError, DamageError, FormatError, StorageError):
            return None

    def broken(
        self, pack: PackId, entries: Sequence[PackEntry]
    ) -> Iterator[tuple[PackEntry, DamageError]]:
        """Yield the entries of a pack that do not open where they lie, and why. Raises IdentityError."""
        for first in range(0, len(entries), _TOGETHER):
            batch = entries[first : first + _TOGETHER]
            chunks = [entry.id for entry in batch if entry.kind == CHUNK]
            places = self._index.locate_chunks(chunks)
            # What is found here anyway is opened together with its like, which is faster.
            here = [entry for entry in batch if places.get(entry.id) == RecordLocation.of(pack, entry)]
            whole = self.read_chunks([entry.id for entry in here]) is not None
            for entry in batch:
                if whole and entry in here:
                    continue
                self._local.left = _MOST_OPENED
                try:
                    self.open(entry.kind, entry.id, RecordLocation.of(pack, entry))
                except DamageError as error:
                    yield entry, error
                except ObjectMissingError as error:
                    yield entry, DamageError(str(error))

    def is_intact(self, place: RecordLocation, entry: PackEntry, sealed: bytes | memoryview) -> bool:
        """Whether `sealed` is what lies at a place, as it was sealed. Raises IdentityError."""
        try:
            self._unseal(entry.kind, entry.id, place, sealed)
        except DamageError:
            return False
        return True

    def _layers(self, places: dict[RecordId, RecordLocation]) -> dict[RecordId, StoredForm]:
        """Return how chunks are stored. Raises DamageError, IdentityError, StorageError."""
        if sum(place.plain_length for place in places.values()) > _AT_ONCE:
            raise DamageError("these are too many to be opened together")
        groups: dict[_Where, list[bytes]] = {}
        records: dict[_Where, tuple[RecordId, RecordLocation]] = {}
        for chunk, place in places.items():
            self._check_length(CHUNK, place)
            where = place.pack, place.offset
            if where in groups or where in records:
                continue
            deltas = self._groups.get(where) if place.codec >= GROUPED else None
            if deltas is None:
                records[where] = chunk, place
            else:
                groups[where] = deltas
        found = {}
        for where, sealed in self._fetch(sorted(place[:3] for _, place in records.values())):
            chunk, place = records[where]
            unseal = partial(self._unseal, CHUNK, chunk, place, sealed)
            if place.codec >= GROUPED:
                groups[where] = self._groups.open(where, unseal)
            elif place.codec != DICTIONARY:  # `read` knows that
                body = self._codecs.body(place.codec, unseal(), place.plain_length)
                found[chunk] = StoredForm(body, place.plain_length, place.bases)
        for chunk, place in places.items():
            if place.codec >= GROUPED:
                delta = member_of(groups[place.pack, place.offset], place.member)
                found[chunk] = StoredForm(delta, place.plain_length, place.bases)
        return found

    def _fetch(self, spans: Iterable[tuple[PackId, int, int]]) -> Iterator[tuple[_Where, memoryview]]:
        """Read pieces of packs (pack, offset, length; sorted) with few requests; yield each."""
        for pack, group in itertools.groupby(spans, lambda span: span[0]):
            run: list[tuple[int, int]] = []
            for _, offset, length in group:
                if run and offset > sum(run[-1]) + _GAP:
                    yield from self._fetch_run(pack, run)
                    run = []
                run.append((offset, length))
            yield from self._fetch_run(pack, run)

    def _fetch_run(
        self, pack: PackId, run: list[tuple[int, int]]
    ) -> Iterator[tuple[_Where, memoryview]]:
        start = run[0][0]
        data = memoryview(self._storage.get(pack_name(pack), start, sum(run[-1]) - start))
        for offset, length in run:
            yield (pack, offset), data[offset - start : offset - start + length]

    def _unseal(
        self, kind: int, record_id: RecordId, place: RecordLocation, sealed: bytes | memoryview
    ) -> bytes:
        """Return what is sealed in a record. Raises DamageError, IdentityError."""
        keys = self._keyring.chunks if kind == CHUNK else self._keyring.nodes
        names = record_names(record_id, place.bases, place.plain_length, kind, place.codec)
        return keys(place.session).open(place.counter, *names, sealed)

    def open(self, kind: int, record_id: RecordId, place: RecordLocation, depth: int = 0) -> bytes:
        """Return what lies at a place, verified. Raises as `read` does, or ObjectMissingError."""
        try:
            data = self._open(kind, record_id, place, depth)
            if len(data) != place.plain_length:
                raise DamageError(  # noqa: TRY301 - it is told like the others
                    f"it has {len(data)} bytes instead of {place.plain_length}"
                )
            if not self._is_named(kind, data, record_id):
                raise DamageError("its bytes are not those that its id names")  # noqa: TRY301
        except MissingError as error:
            raise MissingError(f"{_where(kind, record_id, place)}: {error}") from None
        except (DamageError, FormatError) as error:
            raise DamageError(f"{_where(kind, record_id, place)}: {error}") from None
        return data

    def _open(self, kind: int, record_id: RecordId, place: RecordLocation, depth: int) -> bytes:
        where = place.pack, place.offset
        read = partial(self._read_sealed, kind, record_id, place)
        self._check_length(kind, place)
        # A hostile store has chunks with many bases on many levels, each in many damaged copies.
        self._local.left = getattr(self._local, "left", _MOST_OPENED) - 1
        if self._local.left < 0:
            raise DamageError(f"more than {counted(_MOST_OPENED, 'record')} would have to be opened for it")
        data, deltas = b"", []
        if place.codec >= GROUPED:
            deltas = self._groups.open(where, read)
        else:
            data = read()
        if place.bases and depth >= MAX_CHAIN:
            raise DamageError(f"it rests on more than {MAX_CHAIN} bases")
        below = b"".join(self._base(base, depth + 1) for base in place.bases)
        if place.codec >= GROUPED:
            body = member_of(deltas, place.member)
        else:
            body = self._codecs.body(place.codec, data, place.plain_length, below)
        return apply(below, [(body, place.plain_length)]) if place.codec >= DELTA else body

    def _check_length(self, kind: int, place: RecordLocation) -> None:
        """Raise DamageError for a chunk or node that is longer than castore makes them."""
        most = self._longest if kind == CHUNK else _MAX_NODE
        if place.plain_length > most:
            raise DamageError(f"it has {place.plain_length} bytes, and none of its kind has more than {most}")

    def _read_sealed(self, kind: int, record_id: RecordId, place: RecordLocation) -> bytes:
        sealed = self._storage.get(pack_name(place.pack), place.offset, place.sealed_length)
        if len(sealed) != place.sealed_length:
            raise DamageError("the pack is cut")
        return self._unseal(kind, record_id, place, sealed)

    def _base(self, base: RecordId, depth: int) -> bytes:
        found = self.read(CHUNK, base, depth)
        if found is None:
            raise MissingError(f"its base, chunk {base.hex()}, is not in the store")
        return found


def _where(kind: int, record_id: RecordId, place: RecordLocation) -> str:
    what = "chunk" if kind == CHUNK else "node"
    return f"{what} {record_id.hex()} in {pack_name(place.pack)} at byte {place.offset} is damaged"
