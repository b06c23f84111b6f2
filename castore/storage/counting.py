"""Count the requests to a storage."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import msgspec

from castore.storage.decorator import StorageDecorator

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from castore.storage.base import Storage

_PAGE: Final = 1000
"""Names in one answer to a listing, and in one request to delete."""


class RequestCounts(msgspec.Struct):
    """What a storage was asked for."""

    requests: dict[str, int] = {}
    """The number of requests by operation: put, get, size, list, delete."""
    uploaded: int = 0
    """Bytes of objects, without those of requests that failed."""
    downloaded: int = 0

    @property
    def total(self) -> int:
        """The number of all requests."""
        return sum(self.requests.values())


class CountingStorage(StorageDecorator):
    """Counts requests and bytes in `counts`."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.counts = RequestCounts()
        self._lock = threading.Lock()

    def _count(self, operation: str, *, up: int = 0, down: int = 0, requests: int = 1) -> None:
        with self._lock:
            counts = self.counts
            counts.requests[operation] = counts.requests.get(operation, 0) + requests
            counts.uploaded += up
            counts.downloaded += down

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Write an object."""
        self._count("put")
        self.inner.put(name, data)
        self._count("put", up=len(data), requests=0)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes."""
        self._count("get")
        data = self.inner.get(name, offset, length)
        self._count("get", down=len(data), requests=0)
        return data

    def size(self, name: str) -> int:
        """Return an object's length."""
        self._count("size")
        return self.inner.size(name)

    def list(self, folder: str, after: str = "") -> Iterator[str]:
        """Yield the names in a folder."""
        names = 0
        for name in self.inner.list(folder, after):
            if names % _PAGE == 0:
                self._count("list")
            names += 1
            yield name
        if not names:
            self._count("list")

    def delete(self, name: str) -> None:
        """Delete an object."""
        self._count("delete")
        self.inner.delete(name)

    def delete_all(self, names: Iterable[str]) -> None:
        """Delete objects."""
        listed = [*names]
        self._count("delete", requests=-(-len(listed) // _PAGE))
        self.inner.delete_all(listed)
