"""A storage that passes every operation to another one: the base of those that change some."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from castore.storage.remote import RemoteStorage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from castore.storage.base import Storage


class StorageDecorator(RemoteStorage):
    """Passes every operation to another storage; a subclass changes some."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner

    @property
    def location(self) -> str:
        """The location of the other storage."""
        return self.inner.location

    @property
    def canonical_location(self) -> str:
        """The one name of the location."""
        return self.inner.canonical_location

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Write an object."""
        self.inner.put(name, data)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes."""
        return self.inner.get(name, offset, length)

    def size(self, name: str) -> int:
        """Return an object's length."""
        return self.inner.size(name)

    def hash(self, name: str) -> tuple[bytes, int] | None:
        """Return the hash and the length of an object, if the server states them."""
        return self.inner.hash(name)

    def list(self, folder: str, after: str = "") -> Iterator[str]:
        """Yield the names in a folder."""
        return self.inner.list(folder, after)

    def sync_dir(self, folder: str) -> None:
        """Make durable what `list` shows."""
        self.inner.sync_dir(folder)

    def delete(self, name: str) -> None:
        """Delete an object."""
        self.inner.delete(name)

    def delete_all(self, names: Iterable[str]) -> None:
        """Delete objects."""
        self.inner.delete_all(names)

    def close(self) -> None:
        """Close connections."""
        self.inner.close()

    @contextlib.contextmanager
    def lock(self, *, exclusive: bool = False) -> Iterator[bool]:
        """Hold the lock."""
        with self.inner.lock(exclusive=exclusive) as held:
            yield held
