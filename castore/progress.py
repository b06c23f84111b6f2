"""Counters of work under way, written by the layer that works and read by whoever shows them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progress:
    """What has passed so far. All numbers but `total` only grow."""

    files: int = 0
    """Entries of trees."""
    read: int = 0
    """Bytes of content read."""
    total: int = 0
    """What `read` is expected to reach, as far as that is known; an estimate, or 0."""
    most_files: int | None = None
    """Entries that the restored trees can have, by the records of their generations; None: not known."""
    unit: str = ""
    """What `read` and `total` count where that is not bytes: `pack`."""
    chunks: int = 0
    """References to chunks made."""
    new_chunks: int = 0
    """Chunks among them that the store did not have."""
    new_bytes: int = 0
    """Their length."""
    after_delta: int = 0
    """What is left of those bytes where chunks are told by others that they resemble."""
    after_compression: int = 0
    """What is left of that, compressed."""
    stored: int = 0
    """Bytes that they and new nodes took, compressed and sealed."""
    warnings: list[tuple[bytes, str]] = field(default_factory=list)
    """(path, reason) of each file that is missing or doubtful."""

    def warn(self, path: bytes, reason: str) -> None:
        """Record that the file at `path` is missing or doubtful."""
        self.warnings.append((path, reason))
