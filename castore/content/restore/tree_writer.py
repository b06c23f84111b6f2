"""A stored tree into a directory.

Everything is created relative to the descriptor of its directory and never through a link, so that what is
restored stays below its destination whatever a store holds. Metadata is set through the descriptor of the
file that was made: who owns a directory that files are made in can exchange them. A file that is damaged is
not left incomplete: it is missing, the report names it, and the others follow.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from castore.content.allowance import Allowance
from castore.content.restore.large_files import write_large
from castore.content.restore.metadata import (
    Ownership,
    drop_inherited,
    inherits,
    is_private,
    is_privileged,
    new_owners,
    replace_attributes,
    set_attributes,
    without_privileges,
)
from castore.content.restore.prefetch import ROOM, Prefetcher
from castore.content.stored_dirs import (
    Child,
    Opened,
    check_content,
    fetch_directory,
    open_fetched,
    read_data,
)
from castore.content.streams import RangeReader, StreamReader
from castore.errors import CastoreError, DamageError, UsageError
from castore.fs.beneath import (
    OPEN_DIRECTORY,
    REPLACED,
    keeps_owners,
    locate,
    make_directory,
    open_below,
    open_entry,
    path_of,
)
from castore.fs.metadata import allow_descriptors
from castore.model.tree import Content, Entry

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

    from castore.model.refs import RecordId
    from castore.progress import Progress

_WORKERS: Final = 2
_LEFT: Final = 32
"""Directories whose plain files are being made while others are entered."""
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NAMELESS: Final = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC
_NO_NAMELESS: Final = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}
"""What open(2) answers to O_TMPFILE where the file system has no files without a name."""
Link = tuple[tuple[bytes, ...], tuple[int, int]]
"""A name of a file that has several, and its device and inode."""


@dataclass
class Report:
    """What a restore could not do."""

    warnings: list[tuple[bytes, str]] = field(default_factory=list)
    """(path, reason) of what is there, but not with all its metadata, or was not allowed."""
    unmade: list[tuple[bytes, str]] = field(default_factory=list)
    """Those of the warnings that are of what is not there."""
    damaged: list[tuple[bytes, str]] = field(default_factory=list)
    """(path, reason) of what is missing, because the store is damaged there."""


FILE_SYSTEMS_OWN: Final = b"lost+found"
"""A directory that many file systems are made with: where it is, a restore fills it."""


@dataclass
class _Open:
    """A directory being filled."""

    fd: int
    path: tuple[bytes, ...]
    children: list[Child]
    """Directories still to be made, the first one last."""
    own: Child | None = None
    """Itself: its metadata is set when all is made in it."""
    chunks: Mapping[RecordId, bytes | memoryview] = field(default_factory=dict)
    """What was read of its streams before their turn."""
    inherited: bool = False
    """Whether what is made in it gets an access control list from it."""
    plain: Future[list[Child]] | None = None
    """The plain files, being made; gives those that could not be."""
    files: int = 0
    size: int = 0
    """Of these."""
    bundle: RangeReader | None = None
    old: int | None = None
    """A file that may have some of what is made, open."""
    private: bool = True
    """Whether nobody else can exchange what is made in it."""


class _Made(NamedTuple):
    """What was made, open."""

    fd: int
    """A regular file for writing, anything else with O_PATH; -1: it could not be made, which is reported."""
    nameless: bool = False
    """Whether it gets its name when it has its metadata."""


class _Work(NamedTuple):
    """Who helps with a tree."""

    pool: ThreadPoolExecutor
    ahead: Prefetcher
    depth: int
    """Of the tree's own top."""


