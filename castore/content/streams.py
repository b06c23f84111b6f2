"""Whole streams in and out."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self

from castore.content.lists import iter_chunks
from castore.errors import DamageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from types import TracebackType

    from castore.content.ingest import Ingest
    from castore.model.refs import Ref
    from castore.store import Store

_WORKERS: Final = 2
_AHEAD_BYTES: Final = 8 << 20
"""How much of a stream is opened ahead of its reader."""


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
        ahead: deque[tuple[Ref, Future[bytes]]] = deque()
        ahead_bytes = 0
        try:
            for _, chunk in iter_chunks(self.store, ref):
                ahead.append((chunk, self._pool.submit(self.store.read_chunk, chunk.id)))
                ahead_bytes += chunk.size
                while ahead_bytes > _AHEAD_BYTES:
                    ahead_bytes -= ahead[0][0].size
                    yield _checked(*ahead.popleft())
            while ahead:
                yield _checked(*ahead.popleft())
        finally:
            for _, future in ahead:
                future.cancel()

    def read_all(self, ref: Ref | None) -> bytes:
        """Return the bytes of a stream that is known to be short."""
        return b"".join(self.read(ref))


def _checked(chunk: Ref, future: Future[bytes]) -> bytes:
    return check_length(chunk, future.result())


def check_length(chunk: Ref, data: bytes) -> bytes:
    """Return a chunk's bytes if they are as many as the reference to it says."""
    if len(data) != chunk.size:
        raise DamageError(f"chunk {chunk.id.hex()} is not as long as the reference to it says")
    return data


class RangeReader:
    """Reads ranges of one stream, near each other in order mostly; keeps the last chunk opened."""

    def __init__(self, store: Store, ref: Ref | None) -> None:
        self._store = store
        located = list(iter_chunks(store, ref))
        self._starts = [start for start, _ in located]
        self._chunks = [chunk for _, chunk in located]
        self._kept: tuple[int, bytes] = (-1, b"")

    def read(self, offset: int, length: int) -> bytes:
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
        return b"".join(parts)

    def _chunk(self, position: int) -> bytes:
        if self._kept[0] != position:
            chunk = self._chunks[position]
            self._kept = (position, check_length(chunk, self._store.read_chunk(chunk.id)))
        return self._kept[1]
