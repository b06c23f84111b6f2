"""The way in: bytes are cut into chunks, which are named, compressed and sealed on all cores.

What is fed fills batches, which go to worker threads and come back in the order in which they went
out. What has to happen in that order (a reference joins a list, a stream ends, a directory is
complete) is an action in the batch, run on the feeding thread when its batch comes back; no action
needs a lock. A bounded number of batches is under way, in buffers that are used again, so memory
does not grow and a slow store holds the feeder back.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self

from castore.content.lists import ListBuilder

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from castore.kernel import Cutter
    from castore.model.refs import RecordId, Ref
    from castore.model.tally import Tally
    from castore.store import Sealed, Session

_WORKERS: Final = 2
_UNDER_WAY: Final = 4
"""Batches out at once: two being worked on, two waiting, so that no worker idles."""
_MIN_BATCH: Final = 1 << 21



class Ingest:
    """Stores streams, one after the other, through `session`; counts in `tally`.

    Use it in a `with` block. Its end waits for all that was fed, unless an error leaves it.
    """

    def __init__(self, session: Session, cutter: Cutter, tally: Tally) -> None:
        self.tally = tally
        self._session = session
        self._cutter = cutter
        self._capacity = max(_MIN_BATCH, 4 * cutter.max)
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="castore-seal")
        self._out: deque[tuple[bytearray, Future[list[Sealed | Callable[[], None]]]]] = deque()
        self._free = [bytearray(self._capacity) for _ in range(_UNDER_WAY + 1)]
        self._builder = ListBuilder(self.put_node)
        self._begin_batch(self._free.pop())

    def _begin_batch(self, buffer: bytearray) -> None:
        self._buffer = buffer
        self._start = 0  # of what is not cut yet
        self._filled = 0
        self._ops: list[tuple[int, int] | Callable[[], None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._submit()
                while self._out:
                    self._take_in()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def room(self, wanted: int = 1) -> memoryview:
        """Return the free part of the buffer, at least `wanted` bytes, to be filled from its start.

        wanted: at most half of the smallest batch, 1 MiB.
        """
        if self._capacity - self._filled < wanted:
            self._cut(final=False)
            self._submit()
        return memoryview(self._buffer)[self._filled :]

    def filled(self, count: int) -> None:
        """Say that `count` bytes of the room are now the stream's next bytes."""
        self._filled += count
        self.tally.read += count

    def write(self, data: bytes) -> None:
        """Feed bytes that are in memory."""
        rest = memoryview(data)
        while rest:
            room = self.room()
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            self._filled += count
            rest = rest[count:]

    def end_stream(self, done: Callable[[Ref | None], None]) -> None:
        """End the stream fed since the last end; `done` is given it when all of it is stored."""
        self._cut(final=True)
        self.after(lambda: done(self._end_list()))

    def after(self, action: Callable[[], None]) -> None:
        """Run `action` once everything fed so far is stored."""
        self._ops.append(action)

    def put_list(self, refs: list[Ref]) -> Ref:
        """Store a list of references, not empty; for use in actions."""
        builder = ListBuilder(self.put_node)
        for ref in refs:
            builder.add(ref)
        return builder.list()

    def put_node(self, refs: list[Ref]) -> RecordId:
        """Store a node; for use in actions."""
        record_id, stored = self._session.put_node(refs)
        self.tally.stored += stored
        return record_id

    def _end_list(self) -> Ref | None:
        ref = self._builder.stream()
        self._builder = ListBuilder(self.put_node)
        return ref

    def _cut(self, *, final: bool) -> None:
        """Cut what is fed and not yet cut; the rest of an unfinished chunk stays."""
        start, end = self._start, self._filled
        if start == end:
            return
        if final and end - start <= self._cutter.min:
            ends = [end]
        else:
            ends = self._cutter.scan(self._buffer, start, end, final=final)
        for border in ends:
            self._ops.append((start, border))
            start = border
        self._start = start

    def _submit(self) -> None:
        """Send the batch out, and begin the next with the bytes that are not cut yet."""
        while len(self._out) >= _UNDER_WAY:
            self._take_in()
        buffer, start, filled = self._buffer, self._start, self._filled
        following = self._free.pop()
        following[: filled - start] = memoryview(buffer)[start:filled]
        self._out.append((buffer, self._pool.submit(self._seal, buffer, self._ops)))
        self._begin_batch(following)
        self._filled = filled - start

    def _seal(
        self, buffer: bytearray, ops: list[tuple[int, int] | Callable[[], None]]
    ) -> list[Sealed | Callable[[], None]]:
        seal = self._session.seal
        view = memoryview(buffer)
        return [seal(view[op[0] : op[1]]) if isinstance(op, tuple) else op for op in ops]

    def _take_in(self) -> None:
        """Wait for the oldest batch, and do in order what it holds."""
        buffer, future = self._out.popleft()
        results = future.result()
        self._free.append(buffer)
        tally, session = self.tally, self._session
        for result in results:
            if callable(result):
                result()
                continue
            tally.chunks += 1
            if session.add(result):
                tally.new_chunks += 1
                tally.new_bytes += result.ref.size
                tally.stored += len(result.record or b"")
            self._builder.add(result.ref)
