"""Storages of the tests: one in memory, and one that fails as a network does."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

from castore.errors import (
    ObjectExistsError,
    ObjectMissingError,
    StorageTimeoutError,
    ThrottledError,
    TransientStorageError,
    UnreachableError,
)
from castore.storage.decorator import StorageDecorator
from castore.storage.remote import RemoteStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from castore.storage import Storage


class MemoryStorage(RemoteStorage):
    """Objects in a dict, which several storages may share; nothing ever fails."""

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.objects: dict[str, bytes] = {} if objects is None else objects
        self._lock = threading.Lock()

    @property
    def location(self) -> str:
        return "memory"

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        with self._lock:
            if name in self.objects:
                raise ObjectExistsError(f"{name} exists already")
            self.objects[name] = bytes(data)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data = self._object(name)
        return data[offset:] if length is None else data[offset : offset + length]

    def size(self, name: str) -> int:
        return len(self._object(name))

    def list(self, folder: str, after: str = "") -> Iterator[str]:
        names = [name.removeprefix(f"{folder}/") for name in list(self.objects) if name.startswith(f"{folder}/")]
        yield from sorted(name for name in names if name > after)

    def delete(self, name: str) -> None:
        self._object(name)
        self.delete_all([name])

    def delete_all(self, names: Iterable[str]) -> None:
        for name in names:
            self.objects.pop(name, None)

    def _object(self, name: str) -> bytes:
        try:
            return self.objects[name]
        except KeyError:
            raise ObjectMissingError(f"{name} does not exist") from None


_FAILURES: tuple[type[TransientStorageError], ...] = (
    TransientStorageError,
    ThrottledError,
    StorageTimeoutError,
    UnreachableError,
)


class FaultyStorage(StorageDecorator):
    """Fails some requests, before or after they are done: a lost reply.

    fails: asked before each request with its operation and name; returns "before", "after" or None.
    """

    def __init__(self, inner: Storage, fails: Callable[[str, str], str | None], seed: int = 0) -> None:
        super().__init__(inner)
        self._fails = fails
        self._random = random.Random(seed)

    def _failing(self, operation: str, name: str, request: Callable[[], object]) -> object:
        when = self._fails(operation, name)
        if when == "before":
            raise self._random.choice(_FAILURES)(f"{operation} {name} failed")
        result = request()
        if when == "after":
            raise self._random.choice([kind for kind in _FAILURES if kind is not ThrottledError])(f"the reply to {operation} {name} was lost")
        return result

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self._failing("put", name, lambda: self.inner.put(name, data))

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data = self._failing("get", name, lambda: self.inner.get(name, offset, length))
        assert isinstance(data, bytes)
        return data

    def size(self, name: str) -> int:
        size = self._failing("size", name, lambda: self.inner.size(name))
        assert isinstance(size, int)
        return size

    def list(self, folder: str, after: str = "") -> Iterator[str]:
        names = self._failing("list", folder, lambda: [*self.inner.list(folder, after)])
        assert isinstance(names, list)
        yield from names

    def delete(self, name: str) -> None:
        self._failing("delete", name, lambda: self.inner.delete(name))

    def delete_all(self, names: Iterable[str]) -> None:
        listed = [*names]
        self._failing("delete", ",".join(listed), lambda: self.inner.delete_all(listed))
