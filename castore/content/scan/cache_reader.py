"""Read a scan cache, and compare a live tree with it."""

from __future__ import annotations

import mmap
import os
import struct
import time
from bisect import bisect_left, bisect_right
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Self

from blake3 import blake3

from castore.content.scan.cache import (
    HASH_BYTES,
    HEADER,
    MAGIC,
    VERSION,
    decode_summary,
    summary_of,
)
from castore.fs.beneath import open_below
from castore.kernel.dir_listing import (
    ENTERED,
    Change,
    changes_below,
    decode_record,
    name_at,
    places_of,
    summary_bytes,
)
from castore.store.reachability import is_whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from castore.content.scan.cache import DirectorySummary
    from castore.kernel.dir_listing import Record
    from castore.model.refs import Ref
    from castore.store import Store

_WORKERS: Final = 2
_MOST_PIECES: Final = 24
_LEAST_PIECE: Final = 1 << 15
_LOOK_SECONDS: Final = 0.05
"""How often a scan looks whether the index has lost anything. A commit looks once more."""
_LISTINGS: Final = 1 << 20
"""Bytes of listings of changed directories that are kept until they are needed, for each comparison."""


class _Compared:
    """The result of comparing records up to `end`."""

    def __init__(self, end: int, changes: list[Change]) -> None:
        self.end = end
        self._changes = changes
        self._starts = [change.start for change in changes]
        self._ends = list(accumulate((change.end for change in changes), max))

    def changed(self, start: int, end: int) -> bool:
        """Whether anything in [start, end) has changed."""
        position = bisect_left(self._starts, start)
        within = position < len(self._starts) and self._starts[position] < end
        return within or (position > 0 and self._ends[position - 1] > start)

    def at(self, start: int) -> Change | None:
        """Return the change that begins with this record."""
        position = bisect_left(self._starts, start)
        if position < len(self._starts) and self._starts[position] == start:
            return self._changes[position]
        return None


