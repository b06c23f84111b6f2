"""The batches of bytes that a pipeline processes."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

from castore.store.format.pack import MAX_BASES

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable

    from castore.content.previous_stream import PreviousStream, Window
    from castore.model.refs import RecordId, Ref
    from castore.store import NewChunk, SealedRecord


class Stretch:
    """A piece of one stream in a batch: buffer[start:end], to be cut."""

    def __init__(self, start: int, end: int, *, begins: bool, final: bool) -> None:
        self.start = start
        self.end = end
        self.begins = begins
        """Whether the stream begins here; else a chunk that begins before `start` continues."""
        self.final = final
        self.previous: PreviousStream | None = None
        self.chunks: list[tuple[int, int, RecordId, bool]] = []
        """Start, end and id of each chunk, and whether the store has it."""
        self.refs: list[Ref] = []
        """The references to the chunks."""
        self.bases: list[tuple[int, int, RecordId]] = []
        """Start and end of pieces of the stream, each with a chunk that has an earlier version of it."""

    def bases_of(self, offset: int, size: int) -> tuple[RecordId, ...]:
        """Return at most MAX_BASES chunks that have earlier versions of parts of a piece of the stream."""
        if not self.bases:
            return ()
        bases = [base for start, end, base in self.bases if start < offset + size and offset < end]
        return tuple(dict.fromkeys(bases))[:MAX_BASES]


class Batch:
    """Bytes that are fed together, and the results of processing them."""

    def __init__(self, buffer: mmap.mmap, start: int) -> None:
        self.buffer = buffer
        self.start = start
        """Where the bytes fed for this batch begin; an unfinished chunk of the previous batch ends there."""
        self.filled = start
        self.ops: list[Stretch | Callable[[], None]] = []
        self.carried: Future[int] = Future()
        """Where the unfinished chunk begins; the previous batch sets it once it is cut."""
        self.guess = -1
        """Where it should begin if this stream resembles the previous one; -1: nothing is expected."""
        self.expected: list[Ref] = []
        """The chunks into which this batch should then be cut."""
        self.cut: Future[None] | None = None
        self.new: list[tuple[NewChunk, int, bool]] = []
        """Chunks that the store does not have, with their offsets in their streams.

        The flag says whether there is a previous stream.
        """
        self.window: Window | None = None
        """The part of the previous stream that corresponds to this batch."""
        self.sealed: Future[list[SealedRecord]] | None = None

    @property
    def stretches(self) -> list[Stretch]:
        """The stretches to be cut."""
        return [op for op in self.ops if isinstance(op, Stretch)]
