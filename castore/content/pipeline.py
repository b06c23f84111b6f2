"""Store streams: cut bytes into chunks, and name, compare, compress and seal them on worker threads.

Fed bytes fill batches. Each batch goes through two tasks on worker threads: `_cut` (borders, ids, which
chunks are known) and `_seal` (the chunks that are not). Between and after these tasks it goes through the
feeding thread, in the order in which it was fed. Operations that need this order happen there, without a
lock: a chunk is compared with its place in the previous stream, a reference joins a list, a stream ends, a
directory is complete.

The number of batches in progress is bounded, and their buffers are reused. So memory does not grow, and a
slow store slows down the feeder.
"""

from __future__ import annotations

import contextlib
import mmap
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from castore.content.batches import Batch, Stretch
from castore.content.ref_tree import ListBuilder, put_list
from castore.errors import CastoreError
from castore.model.refs import Ref, RefKind
from castore.store import NewChunk

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from castore.content.previous_stream import PreviousStream
    from castore.kernel import Borders, Cutter
    from castore.model.refs import RecordId
    from castore.progress import Progress
    from castore.store import SealedRecord, Session

_WORKERS: Final = 2
_UNDER_WAY: Final = 6
"""Batches in progress at once: two in tasks, and enough before and after them that no worker idles."""
_MIN_BATCH: Final = 1 << 22
_MOST_BATCH: Final = 1 << 23
"""Longer batches, for long chunks, take much memory, and save little copying of unfinished chunks."""
_MOST_OPS: Final = 512
"""A batch of more small streams than this is sent off early: each keeps a directory in memory."""
_WINDOW: Final = 63
"""How many bytes before a stretch decide whether a chunk ends at its first byte."""


def _put_node(session: Session, progress: Progress, refs: list[Ref]) -> RecordId:
    record_id, stored = session.put_node(refs)
    progress.stored += stored
    return record_id


