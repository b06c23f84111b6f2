"""Write stored files of all kinds, except directories, with their metadata."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from castore.content.restore.hard_links import Link, link_to
from castore.content.restore.large_files import write_large
from castore.content.restore.live_file import may_share
from castore.content.restore.metadata import (
    is_privileged,
    replace_attributes,
    set_attributes,
    without_privileges,
)
from castore.content.stored_dirs import check_content, read_data
from castore.content.streams import RangeReader
from castore.errors import CastoreError, DamageError
from castore.fs.beneath import REPLACED, keeps_owners, open_below, open_entry, path_of
from castore.fs.durable import create_file, write_all
from castore.model.tree import Content

if TYPE_CHECKING:
    from castore.content.restore.live_file import LiveFile
    from castore.content.restore.metadata import Ownership
    from castore.content.restore.open_directory import OpenDirectory
    from castore.content.restore.report import Report
    from castore.content.stored_dirs import Child
    from castore.content.streams import StreamReader
    from castore.model.tree import Entry
    from castore.progress import Progress

_NAMELESS: Final = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC
_NO_NAMELESS: Final = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}
"""Errors of open(2) with O_TMPFILE on a file system that has no files without a name."""


class Made(NamedTuple):
    """A file that was created, open."""

    fd: int
    """A regular file open for writing, others with O_PATH; -1: it could not be created, and was reported."""
    nameless: bool = False
    """Whether it gets its name only after its metadata."""


class FileWriter:
    """Writes stored files into directories below the one open as `top`."""

    def __init__(
        self, reader: StreamReader, top: int, ownership: Ownership, progress: Progress, report: Report
    ) -> None:
        self.report = report
        self.links: dict[tuple[int, int], Link] = {}
        """One name of each file that has several names and exists already."""
        self._reader = reader
        self._top = top
        self._ownership = ownership
        self._progress = progress

    def make(self, current: OpenDirectory, child: Child) -> None:
        """Create a file of any kind but a directory, with its metadata; report what fails."""
        entry = child.entry
        path = (*current.path, entry.name)
        self._progress.files += 1
        try:
            if self._link(current, entry, path):
                return
            made = self._make_file(current, child, path)
            if made.fd < 0:
                return
            try:
                self.set_metadata(made, current, child)
                info = os.fstat(made.fd)
                if made.nameless:
                    os.link(path_of(made.fd), entry.name, dst_dir_fd=current.fd)
            finally:
                os.close(made.fd)
        except OSError as error:
            self.failed(path, error)
            return
        if entry.extra.link is not None:
            self.links[entry.extra.link] = path, (info.st_dev, info.st_ino)

    def failed(self, path: tuple[bytes, ...], error: OSError) -> None:
        """Report a file that this file system or user cannot have.

        That concerns one file only. Raises CastoreError for an error that concerns all: a full or failing
        disk.
        """
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}:
            where = b"/".join(path).decode(errors="backslashreplace")
            raise CastoreError(f"cannot restore {where}: {error.strerror}") from error
        self.report.not_made(path, f"cannot be made: {error.strerror}")

    def _make_file(self, current: OpenDirectory, child: Child, path: tuple[bytes, ...]) -> Made:
        """Create anything but a directory, without its metadata."""
        entry = child.entry
        kind = stat.S_IFMT(entry.st_mode)
        if kind == stat.S_IFREG:
            return self._file(current, child, path)
        if kind == stat.S_IFLNK:
            os.symlink(entry.extra.target, entry.name, dir_fd=current.fd)
        elif kind in {stat.S_IFCHR, stat.S_IFBLK} and not self._ownership.change:
            self.report.not_made(path, "is a device, which only root can make; left out")
            return Made(-1)
        elif kind in {stat.S_IFCHR, stat.S_IFBLK} and not self._ownership.privileges:
            return Made(-1)
        else:
            os.mknod(entry.name, kind | 0o600, entry.extra.device, dir_fd=current.fd)
        fd = open_entry(current.fd, entry.name)
        info = os.fstat(fd)
        own = info.st_uid == os.geteuid() or not keeps_owners(current.fd)
        device = entry.extra.device if kind in {stat.S_IFCHR, stat.S_IFBLK} else info.st_rdev
        if own and (stat.S_IFMT(info.st_mode), info.st_rdev) == (kind, device) and info.st_nlink == 1:
            return Made(fd)
        os.close(fd)
        raise OSError(errno.ESTALE, REPLACED)

    def _file(self, current: OpenDirectory, child: Child, path: tuple[bytes, ...]) -> Made:
        """Create a regular file, unless its stored content is damaged."""
        entry = child.entry
        fd = _open_nameless(current.fd) if self._needs_no_name(current, entry) else -1
        nameless = fd >= 0
        if not nameless:
            fd = create_file(entry.name, folder=current.fd)
        complete = False
        try:
            check_content(child)
            if entry.content is Content.SMALL_FILES:
                small_files = current.small_files.get(child.ref)
                if small_files is None:
                    small_files = RangeReader(self._reader.store, child.ref, current.chunks)
                    current.small_files[child.ref] = small_files
                self._write(fd, small_files.read(child.offset, entry.size))
            else:
                known = current.chunks.get(child.ref.id) if child.ref is not None else None
                old = current.old
                usable = old is not None and may_share(self._ownership, old.fd, child)
                self._write_own(fd, child, known, old if usable else None)
            complete = True
        except DamageError as error:
            self.report.damage(path, error)
        finally:
            if not complete:
                os.close(fd)
                if not nameless:
                    with contextlib.suppress(OSError):
                        os.unlink(entry.name, dir_fd=current.fd)
        return Made(fd if complete else -1, nameless)

    def _needs_no_name(self, current: OpenDirectory, entry: Entry) -> bool:
        """Whether a file must not be reachable before it has its owner and mode.

        Its owner, who also owns the directory, could write to it in between, and their content would get the
        set-id bits or capabilities.
        """
        privileged = is_privileged(entry.st_mode, entry.extra.xattrs)
        rights = self._ownership.change and self._ownership.privileges
        return privileged and rights and not current.private

    def _write_own(
        self, fd: int, child: Child, known: bytes | memoryview | None, old: LiveFile | None
    ) -> None:
        """Write a file from its own stream, with its holes. known: the content, if it was read already."""
        if known is None:
            write_large(self._reader, fd, child, old, self._wrote)
            return
        for offset, data in read_data(self._reader, child, known):
            if child.entry.extra.extents is not None:
                os.lseek(fd, offset, os.SEEK_SET)
            self._write(fd, data)
        if child.entry.extra.extents is not None:
            os.ftruncate(fd, child.entry.size)

    def _wrote(self, count: int) -> None:
        self._progress.read += count

    def _write(self, fd: int, data: bytes | memoryview) -> None:
        self._wrote(len(data))
        write_all(fd, data)

    def _link(self, current: OpenDirectory, entry: Entry, path: tuple[bytes, ...]) -> bool:
        """Create another name of a file that was restored before, if this entry is one."""
        first = self.links.get(entry.extra.link) if entry.extra.link is not None else None
        if first is None:
            return False
        source = open_below(self._top, first[0][:-1])
        try:
            link_to(first, source, entry.name, current.fd)
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EXDEV}:
                raise
            self.report.warn(path, f"is a copy instead of a hard link: {error.strerror}")
            return False
        finally:
            os.close(source)
        return True

    def set_metadata(self, made: Made, current: OpenDirectory, child: Child) -> None:
        """Set the metadata of a file that was created."""
        entry = child.entry
        path = (*current.path, entry.name)
        if self._needs_no_name(current, entry) and not made.nameless:
            entry = without_privileges(entry)
            self.report.warn(
                path,
                "set-id bits and capabilities are left out: its directory belongs to another user, and its "
                "file system cannot create a file without a name (O_TMPFILE)",
            )
        file = made.fd if entry.is_file or entry.is_dir else path_of(made.fd)
        set_all = replace_attributes if current.inherited else set_attributes
        set_all(file, entry, child.owners, self._ownership, lambda reason: self.report.warn(path, reason))


def _open_nameless(folder: int) -> int:
    """Create a file without a name in an open directory; return -1 if its file system cannot."""
    try:
        return os.open(b".", _NAMELESS, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno not in _NO_NAMELESS:
            raise
        return -1
