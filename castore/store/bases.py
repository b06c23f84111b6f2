"""Bases: the plaintexts of chunks that new ones are told by, out of the reference cache."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from blake3 import blake3

from castore.errors import DamageError
from castore.store.pack import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from castore.kernel import Sketch
    from castore.model.refs import RecordId
    from castore.store.codecs import Codecs
    from castore.store.index import Index, Place
    from castore.store.reference import ReferenceCache, ReferenceWriter

MAX_DEPTH: Final = 3
"""No delta that is written rests on more chunks below one another than this."""

_KEPT_BYTES: Final = 32 << 20


class Base(NamedTuple):
    """A chunk that others can be told by."""

    id: RecordId
    data: bytes
    depth: int
    """How many chunks lie below it: 0 for one that is no delta."""
    bases: tuple[RecordId, ...]


class Pending(NamedTuple):
    """Where the frame of a chunk lies whose pack is under way."""

    writer: ReferenceWriter | None
    offset: int
    length: int
    plain_length: int
    codec: int
    bases: tuple[RecordId, ...]
    sketch: Sketch


class Bases:
    """Gives bases, each verified; keeps the last ones. Safe to share between threads."""

    def __init__(
        self,
        index: Index,
        references: ReferenceCache,
        codecs: Codecs,
        id_key: bytes,
        pending: Callable[[RecordId], Pending | None],
    ) -> None:
        self._index = index
        self._references = references
        self._codecs = codecs
        self._id_key = id_key
        self._pending = pending
        self._lock = threading.Lock()
        self._local = threading.local()
        self._kept: OrderedDict[RecordId, tuple[Base, bool]] = OrderedDict()
        self._kept_bytes = 0

    def get(self, chunk: RecordId) -> Base | None:
        """Return a chunk as a base; None if its frame, or one below it, is not at hand or damaged."""
        found, verified = self._get(chunk, MAX_DEPTH)
        if found is None or verified:
            return found
        if blake3(found.data, key=self._id_key).digest() != chunk:
            return None
        self._keep(found, verified=True)
        return found

    def offer(self, chunk: RecordId, data: bytes) -> None:
        """Keep a chunk that was just sealed, not as a delta, before it can be found."""
        self._keep(Base(chunk, data, 0, ()), verified=True)

    def prepare(self, chunks: Iterable[RecordId]) -> None:
        """Locate, for this thread, chunks that it will get, and all that they rest on, at once."""
        places: dict[RecordId, Place] = {}
        wanted = set(chunks)
        for _ in range(MAX_DEPTH + 1):
            found = self._index.locate_chunks(wanted)
            places |= found
            wanted = {base for place in found.values() for base in place.bases} - places.keys()
            if not wanted:
                break
        self._local.places = places

    def _get(self, chunk: RecordId, depth: int) -> tuple[Base | None, bool]:
        """Return a chunk, and whether it was verified: what lies below another is with that one."""
        with self._lock:
            kept = self._kept.get(chunk)
            if kept is not None:
                self._kept.move_to_end(chunk)
                return kept
        found = self._read(chunk, depth)
        if found is not None:
            self._keep(found, verified=False)
        # That there is none may only be for now: its pack is just being finished.
        return found, False

    def _keep(self, found: Base, *, verified: bool) -> None:
        with self._lock:
            if found.id not in self._kept:
                self._kept_bytes += len(found.data)
            self._kept[found.id] = found, verified
            while self._kept_bytes > _KEPT_BYTES:
                _, (gone, _) = self._kept.popitem(last=False)
                self._kept_bytes -= len(gone.data)

    def _read(self, chunk: RecordId, depth: int) -> Base | None:
        frame: bytes | None = None
        if (pending := self._pending(chunk)) is not None:
            _, _, _, plain_length, codec, bases, _ = pending
            if pending.writer is not None:
                frame = pending.writer.read(pending.offset, pending.length)
        if frame is None:
            # Its pack may have been finished since.
            places: dict[RecordId, Place] = getattr(self._local, "places", {})
            place = places.get(chunk) or self._index.locate(CHUNK, chunk)
            if place is None:
                return None
            plain_length, codec, bases = place.plain_length, place.codec, place.bases
            frame = self._references.read(place.pack, place.offset, place.sealed_length)
        if frame is None or (bases and not depth):
            return None
        below = [self._get(base, depth - 1)[0] for base in bases]
        if None in below:
            return None
        found = [base for base in below if base is not None]
        try:
            data = self._codecs.decompress(
                codec, frame, plain_length, [base.data for base in found]
            )
        except DamageError:
            return None
        level = max((base.depth + 1 for base in found), default=0)
        return Base(chunk, data, level, bases)
