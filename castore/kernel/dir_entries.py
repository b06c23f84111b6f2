"""Encode, decode and restore the entries of stored directories, all plain files with one call.

A **plain file** has one name and no extended attributes, and is empty or stored in the small-file stream of
its directory. Most files are plain. dir_entries.h describes the structures, castore/docs/format.md the bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from castore.kernel import TOO_MANY, ffi, lib, view_of

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator, Mapping

    Bytes = bytes | memoryview

AS_LISTED: Final = lib.ENTRY_AS_LISTED
"""Encode the entry from the listing."""
GIVEN: Final = lib.ENTRY_GIVEN
"""Take the next entry that the caller encoded."""

_MOST: Final = 80
_LEAST: Final = 4
"""Bytes of the length before an entry, the least that an entry has."""
_PLACE: Final = struct.Struct("<QQQQqIIIIIIII")
"""struct entry_place."""
_IDS: Final = struct.Struct("<II")
"""struct entry_ids."""
_LENGTH, _OFFSET = 2, 3
"""Indexes of a file's size and of its offset in the small-file stream, in words of 8 bytes of a _PLACE."""
_PLAIN, _BUNDLED = 16, 17
"""Indexes of these flags, in words of 4 bytes of a _PLACE."""


def join_entries(
    listing: bytes, places: array[int], take: bytes, given: bytes
) -> tuple[bytes, list[tuple[int, int]]]:
    """Return the encoded entries of a listing, and the (owner, group) pairs of those encoded here.

    places: offsets of the entries in the listing. take: for each entry 0 (leave out), AS_LISTED or GIVEN.
    given: the entries for GIVEN, in order, as `castore.model.tree.encode_entries` returns them. Raises
    ValueError if there are too few of them.
    """
    count = len(take)
    room = len(given) + len(listing) + _MOST * take.count(AS_LISTED)
    out = ffi.new("uint8_t[]", room)
    ids = ffi.new("struct entry_ids[]", count)
    found = ffi.new("size_t *")
    offsets = view_of(places, "uint64_t[]")
    length = lib.entries_join(listing, offsets, take, count, given, len(given), out, room, ids, found)
    if length == TOO_MANY:
        raise ValueError("fewer entries are given than `take` demands")
    pairs: list[Any] = list(_IDS.iter_unpack(ffi.buffer(ids, _IDS.size * found[0])))
    return ffi.buffer(out, length)[:], pairs


@dataclass(frozen=True)
class NewOwners:
    """How stored owners and modes are applied to restored files."""

    change: bool
    """Whether to set owners and groups; if not, files belong to castore's user."""
    mode: int
    """Mask of the mode bits that are set."""
    users: Mapping[int, int] = field(default_factory=dict)
    """User ids that differ from the stored ones, by the stored ones."""
    groups: Mapping[int, int] = field(default_factory=dict)
    """Group ids that differ from the stored ones, by the stored ones."""

    @cached_property
    def in_kernel(self) -> Any:
        """The form that the kernel reads; it is built once for all files of a directory."""
        users, groups = self._arrays
        fields = (self.change, self.mode, len(users), len(groups), users, groups)
        return ffi.new("struct entry_owners *", fields)

    @cached_property
    def _arrays(self) -> tuple[Any, Any]:
        users, groups = (sorted(numbers.items()) for numbers in (self.users, self.groups))
        return ffi.new("struct entry_owner[]", users), ffi.new("struct entry_owner[]", groups)


