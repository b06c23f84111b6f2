"""Read records from a store, open and verify them."""

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
from castore.store.format.codecs import Codecs
from castore.store.format.names import pack_name
from castore.store.format.pack import CHUNK, DELTA, MAX_CHAIN, MAX_PLAIN, NODE, record_names
from castore.store.index import RecordLocation
from castore.store.read.delta_resolver import StoredForm, StoredForms, assemble, assemble_verified

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from castore.model.refs import PackId
    from castore.storage import Storage
    from castore.store.format.pack import PackEntry
    from castore.store.index import Index
    from castore.store.keys.keyring import Keyring
    from castore.store.read.delta_resolver import BaseChunk

    _Where = tuple[PackId, int]

_TOGETHER: Final = 64
"""Entries of a pack that are opened in one batch: more than a group can have."""
_AT_ONCE: Final = 256 << 20
"""Bytes of chunks, with all their bases, that are opened in one batch; larger batches are read one by one."""
_MOST_OPENED: Final = 1024
"""The most records that are opened for one chunk: four bases on each of four levels take 341."""
_MAX_NODE: Final = MAX_NODE_REFS * REF_BYTES
_GAP: Final = 1 << 16
"""Bytes of a pack that are read and discarded rather than making a second request."""


class RecordReader:
    """Reads chunks and nodes; safe to share between threads."""

    def __init__(self, storage: Storage, index: Index, keyring: Keyring, *, longest: int = MAX_PLAIN) -> None:
        """Open a reader. longest: bytes of the longest chunk that the store's cutter makes."""
        self._storage = storage
        self._longest = longest
        self._index = index
        self._id_keys = keyring.writer.id_keys
        self._keyring = keyring
        self._codecs = Codecs()
        self._forms = StoredForms(self._codecs)
        self._local = threading.local()

    def chunk_id(self, data: bytes | memoryview) -> RecordId:
        """Return the id that bytes have as a chunk."""
        return RecordId(blake3(data, key=self._id_keys[0][CHUNK]).digest())

    def is_chunk(self, chunk: RecordId, data: bytes | memoryview) -> bool:
        """Return whether bytes have this id as a chunk."""
        return self._is_named(CHUNK, data, chunk)

    def _is_named(self, kind: int, data: bytes | memoryview, record_id: RecordId) -> bool:
        """Return whether bytes have this id, under the present id keys or former ones."""
        # Almost always the first key. A generator would cost as much as hashing a small record.
        present, *former = self._id_keys
        return blake3(data, key=present[kind]).digest() == record_id or any(
            blake3(data, key=keys[kind]).digest() == record_id for keys in former
        )

    def read(self, kind: int, record_id: RecordId, depth: int = 0) -> bytes | None:
        """Return the plaintext of a chunk or node; None if it is not indexed.

        If there are several copies, an intact one is returned. If there is none, raises DamageError, which
        names record and pack, or ObjectMissingError if the pack is missing. Raises IdentityError for a chunk.
        """
        location = self._index.locations.locate(kind, record_id)
        if location is None:
            return None
        if not depth:
            self._local.left = _MOST_OPENED
        try:
            return self.open(kind, record_id, location, depth)
        except (DamageError, ObjectMissingError) as error:
            failure = error
        for copy in self._index.locations.copies(record_id):
            with contextlib.suppress(DamageError, ObjectMissingError):
                return self.open(kind, record_id, copy, depth)
        raise failure

    def read_chunks(self, chunks: Sequence[RecordId]) -> list[bytes] | None:
        """Return chunks that are near each other in a stream, opened in one batch.

        All their bases are located in one transaction, neighbours in a pack are read with one request, and a
        shared base is opened once. Returns None if anything fails: `read` then reports the reason, or finds
        another copy.
        """
        before: dict[RecordId, BaseChunk] = getattr(self._local, "bases", {})
        opened_chunks = before.copy()
        try:
            forms = self._stored_forms(self._index.locations.locate_chunks(chunks, opened_chunks))
            contents = [assemble(chunk, forms.__getitem__, opened_chunks).data for chunk in chunks]
        except (KeyError, DamageError, FormatError, StorageError):
            return None
        for chunk, data in zip(chunks, contents, strict=True):
            if not self._is_named(CHUNK, data, chunk):
                return None
        # The next chunks probably have the same bases, or their neighbours.
        opened = opened_chunks.keys() - before.keys()
        self._local.bases = {chunk: opened_chunks[chunk] for chunk in opened.difference(chunks)}
        return contents

    def read_nodes(self, nodes: Sequence[RecordId]) -> list[bytes] | None:
        """Return the plaintexts of nodes, read in one batch; None if anything fails, as in `read_chunks`."""
        opened: dict[RecordId, bytes] = {}
        try:
            locations = self._index.locations.locate_chunks(nodes, kind=NODE)
            at = {(location.pack, location.offset): (node, location) for node, location in locations.items()}
            for where, sealed in self._fetch(sorted(location[:3] for location in locations.values())):
                node, location = at[where]
                self._check_length(NODE, location)
                payload = self._unseal(NODE, node, location, sealed)
                plain = self._codecs.plain(location.codec, payload, location.plain_length)
                if not self._is_named(NODE, plain, node):
                    return None
                opened[node] = plain
            return [opened[node] for node in nodes]
        except (KeyError, DamageError, FormatError, StorageError):
            return None

    def broken(self, pack: PackId, entries: Sequence[PackEntry]) -> Iterator[tuple[PackEntry, DamageError]]:
        """Yield the entries of a pack that do not open at their location, and why. Raises IdentityError."""
        for first in range(0, len(entries), _TOGETHER):
            batch = entries[first : first + _TOGETHER]
            chunks = [entry.id for entry in batch if entry.kind == CHUNK]
            locations = self._index.locations.locate_chunks(chunks)
            # Entries whose indexed location is here are opened in one batch, which is faster.
            here = [entry for entry in batch if locations.get(entry.id) == RecordLocation.of(pack, entry)]
            intact = self.read_chunks([entry.id for entry in here]) is not None
            for entry in batch:
                if intact and entry in here:
                    continue
                self._local.left = _MOST_OPENED
                try:
                    self.open(entry.kind, entry.id, RecordLocation.of(pack, entry))
                except DamageError as error:
                    yield entry, error
                except ObjectMissingError as error:
                    yield entry, DamageError(str(error))

    def is_intact(self, location: RecordLocation, entry: PackEntry, sealed: bytes | memoryview) -> bool:
        """Return whether `sealed` is the unchanged record at a location. Raises IdentityError."""
        try:
            self._unseal(entry.kind, entry.id, location, sealed)
        except DamageError:
            return False
        return True

    def _stored_forms(self, locations: dict[RecordId, RecordLocation]) -> dict[RecordId, StoredForm]:
        """Return the stored forms of chunks. Raises DamageError, IdentityError, StorageError."""
        if sum(location.plain_length for location in locations.values()) > _AT_ONCE:
            raise DamageError("these chunks are too many to be opened in one batch")
        forms = {}
        records: dict[_Where, list[tuple[RecordId, RecordLocation]]] = {}
        for chunk, location in locations.items():
            self._check_length(CHUNK, location)
            where = location.pack, location.offset
            if where not in records and location.codec >= DELTA and self._forms.has_group(where):
                read = partial(self._read_sealed, CHUNK, chunk, location)
                forms[chunk] = self._forms.decode(where, location, read)
            else:
                records.setdefault(where, []).append((chunk, location))
        for where, sealed in self._fetch(sorted(several[0][1][:3] for several in records.values())):
            for chunk, location in records[where]:
                unseal = partial(self._unseal, CHUNK, chunk, location, sealed)
                forms[chunk] = self._forms.decode(where, location, unseal)
        return forms

    def _fetch(self, spans: Iterable[tuple[PackId, int, int]]) -> Iterator[tuple[_Where, memoryview]]:
        """Read ranges of packs (pack, offset, length; sorted) with few requests; yield each."""
        for pack, group in itertools.groupby(spans, lambda span: span[0]):
            run: list[tuple[int, int]] = []
            for _, offset, length in group:
                if run and offset > sum(run[-1]) + _GAP:
                    yield from self._fetch_run(pack, run)
                    run = []
                run.append((offset, length))
            yield from self._fetch_run(pack, run)

    def _fetch_run(self, pack: PackId, run: list[tuple[int, int]]) -> Iterator[tuple[_Where, memoryview]]:
        start = run[0][0]
        data = memoryview(self._storage.get(pack_name(pack), start, sum(run[-1]) - start))
        for offset, length in run:
            yield (pack, offset), data[offset - start : offset - start + length]

    def _unseal(
        self, kind: int, record_id: RecordId, location: RecordLocation, sealed: bytes | memoryview
    ) -> bytes:
        """Return the data sealed in a record. Raises DamageError, IdentityError."""
        keys = self._keyring.chunk_sealer if kind == CHUNK else self._keyring.node_sealer
        names = record_names(record_id, location.plain_length, kind, location.codec)
        return keys(location.session).open(location.counter, *names, sealed)

    def open(self, kind: int, record_id: RecordId, location: RecordLocation, depth: int = 0) -> bytes:
        """Return the record at a location, verified. Raises as `read` does, or ObjectMissingError."""
        try:
            data = self._open(kind, record_id, location, depth)
            if len(data) != location.plain_length:
                raise DamageError(  # noqa: TRY301 - reported like the others
                    f"it has {len(data)} bytes instead of {location.plain_length}"
                )
            if not self._is_named(kind, data, record_id):
                raise DamageError("its bytes do not match its id")  # noqa: TRY301
        except MissingError as error:
            raise MissingError(f"{_where(kind, record_id, location)}: {error}") from None
        except (DamageError, FormatError) as error:
            raise DamageError(f"{_where(kind, record_id, location)}: {error}") from None
        return data

    def _open(self, kind: int, record_id: RecordId, location: RecordLocation, depth: int) -> bytes:
        where = location.pack, location.offset
        read = partial(self._read_sealed, kind, record_id, location)
        self._check_length(kind, location)
        # A hostile store may have chunks with many bases on many levels, each with many damaged copies.
        self._local.left = getattr(self._local, "left", _MOST_OPENED) - 1
        if self._local.left < 0:
            raise DamageError(f"more than {counted(_MOST_OPENED, 'record')} would have to be opened for it")
        form = self._forms.decode(where, location, read)
        if not form.bases:
            return form.data
        return assemble_verified(record_id, form, partial(self._base, depth=depth + 1))

    def _check_length(self, kind: int, location: RecordLocation) -> None:
        """Raise DamageError for a chunk or node that is longer than castore writes."""
        most = self._longest if kind == CHUNK else _MAX_NODE
        if location.plain_length > most:
            raise DamageError(
                f"it has {location.plain_length} bytes, more than {most}, the most for its kind"
            )

    def _read_sealed(self, kind: int, record_id: RecordId, location: RecordLocation) -> bytes:
        sealed = self._storage.get(pack_name(location.pack), location.offset, location.sealed_length)
        if len(sealed) != location.sealed_length:
            raise DamageError("the pack is cut off")
        return self._unseal(kind, record_id, location, sealed)

    def _base(self, base: RecordId, depth: int) -> bytes:
        if depth > MAX_CHAIN:
            raise DamageError(f"its chain of bases is longer than {MAX_CHAIN}")
        plain = self.read(CHUNK, base, depth)
        if plain is None:
            raise MissingError(f"its base, chunk {base.hex()}, is not in the store")
        return plain


def _where(kind: int, record_id: RecordId, location: RecordLocation) -> str:
    what = "chunk" if kind == CHUNK else "node"
    return f"{what} {record_id.hex()} in {pack_name(location.pack)} at byte {location.offset} is damaged"
