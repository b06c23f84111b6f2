"""The large files of a directory that is scanned: each gets a stream of its own.

A file that is unchanged since the last scan keeps its stream and is not read.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from castore.content.previous_stream import PreviousStream
from castore.content.ref_tree import iter_runs_of_chunks
from castore.content.scan.cache import is_racily_clean, summary_of
from castore.content.scan.entries import CHANGED
from castore.content.scan.previous_files import PreviousFiles
from castore.content.scan.record_streams import own_streams
from castore.errors import CastoreError
from castore.fs.beneath import open_regular
from castore.fs.metadata import data_extents, extra_of
from castore.fs.stamp import stamp_of
from castore.kernel.dir_listing import (
    DOUBTFUL,
    OWN_STREAM,
    SPARSE,
    WITH_XATTRS,
    entry_at,
    entry_bytes,
    listing_entry,
    name_at,
)
from castore.model.tree import Content

if TYPE_CHECKING:
    from castore.content.pipeline import Pipeline
    from castore.content.scan.cache_reader import ScanCacheReader
    from castore.content.scan.entries import EntryRecorder
    from castore.content.scan.scanned import Scanned
    from castore.fs.stamp import Stamp
    from castore.kernel.dir_listing import Record
    from castore.model.refs import Ref


class LastRead(NamedTuple):
    """What the last scan read under a name."""

    entry: bytes
    """The entry of its listing; empty if the file may have changed since without a trace."""
    mark: int
    stream: Ref
    chunks: int
    """The number of chunks of its stream."""
    ids: tuple[int, int]
    """Its device and inode."""


class LargeFileReader:
    """Reads the large files of directories that are scanned."""

    def __init__(self, pipeline: Pipeline, entries: EntryRecorder, old: ScanCacheReader | None) -> None:
        self._pipeline = pipeline
        self._progress = pipeline.progress
        self._entries = entries
        self._old = old
        self._previous = PreviousFiles(pipeline, old) if old is not None else None
        self._links: dict[tuple[int, int], _Linked] = {}

    def last_read(self, record: Record | None) -> dict[bytes, LastRead]:
        """Return the large files that the last scan read in a directory, by name."""
        if record is None or self._old is None or not self._old.has(summary_of(record).ref):
            return {}
        files: dict[bytes, LastRead] = {}
        since = summary_of(record).time
        try:
            for place, mark, ref, chunks in own_streams(record):
                entry = entry_at(record.listing, place)
                doubtful = mark & DOUBTFUL or is_racily_clean(entry.ctime_ns, since)
                raw = b"" if doubtful else entry_bytes(record.listing, place)
                files[entry.name] = LastRead(raw, mark, ref, chunks, (entry.dev, entry.ino))
        except CastoreError:
            return {}
        return files

    def known(self, directory: Scanned, position: int, last: LastRead) -> bool:
        """Keep the stream of a large file from the last scan; return whether that was possible.

        The store has the directory of the last scan.
        """
        mark, ref = last.mark, last.stream
        entry = directory.listed(position)
        extents = None
        try:
            if mark & SPARSE:
                fd = open_regular(directory.fd, entry.name)
                try:
                    extents = data_extents(fd, entry.size, entry.blocks)
                finally:
                    os.close(fd)
        except OSError:
            return False
        if sum(length for _, length in extents or ((0, entry.size),)) != ref.size:
            return False
        directory.marks[position] = mark
        xattrs = self._entries.xattrs_of(directory, position, entry) if mark & WITH_XATTRS else ()
        directory.size += ref.size
        self._progress.read += ref.size

        def join() -> None:
            directory.files.append(ref)
            directory.file_chunks.append(last.chunks)
            self._progress.chunks += last.chunks

        self._pipeline.call_when_stored(join)
        extra = extra_of(entry, self._entries.device, xattrs, extents=extents)
        self._entries.add(directory, position, entry, Content.OWN, size=entry.size, extra=extra)
        return True

    def read(self, directory: Scanned, position: int, last: LastRead | None) -> None:
        """Read a file into a stream of its own. last: what the last scan read under its name, if anything."""
        name = name_at(directory.listing, directory.places[position])
        fd = self._entries.open_file(directory, name)
        if fd < 0:
            return
        try:
            info = os.fstat(fd)
            key = (info.st_dev, info.st_ino)
            linked = self._links.get(key) if info.st_nlink > 1 else None
            again = linked is not None and linked.stamp == stamp_of(info)
            if linked is None or not again:
                self._compare_with_previous(directory, name, fd, info, last)
                linked = self._read_large(directory, position, name, fd, info)
                if info.st_nlink > 1:
                    self._links[key] = linked
            xattrs = self._entries.xattrs(directory, position, fd, name)
        except OSError as error:
            self._entries.warn(directory, name, error)
            return
        finally:
            os.close(fd)
        # The stream may not be stored yet: its reference is added in the stream's turn.
        taken = linked
        if taken.stored:

            def join() -> None:
                directory.files.append(taken.ref())
                directory.file_chunks.append(taken.chunks)
                if again:
                    self._progress.chunks += taken.chunks

            self._pipeline.call_when_stored(join)
        if again:
            self._progress.read += taken.stored  # the bytes count for each name
        content = Content.OWN if taken.stored else Content.NONE
        entry = listing_entry(name, info)
        extra = extra_of(entry, self._entries.device, xattrs, extents=linked.extents)
        self._entries.add(directory, position, entry, content, size=taken.size, extra=extra)
        directory.size += taken.stored
        directory.marks[position] |= (
            (OWN_STREAM if taken.stored else 0) | (SPARSE if linked.extents is not None else 0)
        )

    def _compare_with_previous(
        self, directory: Scanned, name: bytes, fd: int, info: os.stat_result, last: LastRead | None
    ) -> None:
        """Have the next stream compared with that of the file's previous version, if there is one."""
        if self._old is None or self._previous is None:
            return
        previous = last.stream if last is not None else None
        if last is None or last.ids != (info.st_dev, info.st_ino):
            # A file that was rotated, or replaced by a new one, may have another's content.
            previous = self._previous.find(fd, name, info, directory.old_at) or previous
        if previous is not None:
            self._pipeline.compare_with(PreviousStream(iter_runs_of_chunks(self._old.store, previous)))

    def _read_large(
        self, directory: Scanned, position: int, name: bytes, fd: int, info: os.stat_result
    ) -> _Linked:
        extents = data_extents(fd, info.st_size, info.st_blocks)
        linked = _Linked(stamp_of(info), info.st_size, None)
        self._pipeline.call_when_stored(lambda: linked.begin(self._progress.chunks))
        whole = extents if extents is not None else ((0, info.st_size),)
        taken: list[tuple[int, int]] = []
        read_before = self._progress.read
        try:
            for offset, length in whole:
                count = self._read_extent(fd, offset, length)
                if count:
                    taken.append((offset, count))
                    linked.stored += count
                if count < length:
                    break
        except OSError:
            self._pipeline.drop_stream()
            self._progress.read = read_before
            raise
        if linked.stored:
            self._pipeline.end_stream(lambda ref: linked.end(ref, self._progress.chunks))
        else:
            self._pipeline.compare_with(None)
        after = os.fstat(fd)
        if stamp_of(after) != linked.stamp or sum(length for _, length in whole) != linked.stored:
            self._entries.doubt(directory, CHANGED, name)
            directory.marks[position] |= DOUBTFUL
        if extents is None:
            linked.size = linked.stored
        else:
            linked.extents = tuple(taken)
        return linked

    def _read_extent(self, fd: int, offset: int, length: int) -> int:
        done = 0
        while done < length:
            room = self._pipeline.reserve()
            count = os.preadv(fd, [room[: length - done]], offset + done)
            if count == 0:
                break
            self._pipeline.commit(count)
            done += count
        return done


class _Linked(msgspec.Struct):
    """The result of reading a large file, kept for its other names."""

    stamp: Stamp
    size: int
    extents: tuple[tuple[int, int], ...] | None
    stored: int = 0
    chunks: int = 0
    """The number of references to chunks."""
    refs: list[Ref | None] = []

    def begin(self, chunks: int) -> None:
        """Record how many references existed before its stream."""
        self.chunks = -chunks

    def end(self, ref: Ref | None, chunks: int) -> None:
        """Record its stream, and how many references exist after it."""
        self.refs.append(ref)
        self.chunks += chunks

    def ref(self) -> Ref:
        """The stream, once it is stored."""
        (ref,) = self.refs
        if ref is None:
            raise AssertionError("a stream of some bytes has a reference")
        return ref
