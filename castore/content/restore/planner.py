"""Compare a live directory with a stored tree and plan the steps that make them equal."""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from castore.content.restore.compare_ahead import CompareAhead
from castore.content.restore.dir_comparison import Wanted
from castore.content.restore.file_comparison import FileComparison
from castore.content.restore.live_file import with_proofs
from castore.content.restore.metadata import Ownership
from castore.content.restore.plan import Comparison, Step, TreePlan, ids_of
from castore.content.restore.removal import RemovalPlanner
from castore.content.scan.cache import summary_of
from castore.errors import CastoreError, UsageError
from castore.fs.beneath import open_top
from castore.fs.metadata import is_cache, mounts_below
from castore.kernel.dir_compare import CONTENT, METADATA, XATTRS
from castore.kernel.dir_listing import entries_of, list_directory, listing_entry
from castore.model.trampoline import run
from castore.model.tree import Content
from castore.process.own_process import raise_file_limit

if TYPE_CHECKING:
    from collections.abc import Generator

    from castore.content.restore.compare_ahead import Level
    from castore.content.restore.dir_comparison import Difference, LiveDirectory
    from castore.content.restore.hard_links import Link
    from castore.content.restore.undo_journal import Ids, Path
    from castore.content.stored_dirs import Child
    from castore.content.streams import StreamReader
    from castore.kernel.dir_listing import Listed


def plan_tree(
    reader: StreamReader, child: Child, top: str, ownership: Ownership, comparison: Comparison
) -> TreePlan:
    """Compare the directory `top` with the stored one, and return the steps.

    Raises UsageError if `top` is not a directory, CastoreError if it cannot be compared.
    """
    try:
        fd = open_top(top)
    except OSError as error:
        raise UsageError(f"cannot restore in place into {top}: {error.strerror}") from None
    raise_file_limit()
    planner = _Planner(reader, ownership, comparison, mounts_below(top))
    try:
        ids = ids_of(os.fstat(fd))
        if b"" in comparison.unread:
            return planner.nothing(top)
        planner.tree(fd, child)
        steps = planner.steps = with_proofs(comparison.scan, ids, planner.steps)
        if steps or planner.files.metadata_differs(fd, (), child, listing_entry(b".", os.fstat(fd))):
            steps.append(planner.metadata((), child, ids))
    except OSError as error:
        raise CastoreError(f"cannot compare {top}: {error}") from error
    finally:
        os.close(fd)
    return msgspec.structs.replace(planner.plan(top), empties=planner.empties, ids=ids)


