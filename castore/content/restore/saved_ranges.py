"""The previous content of ranges of a live file, in a file of the undo directory.

A header, a record of the live file (its size, its metadata, the ranges), then the bytes of the ranges, in
order. It is durable before it gets its name, and before the live file is changed. So writing the ranges back
gives exactly the previous content, whichever of them had been overwritten.

The undo directory has another name of the live file itself, too. So it is certain which file the ranges
belong to, even if another one has its place, and no new file can get its inode number.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import Final

import msgspec
from blake3 import blake3

from castore.fs.durable import create_file, sync_if_supported, write_all
from castore.model.tree import Entry  # noqa: TC001 - msgspec needs it

_HEADER: Final = struct.Struct("<8sQ16s")
"""Magic, length of the record in bytes, its checksum."""
_MAGIC: Final = b"castoreu"
_PART: Final = b".part"


class SavedRanges(msgspec.Struct, frozen=True, array_like=True):
    """What is needed to restore the previous content of a live file."""

    entry: Entry
    """The previous metadata."""
    size: int
    """Its previous size in bytes."""
    ranges: tuple[tuple[int, int], ...]
    """(start, end) of each range; bytes beyond the previous size were not saved."""


def save(folder: int, name: bytes, file: int, saved: SavedRanges) -> None:
    """Copy ranges of the open file to a new file in the directory open as `folder`, durably.

    Raises OSError, and leaves nothing.
    """
    record = msgspec.msgpack.encode(saved)
    part = name + _PART
    out = create_file(part, folder=folder)
    try:
        write_all(out, _HEADER.pack(_MAGIC, len(record), blake3(record).digest(16)) + record)
        for start, end in saved.ranges:
            _copy(file, start, min(end, saved.size), out)
        os.fsync(out)
        os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(part, dir_fd=folder)
        raise
    finally:
        os.close(out)
    sync_if_supported(folder)


def write_back(folder: int, name: bytes, live: bytes) -> SavedRanges:
    """Give a file its previous content, durably.

    name, live: of the saved ranges and of the file, in the directory open as `folder`. Raises OSError.
    """
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        saved, at = _read_record(source)
        file = _open_to_write(folder, live)
        try:
            os.lseek(source, at, os.SEEK_SET)
            os.ftruncate(file, saved.size)
            for start, end in saved.ranges:
                stop = min(end, saved.size)
                os.lseek(file, start, os.SEEK_SET)
                _copy(source, at, at + stop - start, file)
                at += max(stop - start, 0)
            os.fsync(file)
        finally:
            os.close(file)
    finally:
        os.close(source)
    return saved


def _read_record(source: int) -> tuple[SavedRanges, int]:
    """Return the record of a file of saved ranges, and the offset of their bytes. Raises OSError."""
    head = os.pread(source, _HEADER.size, 0)
    if len(head) == _HEADER.size:
        magic, length, checksum = _HEADER.unpack(head)
        if magic == _MAGIC and length < os.fstat(source).st_size:
            record = os.pread(source, length, _HEADER.size)
            if blake3(record).digest(16) == checksum:
                return msgspec.msgpack.decode(record, type=SavedRanges), _HEADER.size + length
    raise OSError(errno.EUCLEAN, "the saved ranges of a file are damaged")


def _open_to_write(folder: int, name: bytes) -> int:
    """Open a file in an open directory, to which no other user can write, for writing."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=folder)
    except PermissionError:
        # It has the mode of the restored file already, which may forbid its owner to write.
        os.chmod(name, stat.S_IRUSR | stat.S_IWUSR, dir_fd=folder)
        return os.open(name, flags, dir_fd=folder)


def _copy(source: int, start: int, end: int, out: int) -> None:
    """Append a range of a file to another one, at its position."""
    while start < end:
        count = os.sendfile(out, source, start, end - start)
        if not count:
            raise OSError(errno.ESTALE, "it became shorter meanwhile: is its service still running?")
        start += count


def ranges_of(number: int) -> bytes:
    """Return the name of the file with the ranges that a step has saved."""
    return b"%d.ranges" % number


def link_of(number: int) -> bytes:
    """Return the other name of the live file of which a step has saved ranges."""
    return b"%d.live" % number
