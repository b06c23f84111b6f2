"""Make a live directory equal to a stored tree, changing only what differs.

A plan, which is data, comes first; then one function carries it out. Replaced and removed files are moved
into an undo directory in the tree's top (castore/content/restore/undo_area.py) until the caller confirms the
result. Before that, everything can be reverted. Metadata is set only on the file that was planned for, never
on another file that has taken its place.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import time
from typing import TYPE_CHECKING, Final

from castore.content.restore.copying import live_entry
from castore.content.restore.live_file import is_large, open_live
from castore.content.restore.metadata import drop_inherited, mode_of, replace_attributes
from castore.content.restore.range_writes import RangeWriter, with_range_plans
from castore.content.restore.tree_writer import TreeWriter, named
from castore.content.restore.undo_area import UndoArea
from castore.content.restore.undo_journal import Journal
from castore.errors import CastoreError, DamageError
from castore.fs.beneath import locate, make_directory, open_below, open_content, open_entry, path_of
from castore.fs.metadata import is_protected
from castore.state.restore_runs import record_run

if TYPE_CHECKING:
    from castore.content.restore.live_file import LiveFile
    from castore.content.restore.metadata import Ownership
    from castore.content.restore.plan import Step, TreePlan
    from castore.content.restore.report import Report
    from castore.content.restore.undo_journal import Ids, Path
    from castore.content.stored_dirs import Child
    from castore.content.streams import StreamReader
    from castore.model.tree import Entry
    from castore.progress import Progress


_FEW: Final = 4
"""Up to this many steps, each file is synced by itself: syncing the file system also waits for what all other
programs have written, which can take many seconds."""


def _is_simple(step: Step) -> bool:
    """Whether a step changes one file, or the metadata of one directory."""
    child = step.child
    return child is None or child.entry.is_file or (step.action == "metadata" and child.entry.is_dir)


class PlanWriter:
    """Writes what the steps of a plan need below its top directory, which is open as `top`."""

    def __init__(
        self, reader: StreamReader, plan: TreePlan, ownership: Ownership, progress: Progress
    ) -> None:
        self._ownership = ownership
        try:
            with locate(plan.top) as found:
                self.real_path = found.path
                self.top = found.open_directory()
        except OSError as error:
            raise CastoreError(f"cannot restore into {plan.top}: {error.strerror}") from error
        info = os.fstat(self.top)
        if plan.ids not in {None, (info.st_dev, info.st_ino)}:
            os.close(self.top)
            raise CastoreError(
                f"{plan.top} has been replaced by another directory since it was compared: nothing was "
                "touched; repeat the command"
            )
        self._writer = TreeWriter(reader, self.top, ownership, progress)
        self._writer.know_links(plan.kept_links)

    @property
    def report(self) -> Report:
        """What could not be done."""
        return self._writer.report

    def make(self, fd: int, path: Path, child: Child, old: LiveFile | None) -> None:
        """Create a stored file or directory at `path`. old: a file that may have some of it."""
        if not child.entry.is_dir:
            self._writer.make(fd, path, child, old)
            return
        made = make_directory(path[-1], fd)
        try:
            drop_inherited(made)
            self._writer.fill(child, made, path)
            self._set(made, path, child)
        finally:
            os.close(made)

    def set(self, fd: int, path: Path, child: Child, ids: Ids | None, *, keep: bool = False) -> None:
        """Set the metadata of the file or directory at `path`, in the directory open as `fd`.

        ids: of the file that was compared. keep: leave attributes that are not stored. Raises OSError, also
        if another file has taken its place.
        """
        held = open_entry(fd, path[-1])
        try:
            info = os.fstat(held)
            if ids not in {None, (info.st_dev, info.st_ino)}:
                raise OSError(errno.ESTALE, "another file has taken its place: is its service still running?")
            self._set(path_of(held), path, child, keep=keep)
        finally:
            os.close(held)

    def _set(self, file: int | bytes, path: Path, child: Child, *, keep: bool = False) -> None:
        def warn(reason: str) -> None:
            self.report.warnings.append((b"/".join(path), reason))

        mode = mode_of(child.entry, self._ownership)
        if not self._ownership.change:
            # A file of the restoring user that already has these bits may keep them.
            mode |= child.entry.mode & os.stat(file).st_mode & (stat.S_ISUID | stat.S_ISGID)
        replace_attributes(file, child.entry, child.owners, self._ownership, warn, mode=mode, keep=keep)

    def close(self) -> None:
        """Close the top directory."""
        if self.top >= 0:
            os.close(self.top)
            self.top = -1


class InPlace(PlanWriter):
    """Carries out a plan; `revert` reverts it until `commit` confirms it."""

    def __init__(
        self,
        reader: StreamReader,
        plan: TreePlan,
        ownership: Ownership,
        progress: Progress,
        owner: str = "",
    ) -> None:
        super().__init__(reader, plan, ownership, progress)
        self._reader = reader
        self._plan = plan
        self._progress = progress
        self._owner = owner
        self._journals = reader.store.paths.journals
        self._undo: UndoArea | None = None
        store = reader.store
        self._record = store.paths.restores_of(store.store_id, store.storage.location)
        self._seconds = plan.seconds
        self._ranges = RangeWriter(reader, ownership, self._count)

    def _count(self, count: int) -> None:
        self._progress.read += count

    @property
    def problems(self) -> list[tuple[bytes, str]]:
        """(path, reason) of files that could not be restored as they are stored."""
        report = self.report
        return [*self._plan.skipped, *report.damaged, *report.warnings]

    def apply(self) -> None:
        """Carry out all steps. Raises CastoreError, DamageError; the caller then calls `revert`."""
        began = time.monotonic()
        self._plan = with_range_plans(self._reader, self._plan, self._ownership, self.top)
        if self._plan.steps:
            self._carry_out()
        self._seconds += time.monotonic() - began

    def _carry_out(self) -> None:
        # Before any change, since changes in a directory change its time.
        steps = tuple((step.action, step.path or (b".",)) for step in self._plan.steps)
        before = tuple((path, *self._entry_of(path)) for action, path in steps if action == "metadata")
        self._refuse_protected()
        last = self._plan.steps[-1]
        top_time = last.child.entry.mtime if last.child is not None and not last.path else None
        try:
            journal = Journal(steps, before, top_time, self._owner, self.real_path)
            self._undo = UndoArea.create(self.top, journal, self._journals)
        except OSError as error:
            raise CastoreError(f"cannot begin in {self._plan.top}: {error.strerror}") from error
        for step in self._plan.steps:
            try:
                self._do(self._undo, step)
            except OSError as error:
                shown = os.path.join(self._plan.top, os.fsdecode(b"/".join(step.path)))
                hint = ""
                if isinstance(error, PermissionError) and step.path and self._is_protected(step.path):
                    hint = ": it, or its directory, is immutable or append-only; allow it with chattr -i"
                elif isinstance(error, PermissionError) and step.action == "replace" and os.geteuid() == 0:
                    hint = ": it is in use; if it is a swap file, run swapoff first"
                raise CastoreError(f"cannot {step.action} {shown}: {error.strerror}{hint}") from error
        report = self.report
        if lacking := [*report.damaged, *report.unmade]:
            where, reason = lacking[0]
            shown = where.decode(errors="backslashreplace")
            kind = DamageError if report.damaged else CastoreError
            raise kind(f"cannot restore {self._plan.top}/{shown}: {reason}")
        self._sync(self._undo)

    def _sync(self, undo: UndoArea) -> None:
        """Make the restored state durable: a rollback may record that it is done only after that."""
        undo.copied |= self._plan.crosses
        steps = self._plan.steps
        try:
            if len(steps) <= _FEW and all(map(_is_simple, steps)):
                folders = {step.path[:-1] for step in steps}
                folders |= {step.path for step in steps if step.child is not None and step.child.entry.is_dir}
                files = [step.path for step in steps if step.child is not None and step.child.entry.is_file]
                if undo.sync_few(files, folders):
                    return
            undo.sync()
        except OSError as error:
            reason = f"what was restored could not be made durable: {error.strerror}"
            raise CastoreError(f"cannot restore {self._plan.top}: {reason}") from error

    def _refuse_protected(self) -> None:
        """Raise CastoreError for a step that an immutable or append-only directory or file would prevent.

        An append-only directory accepts new files, which can never be removed again. A file that is only to
        be removed is left and reported instead.
        """
        if self._has_flag(()):
            self._refuse(self._plan.steps[0], ())  # the undo directory would be there
        changing = [step for step in self._plan.steps if step.action in {"create", "replace"}]
        protected = {folder for folder in {step.path[:-1] for step in changing} if self._has_flag(folder)}
        for step in changing:
            if step.path[:-1] in protected:
                self._refuse(step, step.path[:-1])
            if step.action == "replace" and self._is_protected(step.path):
                self._refuse(step, step.path)

    def _has_flag(self, folder: Path) -> bool:
        fd = open_below(self.top, folder)
        try:
            return is_protected(fd)
        finally:
            os.close(fd)

    def _refuse(self, step: Step, blocked: Path) -> None:
        top = os.fsencode(self._plan.top)
        shown, what = (os.fsdecode(b"/".join([top, *one])) for one in (step.path, blocked))
        raise CastoreError(
            f"cannot {step.action} {shown}: {what} is immutable or append-only (allow it with: "
            f"chattr -i -a {shlex.quote(what)}); nothing was changed"
        )

    def _do(self, undo: UndoArea, step: Step) -> None:
        path = step.path or (b".",)
        undo.begin()
        live = self._open_live(step)
        try:
            self._change(undo, step, path, live)
        finally:
            if live is not None:
                os.close(live.fd)

    def _open_live(self, step: Step) -> LiveFile | None:
        """Open the live file that a step replaces, if the new one may reuse some of its content."""
        if not is_large(step):
            return None
        fd = open_below(self.top, step.path[:-1])
        try:
            return open_live(fd, step.path[-1], step.proof)
        finally:
            os.close(fd)

    def _write_ranges(self, undo: UndoArea, step: Step, live: LiveFile) -> bool:
        """Write only what differs into a live file; return False if a new file has to be made."""
        path, child = step.path, step.child
        if child is None or not self._plan.range_writes:
            return False
        fd = open_below(self.top, path[:-1])
        try:
            if not self._ranges.write(undo, fd, live, child, step.ranges):
                return False
            self._progress.files += 1
            self.set(fd, path, child, live.stamp[:2])
        except DamageError as error:
            self.report.damage(path, error)
        finally:
            os.close(fd)
        return True

    def _change(self, undo: UndoArea, step: Step, path: Path, live: LiveFile | None) -> None:
        if live is not None and self._write_ranges(undo, step, live):
            return
        moved = True
        if step.action in {"remove", "replace"}:
            try:
                moved = undo.save(path, step.ids)
            except PermissionError as error:
                protected = self._is_protected(path)
                if step.action == "replace" or not (protected or os.geteuid() == 0):
                    raise
                why = "is immutable or append-only (see lsattr)" if protected else "is in use (a swap file?)"
                reason = f"{why}: it cannot be removed and was left"
                self.report.warnings.append((b"/".join(path), reason))
                del error
        if step.child is None:
            return
        if not moved:
            child = step.child
            undo.replace_mounted(path, lambda fd, new: self._writer.make(fd, new, named(child, new[-1])))
            return
        fd = open_below(self.top, path[:-1])
        try:
            if step.action == "metadata":
                self.set(fd, path, step.child, step.ids, keep=step.keep_attributes)
            else:
                self.make(fd, path, step.child, live)
        finally:
            os.close(fd)

    def _entry_of(self, path: Path) -> tuple[Entry, Ids]:
        """Return the metadata of a live file that undoing needs, and which file it is."""
        fd = open_below(self.top, path[:-1])
        try:
            # Attributes that cannot be read are reported when the step is carried out.
            return live_entry(fd, path[-1], lambda _: None)
        finally:
            os.close(fd)

    def _is_protected(self, path: Path) -> bool:
        """Whether a file, or its directory, is immutable or append-only."""
        parent = open_below(self.top, path[:-1])
        try:
            if is_protected(parent):
                return True
            fd = open_content(parent, path[-1])
        except OSError:
            return False  # a link, a device: they have no such flags
        finally:
            os.close(parent)
        try:
            return is_protected(fd)
        finally:
            os.close(fd)

    def revert(self) -> None:
        """Revert all steps. Raises CastoreError if that fails; `castore recover` can then repeat it."""
        warnings = self.report.warnings
        try:
            if self._undo is not None:
                self._undo.restore(lambda path, why: warnings.append((b"/".join(path), why)))
        except OSError as error:
            where = self._undo.path if self._undo is not None else ""
            raise CastoreError(
                f"the previous state of {self._plan.top} could not be restored ({error.strerror}): what was "
                f"moved aside is in {where}; when the cause is fixed: castore recover {self._plan.top}"
            ) from error
        finally:
            self._close()

    def commit(self) -> None:
        """Confirm the result: remove the undo directory."""
        began = time.monotonic()
        try:
            if self._undo is not None:
                left = self._undo.discard()
                self.report.warnings += [(b"/".join(path), reason) for path, reason in left]
        except OSError as error:
            # All is restored. The next restore reports what remains, and `recover` tries to remove it again.
            where = os.path.basename(self._undo.path) if self._undo is not None else ""
            self.report.warnings.append((os.fsencode(where), f"cannot be removed: {error.strerror}"))
        else:
            record_run(self._record, self._plan.work, self._seconds + time.monotonic() - began)
        finally:
            self._close()

    def _close(self) -> None:
        if self._undo is not None:
            self._undo.close()
            self._undo = None
        self.close()