class Split:
    """The decoded entries of a directory, divided into plain files and others."""

    def __init__(self, data: bytes, array: Any, count: int) -> None:
        self._data = data
        self._array = array
        self._places = memoryview(ffi.buffer(array))
        self._count = count
        self.others: list[tuple[bytes, int]] = []
        """Entries that are not plain files, in order: (encoded entry, offset of its content)."""
        self.size = 0
        """Bytes of the small-file stream."""
        self.plain_size = 0
        """Bytes of all plain files."""
        if not count:
            return
        # A loop over all entries in Python would take longer than everything else here.
        raw = self._places
        words, longs = raw.cast("I"), raw.cast("Q")
        plain = words[_PLAIN :: _PLACE.size // 4].tolist()
        small_size = words[_BUNDLED :: _PLACE.size // 4].tolist()
        sizes = longs[_LENGTH :: _PLACE.size // 8].tolist()
        if any(small_size):
            last = count - 1 - small_size[::-1].index(1)
            self.size = sizes[last] + longs[last * (_PLACE.size // 8) + _OFFSET]
        self.plain_size = sum(sizes) if all(plain) else sum(compress(sizes, plain))
        for number in [] if all(plain) else [number for number, one in enumerate(plain) if not one]:
            at, _, _, offset, *_, length, _, _, _ = _PLACE.unpack_from(raw, number * _PLACE.size)
            self.others.append((data[at : at + length], offset))

    @property
    def plain(self) -> int:
        """Number of plain files."""
        return self._count - len(self.others)

    def runs(self, room: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield runs of entries with their range in the small-file stream: (first, end, start, length).

        A length exceeds `room` bytes only if the run has a single file.
        """
        if self.size <= room:
            yield 0, self._count, 0, self.size
            return
        first, start, end = 0, 0, 0
        for number, (_, _, size, offset, *_, plain, _) in enumerate(_PLACE.iter_unpack(self._places)):
            if not plain or not size:
                continue
            if end > start and offset + size - start > room:
                yield first, number, start, end - start
                first, start = number, offset
            elif end == start:
                start = offset
            end = offset + size
        yield first, self._count, start, end - start

    def encoded(self, first: int, end: int | None) -> list[tuple[bytes, int]]:
        """Return the plain files of entries [first, end): (encoded entry, offset of its content)."""
        places = self._places[first * _PLACE.size : end and end * _PLACE.size]
        return [
            (self._data[at : at + length], offset)
            for at, _, _, offset, *_, length, _, plain, _ in _PLACE.iter_unpack(places)
            if plain
        ]

    def write(self, fd: int, first: int, end: int, new: NewOwners, content: Bytes, start: int) -> int:
        """Create the plain files of entries [first, end) in the directory open as `fd`; replace no file.

        content: the bytes of the small-file stream from offset `start` on. Return `end`, or the index of the
        first file that could not be created.
        """
        done: int = lib.entries_write(
            fd, self._data, self._array, first, end, new.in_kernel, view_of(content), len(content), start
        )
        return done


def count_entries(data: bytes, at: int = 0) -> int:
    """Return the number of entries, or owners, from `at` on; an upper bound if some are not valid."""
    count: int = lib.entries_count(data, len(data), at)
    return len(data) // _LEAST if count == TOO_MANY else count


def split_entries(data: bytes, at: int) -> Split | None:
    """Decode the entries from `at` on; return None if castore would encode them differently."""
    count = lib.entries_count(data, len(data), at)
    if count == TOO_MANY:
        return None
    places = ffi.new("struct entry_place[]", count)
    if count and lib.entries_split(data, len(data), at, places, count) != count:
        return None
    return Split(data, places, count)


class Selected(NamedTuple):
    """The entries of a directory that are not plain files, and its plain files with matching names."""

    others: list[tuple[bytes, int]]
    """(encoded entry, offset of its content in the small-file stream), in order."""
    plain: list[tuple[bytes, bytes, int]]
    """(name, encoded entry, offset of its content in the small-file stream), in order."""
    size: int
    """Bytes of the small-file stream."""


def select_entries(data: bytes, at: int, pieces: bytes) -> Selected | None:
    r"""Select from the entries from `at` on; return None if castore would encode them differently.

    pieces: the pattern for names of plain files: literal bytes, separated by a NUL where any bytes may be.
    b"a" matches the name a only, b"a\0b" every name that begins with a and ends with b.
    """
    count = lib.entries_count(data, len(data), at)
    if count == TOO_MANY:
        return None
    places = ffi.new("struct entry_place[]", count)
    size = ffi.new("uint64_t *")
    kept = lib.entries_select(data, len(data), at, pieces, len(pieces), places, count, size)
    if kept == TOO_MANY:
        return None
    others: list[tuple[bytes, int]] = []
    named: list[tuple[bytes, bytes, int]] = []
    view = ffi.buffer(places, kept * _PLACE.size)
    for start, name, _, offset, *_, length, name_length, plain, _ in _PLACE.iter_unpack(view):
        frame = data[start : start + length]
        if plain:
            named.append((data[name : name + name_length], frame, offset))
        else:
            others.append((frame, offset))
    return Selected(others, named, size[0])
