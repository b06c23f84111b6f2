"""Write large files: in parallel, reusing chunks that the live file still has."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from castore.content.ref_tree import iter_chunks
from castore.content.restore.difference import (
    difference_of,
    has_size_of_stream,
    write_at,
    write_difference,
)
from castore.content.restore.live_file import has_changed
from castore.content.streams import read_chunks
from castore.errors import CastoreError, DamageError
from castore.fs.filesystem import network_of
from castore.fs.metadata import data_extents
from castore.fs.sharing import can_share_blocks, clone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from castore.content.restore.live_file import LiveFile
    from castore.content.stored_dirs import Child
    from castore.content.streams import StreamReader
    from castore.model.refs import RecordId, Ref
    from castore.store import Store

_WINDOW: Final = 1 << 23
_UNSHARED: Final = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM}
"""Errors of copy_file_range if it cannot copy between these files."""


class _Span(NamedTuple):
    """A piece of a chunk, and its offset in the file."""

    offset: int
    begin: int
    """The offset in the chunk."""
    end: int


_Placed = tuple[list[_Span], "Ref"]


def write_large(
    reader: StreamReader, fd: int, child: Child, old: LiveFile | None, wrote: Callable[[int], None]
) -> None:
    """Write a stored file that has a stream of its own into the empty one open as `fd`, with its holes.

    old: a file that may have some of its content. wrote: called with the number of bytes of each write.
    Raises DamageError, OSError; CastoreError if `old` changes meanwhile.
    """
    kept: dict[RecordId, int] = {}
    if old is not None and not has_changed(old):
        if _write_clone(reader, fd, child, old, wrote):
            _refuse_changed(old)
            return
        kept = _kept_chunks(reader.store, fd, child, old)
        for count in _copy_kept(fd, old.fd, _placed(reader.store, child), kept):
            wrote(count)
        if kept:
            _refuse_changed(old)

    def write(run: list[_Placed]) -> int:
        opened = read_chunks(reader.store, [chunk for _, chunk in run])
        for (spans, _), data in zip(run, opened, strict=True):
            whole = memoryview(data)
            for offset, begin, end in spans:
                write_at(fd, offset, whole[begin:end])
        return sum(map(len, opened))

    new = (placed for placed in _placed(reader.store, child) if placed[1].id not in kept)
    for count in reader.ahead(reader.runs(new), write):
        wrote(count)
    os.ftruncate(fd, child.entry.size)


def _refuse_changed(old: LiveFile) -> None:
    """Raise CastoreError if a live file whose content was used was written to meanwhile."""
    if has_changed(old):
        raise CastoreError("a file that was replaced changed meanwhile: is its service still running?")


def _write_clone(
    reader: StreamReader, fd: int, child: Child, old: LiveFile, wrote: Callable[[int], None]
) -> bool:
    """Share all blocks of the old file, then overwrite what differs; return False if that is not possible.

    Only metadata of the file system and the ranges that differ are written.
    """
    size = child.entry.size
    info = os.fstat(old.fd)
    if not has_size_of_stream(child) or data_extents(old.fd, info.st_size, info.st_blocks) is not None:
        return False
    if not clone(old.fd, fd):
        return False
    difference = difference_of(reader, old, child.ref, lambda found: 2 * found.size <= size).difference
    if difference is None:
        os.ftruncate(fd, 0)
        return False
    write_difference(reader, fd, difference, child.ref, wrote)
    return True


def _kept_chunks(store: Store, fd: int, child: Child, old: LiveFile) -> dict[RecordId, int]:
    """Return which of a file's chunks to copy from the old file, each with its offset there.

    To look for chunks in a file whose content is not known costs more than to read all of them from a local
    store: 0.7 s per GiB on one thread, and 0.5 s for the copying; against 0.5 s on two. So it is done only if
    blocks can be shared, or if the store is on a network.
    """
    if old.ref is None and not (is_remote(store) or can_share_blocks(old.fd, fd)):
        return {}
    wanted = {chunk.id for _, chunk in iter_chunks(store, child.ref)}
    if old.ref is None:
        return find_chunks(store, old.fd, wanted)
    offsets: dict[RecordId, int] = {}
    with contextlib.suppress(DamageError):  # the generation of the live file may be damaged
        for offset, chunk in iter_chunks(store, old.ref):
            if chunk.id in wanted:
                offsets.setdefault(chunk.id, offset)
    return offsets


def is_remote(store: Store) -> bool:
    """Whether reading from the store takes much longer than from a local file."""
    location = store.storage.canonical_location
    return not os.path.isabs(location) or network_of(location) is not None


def _placed(store: Store, child: Child) -> Iterator[_Placed]:
    """Yield the chunks of a file's stream with their places in the file."""
    extents = iter(child.entry.extents_or_whole)
    offset = room = 0
    for _, chunk in iter_chunks(store, child.ref):
        spans = []
        at = 0
        while at < chunk.size:
            if not room:
                offset, room = next(extents, (0, 0))
                if not room:
                    raise DamageError("a file's stream is longer than its entry says")
            count = min(room, chunk.size - at)
            spans.append(_Span(offset, at, at + count))
            at, offset, room = at + count, offset + count, room - count
        yield spans, chunk
    if room or next(extents, None) is not None:
        raise DamageError("a file's stream is shorter than its entry says")


