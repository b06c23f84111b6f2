"""A live directory tree into a store.

Everything is opened relative to the descriptor of its directory, never by path: paths may be longer
than PATH_MAX, and a parent renamed meanwhile cannot lead elsewhere. A tree is walked depth first,
in the order of names; of each directory first the small files are read, into one stream (its bundle),
then the large ones, then its subdirectories. A file that vanishes, cannot be read or changes while
it is read is a warning, and the scan goes on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from castore.content.exclude import CACHE_TAG
from castore.content.live import (
    OPEN_FILE,
    data_extents,
    extra_of,
    group_name,
    is_cache,
    read_xattrs,
    read_xattrs_at,
    user_name,
)
from castore.errors import UsageError
from castore.model.tree import (
    ROOT_NAME,
    Content,
    Entry,
    Extra,
    Owners,
    encode_entry,
    encode_owners,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.content.exclude import Exclude
    from castore.content.ingest import Ingest
    from castore.model.refs import Ref

_OPEN_DIR: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHANGED: Final = "changed while being read; what was read is kept"


@dataclass(frozen=True)
class ScanRules:
    """What of a tree is taken."""

    exclude: Exclude | None = None
    one_file_system: bool = False
    """Directories on other file systems than the top's are kept, empty."""
    exclude_caches: bool = False
    """Of directories with a valid CACHEDIR.TAG, only the tag is kept."""
    leave_out: frozenset[tuple[int, int]] = frozenset()
    """(device, inode) of directories kept empty: the store's own."""


@dataclass
class _Directory:
    """A directory under way."""

    fd: int
    path: bytes
    """Relative to the tree's top; empty for the top itself."""
    close: Callable[[Ref], None]
    """Takes its reference, once it is stored."""
    entries: dict[bytes, Entry] = field(default_factory=dict)
    subdirectories: list[tuple[bytes, os.stat_result]] = field(default_factory=list)
    users: dict[int, str] = field(default_factory=dict)
    groups: dict[int, str] = field(default_factory=dict)
    bundle: Ref | None = None
    files: list[Ref] = field(default_factory=list)
    directories: list[Ref] = field(default_factory=list)


