"""Move records from pack to pack without decrypting them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from castore.store.format.pack import PackWriter
from castore.store.index.pack_tables import PackContent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.model.refs import PackId
    from castore.progress import Progress
    from castore.store import Store
    from castore.store.format.pack import PackEntry
    from castore.store.write.base_cache import BaseCacheWriter


def records_of(entries: Iterable[PackEntry]) -> list[list[PackEntry]]:
    """Return the entries of a pack, grouped by the record they share."""
    return [list(group) for _, group in itertools.groupby(entries, lambda entry: entry.offset)]


def record_in(data: bytes | memoryview, entries: list[PackEntry]) -> memoryview:
    """Return the record of these entries in the bytes of their pack."""
    first = entries[0]
    return memoryview(data)[first.offset : first.offset + first.sealed_length]


class _OpenPack:
    """A pack that records are moved to, with its file in the base cache."""

    def __init__(self, store: Store) -> None:
        self.pack = PackWriter(store.storage, store.keys.writer_key)
        self.sources: set[PackId] = set()
        """The packs that its records come from."""
        self._cache = store.base_cache
        self._file: BaseCacheWriter | None = None
        self._overhead = -1

    def add(self, source: PackId, entries: list[PackEntry], sealed: bytes | memoryview) -> None:
        """Add a record, and its payload if that is in the base cache."""
        offset = self.pack.add(entries, sealed)
        self.sources.add(source)
        payload = self._cache.read(source, entries[0].offset, len(sealed))
        if payload is None:
            return
        overhead = len(sealed) - len(payload)
        if self._file is None:
            self._file = self._cache.create(overhead)
            self._overhead = overhead
        # A cache file holds payloads of one cipher only.
        if self._file is not None and overhead == self._overhead:
            self._file.add(offset, payload)

    def commit(self, *, full: bool) -> tuple[PackId, int]:
        """Make the pack durable; return its id and length. If that fails, discard it."""
        try:
            pack_id, length = self.pack.commit(full=full)
            if self._file is not None:
                self._file.commit(self._cache.path_of(pack_id))
        finally:
            self.abort()
        return pack_id, length

    def abort(self) -> None:
        """Discard what is not committed."""
        self.pack.abort()
        if self._file is not None:
            self._file.abort()


class RecordMover:
    """Moves sealed records to new packs, together with their payloads in the base cache."""

    def __init__(self, store: Store) -> None:
        self.written = 0
        """Bytes of the packs that are finished."""
        self._store = store
        self._open: _OpenPack | None = None

    def add(
        self, pack: PackId, entries: list[PackEntry], sealed: bytes | memoryview, progress: Progress
    ) -> None:
        """Copy one record of a pack, given with all its entries. Raises StorageError."""
        if self._open is not None and not self._open.pack.fits(entries):
            self._finish_pack(self._open, full=True)
        if self._open is None:
            self._open = _OpenPack(self._store)
        self._open.add(pack, entries, sealed)
        progress.stored += len(sealed)

    def finish(self) -> int:
        """Make all moved records durable and index them; return how many bytes of packs were written."""
        if self._open is not None:
            self._finish_pack(self._open, full=False)
        return self.written

    def abort(self) -> None:
        """Discard the pack that is not finished."""
        if self._open is not None:
            self._open.abort()
            self._open = None

    def _finish_pack(self, done: _OpenPack, *, full: bool) -> None:
        self._open = None
        pack_id, length = done.commit(full=full)
        signer = self._store.keys.writer_key.signer.public
        self._store.index.packs.put([PackContent(pack_id, length, done.pack.entries, signer)])
        self._store.index.usage.move((old, pack_id) for old in done.sources)
        self.written += length