class Pipeline:
    """Stores streams, one after the other, through `session`; counts in `progress`.

    deltas: whether chunks may be stored as deltas of chunks in earlier packs.
    Use it in a `with` block. The end of the block waits for all that was fed, unless an error ends it.
    """

    def __init__(self, session: Session, cutter: Cutter, progress: Progress, *, deltas: bool = True) -> None:
        self.progress = progress
        self._deltas = deltas
        self.average = cutter.average
        """The intended mean length of chunks, in bytes."""
        self._session = session
        self._cutter = cutter
        # Copying to the beginning of a page is two to three times faster, on Zen 3 at least.
        self._headroom = -(-cutter.max // mmap.PAGESIZE) * mmap.PAGESIZE
        self._size = self._headroom + max(_MIN_BATCH, min(4 * cutter.max, _MOST_BATCH))
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="castore-seal")
        self._out: deque[Batch] = deque()
        self._compared = 0
        """How many of these batches, from the left, have passed the step between the two tasks."""
        self._place = 0
        """The offset, in its stream, of the chunk that this step has reached."""
        self._sealing: set[RecordId] = set()
        self._free: list[mmap.mmap] = []
        # Not a method: a reference cycle would keep the keys of the session in memory.
        self._put_node = partial(_put_node, session, progress)
        self._builder = ListBuilder(self._put_node)
        self.stream_chunks = 0
        """The number of chunks of the stream that was stored last; for use in actions."""
        self._previous: PreviousStream | None = None
        self._bases: list[tuple[int, int, RecordId]] = []
        self._begins = True
        self._offset = 0
        """The offset, in its stream, of the next byte to be fed."""
        self._broken = False
        self._batch = self._new_batch()
        self._batch.carried.set_result(self._headroom)
        self._stretch_start = self._headroom

    def _new_batch(self) -> Batch:
        buffer = self._free.pop() if self._free else mmap.mmap(-1, self._size)
        return Batch(buffer, self._headroom)

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
                self._drain()
            elif isinstance(error, Exception) and not self._broken:
                # A retry finds the chunks that a dump program wrote before it failed.
                with contextlib.suppress(CastoreError, OSError):
                    self._drain()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _drain(self) -> None:
        while self._out:
            self._collect()

    def compare_with(self, previous: PreviousStream | None) -> None:
        """Set the stream that the next stream is likely to resemble."""
        self._previous = previous

    def suggest_bases(self, bases: list[tuple[int, int, RecordId]]) -> None:
        """Set chunks that have earlier versions of pieces of the stream that is being fed.

        bases: start and end of each piece in the stream, and the chunk.
        """
        self._bases = bases

    def reserve(self, wanted: int = 1) -> memoryview:
        """Return the free part of the buffer, at least `wanted` bytes, to be filled from its start.

        wanted: at most half of the smallest batch, which has 4 MiB.
        """
        if self._size - self._batch.filled < wanted:
            self._end_stretch(final=False)
            self._submit()
        return memoryview(self._batch.buffer)[self._batch.filled :]

    def commit(self, count: int) -> None:
        """Declare that the first `count` bytes that `reserve` returned are now the stream's next bytes."""
        self._batch.filled += count
        self.progress.read += count

    def write(self, data: bytes) -> None:
        """Feed bytes that are in memory."""
        rest = memoryview(data)
        while rest:
            room = self.reserve()
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            self._batch.filled += count
            rest = rest[count:]

    def end_stream(self, done: Callable[[Ref | None], None]) -> None:
        """End the stream fed since the last end; `done` is called with it once all of it is stored."""
        self._end_stretch(final=True)
        self.call_when_stored(lambda: done(self._end_list()))
        self._previous = None
        self._begins = True
        self._offset = 0
        if len(self._batch.ops) >= _MOST_OPS:
            self._submit()

    def drop_stream(self) -> None:
        """End the stream fed since the last end, without using it.

        The caller uses this if feeding a stream fails: otherwise its bytes would begin the next stream.
        """
        self.end_stream(lambda _: None)

    def call_when_stored(self, action: Callable[[], None]) -> None:
        """Run `action` once everything fed so far is stored."""
        self._batch.ops.append(action)

    def find_stored(self, sample: bytes) -> list[set[RecordId]]:
        """Cut a sample of a stream; return, for each chunk, the indexed chunks that it is or resembles."""
        session, buffer = self._session, bytearray(sample)
        ends = self._cutter.scan(buffer, 0, len(buffer), final=False)
        borders = zip([0, *ends], ends, strict=False)
        named = [(session.chunk_id(memoryview(buffer)[start:end]), start, end) for start, end in borders]
        found = session.find_similar(buffer, [NewChunk(*chunk) for chunk in named])
        indexed = session.indexed({of for chunk in found for of in (chunk.id, *chunk.similar_ids)})
        return [indexed.intersection((chunk.id, *chunk.similar_ids)) for chunk in found]

    def put_list(self, refs: list[Ref]) -> Ref:
        """Store a list of references, not empty; for use in actions."""
        return put_list(self._put_node, refs)

    def put_node(self, refs: list[Ref]) -> RecordId:
        """Store a node; for use in actions."""
        return self._put_node(refs)

    def _end_list(self) -> Ref | None:
        self.stream_chunks = self._builder.count
        ref = self._builder.stream()
        self._builder = ListBuilder(self._put_node)
        return ref

    def _end_stretch(self, *, final: bool) -> None:
        """Have the fed part of the stream cut; unless `final`, more of it follows in the next batch."""
        batch = self._batch
        start, end = self._stretch_start, batch.filled
        self._stretch_start = end
        if start == end and self._begins:
            return
        stretch = Stretch(start, end, begins=self._begins, final=final)
        stretch.previous = self._previous
        if final:
            stretch.bases, self._bases = self._bases, []
        batch.ops.append(stretch)
        self._offset += end - start
        self._begins = False

    def _submit(self) -> None:
        """Send off the batch, and begin the next."""
        while self._compared < len(self._out) and _is_done(self._out[self._compared].cut):
            self._broken = True
            self._dispatch_seal(self._out[self._compared])
            self._broken = False
        while len(self._out) >= _UNDER_WAY:
            self._collect()
        batch, following = self._batch, self._new_batch()
        self._predict_cuts(batch, following)
        if not self._begins:
            # The last bytes are copied along: as context for the borders, and as the expected unfinished
            # chunk. If the worker finds another one, it overwrites them.
            carried = self._headroom - following.guess if following.guess >= 0 else 0
            context = min(max(_WINDOW, carried), batch.filled)
            view = memoryview(batch.buffer)[batch.filled - context : batch.filled]
            following.buffer[self._headroom - context : self._headroom] = view
        batch.cut = self._pool.submit(self._cut, batch, following)
        self._out.append(batch)
        self._batch = following
        self._stretch_start = self._headroom

    def _predict_cuts(self, batch: Batch, following: Batch) -> None:
        """Predict from the previous stream how a batch is cut, and which chunk continues in the next one."""
        following.guess = self._headroom
        stretch = batch.ops[0] if len(batch.ops) == 1 else None
        previous = self._previous
        if previous is None or not isinstance(stretch, Stretch) or not previous.aligned:
            following.guess = -1 if not self._begins else self._headroom
            return
        at = batch.start if stretch.begins else batch.guess
        offset = self._offset - (batch.filled - at)
        begin, chunks, end = previous.predict(offset, self._offset)
        if at >= 0 and begin == offset and chunks:
            batch.guess, batch.expected = at, chunks
        carried = self._offset - end
        fits = 0 <= carried <= min(self._headroom, batch.filled - batch.start)
        following.guess = self._headroom - carried if fits else -1

    def _cut(self, batch: Batch, following: Batch) -> None:
        """Cut a batch and name its chunks; runs on a worker."""
        carry = self._headroom
        try:
            expected = self._as_expected(batch)
            borders = None if expected else self._all_borders(batch)
            begin = batch.carried.result()
            if expected and begin == batch.guess:
                (stretch,) = batch.stretches
                carry = self._carry_tail(batch, stretch, begin + expected, following)
                self._take_expected(stretch, begin, batch.expected)
                return
            for stretch, found in zip(
                batch.stretches, borders or self._all_borders(batch), strict=True
            ):
                start = stretch.start if stretch.begins else begin
                for end in self._ends(batch, stretch, found, start):
                    stretch.chunks.append((start, end, self._name(batch, start, end), False))
                    start = end
                carry = self._carry_tail(batch, stretch, start, following)
        finally:
            following.carried.set_result(carry)
        for stretch in batch.stretches:
            known = self._session.use_stored([chunk for _, _, chunk, _ in stretch.chunks])
            stretch.chunks = [
                (start, end, chunk, flag)
                for (start, end, chunk, _), flag in zip(stretch.chunks, known, strict=True)
            ]

    def _as_expected(self, batch: Batch) -> int:
        """Return the length of a batch's chunks if they are all as expected; else 0.

        Then they need not be cut: where a chunk ends depends only on its bytes. So bytes with the id of a
        chunk that was cut off by its content are cut off there again.
        """
        start = at = batch.guess
        view = memoryview(batch.buffer)
        name = self._session.chunk_id
        for chunk in batch.expected:
            end = at + chunk.size
            if name(view[at:end]) != chunk.id:
                return 0
            at = end
        return at - start

    def _take_expected(self, stretch: Stretch, start: int, chunks: list[Ref]) -> None:
        known = self._session.use_stored([chunk.id for chunk in chunks])
        if all(known):
            stretch.refs = chunks
            return
        # The store has lost some of the previous stream's chunks.
        for chunk, flag in zip(chunks, known, strict=True):
            stretch.chunks.append((start, start + chunk.size, chunk.id, flag))
            start += chunk.size

    def _all_borders(self, batch: Batch) -> list[Borders | None]:
        return [self._borders(batch, stretch) for stretch in batch.stretches]

    def _name(self, batch: Batch, start: int, end: int) -> RecordId:
        return self._session.chunk_id(memoryview(batch.buffer)[start:end])

    def _borders(self, batch: Batch, stretch: Stretch) -> Borders | None:
        """Find where chunks of a stretch may end; None if that is not worthwhile, or not possible."""
        if stretch.begins and stretch.end - stretch.start <= self._cutter.min:
            return None
        first = stretch.start if stretch.begins else stretch.start - _WINDOW
        return self._cutter.find(batch.buffer, first, stretch.start, stretch.end)

    def _ends(
        self, batch: Batch, stretch: Stretch, borders: Borders | None, start: int
    ) -> list[int]:
        if start == stretch.end:
            return []
        if borders is None:
            return self._cutter.scan(batch.buffer, start, stretch.end, final=stretch.final)
        return borders.choose(start, stretch.end, final=stretch.final)

    def _carry_tail(self, batch: Batch, stretch: Stretch, start: int, following: Batch) -> int:
        """Copy the unfinished chunk to just before the next batch; return where it begins there."""
        if stretch.final:
            return self._headroom
        length = stretch.end - start
        view = memoryview(batch.buffer)[start : stretch.end]
        following.buffer[self._headroom - length : self._headroom] = view
        return self._headroom - length

    def _dispatch_seal(self, batch: Batch) -> None:
        """Wait until the next batch in turn is cut, and have its new chunks sealed."""
        if batch.cut is not None:
            batch.cut.result()
        for stretch in batch.stretches:
            if stretch.begins:
                self._place = 0
            previous = stretch.previous
            if previous is not None and batch.window is None and stretch.chunks:
                end = self._place + batch.filled - batch.start
                batch.window = previous.window(self._place, end)
            self._place += sum(ref.size for ref in stretch.refs)
            for start, end, chunk, known in stretch.chunks:
                ref = Ref(RefKind.CHUNK, chunk, end - start)
                if previous is not None:
                    previous.track(ref, self._place)
                if not known and chunk not in self._sealing and not self._session.was_added(chunk):
                    self._sealing.add(chunk)
                    new = NewChunk(chunk, start, end, aligned_ids=stretch.bases_of(self._place, ref.size))
                    batch.new.append((new, self._place, previous is not None))
                stretch.refs.append(ref)
                self._place += ref.size
        if batch.new:
            batch.sealed = self._pool.submit(self._seal, batch)
        self._compared += 1

    def _seal(self, batch: Batch) -> list[SealedRecord]:
        """Seal the chunks of a batch that the store does not have; runs on a worker."""
        session, window = self._session, batch.window
        new = [chunk for chunk, _, _ in batch.new]
        if self._deltas:
            new = session.find_similar(batch.buffer, new)
        if window is not None:
            for chunk, (_, offset, has_previous) in zip(new, batch.new, strict=True):
                if chunk.similar_ids and has_previous:
                    window.anchor(offset, chunk.end - chunk.start, chunk.similar_ids[0])
            new = [
                chunk._replace(aligned_ids=window.aligned_ids(offset, chunk.end - chunk.start))
                if has_previous
                else chunk
                for chunk, (_, offset, has_previous) in zip(new, batch.new, strict=True)
            ]
        return session.seal(batch.buffer, new)

    def _collect(self) -> None:
        """Wait for the oldest batch, and process its contents in order."""
        self._broken = True  # unless all of this succeeds: no batch may be processed after a lost one
        if not self._compared:
            self._dispatch_seal(self._out[0])
        batch = self._out.popleft()
        self._compared -= 1
        for sealed in batch.sealed.result() if batch.sealed is not None else ():
            self._add(sealed)
        self._sealing.difference_update(chunk.id for chunk, _, _ in batch.new)
        previous = batch.stretches[-1].previous if batch.new else None
        if previous is not None and batch.window is not None and not previous.aligned:
            previous.set_shift(batch.window.shift)
        self._free.append(batch.buffer)
        for op in batch.ops:
            if isinstance(op, Stretch):
                self.progress.chunks += len(op.refs)
                for ref in op.refs:
                    self._builder.add(ref)
            else:
                op()
        self._broken = False

    def _add(self, sealed: SealedRecord) -> None:
        if not self._session.append(sealed):
            return
        progress = self.progress
        for chunk in sealed.members:
            progress.new_chunks += 1
            progress.new_bytes += chunk.length
            progress.after_delta += chunk.delta_size
        progress.after_compression += len(sealed.record) - self._session.overhead
        progress.stored += len(sealed.record)


def _is_done(future: Future[None] | None) -> bool:
    return future is not None and future.done()
