"""List directories, compare them with an earlier listing, and read small files, with one call each.

A **listing** has a directory's names and what lstat returns for them, sorted by name; dir_listing.h describes
its bytes. A **record** describes a directory in a scan cache: its listing, a mark for each entry, a summary,
and the records of the directories below it.
"""

from __future__ import annotations

import os
import struct
from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from castore.kernel import ffi, lib, view_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from mmap import mmap

# Marks of entries in a scan cache.
ENTERED: Final = lib.SCAN_ENTERED
"""A directory that has a record below."""
OWN_STREAM: Final = lib.SCAN_OWN_STREAM
"""A file with a stream of its own."""
WITH_XATTRS: Final = lib.SCAN_WITH_XATTRS
"""It has extended attributes, or some that could not be read."""
SPARSE: Final = lib.SCAN_SPARSE
BUNDLED: Final = lib.SCAN_BUNDLED
"""A file in a small-file stream."""
DOUBTFUL: Final = lib.SCAN_DOUBTFUL
"""A file that was read in another state than it was listed."""
EMPTY: Final = lib.SCAN_EMPTY
"""A small file that was opened and is empty."""

# Kinds of entries, in a survey.
PLAIN_FILE: Final = lib.SCAN_PLAIN
"""A small file with one name."""
SMALL_FILE: Final = lib.SCAN_SMALL
"""Another small file."""
LARGE_FILE: Final = lib.SCAN_LARGE
"""Another file, or one with holes."""
DIRECTORY: Final = lib.SCAN_DIRECTORY
SPECIAL: Final = lib.SCAN_SPECIAL
FAILED: Final = lib.SCAN_FAILED
"""A name whose lstat failed, or that its directory lists more than once."""
KEPT: Final = lib.SCAN_KEPT
"""A small file whose content keeps its place, and whose entry is as listed."""
KEPT_OTHER: Final = lib.SCAN_KEPT_OTHER
"""Another small file whose content keeps its place."""
REPEATED: Final = lib.SCAN_REPEATED
"""The error of such a name, in its second entry; lstat never fails with it."""

# Flags of files that were read.
HAS_XATTRS: Final = lib.SCAN_HAS_XATTRS
"""The file has extended attributes, or they cannot be listed."""
HAS_CONTENT: Final = lib.SCAN_HAS_CONTENT

DISTRUST: Final = lib.SCAN_DISTRUST
"""Flag of a record that must not be compared: the directory is listed again."""

_ENTRY: Final = struct.Struct("<QQQqqQQIIIIIIII")
_SIZE_OFFSET: Final = 16
_NAME_LENGTH: Final = struct.Struct("<I")
_SECOND: Final = 10**9
_SUMMARY_BYTES: Final = 96
_RECORD: Final = struct.Struct(f"<QQQQQ{_SUMMARY_BYTES}s")
"""struct scan_record."""

_CHANGE: Final = struct.Struct("<QQQ")
_UNLISTED: Final = (1 << 64) - 1


class Listed(NamedTuple):
    """An entry of a listing, as lstat returned it; if lstat failed, `error`, and only the type in `mode`."""

    name: bytes
    ino: int
    dev: int
    size: int
    mtime_ns: int
    ctime_ns: int
    blocks: int
    rdev: int
    mode: int
    uid: int
    gid: int
    nlink: int
    error: int
    offset: int
    """Of the entry in the listing."""


class Record(NamedTuple):
    """A record of a scan cache, without the records below it."""

    start: int
    end: int
    """End of the last record below it."""
    below: int
    """Offset of the first record below it."""
    listing: bytes
    marks: bytes
    streams: bytes
    """Its streams, as the scan encoded them."""
    flags: int
    summary: bytes


def list_directory(fd: int) -> bytes:
    """Return the listing of the directory open as `fd`. Raises OSError."""
    room = 1 << 14
    while True:
        out = ffi.new("uint8_t[]", room)
        length = lib.scan_list(fd, out, room)
        if length < 0:
            raise OSError(-length, os.strerror(-length))
        if length <= room:
            found: bytes = ffi.buffer(out, length)[:]
            return found
        room = 2 * length


def entries_of(listing: bytes) -> list[Listed]:
    """Return the entries of a listing in the order of names, each name once."""
    entries = (entry_at(listing, at) for at in places_of(listing))
    return [entry for entry in entries if entry.error != REPEATED]


def entry_at(listing: bytes, at: int) -> Listed:
    """Return the entry at an offset of a listing."""
    ino, dev, length, mtime, ctime, blocks, rdev, mtime_ns, ctime_ns, *numbers, name = _ENTRY.unpack_from(
        listing, at
    )
    begin = at + _ENTRY.size
    times = mtime * _SECOND + mtime_ns, ctime * _SECOND + ctime_ns
    return Listed._make(
        (listing[begin : begin + name], ino, dev, length, *times, blocks, rdev, *numbers, at)
    )


def entry_bytes(listing: bytes, at: int) -> bytes:
    """Return the bytes of the entry at an offset of a listing."""
    end = at + _ENTRY.size
    return listing[at : end + _NAME_LENGTH.unpack_from(listing, end - 4)[0]]


class Survey(NamedTuple):
    """The kinds of the entries of a listing, in order of names."""

    places: array[int]
    """Offsets of the entries in the listing."""
    kinds: bytearray
    """The kind of each entry: PLAIN_FILE and so on."""
    last_ctime: int
    """The newest ctime, in ns since 1970."""
    linked: bool
    """Whether anything but a directory has several names."""


