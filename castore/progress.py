"""Counters of running work: the working layer updates them, the command line shows them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Progress(msgspec.Struct):
    """The work done so far. All numbers except `total` only grow."""

    files: int = 0
    """Entries of trees that were processed."""
    read: int = 0
    """Bytes of content read."""
    total: int = 0
    """The value that `read` is expected to reach: an estimate, or 0 if it is not known."""
    most_files: int | None = None
    """The most entries that the restored trees can have, by their generations' records; None: not known."""
    unit: str = ""
    """The unit of `read` and `total` where it is not bytes: `pack`."""
    chunks: int = 0
    """References to chunks that were made."""
    new_chunks: int = 0
    """Those of the chunks that the store did not have."""
    new_bytes: int = 0
    """Total length of the new chunks, in bytes."""
    after_delta: int = 0
    """What remains of `new_bytes` after chunks were encoded as deltas of similar chunks."""
    after_compression: int = 0
    """What remains of `after_delta` after compression, in bytes."""
    stored: int = 0
    """Bytes that the new chunks and nodes took in the store, compressed and sealed."""
    warnings: list[tuple[bytes, str]] = []
    """(path, reason) of each file that is missing or possibly inconsistent."""

    def warn(self, path: bytes, reason: str) -> None:
        """Record that the file at `path` is missing or possibly inconsistent."""
        self.warnings.append((path, reason))


Watch = Callable[[str, Progress], None]
"""Called with the name of a task and its counters when the task begins."""


def unwatched(_name: str, _progress: Progress) -> None:
    """Show no progress."""
