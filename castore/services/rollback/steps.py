"""How each part of a rollback is changed, finished or undone."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from castore.content.restore.in_place import InPlace
from castore.content.restore.recover import recover as recover_tree
from castore.content.restore.undo_area import UNMOVABLE
from castore.content.restore.undo_journal import boot_id, same_file
from castore.engines.base import SWITCHING, Contents, Memo
from castore.errors import CastoreError, UsageError
from castore.fs.beneath import locate, make_directory
from castore.fs.regular import temporary_names
from castore.fs.removing import remove
from castore.services.restore import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from castore.content.restore.metadata import Ownership
    from castore.content.restore.plan import TreePlan
    from castore.content.streams import StreamReader
    from castore.model.generation import Generation, Part
    from castore.progress import Progress
    from castore.services.snapshot import EngineSource

_EXISTED: Final = "existed"
_LEFT: Final = "left"
"""In a memo: what was moved aside is not removed, because no generation has all of it."""


class RollbackStep:
    """How one part is changed. Of these, `undo` and `finish` may be called in another process."""

    problems: list[tuple[bytes, str]]

    def stage(self) -> None:
        """Make what can be made beside the live state."""

    def switch(self) -> None:
        """Let it take its place."""

    def undo(self) -> None:
        """Put the live state back."""

    def finish(self) -> None:
        """Remove what was replaced."""


class DumpStep(RollbackStep):
    """A dump that an engine puts back."""

    def __init__(
        self,
        source: EngineSource,
        memo: Memo,
        contents: Contents,
        own: Callable[[str, str], None] = lambda _path, _inode: None,
    ) -> None:
        """own: gives a staged file that replaces nothing its recorded owner and mode."""
        self.problems = []
        self._own = own
        self._engine = source.engine
        self._memo = memo
        self._contents = contents

    def stage(self) -> None:
        """Make what can be made beside the live state."""
        self._engine.stage(self._memo, self._contents)
        new = self._memo.get("new", "")
        if self._memo.get(_EXISTED) == "" and os.path.isfile(new):
            self._own(new, self._memo.get("inode", ""))

    def switch(self) -> None:
        """Let it take its place."""
        self._engine.switch(self._memo, self._contents)

    def undo(self) -> None:
        """Put the live state back."""
        self._engine.undo(self._memo, self._contents)

    def finish(self) -> None:
        """Remove what was replaced."""
        if self._memo.get(_LEFT):
            old = self._memo.get("old", "")
            self.problems = [(b".", f"a snapshot could not read all of it: it was moved to {old}")]
            return
        self._engine.finish(self._memo)


class EngineRemoval(DumpStep):
    """A part of an engine that did not exist in the state to go back to."""

    def __init__(
        self, source: EngineSource, memo: Memo, contents: Contents, is_kept: Callable[[], bool]
    ) -> None:
        """is_kept: whether the pre-rollback generation has all of it."""
        super().__init__(source, memo, contents)
        self._is_kept = is_kept

    def stage(self) -> None:
        """Make nothing."""

    def switch(self) -> None:
        """Remove it."""
        if not self._is_kept():
            self._memo[_LEFT] = "yes"
        self._engine.remove(self._memo)


class TreeStep(RollbackStep):
    """A tree that is made equal to the stored one, in place."""

    def __init__(
        self,
        reader: StreamReader,
        service: str,
        path: bytes,
        plan: Callable[[], TreePlan],
        ownership: Ownership,
        tally: Progress,
    ) -> None:
        self.problems = []
        self.memo: Memo = {_EXISTED: "yes" if os.path.lexists(path) else ""}
        self._reader = reader
        self._service = service
        self._path = os.fsdecode(path)
        self._plan = plan
        self._ownership = ownership
        self._tally = tally
        self._work: InPlace | None = None

    def switch(self) -> None:
        """Let it take its place."""
        if not os.path.lexists(self._path):
            refuse_without_folder(self._path)
            try:
                with locate(self._path) as at:
                    os.close(make_directory(at.name, at.folder))
            except OSError as error:
                raise CastoreError(f"cannot make {self._path}: {error.strerror}") from error
        self._work = InPlace(self._reader, self._plan(), self._ownership, self._tally, self._service)
        self._work.apply()

    def undo(self) -> None:
        """Put the live state back."""
        if self._work is not None:
            work, self._work = self._work, None
            work.undo()
        _unmake(self._path, self.memo)

    def finish(self) -> None:
        """Remove what was replaced."""
        if self._work is not None:
            work, self._work = self._work, None
            work.keep()
            # Not before: what cannot be removed is found here.
            self.problems = work.problems


class RecoveredTreeStep(RollbackStep):
    """A tree that another process was at work on."""

    def __init__(self, journals: str, path: bytes, memo: Memo) -> None:
        self.problems = []
        self._journals = journals
        self._path = os.fsdecode(path)
        self._memo = memo

    def undo(self) -> None:
        """Restore the previous state of the tree from its undo journal."""
        if os.path.isdir(self._path):
            recover_tree(self._journals, self._path, owned=True)
        _unmake(self._path, self._memo)

    def finish(self) -> None:
        """Keep the restored tree, and delete its undo journal."""
        if os.path.isdir(self._path):
            recover_tree(self._journals, self._path, keep=True, owned=True)


def _unmake(path: str, memo: Memo) -> None:
    """Remove a tree that a roll-back made, if it is empty: what is in it is the service's."""
    if memo.get(_EXISTED) == "" and SWITCHING in memo:
        with contextlib.suppress(OSError), locate(path, follow=False) as at:
            os.rmdir(at.name, dir_fd=at.folder)