def survey(listing: bytes, small: int = 0) -> Survey:
    """Classify the entries of a listing; a regular file of up to `small` bytes is a small one."""
    most = len(listing) // _ENTRY.size
    places, kinds, last = array("Q", bytes(8 * most)), ffi.new("uint8_t[]", most), ffi.new("int64_t[3]")
    with view_of(places, "uint64_t[]") as offsets:
        count = lib.scan_survey(listing, len(listing), small, offsets, kinds, last)
    del places[count:]
    return Survey(places, bytearray(ffi.buffer(kinds, count)), last[0] * _SECOND + last[1], bool(last[2]))


def places_of(listing: bytes) -> array[int]:
    """Return the offsets of the entries in a listing."""
    return survey(listing).places


def name_at(listing: bytes, at: int) -> bytes:
    """Return the name of the entry at an offset of a listing."""
    begin = at + _ENTRY.size
    return listing[begin : begin + _NAME_LENGTH.unpack_from(listing, begin - 4)[0]]


def size_at(listing: bytes, at: int) -> int:
    """Return the size of the file whose entry is at an offset of a listing."""
    return int.from_bytes(listing[at + _SIZE_OFFSET : at + _SIZE_OFFSET + 8], "little")


def listing_entry(name: bytes, info: os.stat_result) -> Listed:
    """Return the entry that a listing would have for a file, from its stat result."""
    return Listed(
        *(name, info.st_ino, info.st_dev, info.st_size, info.st_mtime_ns, info.st_ctime_ns),
        *(info.st_blocks, info.st_rdev, info.st_mode, info.st_uid, info.st_gid, info.st_nlink),
        *(0, 0),
    )


def encode_record(listing: bytes, count: int, streams: int = 0) -> bytes:
    """Return the record of a directory with `count` entries, without marks, streams and summary yet.

    streams: the length of its encoded streams, a multiple of 8.
    """
    rest = count + (-count % 8) + streams
    length = _RECORD.size + len(listing) + rest
    return _RECORD.pack(length, len(listing), count, DISTRUST, streams, b"") + listing + bytes(rest)


def summary_fields(
    length: int, summary: bytes, flags: int, marks: bytes, streams: bytes, listed: int
) -> list[tuple[int, bytes]]:
    """Return the bytes to write into a record once its summary is known, as (offset, bytes).

    length: that of the record with all records below it. summary: that of the directory. streams: its
    encoded streams. listed: the length of its listing.
    """
    head = _RECORD.pack(length, listed, len(marks), flags, len(streams), summary)
    return [(0, head), (_RECORD.size + listed, marks + bytes(-len(marks) % 8) + streams)]


def decode_record(cache: mmap | bytes, at: int) -> Record:
    """Return the record at an offset of a scan cache. Raises ValueError if it is not valid."""
    try:
        length, listing, count, flags, streams, summary = _RECORD.unpack_from(cache, at)
    except struct.error as error:
        raise ValueError(str(error)) from None
    begin = at + _RECORD.size
    marks = begin + listing
    end = marks + count + (-count % 8)
    below = end + streams
    if not below <= at + length <= len(cache):
        raise ValueError("a record extends beyond the cache")
    found = cache[begin:marks], cache[marks : marks + count], cache[end:below]
    return Record(at, at + length, below, *found, flags, summary)


def summary_bytes(cache: mmap | bytes, at: int) -> bytes:
    """Return the summary in the record at an offset of a scan cache."""
    end = at + _RECORD.size
    return cache[end - _SUMMARY_BYTES : end]


class Change(NamedTuple):
    """Records of directories that changed, or were not compared."""

    start: int
    end: int
    listing: bytes | None
    """The present listing of the first of them; None: it has to be listed."""


def changes_below(fd: int, name: bytes, cache: mmap, end: int, at: int, most: int) -> list[Change]:
    """Compare the directory `name` below `fd`, and all below it, with the records from `at` on.

    end: the end of all records. most: bytes of listings to return. Returns the changes, sorted by offset.
    """
    if not 0 <= end <= len(cache):
        raise ValueError(f"a cache of {len(cache)} bytes has no records up to {end}")
    found = ffi.new("struct scan_changes *")
    with view_of(cache) as records:
        failed = lib.scan_differ(fd, name, records, end, at, most, found)
    try:
        if failed:
            raise MemoryError
        text = ffi.buffer(found.text, found.text_len)[:] if found.text_len else b""
        packed = ffi.buffer(found.changes, _CHANGE.size * found.count)[:] if found.count else b""
    finally:
        lib.scan_forget(found)
    changes = []
    position = 0
    for start, stop, length in _CHANGE.iter_unpack(packed):
        listing = None
        if length != _UNLISTED:
            listing = text[position : position + length]
            position += length
        changes.append(Change(start, stop, listing))
    return sorted(changes, key=lambda change: change.start)


def read_files(
    fd: int, listing: bytes, offsets: Sequence[int], room: memoryview
) -> tuple[int, bytes, int]:
    """Read files into `room`, one after the other.

    offsets: those of their entries in the listing of the directory open as `fd`. Returns how many were read,
    a byte of HAS_* flags for each, and the bytes of all. Stops before the first file that differs from its
    entry, cannot be read, or does not fit.
    """
    count = len(offsets)
    has, size = ffi.new("uint8_t[]", count), ffi.new("uint64_t *")
    entries = ffi.new("uint64_t[]", list(offsets))
    with view_of(room) as target:
        done = lib.scan_read(fd, listing, entries, count, target, len(room), has, size)
    return done, ffi.buffer(has, done)[:], size[0]
