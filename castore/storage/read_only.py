"""Refuse every change of a storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.errors import StorageError, StoragePermissionError
from castore.storage.decorator import StorageDecorator

if TYPE_CHECKING:
    from collections.abc import Iterable


class ReadOnlyStorage(StorageDecorator):
    """Refuses to write and to delete."""

    def _refuse(self, doing: str) -> StorageError:
        return StoragePermissionError(
            f"cannot {doing}: the store at {self.location} was opened to be read only"
        )

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Refuse."""
        del data
        raise self._refuse(f"write {name}")

    def delete(self, name: str) -> None:
        """Refuse."""
        raise self._refuse(f"delete {name}")

    def delete_all(self, names: Iterable[str]) -> None:
        """Refuse, unless there is nothing to delete."""
        for name in names:
            raise self._refuse(f"delete {name}")
