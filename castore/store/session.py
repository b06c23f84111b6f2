"""One run that adds packs to a store.

Chunks are sealed on any thread, then added in order on one; full packs are made durable and
indexed, in the order in which they were filled, on another. So whatever a node in the store refers
to is in the store too, at every moment.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import zstandard
from blake3 import blake3

from castore.errors import StorageError
from castore.model.refs import RecordId, Ref, RefKind, SessionId, encode_node
from castore.sealing import RecordSealer, best_cipher, random_key
from castore.store.pack import CHUNK, NO_BASE, NODE, RAW, ZSTD, PackEntry, PackWriter
from castore.store.sessions import encode_session, new_session_record, sealed_to, session_name

if TYPE_CHECKING:
    from types import TracebackType

    from castore.sealing import WriterKey
    from castore.storage import Storage
    from castore.store.config import StoreConfig
    from castore.store.index import Index

_LEVEL: Final = 3
_OUTSTANDING: Final = 2
_MAX_COUNTER: Final = 0xFFFFFFFF


class Sealed(NamedTuple):
    """A chunk on its way into a pack."""

    ref: Ref
    record: bytes | None
    """What the pack will hold; None: the store has the chunk."""
    codec: int
    counter: int


class Session:
    """One run that adds packs; to be used in a `with` block.

    `seal` is for any thread; `add`, `put_node` and `finish` are for one. After its first error a
    session refuses everything with that error. Leaving the block by an error still ends the pack
    under way, where that is possible, so that the next try finds what was stored.
    """

    def __init__(
        self, storage: Storage, index: Index, writer: WriterKey, config: StoreConfig
    ) -> None:
        self.id = SessionId(os.urandom(16))
        self._storage = storage
        self._index = index
        self._writer = writer
        self._chunk_id_key = writer.chunk_id_key
        cipher = best_cipher()
        data_key = random_key()
        seals = sealed_to((entry.recipient for entry in config.recipients), self.id, data_key)
        self._record = new_session_record(time.time_ns(), os.uname().nodename, cipher, seals)
        self._recorded = False
        self._chunk_sealer = RecordSealer(cipher, data_key, writer.store_id)
        self._node_sealer = RecordSealer(cipher, writer.node_key(self.id), writer.store_id)
        # The next value of a count is taken in one step of the interpreter, so two threads never
        # get the same: a counter is a nonce.
        self._chunk_counter = itertools.count()
        self._node_counter = itertools.count()
        self._local = threading.local()
        self._pending: set[RecordId] = set()  # in packs that are not indexed yet
        self._pack: PackWriter | None = None
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="castore-pack")
        self._finishing: deque[Future[None]] = deque()
        self._error: BaseException | None = None
        self._ended = False

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

    def seal(self, plain: memoryview | bytes) -> Sealed:
        """Name a chunk, and, unless the store has it, compress and seal it."""
        if self._error is not None:
            raise self._error
        record_id = RecordId(blake3(plain, key=self._chunk_id_key).digest())
        length = len(plain)
        ref = Ref(RefKind.CHUNK, record_id, length)
        # In this order: a pack's ids leave the set only when the index has them.
        if record_id in self._pending or self._index.has_chunk(record_id):
            return Sealed(ref, None, RAW, 0)
        codec, data = self._compress(plain)
        counter = self._count(self._chunk_counter)
        record = self._chunk_sealer.seal(counter, record_id, NO_BASE, length, CHUNK, codec, data)
        return Sealed(ref, record, codec, counter)

    def add(self, sealed: Sealed) -> bool:
        """Put a chunk into the pack under way; tell whether it was new. Raises StorageError."""
        if self._error is not None:
            raise self._error
        ref, record, codec, counter = sealed
        if record is None or ref.id in self._pending or self._index.has_chunk(ref.id):
            return False
        entry = PackEntry(ref.id, CHUNK, codec, ref.size, len(record), counter, self.id)
        self._append(entry, record)
        return True

    def put_node(self, refs: list[Ref]) -> tuple[RecordId, int]:
        """Store a node, after all that it refers to; return its id and the bytes it took.

        Those are 0 if the store has it. Raises StorageError.
        """
        if self._error is not None:
            raise self._error
        plain = encode_node(refs)
        record_id = RecordId(blake3(plain, key=self._writer.node_id_key).digest())
        if record_id in self._pending or self._index.has_node(record_id):
            return record_id, 0
        codec, data = self._compress(plain)
        counter = self._count(self._node_counter)
        length = len(plain)
        record = self._node_sealer.seal(counter, record_id, NO_BASE, length, NODE, codec, data)
        self._append(
            PackEntry(record_id, NODE, codec, length, len(record), counter, self.id), record
        )
        return record_id, len(record)

    def finish(self) -> None:
        """End the session: when this returns, all that was added is durable and indexed.

        Raises the session's first error, whatever it was.
        """
        if self._ended:
            return
        try:
            if self._error is None:
                self._close_pack(full=False)
            self._settle()
        except BaseException as error:
            self._error = self._error or error
            raise
        finally:
            self._end()

    def abort(self) -> None:
        """End the session after an error elsewhere, keeping of what was stored all that can be."""
        with contextlib.suppress(Exception):
            self.finish()

    def _end(self) -> None:
        self._ended = True
        self._finisher.shutdown(wait=True)
        if self._pack is not None:
            self._pack.abort()
            self._pack = None
        self._pending.clear()
        self._error = self._error or StorageError("this session has ended")

    def _compress(self, plain: memoryview | bytes) -> tuple[int, bytes | memoryview]:
        """Return the codec and what is to be sealed: compressed only if that saves over 1/32."""
        compressor = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = self._local.compressor = zstandard.ZstdCompressor(level=_LEVEL)
        data: bytes = compressor.compress(plain)
        length = len(plain)
        if length - len(data) > length >> 5:
            return ZSTD, data
        return RAW, plain

    @staticmethod
    def _count(counter: itertools.count[int]) -> int:
        number = next(counter)
        if number > _MAX_COUNTER:
            raise StorageError("this session is full: it has 2^32 records; take the parts apart")
        return number

    def _append(self, entry: PackEntry, record: bytes) -> None:
        try:
            if self._pack is not None and not self._pack.fits(len(record), self.id):
                self._close_pack(full=True)
            if self._pack is None:
                self._pack = PackWriter(self._storage, self._writer)
            self._pack.add(entry, record)
        except BaseException as error:
            # Half a record may be in the pack.
            self._error = self._error or error
            raise
        self._pending.add(entry.id)

    def _close_pack(self, *, full: bool) -> None:
        """Hand the pack over to be finished; wait while too many are."""
        pack, self._pack = self._pack, None
        if pack is None:
            return
        self._finishing.append(self._finisher.submit(self._finish_pack, pack, full=full))
        while len(self._finishing) > _OUTSTANDING:
            self._finishing.popleft().result()
        if self._error is not None:
            raise self._error

    def _settle(self) -> None:
        while self._finishing:
            self._finishing.popleft().result()
        if self._error is not None:
            raise self._error

    def _finish_pack(self, pack: PackWriter, *, full: bool) -> None:
        """Make a pack durable and index it; runs on the finishing thread, one at a time."""
        try:
            if self._error is not None:
                pack.abort()
                return
            if not self._recorded:
                name = session_name(self.id, 0)
                self._storage.put(name, encode_session(self.id, 0, self._record, self._writer))
                self._recorded = True
            name_of_pack, length = pack.commit(full=full)
            self._index.put_packs([(name_of_pack, length, pack.entries)])
            self._pending.difference_update([entry.id for entry in pack.entries])
        except BaseException as error:  # noqa: BLE001 - it surfaces on the session's own thread
            self._error = self._error or error
            pack.abort()
