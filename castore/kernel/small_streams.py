"""Find the small files that keep their places in the small-file streams of an earlier scan, with one call.

small_streams.h describes how a directory encodes the places of its small files: as runs of three numbers.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Final

import msgspec

from castore.kernel import TOO_MANY, ffi, lib, view_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from castore.kernel.dir_listing import Record

MAX_STREAMS: Final = lib.SMALL_MAX_STREAMS
_NO_STREAM: Final = lib.SMALL_NO_STREAM
_SECOND: Final = 10**9


class KeptFiles(msgspec.Struct):
    """The small files of a listing that keep their places: which they are, and where."""

    kinds: bytearray
    """The kinds of all entries; KEPT or KEPT_OTHER for these files."""
    take: bytearray
    """AS_LISTED for those that are KEPT, else 0."""
    marks: bytearray
    """The marks of these files, else 0."""
    streams: bytearray
    """The number of each small file's stream."""
    former: bytearray
    """The stream of the earlier scan with an earlier version of each file that is not kept."""
    offsets: array[int]
    sizes: array[int]
    used: list[int] = []
    """The bytes that are kept of each stream of the earlier scan."""
    to_read: int = 0
    """The bytes of the small files that are not kept."""
    unsure: list[int] = []
    """Those of them that may have changed, unnoticed, by stream of the earlier scan."""

    @classmethod
    def empty(cls, kinds: bytearray) -> KeptFiles:
        """Return the state before any file is found."""
        count = len(kinds)
        zeros = bytes(8 * count)
        none = bytearray([_NO_STREAM]) * count
        numbers = array("Q", zeros), array("Q", zeros)
        return cls(bytearray(kinds), bytearray(count), bytearray(count), none, bytearray(none), *numbers)

    def place(self, position: int, stream: int, offset: int, size: int) -> None:
        """Record where a file was put that is not kept."""
        self.streams[position] = stream
        self.offsets[position] = offset
        self.sizes[position] = size

    def renumber(self, streams: list[int]) -> None:
        """Give streams of the earlier scan new numbers: their indexes in `streams`."""
        numbers = bytearray([_NO_STREAM]) * 256
        for number, stream in enumerate(streams):
            numbers[stream] = number
        self.streams = self.streams.translate(numbers)

    def runs(self) -> tuple[int, ...]:
        """Return the places as the runs of a directory."""
        count = len(self.streams)
        out = ffi.new("uint64_t[]", 3 * count)
        length = lib.small_encode(
            *(view_of(self.streams), view_of(self.offsets, "uint64_t[]"), view_of(self.sizes, "uint64_t[]")),
            *(count, out),
        )
        if length == TOO_MANY:
            raise ValueError("small files overlap in a stream")
        return tuple(ffi.unpack(out, length)) if length else ()


def keep_files(
    record: Record,
    runs: array[int],
    since: int,
    listing: bytes,
    places: array[int],
    kinds: bytearray,
    drop: Collection[int] = (),
) -> KeptFiles | None:
    """Return the small files of a listing that are as a record of the last scan has them; None if none is.

    runs: where the record's small files are. since: those that changed at this time (ns) or later are not
    kept. places, kinds: of the entries in the listing; those of kind 0 are left out. drop: streams of which
    no file is kept.
    """
    kept = KeptFiles.empty(kinds)
    count = len(kinds)
    used = ffi.new("uint64_t[]", 2 * MAX_STREAMS + 1)
    held: list[Any] = [view_of(record.listing), view_of(record.marks), view_of(runs, "uint64_t[]")]
    before = ffi.new("struct small_before *")
    before.listing, before.marks, before.runs = held
    before.listing_len, before.entries, before.runs_len = len(record.listing), len(record.marks), len(runs)
    before.since, before.since_ns = divmod(since, _SECOND)
    dropped = bytearray(MAX_STREAMS)
    for stream in drop:
        dropped[stream] = 1
    found = lib.small_keep(
        *(before, view_of(dropped), listing, view_of(places, "uint64_t[]"), count),
        *(view_of(kept.kinds), view_of(kept.take), view_of(kept.marks)),
        *(view_of(kept.streams), view_of(kept.former)),
        *(view_of(kept.offsets, "uint64_t[]"), view_of(kept.sizes, "uint64_t[]"), used),
    )
    if found in {0, TOO_MANY}:
        return None
    numbers = ffi.unpack(used, 2 * MAX_STREAMS + 1)
    kept.used, kept.to_read = numbers[:MAX_STREAMS], numbers[MAX_STREAMS]
    kept.unsure = numbers[MAX_STREAMS + 1 :]
    return kept
