"""A live directory tree into a store.

Everything is opened relative to the descriptor of its directory, never by path: paths may be longer
than PATH_MAX, and a parent renamed meanwhile cannot lead elsewhere. A tree is walked depth first,
in the order of names; of each directory first the small files are read, into one stream (its bundle),
then the large ones, then its subdirectories. A file that vanishes, cannot be read or changes while
it is read is a warning, and the scan goes on.

What the last scan saw is compared first: a subtree that is as it was is not walked, a directory whose
own listing is as it was keeps all but its subdirectories, and of a directory that has changed the large
files that are as they were keep their streams.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from castore.content.exclude import CACHE_TAG
from castore.content.lists import iter_chunks
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
from castore.content.scancache import LINKED, Told, is_racy, told_of
from castore.errors import CastoreError, UsageError
from castore.kernel.files import (
    DISTRUST,
    ENTERED,
    entries_of,
    entry_at,
    list_directory,
    listed_of,
    name_at,
    places_of,
    raw_at,
    read_files,
)
from castore.model.tree import (
    NO_EXTRA,
    ROOT_NAME,
    Content,
    Entry,
    Owners,
    encode_entries,
    encode_owners,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.content.exclude import Exclude
    from castore.content.ingest import Ingest
    from castore.content.scancache import NewScan, OldScan
    from castore.kernel.files import Listed, Record
    from castore.model.refs import Ref
    from castore.model.tree import Extra

_OPEN_DIR: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CONTENT: Final = (Content.NONE, Content.BUNDLE)
_CHANGED: Final = "changed while being read; what was read is kept"
_SMALL: Final = 1 << 16
_FILES_AT_ONCE: Final = 1024

# Marks of entries in a scan cache, beside ENTERED.
_OWN: Final = 2
"""A file with a stream of its own."""
_XATTRS: Final = 4
_SPARSE: Final = 8
_BUNDLED: Final = 16
_DOUBTFUL: Final = 32
"""A file that was not read as it was listed."""


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

    def digest(self) -> bytes:
        """Return what tells these rules from others."""
        patterns = self.exclude.patterns if self.exclude is not None else ()
        rules = (patterns, self.one_file_system, self.exclude_caches, sorted(self.leave_out), _SMALL)
        return blake3(repr(rules).encode("utf-8", "surrogateescape")).digest()


@dataclass
class _Directory:
    """A directory under way."""

    fd: int
    path: bytes
    """Relative to the tree's top; empty for the top itself."""
    close: Callable[[Ref], None]
    """Takes its reference, once it is stored."""
    entries: dict[bytes, Entry] = field(default_factory=dict)
    subdirectories: list[tuple[int, Listed]] = field(default_factory=list)
    """Those still to be entered, the first one last, with their positions in the listing."""
    users: dict[int, str] = field(default_factory=dict)
    groups: dict[int, str] = field(default_factory=dict)
    bundle: Ref | None = None
    files: list[Ref] = field(default_factory=list)
    directories: list[Ref] = field(default_factory=list)
    kept: list[Ref] | None = None
    """All references but those of directories, where its own listing is as it was."""
    ids: tuple[int, int] = (0, 0)
    time: int = 0
    """When it was listed."""
    listing: bytes = b""
    marks: bytearray = field(default_factory=bytearray)
    distrust: bool = False
    linked: bool = False
    """Whether it, or a directory below it, has a file of several names."""
    at: int = -1
    """Of its record in the new scan cache."""
    below: dict[bytes, int] = field(default_factory=dict)
    """Where the records of its subdirectories are in the old one."""
    count: int = 0
    """Of entries, in it and below."""
    size: int = 0
    """Of content, in it and below."""
    chunks: int = 0
    """References to chunks that had been made when it was begun."""


