"""The small files of a directory that is scanned: many are read at once, into a small-file stream.

Files that are unchanged since the last scan keep their places in earlier streams and are not read.
"""

from __future__ import annotations

import os
import stat
from functools import partial
from typing import TYPE_CHECKING, Final

from castore.content.scan.cache import racy_since, summary_of
from castore.content.scan.entries import CHANGED
from castore.content.scan.kept_streams import FormerFiles, streams_to_drop
from castore.content.scan.record_streams import decode_streams
from castore.errors import DamageError
from castore.fs.metadata import extra_of
from castore.fs.stamp import stamp_of
from castore.kernel.dir_entries import AS_LISTED
from castore.kernel.dir_listing import (
    BUNDLED,
    DOUBTFUL,
    EMPTY,
    HAS_CONTENT,
    HAS_XATTRS,
    KEPT_OTHER,
    PLAIN_FILE,
    WITH_XATTRS,
    listing_entry,
    read_files,
    size_at,
)
from castore.kernel.small_streams import keep_files
from castore.model.tree import Content

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.content.pipeline import Pipeline
    from castore.content.scan.cache_reader import ScanCacheReader
    from castore.content.scan.entries import EntryRecorder
    from castore.content.scan.record_streams import RecordStreams
    from castore.content.scan.scanned import Scanned
    from castore.kernel.dir_listing import Listed, Record
    from castore.kernel.small_streams import KeptFiles
    from castore.model.refs import RecordId, Ref

_CONTENT: Final = (Content.NONE, Content.SMALL_FILES)
SMALL: Final = 1 << 16
_FILES_AT_ONCE: Final = 1024


