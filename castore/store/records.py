"""Records of a store, opened and verified."""

from __future__ import annotations

import contextlib
import itertools
import threading
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from castore.errors import DamageError, FormatError, MissingError, ObjectMissingError, StorageError
from castore.store.codecs import Codecs
from castore.store.pack import CHUNK, DELTA, MAX_CHAIN, RAW, associated_base, pack_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from castore.model.refs import RecordId
    from castore.sealing import WriterKey
    from castore.storage import Storage
    from castore.store.index import Index, Place
    from castore.store.keyring import Keyring

_GAP: Final = 1 << 16
"""Bytes of a pack that are read and thrown away rather than asking twice."""


class RecordReader:
    """Reads chunks and nodes; safe to share between threads."""

    def __init__(self, storage: Storage, index: Index, writer: WriterKey, keyring: Keyring) -> None:
        self._storage = storage
        self._index = index
        self._id_keys = (writer.chunk_id_key, writer.node_id_key)
        self._keyring = keyring
        self._codecs = Codecs()
        self._local = threading.local()

    def read(self, kind: int, record_id: RecordId, depth: int = 0) -> bytes | None:
        """Return the plaintext of a record; None if it is not indexed.

        Of several copies, one that is whole is returned. Raises DamageError if there is none,
        naming record and pack; ObjectMissingError if its pack is gone; IdentityError for a chunk.
        """
        place = self._index.locate(kind, record_id)
        if place is None:
            return None
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
        try:
            places = self._locate(chunks)
            sealed = self._fetch(places)
            opened = _Opened(self._unseal, self._codecs, places, sealed, self._kept_bases())
            found = [opened.plain(chunk) for chunk in chunks]
        except (KeyError, DamageError, FormatError, StorageError):
            return None
        key = self._id_keys[CHUNK]
        for chunk, data in zip(chunks, found, strict=True):
            if blake3(data, key=key).digest() != chunk:
                return None
        self._keep_bases(opened, chunks)
        return found

    def _locate(self, chunks: Iterable[RecordId]) -> dict[RecordId, Place]:
        """Return where chunks lie, and all that they rest on and is not kept."""
        places: dict[RecordId, Place] = {}
        wanted = set(chunks)
        kept = self._kept_bases()
        for _ in range(MAX_CHAIN + 1):
            found = self._index.locate_chunks(wanted)
            places |= found
            wanted = {
                base
                for place in found.values()
                for base in place.bases
                if base not in places and base not in kept
            }
            if not wanted:
                break
        return places

    def _fetch(self, places: dict[RecordId, Place]) -> dict[RecordId, memoryview]:
        """Read records, as they are sealed, with few requests."""
        found: dict[RecordId, memoryview] = {}
        ordered = sorted(places.items(), key=lambda item: item[1][:2])
        for _, group in itertools.groupby(ordered, lambda item: item[1].pack):
            run: list[tuple[RecordId, Place]] = []
            end = 0
            for item in group:
                if run and item[1].offset > end + _GAP:
                    self._fetch_run(run, end, found)
                    run = []
                run.append(item)
                end = item[1].offset + item[1].sealed_length
            self._fetch_run(run, end, found)
        return found

    def _fetch_run(
        self, run: list[tuple[RecordId, Place]], end: int, found: dict[RecordId, memoryview]
    ) -> None:
        start = run[0][1].offset
        data = memoryview(self._storage.get(pack_name(run[0][1].pack), start, end - start))
        for chunk, place in run:
            found[chunk] = data[place.offset - start : place.offset - start + place.sealed_length]

    def _kept_bases(self) -> dict[RecordId, bytes]:
        kept: dict[RecordId, bytes] | None = getattr(self._local, "bases", None)
        if kept is None:
            kept = self._local.bases = {}
        return kept

    def _keep_bases(self, opened: _Opened, chunks: Sequence[RecordId]) -> None:
        """Keep this thread's last bases: the next chunks rest on the same ones, or on those behind."""
        self._local.bases = {base: opened.memo[base] for base in opened.memo.keys() - set(chunks)}

    def _unseal(self, chunk: RecordId, place: Place, sealed: memoryview) -> bytes:
        """Return what is sealed in a chunk's record. Raises DamageError, IdentityError."""
        return self._keyring.chunks(place.session).open(
            place.counter,
            chunk,
            associated_base(place.bases),
            place.plain_length,
            CHUNK,
            place.codec,
            sealed,
        )

    def open(self, kind: int, record_id: RecordId, place: Place, depth: int = 0) -> bytes:
        """Return the record at a place, verified. Raises as `read` does, or ObjectMissingError."""
        name = pack_name(place.pack)
        try:
            sealer = (self._keyring.chunks if kind == CHUNK else self._keyring.nodes)(place.session)
            sealed = self._storage.get(name, place.offset, place.sealed_length)
            if len(sealed) != place.sealed_length:
                raise DamageError("the pack is cut")  # noqa: TRY301 - it is told like the others
            data = sealer.open(
                place.counter,
                record_id,
                associated_base(place.bases),
                place.plain_length,
                kind,
                place.codec,
                sealed,
            )
            if place.codec != RAW:
                data = self._decompress(data, place, depth)
            if len(data) != place.plain_length:
                raise DamageError(  # noqa: TRY301
                    f"it has {len(data)} bytes instead of {place.plain_length}"
                )
            if blake3(data, key=self._id_keys[kind]).digest() != record_id:
                raise DamageError("its bytes are not those that its id names")  # noqa: TRY301
        except MissingError as error:
            raise MissingError(f"{_where(kind, record_id, place)}: {error}") from None
        except (DamageError, FormatError) as error:
            raise DamageError(f"{_where(kind, record_id, place)}: {error}") from None
        return data

    def _decompress(self, data: bytes, place: Place, depth: int) -> bytes:
        if place.bases and depth >= MAX_CHAIN:
            raise DamageError(f"it rests on more than {MAX_CHAIN} bases")
        bases = []
        for base in place.bases:
            found = self.read(CHUNK, base, depth + 1)
            if found is None:
                raise MissingError(f"its base, chunk {base.hex()}, is not in the store")
            bases.append(found)
        return self._codecs.decompress(place.codec, data, place.plain_length, bases)


