"""The contract of a storage, which holds the objects of one store.

Objects are immutable: written once, completely or not at all, and never changed. Names are relative paths of
lower-case letters, digits, dots and dashes, with `/` between their components.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Self

from castore.errors import ObjectMissingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType


MAX_WHOLE: Final = 256 << 20
"""The longest object that is read at once, in bytes; the longest is the list of objects at a rotation."""


class Writer(ABC):
    """An object being written. It is invisible to others until `commit` makes it durable.

    A writer that failed once refuses everything with its first error. Leaving its `with` block
    without a commit leaves no trace.
    """

    @abstractmethod
    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`, which the caller may reuse afterwards. Raises StorageError."""

    @abstractmethod
    def commit(self, name: str) -> None:
        """Make what was written durable, and then visible as the object `name`, in one step.

        When this returns, object and name survive a loss of power. Raises ObjectExistsError if the name is
        taken, and then nothing was added. Raises StorageError if the storage failed, and then the complete
        object may exist, but is not guaranteed to be durable.
        """

    @abstractmethod
    def abort(self) -> None:
        """Discard what was written. Does nothing after a commit."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()


class Storage(ABC):
    """Holds the objects of one store."""

    forks: bool = False
    """Whether a forked process may go on reading, concurrently with its parent."""

    @property
    @abstractmethod
    def location(self) -> str:
        """The location of the store, as named in messages."""

    @property
    def canonical_location(self) -> str:
        """The one name under which this machine remembers the location."""
        return self.location

    @abstractmethod
    def create(self) -> Writer:
        """Begin a new object. Raises StorageError."""

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Write a complete object: `create`, `write` and `commit` in one call."""
        with self.create() as writer:
            writer.write(data)
            writer.commit(name)

    @abstractmethod
    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes from `offset`, at most `length` of them (None: to its end).

        Returns fewer if the object ends earlier. Raises ObjectMissingError, StorageError; without a length,
        DamageError for an object of more than MAX_WHOLE bytes: the storage provider could create one.
        """

    @abstractmethod
    def size(self, name: str) -> int:
        """Return an object's length in bytes. Raises ObjectMissingError, StorageError."""

    def hash(self, name: str) -> tuple[bytes, int] | None:
        """Return the BLAKE3 hash and the length of an object, as the server states them without sending it.

        None: the server cannot, so read the object. Raises ObjectMissingError, StorageError.
        """
        del name
        return None

    @abstractmethod
    def list(self, folder: str, after: str = "") -> Iterator[str]:
        """Yield the names, without `folder` and `/`, of the objects directly in `folder`, in any order.

        after: only those that sort after this name. A folder that was never written to is empty. Raises
        StorageError.
        """

    def sync_dir(self, folder: str) -> None:  # noqa: B027 - most storages show only what is durable
        """Make durable what `list` shows of a folder, if it is not durable yet.

        A process that was killed just before the last step of a commit or a deletion leaves a state that
        others see, but that a loss of power may still revert. Call this before writing an object that
        references an object of another process, and before deleting what a missing object referenced.
        Raises StorageError.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete an object for good. Raises ObjectMissingError, StorageError."""

    def delete_all(self, names: Iterable[str]) -> None:
        """Delete objects for good, in any order; missing ones are ignored. Raises StorageError."""
        for name in names:
            with contextlib.suppress(ObjectMissingError):
                self.delete(name)

    def close(self) -> None:  # noqa: B027 - most storages hold nothing open
        """Close connections; a further operation opens them again."""

    @contextlib.contextmanager
    def lock(self, *, exclusive: bool = False) -> Iterator[bool]:
        """Hold the store's lock during the block: exclusively (`exclusive`), or shared.

        Yields whether every process that may use this storage takes the lock. If not, a process that deletes
        must wait until all commits that may have begun before have ended. Raises StorageError.
        """
        del exclusive
        yield False
