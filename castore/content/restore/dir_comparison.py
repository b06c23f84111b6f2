"""Compare one live directory with the stored one; Python sees only what differs.

The kernel compares all plain files with a few calls. Live content is compared with the ids of the stored
chunks, which prove it. A chunk is read from the store only if the live files do not cover it, or differ from
it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from bisect import bisect_left
from typing import TYPE_CHECKING, Final, NamedTuple

from castore.content.ref_tree import iter_chunks
from castore.content.restore.large_files import holds_content
from castore.content.restore.metadata import new_owners
from castore.content.scan.cache import LINKED, summary_of
from castore.content.scan.marks import known_marks
from castore.content.streams import check_length
from castore.errors import CastoreError
from castore.fs.beneath import open_regular
from castore.kernel.dir_compare import LOOK, MISSING, UNREAD, XATTRS, Matched, Window, known_files
from castore.kernel.dir_listing import entries_of, entry_at, list_directory, places_of
from castore.model.refs import RefKind
from castore.model.tree import NOBODY, Content, clamped_time
from castore.store.format.pack import MAX_PLAIN

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Iterator

    from castore.content.restore.metadata import Ownership
    from castore.content.restore.plan import Comparison
    from castore.content.restore.undo_journal import Path
    from castore.content.stored_dirs import Child, Opened
    from castore.content.streams import StreamReader
    from castore.kernel.dir_entries import NewOwners
    from castore.kernel.dir_listing import Listed
    from castore.model.refs import Ref
    from castore.model.tree import Owners
    from castore.store import Store

_WINDOW: Final = 1 << 22
"""Bytes of small files that are read at once; a longer chunk has a window of its own."""
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID


class Difference(NamedTuple):
    """A stored entry that is not known to be equal to the live file of the same name."""

    child: Child
    live: Listed | None
    """None: no live file has the name."""
    state: int
    """Bits of castore.kernel.dir_compare."""
    holds: bool | None = None
    """Whether the live file has the stored content; None: the caller has to compare it."""


class Wanted(NamedTuple):
    """A directory to compare."""

    child: Child
    path: Path
    at: int | None
    """The position of the last snapshot's record of it."""


