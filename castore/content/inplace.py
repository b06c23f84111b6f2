"""A live directory made equal to a stored tree, touching only what differs.

First a plan, which is data; then one function that carries it out. What is replaced or removed is
moved into a directory in the tree's top (castore/content/aside.py) until the caller says that all went
well; before that, everything can be put back.
"""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from castore.content.aside import Aside, Journal, refuse_leftovers
from castore.content.attributes import drop_inherited, mode_of, replace_attributes
from castore.content.directories import Child, open_directory, read_file
from castore.content.live import (
    OPEN_DIRECTORY,
    OPEN_FILE,
    allow_descriptors,
    is_cache,
    mounts_below,
    open_below,
    read_xattrs_at,
)
from castore.content.restore import TreeWriter
from castore.content.scan import ScanRules
from castore.content.scancache import LINKED, told_of
from castore.content.scanfiles import without_xattrs
from castore.content.streams import RangeReader
from castore.errors import CastoreError, UsageError
from castore.kernel.files import entries_of, list_directory, listed_of
from castore.model.tree import Content, Entry, Extra

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from castore.content.aside import Action, Path
    from castore.content.attributes import Ownership
    from castore.content.scancache import OldScan
    from castore.content.streams import StreamReader
    from castore.kernel.files import Listed
    from castore.model.refs import Ref
    from castore.model.tally import Tally

_LARGE: Final = 1 << 20
"""A file of this size keeps what it has, where it is replaced."""
_DEEP: Final = 10_000
"""Frames: some for each level of a tree that is compared."""


@dataclass(frozen=True)
class Step:
    """One thing to do."""

    action: Action
    path: Path
    """Below the top; empty for the top itself."""
    child: Child | None = None
    """What is to be there; None to remove."""

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
    kept_links: dict[tuple[int, int], Path]
    """Of files with several names that stay: one name of each."""
    skipped: tuple[tuple[bytes, str], ...] = ()
    """(path, reason) of what is left alone because there may be no copy of it."""


@dataclass(frozen=True)
class Comparison:
    """How a live tree is compared with a stored one.

    A regular file counts as the same if its size and time are.
    """

    changed: AbstractSet[bytes] = frozenset()
    """Paths of files that are not the same, whatever is said of them."""
    checksum: bool = False
    """Compare what is in files, too."""
    rules: ScanRules = field(default_factory=ScanRules)
    """What snapshots leave out is left alone."""
    apart: AbstractSet[bytes] = frozenset()
    """Paths below the top that are left alone, stored or not: what other parts keep in this tree."""
    unread: AbstractSet[bytes] = frozenset()
    """Paths below the top that a snapshot could not read: they and all below them are left alone."""
    below: bytes = b""
    """The path of the stored directory in its tree, which patterns are relative to."""
    scan: OldScan | None = None
    """What the last snapshot saw of the live tree: what is as it was then is not looked at again."""


