"""The steps of a rollback: how each part is staged, swapped, reverted and cleaned up.

`revert` and `cleanup` also run in another process, after a kill: they depend only on what the journal stores.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from castore.content.restore.recover import recover as recover_tree
from castore.content.restore.undo_area import UNMOVABLE
from castore.content.restore.undo_journal import boot_id, same_file
from castore.engines.base import Contents
from castore.engines.state import FileSwap, PathSwap
from castore.errors import CastoreError, UsageError
from castore.fs.beneath import locate, make_directory
from castore.fs.regular import temporary_names
from castore.fs.removing import remove
from castore.services.restore import counted
from castore.services.rollback.journal import PartJournal, TreeMove

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from castore.content.restore.in_place import InPlace
    from castore.content.restore.plan import TreePlan
    from castore.content.streams import StreamReader
    from castore.engines.base import Engine
    from castore.engines.state import EngineState
    from castore.model.generation import Generation, Part
    from castore.progress import Progress


class RollbackStep:
    """The change of one part. Another process may call `revert` and `cleanup`.

    journal: what is recorded of the part. The caller writes it durably between the steps.
    """

    def __init__(self, journal: PartJournal) -> None:
        self.journal = journal
        self.problems: list[tuple[bytes, str]] = []
        """(path, reason) of what could not be restored, or not be removed."""

    def stage(self) -> list[str]:
        """Restore what can be restored next to the live state, without changing it; return remarks."""
        return []

    def swap(self) -> list[str]:
        """Replace the live state by the target's; return remarks for people."""
        return []

    def revert(self) -> None:
        """Restore the previous state."""

    def cleanup(self) -> None:
        """Delete what the target's state replaced."""


class DumpStep(RollbackStep):
    """A dump that an engine restores. state: that of the journal, which the engine may change."""

    def __init__(
        self,
        engine: Engine[Any],
        state: EngineState,
        journal: PartJournal,
        contents: Contents,
        own: Callable[[str, tuple[int, int]], None] = lambda _path, _inode: None,
    ) -> None:
        """own: sets the recorded owner and mode of a staged file that replaces no other, given its inode."""
        super().__init__(journal)
        self._own = own
        self._engine = engine
        self._state = state
        self._contents = contents

    def stage(self) -> list[str]:
        """Restore what can be restored next to the live state, without changing it; return remarks."""
        remarks = self._engine.stage(self._state, self._contents)
        state = self._state
        if isinstance(state, FileSwap) and state.inode is not None and not state.existed:
            self._own(state.new, state.inode)
        return remarks

    def swap(self) -> list[str]:
        """Replace the live state by the target's; return remarks for people."""
        return self._engine.swap(self._state, self._contents)

    def revert(self) -> None:
        """Restore the previous state."""
        self._engine.revert(self._state, self._contents, swapped=self.journal.swap_begun)

    def cleanup(self) -> None:
        """Delete what the target's state replaced."""
        if self.journal.keep_old:
            old = self._state.old if isinstance(self._state, PathSwap) else "another name"
            reason = f"the pre-rollback snapshot could not read all of it: it was moved to {old}"
            self.problems = [(b".", reason)]
            return
        self._engine.cleanup(self._state)


class AddedDumpStep(DumpStep):
    """A dump that did not exist in the target generation, and is removed."""

    def __init__(
        self,
        engine: Engine[Any],
        state: EngineState,
        journal: PartJournal,
        contents: Contents,
        may_delete: Callable[[], bool],
    ) -> None:
        """may_delete: return whether the live state may be deleted.

        It may if the pre-rollback generation has all of the part, or if none was to be taken.
        """
        super().__init__(engine, state, journal, contents)
        self._may_delete = may_delete

    def stage(self) -> list[str]:
        """Do nothing: there is nothing to restore."""
        return []

    def swap(self) -> list[str]:
        """Remove the live state; keep it aside if no generation has all of it."""
        self.journal.keep_old = not self._may_delete()
        self._engine.remove(self._state)
        return []


class TreeStep(RollbackStep):
    """A live tree that is changed in place until it equals the stored one."""

    def __init__(
        self, journal: PartJournal, plan: Callable[[], TreePlan], apply: Callable[[TreePlan], InPlace]
    ) -> None:
        """apply: return the change in place that carries out a plan."""
        super().__init__(journal)
        self._path = os.fsdecode(journal.path)
        self._plan = plan
        self._apply = apply
        self._work: InPlace | None = None

    def swap(self) -> list[str]:
        """Replace the live state by the target's."""
        if not os.path.lexists(self._path):
            refuse_without_folder(self._path)
            try:
                with locate(self._path) as at:
                    os.close(make_directory(at.name, at.folder))
            except OSError as error:
                raise CastoreError(f"cannot make the directory {self._path}: {error.strerror}") from error
        self._work = self._apply(self._plan())
        self._work.apply()
        return []

    def revert(self) -> None:
        """Restore the previous state."""
        if self._work is not None:
            work, self._work = self._work, None
            work.revert()
        _unmake(self.journal)

    def cleanup(self) -> None:
        """Delete what the target's state replaced."""
        if self._work is not None:
            work, self._work = self._work, None
            work.commit()
            # Read the problems last: `commit` adds files that it cannot remove.
            self.problems = work.problems


