"""The small files of a directory that is scanned: many are read at once, into its small-file stream."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from castore.content.scan.entries import CHANGED, stamp_of
from castore.content.scan.marks import BUNDLED
from castore.fs.metadata import extra_of
from castore.kernel.dir_entries import AS_LISTED
from castore.kernel.dir_listing import HAS_CONTENT, HAS_XATTRS, PLAIN_FILE, listing_entry, read_files
from castore.model.tree import Content

if TYPE_CHECKING:
    from castore.content.pipeline import Pipeline
    from castore.content.scan.entries import EntryRecorder
    from castore.content.scan.scanned import Scanned
    from castore.kernel.dir_listing import Listed

_CONTENT: Final = (Content.NONE, Content.SMALL_FILES)
SMALL: Final = 1 << 16
_FILES_AT_ONCE: Final = 1024


class SmallFileReader:
    """Reads the small files of directories that are scanned."""

    def __init__(self, pipeline: Pipeline, entries: EntryRecorder) -> None:
        self._pipeline = pipeline
        self._entries = entries

    def read(self, directory: Scanned, small: list[int], large: list[int]) -> int:
        """Read small files into the stream; return the number of bytes. Grown files move to `large`.

        small, large: positions. No entry is added here for a plain file that is unchanged since the listing.
        """
        small_size = 0
        pipeline = self._pipeline
        places = directory.places
        while small:
            room = pipeline.reserve(SMALL)
            some = small[:_FILES_AT_ONCE]
            offsets = [places[position] for position in some]
            done, has, size = read_files(directory.fd, directory.listing, offsets, room)
            for position, what in zip(some[:done], has, strict=True):
                if what & HAS_XATTRS or directory.kinds[position] != PLAIN_FILE:
                    self._as_listed(directory, position, attributed=bool(what & HAS_XATTRS))
                else:
                    directory.take[position] = AS_LISTED
                    if what & HAS_CONTENT:
                        directory.marks[position] |= BUNDLED
            pipeline.commit(size)
            small_size += size
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
                    small_size += count
        directory.size += small_size
        return small_size

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
        self._bundle(directory, position, listing_entry(name, after), count, xattrs)
        return count


def _read_up_to(fd: int, room: memoryview) -> int:
    done = 0
    while done < len(room) and (count := os.readv(fd, [room[done:]])):
        done += count
    return done
