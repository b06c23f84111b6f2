"""The entries of directories that are scanned, and warnings about them."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from castore.content.scan.scanned import joined
from castore.fs.beneath import UnexpectedFileError, open_entry, open_regular, path_of
from castore.fs.metadata import extra_of, read_xattrs
from castore.kernel.dir_listing import REPEATED, WITH_XATTRS
from castore.model.tree import Content, Entry, clamped_time

if TYPE_CHECKING:
    from castore.content.scan.scanned import Scanned
    from castore.kernel.dir_listing import Listed
    from castore.model.tree import Extra
    from castore.progress import Progress

_CLAMPED: Final = "modification time out of range: stored as the nearest possible one, in"
CHANGED: Final = "changed while being read; what was read is kept"


class EntryRecorder:
    """Creates the entries of directories that are scanned, with their attributes."""

    def __init__(self, progress: Progress, device: int) -> None:
        self.device = device
        """The device of the tree's top."""
        self._progress = progress

    def special(self, directory: Scanned, position: int) -> None:
        """Store an entry without content: a link, fifo, socket, device, or a directory that is left empty."""
        target = b""
        entry = directory.listed(position)
        try:
            held = _open_listed(directory, entry)
            try:
                if stat.S_ISLNK(entry.mode):
                    target = os.readlink(b"", dir_fd=held)
                xattrs = self.xattrs(directory, position, path_of(held), entry.name)
            finally:
                os.close(held)
        except OSError as error:
            self.warn(directory, entry.name, error)
            return
        extra = extra_of(entry, self.device, xattrs, target=target)
        self.add(directory, position, entry, Content.NONE, extra=extra)

    def xattrs(
        self, directory: Scanned, position: int, file: int | bytes, name: bytes
    ) -> tuple[tuple[bytes, bytes], ...]:
        """Return the attributes of an entry; those that cannot be read are reported and left out.

        file: a descriptor of the entry, or `path_of` a descriptor that was opened with O_PATH.
        """
        failed: list[str] = []
        found = read_xattrs(file, failed.append)
        for reason in failed:
            self.doubt(directory, reason, name)
        if (found or failed) and directory.marks:
            # The next scan reads the attributes, even if the file is unchanged.
            directory.marks[position] |= WITH_XATTRS
        return found

    def xattrs_of(
        self, directory: Scanned, position: int, entry: Listed
    ) -> tuple[tuple[bytes, bytes], ...]:
        """Return the attributes of an entry that is not open, never those of a file that replaced it."""
        try:
            held = _open_listed(directory, entry)
        except OSError as error:
            self.warn(directory, entry.name, error)
            return ()
        try:
            return self.xattrs(directory, position, path_of(held), entry.name)
        finally:
            os.close(held)

    def open_file(self, directory: Scanned, name: bytes) -> int:
        """Open a regular file for reading; report a failure and return -1."""
        try:
            return open_regular(directory.fd, name)
        except OSError as error:
            self.warn(directory, name, error)
            return -1

    def warn(self, directory: Scanned, name: bytes, error: OSError) -> None:
        """Report a file that cannot be stored."""
        reason = (
            "is listed more than once by its file system; it is stored once"
            if error.errno == REPEATED
            else "was replaced while being read"
            if isinstance(error, UnexpectedFileError)
            else "vanished while being scanned"
            if error.errno == errno.ENOENT
            else f"cannot be read: {error.strerror}"
        )
        self.doubt(directory, reason, name)

    def doubt(self, directory: Scanned, reason: str, name: bytes = b"") -> None:
        """Warn, and make the next scan read this directory again."""
        directory.distrust = True
        path = joined(directory.path, name) if name else directory.path
        self._progress.warn(path or b".", reason)

    def add(
        self,
        directory: Scanned,
        position: int,
        entry: Listed,
        content: Content,
        *,
        size: int = 0,
        extra: Extra,
    ) -> None:
        """Add an entry. A directory's own entry may be added before its content is read."""
        name, _, _, _, time, _, _, _, mode, uid, gid, _, _, _ = entry
        mtime = clamped_time(time)
        if mtime != time:
            self.doubt(directory, f"{_CLAMPED} {'1677' if time < 0 else '2554'}", name)
        directory.entries[position] = Entry(
            name, mode >> 12, mode & 0o7777, uid, gid, mtime, size, content, extra
        )


def _open_listed(directory: Scanned, entry: Listed) -> int:
    """Open an entry with O_PATH. Raises OSError if it is not the file that was listed."""
    held = open_entry(directory.fd, entry.name)
    info = os.fstat(held)
    if (info.st_dev, info.st_ino, info.st_mode) == (entry.dev, entry.ino, entry.mode):
        return held
    os.close(held)
    raise UnexpectedFileError(errno.ESTALE, "it was replaced")