def refuse_without_folder(path: str) -> None:
    """Raise UsageError where there is no folder that a tree could be made in again."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise UsageError(
            f"there is no folder {folder} to make the tree {path} in: make it, with the owner and mode that "
            "it had"
        )


class TreeRemoval(RollbackStep):
    """A tree that did not exist in the state to go back to: it is moved aside, next to itself.

    What no snapshot has of it stays where it is.
    """

    def __init__(
        self,
        journals: str,
        path: bytes,
        memo: Memo | None = None,
        work: Callable[[], tuple[InPlace, bool]] | None = None,
    ) -> None:
        """journals: the directory of those of restores in place.

        work: returns what removes the tree in place, and whether nothing in it has to stay.
        """
        self.problems = []
        self._journals = journals
        live = os.fsdecode(path)
        self.memo: Memo = {"path": live, "old": temporary_names(live)[1], **_identity(live)}
        if memo is not None:
            self.memo = memo
        self._prepare = work
        self._work: InPlace | None = None
        self._complete = False

    def switch(self) -> None:
        """Move it aside, or remove what may go."""
        live, old = self.memo["path"], self.memo["old"]
        work = None
        if self._prepare is not None and os.path.isdir(live) and not os.path.islink(live):
            work, self._complete = self._prepare()
        if work is None or self._complete:
            try:
                _rename(live, old)
            except OSError as error:
                if work is None or error.errno not in UNMOVABLE:
                    raise CastoreError(
                        f"{live} did not exist before, and cannot be moved aside: {error.strerror}"
                    ) from error
            else:
                if work is not None:
                    work.close()
                if not _is_same(old, self.memo):
                    _rename(old, live)
                    raise CastoreError(f"{live} has been replaced by something else meanwhile, and is left")
                return
        self._work = work
        work.apply()

    def undo(self) -> None:
        """Move it back."""
        live, old = self.memo["path"], self.memo["old"]
        work, self._work = self._work, None
        if work is not None:
            work.undo()
        elif os.path.isdir(live) and not os.path.islink(live):
            recover_tree(self._journals, live, owned=True)
        try:
            if os.path.lexists(old):
                if not _is_same(old, self.memo):
                    raise CastoreError(
                        f"{live} could not be restored: {old}, which it was moved to, has been replaced by "
                        "something else"
                    )
                _rename(old, live)
        except OSError as error:
            raise CastoreError(
                f"{live} could not be restored ({error.strerror}): its previous state is in {old}"
            ) from error

    def finish(self) -> None:
        """Remove it."""
        live = self.memo["path"]
        work, self._work = self._work, None
        if work is not None:
            work.keep()
            self.problems = work.problems
            if self._complete:
                with contextlib.suppress(OSError), locate(live, follow=False) as at:
                    os.rmdir(at.name, dir_fd=at.folder)
        elif os.path.isdir(live) and not os.path.islink(live):
            recover_tree(self._journals, live, keep=True, owned=True)
        old = self.memo["old"]
        if not os.path.lexists(old):
            return
        if not _is_same(old, self.memo):
            raise CastoreError(f"{old} has been replaced by something else: look at it, and remove it")
        with locate(old, follow=False) as at, contextlib.suppress(FileNotFoundError):
            remove(at.name, at.folder)


def _identity(path: str) -> Memo:
    """Return what tells whether a path still names the same file or directory."""
    try:
        info = os.lstat(path)
    except OSError:
        return {}
    return {"device": str(info.st_dev), "inode": str(info.st_ino), "boot": boot_id()}


def _is_same(path: str, memo: Memo) -> bool:
    """Whether a path names what a memo is about. Raises OSError."""
    ids = (int(memo.get("device", "0")), int(memo.get("inode", "0")))
    return "inode" not in memo or same_file(ids, os.lstat(path), memo.get("boot", ""))


def _rename(path: str, new: str) -> None:
    """Give what is at a path another name in its directory, durably. Raises OSError."""
    with locate(path, follow=False) as at:
        os.rename(at.name, os.path.basename(os.fsencode(new)), src_dir_fd=at.folder, dst_dir_fd=at.folder)
        at.sync()


def contents_of(
    reader: StreamReader,
    part: Part | None,
    safety: Callable[[], Generation | None],
    tally: Progress | None = None,
) -> Contents:
    """Return what there is of a part: the dump to go back to, and that of the safety generation.

    tally: counts what is read of the dump to go back to.
    """

    def target() -> Iterable[bytes]:
        pieces: Iterable[bytes] = reader.read(part.content) if part is not None else ()
        return pieces if tally is None else counted(pieces, tally)

    def before() -> Iterable[bytes]:
        taken = safety()
        found = taken.part(part.name) if taken is not None and part is not None else None
        if found is None:
            raise CastoreError("there is no dump of what was there before")
        return reader.read(found.content)

    return Contents(target, before)
