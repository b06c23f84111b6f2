"""The files of a directory that is scanned.

Small ones are read many at once, large ones as streams of their own, unless the last scan knows them.
"""

from __future__ import annotations

import errno
import os
import stat
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from castore.content.ref_tree import iter_chunks
from castore.content.scan.cache import is_racily_clean, summary_of
from castore.errors import CastoreError
from castore.fs.acl import acl_ids
from castore.fs.beneath import UnexpectedFileError, open_entry, open_regular, path_of
from castore.fs.metadata import data_extents, extra_of, group_name, read_xattrs, user_name
from castore.kernel.dir_entries import AS_LISTED, GIVEN, join_entries
from castore.kernel.dir_listing import (
    DISTRUST,
    ENTERED,
    HAS_CONTENT,
    HAS_XATTRS,
    PLAIN_FILE,
    REPEATED,
    entry_at,
    entry_bytes,
    listing_entry,
    name_at,
    places_of,
    read_files,
)
from castore.model.tree import Content, Entry, Owners, clamped_time, encode_entries, encode_owners

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.content.pipeline import Pipeline
    from castore.content.scan.cache import ScanCacheReader
    from castore.kernel.dir_listing import Listed, Record
    from castore.model.refs import Ref
    from castore.model.tree import Extra

_CONTENT: Final = (Content.NONE, Content.BUNDLE)
_CLAMPED: Final = "modification time out of range: stored as the nearest possible one, in"
_CHANGED: Final = "changed while being read; what was read is kept"
SMALL: Final = 1 << 16
_FILES_AT_ONCE: Final = 1024

# Marks of entries in a scan cache, beside ENTERED.
_OWN: Final = 2
"""A file with a stream of its own."""
_XATTRS: Final = 4
_SPARSE: Final = 8
_BUNDLED: Final = 16
_DOUBTFUL: Final = 32
"""A file that was not read as it was listed."""


@dataclass
class Scanned:
    """A directory being scanned."""

    fd: int
    path: bytes
    """Relative to the tree's top; empty for the top itself."""
    close: Callable[[Ref], None]
    """Takes its reference, once it is stored."""
    entries: dict[int, Entry] = field(default_factory=dict)
    """By position in the listing; not those of plain files that are as listed."""
    take: bytearray = field(default_factory=bytearray)
    """How each name of the listing is taken."""
    subdirectories: list[int] = field(default_factory=list)
    """Positions of those still to be entered, the first one last."""
    bundle: Ref | None = None
    files: list[Ref] = field(default_factory=list)
    directories: list[Ref] = field(default_factory=list)
    kept: list[Ref] | None = None
    """All references but those of directories, where its own listing is as it was."""
    ids: tuple[int, int] = (0, 0)
    time: int = 0
    """When it was listed."""
    listing: bytes = b""
    places: array[int] = field(default_factory=lambda: array("Q"))
    """Of the names in the listing."""
    marks: bytearray = field(default_factory=bytearray)
    distrust: bool = False
    linked: bool = False
    """Whether it, or a directory below it, has a file of several names."""
    at: int = -1
    """Of its record in the new scan cache."""
    moved: bool = False
    """Whether that is of elsewhere."""
    below: dict[bytes, int] = field(default_factory=dict)
    """Where the records of its subdirectories are in the old one."""
    kinds: bytes = b""
    """What the names of the listing are."""
    count: int = 0
    """Of entries, in it and below."""
    size: int = 0
    """Of content, in it and below."""
    chunks: int = 0
    """References to chunks that had been made when it was begun."""

    def listed(self, position: int) -> Listed:
        """Return what the listing tells of a name."""
        return entry_at(self.listing, self.places[position])

    def encoded(self) -> bytes:
        """Return its entries, with their owners, as they are stored."""
        given = encode_entries(entry for _, entry in sorted(self.entries.items()))
        for position in self.entries:
            self.take[position] = GIVEN
        entries, ids = join_entries(self.listing, self.places, bytes(self.take), given)
        uids, gids = {uid for uid, _ in ids}, {gid for _, gid in ids}
        for entry in self.entries.values():
            named = acl_ids(entry.extra.xattrs)
            uids |= {entry.uid, *named[0]}
            gids |= {entry.gid, *named[1]}
        self.entries.clear()
        users = {uid: name for uid in sorted(uids) if (name := user_name(uid))}
        groups = {gid: name for gid in sorted(gids) if (name := group_name(gid))}
        return encode_owners(Owners(users=users, groups=groups)) + entries