def store_tree(
    ingest: Ingest, path: str | bytes, rules: ScanRules, done: Callable[[Ref], None]
) -> None:
    """Feed the tree at `path`; `done` is given its root once all of it is stored.

    What is missing or doubtful in it is told in the tally's warnings. Raises UsageError if `path`
    is not a directory that can be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot read the tree {os.fsdecode(path)}: {error.strerror}") from None
    _allow_descriptors()
    _Scanner(ingest, rules, os.fstat(fd).st_dev).run(fd, done)


def _allow_descriptors() -> None:
    """Raise the limit of open files as far as allowed: a level of a deep tree holds one open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Scanner:
    def __init__(self, ingest: Ingest, rules: ScanRules, device: int) -> None:
        self._ingest = ingest
        self._tally = ingest.tally
        self._rules = rules
        self._device = device
        self._small = 1 << 16
        self._links: dict[tuple[int, int], _Linked] = {}

    def run(self, fd: int, done: Callable[[Ref], None]) -> None:
        """Walk the tree whose top is open as `fd`, without recursion: trees may be deep."""
        root = _Directory(-1, b"", done)
        # The root holds one entry, the top directory itself, under the name that no file has.
        stack = [root]
        info = os.fstat(fd)
        self._add(root, ROOT_NAME, info, Content.OWN, extra=extra_of(info, 0, read_xattrs(fd)))
        stack.append(self._begin(fd, b"", root.directories.append))
        try:
            while stack:
                directory = stack[-1]
                child = self._next_child(directory)
                if child is not None:
                    stack.append(child)
                    continue
                self._finish(stack.pop())
        finally:
            for directory in stack:
                if directory.fd >= 0:
                    os.close(directory.fd)

    def _begin(self, fd: int, path: bytes, close: Callable[[Ref], None]) -> _Directory:
        """Read a directory: its small files, then its large ones; leave its subdirectories."""
        directory = _Directory(fd, path, close)
        large = []
        bundled = 0
        for name, info in self._listing(directory):
            kind = stat.S_IFMT(info.st_mode)
            if kind == stat.S_IFDIR:
                directory.subdirectories.append((name, info))
            elif kind != stat.S_IFREG:
                self._special(directory, name, info)
            elif (
                info.st_size > self._small
                or info.st_blocks * 512 < info.st_size
                or (count := self._small_file(directory, name)) is None
            ):
                large.append(name)
            else:
                bundled += count
        if bundled:
            self._ingest.end_stream(lambda ref: setattr(directory, "bundle", ref))
        for name in large:
            self._large_file(directory, name)
        directory.subdirectories.reverse()
        return directory

    def _listing(self, directory: _Directory) -> list[tuple[bytes, os.stat_result]]:
        """Return the names that are taken, in order, with what lstat says of them."""
        try:
            with os.scandir(directory.fd) as entries:
                found = sorted((os.fsencode(entry.name), entry) for entry in entries)
        except OSError as error:
            self._tally.warn(directory.path, f"cannot be listed: {error.strerror}")
            return []
        if self._rules.exclude_caches and is_cache(directory.fd):
            found = [(name, entry) for name, entry in found if name == CACHE_TAG]
        listing = []
        for name, entry in found:
            try:
                info = entry.stat(follow_symlinks=False)
            except OSError as error:
                self._warn(directory, name, error)
                continue
            if self._excluded(directory, name, info):
                continue
            listing.append((name, info))
            self._tally.files += 1
        return listing

    def _excluded(self, directory: _Directory, name: bytes, info: os.stat_result) -> bool:
        exclude = self._rules.exclude
        if exclude is None:
            return False
        return exclude.matches(_join(directory.path, name), is_dir=stat.S_ISDIR(info.st_mode))

    def _next_child(self, directory: _Directory) -> _Directory | None:
        """Enter the next subdirectory, if any is left."""
        while directory.subdirectories:
            name, info = directory.subdirectories.pop()
            path = _join(directory.path, name)
            if self._left_empty(info):
                self._special(directory, name, info)
                continue
            try:
                fd = os.open(name, _OPEN_DIR, dir_fd=directory.fd)
            except OSError as error:
                self._warn(directory, name, error)
                continue
            try:
                info = os.fstat(fd)
                extra = extra_of(info, self._device, read_xattrs(fd))
            except OSError as error:
                os.close(fd)
                self._warn(directory, name, error)
                continue
            self._add(directory, name, info, Content.OWN, extra=extra)
            return self._begin(fd, path, directory.directories.append)
        return None

    def _left_empty(self, info: os.stat_result) -> bool:
        if self._rules.one_file_system and info.st_dev != self._device:
            return True
        return (info.st_dev, info.st_ino) in self._rules.leave_out

    def _finish(self, directory: _Directory) -> None:
        """Store a directory's entries, and after all that is in it the directory itself."""
        ingest = self._ingest
        ingest.write(encode_owners(Owners(users=directory.users, groups=directory.groups)))
        for name in sorted(directory.entries):
            ingest.write(encode_entry(directory.entries[name]))
        directory.entries.clear()

        def close(entries: Ref | None) -> None:
            streams = [entries, directory.bundle]
            refs = [ref for ref in streams if ref is not None]
            directory.close(ingest.put_list([*refs, *directory.files, *directory.directories]))

        ingest.end_stream(close)
        if directory.fd >= 0:
            os.close(directory.fd)
            directory.fd = -1

    def _special(self, directory: _Directory, name: bytes, info: os.stat_result) -> None:
        """Take what has no content of its own: a link, fifo, socket, device, a directory left empty."""
        target = b""
        try:
            if stat.S_ISLNK(info.st_mode):
                target = os.readlink(name, dir_fd=directory.fd)
            xattrs = read_xattrs_at(directory.fd, name)
        except OSError as error:
            self._warn(directory, name, error)
            return
        extra = extra_of(info, self._device, xattrs, target=target)
        self._add(directory, name, info, Content.NONE, extra=extra)

    def _small_file(self, directory: _Directory, name: bytes) -> int | None:
        """Read a file into the bundle; return how many bytes, or None if it is not small after all."""
        fd = self._open(directory, name)
        if fd < 0:
            return 0
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                self._tally.warn(_join(directory.path, name), "was replaced while being read")
                return 0
            if info.st_size > self._small:
                return None
            room = self._ingest.room(self._small)
            count = _read_up_to(fd, room[: info.st_size])
            after = os.fstat(fd)
            extra = extra_of(after, self._device, read_xattrs(fd))
        except OSError as error:
            self._warn(directory, name, error)
            return 0
        finally:
            os.close(fd)
        self._ingest.filled(count)
        if count != after.st_size or _stamp(info) != _stamp(after):
            self._tally.warn(_join(directory.path, name), _CHANGED)
        content = Content.BUNDLE if count else Content.NONE
        self._add(directory, name, after, content, size=count, extra=extra)
        return count

    def _large_file(self, directory: _Directory, name: bytes) -> None:
        """Read a file into a stream of its own."""
        fd = self._open(directory, name)
        if fd < 0:
            return
        try:
            info = os.fstat(fd)
            key = (info.st_dev, info.st_ino)
            linked = self._links.get(key) if info.st_nlink > 1 else None
            if linked is None or linked.stamp != _stamp(info):
                linked = self._read_large(directory, name, fd, info)
                if info.st_nlink > 1:
                    self._links[key] = linked
            extra = extra_of(info, self._device, read_xattrs(fd), extents=linked.extents)
        except OSError as error:
            self._warn(directory, name, error)
            return
        finally:
            os.close(fd)
        # The stream's reference may still be on its way: it joins when its turn has come.
        taken = linked
        if taken.stored:
            self._ingest.after(lambda: directory.files.append(taken.ref()))
        content = Content.OWN if taken.stored else Content.NONE
        self._add(directory, name, info, content, size=taken.size, extra=extra)

    def _read_large(
        self, directory: _Directory, name: bytes, fd: int, info: os.stat_result
    ) -> _Linked:
        extents = data_extents(fd, info)
        linked = _Linked(_stamp(info), info.st_size, None)
        whole = extents if extents is not None else ((0, info.st_size),)
        taken: list[tuple[int, int]] = []
        try:
            for offset, length in whole:
                count = self._read_extent(fd, offset, length)
                if count:
                    taken.append((offset, count))
                    linked.stored += count
                if count < length:
                    break
        except OSError:
            # What was fed of it stays a stream of its own, which nothing refers to.
            if linked.stored:
                self._ingest.end_stream(lambda _: None)
            raise
        if linked.stored:
            self._ingest.end_stream(linked.refs.append)
        after = os.fstat(fd)
        if _stamp(after) != linked.stamp or sum(length for _, length in whole) != linked.stored:
            self._tally.warn(_join(directory.path, name), _CHANGED)
        if extents is None:
            linked.size = linked.stored
        else:
            linked.extents = tuple(taken)
        return linked

    def _read_extent(self, fd: int, offset: int, length: int) -> int:
        done = 0
        while done < length:
            room = self._ingest.room()
            count = os.preadv(fd, [room[: length - done]], offset + done)
            if count == 0:
                break
            self._ingest.filled(count)
            done += count
        return done

    def _open(self, directory: _Directory, name: bytes) -> int:
        try:
            return os.open(name, OPEN_FILE, dir_fd=directory.fd)
        except OSError as error:
            self._warn(directory, name, error)
            return -1

    def _warn(self, directory: _Directory, name: bytes, error: OSError) -> None:
        reason = (
            "vanished while being scanned"
            if error.errno == errno.ENOENT
            else f"cannot be read: {error.strerror}"
        )
        self._tally.warn(_join(directory.path, name), reason)

    def _add(
        self,
        directory: _Directory,
        name: bytes,
        info: os.stat_result,
        content: Content,
        *,
        size: int = 0,
        extra: Extra,
    ) -> None:
        """Make the entry. A directory's own entry may be given before what is in it is read."""
        directory.entries[name] = Entry(
            name,
            info.st_mode >> 12,
            info.st_mode & 0o7777,
            info.st_uid,
            info.st_gid,
            info.st_mtime_ns,
            size,
            content,
            extra,
        )
        if info.st_uid not in directory.users and (user := user_name(info.st_uid)):
            directory.users[info.st_uid] = user
        if info.st_gid not in directory.groups and (group := group_name(info.st_gid)):
            directory.groups[info.st_gid] = group


@dataclass
class _Linked:
    """What was read of a large file, kept for its other names."""

    stamp: tuple[int, int, int]
    size: int
    extents: tuple[tuple[int, int], ...] | None
    stored: int = 0
    refs: list[Ref | None] = field(default_factory=list)

    def ref(self) -> Ref:
        """The stream, once it is stored."""
        (ref,) = self.refs
        if ref is None:
            raise AssertionError("a stream of some bytes has a reference")
        return ref


def _stamp(info: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file is written to."""
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _read_up_to(fd: int, room: memoryview) -> int:
    done = 0
    while done < len(room) and (count := os.readv(fd, [room[done:]])):
        done += count
    return done
