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
    from castore.store.write.base_cache import ReferenceWriter


def records_of(entries: Iterable[PackEntry]) -> list[list[PackEntry]]:
    """Return the entries of a pack, grouped by the record they share."""
    return [list(group) for _, group in itertools.groupby(entries, lambda entry: entry.offset)]


def record_in(data: bytes | memoryview, entries: list[PackEntry]) -> memoryview:
    """Return the record of these entries in the bytes of their pack."""
    first = entries[0]
    return memoryview(data)[first.offset : first.offset + first.sealed_length]


class Mover:
    """Moves sealed records to new packs, together with their payloads in the base cache."""

    def __init__(self, store: Store) -> None:
        self.written = 0
        self._store = store
        self._pack: PackWriter | None = None
        self._reference: ReferenceWriter | None = None
        self._overhead = -1
        self._from: set[PackId] = set()

    def add(
        self, pack: PackId, entries: list[PackEntry], sealed: bytes | memoryview, tally: Progress
    ) -> None:
        """Copy one record of a pack, given with all its entries. Raises StorageError."""
        first = entries[0]
        if self._pack is not None and not self._pack.fits(entries):
            self._close(full=True)
        if self._pack is None:
            self._pack = PackWriter(self._store.storage, self._store.writer_key)
        offset = self._pack.add(entries, sealed)
        self._from.add(pack)
        tally.stored += len(sealed)
        payload = self._store.references.read(pack, first.offset, len(sealed))
        if payload is not None:
            self._keep(offset, payload, len(sealed) - len(payload))

    def finish(self) -> int:
        """Make all moved records durable and index them; return how many bytes of packs were written."""
        if self._pack is not None:
            self._close(full=False)
        return self.written

    def abort(self) -> None:
        """Discard the pack that is not finished."""
        if self._pack is not None:
            self._pack.abort()
        if self._reference is not None:
            self._reference.abort()
        self._pack = self._reference = None

    def _keep(self, offset: int, payload: bytes, overhead: int) -> None:
        """Keep a payload for the base cache. A cache file holds payloads of one cipher only."""
        if self._reference is None:
            self._reference = self._store.references.create(overhead)
            self._overhead = overhead
        if self._reference is not None and overhead == self._overhead:
            self._reference.add(offset, payload)

    def _close(self, *, full: bool) -> None:
        pack, self._pack = self._pack, None
        reference, self._reference = self._reference, None
        assert pack is not None
        try:
            pack_id, length = pack.commit(full=full)
            if reference is not None:
                reference.commit(self._store.references.path_of(pack_id))
        finally:
            pack.abort()
            if reference is not None:
                reference.abort()
        signer = self._store.writer_key.signer.public
        self._store.index.packs.put([PackContent(pack_id, length, pack.entries, signer)])
        self._store.index.usage.move((old, pack_id) for old in self._from)
        self._from.clear()
        self.written += length