def find_chunks(store: Store, fd: int, wanted: set[RecordId]) -> dict[RecordId, int]:
    """Return which of the wanted chunks the file open as `fd` contains, each with its offset.

    The file is cut as castore cuts streams, and chunks are compared by id, which proves their content.
    """
    offsets: dict[RecordId, int] = {}
    # Not closed here: frames of an exception, such as an interrupt, still hold views of the window, and
    # closing it would then raise BufferError in place of that exception.
    window = mmap.mmap(-1, _WINDOW + store.keys.cutter.max)
    view = memoryview(window)
    start = length = 0
    final = False
    while not final:
        count = os.preadv(fd, [view[length:]], start + length)
        length += count
        final = count == 0
        at = 0
        for end in store.keys.cutter.scan(window, 0, length, final=final):
            chunk = store.reader.chunk_id(view[at:end])
            if chunk in wanted:
                offsets.setdefault(chunk, start + at)
            at = end
        view[: length - at] = view[at:length]
        start += at
        length -= at
    return offsets


def holds_content(store: Store, fd: int, child: Child) -> bool:
    """Whether the file open as `fd` has the content of a stored file that has a stream of its own, or none.

    Chunks are compared by their ids, so none is read from the store. Raises DamageError, OSError.
    """
    position = 0
    for spans, chunk in _placed(store, child):
        pieces = []
        for offset, begin, end in spans:
            if not _is_hole(fd, position, offset):
                return False
            position = offset + end - begin
            pieces.append(os.pread(fd, end - begin, offset))
        data = b"".join(pieces)
        if len(data) != chunk.size or not store.reader.is_chunk(chunk.id, data):
            return False
    return _is_hole(fd, position, child.entry.size) and os.fstat(fd).st_size == child.entry.size


def _is_hole(fd: int, start: int, end: int) -> bool:
    """Whether a file has only zeros from one offset to another."""
    while start < end:
        # Holes are skipped, not read: a hole may have any size.
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return True
            raise
        data = os.pread(fd, min(end - start, _WINDOW), start) if start < end else b""
        if data.count(0) != len(data):
            return False
        if not data:
            return True
        start += len(data)
    return True


def _copy_kept(
    fd: int, old: int, placed: Iterable[_Placed], kept: dict[RecordId, int]
) -> Iterator[int]:
    """Copy kept chunks from the old file; yield the number of bytes of each copy."""
    first = source = length = 0
    for spans, chunk in placed:
        where = kept.get(chunk.id)
        for offset, begin, end in spans if where is not None else ():
            at = (where or 0) + begin
            if length and (offset, at) == (first + length, source + length):
                length += end - begin
                continue
            yield _copy(old, fd, source, first, length)
            first, source, length = offset, at, end - begin
    yield _copy(old, fd, source, first, length)


def _copy(old: int, fd: int, source: int, offset: int, length: int) -> int:
    """Copy a range of a file; its whole blocks are shared if the file system can do that."""
    block = os.fstatvfs(fd).f_bsize
    done = 0
    if (source - offset) % block == 0:
        # Only whole blocks can be shared: the bytes before the first are copied by themselves.
        done = _copy_plain(old, fd, source, offset, min(-offset % block, length))
    middle = (length - done) // block * block
    with contextlib.suppress(_NotSharedError):
        while middle > 0:
            count = _copy_range(old, fd, min(middle, _WINDOW), source + done, offset + done)
            done += count
            middle -= count
    done += _copy_plain(old, fd, source + done, offset + done, length - done)
    if done < length:
        raise CastoreError("a file that was replaced became shorter meanwhile: is its service still running?")
    return length


class _NotSharedError(Exception):
    pass


def _copy_range(old: int, fd: int, count: int, source: int, offset: int) -> int:
    try:
        done = os.copy_file_range(old, fd, count, source, offset)
    except OSError as error:
        if error.errno in _UNSHARED:
            raise _NotSharedError from None
        raise
    if not done:
        raise _NotSharedError
    return done


def _copy_plain(old: int, fd: int, source: int, offset: int, length: int) -> int:
    done = 0
    while done < length and (data := os.pread(old, min(length - done, _WINDOW), source + done)):
        write_at(fd, offset + done, memoryview(data))
        done += len(data)
    return done
