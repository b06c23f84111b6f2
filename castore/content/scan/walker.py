"""Scan a live directory tree into a store.

Everything is opened relative to the descriptor of its directory, never by path: paths may be longer than
PATH_MAX, and a renamed parent cannot lead elsewhere. A tree is walked depth first, in the order of names. In
each directory the small files are read first, into its small-file stream, then the large ones, then its
subdirectories. A file that vanishes, cannot be read or changes while it is read causes a warning, and the
scan continues.

The tree is first compared with the last scan. An unchanged subtree is not walked. A directory whose own
listing is unchanged keeps everything except its subdirectories. In a changed directory, unchanged large files
keep their streams.
"""

from __future__ import annotations

import os
import re
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from castore.content.scan.cache import LINKED, DirectorySummary, is_racily_clean, summary_of
from castore.content.scan.entries import EntryRecorder
from castore.content.scan.large_files import LargeFileReader
from castore.content.scan.record_streams import decode_streams, encode_streams, encoded_length
from castore.content.scan.scanned import Scanned, joined
from castore.content.scan.selection import Selection
from castore.content.scan.small_files import SMALL, SmallFileReader
from castore.errors import CastoreError, DamageError, UsageError
from castore.fs.beneath import OPEN_DIRECTORY, open_top
from castore.fs.metadata import extra_of
from castore.kernel.dir_listing import (
    DIRECTORY,
    DISTRUST,
    ENTERED,
    KEPT,
    KEPT_OTHER,
    LARGE_FILE,
    OWN_STREAM,
    PLAIN_FILE,
    SMALL_FILE,
    SPECIAL,
    entry_bytes,
    list_directory,
    listing_entry,
    name_at,
    places_of,
    survey,
)
from castore.model.tree import MAX_ENTRIES_BYTES, ROOT_NAME, Content
from castore.process.own_process import raise_file_limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.content.pipeline import Pipeline
    from castore.content.scan.cache_reader import ScanCacheReader
    from castore.content.scan.cache_writer import ScanCacheWriter
    from castore.content.scan.rules import ScanRules
    from castore.kernel.dir_listing import Listed, Record
    from castore.model.refs import Ref


_NOT_KEPT: Final = b"(?s)[^%c%c]" % (KEPT, KEPT_OTHER)
UNLISTED: Final = "cannot be listed"
"""The beginning of the reason why a directory is stored empty."""


def store_tree(
    pipeline: Pipeline,
    path: str | bytes,
    rules: ScanRules,
    done: Callable[[Ref], None],
    new: ScanCacheWriter,
    old: ScanCacheReader | None,
) -> None:
    """Store the tree at `path`; `done` is called with its root once all of it is stored.

    new: receives the records for the next scan. old: the records of the last scan. Files that are missing or
    doubtful become warnings of the pipeline's progress. Raises UsageError if `path` is not a directory that
    can be read.
    """
    try:
        fd = open_top(path)
    except OSError as error:
        raise UsageError(f"cannot read the tree {os.fsdecode(path)}: {error.strerror}") from None
    raise_file_limit()
    _Scanner(pipeline, rules, os.fstat(fd).st_dev, new, old).run(fd, done)