def plan_entry(
    reader: StreamReader, child: Child, path: str, ownership: Ownership, *, checksum: bool = False
) -> TreePlan:
    """Compare the file at `path` with a stored one, not a directory; `top` is its directory.

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
    return msgspec.structs.replace(planner.plan(top), one_file=True, ids=ids)


def plan_removal(reader: StreamReader, top: str, comparison: Comparison) -> tuple[TreePlan, bool]:
    """Return the steps that remove the content of the directory `top`, and whether they remove all of it.

    Raises CastoreError.
    """
    raise_file_limit()
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
    return msgspec.structs.replace(planner.plan(top), ids=ids), complete


_READ_ONLY: Final = "it differs, and is mounted read-only"


def _is_read_only(fd: int, name: bytes) -> bool:
    """Whether the file `name` in an open directory is on a file system that is mounted read-only."""
    file = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    try:
        return bool(os.fstatvfs(file).f_flag & os.ST_RDONLY)
    finally:
        os.close(file)


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
        self._comparison = comparison
        self._scan = comparison.scan
        self._removals = RemovalPlanner(comparison, mounts)
        self.files = FileComparison(reader, ownership, comparison)
        self._kept_links: dict[tuple[int, int], Link] = {}
        self._crosses = False
        self.empties = False
        self._compared = self._read = 0
        self._began = time.monotonic()
        self.steps: list[Step] = []

    def top_record(self, fd: int) -> int | None:
        """Return the position of the last snapshot's record of the top, if it is of this directory."""
        if self._scan is None:
            return None
        info = os.fstat(fd)
        if summary_of(self._scan.record(self._scan.top)).ids != (info.st_dev, info.st_ino):
            self._scan = None
            return None
        self._scan.compare(fd)
        return self._scan.top

    def plan(self, top: str) -> TreePlan:
        """Return the plan with the steps so far."""
        links, skipped = self._kept_links, tuple(self._removals.skipped)
        return TreePlan(
            top,
            tuple(self.steps),
            links,
            skipped,
            crosses=self._crosses,
            compared=self._compared,
            read=self._read,
            seconds=time.monotonic() - self._began,
            range_writes=self._comparison.range_writes,
        )

    def nothing(self, top: str) -> TreePlan:
        """Return a plan without steps, which reports that the directory `top` is left alone."""
        self._removals.skip((b".",))
        return self.plan(top)

    def file(self, fd: int, name: bytes, child: Child) -> None:
        """Add the steps for one file, called `name` in the directory open as `fd`."""
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
        # Its other names are not restored.
        alone = msgspec.structs.replace(entry, extra=msgspec.structs.replace(entry.extra, link=None))
        single = info._replace(nlink=1)
        if not self.files.same(fd, (name,), child._replace(entry=alone), single):
            self.steps.append(Step("replace", (name,), found, removed=1, ids=ids_of(info)))
        elif self.files.metadata_differs(fd, (name,), found, info):
            self._change_metadata(fd, (name,), found, info)

    def all_of(self, fd: int) -> bool:
        """Add the steps that remove the content of an open directory; return whether that is all of it."""
        complete = True
        for one in entries_of(list_directory(fd)):
            removal = run(self._removals.plan(fd, (one.name,), one))
            self.steps += removal.steps
            complete = complete and removal.complete
        return complete

    def tree(self, fd: int, child: Child) -> None:
        """Add the steps for the content of the open top directory. Raises OSError, DamageError."""
        with CompareAhead(self._reader, self.files.ownership, self._comparison) as self._ahead:
            live = self._ahead.compare_top(os.dup(fd), Wanted(child, (), self.top_record(fd)))
            self.empties = live.is_stored_empty
            try:
                run(self._directory(live, ()))
            finally:
                live.close()

    def _directory(self, live: LiveDirectory, path: Path) -> Generator[Any, Any, None]:
        """Add the steps for the content of a directory, deepest first. A generator for `run`."""
        fd = live.fd
        self._compared += live.compared
        self._read += live.read
        level = self._ahead.enter(live)
        try:
            if live.extra and not (self._comparison.rules.exclude_caches and is_cache(fd)):
                for entry in live.extra:
                    removal = yield self._removals.plan(fd, (*path, entry.name), entry)
                    self.steps += removal.steps
            for found in live.differences:
                below = (*path, found.child.entry.name)
                if self._comparison.apart and b"/".join(below) in self._comparison.apart:
                    continue
                if found.live is None:
                    self.steps.append(Step("create", below, found.child))
                elif self._removals.is_unread(below):
                    self._removals.skip(below)
                else:
                    yield self._entry(fd, below, found, found.live, level)
        finally:
            self._ahead.leave(level)

    def _entry(
        self, fd: int, path: Path, difference: Difference, info: Listed, level: Level
    ) -> Generator[Any, Any, None]:
        """Add the steps for an entry that is both stored and live. A generator for `run`."""
        found, _, state, holds = difference
        entry = found.entry
        if info.error:
            crosses = self._comparison.rules.one_file_system and path in self._mounts
            if not (crosses and entry.content is Content.NONE):
                self._removals.skip(path, f"cannot be read: {os.strerror(info.error)}")
            return
        try:
            if stat.S_IFMT(info.mode) != stat.S_IFMT(entry.st_mode):
                yield self._exchange(fd, path, found, info)
                return
            before = len(self.steps)
            if entry.is_dir:
                if level.has(entry.name) and not (yield self._inside(fd, path, found, level)):
                    return
            elif state & CONTENT or not self.files.same(fd, path, found, info, holds=holds):
                if path in self._mounts and _is_read_only(fd, entry.name):
                    self._removals.skip(path, _READ_ONLY)
                else:
                    self.steps.append(Step("replace", path, found, removed=1, ids=ids_of(info)))
                return
            # Steps in a directory change its time.
            changed = state & METADATA or len(self.steps) > before
            if not (changed or state):
                return
            if changed or self.files.metadata_differs(fd, path, found, info, bare=not state & XATTRS):
                self._change_metadata(fd, path, found, info)
            elif entry.extra.link is not None:
                self._kept_links.setdefault(entry.extra.link, (path, ids_of(info)))
        except OSError as error:
            self._removals.skip(path, f"cannot be read: {error.strerror}")

    def _exchange(
        self, fd: int, path: Path, found: Child, info: Listed
    ) -> Generator[Any, Any, None]:
        """Add the step for an entry that is stored as another kind of file than the live one."""
        if path in self._mounts:
            reason = "is a mount point, and stored as another kind of file: unmount it first"
            self._removals.skip(path, reason)
            return
        count = 1
        if stat.S_ISDIR(info.mode):
            skipped = len(self._removals.skipped)
            removal = yield self._removals.plan(fd, path, info)
            if not removal.complete:
                if len(self._removals.skipped) > skipped:
                    return
                shown = os.fsdecode(b"/".join(path))
                raise CastoreError(
                    f"{shown} is to be replaced, and holds files that snapshots leave out: move it away first"
                )
            count = sum(step.removed for step in removal.steps)
        self.steps.append(Step("replace", path, found, removed=count, ids=ids_of(info)))

    def _inside(
        self, fd: int, path: Path, found: Child, level: Level
    ) -> Generator[Any, Any, bool]:
        """Add the steps for the content of a directory; return whether it could be compared."""
        before = len(self.steps)
        live = None
        try:
            live = level.take(found.entry.name)
            yield self._directory(live, path)
        except OSError as error:
            del self.steps[before:]
            self._removals.skip(path, f"cannot be read: {error.strerror}")
            return False
        finally:
            if live is not None:
                live.close()
        if len(self.steps) > before and path in self._mounts:
            if _is_read_only(fd, found.entry.name):
                del self.steps[before:]
                self._removals.skip(path, _READ_ONLY)
                return False
            self._crosses = True
        return True

    def metadata(self, path: Path, child: Child, ids: Ids) -> Step:
        """Return the step that sets the metadata of the file or directory at a path."""
        keep = b"/".join(path) in self._comparison.unread_attributes
        return Step("metadata", path, child, ids=ids, keep_attributes=keep)

    def _change_metadata(self, fd: int, path: Path, child: Child, info: Listed) -> None:
        """Add the step that gives the file or directory at a path the stored metadata."""
        if not self.files.has_to_be_new(fd, child, info):
            self.steps.append(self.metadata(path, child, ids_of(info)))
            if child.entry.extra.link is not None:
                self._kept_links.setdefault(child.entry.extra.link, (path, ids_of(info)))
        elif b"/".join(path) in self._comparison.unread_attributes:
            reason = "it has set-id bits or capabilities, and attributes that no snapshot has"
            self._removals.skip(path, reason)
        else:
            self.steps.append(Step("replace", path, child, removed=1, ids=ids_of(info)))
