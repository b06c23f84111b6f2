"""Records of the last snapshot of a tree, on this machine: unchanged files are not read again.

A scan cache is a file: a header, then a record (castore/kernel/dir_listing.py) of each directory, depth first
in the order of names, then a hash of it all. If anything is wrong with it, the tree is scanned without it.
It names the references of directories in the store, so it belongs to one generation. It is useful as long as
the last generation of its service has the root that it names.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import time
from bisect import bisect_left, bisect_right
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from blake3 import blake3

from castore.content.ref_tree import iter_list
from castore.fs.beneath import open_below
from castore.kernel.dir_listing import (
    ENTERED,
    Change,
    changes_below,
    decode_record,
    encode_record,
    name_at,
    places_of,
    told_fields,
)
from castore.model.refs import RecordId, Ref, RefKind
from castore.state.paths import make_private_directory
from castore.store.reachability import is_whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from castore.kernel.dir_listing import Record
    from castore.store import Store

LINKED: Final = 2
"""Flag of a record: it, or one below it, has a file with several names."""

_MAGIC: Final = b"castoren"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sQ32s16s32sQ")
"""Magic, version, digest of the scan's rules, the index's epoch, id and size of the root."""
_TOLD: Final = struct.Struct("<QQQQ32sQQQ8x")
_UNFINISHED: Final = ".part"
_HASH_BYTES: Final = 32
_BUFFER: Final = 1 << 20
_WORKERS: Final = 2
_MOST_PIECES: Final = 24
_LEAST_PIECE: Final = 1 << 15
_LISTINGS: Final = 1 << 20
"""Bytes of listings of changed directories that are kept until they are needed, for each comparison."""
_RACY_NS: Final = 2_000_000_000
"""Files that changed so shortly before the listing may change again with the same time: FAT stores
two-second times."""


class DirectorySummary(NamedTuple):
    """A record's summary of a directory and all below it."""

    time: int
    """When it was listed: ns since 1970."""
    files: int
    size: int
    """Bytes of content."""
    chunks: int
    """References to chunks."""
    ref: Ref
    ids: tuple[int, int]
    """The directory's device and inode."""


def scan_path(store: Store, service: str, part: str) -> str:
    """Return the path of this machine's scan cache of a tree."""
    return os.path.join(store.places.scans_of(store.store_id, store.storage.place), f"{service}:{part}")


def summary_of(record: Record) -> DirectorySummary:
    """Return the summary in a record."""
    time, files, size, chunks, ref, ref_size, dev, ino = _TOLD.unpack(record.told)
    return DirectorySummary(time, files, size, chunks, Ref(RefKind.LIST, RecordId(ref), ref_size), (dev, ino))


def is_racily_clean(ctime: int, time: int) -> bool:
    """Whether a file with this ctime may have changed, unnoticed, after it was listed at `time` (ns)."""
    return ctime >= time - _RACY_NS


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

    top: Final = _HEADER.size
    """The position of the top directory's record."""

    def __init__(self, store: Store, data: mmap.mmap) -> None:
        self.store = store
        self.data = data
        self.end = len(data) - _HASH_BYTES
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
        if len(data) >= _HEADER.size + _HASH_BYTES and root is not None:
            magic, version, made_by, epoch, *reference = _HEADER.unpack_from(data)
            if (magic, version, made_by, reference) == (_MAGIC, _VERSION, rules, [root.id, root.size]):
                with memoryview(data) as view:
                    hashed = blake3(view[:-_HASH_BYTES]).digest()
                # The store may have lost objects that are needed, or that no generation references any more.
                if hashed == data[-_HASH_BYTES:] and (
                    epoch == store.index.epoch() or is_whole(store, [root])
                ):
                    return cls(store, data)
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

    def below(self, record: Record) -> dict[bytes, int]:
        """Return the positions of the records of a directory's subdirectories."""
        found = self._below.get(record.start)
        if found is not None:
            return found
        found = {}
        at = record.below
        for place, mark in zip(places_of(record.listing), record.marks, strict=True):
            if mark & ENTERED and at < record.end:
                found[name_at(record.listing, place)] = at
                at += self.length(at)
        if record.end - record.start > self._most:
            self._below[record.start] = found
        return found

    def has(self, refs: list[Ref]) -> bool:
        """Whether the store has everything that these reference."""
        index = self.store.index
        chunks = [ref.id for ref in refs if ref.kind is RefKind.CHUNK]
        nodes = [ref.id for ref in refs if ref.kind is not RefKind.CHUNK]
        return all(index.known(chunks)) and all(index.has_node(node) for node in nodes)

    def references(self, record: Record) -> list[Ref]:
        """Return the references of a directory. Raises DamageError, MissingError."""
        return [ref for _, ref in iter_list(self.store, summary_of(record).ref)]

    def compare(self, top: int) -> None:
        """Start comparing the tree whose top is open as `top` with its records, on all cores."""
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
        return not changed and self.store.index.has_node(summary_of(self.record(at)).ref.id)

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
            self._by_inode = {}
            at = self.top
            while at < self.end:
                record = self.record(at)
                self._by_inode[summary_of(record).ids] = at
                at = record.below
        return self._by_inode.get(ids)