class RecoveredTreeStep(RollbackStep):
    """A tree that another process was changing when it was killed.

    journals: the directory with the journals of restores in place.
    """

    def __init__(self, journal: PartJournal, journals: str) -> None:
        super().__init__(journal)
        self._journals = journals
        self._path = os.fsdecode(journal.path)

    def revert(self) -> None:
        """Restore the previous state of the tree from its undo journal."""
        if os.path.isdir(self._path):
            recover_tree(self._journals, self._path, owned=True)
        _unmake(self.journal)

    def cleanup(self) -> None:
        """Keep the restored tree, and delete its undo journal."""
        if os.path.isdir(self._path):
            recover_tree(self._journals, self._path, keep=True, owned=True)


def _unmake(journal: PartJournal) -> None:
    """Remove a tree that the rollback created, if it is empty: its files belong to the service."""
    if journal.swap_begun and not journal.existed:
        with contextlib.suppress(OSError), locate(journal.path, follow=False) as at:
            os.rmdir(at.name, dir_fd=at.folder)


def refuse_without_folder(path: str) -> None:
    """Raise UsageError if the directory does not exist that a tree would be created in."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise UsageError(
            f"cannot make the tree {path}: the directory {folder} does not exist; make it, with the owner "
            "and mode that it had, and repeat the command"
        )


class AddedTreeStep(RollbackStep):
    """A tree that did not exist in the target generation: it is moved aside, to a name next to it.

    Files that no snapshot has stay where they are.
    """

    def __init__(
        self,
        journal: PartJournal,
        move: TreeMove,
        journals: str,
        work: Callable[[], tuple[InPlace, bool]] | None = None,
    ) -> None:
        """journals: the directory with the journals of restores in place.

        work: return the in-place removal of the tree, and whether nothing in it has to stay; None: another
        process has begun the removal.
        """
        super().__init__(journal)
        self._move = move
        self._live = os.fsdecode(journal.path)
        self._journals = journals
        self._prepare = work
        self._work: InPlace | None = None
        self._complete = False

    def swap(self) -> list[str]:
        """Move the tree aside, or remove in place what a snapshot has."""
        live, old = self._live, self._move.old
        work = None
        if self._prepare is not None and os.path.isdir(live) and not os.path.islink(live):
            work, self._complete = self._prepare()
        if work is None or self._complete:
            try:
                _rename(live, old)
            except OSError as error:
                if work is None or error.errno not in UNMOVABLE:
                    raise CastoreError(
                        f"{live} did not exist in the target generation, and cannot be moved aside: "
                        f"{error.strerror}"
                    ) from error
            else:
                if work is not None:
                    work.close()
                if not _is_same(old, self._move):
                    _rename(old, live)
                    raise CastoreError(
                        f"{live} was replaced by another file or directory meanwhile, and is left as it is"
                    )
                return []
        self._work = work
        work.apply()
        return []

    def revert(self) -> None:
        """Move the tree back, or restore what was removed in place."""
        live, old = self._live, self._move.old
        work, self._work = self._work, None
        if work is not None:
            work.revert()
        elif os.path.isdir(live) and not os.path.islink(live):
            recover_tree(self._journals, live, owned=True)
        try:
            if os.path.lexists(old):
                if not _is_same(old, self._move):
                    raise CastoreError(
                        f"{live} cannot be restored: {old}, which it was moved to, was replaced by another "
                        "file or directory"
                    )
                _rename(old, live)
        except OSError as error:
            raise CastoreError(
                f"{live} cannot be restored ({error.strerror}): its previous state is in {old}"
            ) from error

    def cleanup(self) -> None:
        """Delete the tree that was moved aside."""
        live = self._live
        work, self._work = self._work, None
        if work is not None:
            work.commit()
            self.problems = work.problems
            if self._complete:
                with contextlib.suppress(OSError), locate(live, follow=False) as at:
                    os.rmdir(at.name, dir_fd=at.folder)
        elif os.path.isdir(live) and not os.path.islink(live):
            recover_tree(self._journals, live, keep=True, owned=True)
        old = self._move.old
        if not os.path.lexists(old):
            return
        if not _is_same(old, self._move):
            raise CastoreError(f"{old} was replaced by another file or directory: look at it, and remove it")
        with locate(old, follow=False) as at, contextlib.suppress(FileNotFoundError):
            remove(at.name, at.folder)


def planned_move(path: str) -> TreeMove:
    """Return how the tree at a path will be moved aside."""
    old = temporary_names(path)[1]
    try:
        info = os.lstat(path)
    except OSError:
        return TreeMove(old)
    return TreeMove(old, (info.st_dev, info.st_ino), boot_id())


def _is_same(path: str, move: TreeMove) -> bool:
    """Whether a path still names the file or directory that is moved. Raises OSError."""
    return move.inode is None or same_file(move.inode, os.lstat(path), move.boot)


def _rename(path: str, new: str) -> None:
    """Rename a file or directory within its directory, durably. Raises OSError."""
    with locate(path, follow=False) as at:
        os.rename(at.name, os.path.basename(os.fsencode(new)), src_dir_fd=at.folder, dst_dir_fd=at.folder)
        at.sync()


def contents_of(
    reader: StreamReader,
    part: Part | None,
    pre_rollback: Callable[[], Generation | None],
    progress: Progress | None = None,
) -> Contents:
    """Return readers of the dumps of a part: the target's, and the one of the pre-rollback generation.

    progress: counts the bytes that are read of the target's dump.
    """

    def target() -> Iterable[bytes]:
        pieces: Iterable[bytes] = reader.read(part.content) if part is not None else ()
        return pieces if progress is None else counted(pieces, progress)

    def before() -> Iterable[bytes]:
        generation = pre_rollback()
        found = generation.part(part.name) if generation is not None and part is not None else None
        if found is None:
            raise CastoreError("no pre-rollback generation has a dump of the previous state")
        return reader.read(found.content)

    return Contents(target, before)
