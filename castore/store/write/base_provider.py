"""Bases: the plaintexts of chunks from which new chunks are encoded as deltas, read from the base cache."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from blake3 import blake3

from castore.errors import DamageError
from castore.store.format.pack import CHUNK
from castore.store.read.delta_resolver import BaseChunk, StoredForm, StoredForms, assemble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from castore.kernel import Sketch
    from castore.model.refs import PackId, RecordId
    from castore.store.format.codecs import Codecs
    from castore.store.index import Index, RecordLocation
    from castore.store.write.base_cache import BaseCache, BaseCacheWriter

MAX_DEPTH: Final = 4
"""The longest chain of bases below a delta that is written."""

_KEPT_BYTES: Final = 32 << 20


class PendingChunk(NamedTuple):
    """The location of a chunk in a pack that is being written."""

    writer: BaseCacheWriter
    offset: int
    length: int
    plain_length: int
    codec: int
    bases: tuple[RecordId, ...]
    group_index: int
    sketch: Sketch


class _Kept:
    """The most recently used chunks, up to a number of bytes; safe to share between threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._chunks: OrderedDict[RecordId, BaseChunk] = OrderedDict()
        self._bytes = 0

    def get(self, chunk: RecordId) -> BaseChunk | None:
        with self._lock:
            base = self._chunks.get(chunk)
            if base is not None:
                self._chunks.move_to_end(chunk)
            return base

    def __setitem__(self, chunk: RecordId, base: BaseChunk) -> None:
        with self._lock:
            if chunk not in self._chunks:
                self._bytes += len(base.data)
            self._chunks[chunk] = base
            while self._bytes > self._limit:
                _, discarded = self._chunks.popitem(last=False)
                self._bytes -= len(discarded.data)


class Bases:
    """Provides verified bases, and keeps the most recent ones. Safe to share between threads."""

    def __init__(
        self,
        index: Index,
        base_cache: BaseCache,
        codecs: Codecs,
        id_key: bytes,
        pending: Callable[[RecordId], PendingChunk | None],
    ) -> None:
        self._index = index
        self._base_cache = base_cache
        self._id_key = id_key
        self._pending = pending
        self._forms = StoredForms(codecs)
        self._local = threading.local()
        self._verified = _Kept(_KEPT_BYTES)
        self._below = _Kept(_KEPT_BYTES // 2)
        """Bases below others: they are verified together with those."""

    def get(self, chunk: RecordId) -> BaseChunk | None:
        """Return a chunk as a base; None if it, or one that it depends on, is unavailable or damaged.

        Also None if new snapshots do not reference its pack.
        """
        base = self._verified.get(chunk)
        if base is not None:
            return base
        # A chunk in a pack that is pending deletion must not become a base, even if it is cached: nothing
        # would prevent its deletion.
        stay = getattr(self._local, "all_stay", False)
        if not stay and self._pending(chunk) is None and not self._index.locations.stays(chunk):
            return None
        try:
            base = assemble(chunk, self._stored_form, self._below)
        except (KeyError, DamageError):
            # This may be temporary: its pack may just be being finished.
            return None
        if blake3(base.data, key=self._id_key).digest() != chunk:
            return None
        self._verified[chunk] = base
        return base

    def offer(self, chunk: RecordId, data: bytes) -> None:
        """Keep a chunk that was just sealed in full, before it can be found."""
        self._verified[chunk] = BaseChunk(chunk, data, 0, (), frozenset())

    def prepare(self, chunks: Iterable[RecordId]) -> None:
        """Locate, for this thread, chunks that it will get, and all their bases, in one transaction.

        Whether packs stay is looked up here, too: a commit checks the bases of what is new once more if that
        has changed.
        """
        self._local.all_stay = self._index.locations.all_stay()
        self._local.locations = self._index.locations.locate_chunks(chunks)

    def _stored_form(self, chunk: RecordId) -> StoredForm:
        """Return the stored form of a chunk. Raises KeyError, DamageError."""
        pending = self._pending(chunk)
        if pending is not None:
            writer, offset, length = pending.writer, pending.offset, pending.length
            with contextlib.suppress(KeyError):
                return self._decode((writer, offset), lambda: writer.read(offset, length), pending)
        # Its pack may have been finished in the meantime.
        locations: dict[RecordId, RecordLocation] = getattr(self._local, "locations", {})
        location = locations.get(chunk) or self._index.locations.locate(CHUNK, chunk)
        if location is None:
            raise KeyError(chunk)
        where = location.pack, location.offset
        return self._decode(where, lambda: self._base_cache.read(*where, location.sealed_length), location)

    def _decode(
        self,
        record: tuple[BaseCacheWriter | PackId, int],
        read: Callable[[], bytes | None],
        chunk: PendingChunk | RecordLocation,
    ) -> StoredForm:
        """Decode a record in the base cache. Raises KeyError if it is not there, DamageError."""

        def payload() -> bytes:
            if (data := read()) is None:
                raise KeyError(record)
            return data

        return self._forms.decode(record, chunk, payload)
