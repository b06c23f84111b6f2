"""Repeat requests to a storage that failed for a moment."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Final, TypeVar

from castore.errors import (
    ObjectExistsError,
    ObjectMissingError,
    StorageError,
    ThrottledError,
    TransientStorageError,
)
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
_FIRST_PATIENCE: Final = 15.0
"""The same before the first success: the URL or the server's address may be wrong, and somebody waits."""
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
        self._has_succeeded = False
        self._sleep = sleep
        self._clock = clock

    def _tries(self) -> Iterator[None]:
        """Yield at once, and then after each pause, as long as there is patience.

        A pause is random from none to the longest, which spreads clients ("full jitter", AWS 2015).
        """
        patience = self._patience if self._has_succeeded else min(self._patience, _FIRST_PATIENCE)
        end = self._clock() + patience
        longest = _FIRST_PAUSE
        pause = 0.0
        while self._clock() + pause <= end:
            if pause:
                self._sleep(pause)
            yield
            pause = random.uniform(0, longest)  # noqa: S311 - spreads clients, hides nothing
            longest = min(2 * longest, _LONGEST_PAUSE)

    def _repeat(self, request: Callable[[], Result]) -> Result:
        failure: TransientStorageError | None = None
        for _ in self._tries():
            try:
                result = request()
            except TransientStorageError as error:
                failure = error
            else:
                self._has_succeeded = True
                return result
        raise failure or StorageError("the clock of this machine went backwards")

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Write an object; an object that exists because a reply was lost is accepted if it is the same."""
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

    def hash(self, name: str) -> tuple[bytes, int] | None:
        """Return the hash and the length of an object, if the server states them."""
        return self._repeat(lambda: self.inner.hash(name))

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