class TreeWriter:
    """Writes stored trees below the directory open as `top`."""

    def __init__(self, reader: StreamReader, top: int, ownership: Ownership, tally: Progress) -> None:
        self.report = Report()
        self._reader = reader
        self._top = top
        self._ownership = ownership
        self._tally = tally
        self._allowance = Allowance(tally.most_files)
        self._links: dict[tuple[int, int], Link] = {}
        self._left: deque[_Open] = deque()

    def know_links(self, links: dict[tuple[int, int], Link]) -> None:
        """Say of files with several names that exist already where one name of each is."""
        self._links.update(links)

    def fill(self, child: Child, fd: int, path: tuple[bytes, ...] = ()) -> None:
        """Put what the stored directory `child` holds into the empty one open as `fd`, which is at `path`.

        The metadata of `child` itself is left to the caller.
        """
        allow_descriptors()
        stack: list[_Open] = []
        pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="castore-restore")
        with pool, Prefetcher(self._reader.store, child.ref) as ahead:
            work = _Work(pool, ahead, len(path))
            try:
                top = os.dup(fd)
                first = self._enter(work, child, path, top, None)
                if first is None:
                    os.close(top)
                else:
                    stack.append(first)
                while stack:
                    current = stack[-1]
                    if not current.children:
                        self._left.append(stack.pop())
                        while len(self._left) > _LEFT:
                            self._leave(self._left.popleft())
                        continue
                    entered = self._directory(work, current, current.children.pop())
                    if entered is not None:
                        stack.append(entered)
                while self._left:
                    self._leave(self._left.popleft())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                for current in (*stack, *self._left):
                    os.close(current.fd)
                self._left.clear()

    def make(
        self, fd: int, path: tuple[bytes, ...], child: Child, old: int | None = None
    ) -> None:
        """Make the one file `child`, which is no directory, at `path`, in the directory open as `fd`.

        old: a file that may have some of what it holds, open.
        """
        private = is_private(os.fstat(fd))
        self._make(_Open(fd, path[:-1], [], inherited=inherits(fd), old=old, private=private), child)

    def _enter(
        self, work: _Work, child: Child, path: tuple[bytes, ...], fd: int, own: Child | None
    ) -> _Open | None:
        """Open a stored directory and have its files made in the live one, open as `fd`.

        None: it is damaged, and `fd` is still the caller's.
        """
        taken = None
        try:
            if child.ref is None:
                opened = Opened([])
            else:
                taken = work.ahead.take(child.ref, len(path) - work.depth)
                fetched = taken.fetched if taken else fetch_directory(self._reader, child.ref, ROOM)
                opened = open_fetched(self._reader, child.ref, fetched)
        except DamageError as error:
            self._damage(path, error)
            return None
        current = _Open(fd, path, [], own, opened.chunks, inherits(fd))
        # A directory that this restore has made is for castore's user only until all is made in it.
        current.private = own is not None or is_private(os.fstat(fd))
        others = opened.others
        if current.inherited or not current.private:
            others = [*others, *opened.plain_children()]
        elif opened.plain is not None:
            current.files, current.size = opened.plain.plain, opened.plain.plain_size
            current.plain = work.pool.submit(self._write_plain, fd, opened)
        try:
            for one in others:
                if one.entry.is_dir:
                    current.children.append(one)
                else:
                    self._make(current, one)
        except BaseException:
            if current.plain is not None:
                current.plain.exception()  # it uses the descriptor
            os.close(fd)
            raise
        current.children.reverse()
        current.chunks, current.bundle = {}, None
        if taken is not None:
            work.ahead.done_with(taken, current.plain)
        return current

    def _write_plain(self, fd: int, opened: Opened) -> list[Child]:
        """Make plain files; return those that could not be. Runs on a worker."""
        plain = opened.plain
        if plain is None:
            return []
        failed: list[Child] = []
        owners = new_owners(opened.owners, self._ownership)
        bundle: RangeReader | None = None
        for first, end, start, size in plain.runs(ROOM):
            try:
                if bundle is None and size:
                    bundle = RangeReader(self._reader.store, opened.bundle, opened.chunks)
                data = bundle.read(start, size) if bundle is not None else b""
            except DamageError:
                failed += opened.plain_children(first, end)
                continue
            at = first
            while (at := plain.write(fd, at, end, owners, data, start)) < end:
                failed += opened.plain_children(at, at + 1)
                at += 1
        return failed

    def _leave(self, current: _Open) -> None:
        """Set a directory's own metadata, after all that is made in it has changed its time."""
        try:
            if current.plain is not None:
                failed = current.plain.result()
                self._tally.files += current.files - len(failed)
                self._tally.read += current.size - sum(child.entry.size for child in failed)
                for child in failed:
                    self._make(current, child)
            if current.own is not None:
                set_attributes(
                    current.fd,
                    current.own.entry,
                    current.own.owners,
                    self._ownership,
                    lambda reason: self._warn(current.path, reason),
                )
        finally:
            os.close(current.fd)

    def _directory(self, work: _Work, current: _Open, child: Child) -> _Open | None:
        """Make a directory, and enter it."""
        entry = child.entry
        path = (*current.path, entry.name)
        self._allowance.enter()
        self._tally.files += 1
        try:
            fd = self._make_directory(current, entry.name, path)
        except OSError as error:
            self._not_made(path, error)
            return None
        entered = self._enter(work, child, path, fd, child)
        if entered is None:
            try:
                self._attributes(_Made(fd), current, child)
            finally:
                os.close(fd)
        return entered

    @staticmethod
    def _make_directory(current: _Open, name: bytes, path: tuple[bytes, ...]) -> int:
        try:
            fd = make_directory(name, current.fd)
        except FileExistsError:
            if path != (FILE_SYSTEMS_OWN,):
                raise
            fd = os.open(name, OPEN_DIRECTORY, dir_fd=current.fd)
        if current.inherited:
            drop_inherited(fd)
        return fd

    def _make(self, current: _Open, child: Child) -> None:
        """Make what is no directory, with its metadata."""
        entry = child.entry
        path = (*current.path, entry.name)
        self._tally.files += 1
        try:
            if self._link(current, entry, path):
                return
            made = self._make_file(current, child, path)
            if made.fd < 0:
                return
            try:
                self._attributes(made, current, child)
                info = os.fstat(made.fd)
                if made.nameless:
                    os.link(path_of(made.fd), entry.name, dst_dir_fd=current.fd)
            finally:
                os.close(made.fd)
        except OSError as error:
            self._not_made(path, error)
            return
        if entry.extra.link is not None:
            self._links[entry.extra.link] = path, (info.st_dev, info.st_ino)

    def _not_made(self, path: tuple[bytes, ...], error: OSError) -> None:
        """Report what this file system or user cannot have.

        That is that file's affair; a disk that is full or failing is everybody's.
        """
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}:
            where = b"/".join(path).decode(errors="backslashreplace")
            raise CastoreError(f"cannot restore {where}: {error.strerror}") from error
        self._unmade(path, f"cannot be made: {error.strerror}")

    def _make_file(self, current: _Open, child: Child, path: tuple[bytes, ...]) -> _Made:
        """Make anything but a directory, without its metadata."""
        entry = child.entry
        kind = stat.S_IFMT(entry.st_mode)
        if kind == stat.S_IFREG:
            return self._file(current, child, path)
        if kind == stat.S_IFLNK:
            os.symlink(entry.extra.target, entry.name, dir_fd=current.fd)
        elif kind in {stat.S_IFCHR, stat.S_IFBLK} and not self._ownership.change:
            self._unmade(path, "is a device, which only root can make; left out")
            return _Made(-1)
        elif kind in {stat.S_IFCHR, stat.S_IFBLK} and not self._ownership.privileges:
            return _Made(-1)
        else:
            os.mknod(entry.name, kind | 0o600, entry.extra.device, dir_fd=current.fd)
        fd = open_entry(current.fd, entry.name)
        info = os.fstat(fd)
        own = info.st_uid == os.geteuid() or not keeps_owners(current.fd)
        device = entry.extra.device if kind in {stat.S_IFCHR, stat.S_IFBLK} else info.st_rdev
        if own and (stat.S_IFMT(info.st_mode), info.st_rdev) == (kind, device) and info.st_nlink == 1:
            return _Made(fd)
        os.close(fd)
        raise OSError(errno.ESTALE, REPLACED)

    def _file(self, current: _Open, child: Child, path: tuple[bytes, ...]) -> _Made:
        """Make a regular file, unless what is stored of it is damaged."""
        entry = child.entry
        fd = _open_nameless(current.fd) if self._needs_no_name(current, entry) else -1
        nameless = fd >= 0
        if not nameless:
            fd = os.open(entry.name, _CREATE, 0o600, dir_fd=current.fd)
        whole = False
        try:
            check_content(child)
            if entry.content is Content.BUNDLE:
                if current.bundle is None:
                    current.bundle = RangeReader(self._reader.store, child.ref, current.chunks)
                self._write(fd, current.bundle.read(child.offset, entry.size))
            else:
                known = current.chunks.get(child.ref.id) if child.ref is not None else None
                old = current.old if current.old is not None and self._may_use(current.old, child) else None
                self._write_own(fd, child, known, old)
            whole = True
        except DamageError as error:
            self._damage(path, error)
        finally:
            if not whole:
                os.close(fd)
                if not nameless:
                    with contextlib.suppress(OSError):
                        os.unlink(entry.name, dir_fd=current.fd)
        return _Made(fd if whole else -1, nameless)

    def _needs_no_name(self, current: _Open, entry: Entry) -> bool:
        """Whether a file must not be reachable before it has its owner and mode.

        Its owner, who also owns the directory, could write to it between the two: what they wrote would get
        the set-id bits or capabilities.
        """
        privileged = is_privileged(entry.st_mode, entry.extra.xattrs)
        rights = self._ownership.change and self._ownership.privileges
        return privileged and rights and not current.private

    def _may_use(self, old: int, child: Child) -> bool:
        """Whether whoever may write to a replaced file may write to the new one, too.

        Else they could change what it holds between the comparison and the copying.
        """
        entry = child.entry
        if is_privileged(entry.st_mode, entry.extra.xattrs):
            return False
        info = os.fstat(old)
        uid, gid = os.geteuid(), info.st_gid
        if self._ownership.change:
            uid, gid = self._ownership.of(entry, child.owners)
        if info.st_uid not in {uid, os.geteuid()}:
            return False
        more = info.st_mode & ~entry.mode & (stat.S_IWGRP | stat.S_IWOTH)
        return not more and (info.st_gid == gid or not info.st_mode & stat.S_IWGRP)

    def _write_own(
        self, fd: int, child: Child, whole: bytes | memoryview | None, old: int | None
    ) -> None:
        """Write a file from its own stream, leaving holes where it had them."""
        if whole is None:
            write_large(self._reader, fd, child, old, self._wrote)
            return
        for offset, data in read_data(self._reader, child, whole):
            if child.entry.extra.extents is not None:
                os.lseek(fd, offset, os.SEEK_SET)
            self._write(fd, data)
        if child.entry.extra.extents is not None:
            os.ftruncate(fd, child.entry.size)

    def _wrote(self, count: int) -> None:
        self._tally.read += count

    def _write(self, fd: int, data: bytes | memoryview) -> None:
        self._wrote(len(data))
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]

    def _link(self, current: _Open, entry: Entry, path: tuple[bytes, ...]) -> bool:
        """Make another name of a file restored before, if this entry is one."""
        first = self._links.get(entry.extra.link) if entry.extra.link is not None else None
        if first is None:
            return False
        source = open_below(self._top, first[0][:-1])
        try:
            _link_to(first, source, entry.name, current.fd)
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EXDEV}:
                raise
            self._warn(path, f"is a copy instead of a hard link: {error.strerror}")
            return False
        finally:
            os.close(source)
        return True

    def _attributes(self, made: _Made, current: _Open, child: Child) -> None:
        """Set the metadata of what was made."""
        entry = child.entry
        path = (*current.path, entry.name)
        if self._needs_no_name(current, entry) and not made.nameless:
            entry = without_privileges(entry)
            self._warn(
                path,
                "set-id bits and capabilities are left out: its directory belongs to another user, and its "
                "file system cannot make a file that has no name yet (O_TMPFILE)",
            )
        file = made.fd if entry.is_file or entry.is_dir else path_of(made.fd)
        set_all = replace_attributes if current.inherited else set_attributes
        set_all(file, entry, child.owners, self._ownership, lambda reason: self._warn(path, reason))

    def _warn(self, path: tuple[bytes, ...], reason: str) -> None:
        self.report.warnings.append((b"/".join(path), reason))

    def _unmade(self, path: tuple[bytes, ...], reason: str) -> None:
        self.report.unmade.append((b"/".join(path), reason))
        self._warn(path, reason)

    def _damage(self, path: tuple[bytes, ...], error: DamageError) -> None:
        self.report.damaged.append((b"/".join(path) or b".", str(error)))


