"""What all storages on other machines share: an object is sent completely, by one request."""

from __future__ import annotations

from abc import abstractmethod

from castore.errors import CastoreError, StorageError
from castore.storage.base import Storage, Writer


class RemoteStorage(Storage):
    """A storage that writes an object by one request."""

    def create(self) -> Writer:
        """Begin a new object, kept in memory until it is committed: castore writes at most 64 MiB."""
        return _BufferedWriter(self)

    @abstractmethod
    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Write an object, durably, unless one of that name exists.

        Raises ObjectExistsError; TransientStorageError if the object may or may not have been written;
        StorageError.
        """


class _BufferedWriter(Writer):
    def __init__(self, storage: RemoteStorage) -> None:
        self._storage = storage
        self._data = bytearray()
        self._error: CastoreError | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._refuse_if_failed()
        self._data += data

    def commit(self, name: str) -> None:
        self._refuse_if_failed()
        try:
            self._storage.put(name, self._data)
        except CastoreError as error:
            self._error = error
            raise
        finally:
            self._data = bytearray()
        self._error = StorageError(f"the writer of {name} was closed")

    def abort(self) -> None:
        self._data = bytearray()
        if self._error is None:
            self._error = StorageError(f"an object of {self._storage.location} was not written")

    def _refuse_if_failed(self) -> None:
        if self._error is not None:
            raise self._error
