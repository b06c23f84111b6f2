"""Encode, decode and restore the entries of stored directories, all plain files with one call.

A **plain file** has one name and no extended attributes, and is empty or stored in a small-file stream of its
directory. Most files are plain. dir_entries.h describes the structures, castore/docs/format.md the bytes.
"""

from __future__ import annotations

import struct
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from castore.kernel import TOO_MANY, ffi, lib, view_of

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator, Mapping, Sequence

    Bytes = bytes | memoryview

AS_LISTED: Final = lib.ENTRY_AS_LISTED
"""Encode the entry from the listing."""
GIVEN: Final = lib.ENTRY_GIVEN
"""Take the next entry that the caller encoded."""

_MOST: Final = 80
_LEAST: Final = 4
"""Bytes of the length before an entry, the least that an entry has."""
_PLACE: Final = struct.Struct("<QQQQqIIIIIIIIII")
"""struct entry_place."""
_IDS: Final = struct.Struct("<II")
"""struct entry_ids."""
_LENGTH: Final = 2
"""Index of a file's size, in words of 8 bytes of a _PLACE."""
_PLAIN: Final = 16
"""Index of this flag, in words of 4 bytes of a _PLACE."""
_NO_RUNS: Final = ffi.NULL


class Placed(NamedTuple):
    """An encoded entry, and the place of its content if that is in a small-file stream."""

    frame: bytes
    stream: int
    """The number of the small-file stream in its directory."""
    offset: int


class Run(NamedTuple):
    """Plain files whose contents are close to each other in a small-file stream."""

    stream: int
    first: int
    end: int
    """They are among the entries [first, end)."""
    start: int
    length: int
    """The range of their contents in the stream."""


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