class _Opened:
    """Chunks opened together; what several of them rest on, once."""

    def __init__(
        self,
        unseal: Callable[[RecordId, Place, memoryview], bytes],
        codecs: Codecs,
        places: dict[RecordId, Place],
        sealed: dict[RecordId, memoryview],
        kept: dict[RecordId, bytes],
    ) -> None:
        self._unseal = unseal
        self._codecs = codecs
        self._places = places
        self._sealed = sealed
        self._kept = kept
        self.memo: dict[RecordId, bytes] = {}

    def plain(self, chunk: RecordId, depth: int = 0) -> bytes:
        """Return a chunk. Raises KeyError if it, or what it rests on, was not located."""
        deltas: list[tuple[bytes, int]] = []
        below = chunk
        while (base := self.memo.get(below) or self._kept.get(below)) is None:
            if depth + len(deltas) > MAX_CHAIN:
                raise KeyError(chunk)
            place = self._places[below]
            data = self._unseal(below, place, self._sealed[below])
            if place.codec == DELTA:
                deltas.append((self._codecs.delta(data, place.plain_length), place.plain_length))
                below = place.bases[0]
                continue
            bases = [self.plain(one, depth + len(deltas) + 1) for one in place.bases]
            base = self._codecs.decompress(place.codec, data, place.plain_length, bases)
            break
        self.memo[below] = base
        if deltas:
            base = self.memo[chunk] = self._codecs.apply(base, deltas[::-1])
        return base


def _where(kind: int, record_id: RecordId, place: Place) -> str:
    what = "chunk" if kind == CHUNK else "node"
    return f"{what} {record_id.hex()} in {pack_name(place.pack)} at byte {place.offset} is damaged"
