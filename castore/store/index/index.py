"""The index of a store on this machine, composed of its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from castore.store.index.generations import GenerationTable
from castore.store.index.liveness import Liveness
from castore.store.index.location_reader import LocationReader
from castore.store.index.locations import RecordLocations
from castore.store.index.metadata import Metadata
from castore.store.index.opening import mark_of
from castore.store.index.pack_tables import PackTable
from castore.store.index.pack_usage import PackUsage
from castore.store.index.schema import TABLES
from castore.store.index.transactions import Tables
from castore.store.index.verification import VerificationTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from castore.errors import StorageError
    from castore.model.refs import PackId
    from castore.store.format.pack import Footer

_KEPT: Final = frozenset({"meta", "ended"})
"""Tables that `clear` keeps."""


class Index:
    """The index in a folder; safe to share between threads."""

    def __init__(self, path: str, store_id: bytes) -> None:
        """Open the index in `path`, or create it. Raises StorageError."""
        self.path = path
        self.tables = Tables(path, store_id)
        reader = LocationReader(self.tables)
        self._meta = Metadata(self.tables)
        self.locations = RecordLocations(self.tables, self._meta, reader)
        self.packs = PackTable(self.tables, self._meta, reader)
        self.generations = GenerationTable(self.tables)
        self.liveness = Liveness(self.tables, self._meta, reader)
        self.verification = VerificationTable(self.tables)
        self.usage = PackUsage(self.tables)
        self._mark = mark_of(store_id)

    def close(self) -> None:
        """Release the index; the last user closes it."""
        self.tables.close()

    def reset_error(self) -> None:
        """Allow writing again after an I/O error."""
        self.tables.environment.reset_error()

    def refusal(self, error: Exception) -> StorageError:
        """Return the error to raise for a failure of the index; a damaged index is marked for a rebuild."""
        return self.tables.refusal(error)

    def epoch(self) -> bytes:
        """Return 16 bytes that change as soon as anything that was indexed may be missing."""
        return self._meta.epoch()

    def rotation(self) -> int:
        """Return the number of the last rotation of the writer key that was applied to the index, or 0."""
        return self._meta.rotation()

    def set_rotation(self, number: int, *, new_ids: bool) -> None:
        """Record that a rotation was applied. new_ids: ids changed, so that scan caches are of no use."""
        self._meta.set_rotation(number, new_ids=new_ids)

    def size(self) -> int:
        """Return the bytes that the index takes."""
        return self.tables.size()

    def count(self, table: str) -> int:
        """Return the number of entries of a table: chunks, nodes, packs, sessions, generations."""
        return self.tables.count(table)

    def clear(self) -> None:
        """Forget everything except metadata and ended sessions. Raises StorageError."""
        self.tables.write(self._clear)

    def _clear(self, txn: Any) -> None:
        self._meta.clear(txn)
        for name in TABLES:
            if name not in _KEPT:
                txn.drop(self.tables.by_name[name], delete=False)

    def rebuild(
        self,
        footers: Iterable[tuple[PackId, Footer | Exception]],
        failed: Callable[[PackId, Exception], None],
    ) -> None:
        """Rebuild the index from the footers of all packs; failed: is called with each unreadable pack.

        Generations stay. Raises StorageError; then the index is unchanged.
        """
        from castore.store.index.bulk_load import rebuild  # noqa: PLC0415 - most commands do not need it

        rebuild(self.tables.environment, self._mark, footers, failed)
