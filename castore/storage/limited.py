"""Limit the bytes that are sent to a storage, and received from it, in a second."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from castore.errors import UsageError
from castore.storage.base import Writer
from castore.storage.decorator import StorageDecorator

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.storage.base import Storage


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The bytes a second of transfers with a storage, at most. Raises UsageError for a limit of 0 or less."""

    upload: float = math.inf
    download: float = math.inf

    def __post_init__(self) -> None:
        for name, rate in (("limit_upload", self.upload), ("limit_download", self.download)):
            if not rate > 0:  # NaN is not, either
                raise UsageError(f"{name} is {rate}: a number of bytes a second above 0 was expected")

    def apply(self, storage: Storage) -> Storage:
        """Return the storage with these limits."""
        return storage if self == Limits() else LimitedStorage(storage, self)


class _Rate:
    """A number of bytes a second, over all threads, after a burst of one second."""

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
    """Uploads and downloads at most so many bytes a second, on average.

    A forked process would have a limit of its own, so `forks` stays False.
    """

    def __init__(
        self,
        inner: Storage,
        limits: Limits,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inner)
        self._upload = _Rate(limits.upload, sleep, clock)
        self._download = _Rate(limits.download, sleep, clock)

    def create(self) -> Writer:
        """Begin a new object, which is written to a directory as it grows."""
        return _LimitedWriter(self.inner.create(), self._upload)

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Write an object."""
        self._upload.wait(len(data))
        self.inner.put(name, data)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes."""
        data = self.inner.get(name, offset, length)
        self._download.wait(len(data))
        return data


class _LimitedWriter(Writer):
    def __init__(self, inner: Writer, rate: _Rate) -> None:
        self._inner, self._rate = inner, rate

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._rate.wait(len(data))
        self._inner.write(data)

    def commit(self, name: str) -> None:
        self._inner.commit(name)

    def abort(self) -> None:
        self._inner.abort()
