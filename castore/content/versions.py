"""The versions of a path that a search finds in many generations."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from castore.content.stored_dirs import Child
from castore.model.tree import NOBODY, decode_entry

if TYPE_CHECKING:
    from castore.model.refs import Ref


class Seen(NamedTuple):
    """A file or directory at a path in some generations."""

    frame: bytes
    """The encoded entry."""
    ref: Ref | None
    """The reference that holds its content: the directory, its own stream, or the small-file stream.

    For small files it is set only if a search is exact: else it is None, and `offset` is 0.
    """
    offset: int
    """The offset in the small-file stream at which its content begins."""

    @property
    def child(self) -> Child:
        """The entry and its content, without the names of owners."""
        return Child(decode_entry(self.frame), self.ref, self.offset, NOBODY)


class Version(NamedTuple):
    """The state of a path from one position in the list of generations up to that of the next version."""

    first: int
    seen: Seen | None
    """None: the path does not exist."""


class Found(NamedTuple):
    """A path, and its versions in order."""

    path: bytes
    versions: list[Version]


class Damaged(NamedTuple):
    """A directory that could not be read in some generation, and the reason."""

    path: bytes
    reason: str
