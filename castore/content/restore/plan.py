"""Compare a live directory with a stored tree and plan the steps that make them equal."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from castore.content.restore.large_files import holds_content
from castore.content.restore.metadata import Ownership, is_privileged
from castore.content.scan.cache import LINKED, summary_of
from castore.content.scan.marks import unchanged, without_xattrs
from castore.content.scan.rules import ScanRules
from castore.content.stored_dirs import Child, check_content, open_directory
from castore.content.streams import RangeReader
from castore.errors import CastoreError, UsageError
from castore.fs.beneath import OPEN_DIRECTORY, open_regular, open_top
from castore.fs.metadata import allow_descriptors, is_cache, mounts_below, read_xattrs_at
from castore.kernel.dir_listing import entries_of, list_directory, listing_entry
from castore.model.trampoline import run
from castore.model.tree import Content, clamped_time

if TYPE_CHECKING:
    from collections.abc import Generator
    from collections.abc import Set as AbstractSet

    from castore.content.restore.tree_writer import Link
    from castore.content.restore.undo_journal import Action, Ids, Path
    from castore.content.scan.cache import ScanCacheReader
    from castore.content.streams import StreamReader
    from castore.kernel.dir_listing import Listed
    from castore.model.refs import Ref


@dataclass(frozen=True)
class Step:
    """One thing to do."""

    action: Action
    path: Path
    """Below the top; empty for the top itself."""
    child: Child | None = None
    """What is to be there; None to remove."""
    removed: int = 0
    """How many live files and directories go."""
    ids: Ids | None = None
    """Device and inode of the live file that was compared; None: there was none."""
    keep_attributes: bool = False
    """Of what is changed in place, keep the attributes that are not stored: there may be no copy of them."""

    @property
    def size(self) -> int:
        """Bytes of content to write."""
        if self.child is None or self.action == "metadata":
            return 0
        return self.child.ref.size if self.child.entry.is_dir and self.child.ref else self.child.entry.size


@dataclass(frozen=True)
class TreePlan:
    """How a live directory becomes a stored one."""

    top: str
    steps: tuple[Step, ...]
    kept_links: dict[tuple[int, int], Link]
    """Of files with several names that stay: one name of each."""
    skipped: tuple[tuple[bytes, str], ...] = ()
    """(path, reason) of what is left alone because there may be no copy of it."""
    one_file: bool = False
    """Whether it is about one file in the directory `top`, which has to change in one step."""
    crosses: bool = False
    """Whether a step is on another file system, mounted below the top."""
    empties: bool = False
    """Whether the stored directory is empty."""
    ids: Ids | None = None
    """Device and inode of `top`."""

    @property
    def summary(self) -> tuple[int, int, int]:
        """How many entries are added, how many changed, and how many live ones are removed."""
        actions = [step.action for step in self.steps if step.path or step.action != "metadata"]
        removed = sum(step.removed for step in self.steps if step.action == "remove")
        return actions.count("create"), actions.count("replace") + actions.count("metadata"), removed


@dataclass(frozen=True)
class Comparison:
    """How a live tree is compared with a stored one.

    A regular file of another size or time is different.
    """

    changed: AbstractSet[bytes] = frozenset()
    """Paths of files that count as different, regardless of size and time."""
    checksum: bool = False
    """Compare also the content of files of the same size and time, unless `scan` says that it is the same."""
    rules: ScanRules = field(default_factory=ScanRules)
    """What snapshots leave out is left alone."""
    apart: AbstractSet[bytes] = frozenset()
    """Paths below the top that are left alone, stored or not: what other parts keep in this tree."""
    unread: AbstractSet[bytes] = frozenset()
    """Paths below the top that a snapshot could not read: they and all below them are left alone."""
    unread_attributes: AbstractSet[bytes] = frozenset()
    """Paths of which a snapshot could not read some attribute: none of theirs are removed."""
    below: bytes = b""
    """The path of the stored directory in its tree, which patterns are relative to."""
    scan: ScanCacheReader | None = None
    """What the last snapshot saw of the live tree: what is as it was then is not read again.

    It goes by inodes and ctimes, which no user can set.
    """


def plan_tree(
    reader: StreamReader, child: Child, top: str, ownership: Ownership, comparison: Comparison
) -> TreePlan:
    """Compare the directory `top` with the stored one and return what is to be done.

    Raises UsageError if `top` is no directory, CastoreError if an earlier run was interrupted there.
    """
    try:
        fd = open_top(top)
    except OSError as error:
        raise UsageError(f"cannot restore in place into {top}: {error.strerror}") from None
    allow_descriptors()
    planner = _Planner(reader, ownership, comparison, mounts_below(top))
    try:
        ids = ids_of(os.fstat(fd))
        if b"" in comparison.unread:
            return planner.nothing(top)
        run(planner.directory(fd, (), child, planner.top_record(fd)))
        steps = planner.steps
        if steps or planner.metadata_differs(fd, (), child, listing_entry(b".", os.fstat(fd))):
            steps.append(planner.metadata((), child, ids))
    except OSError as error:
        raise CastoreError(f"cannot compare {top}: {error}") from error
    finally:
        os.close(fd)
    return replace(planner.plan(top), empties=planner.empties, ids=ids)


def plan_entry(
    reader: StreamReader, child: Child, path: str, ownership: Ownership, *, checksum: bool = False
) -> TreePlan:
    """Compare the file at `path` with a stored one, which is no directory; `top` is its directory.

    Raises UsageError if there is no such directory, or if `path` is a directory.
    """
    top, name = os.path.split(path)
    try:
        fd = open_top(top)
    except OSError as error:
        raise UsageError(f"cannot restore into {top}: {error.strerror}") from None
    try:
        planner = _Planner(reader, ownership, Comparison(checksum=checksum), set())
        planner.file(fd, os.fsencode(name), child)
        ids = ids_of(os.fstat(fd))
    except OSError as error:
        raise UsageError(f"cannot compare {path}: {error.strerror}") from error
    finally:
        os.close(fd)
    return replace(planner.plan(top), one_file=True, ids=ids)


def plan_removal(reader: StreamReader, top: str, comparison: Comparison) -> tuple[TreePlan, bool]:
    """Return how to remove what is in the directory `top`, and whether nothing in it has to stay.

    Raises CastoreError.
    """
    allow_descriptors()
    try:
        fd = open_top(top)
        try:
            planner = _Planner(reader, Ownership(change=False), comparison, mounts_below(top))
            complete = planner.all_of(fd)
            ids = ids_of(os.fstat(fd))
        finally:
            os.close(fd)
    except OSError as error:
        raise CastoreError(f"cannot list {top}, which is to be removed: {error.strerror}") from error
    return replace(planner.plan(top), ids=ids), complete


def ids_of(info: os.stat_result | Listed) -> Ids:
    """Return the device and inode of a file."""
    return (info.st_dev, info.st_ino) if isinstance(info, os.stat_result) else (info.dev, info.ino)


_READ_ONLY: Final = "it differs, and is mounted read-only"


def _is_read_only(fd: int, name: bytes) -> bool:
    """Whether what is called `name` in an open directory is on a file system that is mounted read-only."""
    file = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    try:
        return bool(os.fstatvfs(file).f_flag & os.ST_RDONLY)
    finally:
        os.close(file)


class _Removal(NamedTuple):
    """The steps that remove a file or directory."""

    steps: list[Step]
    complete: bool
    """Whether nothing in it has to stay."""


class _Known(NamedTuple):
    """What the last snapshot tells of a live file."""

    bare: bool
    """It has no attributes."""
    is_read: bool
    """It is as it was, and what the snapshot read of it is the stored content."""
    at: int | None
    """Where its record is, if it is a directory."""


class _Planner:
    def __init__(
        self,
        reader: StreamReader,
        ownership: Ownership,
        comparison: Comparison,
        mounts: set[Path],
    ) -> None:
        self._mounts = mounts
        self._reader = reader
        self._ownership = ownership
        self._comparison = comparison
        self._scan = comparison.scan
        self._bundle: tuple[Ref | None, RangeReader] = (None, RangeReader(reader.store, None))
        self._kept_links: dict[tuple[int, int], Link] = {}
        self._skipped: list[tuple[bytes, str]] = []
        self._crosses = False
        self.empties = False
        self.steps: list[Step] = []
        self._live_links: dict[tuple[int, int], tuple[int, int] | Path] = {}
        self._stored_links: dict[tuple[int, int], tuple[int, int]] = {}

    def top_record(self, fd: int) -> int | None:
        """Return where the last snapshot's record of the top is, if it saw this directory."""
        if self._scan is None:
            return None
        info = os.fstat(fd)
        if summary_of(self._scan.record(self._scan.top)).ids != (info.st_dev, info.st_ino):
            self._scan = None
            return None
        self._scan.compare(fd)
        return self._scan.top

    def plan(self, top: str) -> TreePlan:
        """Return the steps that were found."""
        links, skipped = self._kept_links, tuple(self._skipped)
        return TreePlan(top, tuple(self.steps), links, skipped, crosses=self._crosses)

    def nothing(self, top: str) -> TreePlan:
        """Return a plan without steps, which reports that the directory `top` is left alone."""
        self._skip((b".",))
        return self.plan(top)

    def file(self, fd: int, name: bytes, child: Child) -> None:
        """Add the steps for one file, which is called `name` in the directory open as `fd`."""
        entry = msgspec.structs.replace(child.entry, name=name)
        found = child._replace(entry=entry)
        try:
            info = listing_entry(name, os.stat(name, dir_fd=fd, follow_symlinks=False))
        except FileNotFoundError:
            self.steps.append(Step("create", (name,), found))
            return
        if stat.S_ISDIR(info.mode):
            shown = os.fsdecode(child.entry.name)
            raise UsageError(f"{os.fsdecode(name)!r} is a directory: name the file in it, as in {shown}")
        if stat.S_IFMT(info.mode) != stat.S_IFMT(entry.st_mode):
            self.steps.append(Step("replace", (name,), found, removed=1, ids=ids_of(info)))
            return
        # Its other names are not restored with it.
        alone = msgspec.structs.replace(entry, extra=msgspec.structs.replace(entry.extra, link=None))
        single = info._replace(nlink=1)
        if not self._same(fd, (name,), child._replace(entry=alone), single):
            self.steps.append(Step("replace", (name,), found, removed=1, ids=ids_of(info)))
        elif self.metadata_differs(fd, (name,), found, info):
            self._change_metadata(fd, (name,), found, info)

    def all_of(self, fd: int) -> bool:
        """Add the steps that remove all in an open directory that may go; say whether all of it may."""
        complete = True
        for one in entries_of(list_directory(fd)):
            removal = run(self._removal(fd, (one.name,), one))
            self.steps += removal.steps
            complete = complete and removal.complete
        return complete

    def directory(
        self, fd: int, path: Path, child: Child, at: int | None
    ) -> Generator[Any, Any, None]:
        """Add the steps for what is in a directory, the deepest first. A generator for `run`.

        at: where the last snapshot's record of it is.
        """
        apart = self._comparison.apart
        stored = open_directory(self._reader, child.ref)
        self.empties |= not path and not stored
        if apart:
            stored = [one for one in stored if b"/".join((*path, one.entry.name)) not in apart]
        seen = self._scan.listing_of(at) if self._scan is not None and at is not None else None
        listing = seen[0] if seen is not None else list_directory(fd)
        live = {entry.name: entry for entry in entries_of(listing)}
        names = {found.entry.name for found in stored}
        records: dict[bytes, int] = {}
        bare: frozenset[bytes] | set[bytes] = frozenset()
        read: frozenset[bytes] | set[bytes] = frozenset()
        if self._scan is not None and at is not None:
            record = self._scan.record(at)
            records = self._scan.below(record)
            bare = without_xattrs(record, listing)
            if self._comparison.checksum and summary_of(record).ref == child.ref:
                read = unchanged(record, listing)
        if not (self._comparison.rules.exclude_caches and is_cache(fd)):
            for name in sorted(live.keys() - names):
                removal = yield self._removal(fd, (*path, name), live[name])
                self.steps += removal.steps
        for found in stored:
            name = found.entry.name
            below = (*path, name)
            if name not in live:
                self.steps.append(Step("create", below, found))
            elif self._is_unread(below):
                self._skip(below)
            else:
                known = _Known(name in bare, name in read, records.get(name))
                yield self._entry(fd, below, found, live[name], known)

    def _removal(self, fd: int, path: Path, entry: Listed) -> Generator[Any, Any, _Removal]:
        """Return the steps that remove what is at a path. A generator for `run`."""
        if self._stays(path, entry):
            return _Removal([], complete=False)
        if not stat.S_ISDIR(entry.mode):
            return _Removal([Step("remove", path, removed=1, ids=ids_of(entry))], complete=True)
        try:
            below = os.open(entry.name, OPEN_DIRECTORY, dir_fd=fd)
        except OSError as error:
            self._skip(path, f"cannot be read: {error.strerror}")
            return _Removal([], complete=False)
        found: list[_Removal] = []
        try:
            if self._comparison.rules.exclude_caches and is_cache(below):
                return _Removal([], complete=False)
            for one in entries_of(list_directory(below)):
                removal = yield self._removal(below, (*path, one.name), one)
                found.append(removal)
        except OSError as error:
            self._skip(path, f"cannot be read: {error.strerror}")
            return _Removal([], complete=False)
        finally:
            os.close(below)
        steps = [step for removal in found for step in removal.steps]
        if all(removal.complete for removal in found):
            count = 1 + sum(step.removed for step in steps)
            return _Removal([Step("remove", path, removed=count, ids=ids_of(entry))], complete=True)
        return _Removal(steps, complete=False)

    def _skip(self, path: Path, reason: str = "a snapshot could not read it") -> None:
        self._skipped.append((b"/".join(path), f"is left alone: {reason}"))

    def _is_unread(self, path: Path) -> bool:
        """Whether a snapshot could not read this path: there may be no copy of it."""
        return b"/".join(path) in self._comparison.unread

    def _stays(self, path: Path, entry: Listed) -> bool:
        """Whether snapshots leave this out."""
        if path in self._mounts or (entry.dev, entry.ino) in self._comparison.rules.leave_out:
            return True
        if b"/".join(path) in self._comparison.apart:
            return True
        if self._is_unread(path):
            self._skip(path)
            return True
        exclude = self._comparison.rules.exclude
        below = self._comparison.below
        in_tree = b"/".join([below, *path] if below else path)
        if exclude is not None and exclude.matches(in_tree, is_dir=stat.S_ISDIR(entry.mode)):
            return True
        if entry.error:
            self._skip(path, f"cannot be read: {os.strerror(entry.error)}")
        return bool(entry.error)

    def _is_as_scanned(self, fd: int, found: Child, at: int | None) -> bool:
        """Whether a live directory is what the last snapshot stored, and that is the stored one."""
        if self._scan is None or at is None or found.ref is None:
            return False
        record = self._scan.record(at)
        return (
            summary_of(record).ref == found.ref
            and not record.flags & LINKED
            and self._scan.is_same(at, fd, found.entry.name)
        )

    def _entry(
        self, fd: int, path: Path, found: Child, info: Listed, known: _Known
    ) -> Generator[Any, Any, None]:
        """Add the steps for what is stored and live. A generator for `run`."""
        entry = found.entry
        if info.error:
            crosses = self._comparison.rules.one_file_system and path in self._mounts
            if not (crosses and entry.content is Content.NONE):
                self._skip(path, f"cannot be read: {os.strerror(info.error)}")
            return
        try:
            if stat.S_IFMT(info.mode) != stat.S_IFMT(entry.st_mode):
                yield self._exchange(fd, path, found, info)
                return
            before = len(self.steps)
            if entry.is_dir:
                if not (yield self._inside(fd, path, found, known.at)):
                    return
            elif not self._same(fd, path, found, info, is_read=known.is_read):
                if path in self._mounts and _is_read_only(fd, entry.name):
                    self._skip(path, _READ_ONLY)
                else:
                    self.steps.append(Step("replace", path, found, removed=1, ids=ids_of(info)))
                return
            # What was done in a directory has changed its time.
            changed = len(self.steps) > before
            if changed or self.metadata_differs(fd, path, found, info, bare=known.bare):
                self._change_metadata(fd, path, found, info)
            elif entry.extra.link is not None:
                self._kept_links.setdefault(entry.extra.link, (path, ids_of(info)))
        except OSError as error:
            self._skip(path, f"cannot be read: {error.strerror}")

    def _exchange(
        self, fd: int, path: Path, found: Child, info: Listed
    ) -> Generator[Any, Any, None]:
        """Add the step for what is stored as another kind of file than the live one."""
        if path in self._mounts:
            self._skip(path, "is a mount point, and stored as another kind of file: unmount it first")
            return
        count = 1
        if stat.S_ISDIR(info.mode):
            skipped = len(self._skipped)
            removal = yield self._removal(fd, path, info)
            if not removal.complete:
                if len(self._skipped) > skipped:
                    return
                shown = os.fsdecode(b"/".join(path))
                raise CastoreError(
                    f"{shown} is to be replaced, and holds what snapshots leave out: move it away first"
                )
            count = sum(step.removed for step in removal.steps)
        self.steps.append(Step("replace", path, found, removed=count, ids=ids_of(info)))

    def _inside(
        self, fd: int, path: Path, found: Child, at: int | None
    ) -> Generator[Any, Any, bool]:
        """Add the steps for what is in a directory; say whether it could be compared."""
        if found.entry.content is Content.NONE:
            return True  # snapshots do not enter it: another file system, or castore's own
        if self._is_as_scanned(fd, found, at):
            return True
        before = len(self.steps)
        below = os.open(found.entry.name, OPEN_DIRECTORY, dir_fd=fd)
        try:
            yield self.directory(below, path, found, at)
        except OSError as error:
            del self.steps[before:]
            self._skip(path, f"cannot be read: {error.strerror}")
            return False
        finally:
            os.close(below)
        if len(self.steps) > before and path in self._mounts:
            if _is_read_only(fd, found.entry.name):
                del self.steps[before:]
                self._skip(path, _READ_ONLY)
                return False
            self._crosses = True
        return True

    def _same(
        self, fd: int, path: Path, found: Child, info: Listed, *, is_read: bool = False
    ) -> bool:
        """Whether a live file has the stored content, and the same other names.

        is_read: a snapshot has read that content from it.
        """
        entry = found.entry
        if b"/".join(path) in self._comparison.changed:
            return False
        if entry.is_file and (info.size, clamped_time(info.mtime_ns)) != (entry.size, entry.mtime):
            return False
        if entry.is_file and self._comparison.checksum and not is_read and not self._holds(fd, found):
            return False
        if stat.S_ISLNK(entry.st_mode) and os.readlink(entry.name, dir_fd=fd) != entry.extra.target:
            return False
        if stat.S_IFMT(info.mode) in {stat.S_IFCHR, stat.S_IFBLK} and (
            info.rdev != entry.extra.device
        ):
            return False
        live = (info.dev, info.ino)
        if entry.extra.link is not None and (
            self._stored_links.setdefault(entry.extra.link, live) != live
        ):
            return False
        if info.nlink > 1:
            owner = self._live_links.setdefault(live, entry.extra.link or path)
            return owner == (entry.extra.link or path)
        return True

    def _holds(self, fd: int, found: Child) -> bool:
        """Whether a live file has the stored bytes."""
        entry, ref, offset, _ = found
        check_content(found)
        with open(open_regular(fd, entry.name), "rb") as live:
            if entry.content is not Content.BUNDLE:
                return holds_content(self._reader.store, live.fileno(), found)
            if self._bundle[0] != ref:
                self._bundle = ref, RangeReader(self._reader.store, ref)
            data = self._bundle[1].read(offset, entry.size)
            return live.read(len(data)) == data and not live.read(1)

    def metadata(self, path: Path, child: Child, ids: Ids) -> Step:
        """Return the step that sets the metadata of what is at a path."""
        keep = b"/".join(path) in self._comparison.unread_attributes
        return Step("metadata", path, child, ids=ids, keep_attributes=keep)

    def _change_metadata(self, fd: int, path: Path, child: Child, info: Listed) -> None:
        """Add the step after which what is at a path has the stored metadata."""
        if not self._has_to_be_new(fd, child, info):
            self.steps.append(self.metadata(path, child, ids_of(info)))
            if child.entry.extra.link is not None:
                self._kept_links.setdefault(child.entry.extra.link, (path, ids_of(info)))
        elif b"/".join(path) in self._comparison.unread_attributes:
            self._skip(path, "it has set-id bits or capabilities, and attributes that no snapshot has")
        else:
            self.steps.append(Step("replace", path, child, removed=1, ids=ids_of(info)))

    def _has_to_be_new(self, fd: int, child: Child, info: Listed) -> bool:
        """Whether a file is replaced though it has the stored content, because another user may write to it.

        Whoever has it open, or has another name of it, would go on to write to a file that is not theirs
        any more, or that runs with the rights of its owner.
        """
        entry = child.entry
        if not self._ownership.change or not stat.S_ISREG(info.mode):
            return False
        own = info.uid == os.geteuid() and info.nlink == 1
        if info.uid != self._ownership.of(entry, child.owners)[0] and not own:
            return True
        if is_privileged(entry.st_mode, entry.extra.xattrs):
            return True
        return is_privileged(info.mode, read_xattrs_at(fd, info.name, lambda _reason: None))

    def metadata_differs(
        self, fd: int, path: Path, child: Child, info: Listed, *, bare: bool = False
    ) -> bool:
        """Whether a live file's owner, mode, time or attributes are not the stored ones.

        bare: it is known to have no attributes.
        """
        entry = child.entry
        if self._ownership.change and (
            (info.uid, info.gid) != self._ownership.of(entry, child.owners)
        ):
            return True
        is_link = stat.S_ISLNK(info.mode)
        kept = ~0 if self._ownership.change else ~(stat.S_ISUID | stat.S_ISGID)
        if clamped_time(info.mtime_ns) != entry.mtime or (
            not is_link and (stat.S_IMODE(info.mode) ^ entry.mode) & kept
        ):
            return True
        failed: list[str] = []
        live = () if bare else read_xattrs_at(fd, info.name, failed.append)
        wanted = self._ownership.xattrs_of(entry, child.owners)
        if b"/".join(path) in self._comparison.unread_attributes:
            return not set(wanted) <= set(live)
        return bool(failed) or live != wanted