def plan_tree(
    reader: StreamReader, child: Child, top: str, ownership: Ownership, comparison: Comparison
) -> TreePlan:
    """Compare the directory `top` with the stored one and return what is to be done.

    Raises UsageError if `top` is no directory, CastoreError if an earlier run was interrupted there.
    """
    try:
        fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot restore in place into {top}: {error.strerror}") from None
    allow_descriptors()
    planner = _Planner(reader, ownership, comparison, mounts_below(top))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _DEEP))
    try:
        refuse_leftovers(top)
        steps = list(planner.directory(fd, (), child, planner.top_record(fd)))
        if steps or planner.metadata_differs(fd, child, listed_of(b".", os.fstat(fd))):
            steps.append(Step("metadata", (), child))
    except RecursionError:
        raise CastoreError(f"{top} is too deep to be restored in place: restore into a new one") from None
    except OSError as error:
        raise CastoreError(f"cannot compare {top}: {error}") from error
    finally:
        sys.setrecursionlimit(limit)
        os.close(fd)
    return TreePlan(top, tuple(steps), planner.kept_links, tuple(planner.skipped))


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
        self._scan = None if comparison.checksum else comparison.scan
        self._bundle: tuple[Ref | None, RangeReader] = (None, RangeReader(reader.store, None))
        self.kept_links: dict[tuple[int, int], Path] = {}
        self.skipped: list[tuple[bytes, str]] = []
        self._live_links: dict[tuple[int, int], tuple[int, int] | Path] = {}
        self._stored_links: dict[tuple[int, int], tuple[int, int]] = {}

    def top_record(self, fd: int) -> int | None:
        """Return where the last snapshot's record of the top is, if it saw this directory."""
        if self._scan is None:
            return None
        info = os.fstat(fd)
        if told_of(self._scan.record(self._scan.top)).ids != (info.st_dev, info.st_ino):
            self._scan = None
            return None
        self._scan.compare(fd)
        return self._scan.top

    def directory(self, fd: int, path: Path, child: Child, at: int | None) -> Iterator[Step]:
        """Yield the steps for what is in a directory, the deepest first.

        at: where the last snapshot's record of it is.
        """
        apart = self._comparison.apart
        stored = open_directory(self._reader, child.ref)
        if apart:
            stored = [one for one in stored if b"/".join((*path, one.entry.name)) not in apart]
        seen = self._scan.listing_of(at) if self._scan is not None and at is not None else None
        listing = seen[0] if seen is not None else list_directory(fd)
        live = {entry.name: entry for entry in entries_of(listing)}
        names = {found.entry.name for found in stored}
        records: dict[bytes, int] = {}
        bare: frozenset[bytes] | set[bytes] = frozenset()
        if self._scan is not None and at is not None:
            record = self._scan.record(at)
            records = self._scan.below(record)
            bare = without_xattrs(record, listing)
        if not (self._comparison.rules.exclude_caches and is_cache(fd)):
            for name in sorted(live.keys() - names):
                yield from self._removal(fd, (*path, name), live[name])[0]
        for found in stored:
            name = found.entry.name
            below = (*path, name)
            if name not in live:
                yield Step("create", below, found)
            elif self._is_unread(below):
                self._skip(below)
            else:
                yield from self._entry(fd, below, found, live[name], name in bare, records.get(name))

    def _removal(self, fd: int, path: Path, entry: Listed) -> tuple[list[Step], bool]:
        """Return the steps that remove what is at a path, and whether all of it goes."""
        if self._stays(path, entry):
            return [], False
        if not stat.S_ISDIR(entry.mode):
            return [Step("remove", path)], True
        try:
            below = os.open(entry.name, OPEN_DIRECTORY, dir_fd=fd)
        except OSError as error:
            self._skip(path, f"cannot be read: {error.strerror}")
            return [], False
        try:
            if self._comparison.rules.exclude_caches and is_cache(below):
                return [], False
            listing = list_directory(below)
            found = [self._removal(below, (*path, one.name), one) for one in entries_of(listing)]
        except OSError as error:
            self._skip(path, f"cannot be read: {error.strerror}")
            return [], False
        finally:
            os.close(below)
        if all(whole for _, whole in found):
            return [Step("remove", path)], True
        return [step for steps, _ in found for step in steps], False

    def _skip(self, path: Path, reason: str = "a snapshot could not read it") -> None:
        self.skipped.append((b"/".join(path), f"is left alone: {reason}"))

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
        if exclude is None:
            return False
        below = self._comparison.below
        whole = b"/".join([below, *path] if below else path)
        return exclude.matches(whole, is_dir=stat.S_ISDIR(entry.mode))

    def _is_as_scanned(self, fd: int, found: Child, at: int | None) -> bool:
        """Whether a live directory is what the last snapshot stored, and that is the stored one."""
        if self._scan is None or at is None or found.ref is None:
            return False
        record = self._scan.record(at)
        return (
            told_of(record).ref == found.ref
            and not record.flags & LINKED
            and self._scan.is_same(at, fd, found.entry.name)
        )

    def _entry(
        self, fd: int, path: Path, found: Child, info: Listed, bare: bool, at: int | None
    ) -> Iterator[Step]:
        entry = found.entry
        if stat.S_IFMT(info.mode) != stat.S_IFMT(entry.st_mode):
            skipped = len(self.skipped)
            if stat.S_ISDIR(info.mode) and not self._removal(fd, path, info)[1]:
                if len(self.skipped) > skipped:
                    return
                shown = os.fsdecode(b"/".join(path))
                raise CastoreError(
                    f"{shown} is to be replaced, and holds what snapshots leave out: move it away first"
                )
            yield Step("replace", path, found)
            return
        steps: list[Step] = []
        if entry.is_dir and entry.content is Content.NONE:
            pass  # snapshots do not enter it: another file system, or castore's own
        elif entry.is_dir:
            if not self._is_as_scanned(fd, found, at):
                try:
                    below = os.open(entry.name, OPEN_DIRECTORY, dir_fd=fd)
                except OSError as error:
                    self._skip(path, f"cannot be read: {error.strerror}")
                    return
                try:
                    steps = list(self.directory(below, path, found, at))
                except OSError as error:
                    self._skip(path, f"cannot be read: {error.strerror}")
                    return
                finally:
                    os.close(below)
                if steps and path in self._mounts:
                    shown = os.fsdecode(b"/".join(path))
                    raise CastoreError(f"{shown} is another file system: restore it in place by itself")
                yield from steps
        elif not self._same(fd, path, found, info):
            yield Step("replace", path, found)
            return
        elif entry.extra.link is not None:
            self.kept_links.setdefault(entry.extra.link, path)
        # What was done in a directory has changed its time.
        if steps or self.metadata_differs(fd, found, info, bare=bare):
            yield Step("metadata", path, found)

    def _same(self, fd: int, path: Path, found: Child, info: Listed) -> bool:
        """Whether a live file has the stored content, and the same other names."""
        entry = found.entry
        if b"/".join(path) in self._comparison.changed:
            return False
        if entry.is_file and (info.size, info.mtime_ns) != (entry.size, entry.mtime):
            return False
        if entry.is_file and self._comparison.checksum and not self._holds(fd, found):
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
        stored: Iterator[bytes | memoryview] = read_file(self._reader, found)
        if entry.content is Content.BUNDLE:
            if self._bundle[0] != ref:
                self._bundle = ref, RangeReader(self._reader.store, ref)
            stored = iter((self._bundle[1].read(offset, entry.size),))
        file = os.open(entry.name, OPEN_FILE, dir_fd=fd)
        with open(file, "rb") as live:
            return all(live.read(len(data)) == data for data in stored) and not live.read(1)

    def metadata_differs(
        self, fd: int, child: Child, info: Listed, *, bare: bool = False
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
        if info.mtime_ns != entry.mtime or (
            not is_link and (stat.S_IMODE(info.mode) ^ entry.mode) & kept
        ):
            return True
        return (() if bare else read_xattrs_at(fd, info.name)) != entry.extra.xattrs


class InPlace:
    """Carries out a plan, and takes it back unless told that it is to stay."""

    def __init__(
        self,
        reader: StreamReader,
        plan: TreePlan,
        ownership: Ownership,
        tally: Tally,
        owner: str = "",
    ) -> None:
        self._plan = plan
        self._owner = owner
        self._ownership = ownership
        self._top = os.open(plan.top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._aside: Aside | None = None
        self._writer = TreeWriter(reader, self._top, ownership, tally)
        self._writer.know_links(plan.kept_links)

    @property
    def problems(self) -> list[tuple[bytes, str]]:
        """(path, reason) of what could not be made as it was stored."""
        report = self._writer.report
        return [*self._plan.skipped, *report.damaged, *report.warnings]

    def apply(self) -> None:
        """Do all steps. Raises CastoreError, DamageError; the caller then calls `undo`."""
        if not self._plan.steps:
            return
        # Before anything is touched, since what is done in a directory changes its time.
        steps = [(step.action, step.path or (b".",)) for step in self._plan.steps]
        before = [(path, self._live_entry(path)) for action, path in steps if action == "metadata"]
        last = self._plan.steps[-1]
        time = last.child.entry.mtime if last.child is not None and not last.path else None
        try:
            self._aside = Aside.create(self._top, Journal(tuple(steps), tuple(before), time, self._owner))
        except OSError as error:
            raise CastoreError(f"cannot begin in {self._plan.top}: {error.strerror}") from error
        for step in self._plan.steps:
            try:
                self._do(self._aside, step)
            except OSError as error:
                shown = os.path.join(self._plan.top, os.fsdecode(b"/".join(step.path)))
                raise CastoreError(f"cannot {step.action} {shown}: {error.strerror}") from error
        report = self._writer.report
        if lacking := [*report.damaged, *report.unmade]:
            where, reason = lacking[0]
            shown = where.decode(errors="backslashreplace")
            raise CastoreError(f"cannot restore {self._plan.top}/{shown}: {reason}")

    def _do(self, aside: Aside, step: Step) -> None:
        path = step.path or (b".",)
        aside.begin()
        if step.action in {"remove", "replace"}:
            aside.take(path)
        if step.child is None:
            return
        large = step.action == "replace" and step.child.entry.is_file and step.size >= _LARGE
        old = aside.open_taken() if large else None
        fd = open_below(self._top, path[:-1])
        try:
            if step.action == "metadata":
                self._set(fd, path, step.child)
            else:
                self._make(fd, path, step.child, old)
        finally:
            os.close(fd)
            if old is not None:
                os.close(old)

    def _make(self, fd: int, path: Path, child: Child, old: int | None) -> None:
        if not child.entry.is_dir:
            self._writer.make(fd, path, child, old)
            return
        os.mkdir(path[-1], 0o700, dir_fd=fd)
        drop_inherited(fd, path[-1])
        self._writer.fill(child, path)
        self._set(fd, path, child)

    def _set(self, fd: int, path: Path, child: Child) -> None:
        def warn(reason: str) -> None:
            self._writer.report.warnings.append((b"/".join(path), reason))

        mode = mode_of(child.entry, self._ownership)
        if not self._ownership.change:
            # What belongs to whoever restores, and has these bits, may keep them.
            now = os.stat(path[-1], dir_fd=fd, follow_symlinks=False).st_mode
            mode |= child.entry.mode & now & (stat.S_ISUID | stat.S_ISGID)
        replace_attributes(fd, path[-1], child.entry, child.owners, self._ownership, warn, mode=mode)

    def _live_entry(self, path: Path) -> Entry:
        """What undoing needs to know of a live file."""
        fd = open_below(self._top, path[:-1])
        try:
            info = os.stat(path[-1], dir_fd=fd, follow_symlinks=False)
            extra = Extra(xattrs=read_xattrs_at(fd, path[-1]))
        finally:
            os.close(fd)
        mode = stat.S_IMODE(info.st_mode)
        ids = info.st_uid, info.st_gid
        kind = info.st_mode >> 12
        return Entry(path[-1], kind, mode, *ids, info.st_mtime_ns, 0, Content.NONE, extra)

    def undo(self) -> None:
        """Put everything back as it was. Raises CastoreError if even that fails."""
        warnings = self._writer.report.warnings
        try:
            if self._aside is not None:
                self._aside.put_back(lambda path, why: warnings.append((b"/".join(path), why)))
        except OSError as error:
            name = self._aside.name if self._aside is not None else ""
            raise CastoreError(
                f"{self._plan.top} could not be put back as it was ({error.strerror}): what was moved "
                f"aside is in {name} there; when the cause is mended: castore recover {self._plan.top}"
            ) from error
        finally:
            self._close()

    def keep(self) -> None:
        """Let it stay: remove what was kept aside."""
        try:
            if self._aside is not None:
                self._aside.finish()
        except OSError as error:
            # All is restored; the next one says that this is left, and `recover` tries again.
            name = os.fsencode(self._aside.name if self._aside is not None else "")
            self._writer.report.warnings.append((name, f"cannot be removed: {error.strerror}"))
        finally:
            self._close()

    def _close(self) -> None:
        if self._aside is not None:
            self._aside.close()
            self._aside = None
        if self._top >= 0:
            os.close(self._top)
            self._top = -1
