"""Directory entries and their encoding.

A directory's entries are one stream: a header, then one MessagePack array per entry, sorted by name. An entry
contains no position and no reference: the order of the entries determines which stream or subdirectory
belongs to each. So a change of one entry changes only the bytes of that entry. Where unchanged small files
have kept their places in older streams, the header says so.
"""

from __future__ import annotations

import stat
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from castore.errors import DamageError, FormatError
from castore.model._msgpack import UNDECODABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_VERSION: Final = 1
_TYPES: Final = {1, 2, 4, 6, 8, 10, 12}
"""File types that Linux knows: stat.S_IFMT, shifted right by 12 bits."""
_DIRECTORY: Final = stat.S_IFDIR >> 12
_REGULAR: Final = stat.S_IFREG >> 12
ROOT_NAME: Final = b""
"""The name of the one entry of a part's root, which describes the top directory itself."""


FIRST_TIME: Final = -(1 << 63)
LAST_TIME: Final = (1 << 64) - 1
"""The range of a modification time in nanoseconds: from 1677 to 2554."""


def clamped_time(time: int) -> int:
    """Return the storable modification time (ns since 1970) nearest to a live file's."""
    return min(max(time, FIRST_TIME), LAST_TIME)


class Content(IntEnum):
    """Where an entry's content is stored."""

    NONE = 0
    """No content: an empty file, a link, a device."""
    SMALL_FILES = 1
    """`size` bytes of one of the directory's small-file streams."""
    OWN = 2
    """The next list of the directory: a stream (of a file) or a subdirectory (of a directory)."""


class Extra(msgspec.Struct, frozen=True, array_like=True):
    """Properties that only few entries have."""

    target: bytes = b""
    """The target of a symbolic link."""
    device: int = 0
    """The device number (st_rdev) of a character or block device."""
    link: tuple[int, int] | None = None
    """(device, inode) of a file with several names; entries of a part that share it are one file."""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    """Extended attributes, sorted by name; they include access control lists and capabilities."""
    extents: tuple[tuple[int, int], ...] | None = None
    """(offset, length) of each data range of a sparse file; its stream holds only these ranges."""


NO_EXTRA: Final = Extra()


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One name in a directory, with all its lasting metadata from `lstat` and related calls."""

    name: bytes
    type: int
    """stat.S_IFMT of the mode, shifted right by 12 bits."""
    mode: int
    """Permissions, with the set-id and sticky bits: stat.S_IMODE."""
    uid: int
    gid: int
    mtime: int
    """Nanoseconds since 1970."""
    size: int
    """A regular file's length, holes included; 0 for other types."""
    content: Content
    extra: Extra = NO_EXTRA

    @property
    def st_mode(self) -> int:
        """Type and permissions in one word, as in lstat."""
        return self.type << 12 | self.mode

    @property
    def is_dir(self) -> bool:
        """Whether this is a directory."""
        return self.type == _DIRECTORY

    @property
    def is_file(self) -> bool:
        """Whether this is a regular file."""
        return self.type == _REGULAR

    @property
    def extents_or_whole(self) -> tuple[tuple[int, int], ...]:
        """(offset, length) of each stored range of a file: its extents, or all of it."""
        if self.extra.extents is not None:
            return self.extra.extents
        return ((0, self.size),) if self.size else ()


class Owners(msgspec.Struct, frozen=True, array_like=True):
    """The header of a directory's entries: the names of their users and groups, and places of small files."""

    version: int = _VERSION
    users: dict[int, str] = {}
    groups: dict[int, str] = {}
    runs: tuple[int, ...] = ()
    """The places of small files, three numbers a run: count, stream, gap. See castore/docs/format.md.

    Empty: they follow each other in one stream.
    """


NOBODY: Final = Owners()
"""Owners without names."""
MAX_STREAMS: Final = 16
"""The most small-file streams of a directory."""

MAX_ENTRIES_BYTES: Final = 256 << 20
"""For the entries of one directory: about three million. Users of entries hold all of them in memory."""
MAX_SMALL_FILE: Final = 1 << 20
"""Bytes of a file in a small-file stream, which is read in one piece; castore puts up to 64 KiB there."""

_encoder = msgspec.msgpack.Encoder()
_decode_owners = msgspec.msgpack.Decoder(Owners).decode
_decode_entry = msgspec.msgpack.Decoder(Entry).decode
_LENGTH_BYTES: Final = 4


def _framed(value: Owners | Entry) -> bytes:
    data = _encoder.encode(value)
    return len(data).to_bytes(_LENGTH_BYTES, "little") + data


def encode_owners(owners: Owners) -> bytes:
    """Return the bytes at the beginning of a directory's entries stream."""
    return _framed(owners)


def encode_entries(entries: Iterable[Entry]) -> bytes:
    """Return the bytes of entries in their directory's stream; the entries must be sorted by name."""
    return b"".join(map(_framed, entries))


def decode_entries(data: bytes) -> tuple[Owners, list[Entry]]:
    """Return the owners and entries of a complete entries stream. Raises DamageError, FormatError."""
    owners, at = decode_owners(data)
    entries = [decode_entry(frame) for frame in _frames(data, at)]
    _check(entries)
    return owners, entries


