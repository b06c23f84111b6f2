"""Limit the bytes that are sent to a storage, and received from it, in a second."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from castore.storage.decorator import StorageDecorator

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.storage.base import Storage


class _Rate:
    """A number of bytes a second, over all threads; a burst of one second is let through."""

    def __init__(self, limit: float, sleep: Callable[[float], None], clock: Callable[[], float]) -> None:
        self._limit, self._sleep, self._clock = limit, sleep, clock
        self._free_at = clock()
        self._lock = threading.Lock()

    def wait(self, count: int) -> None:
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - 1) + count / self._limit
            pause = self._free_at - now
        if pause > 0:
            self._sleep(pause)


class LimitedStorage(StorageDecorator):
    """Uploads and downloads at most so many bytes a second; None: no limit."""

    def __init__(
        self,
        inner: Storage,
        *,
        upload: float | None = None,
        download: float | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inner)
        self._upload = _Rate(upload, sleep, clock) if upload else None
        self._download = _Rate(download, sleep, clock) if download else None

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Write an object."""
        if self._upload is not None:
            self._upload.wait(len(data))
        self.inner.put(name, data)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes."""
        data = self.inner.get(name, offset, length)
        if self._download is not None:
            self._download.wait(len(data))
        return data
