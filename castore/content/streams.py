"""Store and read complete streams."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Self, TypeVar

from castore.content.ref_tree import iter_chunks
from castore.errors import DamageError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future, ThreadPoolExecutor
    from types import TracebackType

    from castore.content.pipeline import Pipeline
    from castore.model.refs import RecordId, Ref
    from castore.store import Store

Run = TypeVar("Run")
Done = TypeVar("Done")
Place = TypeVar("Place")
_Bytes = TypeVar("_Bytes", bytes, "bytes | memoryview")

_WORKERS: Final = 2
_RUN_BYTES: Final = 1 << 21
"""How many bytes of a stream are opened at once."""
_MOST_AT_ONCE: Final = 256 << 20
"""The most bytes of a stream that is read at once."""
_RUN_CHUNKS: Final = 4096
"""The most chunks of a run."""
_AHEAD_RUNS: Final = 6
"""How many runs are opened ahead of the reader."""


def store_stream(
    pipeline: Pipeline, readinto: Callable[[memoryview], int], done: Callable[[Ref | None], None]
) -> None:
    """Feed the output of `readinto` as one stream, until it returns 0 bytes."""
    while count := readinto(pipeline.reserve()):
        pipeline.commit(count)
    pipeline.end_stream(done)


class StreamReader:
    """Reads streams of a store; opens chunks on worker threads, ahead of the caller."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def read(self, ref: Ref | None) -> Iterator[bytes]:
        """Yield the bytes of a stream, a chunk at a time. Raises DamageError, MissingError."""

        def open_run(run: list[tuple[int, Ref]]) -> list[bytes]:
            return read_chunks(self.store, [chunk for _, chunk in run])

        for opened in self.ahead(runs_of(iter_chunks(self.store, ref)), open_run):
            yield from opened

    def ahead(self, runs: Iterable[Run], work: Callable[[Run], Done]) -> Generator[Done, None, None]:
        """Yield the results of `work` for each run, in order; it runs on worker threads, some runs ahead."""
        ahead: deque[Future[Done]] = deque()
        pool = self._started_pool()
        try:
            for run in runs:
                ahead.append(pool.submit(work, run))
                if len(ahead) > _AHEAD_RUNS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                if not future.cancel():
                    future.exception()

    def _started_pool(self) -> ThreadPoolExecutor:
        if self._pool is None:
            # What lists generations reads a few short streams, and would take a tenth of its time for this.
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="castore-open")
        return self._pool

    def runs(self, placed: Iterable[tuple[Place, Ref]]) -> Iterator[list[tuple[Place, Ref]]]:
        """Divide chunks of a stream, with their places, into runs for `ahead`, as `runs_of` does."""
        return runs_of(placed)

    def read_all(self, ref: Ref | None, most: int = _MOST_AT_ONCE) -> bytes:
        """Return the bytes of a stream of at most `most` bytes, opened on this thread. Raises DamageError."""
        if ref is not None and ref.size > most:
            raise DamageError(
                f"the stream {ref.id.hex()} has {ref.size:,} bytes; castore writes at most {most:,} there"
            )
        pieces = []
        for run in runs_of(iter_chunks(self.store, ref)):
            pieces += read_chunks(self.store, [chunk for _, chunk in run])
        return b"".join(pieces)


class SerialReader(StreamReader):
    """Reads streams of a store on the calling thread: for callers that have several threads themselves."""

    def ahead(self, runs: Iterable[Run], work: Callable[[Run], Done]) -> Generator[Done, None, None]:
        """Yield the results of `work` for each run, in order."""
        for run in runs:
            yield work(run)

    def runs(self, placed: Iterable[tuple[Place, Ref]]) -> Iterator[list[tuple[Place, Ref]]]:
        """Divide chunks of a stream, with their places, into runs for `ahead`; none is short."""
        return runs_of(placed, first=_RUN_BYTES)


def runs_of(
    placed: Iterable[tuple[Place, Ref]], first: int = _RUN_BYTES // 8
) -> Iterator[list[tuple[Place, Ref]]]:
    """Divide chunks of a stream, with their places, into runs of about _RUN_BYTES.

    first: bytes of the first run; it is short, to begin soon.
    """
    run: list[tuple[Place, Ref]] = []
    room = first
    for place, chunk in placed:
        run.append((place, chunk))
        room -= chunk.size
        if room <= 0 or len(run) == _RUN_CHUNKS:
            yield run
            run, room = [], _RUN_BYTES
    if run:
        yield run


def read_chunks(store: Store, chunks: Sequence[Ref]) -> list[bytes]:
    """Return the bytes of chunks, faster than one by one. Raises DamageError, MissingError."""
    opened = store.read_chunks([chunk.id for chunk in chunks])
    return [check_length(chunk, data) for chunk, data in zip(chunks, opened, strict=True)]


def check_length(chunk: Ref, data: _Bytes) -> _Bytes:
    """Return a chunk's bytes if their number is that in the reference. Raises DamageError."""
    if len(data) != chunk.size:
        raise DamageError(f"chunk {chunk.id.hex()} is not as long as the reference to it says")
    return data


class RangeReader:
    """Reads ranges of one stream, mostly in ascending order; keeps the last chunk that was opened.

    known: chunks that were opened before, by id.
    """

    def __init__(
        self, store: Store, ref: Ref | None, known: Mapping[RecordId, bytes | memoryview] | None = None
    ) -> None:
        self._store = store
        self._ref = ref
        self._known = known or {}
        self._located: Iterator[tuple[int, Ref]] = iter(())
        self._start = 0
        """The offset in the stream at which the open chunk begins."""
        self._end = 0
        self._chunk: Ref | None = None
        self._data: bytes | memoryview | None = None

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Return `length` bytes from `offset`. Raises DamageError, MissingError."""
        parts = []
        while length > 0:
            data = self._at(offset)
            skip = offset - self._start
            piece = data[skip : skip + length]
            parts.append(piece)
            offset += len(piece)
            length -= len(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _at(self, offset: int) -> bytes | memoryview:
        """Return the chunk that contains a byte of the stream."""
        if self._chunk is None or not self._start <= offset < self._end:
            if self._chunk is None or offset != self._end:
                self._located = iter_chunks(self._store, self._ref, offset)
            # The first of a list's runs may begin before `offset`.
            for start, chunk in self._located:
                if start + chunk.size > offset:
                    self._chunk, self._start, self._end, self._data = chunk, start, start + chunk.size, None
                    break
            else:
                raise DamageError("a stream is shorter than the reference to it says")
        if self._data is None and self._chunk is not None:
            data = self._known.get(self._chunk.id)
            if data is None:
                data = self._store.read_chunk(self._chunk.id)
            self._data = check_length(self._chunk, data)
        return self._data or b""
