"""Where a live file differs from a stored stream, in whole chunks of the stream at their offsets."""

from __future__ import annotations

import contextlib
import os
import threading
from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from castore.content.ref_tree import iter_chunks
from castore.content.streams import read_chunks, runs_of
from castore.errors import DamageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from castore.content.restore.live_file import LiveFile
    from castore.content.stored_dirs import Child
    from castore.content.streams import StreamReader
    from castore.model.refs import Ref
    from castore.store import Store

_SAMPLES: Final = 32
"""How many chunks of a file are compared first."""
_LEAST_EQUAL: Final = 24
"""How many of them have to be equal for the whole file to be compared: a byte of a range costs about twice as
much as one of a new file, and the comparison costs a third of a new file."""
_buffers: Final = threading.local()


class Difference:
    """Sorted, disjoint ranges of a file that differ."""

    def __init__(self) -> None:
        self.starts = array("Q")
        self.ends = array("Q")
        self.size = 0
        """Bytes in all ranges."""

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.starts, self.ends, strict=True)

    def add(self, start: int, end: int) -> None:
        """Append a range, which begins at or after the end of the last one."""
        self.size += end - start
        if self.ends and self.ends[-1] == start:
            self.ends[-1] = end
        else:
            self.starts.append(start)
            self.ends.append(end)

    def chunks(self, store: Store, new: Ref | None) -> Iterator[tuple[int, Ref]]:
        """Yield the chunks of the stream that the file differs from, each with its offset."""
        ranges = iter(self)
        start, end = next(ranges, (0, 0))
        for offset, chunk in iter_chunks(store, new):
            while end <= offset:
                start, end = next(ranges, (0, 0))
                if not end:
                    return
            if start <= offset:
                yield offset, chunk


class Compared(NamedTuple):
    """The result of a comparison of a live file with a stream."""

    difference: Difference | None
    """None: it is not small enough to be of use."""
    read: int = 0
    """Bytes of the live file that were read."""


def difference_of(
    reader: StreamReader, old: LiveFile, new: Ref | None, is_small: Callable[[Difference], bool]
) -> Compared:
    """Compare a live file with a stream, by the stream that is proven to be its content if there is one.

    is_small: whether a difference is of use; a larger one than one that is not is not either. Raises
    DamageError, MissingError, OSError.
    """
    if old.ref is not None:
        with contextlib.suppress(DamageError):  # the generation of the live file may be damaged
            found = difference_of_streams(reader.store, old.ref, new)
            return Compared(found if is_small(found) else None)
    return difference_of_file(reader, old.fd, new, is_small)


def difference_of_streams(store: Store, old: Ref, new: Ref | None) -> Difference:
    """Compare two streams by their lists of chunks: no content is read.

    Raises DamageError, MissingError.
    """
    found = Difference()
    before = iter_chunks(store, old)
    at = next(before, None)
    for offset, chunk in iter_chunks(store, new):
        while at is not None and at[0] < offset:
            at = next(before, None)
        if at is None or at[0] != offset or at[1].id != chunk.id:
            found.add(offset, offset + chunk.size)
    return found


def difference_of_file(
    reader: StreamReader, fd: int, new: Ref | None, is_small: Callable[[Difference], bool]
) -> Compared:
    """Compare the file open as `fd` with a stream by the ids of chunks: none is read from the store.

    It ends after some samples if many of them differ, and as soon as the difference is not small. Raises
    DamageError, MissingError, OSError.
    """
    store = reader.store
    size = new.size if new is not None else 0
    length = os.fstat(fd).st_size
    samples = [_first(store, new, size * number // _SAMPLES) for number in range(_SAMPLES if size else 0)]
    read = [_inside(length, offset, chunk) for offset, chunk in samples]
    equal = sum(_is_same(store, fd, offset, chunk) for offset, chunk in samples)
    if equal * _SAMPLES < len(samples) * _LEAST_EQUAL:
        return Compared(None, sum(read))

    def compare(run: list[tuple[int, Ref]]) -> list[tuple[int, int]]:
        read.append(sum(_inside(length, *placed) for placed in run))
        return [(at, at + chunk.size) for at, chunk in run if not _is_same(store, fd, at, chunk)]

    found = Difference()
    small = True
    with contextlib.closing(reader.ahead(runs_of(iter_chunks(store, new)), compare)) as compared:
        for changed in compared:
            for start, end in changed:
                found.add(start, end)
            if not (small := is_small(found)):
                break
    # Also those of runs that were compared ahead.
    return Compared(found if small else None, sum(read))


def _inside(length: int, offset: int, chunk: Ref) -> int:
    """Return how many bytes of a chunk at an offset are inside of a file of `length` bytes."""
    return max(min(chunk.size, length - offset), 0)


def _first(store: Store, new: Ref | None, start: int) -> tuple[int, Ref]:
    return next(iter_chunks(store, new, start))


def _is_same(store: Store, fd: int, offset: int, chunk: Ref) -> bool:
    """Whether an open file has a chunk at an offset. Runs on a worker."""
    if chunk.size > store.keys.cutter.max:
        return False  # no castore has cut it
    buffer = getattr(_buffers, "buffer", b"")
    if len(buffer) < chunk.size:
        buffer = _buffers.buffer = bytearray(store.keys.cutter.max)
    room = memoryview(buffer)[: chunk.size]
    count = 0
    while count < chunk.size and (more := os.preadv(fd, [room[count:]], offset + count)):
        count += more
    return count == chunk.size and store.reader.is_chunk(chunk.id, room)


def write_difference(
    reader: StreamReader, fd: int, difference: Difference, new: Ref | None, wrote: Callable[[int], None]
) -> None:
    """Give an open file the content of a stream: overwrite the ranges that differ, and set its size.

    wrote: called with the number of bytes of each write, and of all that is equal. Raises DamageError,
    MissingError, OSError.
    """

    def put(run: list[tuple[int, Ref]]) -> int:
        opened = read_chunks(reader.store, [chunk for _, chunk in run])
        for (offset, _), data in zip(run, opened, strict=True):
            write_at(fd, offset, memoryview(data))
        return sum(map(len, opened))

    for count in reader.ahead(runs_of(difference.chunks(reader.store, new)), put):
        wrote(count)
    size = new.size if new is not None else 0
    os.ftruncate(fd, size)
    wrote(size - difference.size)


def has_size_of_stream(child: Child) -> bool:
    """Whether a stored file is as long as its stream: no holes, and no damage, which a new file reports."""
    entry = child.entry
    return entry.extra.extents is None and entry.size == (child.ref.size if child.ref is not None else 0)


def write_at(fd: int, offset: int, data: memoryview) -> None:
    """Write all of `data` at an offset of an open file. Raises OSError."""
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count
