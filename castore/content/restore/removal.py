"""Plan the removal of live files, except those that have to stay."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

from castore.content.restore.plan import Step, ids_of
from castore.fs.beneath import OPEN_DIRECTORY
from castore.fs.metadata import is_cache
from castore.kernel.dir_listing import entries_of, list_directory

if TYPE_CHECKING:
    from collections.abc import Generator

    from castore.content.restore.plan import Comparison
    from castore.content.restore.undo_journal import Path
    from castore.kernel.dir_listing import Listed


class Removal(NamedTuple):
    """The steps that remove a file or directory."""

    steps: list[Step]
    complete: bool
    """Whether nothing in it has to stay."""


class RemovalPlanner:
    """Plans what is removed from one live tree, and which files stay."""

    def __init__(self, comparison: Comparison, mounts: set[Path]) -> None:
        self._comparison = comparison
        self._mounts = mounts
        self.skipped: list[tuple[bytes, str]] = []
        """(path, reason) of files that are left alone."""

    def plan(self, fd: int, path: Path, entry: Listed) -> Generator[Any, Any, Removal]:
        """Return the steps that remove the file or directory at a path. A generator for `run`."""
        if self._stays(path, entry):
            return Removal([], complete=False)
        if not stat.S_ISDIR(entry.mode):
            return Removal([Step("remove", path, removed=1, ids=ids_of(entry))], complete=True)
        try:
            below = os.open(entry.name, OPEN_DIRECTORY, dir_fd=fd)
        except OSError as error:
            self.skip(path, f"cannot be read: {error.strerror}")
            return Removal([], complete=False)
        removals: list[Removal] = []
        try:
            if self._comparison.rules.exclude_caches and is_cache(below):
                return Removal([], complete=False)
            for one in entries_of(list_directory(below)):
                removal = yield self.plan(below, (*path, one.name), one)
                removals.append(removal)
        except OSError as error:
            self.skip(path, f"cannot be read: {error.strerror}")
            return Removal([], complete=False)
        finally:
            os.close(below)
        steps = [step for removal in removals for step in removal.steps]
        if all(removal.complete for removal in removals):
            count = 1 + sum(step.removed for step in steps)
            return Removal([Step("remove", path, removed=count, ids=ids_of(entry))], complete=True)
        return Removal(steps, complete=False)

    def skip(self, path: Path, reason: str = "a snapshot could not read it") -> None:
        """Report a file that is left alone."""
        self.skipped.append((b"/".join(path), f"is left alone: {reason}"))

    def is_unread(self, path: Path) -> bool:
        """Whether a snapshot could not read this path: there may be no copy of it."""
        return b"/".join(path) in self._comparison.unread

    def _stays(self, path: Path, entry: Listed) -> bool:
        """Whether a file stays because snapshots leave it out, or could not read it."""
        if path in self._mounts or (entry.dev, entry.ino) in self._comparison.rules.leave_out:
            return True
        if b"/".join(path) in self._comparison.apart:
            return True
        if self.is_unread(path):
            self.skip(path)
            return True
        exclude = self._comparison.rules.exclude
        below = self._comparison.below
        in_tree = b"/".join([below, *path] if below else path)
        if exclude is not None and exclude.matches(in_tree, is_dir=stat.S_ISDIR(entry.mode)):
            return True
        if entry.error:
            self.skip(path, f"cannot be read: {os.strerror(entry.error)}")
        return bool(entry.error)
