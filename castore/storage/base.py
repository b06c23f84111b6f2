"""The contract of every place that can hold a store.

Objects are immutable: written once, whole or not at all, and never changed. Names are relative
paths of lower-case letters, digits, dots and dashes with `/` between their steps.
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
"""Bytes of an object that is read at once; the list of all objects at a rotation is the longest."""


class Writer(ABC):
    """An object being written. Until `commit` returns, nobody else can see anything of it.

    A writer that failed once refuses everything with its first error. Leaving its `with` block
    without a commit leaves nothing behind.
    """

    @abstractmethod
    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`, which the caller may reuse afterwards. Raises StorageError."""

    @abstractmethod
    def commit(self, name: str) -> None:
        """Make what was written durable, and then visible as the object `name`, in one step.

        When this returns, object and name survive a loss of power. Raises ObjectExistsError if
        the name is taken, and then nothing was added; StorageError if the place failed, and then the
        object may be there, whole, but is not to be relied on.
        """

    @abstractmethod
    def abort(self) -> None:
        """Throw away what was written. Does nothing after a commit."""

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
    """A place that holds a store's objects."""

    forks: bool = False
    """Whether a process that was forked may go on reading, beside its parent."""

    @property
    @abstractmethod
    def location(self) -> str:
        """How a person names this place."""

    @property
    def place(self) -> str:
        """The one name that this machine remembers the place under; by default its location."""
        return self.location

    @abstractmethod
    def create(self) -> Writer:
        """Begin a new object. Raises StorageError."""

    def put(self, name: str, data: bytes) -> None:
        """Write a whole object: `create`, `write` and `commit` in one."""
        with self.create() as writer:
            writer.write(data)
            writer.commit(name)

    @abstractmethod
    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes from `offset`, up to `length` of them (None: to its end).

        Fewer come back where the object ends earlier. Raises ObjectMissingError, StorageError; without a
        length, DamageError for an object of more than MAX_WHOLE bytes: whoever has the place can make one.
        """

    @abstractmethod
    def size(self, name: str) -> int:
        """Return an object's length in bytes. Raises ObjectMissingError, StorageError."""

    @abstractmethod
    def list(self, folder: str) -> Iterator[str]:
        """Yield the names, without `folder` and `/`, of the objects right in `folder`, in any order.

        A folder that nothing was put in is empty. Raises StorageError.
        """

    def settle(self, folder: str) -> None:  # noqa: B027 - most places show only what is durable
        """Make durable, where it is not yet, which objects `list` shows of a folder.

        A process that was killed, or refused, just before the last step of a commit or a deletion leaves
        what others see, and what a loss of power may yet undo. Who writes what rests on an object that
        another may have put, or removes what one that is gone rested on, calls this in between.
        Raises StorageError.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove an object for good. Raises ObjectMissingError, StorageError."""

    def delete_all(self, names: Iterable[str]) -> None:
        """Remove objects for good, in any order; one that is gone is no error. Raises StorageError."""
        for name in names:
            with contextlib.suppress(ObjectMissingError):
                self.delete(name)

    @contextlib.contextmanager
    def hold(self, *, alone: bool = False) -> Iterator[bool]:
        """Hold the place's lock through the block, alone or with others who do not hold it alone.

        Gives whether there is a lock that all hold who may use this place; where there is none, who
        removes has to wait until those have ended who may have begun before. Raises StorageError.
        """
        del alone
        yield False