class ScanCacheReader:
    """The last scan of a tree; use it in a `with` block."""

    top: Final = HEADER.size
    """The position of the top directory's record."""

    def __init__(self, store: Store, data: mmap.mmap, epoch: bytes) -> None:
        """epoch: that of the index while it had all that the last scan references."""
        self.store = store
        self._epoch = epoch
        self._lost_nothing = False
        self._next_look = 0.0
        self.data = data
        self.end = len(data) - HASH_BYTES
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="castore-scan")
        self._most = max((self.end - self.top) // _MOST_PIECES, _LEAST_PIECE)
        self._below: dict[int, dict[bytes, int]] = {}
        """Results of `below` for large records, which are needed several times."""
        self._pieces: list[tuple[int, Future[_Compared]]] = []
        self._begun = 0
        self._by_inode: dict[tuple[int, int], int] | None = None

    @classmethod
    def open(cls, store: Store, path: str, root: Ref | None, rules: bytes) -> Self | None:
        """Open the scan cache at `path`, if it is intact, and was made for that root by these rules.

        It is not used either if the store has lost any object since.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                data = mmap.mmap(fd, 0, access=mmap.ACCESS_COPY)
            finally:
                os.close(fd)
        except (OSError, ValueError):
            return None
        if len(data) >= HEADER.size + HASH_BYTES and root is not None:
            magic, version, digest, epoch, *reference = HEADER.unpack_from(data)
            if (magic, version, digest, reference) == (MAGIC, VERSION, rules, [root.id, root.size]):
                with memoryview(data) as view:
                    hashed = blake3(view[:-HASH_BYTES]).digest()
                # The store may have lost objects that are needed, or that no generation references any more.
                present = store.index.epoch()
                if hashed == data[-HASH_BYTES:] and (epoch == present or is_whole(store, [root])):
                    return cls(store, data, present)
        data.close()
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.data.close()

    def record(self, at: int) -> Record:
        """Return the record at an offset."""
        return decode_record(self.data, at)

    def summary(self, at: int) -> DirectorySummary:
        """Return the summary in the record at an offset."""
        return decode_summary(summary_bytes(self.data, at))

    def records(self) -> Iterator[Record]:
        """Yield the records of all directories."""
        at = self.top
        while at < self.end:
            record = self.record(at)
            yield record
            at = record.below

    def below(self, record: Record) -> dict[bytes, int]:
        """Return the positions of the records of a directory's subdirectories."""
        positions = self._below.get(record.start)
        if positions is not None:
            return positions
        positions = {}
        at = record.below
        if at == record.end:
            return positions
        for place, mark in zip(places_of(record.listing), record.marks, strict=True):
            if mark & ENTERED and at < record.end:
                positions[name_at(record.listing, place)] = at
                at += self.length(at)
        if record.end - record.start > self._most:
            self._below[record.start] = positions
        return positions

    def has(self, directory: Ref) -> bool:
        """Whether the store has a directory of the last scan, with everything that it references."""
        now = time.monotonic()
        if now > self._next_look:
            # While the index has lost nothing since this cache was opened, the store has the last scan.
            self._lost_nothing = self.store.index.epoch() == self._epoch
            self._next_look = now + _LOOK_SECONDS
        # A node is in the store only if everything that it references is.
        return self._lost_nothing or self.store.index.locations.has_node(directory.id)

    def compare(self, top: int) -> None:
        """Start comparing the tree whose top is open as `top` with its records, on worker threads."""
        self._begun = time.time_ns()
        together: list[tuple[int, bytes]] = []
        for path, record in self._large():
            for name, at in self.below(record).items():
                end = at + self.length(at)
                large = end - at > self._most
                if together and (large or end - together[0][0] > self._most):
                    self._submit(top, path, together)
                    together = []
                if not large:
                    together.append((at, name))
            if together:
                self._submit(top, path, together)
                together = []
        self._pieces.sort(key=lambda piece: piece[0])

    def _submit(self, top: int, path: list[bytes], some: list[tuple[int, bytes]]) -> None:
        # Their records follow each other: a record that is too large separates groups.
        task = self._pool.submit(self._compare_some, top, path, some)
        self._pieces.append((some[0][0], task))

    def _large(self) -> Iterator[tuple[list[bytes], Record]]:
        """Yield path and record of each directory that is too large for one comparison."""
        todo: list[tuple[list[bytes], int]] = [([], self.top)]
        while todo:
            path, at = todo.pop()
            record = self.record(at)
            yield path, record
            below = self.below(record).items()
            todo += [([*path, name], one) for name, one in below if self.length(one) > self._most]

    def length(self, at: int) -> int:
        """Return the length in bytes of the record at an offset, including the records below it."""
        (length,) = struct.unpack_from("<Q", self.data, at)
        return int(length)

    def _compare_some(self, top: int, path: list[bytes], some: list[tuple[int, bytes]]) -> _Compared:
        """Compare some directories at `path` with their records. Runs on a worker."""
        end = some[-1][0] + self.length(some[-1][0])
        try:
            fd = open_below(top, tuple(path))
        except OSError:
            return _Compared(end, [Change(some[0][0], end, None)])
        changes: list[Change] = []
        try:
            for at, name in some:
                changes += changes_below(fd, name, self.data, self.end, at, _LISTINGS)
        finally:
            os.close(fd)
        return _Compared(end, changes)

    def _compared(self, at: int) -> _Compared | None:
        """Return the comparison that covers the record at an offset; None if there is none."""
        position = bisect_right(self._pieces, at, key=lambda piece: piece[0]) - 1
        found = self._pieces[position][1].result() if position >= 0 else None
        return found if found is not None and at < found.end else None

    def is_same(self, at: int, fd: int, name: bytes, *, moved: bool = False) -> bool:
        """Whether the directory `name` below `fd`, and all below it, matches the record at `at`.

        The store must still have it. moved: whether it is in another place now, so that it was not compared
        yet.
        """
        end = at + self.length(at)
        compared = None if moved else self._compared(at)
        if compared is not None:
            changed = compared.changed(at, end)
        elif moved or end - at <= self._most:
            changed = bool(changes_below(fd, name, self.data, self.end, at, 0))
        else:
            return False  # the directories below it are being compared
        return not changed and self.has(self.summary(at).ref)

    def listing_of(self, at: int) -> tuple[bytes, int] | None:
        """Return the present listing of a record's directory, and its time (ns); None: not known."""
        compared = self._compared(at)
        if compared is None:
            return None
        change = compared.at(at)
        if change is None:
            return (self.record(at).listing, self._begun) if not compared.changed(at, at + 1) else None
        return (change.listing, self._begun) if change.listing is not None else None

    def moved(self, ids: tuple[int, int]) -> int | None:
        """Return the record of the directory with that device and inode, wherever it was."""
        if self._by_inode is None:
            self._by_inode = {summary_of(record).ids: record.start for record in self.records()}
        return self._by_inode.get(ids)
