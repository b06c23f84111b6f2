"""Repeat requests to a storage that failed for a moment."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Final, TypeVar

from castore.errors import ObjectExistsError, ObjectMissingError, ThrottledError, TransientStorageError
from castore.storage.decorator import StorageDecorator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from castore.storage.base import Storage

Result = TypeVar("Result")

_FIRST_PAUSE: Final = 0.1
"""Seconds, at most, before the first repetition; each further pause is at most twice as long."""
_LONGEST_PAUSE: Final = 20.0
_PATIENCE: Final = 180.0
"""Seconds from the first request after which nothing is repeated: a server that restarts needs less."""
_COMPARED: Final = 1 << 20
"""An object up to this length is read back completely; of a longer one, its length and its end."""


class RetryingStorage(StorageDecorator):
    """Repeats requests that failed because of the connection or the server, after random pauses.

    Reads, listings and deletions can be repeated as they are. The reply to a write may have been lost after
    the server wrote the object: a repetition that finds an object of that name compares it.
    """

    def __init__(
        self,
        inner: Storage,
        *,
        patience: float = _PATIENCE,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inner)
        self._patience = patience
        self._sleep = sleep
        self._clock = clock

    def _pauses(self) -> Iterator[None]:
        """Yield after each pause, as long as there is patience: full jitter (AWS, 2015) spreads clients."""
        end = self._clock() + self._patience
        longest = _FIRST_PAUSE
        while True:
            pause = random.uniform(0, longest)  # noqa: S311 - spreads clients, hides nothing
            if self._clock() + pause > end:
                return
            self._sleep(pause)
            yield
            longest = min(2 * longest, _LONGEST_PAUSE)

    def _repeat(self, request: Callable[[], Result]) -> Result:
        try:
            return request()
        except TransientStorageError as error:
            failure = error
        for _ in self._pauses():
            try:
                return request()
            except TransientStorageError as error:
                failure = error
        raise failure

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Write an object; what a lost reply left behind is accepted if it is the same."""
        uncertain = False

        def request() -> None:
            nonlocal uncertain
            try:
                self.inner.put(name, data)
            except ThrottledError:
                raise
            except TransientStorageError:
                uncertain = True
                raise
            except ObjectExistsError:
                if not uncertain or not self._is_there(name, data):
                    raise

        self._repeat(request)

    def _is_there(self, name: str, data: bytes | bytearray | memoryview) -> bool:
        """Return whether the object that exists is the one that was written."""
        try:
            if self.inner.size(name) != len(data):
                return False
            start = max(len(data) - _COMPARED, 0)
            return self.inner.get(name, start, len(data) - start) == memoryview(data)[start:]
        except ObjectMissingError:
            return False

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes."""
        return self._repeat(lambda: self.inner.get(name, offset, length))

    def size(self, name: str) -> int:
        """Return an object's length."""
        return self._repeat(lambda: self.inner.size(name))

    def list(self, folder: str, after: str = "") -> Iterator[str]:
        """Yield the names in a folder, each once; what fails in the middle is listed again."""
        yield from self._repeat(lambda: [*self.inner.list(folder, after)])

    def sync_dir(self, folder: str) -> None:
        """Make durable what `list` shows."""
        self._repeat(lambda: self.inner.sync_dir(folder))

    def delete(self, name: str) -> None:
        """Delete an object; that a repetition finds none is what was asked for."""
        failed = False

        def request() -> None:
            nonlocal failed
            try:
                self.inner.delete(name)
            except TransientStorageError:
                failed = True
                raise
            except ObjectMissingError:
                if not failed:
                    raise

        self._repeat(request)

    def delete_all(self, names: Iterable[str]) -> None:
        """Delete objects."""
        listed = [*names]
        self._repeat(lambda: self.inner.delete_all(listed))