class ScanCacheWriter:
    """Writes a scan cache. If this machine has no room for it, it is discarded silently."""

    def __init__(self, path: str, epoch: bytes) -> None:
        self.path = path
        self._epoch = epoch
        self._part = f"{path}:{os.urandom(8).hex()}{_UNFINISHED}"
        self._buffer = bytearray(_HEADER.size)
        self._flushed = 0
        self._fd = -1
        with contextlib.suppress(Exception):
            folder, name = os.path.split(path)
            make_private_directory(folder)
            for other in os.listdir(folder):
                # No other process uses it: the service is locked.
                if other.startswith(name + ":") and other.endswith(_UNFINISHED):
                    os.unlink(os.path.join(folder, other))
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = os.open(self._part, flags, 0o600)

    def begin(self, listing: bytes, count: int) -> int:
        """Append the record of a directory of `count` entries; return its position."""
        at = self._flushed + len(self._buffer)
        self._append(encode_record(listing, count))
        return at

    def copy(self, old: ScanCacheReader, at: int) -> None:
        """Append a record of the last scan, and all records below it."""
        length = old.length(at)
        self._append(old.data[at : at + length])

    def end(self, at: int) -> int:
        """Return the length of the record at `at`, once all records below it have been appended."""
        return self._flushed + len(self._buffer) - at

    def tell(
        self,
        at: int,
        length: int,
        summary: DirectorySummary,
        marks: bytes | bytearray,
        flags: int,
        listed: int,
    ) -> None:
        """Set the summary of the directory whose record is at `at`.

        listed: the length of its listing in bytes.
        """
        ref = summary.ref
        packed = _TOLD.pack(*summary[:4], ref.id, ref.size, *summary.ids)
        for offset, data in told_fields(length, packed, flags, bytes(marks), listed):
            self._put(at + offset, data)

    def _append(self, data: bytes | bytearray) -> None:
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def _put(self, at: int, data: bytes) -> None:
        if at < self._flushed and at + len(data) > self._flushed:
            self._flush()
        if at >= self._flushed:
            self._buffer[at - self._flushed : at - self._flushed + len(data)] = data
        elif self._fd >= 0:
            try:
                os.pwrite(self._fd, data, at)
            except OSError:
                self.discard()

    def _flush(self) -> None:
        if self._fd >= 0:
            try:
                rest = memoryview(self._buffer)
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
            except OSError:
                self.discard()
            finally:
                rest.release()
        self._flushed += len(self._buffer)
        self._buffer.clear()

    def finish(self, root: Ref, rules: bytes) -> None:
        """Write the header: the tree's root, and the rules of the scan."""
        self._put(0, _HEADER.pack(_MAGIC, _VERSION, rules, self._epoch, root.id, root.size))
        self._flush()

    def keep(self) -> None:
        """Replace the last scan cache by this one, after the generation of its root is committed."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError, ValueError):
            hasher, at = blake3(), 0
            while data := os.pread(self._fd, _BUFFER, at):
                hasher.update(data)
                at += len(data)
            os.pwrite(self._fd, hasher.digest(), self._flushed)
            os.rename(self._part, self.path)
        self.discard()

    def discard(self) -> None:
        """Delete the unfinished scan cache."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(OSError):
                os.unlink(self._part)
