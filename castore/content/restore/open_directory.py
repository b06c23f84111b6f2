"""A live directory that a restore is filling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

    from castore.content.stored_dirs import Child
    from castore.content.streams import RangeReader
    from castore.model.refs import RecordId


@dataclass
class OpenDirectory:
    """A directory being filled."""

    fd: int
    path: tuple[bytes, ...]
    children: list[Child]
    """Directories still to be made, the first one last."""
    own: Child | None = None
    """Itself: its metadata is set when all is made in it."""
    chunks: Mapping[RecordId, bytes | memoryview] = field(default_factory=dict)
    """What was read of its streams before their turn."""
    inherited: bool = False
    """Whether what is made in it gets an access control list from it."""
    plain: Future[list[Child]] | None = None
    """The plain files, being made; gives those that could not be."""
    files: int = 0
    size: int = 0
    """Of these."""
    bundle: RangeReader | None = None
    old: int | None = None
    """A file that may have some of what is made, open."""
    private: bool = True
    """Whether nobody else can exchange what is made in it."""