class _Scanner:
    def __init__(
        self,
        pipeline: Pipeline,
        rules: ScanRules,
        device: int,
        new: ScanCacheWriter,
        old: ScanCacheReader | None,
    ) -> None:
        self._pipeline = pipeline
        self._progress = pipeline.progress
        self._rules = rules
        self._entries = EntryRecorder(pipeline.progress, device)
        self._selection = Selection(pipeline.progress, rules, self._entries)
        self._small = SmallFileReader(pipeline, self._entries, old)
        self._large = LargeFileReader(pipeline, self._entries, old)
        self._new = new
        self._old = old

    def run(self, fd: int, done: Callable[[Ref], None]) -> None:
        """Walk the tree whose top is open as `fd`, without recursion, because trees may be deep."""
        info = os.fstat(fd)

        def finish(root: Ref) -> None:
            self._new.finish(root, self._rules.digest(info))
            done(root)

        # The root holds one entry, the top directory itself, under a name that no file can have.
        root = Scanned(-1, b"", finish)
        stack = [root]
        if self._old is not None:
            self._old.compare(fd)
        top = listing_entry(ROOT_NAME, info)
        root.take = bytearray(1)
        extra = extra_of(top, 0, self._entries.xattrs(root, 0, fd, ROOT_NAME))
        self._entries.add(root, 0, top, Content.OWN, extra=extra)
        at = self._old.top if self._old is not None else None
        stack.append(self._begin(fd, b"", root.directories.append, (info.st_dev, info.st_ino), at))
        try:
            while stack:
                directory = stack[-1]
                child = self._next_child(directory)
                if child is not None:
                    stack.append(child)
                    continue
                self._finish(stack.pop())
                if stack:
                    stack[-1].count += directory.count
                    stack[-1].size += directory.size
                    stack[-1].linked |= directory.linked
        finally:
            for directory in stack:
                if directory.fd >= 0:
                    os.close(directory.fd)

    def _begin(
        self,
        fd: int,
        path: bytes,
        close: Callable[[Ref], None],
        ids: tuple[int, int],
        old_at: int | None,
        *,
        moved: bool = False,
    ) -> Scanned:
        """Read the small and then the large files of a directory; its subdirectories are left for later."""
        directory = Scanned(fd, path, close, ids=ids, time=time.time_ns(), moved=moved)
        record = None
        if self._old is not None and old_at is not None:
            record = self._old.record(old_at)
        self._list(directory, old_at)
        if record is not None and self._old is not None:
            directory.old_at = record.start
            directory.below = self._old.below(record)
        if record is not None and self._keep(directory, record):
            return directory
        found = survey(directory.listing, SMALL)
        directory.places, directory.kinds = found.places, found.kinds
        directory.marks, directory.take = bytearray(len(found.kinds)), bytearray(len(found.kinds))
        directory.distrust |= is_racily_clean(found.last_ctime, directory.time)
        directory.linked = found.linked
        self._count_chunks(directory, 0)
        self._read(directory, record)
        large = sum(mark & OWN_STREAM for mark in directory.marks) // OWN_STREAM
        directory.streams_length = encoded_length(1 + directory.streams + large, directory.runs)
        directory.at = self._new.begin(directory.listing, len(found.kinds), directory.streams_length)
        return directory

    def _list(self, directory: Scanned, old_at: int | None) -> None:
        """List a directory, or use the listing from its comparison with the last scan."""
        seen = None
        if self._old is not None and old_at is not None and not directory.moved:
            seen = self._old.listing_of(old_at)
        try:
            if seen is not None:
                directory.listing, directory.time = seen
            else:
                directory.listing = list_directory(directory.fd)
        except OSError as error:
            if not directory.path:
                # Nothing of the tree can be read: an empty generation of it would only do harm.
                os.close(directory.fd)
                raise CastoreError(
                    f"the top directory of the tree {UNLISTED}: {error.strerror}; nothing of it was stored"
                ) from error
            self._entries.doubt(directory, f"{UNLISTED}: {error.strerror}")

    def _keep(self, directory: Scanned, record: Record) -> bool:
        """Keep a directory from the last scan, except its subdirectories, if its listing is unchanged."""
        old = self._old
        if old is None or record.flags & DISTRUST or directory.distrust:
            return False
        summary = summary_of(record)
        if record.listing != directory.listing or not old.has(summary.ref):
            return False
        try:
            directory.kept = list(decode_streams(record).refs)
        except DamageError:
            return False
        below = [old.summary(at) for at in directory.below.values()]
        directory.marks = bytearray(record.marks)
        directory.linked = bool(record.flags & LINKED)
        directory.time = summary.time
        directory.streams_kept, directory.streams_length = record.streams, len(record.streams)
        directory.at = self._new.begin(directory.listing, len(record.marks), len(record.streams))
        if below:
            directory.places = places_of(directory.listing)
            marked = range(len(record.marks) - 1, -1, -1)
            directory.subdirectories = [one for one in marked if record.marks[one] & ENTERED]
        directory.count = summary.files - sum(one.files for one in below)
        directory.size = summary.size - sum(one.size for one in below)
        self._progress.files += directory.count
        self._progress.read += directory.size
        self._count_chunks(directory, summary.chunks - sum(one.chunks for one in below))
        return True

    def _count_chunks(self, directory: Scanned, chunks: int) -> None:
        """Record how many references exist before a directory's, and count those that it keeps."""

        def count() -> None:
            directory.chunks = self._progress.chunks
            self._progress.chunks += chunks

        self._pipeline.call_when_stored(count)

    def _read(self, directory: Scanned, record: Record | None) -> None:
        last_read = self._large.last_read(record)
        chosen = self._selection.chosen(directory)
        if len(chosen) < len(directory.kinds):
            kinds = bytearray(len(directory.kinds))
            for position in chosen:
                kinds[position] = directory.kinds[position]
            directory.kinds = kinds
        kept = self._small.keep(directory, record) if record is not None else None
        small: list[int] = []
        large: list[int] = []
        # Most entries of most directories are small files that are kept.
        for match in re.finditer(_NOT_KEPT, directory.kinds):
            position, kind = match.start(), directory.kinds[match.start()]
            if kind in {PLAIN_FILE, SMALL_FILE}:
                small.append(position)
            elif kind == DIRECTORY:
                directory.subdirectories.append(position)
            elif kind == LARGE_FILE:
                large.append(position)
            elif kind == SPECIAL:
                self._entries.special(directory, position)
        self._small.read(directory, small, large, kept)
        for position in sorted(large):
            raw = entry_bytes(directory.listing, directory.places[position])
            name = name_at(directory.listing, directory.places[position])
            last = last_read.get(name)
            same = last is not None and raw == last.entry
            if not (same and last and self._large.known(directory, position, last)):
                self._large.read(directory, position, last)
        directory.subdirectories.reverse()

    def _next_child(self, directory: Scanned) -> Scanned | None:
        """Enter the next subdirectory that is not unchanged; return None if none is left."""
        while directory.subdirectories:
            position = directory.subdirectories.pop()
            entry = directory.listed(position)
            if self._selection.is_left_empty(entry):
                self._entries.special(directory, position)
                continue
            at, moved = self._record_of(directory, entry)
            if at is not None and self._same(directory, position, entry, at, moved=moved):
                continue
            try:
                child = self._enter(directory, position, entry, at, moved=moved)
            except OSError as error:
                self._entries.warn(directory, entry.name, error)
                if directory.kept is not None and self._old is not None and at is not None:
                    # The kept entries name it, so its old state has to be referenced.
                    ref = self._old.summary(at).ref
                    self._pipeline.call_when_stored(partial(directory.directories.append, ref))
                    directory.marks[position] &= ~ENTERED
                continue
            return child
        return None

    def _record_of(self, directory: Scanned, entry: Listed) -> tuple[int | None, bool]:
        """Return the last scan's record of a subdirectory, and whether it was moved here since."""
        if self._old is None:
            return None, False
        at = directory.below.get(entry.name)
        ids = (entry.dev, entry.ino)
        if at is not None and (self._rules.any_top or self._old.summary(at).ids == ids):
            return at, directory.moved
        # In another place, other patterns may match its content.
        return (self._old.moved(ids) if self._rules.exclude is None else None), True

    def _same(
        self, directory: Scanned, position: int, entry: Listed, at: int, *, moved: bool
    ) -> bool:
        """Keep a subdirectory and all below it from the last scan, if it is unchanged."""
        old, pipeline = self._old, self._pipeline
        if old is None or not old.is_same(at, directory.fd, entry.name, moved=moved):
            return False
        if directory.kept is None:
            xattrs = self._entries.xattrs_of(directory, position, entry)
            extra = extra_of(entry, self._entries.device, xattrs)
            self._entries.add(directory, position, entry, Content.OWN, extra=extra)
        record = old.record(at)
        summary = summary_of(record)
        directory.marks[position] |= ENTERED
        directory.linked |= bool(record.flags & LINKED)
        directory.count += summary.files
        directory.size += summary.size
        self._new.copy(old, at)
        self._progress.files += summary.files
        self._progress.read += summary.size

        def join() -> None:
            directory.directories.append(summary.ref)
            self._progress.chunks += summary.chunks

        pipeline.call_when_stored(join)
        return True

    def _enter(
        self, directory: Scanned, position: int, entry: Listed, at: int | None, *, moved: bool
    ) -> Scanned:
        fd = os.open(entry.name, OPEN_DIRECTORY, dir_fd=directory.fd)
        try:
            info = os.fstat(fd)
            if directory.kept is None:
                now = listing_entry(entry.name, info)
                xattrs = self._entries.xattrs(directory, position, fd, entry.name)
                extra = extra_of(now, self._entries.device, xattrs)
                self._entries.add(directory, position, now, Content.OWN, extra=extra)
        except OSError:
            os.close(fd)
            raise
        directory.marks[position] |= ENTERED
        path = joined(directory.path, entry.name)
        ids = (info.st_dev, info.st_ino)
        return self._begin(fd, path, directory.directories.append, ids, at, moved=moved)

    def _finish(self, directory: Scanned) -> None:
        """Store a directory's entries, and, after its content, the directory itself."""
        pipeline, new = self._pipeline, self._new
        length = new.end(directory.at) if directory.at >= 0 else 0
        flags = (DISTRUST if directory.distrust else 0) | (LINKED if directory.linked else 0)

        def close(refs: list[Ref], streams: bytes) -> None:
            ref = pipeline.put_list([*refs, *directory.directories])
            if directory.at >= 0:
                if len(streams) != directory.streams_length:
                    raise AssertionError("a record would overlap the next one")
                chunks = self._progress.chunks - directory.chunks
                summary = DirectorySummary(
                    directory.time, directory.count, directory.size, chunks, ref, directory.ids
                )
                listed = len(directory.listing)
                new.set_summary(directory.at, length, summary, directory.marks, streams, flags, listed)
            directory.close(ref)

        if directory.kept is not None:
            kept = directory.kept
            pipeline.call_when_stored(lambda: close(kept, directory.streams_kept))
        else:
            entries = directory.encoded()
            if len(entries) > MAX_ENTRIES_BYTES:
                shown = os.fsdecode(directory.path) or "the top of the tree"
                raise CastoreError(
                    f"the directory {shown} has more entries than castore can store, {len(entries):,} bytes "
                    f"of names and attributes where {MAX_ENTRIES_BYTES:,} are possible: exclude it"
                )
            pipeline.write(entries)

            def end(entries: Ref | None) -> None:
                if entries is None:
                    raise AssertionError("entries are never empty: they begin with the owners")
                streams = directory.stored_streams(entries, pipeline.stream_chunks)
                close([*streams.refs], encode_streams(streams))

            pipeline.end_stream(end)
        if directory.fd >= 0:
            os.close(directory.fd)
            directory.fd = -1