def store_tree(
    ingest: Ingest,
    path: str | bytes,
    rules: ScanRules,
    done: Callable[[Ref], None],
    new: NewScan,
    old: OldScan | None,
) -> None:
    """Feed the tree at `path`; `done` is given its root once all of it is stored.

    new: takes what the next scan is to know; old: what the last one saw. What is missing or doubtful
    in the tree is told in the tally's warnings. Raises UsageError if `path` is not a directory that
    can be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot read the tree {os.fsdecode(path)}: {error.strerror}") from None
    _allow_descriptors()
    _Scanner(ingest, rules, os.fstat(fd).st_dev, new, old).run(fd, done)


def _allow_descriptors() -> None:
    """Raise the limit of open files as far as allowed: a level of a deep tree holds one open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Scanner:
    def __init__(
        self, ingest: Ingest, rules: ScanRules, device: int, new: NewScan, old: OldScan | None
    ) -> None:
        self._ingest = ingest
        self._tally = ingest.tally
        self._rules = rules
        self._device = device
        self._new = new
        self._old = old
        self._links: dict[tuple[int, int], _Linked] = {}

    def run(self, fd: int, done: Callable[[Ref], None]) -> None:
        """Walk the tree whose top is open as `fd`, without recursion: trees may be deep."""
        info = os.fstat(fd)

        def finish(root: Ref) -> None:
            self._new.finish(root, self._rules.digest())
            done(root)

        # The root holds one entry, the top directory itself, under the name that no file has.
        root = _Directory(-1, b"", finish)
        stack = [root]
        if self._old is not None:
            self._old.compare(fd)
        top = listed_of(ROOT_NAME, info)
        self._add(root, top, Content.OWN, extra=extra_of(top, 0, read_xattrs(fd)))
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
    ) -> _Directory:
        """Read a directory: its small files, then its large ones; leave its subdirectories."""
        directory = _Directory(fd, path, close, ids=ids, time=time.time_ns())
        try:
            directory.listing = list_directory(fd)
        except OSError as error:
            self._doubt(directory, f"cannot be listed: {error.strerror}")
        record = None
        if self._old is not None and old_at is not None:
            record = self._old.record(old_at)
            directory.below = self._old.below(record)
        if record is not None and self._keep(directory, record):
            return directory
        listed = entries_of(directory.listing)
        directory.marks = bytearray(len(listed))
        directory.at = self._new.begin(directory.listing, len(listed))
        last = max((entry.ctime_ns for entry in listed), default=0)
        directory.distrust |= is_racy(last, directory.time)
        directory.linked = any(entry.nlink > 1 and not stat.S_ISDIR(entry.mode) for entry in listed)
        self._ingest.after(lambda: setattr(directory, "chunks", self._tally.chunks))
        self._read(directory, listed, self._streams(record))
        return directory

    def _keep(self, directory: _Directory, record: Record) -> bool:
        """Take all of a directory but its subdirectories from the last scan, if it is as it was."""
        old = self._old
        if old is None or record.flags & DISTRUST or directory.distrust:
            return False
        if record.listing != directory.listing:
            return False
        try:
            refs = old.references(record)
        except CastoreError:
            return False
        told = told_of(record)
        below = [told_of(old.record(at)) for at in directory.below.values()]
        directory.kept = refs[: len(refs) - len(below)]
        directory.marks = bytearray(record.marks)
        directory.linked = bool(record.flags & LINKED)
        directory.time = told.time
        directory.at = self._new.begin(directory.listing, len(record.marks))
        places = enumerate(places_of(directory.listing)) if below else ()
        directory.subdirectories = [
            (position, entry_at(directory.listing, place))
            for position, place in places
            if record.marks[position] & ENTERED
        ][::-1]
        directory.count = told.files - sum(one.files for one in below)
        directory.size = told.size - sum(one.size for one in below)
        self._tally.files += directory.count
        self._tally.read += directory.size
        self._count_chunks(directory, told.chunks - sum(one.chunks for one in below))
        return True

    def _count_chunks(self, directory: _Directory, chunks: int) -> None:
        def count() -> None:
            directory.chunks = self._tally.chunks
            self._tally.chunks += chunks

        self._ingest.after(count)

    def _streams(self, record: Record | None) -> dict[bytes, tuple[bytes, int, Ref]]:
        """Return the large files that the last scan read of a directory: entry, mark, stream."""
        if record is None or self._old is None or not any(mark & _OWN for mark in record.marks):
            return {}
        try:
            refs = self._old.references(record)
        except CastoreError:
            return {}
        marked = zip(places_of(record.listing), record.marks, strict=True)
        large = [(place, mark) for place, mark in marked if mark & _OWN]
        first = 1 + any(mark & _BUNDLED for mark in record.marks)
        since = told_of(record).time
        return {
            name_at(record.listing, place): (raw_at(record.listing, place), mark, ref)
            for (place, mark), ref in zip(large, refs[first:], strict=False)
            if not mark & _DOUBTFUL and not is_racy(entry_at(record.listing, place).ctime_ns, since)
        }

    def _read(
        self,
        directory: _Directory,
        listed: list[Listed],
        streams: dict[bytes, tuple[bytes, int, Ref]],
    ) -> None:
        small = []
        large = []
        for position, entry in self._taken(directory, listed):
            kind = stat.S_IFMT(entry.mode)
            if kind == stat.S_IFDIR:
                directory.subdirectories.append((position, entry))
            elif kind != stat.S_IFREG:
                self._special(directory, entry)
            elif entry.size > _SMALL or entry.blocks * 512 < entry.size:
                large.append((position, entry))
            else:
                small.append((position, entry))
        bundled = self._small_files(directory, small, large)
        if bundled:
            self._ingest.end_stream(lambda ref: setattr(directory, "bundle", ref))
        for position, entry in sorted(large):
            raw, mark, ref = streams.get(entry.name, (b"", 0, None))
            same = ref is not None and raw == raw_at(directory.listing, entry.offset)
            if not (same and ref and self._known(directory, position, entry, mark, ref)):
                self._large_file(directory, position, entry.name)
        directory.subdirectories.reverse()

    def _taken(self, directory: _Directory, listed: list[Listed]) -> list[tuple[int, Listed]]:
        """Return the entries that are taken, with their positions."""
        found = list(enumerate(listed))
        if self._rules.exclude_caches and is_cache(directory.fd):
            found = [(position, entry) for position, entry in found if entry.name == CACHE_TAG]
        taken = found
        if self._rules.exclude is not None or any(entry.error for entry in listed):
            taken = self._allowed(directory, found)
        self._tally.files += len(taken)
        directory.count = len(taken)
        return taken

    def _allowed(
        self, directory: _Directory, found: list[tuple[int, Listed]]
    ) -> list[tuple[int, Listed]]:
        taken = []
        for position, entry in found:
            if entry.error:
                self._warn(directory, entry.name, OSError(entry.error, os.strerror(entry.error)))
            elif not self._excluded(directory, entry):
                taken.append((position, entry))
        return taken

    def _excluded(self, directory: _Directory, entry: Listed) -> bool:
        exclude = self._rules.exclude
        if exclude is None:
            return False
        return exclude.matches(_join(directory.path, entry.name), is_dir=stat.S_ISDIR(entry.mode))

    def _next_child(self, directory: _Directory) -> _Directory | None:
        """Enter the next subdirectory that is not as it was, if any is left."""
        while directory.subdirectories:
            position, entry = directory.subdirectories.pop()
            if self._left_empty(entry):
                self._special(directory, entry)
                continue
            at = self._record_of(directory, entry)
            if at is not None and self._same(directory, position, entry, at):
                continue
            try:
                child = self._enter(directory, position, entry, at)
            except OSError as error:
                self._warn(directory, entry.name, error)
                if directory.kept is not None and self._old is not None and at is not None:
                    # The entries that are kept name it, so it has to be there, as it was.
                    ref = told_of(self._old.record(at)).ref
                    self._ingest.after(partial(directory.directories.append, ref))
                    directory.marks[position] &= ~ENTERED
                continue
            return child
        return None

    def _record_of(self, directory: _Directory, entry: Listed) -> int | None:
        """Return the record of a subdirectory in the last scan, or of the one that was moved here."""
        if self._old is None:
            return None
        at = directory.below.get(entry.name)
        ids = (entry.dev, entry.ino)
        if at is not None and told_of(self._old.record(at)).ids == ids:
            return at
        return self._old.moved(ids)

    def _same(self, directory: _Directory, position: int, entry: Listed, at: int) -> bool:
        """Take a subdirectory from the last scan, with all below it, if it is as it was."""
        old, ingest = self._old, self._ingest
        if old is None or not old.is_same(at, directory.fd, entry.name):
            return False
        if directory.kept is None:
            try:
                xattrs = read_xattrs_at(directory.fd, entry.name)
            except OSError:
                return False
            self._add(directory, entry, Content.OWN, extra=extra_of(entry, self._device, xattrs))
        record = old.record(at)
        told = told_of(record)
        directory.marks[position] |= ENTERED
        directory.linked |= bool(record.flags & LINKED)
        directory.count += told.files
        directory.size += told.size
        self._new.copy(old, at)
        self._tally.files += told.files
        self._tally.read += told.size

        def join() -> None:
            directory.directories.append(told.ref)
            self._tally.chunks += told.chunks

        ingest.after(join)
        return True

    def _enter(
        self, directory: _Directory, position: int, entry: Listed, at: int | None
    ) -> _Directory:
        fd = os.open(entry.name, _OPEN_DIR, dir_fd=directory.fd)
        try:
            info = os.fstat(fd)
            if directory.kept is None:
                now = listed_of(entry.name, info)
                extra = extra_of(now, self._device, read_xattrs(fd))
                self._add(directory, now, Content.OWN, extra=extra)
        except OSError:
            os.close(fd)
            raise
        directory.marks[position] |= ENTERED
        path = _join(directory.path, entry.name)
        return self._begin(fd, path, directory.directories.append, (info.st_dev, info.st_ino), at)

    def _left_empty(self, entry: Listed) -> bool:
        if self._rules.one_file_system and entry.dev != self._device:
            return True
        return (entry.dev, entry.ino) in self._rules.leave_out

    def _finish(self, directory: _Directory) -> None:
        """Store a directory's entries, and after all that is in it the directory itself."""
        ingest, new = self._ingest, self._new
        length = new.end(directory.at) if directory.at >= 0 else 0
        flags = (DISTRUST if directory.distrust else 0) | (LINKED if directory.linked else 0)

        def close(refs: list[Ref]) -> None:
            ref = ingest.put_list(refs)
            if directory.at >= 0:
                chunks = self._tally.chunks - directory.chunks
                told = Told(directory.time, directory.count, directory.size, chunks, ref, directory.ids)
                new.tell(directory.at, length, told, directory.marks, flags, len(directory.listing))
            directory.close(ref)

        if directory.kept is not None:
            kept = directory.kept
            ingest.after(lambda: close([*kept, *directory.directories]))
        else:
            ingest.write(encode_owners(Owners(users=directory.users, groups=directory.groups)))
            ingest.write(encode_entries(directory.entries[name] for name in sorted(directory.entries)))
            directory.entries.clear()

            def end(entries: Ref | None) -> None:
                streams = [ref for ref in (entries, directory.bundle) if ref is not None]
                close([*streams, *directory.files, *directory.directories])

            ingest.end_stream(end)
        if directory.fd >= 0:
            os.close(directory.fd)
            directory.fd = -1

    def _special(self, directory: _Directory, entry: Listed) -> None:
        """Take what has no content of its own: a link, fifo, socket, device, a directory left empty."""
        target = b""
        try:
            if stat.S_ISLNK(entry.mode):
                target = os.readlink(entry.name, dir_fd=directory.fd)
            xattrs = read_xattrs_at(directory.fd, entry.name)
        except OSError as error:
            self._warn(directory, entry.name, error)
            return
        extra = extra_of(entry, self._device, xattrs, target=target)
        self._add(directory, entry, Content.NONE, extra=extra)

    def _small_files(
        self,
        directory: _Directory,
        small: list[tuple[int, Listed]],
        large: list[tuple[int, Listed]],
    ) -> int:
        """Read small files into the bundle; return how many bytes. Those that have grown join `large`."""
        bundled = 0
        ingest = self._ingest
        while small:
            room = ingest.room(_SMALL)
            some = small[:_FILES_AT_ONCE]
            offsets = [entry.offset for _, entry in some]
            done, has = read_files(directory.fd, directory.listing, offsets, room)
            size = 0
            for (position, entry), attributed in zip(some[:done], has, strict=True):
                xattrs: tuple[tuple[bytes, bytes], ...] = ()
                try:
                    if attributed:
                        xattrs = read_xattrs_at(directory.fd, entry.name)
                except OSError:
                    directory.distrust = True
                size += entry.size
                self._bundle(directory, position, entry, entry.size, xattrs)
            ingest.filled(size)
            bundled += size
            small = small[done:]
            if small and done < len(some) and small[0][1].size <= len(room) - size:
                # It is not as it was listed.
                position, entry = small.pop(0)
                count = self._small_file(directory, position, entry.name)
                if count is None:
                    large.append((position, entry))
                else:
                    bundled += count
        directory.size += bundled
        return bundled

    def _bundle(
        self,
        directory: _Directory,
        position: int,
        entry: Listed,
        size: int,
        xattrs: tuple[tuple[bytes, bytes], ...],
    ) -> None:
        plain = entry.nlink == 1 and not xattrs  # like most: there may be very many
        extra = NO_EXTRA if plain else extra_of(entry, self._device, xattrs)
        self._add(directory, entry, _CONTENT[size > 0], size=size, extra=extra)
        if size:
            directory.marks[position] |= _BUNDLED
        if xattrs:
            directory.marks[position] |= _XATTRS

    def _small_file(self, directory: _Directory, position: int, name: bytes) -> int | None:
        """Read one file into the bundle; return how many bytes, or None if it is not small after all."""
        fd = self._open(directory, name)
        if fd < 0:
            return 0
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                self._doubt(directory, "was replaced while being read", name)
                return 0
            if info.st_size > _SMALL:
                return None
            room = self._ingest.room(_SMALL)
            count = _read_up_to(fd, room[: info.st_size])
            after = os.fstat(fd)
            xattrs = read_xattrs(fd)
        except OSError as error:
            self._warn(directory, name, error)
            return 0
        finally:
            os.close(fd)
        self._ingest.filled(count)
        if count != after.st_size or _stamp(info) != _stamp(after):
            self._doubt(directory, _CHANGED, name)
        self._bundle(directory, position, listed_of(name, after), count, xattrs)
        return count

    def _known(
        self, directory: _Directory, position: int, entry: Listed, mark: int, ref: Ref
    ) -> bool:
        """Take a large file that is as the last scan read it; say whether that was possible."""
        extents = None
        xattrs: tuple[tuple[bytes, bytes], ...] = ()
        try:
            if mark & _XATTRS:
                xattrs = read_xattrs_at(directory.fd, entry.name)
            if mark & _SPARSE:
                fd = os.open(entry.name, OPEN_FILE, dir_fd=directory.fd)
                try:
                    extents = data_extents(fd, entry.size, entry.blocks)
                finally:
                    os.close(fd)
            chunks = sum(1 for _ in iter_chunks(self._old.store, ref)) if self._old is not None else 0
        except (OSError, CastoreError):
            return False
        if sum(length for _, length in extents or ((0, entry.size),)) != ref.size:
            return False
        directory.marks[position] = mark
        directory.size += ref.size
        self._tally.read += ref.size

        def join() -> None:
            directory.files.append(ref)
            self._tally.chunks += chunks

        self._ingest.after(join)
        extra = extra_of(entry, self._device, xattrs, extents=extents)
        self._add(directory, entry, Content.OWN, size=entry.size, extra=extra)
        return True

    def _large_file(self, directory: _Directory, position: int, name: bytes) -> None:
        """Read a file into a stream of its own."""
        fd = self._open(directory, name)
        if fd < 0:
            return
        try:
            info = os.fstat(fd)
            key = (info.st_dev, info.st_ino)
            linked = self._links.get(key) if info.st_nlink > 1 else None
            if linked is None or linked.stamp != _stamp(info):
                linked = self._read_large(directory, position, name, fd, info)
                if info.st_nlink > 1:
                    self._links[key] = linked
            xattrs = read_xattrs(fd)
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
        entry = listed_of(name, info)
        extra = extra_of(entry, self._device, xattrs, extents=linked.extents)
        self._add(directory, entry, content, size=taken.size, extra=extra)
        directory.size += taken.stored
        directory.marks[position] |= (
            (_OWN if taken.stored else 0)
            | (_XATTRS if xattrs else 0)
            | (_SPARSE if linked.extents is not None else 0)
        )

    def _read_large(
        self, directory: _Directory, position: int, name: bytes, fd: int, info: os.stat_result
    ) -> _Linked:
        extents = data_extents(fd, info.st_size, info.st_blocks)
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
            self._doubt(directory, _CHANGED, name)
            directory.marks[position] |= _DOUBTFUL
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
        self._doubt(directory, reason, name)

    def _doubt(self, directory: _Directory, reason: str, name: bytes = b"") -> None:
        """Warn, and have the next scan look at this directory again."""
        directory.distrust = True
        self._tally.warn(_join(directory.path, name) if name else directory.path, reason)

    def _add(
        self,
        directory: _Directory,
        entry: Listed,
        content: Content,
        *,
        size: int = 0,
        extra: Extra,
    ) -> None:
        """Make the entry. A directory's own entry may be given before what is in it is read."""
        name, _, _, _, mtime, _, _, _, mode, uid, gid, _, _, _ = entry
        directory.entries[name] = Entry(
            name, mode >> 12, mode & 0o7777, uid, gid, mtime, size, content, extra
        )
        if uid not in directory.users and (user := user_name(uid)):
            directory.users[uid] = user
        if gid not in directory.groups and (group := group_name(gid)):
            directory.groups[gid] = group


def without_xattrs(record: Record, listing: bytes) -> set[bytes]:
    """Return the names in a listing that are as a record has them, and had no attributes then."""
    if record.flags & DISTRUST:
        return set()
    before = {
        raw_at(record.listing, place)
        for place, mark in zip(places_of(record.listing), record.marks, strict=True)
        if mark & (_BUNDLED | _OWN) and not mark & (_XATTRS | ENTERED)
    }
    places = places_of(listing)
    return {name_at(listing, at) for at in places if raw_at(listing, at) in before}


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
