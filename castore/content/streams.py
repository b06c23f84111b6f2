"""Whole streams in and out."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self, TypeVar

from castore.content.lists import iter_chunks
from castore.errors import DamageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from concurrent.futures import Future
    from types import TracebackType

    from castore.content.ingest import Ingest
    from castore.model.refs import RecordId, Ref
    from castore.store import Store

Run = TypeVar("Run")
Done = TypeVar("Done")

_WORKERS: Final = 2
_RUN_BYTES: Final = 1 << 21
"""How much of a stream is opened at once."""
_AHEAD_RUNS: Final = 6
"""How many of these are opened ahead of the reader."""


def store_stream(
    ingest: Ingest, readinto: Callable[[memoryview], int], done: Callable[[Ref | None], None]
) -> None:
    """Feed what `readinto` gives, until it gives 0 bytes, as one stream."""
    while count := readinto(ingest.room()):
        ingest.filled(count)
    ingest.end_stream(done)


class StreamReader:
    """Reads streams of a store, opening chunks on all cores ahead of whoever takes the bytes."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="castore-open")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def read(self, ref: Ref | None) -> Iterator[bytes]:
        """Yield the bytes of a stream, a chunk at a time. Raises DamageError, MissingError."""

        def open_run(run: list[Ref]) -> list[bytes]:
            found = self.store.read_chunks([chunk.id for chunk in run])
            return [check_length(chunk, data) for chunk, data in zip(run, found, strict=True)]

        for found in self.ahead(runs_of(chunk for _, chunk in iter_chunks(self.store, ref)), open_run):
            yield from found

    def ahead(self, runs: Iterable[Run], work: Callable[[Run], Done]) -> Iterator[Done]:
        """Yield what `work` makes of each run, in order; it is called on all cores, some runs ahead."""
        ahead: deque[Future[Done]] = deque()
        try:
            for run in runs:
                ahead.append(self._pool.submit(work, run))
                if len(ahead) > _AHEAD_RUNS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                if not future.cancel():
                    future.exception()

    def read_all(self, ref: Ref | None) -> bytes:
        """Return the bytes of a stream that is known to be short, opened on this thread."""
        found = []
        for run in runs_of(chunk for _, chunk in iter_chunks(self.store, ref)):
            opened = self.store.read_chunks([chunk.id for chunk in run])
            found += [check_length(chunk, data) for chunk, data in zip(run, opened, strict=True)]
        return b"".join(found)


def runs_of(chunks: Iterable[Ref]) -> Iterator[list[Ref]]:
    """Part the chunks of a stream into runs of about _RUN_BYTES; the first is short, to begin soon."""
    run: list[Ref] = []
    room = _RUN_BYTES // 8
    for chunk in chunks:
        run.append(chunk)
        room -= chunk.size
        if room <= 0:
            yield run
            run, room = [], _RUN_BYTES
    if run:
        yield run


def check_length(chunk: Ref, data: bytes) -> bytes:
    """Return a chunk's bytes if they are as many as the reference to it says."""
    if len(data) != chunk.size:
        raise DamageError(f"chunk {chunk.id.hex()} is not as long as the reference to it says")
    return data


class RangeReader:
    """Reads ranges of one stream, near each other in order mostly; keeps the last chunk opened.

    known: chunks that were opened before.
    """

    def __init__(
        self, store: Store, ref: Ref | None, known: Mapping[RecordId, bytes | memoryview] | None = None
    ) -> None:
        self._store = store
        self._known = known or {}
        located = list(iter_chunks(store, ref))
        self._starts = [start for start, _ in located]
        self._chunks = [chunk for _, chunk in located]
        self._kept: tuple[int, bytes | memoryview] = (-1, b"")

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Return `length` bytes from `offset`. Raises DamageError, MissingError."""
        parts = []
        position = bisect_right(self._starts, offset) - 1
        while length > 0:
            if not 0 <= position < len(self._chunks):
                raise DamageError("a stream is shorter than what refers to it says")
            data = self._chunk(position)
            skip = offset - self._starts[position]
            piece = data[skip : skip + length]
            parts.append(piece)
            offset += len(piece)
            length -= len(piece)
            position += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _chunk(self, position: int) -> bytes | memoryview:
        if self._kept[0] != position:
            chunk = self._chunks[position]
            data = self._known.get(chunk.id)
            if data is None:
                data = check_length(chunk, self._store.read_chunk(chunk.id))
            self._kept = (position, data)
        return self._kept[1]