class LiveDirectory:
    """What differs between a live directory and the stored one; `fd` is open until `close`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.differences: list[Difference] = []
        """In the order of names, once `settle` was called."""
        self.wanted: list[Wanted] = []
        """Subdirectories of which the content has to be compared, in the order of names."""
        self.below: dict[bytes, LiveDirectory | Exception] = {}
        """Subdirectories that were compared with it, and differ; an exception where that failed."""
        self.equal: dict[bytes, Difference] = {}
        """Wanted subdirectories of which all metadata is equal."""
        self.extra: list[Listed] = []
        """Live files that the stored directory does not have."""
        self.is_stored_empty = False
        self.records: dict[bytes, int] = {}
        """The positions of the last snapshot's records of its subdirectories."""
        self.compared = 0
        """How many stored entries were compared."""
        self.read = 0
        """Bytes of live files that were read."""

    def settle(self) -> None:
        """Forget all subdirectories that were found to be equal, and close them."""
        settled = set()
        for name, below in self.below.items():
            if isinstance(below, Exception):
                continue
            below.settle()
            if below.differences or below.extra:
                continue
            self.compared += below.compared
            self.read += below.read
            below.close()
            settled.add(name)
            self.equal.pop(name, None)
        if settled:
            self.below = {name: below for name, below in self.below.items() if name not in settled}
            self.wanted = [wanted for wanted in self.wanted if wanted.child.entry.name not in settled]
        if self.equal:
            self.differences += self.equal.values()
            self.differences.sort(key=lambda difference: difference.child.entry.name)
            self.equal.clear()

    def close(self) -> None:
        """Close the directory, and those below it."""
        for below in self.below.values():
            if isinstance(below, LiveDirectory):
                below.close()
        self.below.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class DirectoryComparison:
    """Compares directories of one tree; safe to share between threads."""

    def __init__(self, reader: StreamReader, ownership: Ownership, choices: Comparison) -> None:
        self._reader = reader
        self._ownership = ownership
        self._choices = choices
        self._mode = 0o7777 if ownership.change else 0o7777 & ~_SET_ID
        self._looked: dict[bytes, set[bytes]] = {}
        for path in choices.changed | choices.unread | choices.unread_attributes:
            folder, _, name = path.rpartition(b"/")
            self._looked.setdefault(folder, set()).add(name)
        self._owners = NOBODY, new_owners(NOBODY, ownership)
        self._local = threading.local()

    def compare(self, live: LiveDirectory, child: Child, opened: Opened, path: Path, at: int | None) -> None:
        """Compare an open live directory, at `path`, with the stored one.

        at: the position of the last snapshot's record of it. Raises OSError, DamageError.
        """
        scan = self._choices.scan
        seen = scan.listing_of(at) if scan is not None and at is not None else None
        listing = seen[0] if seen is not None else list_directory(live.fd)
        known = None
        if scan is not None and at is not None:
            record = scan.record(at)
            live.records = scan.below(record)
            rule = known_marks(record, child.ref)
            known = known_files(record, listing, rule) if rule is not None else None
        live.compared = len(opened.others) + (opened.plain.plain if opened.plain is not None else 0)
        live.is_stored_empty = not opened.others and (opened.plain is None or not opened.plain.plain)
        if opened.plain is None:
            self._compare_all(live, opened.others, listing)
            self._want(live, path)
            return
        matched = Matched(
            opened.plain,
            listing,
            self._new_owners(opened.owners),
            mode=self._mode,
            content=self._choices.checksum,
            known=known,
            looked=self._looked.get(b"/".join(path), ()) if self._looked else (),
        )
        live.extra = [entry_at(listing, position) for position in matched.extra]
        if matched.has_any(UNREAD | XATTRS):
            live.read += self._read(live.fd, opened, matched)
        self._collect(live, opened, matched, listing, known)
        self._want(live, path)

    def _want(self, live: LiveDirectory, path: Path) -> None:
        """Find the subdirectories of which the content has to be compared."""
        choices = self._choices
        for found in (*live.differences, *live.equal.values()):
            entry, now = found.child.entry, found.live
            # Snapshots do not enter a directory without content: another file system, or castore's own.
            if not entry.is_dir or entry.content is Content.NONE or now is None or now.error:
                continue
            if not stat.S_ISDIR(now.mode):
                continue
            below = (*path, entry.name)
            if choices.apart or choices.unread:
                joined = b"/".join(below)
                if joined in choices.apart or joined in choices.unread:
                    continue
            at = live.records.get(entry.name)
            if not self._is_as_scanned(live.fd, found.child, at):
                live.wanted.append(Wanted(found.child, below, at))
        if live.equal:
            live.wanted.sort(key=lambda wanted: wanted.child.entry.name)
            names = {wanted.child.entry.name for wanted in live.wanted}
            live.equal = {name: found for name, found in live.equal.items() if name in names}

    def _is_as_scanned(self, fd: int, found: Child, at: int | None) -> bool:
        """Whether a live directory is unchanged since the last snapshot, and that one stored the same."""
        scan = self._choices.scan
        if scan is None or at is None or found.ref is None:
            return False
        record = scan.record(at)
        return (
            summary_of(record).ref == found.ref
            and not record.flags & LINKED
            and scan.is_same(at, fd, found.entry.name)
        )

    def _new_owners(self, owners: Owners) -> NewOwners:
        """Return `new_owners`; most directories of a tree have the same ones."""
        stored, new = self._owners
        if (stored.users, stored.groups) != (owners.users, owners.groups):
            new = new_owners(owners, self._ownership)
            self._owners = owners, new  # one assignment: other threads read both
        return new

    def _compare_all(self, live: LiveDirectory, stored: list[Child], listing: bytes) -> None:
        """Report all entries of a directory that the kernel cannot decode."""
        live_entries = {entry.name: entry for entry in entries_of(listing)}
        for child in stored:
            entry = live_entries.pop(child.entry.name, None)
            state = MISSING if entry is None else LOOK | UNREAD | XATTRS
            live.differences.append(Difference(child, entry, state))
        live.extra = list(live_entries.values())

    def _collect(
        self, live: LiveDirectory, opened: Opened, matched: Matched, listing: bytes, known: bytes | None
    ) -> None:
        """Add the differences of a directory whose plain files were compared."""
        if opened.plain is None:
            return
        is_plain = opened.plain.plain_flags
        others = dict(zip(opened.plain.other_numbers, opened.others, strict=True))
        for number, child in others.items():
            if child.entry.is_dir and not matched.states[number]:
                position = matched.live_at(number)
                entry = entry_at(listing, position) if position is not None else None
                live.equal[child.entry.name] = Difference(child, entry, 0)
        places: array[int] | None = None
        for number, compared in matched.differing():
            state = compared
            child = opened.plain_children(number, number + 1)[0] if is_plain[number] else others[number]
            position = matched.live_at(number)
            if position is None:
                live.differences.append(Difference(child, None, MISSING))
                continue
            entry = entry_at(listing, position)
            if state & LOOK:
                places = places or (places_of(listing) if known is not None else None)
                hints = known[bisect_left(places, position)] if known is not None and places else 0
                state |= (UNREAD | XATTRS) & ~hints
            holds = None if state & UNREAD else True
            if state & UNREAD and not is_plain[number]:
                holds = self._holds(live.fd, child, entry)
                live.read += entry.size if holds is not None else 0
            live.differences.append(Difference(child, entry, state, holds))

    def _holds(self, fd: int, child: Child, live: Listed) -> bool | None:
        """Whether a live file has the content of a file with a stream of its own; None: not compared."""
        entry = child.entry
        if not (self._choices.checksum and entry.content is Content.OWN and entry.is_file):
            return None
        if live.error or not stat.S_ISREG(live.mode):
            return None
        if (live.size, clamped_time(live.mtime_ns)) != (entry.size, entry.mtime):
            return None
        with contextlib.suppress(OSError, CastoreError):  # the caller reports it
            file = open_regular(fd, entry.name)
            try:
                return holds_content(self._reader.store, file, child)
            finally:
                os.close(file)
        return None

    def _read(self, fd: int, opened: Opened, matched: Matched) -> int:
        """Compare the content of plain files that lstat describes as equal, and list their attributes.

        Return the number of bytes that were read.
        """
        if not matched.has_any(UNREAD):
            matched.read(fd, 0, Window(0, 0, [], memoryview(b"")))
            return 0
        count = 0
        if not opened.small_files:
            matched.read(fd, 0, Window(0, 0, [], memoryview(b"")))  # targets of links
        for number, stream in enumerate(opened.small_files):
            got = None if stream is None else self._read_stream(fd, opened, matched, number, stream)
            if got is None:
                return count  # the caller reports the damage
            count += got
        matched.all_read()
        return count

    def _read_stream(
        self, fd: int, opened: Opened, matched: Matched, number: int, stream: Ref
    ) -> int | None:
        """Compare the content of files in one small-file stream; return the number of bytes that were read.

        Return None if a chunk of the stream is too long to be read.
        """
        first = start = count = 0
        for run in _windows(self._reader.store, stream):
            sizes = [chunk.size for chunk in run]
            if max(sizes) > MAX_PLAIN:
                return None
            window = Window(number, start, sizes, self._room(sum(sizes)))
            end = matched.read(fd, first, window)
            self._check(opened, matched, run, window, first, end + 1)
            count += sum(window.got)
            first, start = end, start + sum(sizes)
        return count

    def _check(
        self, opened: Opened, matched: Matched, run: list[Ref], window: Window, first: int, end: int
    ) -> None:
        """Compare what was read of entries [first, end) into a window with the chunks of the stream."""
        store = self._reader.store
        at = 0
        for chunk, got in zip(run, window.got, strict=True):
            data = window.room[at : at + chunk.size]
            if got and (got != chunk.size or not store.reader.is_chunk(chunk.id, data)):
                stored = opened.chunks.get(chunk.id) or store.read_chunk(chunk.id)
                matched.compare_stored(first, end, window, window.start + at, check_length(chunk, stored))
            at += chunk.size

    def _room(self, size: int) -> memoryview:
        """Return memory that this thread reuses: fresh memory is slow."""
        room: bytearray | None = getattr(self._local, "room", None)
        if room is None or len(room) < size:
            room = self._local.room = bytearray(max(size, _WINDOW))
        return memoryview(room)


def _windows(store: Store, stream: Ref) -> Iterable[list[Ref]]:
    """Divide the chunks of a stream into runs of up to _WINDOW bytes, or one chunk."""
    return [[stream]] if stream.kind is RefKind.CHUNK else _windows_of(store, stream)


def _windows_of(store: Store, stream: Ref) -> Iterator[list[Ref]]:
    run: list[Ref] = []
    size = 0
    for _, chunk in iter_chunks(store, stream):
        if run and size + chunk.size > _WINDOW:
            yield run
            run, size = [], 0
        run.append(chunk)
        size += chunk.size
    if run:
        yield run