class FileScanner:
    """Takes the files of directories that are scanned, with what they hold."""

    def __init__(self, ingest: Pipeline, device: int, old: ScanCacheReader | None) -> None:
        self.device = device
        """The one that the tree's top is on."""
        self._ingest = ingest
        self._tally = ingest.tally
        self._old = old
        self._links: dict[tuple[int, int], _Linked] = {}

    def special(self, directory: Scanned, position: int) -> None:
        """Take what has no content of its own: a link, fifo, socket, device, a directory left empty."""
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

    def small_files(self, directory: Scanned, small: list[int], large: list[int]) -> int:
        """Read small files into the bundle; return how many bytes. Those that have grown join `large`.

        small, large: positions. Of one that is plain and read as it was listed, no entry is made here.
        """
        bundled = 0
        ingest = self._ingest
        places = directory.places
        while small:
            room = ingest.room(SMALL)
            some = small[:_FILES_AT_ONCE]
            offsets = [places[position] for position in some]
            done, has, size = read_files(directory.fd, directory.listing, offsets, room)
            for position, what in zip(some[:done], has, strict=True):
                if what & HAS_XATTRS or directory.kinds[position] != PLAIN_FILE:
                    self._as_listed(directory, position, attributed=bool(what & HAS_XATTRS))
                else:
                    directory.take[position] = AS_LISTED
                    if what & HAS_CONTENT:
                        directory.marks[position] |= _BUNDLED
            ingest.filled(size)
            bundled += size
            small = small[done:]
            if small and done < len(some):
                entry = directory.listed(small[0])
                if entry.size > len(room) - size:
                    continue  # it is the next one's first
                # It is not as it was listed.
                position = small.pop(0)
                count = self._small_file(directory, position, entry.name)
                if count is None:
                    large.append(position)
                else:
                    bundled += count
        directory.size += bundled
        return bundled

    def _as_listed(self, directory: Scanned, position: int, *, attributed: bool) -> None:
        """Take a small file that was read as it was listed, and is not plain, or may not be."""
        entry = directory.listed(position)
        xattrs = self.xattrs_of(directory, position, entry) if attributed else ()
        self._bundle(directory, position, entry, entry.size, xattrs)

    def xattrs(
        self, directory: Scanned, position: int, file: int | bytes, name: bytes
    ) -> tuple[tuple[bytes, bytes], ...]:
        """Return the attributes of an entry; those that cannot be read are reported, and left out.

        file: a descriptor of it, or `path_of` one that was opened with O_PATH.
        """
        failed: list[str] = []
        found = read_xattrs(file, failed.append)
        for reason in failed:
            self.doubt(directory, reason, name)
        if (found or failed) and directory.marks:
            # The next scan looks at them, though the file is as it was.
            directory.marks[position] |= _XATTRS
        return found

    def xattrs_of(
        self, directory: Scanned, position: int, entry: Listed
    ) -> tuple[tuple[bytes, bytes], ...]:
        """Return the attributes of an entry that is not open, not those of a file that took its place."""
        try:
            held = _open_listed(directory, entry)
        except OSError as error:
            self.warn(directory, entry.name, error)
            return ()
        try:
            return self.xattrs(directory, position, path_of(held), entry.name)
        finally:
            os.close(held)

    def _bundle(
        self,
        directory: Scanned,
        position: int,
        entry: Listed,
        size: int,
        xattrs: tuple[tuple[bytes, bytes], ...],
    ) -> None:
        extra = extra_of(entry, self.device, xattrs)
        self.add(directory, position, entry, _CONTENT[size > 0], size=size, extra=extra)
        directory.marks[position] |= _BUNDLED if size else 0

    def _small_file(self, directory: Scanned, position: int, name: bytes) -> int | None:
        """Read one file into the bundle; return how many bytes, or None if it is not small after all."""
        fd = self._open(directory, name)
        if fd < 0:
            return 0
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                self.doubt(directory, "was replaced while being read", name)
                return 0
            if info.st_size > SMALL:
                return None
            room = self._ingest.room(SMALL)
            count = _read_up_to(fd, room[: info.st_size or SMALL])
            if not info.st_size and count == SMALL:
                self.doubt(directory, "cannot be read: its file system gives no size, and it is large", name)
                return 0
            after = os.fstat(fd)
            xattrs = self.xattrs(directory, position, fd, name)
        except OSError as error:
            self.warn(directory, name, error)
            return 0
        finally:
            os.close(fd)
        self._ingest.filled(count)
        directory.distrust |= count != after.st_size
        # A file system that gives no size, such as proc, says 0.
        if (after.st_size and count != after.st_size) or _stamp(info) != _stamp(after):
            self.doubt(directory, _CHANGED, name)
        self._bundle(directory, position, listing_entry(name, after), count, xattrs)
        return count

    def known(self, directory: Scanned, position: int, mark: int, ref: Ref) -> bool:
        """Take a large file that is as the last scan read it; say whether that was possible."""
        entry = directory.listed(position)
        extents = None
        try:
            if mark & _SPARSE:
                fd = open_regular(directory.fd, entry.name)
                try:
                    extents = data_extents(fd, entry.size, entry.blocks)
                finally:
                    os.close(fd)
            found = [] if self._old is None else [one for _, one in iter_chunks(self._old.store, ref)]
            if self._old is None or not self._old.has(found):
                return False
        except (OSError, CastoreError):
            return False
        if sum(length for _, length in extents or ((0, entry.size),)) != ref.size:
            return False
        directory.marks[position] = mark
        xattrs = self.xattrs_of(directory, position, entry) if mark & _XATTRS else ()
        directory.size += ref.size
        self._tally.read += ref.size

        def join() -> None:
            directory.files.append(ref)
            self._tally.chunks += len(found)

        self._ingest.after(join)
        extra = extra_of(entry, self.device, xattrs, extents=extents)
        self.add(directory, position, entry, Content.OWN, size=entry.size, extra=extra)
        return True

    def large_file(self, directory: Scanned, position: int) -> None:
        """Read a file into a stream of its own."""
        name = name_at(directory.listing, directory.places[position])
        fd = self._open(directory, name)
        if fd < 0:
            return
        try:
            info = os.fstat(fd)
            key = (info.st_dev, info.st_ino)
            linked = self._links.get(key) if info.st_nlink > 1 else None
            again = linked is not None and linked.stamp == _stamp(info)
            if linked is None or not again:
                linked = self._read_large(directory, position, name, fd, info)
                if info.st_nlink > 1:
                    self._links[key] = linked
            xattrs = self.xattrs(directory, position, fd, name)
        except OSError as error:
            self.warn(directory, name, error)
            return
        finally:
            os.close(fd)
        # The stream's reference may still be on its way: it joins when its turn has come.
        taken = linked
        if taken.stored:

            def join() -> None:
                directory.files.append(taken.ref())
                if again:
                    self._tally.chunks += taken.chunks

            self._ingest.after(join)
        if again:
            self._tally.read += taken.stored  # each name counts
        content = Content.OWN if taken.stored else Content.NONE
        entry = listing_entry(name, info)
        extra = extra_of(entry, self.device, xattrs, extents=linked.extents)
        self.add(directory, position, entry, content, size=taken.size, extra=extra)
        directory.size += taken.stored
        directory.marks[position] |= (
            (_OWN if taken.stored else 0) | (_SPARSE if linked.extents is not None else 0)
        )

    def _read_large(
        self, directory: Scanned, position: int, name: bytes, fd: int, info: os.stat_result
    ) -> _Linked:
        extents = data_extents(fd, info.st_size, info.st_blocks)
        linked = _Linked(_stamp(info), info.st_size, None)
        self._ingest.after(lambda: linked.begin(self._tally.chunks))
        whole = extents if extents is not None else ((0, info.st_size),)
        taken: list[tuple[int, int]] = []
        read_before = self._tally.read
        try:
            for offset, length in whole:
                count = self._read_extent(fd, offset, length)
                if count:
                    taken.append((offset, count))
                    linked.stored += count
                if count < length:
                    break
        except OSError:
            self._ingest.drop_stream()
            self._tally.read = read_before
            raise
        if linked.stored:
            self._ingest.end_stream(lambda ref: linked.end(ref, self._tally.chunks))
        after = os.fstat(fd)
        if _stamp(after) != linked.stamp or sum(length for _, length in whole) != linked.stored:
            self.doubt(directory, _CHANGED, name)
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

    def _open(self, directory: Scanned, name: bytes) -> int:
        try:
            return open_regular(directory.fd, name)
        except OSError as error:
            self.warn(directory, name, error)
            return -1

    def warn(self, directory: Scanned, name: bytes, error: OSError) -> None:
        """Report a file that cannot be taken."""
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
        """Warn, and have the next scan look at this directory again."""
        directory.distrust = True
        path = joined(directory.path, name) if name else directory.path
        self._tally.warn(path or b".", reason)

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
        """Make the entry. A directory's own entry may be given before what is in it is read."""
        name, _, _, _, time, _, _, _, mode, uid, gid, _, _, _ = entry
        mtime = clamped_time(time)
        if mtime != time:
            self.doubt(directory, f"{_CLAMPED} {'1677' if time < 0 else '2554'}", name)
        directory.entries[position] = Entry(
            name, mode >> 12, mode & 0o7777, uid, gid, mtime, size, content, extra
        )

    def streams(self, record: Record | None) -> dict[bytes, tuple[bytes, int, Ref]]:
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
        since = summary_of(record).time
        return {
            name_at(record.listing, place): (entry_bytes(record.listing, place), mark, ref)
            for (place, mark), ref in zip(large, refs[first:], strict=False)
            if not mark & _DOUBTFUL and not is_racily_clean(entry_at(record.listing, place).ctime_ns, since)
        }