class NewOwners(msgspec.Struct, frozen=True, dict=True):
    """How stored owners and modes are applied to restored files."""

    change: bool
    """Whether to set owners and groups; if not, files belong to castore's user."""
    mode: int
    """Mask of the mode bits that are set."""
    users: Mapping[int, int] = {}
    """User ids that differ from the stored ones, by the stored ones."""
    groups: Mapping[int, int] = {}
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

    def __init__(self, data: bytes, array: Any, count: int, ends: list[int]) -> None:
        self.ends = ends
        """Where the last file of each small-file stream ends."""
        self.data = data
        self.array = array
        """struct entry_place of each entry."""
        self._places = memoryview(ffi.buffer(array))
        self.count = count
        self.others: list[Placed] = []
        """Entries that are not plain files, in order."""
        self.other_numbers: list[int] = []
        """The numbers of these entries."""
        self.plain_size = 0
        """Bytes of all plain files."""
        self.plain_flags: list[int] = []
        """For each entry 1 if it is a plain file, else 0."""
        if not count:
            return
        # A loop over all entries in Python would take longer than everything else here.
        raw = self._places
        words, longs = raw.cast("I"), raw.cast("Q")
        plain = self.plain_flags = words[_PLAIN :: _PLACE.size // 4].tolist()
        sizes = longs[_LENGTH :: _PLACE.size // 8].tolist()
        self.plain_size = sum(sizes) if all(plain) else sum(compress(sizes, plain))
        self.other_numbers = [] if all(plain) else [number for number, one in enumerate(plain) if not one]
        for number in self.other_numbers:
            at, _, _, offset, *_, length, _, _, _, stream, _ = _PLACE.unpack_from(raw, number * _PLACE.size)
            self.others.append(Placed(data[at : at + length], stream, offset))

    @property
    def plain(self) -> int:
        """Number of plain files."""
        return self.count - len(self.others)

    def runs(self, room: int) -> Iterator[Run]:
        """Yield the plain files in runs, stream by stream; each byte of a stream is in one run at most.

        A run has more than `room` bytes only if it has a single file.
        """
        for stream, size in enumerate(self.ends or [0]):
            if size <= room:
                yield Run(stream, 0, self.count, 0, size)
            else:
                yield from self._runs_of(stream, room)

    def _runs_of(self, stream: int, room: int) -> Iterator[Run]:
        first, start, end = 0, 0, 0
        for number, place in enumerate(_PLACE.iter_unpack(self._places)):
            _, _, size, offset, *_, plain, _, found, _ = place
            if not plain or not size or found != stream:
                continue
            if end > start and offset + size - start > room:
                yield Run(stream, first, number, start, end - start)
                first, start = number, offset
            elif end == start:
                start = offset
            end = offset + size
        yield Run(stream, first, self.count, start, end - start)

    def encoded(self, first: int, end: int | None, stream: int | None = None) -> list[Placed]:
        """Return the plain files among entries [first, end); stream: only those of that stream."""
        places = self._places[first * _PLACE.size : end and end * _PLACE.size]
        return [
            Placed(self.data[at : at + length], found, offset)
            for at, _, _, offset, *_, length, _, plain, _, found, _ in _PLACE.iter_unpack(places)
            if plain and stream in {None, found}
        ]

    def write(self, fd: int, run: Run, at: int, new: NewOwners, content: Bytes) -> int:
        """Create the plain files of a run from entry `at` on, in the directory open as `fd`; replace no file.

        content: the bytes of the run. Return `run.end`, or the index of the first file that could not be
        created.
        """
        owners, stream = new.in_kernel, run.stream
        done: int = lib.entries_write(
            *(fd, self.data, self.array, at, run.end, owners, stream),
            *(view_of(content), len(content), run.start),
        )
        return done


def count_entries(data: bytes, at: int = 0) -> int:
    """Return the number of entries, or owners, from `at` on; an upper bound if some are not valid."""
    count: int = lib.entries_count(data, len(data), at)
    return len(data) // _LEAST if count == TOO_MANY else count


def split_entries(data: bytes, at: int, runs: Sequence[int] = ()) -> Split | None:
    """Decode the entries from `at` on; return None if castore would encode them differently.

    runs: the places of small files, as in the owners of a directory.
    """
    count = lib.entries_count(data, len(data), at)
    if count == TOO_MANY:
        return None
    places, ends = ffi.new("struct entry_place[]", count), ffi.new("uint64_t[]", lib.SMALL_MAX_STREAMS)
    numbers = ffi.new("uint64_t[]", runs) if runs else _NO_RUNS
    if lib.entries_split(data, len(data), at, numbers, len(runs), places, count, ends) != count:
        return None
    return Split(data, places, count, [end for end in ends if end])


class Selected(NamedTuple):
    """The entries of a directory that are not plain files, and its plain files with matching names."""

    others: list[Placed]
    plain: list[tuple[bytes, Placed]]
    """(name, entry), in order."""
    ends: list[int]
    """Where the last file of each small-file stream ends."""


def select_entries(data: bytes, at: int, pieces: bytes, runs: Sequence[int] = ()) -> Selected | None:
    r"""Select from the entries from `at` on; return None if castore would encode them differently.

    pieces: the pattern for names of plain files: literal bytes, separated by a NUL where any bytes may be.
    b"a" matches the name a only, b"a\0b" every name that begins with a and ends with b. runs: the places of
    small files, as in the owners of a directory.
    """
    count = lib.entries_count(data, len(data), at)
    if count == TOO_MANY:
        return None
    places, ends = ffi.new("struct entry_place[]", count), ffi.new("uint64_t[]", lib.SMALL_MAX_STREAMS)
    numbers = ffi.new("uint64_t[]", runs) if runs else _NO_RUNS
    kept = lib.entries_select(
        data, len(data), at, numbers, len(runs), pieces, len(pieces), places, count, ends
    )
    if kept == TOO_MANY:
        return None
    others: list[Placed] = []
    named: list[tuple[bytes, Placed]] = []
    view = ffi.buffer(places, kept * _PLACE.size)
    for place in _PLACE.iter_unpack(view):
        start, name, _, offset, *_, length, name_length, plain, _, stream, _ = place
        placed = Placed(data[start : start + length], stream, offset)
        if plain:
            named.append((data[name : name + name_length], placed))
        else:
            others.append(placed)
    return Selected(others, named, [end for end in ends if end])
