"""A storage that counts the bytes of packs and discards them. It keeps the small objects in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from castore.errors import ObjectExistsError, ObjectMissingError, StorageError
from castore.storage import Storage
from castore.storage.base import Writer
from castore.store.format.names import PACKS, is_in

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_KEPT: Final = 8 << 20
"""Bytes of the longest object that is kept: a configuration, a session or a generation."""


class CountingStorage(Storage):
    """A trial store's objects: of packs only their lengths, of all others their bytes."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._kept: dict[str, bytes] = {}

    @property
    def location(self) -> str:
        """The place, as named in messages."""
        return "a trial store"

    @property
    def total(self) -> int:
        """Bytes of all objects."""
        return sum(self._sizes.values())

    def create(self) -> Writer:
        """Begin a new object."""
        return _CountingWriter(self)

    def add(self, name: str, size: int, data: bytes) -> None:
        """Add an object. data: its bytes; of a pack, any. Raises ObjectExistsError, StorageError."""
        if name in self._sizes:
            raise ObjectExistsError(f"{name} exists already, and objects are never replaced")
        if not is_in(PACKS, name):
            if len(data) != size:
                raise StorageError(f"{name} has {size:,} bytes, more than a trial store keeps")
            self._kept[name] = data
        self._sizes[name] = size

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes. Raises ObjectMissingError, StorageError for a pack."""
        if name not in self._kept:
            if name in self._sizes:
                raise StorageError(f"{name} was counted and discarded")
            raise ObjectMissingError(f"{name} does not exist in a trial store")
        data = self._kept[name]
        return data[offset:] if length is None else data[offset : offset + length]

    def size(self, name: str) -> int:
        """Return an object's length in bytes. Raises ObjectMissingError."""
        if name not in self._sizes:
            raise ObjectMissingError(f"{name} does not exist in a trial store")
        return self._sizes[name]

    def list(self, folder: str, after: str = "") -> Iterator[str]:
        """Yield the names of the objects directly in a folder."""
        before = folder + "/"
        yield from [
            name.removeprefix(before)
            for name in list(self._sizes)
            if name.startswith(before) and "/" not in name.removeprefix(before)
            if name > before + after
        ]

    def delete(self, name: str) -> None:
        """Delete an object. Raises ObjectMissingError."""
        if self._sizes.pop(name, None) is None:
            raise ObjectMissingError(f"{name} does not exist in a trial store")
        self._kept.pop(name, None)


class _CountingWriter(Writer):
    def __init__(self, storage: CountingStorage) -> None:
        self._storage = storage
        self._size = 0
        self._start = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._size += len(data)
        if self._size <= _MOST_KEPT:
            self._start += data

    def commit(self, name: str) -> None:
        self._storage.add(name, self._size, bytes(self._start))
        self._start.clear()

    def abort(self) -> None:
        self._start.clear()