def _open_listed(directory: Scanned, entry: Listed) -> int:
    """Open an entry with O_PATH. Raises OSError if it is not the file that was listed."""
    held = open_entry(directory.fd, entry.name)
    info = os.fstat(held)
    if (info.st_dev, info.st_ino, info.st_mode) == (entry.dev, entry.ino, entry.mode):
        return held
    os.close(held)
    raise UnexpectedFileError(errno.ESTALE, "it was replaced")


def without_xattrs(record: Record, listing: bytes) -> set[bytes]:
    """Return the names in a listing that are as a record has them, and had no attributes then."""
    return _as_before(record, listing, but=_XATTRS | ENTERED)


def unchanged(record: Record, listing: bytes) -> set[bytes]:
    """Return the names in a listing of files whose content was read as it is for a record."""
    return _as_before(record, listing, but=_DOUBTFUL | ENTERED)


def _as_before(record: Record, listing: bytes, *, but: int) -> set[bytes]:
    """Return the names of files in a listing that are as a record has them, without one of these marks."""
    if record.flags & DISTRUST:
        return set()
    before = {
        entry_bytes(record.listing, place)
        for place, mark in zip(places_of(record.listing), record.marks, strict=True)
        if mark & (_BUNDLED | _OWN) and not mark & but
    }
    places = places_of(listing)
    return {name_at(listing, at) for at in places if entry_bytes(listing, at) in before}


@dataclass
class _Linked:
    """What was read of a large file, kept for its other names."""

    stamp: tuple[int, int, int]
    size: int
    extents: tuple[tuple[int, int], ...] | None
    stored: int = 0
    chunks: int = 0
    """References to chunks."""
    refs: list[Ref | None] = field(default_factory=list)

    def begin(self, chunks: int) -> None:
        """Take note of how many references were made before it."""
        self.chunks = -chunks

    def end(self, ref: Ref | None, chunks: int) -> None:
        """Take its stream, and how many there are now."""
        self.refs.append(ref)
        self.chunks += chunks

    def ref(self) -> Ref:
        """The stream, once it is stored."""
        (ref,) = self.refs
        if ref is None:
            raise AssertionError("a stream of some bytes has a reference")
        return ref


def _stamp(info: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file is written to."""
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns


def joined(path: bytes, name: bytes) -> bytes:
    """Return the path of a name in the directory at `path`, which is empty for the top."""
    return path + b"/" + name if path else name


def _read_up_to(fd: int, room: memoryview) -> int:
    done = 0
    while done < len(room) and (count := os.readv(fd, [room[done:]])):
        done += count
    return done