class SmallFileReader:
    """Reads the small files of directories that are scanned."""

    def __init__(self, pipeline: Pipeline, entries: EntryRecorder, old: ScanCacheReader | None) -> None:
        self._pipeline = pipeline
        self._entries = entries
        self._old = old

    def keep(self, directory: Scanned, record: Record) -> KeptFiles | None:
        """Keep the places of small files that are as the last scan stored them; None if none is kept.

        Entries of kind 0 are left out. Sets kinds, marks and entries of the files that are kept.
        """
        old = self._old
        if old is None:
            return None
        try:
            streams = decode_streams(record)
        except DamageError:
            return None
        if not streams.small or not streams.usable:
            return None
        since = racy_since(summary_of(record).time)
        arguments = record, streams.runs, since, directory.listing, directory.places, directory.kinds
        kept = keep_files(*arguments)
        if kept is None:
            return None
        sizes = [ref.size for ref in streams.small_files]
        drop = streams_to_drop(sizes, kept)
        if drop:
            kept = keep_files(*arguments, drop)
        if kept is None or not self._use(directory, record, streams, kept):
            return None
        directory.kinds, directory.take, directory.marks = kept.kinds, kept.take, kept.marks
        directory.former = streams.small_files
        others = enumerate(kept.kinds) if KEPT_OTHER in kept.kinds else ()
        for position in [at for at, kind in others if kind == KEPT_OTHER]:
            self._as_listed(directory, position, attributed=bool(kept.marks[position] & WITH_XATTRS))
        return kept

    def _use(
        self, directory: Scanned, record: Record, streams: RecordStreams, kept: KeptFiles
    ) -> bool:
        """Reference the streams of which files are kept; return whether the store has them."""
        old, pipeline = self._old, self._pipeline
        used = [number for number, size in enumerate(kept.used) if size]
        if old is None or not old.has(summary_of(record).ref):
            return False
        chunks = [streams.chunks[1 + number] for number in used]
        kept.renumber(used)
        directory.streams = len(used)
        directory.small_files += [streams.refs[1 + number] for number in used]
        directory.small_chunks += chunks
        size = sum(kept.used)
        directory.size += size
        pipeline.progress.read += size

        def count() -> None:
            pipeline.progress.chunks += sum(chunks)

        pipeline.call_when_stored(count)
        return True

    def read(
        self, directory: Scanned, small: list[int], large: list[int], kept: KeptFiles | None
    ) -> None:
        """Read small files into a new stream. Files that have grown move to `large`.

        small, large: positions. kept: the small files that are not read. No entry is added here for a plain
        file that is unchanged since the listing.
        """
        size = 0
        bases: list[tuple[int, int, RecordId]] = []
        former = None
        if kept is not None and self._old is not None:
            former = FormerFiles(self._old.store, directory.former, kept)
        for position, count in self._read(directory, small, large):
            if former is not None and kept is not None and count:
                bases += former.bases(position, size, count)
                kept.place(position, directory.streams, size, count)
            size += count
        self._pipeline.suggest_bases(bases)
        directory.size += size
        if size:
            directory.streams += 1
            self._pipeline.end_stream(partial(self._add_stream, directory))
        if kept is not None:
            directory.runs = kept.runs()

    def _add_stream(self, directory: Scanned, ref: Ref | None) -> None:
        """Reference a small-file stream that was just stored."""
        if ref is not None:
            directory.small_files.append(ref)
            directory.small_chunks.append(self._pipeline.stream_chunks)

    def _read(
        self, directory: Scanned, small: list[int], large: list[int]
    ) -> Iterator[tuple[int, int]]:
        """Read small files into the stream; yield the position and stored size of each."""
        pipeline = self._pipeline
        places = directory.places
        while small:
            room = pipeline.reserve(SMALL)
            some = small[:_FILES_AT_ONCE]
            offsets = [places[position] for position in some]
            done, has, size = read_files(directory.fd, directory.listing, offsets, room)
            pipeline.commit(size)
            for position, what in zip(some[:done], has, strict=True):
                if what & HAS_XATTRS or directory.kinds[position] != PLAIN_FILE:
                    self._as_listed(directory, position, attributed=bool(what & HAS_XATTRS))
                else:
                    directory.take[position] = AS_LISTED
                    directory.marks[position] |= BUNDLED if what & HAS_CONTENT else EMPTY
                yield position, size_at(directory.listing, places[position])
            small = small[done:]
            if small and done < len(some):
                entry = directory.listed(small[0])
                if entry.size > len(room) - size:
                    continue  # it is the first of the next buffer
                # It has changed since the listing.
                position = small.pop(0)
                count = self._small_file(directory, position, entry.name)
                if count is None:
                    large.append(position)
                else:
                    directory.sized &= count == entry.size
                    yield position, count

    def _as_listed(self, directory: Scanned, position: int, *, attributed: bool) -> None:
        """Add the entry of an unchanged small file that is not plain, or may not be plain."""
        entry = directory.listed(position)
        xattrs = self._entries.xattrs_of(directory, position, entry) if attributed else ()
        self._bundle(directory, position, entry, entry.size, xattrs)

    def _bundle(
        self,
        directory: Scanned,
        position: int,
        entry: Listed,
        size: int,
        xattrs: tuple[tuple[bytes, bytes], ...],
    ) -> None:
        extra = extra_of(entry, self._entries.device, xattrs)
        self._entries.add(directory, position, entry, _CONTENT[size > 0], size=size, extra=extra)
        directory.marks[position] |= BUNDLED if size else 0
        if size == 0 == entry.size:
            directory.marks[position] |= EMPTY

    def _small_file(self, directory: Scanned, position: int, name: bytes) -> int | None:
        """Read one file into the stream; return the number of bytes, or None if it is no longer small."""
        fd = self._entries.open_file(directory, name)
        if fd < 0:
            return 0
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                self._entries.doubt(directory, "was replaced while being read", name)
                return 0
            if info.st_size > SMALL:
                return None
            room = self._pipeline.reserve(SMALL)
            count = _read_up_to(fd, room[: info.st_size or SMALL])
            if not info.st_size and count == SMALL:
                reason = "cannot be read: its file system gives no size, and it is large"
                self._entries.doubt(directory, reason, name)
                return 0
            after = os.fstat(fd)
            xattrs = self._entries.xattrs(directory, position, fd, name)
        except OSError as error:
            self._entries.warn(directory, name, error)
            return 0
        finally:
            os.close(fd)
        self._pipeline.commit(count)
        directory.distrust |= count != after.st_size
        # A file system that gives no size, such as proc, reports 0.
        if (after.st_size and count != after.st_size) or stamp_of(info) != stamp_of(after):
            self._entries.doubt(directory, CHANGED, name)
            directory.marks[position] |= DOUBTFUL
        self._bundle(directory, position, listing_entry(name, after), count, xattrs)
        return count


def _read_up_to(fd: int, room: memoryview) -> int:
    done = 0
    while done < len(room) and (count := os.readv(fd, [room[done:]])):
        done += count
    return done
