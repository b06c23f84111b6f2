"""Build the rows of an index from the footers of packs; sort and merge them in bounded memory.

index_rows.h describes the rows.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Any, Final

from castore.kernel import ID_SEED, ffi, lib, new_bytes, view_of

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator, Sequence

ROW: Final = 64
"""Bytes of a row of a record."""
BASE_ROW: Final = 168
"""Bytes of a row of bases."""
FIRST: Final = 59
"""Bytes of the first record of an id: id and location."""
COPY: Final = 63
"""Bytes of another record of an id: id, number of the pack, location."""


class _Sorted:
    """Rows of one kind: the last ones are in memory, the others in sorted runs in a file."""

    def __init__(self, stride: int, most: int, folder: str) -> None:
        self._stride = stride
        self._folder = folder
        self._room = 0
        self._buffer: Any = None
        self._held: Any = None
        self.rows = ffi.new("struct rows *")
        self.total = 0
        """Number of rows that were spilled or merged."""
        self._file: Any = None
        self._runs: list[tuple[int, int]] = []
        self._make_room(most)

    def _make_room(self, most: int) -> None:
        """Map fresh memory for `most` rows; pages that are not touched cost nothing."""
        self._close()
        self._room = most
        self._buffer = mmap.mmap(-1, most * self._stride)
        self.rows.rows = self._held = view_of(self._buffer)

    def _close(self) -> None:
        self._held = None
        if self._buffer is not None:
            self._buffer.close()

    def reserve(self, count: int) -> None:
        """Make room for `count` more rows. Raises OSError."""
        if self.rows.count + count > self._room:
            if self.rows.count:
                self._spill()
            if count > self._room:
                self._make_room(count)

    def _sorted(self) -> Any:
        """Return memory with the rows in sorted order."""
        count = int(self.rows.count)
        out = mmap.mmap(-1, max(count * self._stride, 1))
        pairs = mmap.mmap(-1, max(32 * count, 1))
        lib.rows_sort(self.rows.rows, self._stride, count, view_of(out), view_of(pairs, "uint64_t[]"))
        pairs.close()
        return out

    def _spill(self) -> None:
        if self._file is None:
            import tempfile  # noqa: PLC0415 - slow to import, and needed for very many rows only

            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed by `merged`
        run = self._sorted()
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(memoryview(run)[: int(self.rows.count) * self._stride])
        self._runs.append((start, self._file.seek(0, os.SEEK_END)))
        run.close()
        self.total += int(self.rows.count)
        self.rows.count = 0

    def merged(self, most: int) -> Iterator[bytes]:
        """Yield all rows in sorted order, up to `most` at a time, and free the buffers."""
        last = self._sorted() if self.rows.count else None
        self.total += int(self.rows.count)
        length = int(self.rows.count) * self._stride
        self._close()
        kept = []
        spans = []
        if self._file is not None:
            self._file.flush()
            mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
            start = view_of(mapped)
            kept.append((mapped, start))
            spans = [(start + begin, start + end) for begin, end in self._runs]
        if last is not None:
            start = view_of(last)
            kept.append((last, start))
            spans.append((start, start + length))
        runs = ffi.new("struct rows_run[]", spans)
        count = ffi.new("size_t *", len(spans))
        while count[0]:
            block: bytes = new_bytes(None, most * self._stride)
            done = lib.rows_merge(runs, count, self._stride, block, most)
            yield block if done == most else block[: done * self._stride]
        start = None
        spans.clear()
        while kept:
            mapped, view = kept.pop()
            ffi.release(view)
            mapped.close()
        if self._file is not None:
            self._file.close()


class Rows:
    """Collects the entries of packs as rows of an index, for reading them in sorted order.

    most: number of rows of a kind that are kept in memory; the others are in unnamed files in `folder`.
    """

    def __init__(self, folder: str, most: int = 1 << 19) -> None:
        self.chunks = _Sorted(ROW, most, folder)
        self.nodes = _Sorted(ROW, most, folder)
        self.bases = _Sorted(BASE_ROW, max(most // 4, 1), folder)

    def add(
        self, plain: bytes, count: int, span: tuple[int, int], pack: int, sessions: Sequence[int]
    ) -> int | None:
        """Add a pack by its decrypted footer; return the bytes of its records, or None if it is not valid.

        count: the number of its entries. span: the offsets of the first record and of the end of the last.
        pack: the number of the pack. sessions: the numbers of the sessions in the footer's table. Raises
        OSError.
        """
        # A footer cannot have more entries than bytes: do not trust its count.
        count = min(count, len(plain))
        for one in (self.chunks, self.nodes, self.bases):
            one.reserve(min(count, len(plain) // 48 + 1))
        slots = 2 * count + 2
        seen = ffi.new("uint32_t[]", slots) if slots > self._slots else self._seen
        self._seen, self._slots = seen, max(slots, self._slots)
        text, numbers = view_of(plain), ffi.new("uint32_t[]", list(sessions))
        footer = ffi.new(
            "struct rows_footer *",
            (text, len(plain), count, *span, pack, len(sessions), numbers),
        )
        size = ffi.new("uint64_t *")
        failed = lib.rows_parse(
            *(footer, seen, slots, ID_SEED),
            *(self.chunks.rows, self.nodes.rows, self.bases.rows, size),
        )
        return None if failed else int(size[0])

    _seen: Any = None
    _slots = 0


def part(rows: bytes, before: bytes | None) -> tuple[bytes, bytes]:
    """Divide sorted rows of records into (first row of each id, other rows), as FIRST and COPY describe.

    before: the id of the preceding row, or None.
    """
    count = len(rows) // ROW
    firsts: bytes = new_bytes(None, FIRST * count)
    copies: bytes = new_bytes(None, COPY * count)
    found = lib.rows_part(rows, count, ffi.NULL if before is None else before, firsts, copies)
    return firsts[: FIRST * found], copies[: COPY * (count - found)]


def are_listed(numbers: bytes, stride: int, listed: bytes) -> tuple[int, bytes]:
    """Look up numbers, of 4 bytes every `stride` bytes, in a sorted list of such numbers.

    Return how many are in the list, and a byte for each number: 1 if it is, else 0.
    """
    count = len(numbers) // stride
    found: bytes = new_bytes(None, count)
    number = lib.rows_listed(numbers, stride, count, listed, len(listed) // 4, found)
    return number, found


def weigh(places: bytes, chosen: bytes, live: array[int]) -> None:
    """Add the lengths of records to `live`, by number of pack; `chosen` has a 1 for each record to add."""
    lib.rows_weigh(places, len(chosen), chosen, view_of(live, "uint64_t[]"), len(live))
