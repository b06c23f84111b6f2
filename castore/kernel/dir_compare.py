"""Compare a live directory with a stored one: all plain files with a few calls.

dir_compare.h describes the structures. A **plain file** is that of dir_entries.py.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Final

import msgspec

from castore.kernel import TOO_MANY, ffi, lib, view_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from castore.kernel.dir_entries import NewOwners, Split
    from castore.kernel.dir_listing import Record

    Bytes = bytes | memoryview

# Bits of the state of a stored entry; one without any is equal to the live file.
MISSING: Final = lib.COMPARE_MISSING
"""No live file has its name."""
LOOK: Final = lib.COMPARE_LOOK
"""It, or the live file, is not plain: it has not been compared."""
CONTENT: Final = lib.COMPARE_CONTENT
"""The live file has another size, time or content."""
METADATA: Final = lib.COMPARE_METADATA
"""The live file has another owner or mode."""
UNREAD: Final = lib.COMPARE_UNREAD
"""The content has not been compared."""
XATTRS: Final = lib.COMPARE_XATTRS
"""The live file has extended attributes, or they have not been listed."""
AS_STORED: Final = lib.COMPARE_AS_STORED
"""Not a state, but known of a live entry: the scan stored it as it is now, without extended attributes."""

_NO_ENTRY: Final = (1 << 64) - 1
_LEAST: Final = 88
"""Bytes of the shortest entry of a listing, without its name."""
_ALL_READ: Final = bytes(state & ~UNREAD for state in range(256))
"""Translates states: everything that has not been found different is equal."""


class MarksRule(msgspec.Struct, frozen=True):
    """Which marks of a scan cache a file must have, and must not have, to be known."""

    any_of: int
    content: int | None
    """A file with none of these has the content that the scan stored; None: no file has."""
    bare: int
    """A file with none of these has no extended attributes."""
    stored: bool = False
    """Whether the scan stored the directory that the live one is compared with."""
    since: int = 0
    """Files that changed from this second on may have changed, unnoticed, after the scan."""


def known_files(record: Record, listing: bytes, rule: MarksRule) -> bytes:
    """Return what an earlier scan knows of each entry of a listing, as bits, for `Matched`.

    UNREAD: its content. XATTRS: that it has no extended attributes. AS_STORED: that it is as stored.

    Raises ValueError if a listing is not valid.
    """
    known = ffi.new("uint8_t[]", len(listing) // _LEAST + 1)
    content = 0xFF if rule.content is None else rule.content
    marks = ffi.new("struct compare_marks *", (rule.any_of, content, rule.bare, rule.stored, rule.since))
    before = record.listing
    if lib.compare_known(
        listing, len(listing), before, len(before), record.marks, len(record.marks), marks, known
    ):
        raise ValueError("a listing is not valid")
    found: bytes = ffi.buffer(known)[:]
    return found


class Matched:
    """The stored entries of a directory next to a live listing."""

    def __init__(
        self,
        split: Split,
        listing: bytes,
        owners: NewOwners,
        *,
        mode: int,
        content: bool,
        known: bytes | None = None,
        looked: Iterable[bytes] = (),
    ) -> None:
        """Compare all entries, as far as lstat describes them.

        mode: mask of the mode bits that are compared. content: whether the content of files of the same size
        and time is to be compared. known: as `known_files` returns it. looked: names of files that get the
        state LOOK. Raises ValueError if the listing is not valid.
        """
        self._split = split
        self._listing = listing
        count = split.count
        names = b"".join(name + b"\0" for name in sorted(looked))
        held = view_of(names)
        rule = ffi.new("struct compare_rule *", (owners.in_kernel, mode, content, len(names), held))
        self.states = bytearray(count)
        self._live = array("Q", bytes(8 * count))
        extra = array("Q", bytes(8 * (len(listing) // _LEAST + 1)))
        with view_of(self._live, "uint64_t[]") as live, view_of(extra, "uint64_t[]") as others:
            found = lib.compare_match(
                *(split.data, split.array, count, listing, len(listing)),
                *(ffi.NULL if known is None else view_of(known), rule, view_of(self.states), live, others),
            )
        if found == TOO_MANY:
            raise ValueError("a listing is not valid")
        self.extra = extra[:found]
        """The offsets of the live entries of other names, in the listing."""

    def live_at(self, number: int) -> int | None:
        """Return the offset in the listing of the live entry with the name of stored entry `number`."""
        at = self._live[number]
        return None if at == _NO_ENTRY else at

    def differing(self) -> list[tuple[int, int]]:
        """Return the numbers and states of the entries that are not known to be equal."""
        if not any(self.states):
            return []
        return [(number, state) for number, state in enumerate(self.states) if state]

    def has_any(self, bits: int) -> bool:
        """Whether the state of any entry has one of these bits."""
        return any(state & bits for state in set(self.states))

    def read(self, fd: int, first: int, window: Window) -> int:
        """Read live files of entries from `first` on into a window; list the attributes of these and others.

        fd: the live directory. A file that cannot be read, or is shorter than it was listed, gets the state
        LOOK. Returns the number of the first entry that is not completely before the window's end.
        """
        split = self._split
        with view_of(self._live, "uint64_t[]") as live:
            done: int = lib.compare_read(
                *(fd, split.data, split.array, first, split.count, self._listing, len(self._listing)),
                *(live, window.in_kernel, view_of(self.states)),
            )
        return done

    def compare_stored(self, first: int, end: int, window: Window, at: int, stored: Bytes) -> None:
        """Compare the files of entries [first, end) that were read with bytes of the stream from `at` on.

        A file that differs gets the state CONTENT.
        """
        lib.compare_stored(
            *(self._split.array, first, min(end, self._split.count), window.in_kernel),
            *(view_of(stored), at, len(stored), view_of(self.states)),
        )

    def all_read(self) -> None:
        """Conclude that the content of all files that was not found different is equal."""
        self.states = bytearray(self.states.translate(_ALL_READ))


class Window:
    """A part of a small-file stream: some of its chunks, and memory for their bytes."""

    def __init__(self, stream: int, start: int, lengths: Sequence[int], room: memoryview) -> None:
        """stream: its number. start: the offset in it. lengths: of the chunks. room: at least as long."""
        self.start = start
        self.room = room
        total = 0
        ends = []
        for length in lengths:
            total += length
            ends.append(start + total)
        if total > len(room):
            raise ValueError("the window is larger than its room")
        self.got: Any = ffi.new("uint64_t[]", len(ends))
        """How many bytes of each chunk were read."""
        self._held = ffi.new("uint64_t[]", ends), view_of(room)
        fields = (stream, start, total, len(ends), self._held[0], self.got, self._held[1])
        self.in_kernel: Any = ffi.new("struct compare_window *", fields)