def decode_owners(data: bytes) -> tuple[Owners, int]:
    """Return an entries stream's owners, and the offset of its entries. Raises as `decode_entries`."""
    frame = next(_frames(data, 0), b"")
    try:
        owners = _decode_owners(frame)
    except UNDECODABLE as error:
        raise DamageError(f"a directory's owners do not decode: {error}") from None
    if owners.version != _VERSION:
        raise FormatError(
            f"a directory of format {owners.version}, and this castore knows {_VERSION}: update castore"
        )
    if min(owners.runs, default=0) < 0:
        raise DamageError("a directory's owners have a negative number of small files")
    return owners, _LENGTH_BYTES + len(frame)


def decode_entry(frame: bytes) -> Entry:
    """Return a decoded entry; its name is not checked. Raises DamageError."""
    try:
        entry = _decode_entry(frame)
    except UNDECODABLE as error:
        raise DamageError(f"a directory's entries do not decode: {error}") from None
    _check_shape(entry)
    return entry


def _frames(data: bytes, position: int) -> Iterator[bytes]:
    while position < len(data):
        start = position + _LENGTH_BYTES
        position = start + int.from_bytes(data[position:start], "little")
        if start > len(data) or position > len(data):
            raise DamageError("a directory's entries end in the middle of an entry")
        yield data[start:position]


class Located(NamedTuple):
    """An entry, and the place of its content if that is in a small-file stream."""

    entry: Entry
    stream: int = 0
    """The number of the small-file stream in its directory."""
    offset: int = 0


def locate(owners: Owners, entries: list[Entry]) -> tuple[list[Located], list[int]]:
    """Return the entries with their places, and where the last file of each small-file stream ends.

    Raises DamageError if the owners describe other small files than there are.
    """
    # One run of all small files in the first stream is the same as no runs.
    small = sum(entry.content is Content.SMALL_FILES for entry in entries)
    runs = owners.runs or ((small, 0, 0) if small else ())
    streams = 1 + max(runs[1::3], default=-1)
    counts = runs[::3]
    impossible = len(runs) % 3 or min(runs, default=0) < 0 or 0 in counts or streams > MAX_STREAMS
    if impossible or sum(counts) != small:
        raise DamageError("a directory has other small files than its owners describe")
    ends = [0] * streams
    places = (
        (stream, gap if first == 0 else 0)
        for count, stream, gap in zip(counts, runs[1::3], runs[2::3], strict=True)
        for first in range(count)
    )
    located = []
    for entry in entries:
        if entry.content is not Content.SMALL_FILES:
            located.append(Located(entry))
            continue
        stream, gap = next(places)
        located.append(Located(entry, stream, ends[stream] + gap))
        ends[stream] += gap + entry.size
    if 0 in ends or max(ends, default=0) >= 1 << 63:
        raise DamageError("a directory has an impossible small-file stream")
    return located, ends


def _check(entries: list[Entry]) -> None:
    """Raise DamageError for names that could mislead a reader: paths, or names that are not sorted."""
    previous: bytes | None = None
    for entry in entries:
        name = entry.name
        if name == ROOT_NAME and len(entries) == 1:
            return
        if not name or name in {b".", b".."} or b"/" in name or b"\0" in name:
            raise DamageError(f"a directory has an entry with the invalid name {name!r}")
        if previous is not None and name <= previous:
            raise DamageError(f"a directory's entries are out of order at {name!r}")
        previous = name


def _check_shape(entry: Entry) -> None:
    """Raise DamageError for content without a valid place, and for values that no system call accepts."""
    _check_ranges(entry)
    extra = entry.extra
    extents = extra.extents
    if entry.content is not Content.NONE and not (entry.is_file or entry.is_dir):
        raise DamageError(f"entry {entry.name!r} has content, but is neither a file nor a directory")
    if entry.content is Content.SMALL_FILES and not (entry.is_file and entry.size and extents is None):
        raise DamageError(f"entry {entry.name!r} is in a small-file stream, but empty, sparse or not a file")
    if entry.content is Content.SMALL_FILES and entry.size > MAX_SMALL_FILE:
        raise DamageError(f"entry {entry.name!r} is in a small-file stream, but too large for one")
    if stat.S_ISLNK(entry.st_mode) and not extra.target:
        raise DamageError(f"entry {entry.name!r} is a symbolic link without a target")
    # The system calls take these as C strings.
    if b"\0" in extra.target or any(b"\0" in name for name, _ in extra.xattrs):
        raise DamageError(f"entry {entry.name!r} has a zero byte in a target or attribute")
    if extents is None:
        return
    end = 0
    for offset, length in extents:
        if offset < end or length <= 0 or offset + length > entry.size:
            raise DamageError(f"entry {entry.name!r} has impossible extents")
        end = offset + length


def _check_ranges(entry: Entry) -> None:
    """Raise DamageError for numbers that do not fit the system's types."""
    if not 0 <= entry.size < 1 << 63 or not 0 <= entry.mode <= 0o7777 or entry.type not in _TYPES:
        raise DamageError(f"entry {entry.name!r} has an impossible size, mode or type")
    if not (0 <= entry.uid < 1 << 32 and 0 <= entry.gid < 1 << 32):
        raise DamageError(f"entry {entry.name!r} has an impossible owner")
    if not FIRST_TIME <= entry.mtime <= LAST_TIME or entry.extra.device < 0:
        raise DamageError(f"entry {entry.name!r} has an impossible time or device number")
