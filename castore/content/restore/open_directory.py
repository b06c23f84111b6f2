"""A live directory that a restore is filling."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

    from castore.content.restore.live_file import LiveFile
    from castore.content.restore.report import Report
    from castore.content.stored_dirs import Child
    from castore.content.streams import RangeReader
    from castore.model.refs import RecordId, Ref
    from castore.progress import Progress


class OpenDirectory(msgspec.Struct):
    """A directory that is being filled."""

    fd: int
    path: tuple[bytes, ...]
    children: list[Child]
    """The directories still to be created, in reverse order."""
    own: Child | None = None
    """Its own entry: the metadata is set once all its files are created."""
    chunks: Mapping[RecordId, bytes | memoryview] = {}
    """Chunks of its streams that were read ahead."""
    inherited: bool = False
    """Whether files in it inherit an access control list from it."""
    plain: Future[list[Child]] | None = None
    """The plain files, which a worker creates; gives those that it could not create."""
    files: int = 0
    size: int = 0
    """Number and bytes of the plain files."""
    others: deque[Future[tuple[Progress, Report]]] = msgspec.field(default_factory=deque)
    """Other files that workers create, each with what was done and what could not be."""
    small_files: dict[Ref | None, RangeReader] = {}
    """Readers of its small-file streams."""
    old: LiveFile | None = None
    """A file that may have some of the content to write."""
    private: bool = True
    """Whether no other user can replace files in it."""

    def wait(self) -> None:
        """Wait until no worker uses its descriptor; files that no worker has begun are not created."""
        futures: list[Future[Any]] = [*self.others]
        if self.plain is not None:
            futures.append(self.plain)
        for future in futures:
            if not future.cancel():
                future.exception()
