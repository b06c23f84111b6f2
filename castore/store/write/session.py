"""A session: one run that adds packs to a store.

Any thread may name chunks, compress them or encode them as deltas, and seal them. One thread adds the records
in order. Another makes full packs durable and indexes them, in the order in which they were filled. So at
every moment, everything that a node in the store references is in the store, too.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from blake3 import blake3

from castore.crypto import RecordSealer, best_cipher, random_key
from castore.errors import CastoreError, StorageError
from castore.kernel import Sketcher
from castore.model.refs import RecordId, SessionId, encode_node
from castore.store.format.codecs import Codecs
from castore.store.format.names import session_name
from castore.store.format.pack import (
    CHUNK,
    NODE,
    PackEntry,
    PackWriter,
    record_names,
)
from castore.store.format.session_key import encode_session, new_session_record, sealed_to
from castore.store.index.pack_tables import PackContent
from castore.store.write.base_provider import Bases, PendingChunk
from castore.store.write.counter import RecordCounter
from castore.store.write.delta_encoder import Deltas

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from mmap import mmap
    from types import TracebackType

    from castore.kernel import Sketch
    from castore.model.refs import Ref
    from castore.storage import Storage
    from castore.store.index import Index
    from castore.store.keys.key_manager import KeyManager
    from castore.store.write.base_cache import BaseCache, BaseCacheWriter
    from castore.store.write.delta_encoder import DeltaMember, NewChunk

_OUTSTANDING: Final = 2
_RECENT: Final = 1 << 16
"""Number of ids: far more than are between the check whether they are known and their pack."""


class SealedRecord(NamedTuple):
    """A record on its way into a pack: a chunk, or a group of deltas."""

    record: bytes
    counter: int
    members: list[DeltaMember]
    payload: bytes
    """The data that was sealed, for the base cache."""


class Session:
    """One run that adds packs; use it in a `with` block.

    Any thread may call `seal`; only one may call `append`, `put_node` and `finish`. After its first error a
    session refuses everything with that error. If the block is left by an error, the open pack is still
    finished if possible, so that the next attempt finds what was stored.
    """

    def __init__(
        self,
        storage: Storage,
        index: Index,
        keys: KeyManager,
        base_cache: BaseCache,
    ) -> None:
        writer = keys.writer_key
        self.id = SessionId(os.urandom(16))
        self._storage = storage
        self._index = index
        self._writer = writer
        self._chunk_id_key = writer.chunk_id_key
        cipher = best_cipher()
        data_key = random_key()
        seals = sealed_to((entry.recipient for entry in keys.config.recipients), self.id, data_key)
        signer = writer.signer.public
        host = next(iter(writer.signers.names(signer)), os.uname().nodename)
        self._record = new_session_record(time.time_ns(), host, cipher, seals, signer)
        self._recorded = False
        self._chunk_sealer = RecordSealer(cipher, data_key, writer.store_id)
        self._node_sealer = RecordSealer(cipher, writer.node_key(self.id), writer.store_id)
        self._chunk_counter = RecordCounter()
        self._node_counter = RecordCounter()
        self._codecs = Codecs()
        self._base_cache = base_cache
        self._sketcher = Sketcher(writer.gear, writer.sketch)
        # Records in packs that are not indexed yet.
        self._pending: dict[RecordId, PendingChunk | None] = {}
        self._pending_features: dict[bytes, RecordId] = {}
        # Records in recently indexed packs: records with the same content may still be on their way.
        self._recent: dict[RecordId, None] = {}
        bases = Bases(index, base_cache, self._codecs, self._chunk_id_key, self._pending.get)
        self._deltas = Deltas(bases, self._codecs)
        self._cache_file: BaseCacheWriter | None = None
        self.pack_usage: Counter[bytes] = Counter()
        """Bytes used of each pack by everything that was added or known, as `FoundChunks` counts them."""
        self._pack: PackWriter | None = None
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="castore-pack")
        self._finishing: deque[Future[None]] = deque()
        self._error: BaseException | None = None
        self._ended = False
        self._counting = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.abort()

    @property
    def overhead(self) -> int:
        """Bytes that a record is longer than the data sealed in it."""
        return self._chunk_sealer.overhead

    def chunk_id(self, plain: memoryview | bytes) -> RecordId:
        """Return the id of a chunk."""
        return RecordId(blake3(plain, key=self._chunk_id_key).digest())

    def use_stored(self, chunks: Sequence[RecordId]) -> list[bool]:
        """Use chunks again that the store has, and count their packs in `pack_usage`.

        Returns for each chunk whether the store has it, or will have it after this session's additions.
        """
        if self._error is not None:
            raise self._error
        # In this order: an id leaves the pending ones only after it is indexed.
        pending = self._pending
        waiting = [chunk in pending for chunk in chunks]
        indexed = self._count_usage(chunks)
        return [is_pending or is_indexed for is_pending, is_indexed in zip(waiting, indexed, strict=True)]

    def indexed(self, chunks: Collection[RecordId]) -> set[RecordId]:
        """Return those of some chunks that the index has; their packs are not counted as used."""
        some = list(chunks)
        return {chunk for chunk, has in zip(some, self._index.locations.contains(some), strict=True) if has}

    def _count_usage(self, chunks: Sequence[RecordId]) -> list[bool]:
        """Count the packs of indexed chunks in `pack_usage`; return for each chunk whether it is indexed."""
        usage = self._index.locations.find(chunks)
        with self._counting:
            self.pack_usage += usage.pack_bytes
        return usage.complete

    def was_added(self, chunk: RecordId) -> bool:
        """Return whether a chunk was added recently, perhaps since `use_stored`. For the adding thread."""
        return chunk in self._pending or chunk in self._recent

    def find_similar(self, buffer: bytearray | mmap, chunks: Sequence[NewChunk]) -> list[NewChunk]:
        """Return chunks that the store lacks, each with its sketch and similar chunks of the store."""
        if self._base_cache.limit == 0:
            return list(chunks)  # without the base cache, no chunk is stored as a delta
        sketches = self._sketcher.sketch(buffer, [(chunk.start, chunk.end) for chunk in chunks])
        similar_of = self._index.locations.similar(sketches)
        return [
            chunk._replace(sketch=sketch, similar_ids=(*similar[:1], *self._pending_similar(sketch)))
            for chunk, sketch, similar in zip(chunks, sketches, similar_of, strict=True)
        ]

    def seal(self, buffer: bytearray | mmap, chunks: Sequence[NewChunk]) -> list[SealedRecord]:
        """Seal chunks that the store lacks, as deltas of similar chunks if that is worth it.

        The records must be added together, in this order: a delta comes after its bases.
        """
        if self._error is not None:
            raise self._error
        return [self._sealed(*encoded) for encoded in self._deltas.encode(buffer, chunks)]

    def _pending_similar(self, sketch: Sketch) -> list[RecordId]:
        """Return the chunk, not indexed yet, that shares most features with a sketch; in a list, or none."""
        chunks = [self._pending_features.get(feature) for feature in sketch]
        votes = [chunk for chunk in chunks if chunk is not None]
        return [max(votes, key=votes.count)] if votes else []

    def _sealed(self, data: bytes | memoryview, members: list[DeltaMember]) -> SealedRecord:
        counter = self._chunk_counter.take()
        first = members[0]
        names = record_names(first.id, first.length, CHUNK, first.codec)
        record = self._chunk_sealer.seal(counter, *names, data)
        # Copy the data: the caller reuses the buffer.
        payload = bytes(data) if self._base_cache.limit != 0 else b""
        return SealedRecord(record, counter, members, payload)

    def append(self, sealed: SealedRecord) -> bool:
        """Add a record to the open pack, unless the store has all of it; return whether it was added.

        Raises StorageError.
        """
        if self._error is not None:
            raise self._error
        record, counter, members, payload = sealed
        if all(self.was_added(member.id) for member in members):
            return False
        entries = [
            PackEntry(
                id=one.id,
                kind=CHUNK,
                codec=one.codec,
                plain_length=one.length,
                sealed_length=len(record),
                counter=counter,
                session=self.id,
                bases=one.bases,
                group_index=index,
            )
            for index, one in enumerate(members)
        ]
        self._append_record(entries, record, payload, [member.sketch for member in members])
        return True

    def put_node(self, refs: list[Ref]) -> tuple[RecordId, int]:
        """Store a node, after everything that it references; return its id and the bytes it took.

        The bytes are 0 if the store has the node already. Raises StorageError.
        """
        if self._error is not None:
            raise self._error
        plain = encode_node(refs)
        record_id = RecordId(blake3(plain, key=self._writer.node_id_key).digest())
        if record_id in self._pending or self._index.locations.has_node(record_id):
            return record_id, 0
        codec, data = self._codecs.compress(plain)
        counter = self._node_counter.take()
        length = len(plain)
        record = self._node_sealer.seal(counter, record_id, length, NODE, codec, data)
        entry = PackEntry(
            id=record_id,
            kind=NODE,
            codec=codec,
            plain_length=length,
            sealed_length=len(record),
            counter=counter,
            session=self.id,
        )
        self._append_record([entry], record)
        return record_id, len(record)

    def finish(self) -> None:
        """End the session: when this returns, everything that was added is durable and indexed.

        Raises the session's first error, whatever it was.
        """
        if self._ended:
            return
        try:
            if self._error is None:
                self._close_pack(full=False)
            self._wait_for_packs()
        except BaseException as error:
            self._error = self._error or error
            raise
        finally:
            self._end()

    def abort(self) -> None:
        """End the session after an error elsewhere, and keep as much of what was stored as possible."""
        reported = self._error
        try:
            self.finish()
        except (CastoreError, OSError):
            pass  # the error elsewhere is reported, and what is not stored is stored by the next try
        except Exception as error:
            if error is not reported:
                raise

    def _end(self) -> None:
        self._ended = True
        self._finisher.shutdown(wait=True)
        if self._pack is not None:
            self._pack.abort()
            self._pack = None
        if self._cache_file is not None:
            self._cache_file.abort()
            self._cache_file = None
        self._pending.clear()
        self._pending_features.clear()
        self._error = self._error or StorageError("this session has ended")

    def _append_record(
        self,
        entries: Sequence[PackEntry],
        record: bytes,
        payload: bytes = b"",
        sketches: Sequence[Sketch] = (),
    ) -> None:
        try:
            pack = self._pack
            if pack is not None and not pack.fits(entries):
                self._close_pack(full=True)
                pack = None
            if pack is None:
                pack = self._pack = PackWriter(self._storage, self._writer)
                self._cache_file = self._base_cache.create(self._chunk_sealer.overhead)
            offset = pack.add(entries, record)
        except BaseException as error:
            # An incomplete record may be in the pack.
            self._error = self._error or error
            raise
        cache_file = self._cache_file
        if not payload or cache_file is None:
            for entry in entries:
                self._pending.setdefault(entry.id)
            return
        cache_file.add(offset, payload)
        for entry, sketch in zip(entries, sketches, strict=True):
            # If a chunk was added twice, keep the first: later records may be deltas of it.
            self._pending.setdefault(
                entry.id,
                PendingChunk(
                    writer=cache_file,
                    offset=offset,
                    length=len(payload),
                    plain_length=entry.plain_length,
                    codec=entry.codec,
                    bases=entry.bases,
                    group_index=entry.group_index,
                    sketch=sketch,
                ),
            )
            for feature in sketch:
                self._pending_features[feature] = entry.id

    def _close_pack(self, *, full: bool) -> None:
        """Hand the pack over to the finishing thread; wait while too many packs are unfinished."""
        pack, self._pack = self._pack, None
        cache_file, self._cache_file = self._cache_file, None
        if pack is None:
            return
        self._finishing.append(self._finisher.submit(self._finish_pack, pack, cache_file, full=full))
        while len(self._finishing) > _OUTSTANDING:
            self._finishing.popleft().result()
        if self._error is not None:
            raise self._error

    def _wait_for_packs(self) -> None:
        while self._finishing:
            self._finishing.popleft().result()
        if self._error is not None:
            raise self._error

    def _finish_pack(self, pack: PackWriter, cache_file: BaseCacheWriter | None, *, full: bool) -> None:
        """Make a pack durable and index it; runs on the finishing thread, one pack at a time."""
        try:
            if self._error is not None:
                pack.abort()
                return
            if not self._recorded:
                name = session_name(self.id, 0)
                self._storage.put(name, encode_session(self.id, 0, self._record, self._writer))
                self._recorded = True
            pack_id, length = pack.commit(full=full)
            if cache_file is not None:
                cache_file.commit(self._base_cache.path_of(pack_id))
            ids = [entry.id for entry in pack.entries]
            pending_chunks = ((chunk, self._pending.get(chunk)) for chunk in ids)
            sketches = [(chunk, pending.sketch) for chunk, pending in pending_chunks if pending is not None]
            content = PackContent(pack_id, length, pack.entries, self._writer.signer.public)
            self._index.packs.put([content], sketches)
            self._count_usage([entry.id for entry in pack.entries if entry.kind == CHUNK])
            self._recent |= dict.fromkeys(ids)
            for old in list(itertools.islice(self._recent, max(len(self._recent) - _RECENT, 0))):
                del self._recent[old]
            for chunk in ids:
                self._pending.pop(chunk, None)
            # From now on they are found through the index.
            for chunk, sketch in sketches:
                for feature in sketch:
                    if self._pending_features.get(feature) == chunk:
                        self._pending_features.pop(feature, None)
        except BaseException as error:  # noqa: BLE001 - it is raised on the session's own thread
            self._error = self._error or error
            pack.abort()
        finally:
            if cache_file is not None:
                cache_file.abort()