def _link_to(first: Link, source: int, name: bytes, target: int) -> None:
    """Make another name of a file whose first name is in the directory open as `source`. Raises OSError."""
    (*_, old), ids = first
    held = open_entry(source, old)
    try:
        info = os.fstat(held)
        if ids != (info.st_dev, info.st_ino):
            error = OSError(errno.ESTALE, REPLACED)
        else:
            # Whatever has the old name by now, the link is to the file that was looked at.
            os.link(path_of(held), name, dst_dir_fd=target)
            return
    finally:
        os.close(held)
    raise error


def _open_nameless(folder: int) -> int:
    """Make a file that has no name yet, in an open directory; -1 where its file system cannot."""
    try:
        return os.open(b".", _NAMELESS, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno not in _NO_NAMELESS:
            raise
        return -1


def open_destination(path: str | bytes) -> int:
    """Open the directory to restore into; make it if it does not exist. Raises UsageError."""
    shown = os.fsdecode(path)
    try:
        with locate(path, make=True) as found:
            try:
                fd = make_directory(found.name, found.folder)
                # A default ACL of the parent is the parent's, not the restored directory's.
                drop_inherited(fd)
            except FileExistsError:
                fd = found.open_directory()
    except OSError as error:
        raise UsageError(f"cannot restore into {shown}: {error.strerror}") from None
    return fd


def restore_directory(
    reader: StreamReader, top: int, child: Child, ownership: Ownership, tally: Progress
) -> Report:
    """Make the empty directory open as `top` the stored one `child`; say what could not be done."""
    writer = TreeWriter(reader, top, ownership, tally)
    writer.fill(child, top)
    warnings = writer.report.warnings
    drop_inherited(top)
    set_attributes(top, child.entry, child.owners, ownership, lambda r: warnings.append((b".", r)))
    return writer.report


def restore_file(
    reader: StreamReader, top: int, name: bytes, child: Child, ownership: Ownership, tally: Progress
) -> Report:
    """Make the stored file `child`, which is no directory, as `name` in the directory `top`."""
    writer = TreeWriter(reader, top, ownership, tally)
    writer.make(top, (name,), named(child, name))
    return writer.report


def named(child: Child, name: bytes) -> Child:
    """Return a stored file under another name, which is the only one that it has."""
    extra = child.entry.extra
    if extra.link is not None:
        extra = msgspec.structs.replace(extra, link=None)
    return child._replace(entry=msgspec.structs.replace(child.entry, name=name, extra=extra))
