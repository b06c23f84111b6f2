"""Undo or finish interrupted restores in place."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from castore.content.restore.undo_area import ASIDE, PROGRESS, TOKEN, UndoArea, explain
from castore.content.restore.undo_journal import JournalFile, Record, is_part, journals, read, same_file
from castore.errors import CastoreError, UsageError
from castore.fs.beneath import (
    OPEN_DIRECTORY,
    is_for_own_user,
    locate,
    open_entry,
    open_regular,
    path_of,
)
from castore.fs.removing import remove_all_in, remove_directory
from castore.model.counting import count as counted

if TYPE_CHECKING:
    from castore.content.restore.undo_journal import Journal, Path


def foreign_asides(folder: str, path: bytes) -> list[str]:
    """Return the names in the directory `path` of undo directories that have no journal in `folder`."""
    try:
        names = [name for name in os.listdir(path) if name.startswith(ASIDE)]
    except OSError:
        return []  # the caller that reads the directory reports it
    found = journals(folder) if names else []
    own = {one.journal.undo for one in found if one.journal.path == path}
    return sorted(os.fsdecode(name) for name in names if name not in own)


def recover(
    folder: str, path: str, *, keep: bool = False, owned: bool = False, forget: bool = False
) -> list[str]:
    """Undo or finish what interrupted restores in place left in the directory `path`; return what was done.

    folder: of the journals. keep: finish a restore that was complete, although it was not yet confirmed: the
    caller knows that its result is to be kept. owned: accept restores that are part of a service's rollback,
    which are otherwise refused. forget: delete the journal of a restore whose undo directory is missing.
    Raises UsageError if `path` is not a directory, CastoreError if it cannot be recovered.
    """
    try:
        with locate(path) as found:
            real = found.path
            top = found.open_directory()
    except OSError as error:
        missing = [one for one in journals(folder) if one.journal.path == os.path.abspath(os.fsencode(path))]
        if not missing:
            raise UsageError(f"cannot recover {path}: {error.strerror}") from None
        return [_recover_missing(one, path, error, forget=forget) for one in missing]
    try:
        here = os.fstat(top)
        ids = (here.st_dev, here.st_ino)
        records = [one for one in journals(folder) if real == one.journal.path or ids == one.journal.top]
        lines = [_recover(record, top, path, keep=keep, owned=owned, forget=forget) for record in records]
        lines += [_look_at_foreign(top, path, name) for name in foreign_asides(folder, real)]
        return [f"{path}: {line}" for line in lines]
    finally:
        os.close(top)


def _recover_missing(record: Record, path: str, error: OSError, *, forget: bool) -> str:
    if not forget:
        raise CastoreError(
            f"a restore into {path} was interrupted, and that directory cannot be opened ({error.strerror}): "
            f"move it back; or, if it was deleted on purpose: castore recover --forget {path}/"
        )
    os.unlink(record.file)
    return f"{path}: the interrupted restore is forgotten"


def _look_at_foreign(top: int, path: str, name: str) -> str:
    """Remove an undo directory whose journal was not written; return a message about any other one."""
    shown = os.path.join(path, name)
    with contextlib.suppress(OSError):
        fd = os.open(name, OPEN_DIRECTORY, dir_fd=top)
        try:
            empty = is_for_own_user(os.fstat(fd)) and not set(os.listdir(fd)) - {os.fsdecode(PROGRESS)}
            here = os.fstat(top)
            if empty and os.fstat(fd).st_dev == here.st_dev:
                remove_all_in(fd)
                remove_directory(os.fsencode(name), top, fd)
                # Its restore may have been ended, and have set the time of the top already.
                os.utime(top, ns=(here.st_atime_ns, here.st_mtime_ns))
                return "nothing had been touched: only an empty directory was left"
        finally:
            os.close(fd)
    return (
        f"{shown} belongs to no restore that this user's castore began, and was left alone: if another "
        f"user's restore was interrupted, that user runs castore recover {path}; else look at it, and remove "
        "it"
    )


def _recover(record: Record, top: int, path: str, *, keep: bool, owned: bool, forget: bool) -> str:
    file = JournalFile(record.file)
    undo: UndoArea | None = None
    try:
        found = read(record.file)
        if found is None:
            return "nothing is left to do"
        fd = _open_checked(found, top, path, owned=owned, forget=forget)
        if fd < 0 and not found.end:
            file.discard()
            return "the interrupted restore is forgotten; what it had moved aside is missing"
        undo = UndoArea(top, fd, file, found.journal, _begun(fd, found.journal))
        return _end(undo, found, path, keep=keep)
    finally:
        file.close()
        if undo is not None:
            undo.close()


def _open_checked(found: Record, top: int, path: str, *, owned: bool, forget: bool) -> int:
    """Open the undo directory of a journal; -1: it is missing, which is allowed. Raises CastoreError."""
    if found.journal.owner and not (owned or found.end):
        raise CastoreError(is_part(found.journal))
    fd = _open_undo(top, found)
    if fd < 0 and not found.end and not forget:
        raise CastoreError(_moved_away(found, path))
    return fd


def _end(undo: UndoArea, found: Record, path: str, *, keep: bool) -> str:
    """Undo or finish a restore; return which. Raises CastoreError."""
    problems: list[str] = []

    def warn(where: Path, why: str) -> None:
        problems.append(f"; {os.fsdecode(b'/'.join(where))}: {why}")

    try:
        if found.end == "done" or (keep and not found.end and undo.is_complete):
            for where, why in undo.discard():
                warn(where, why)
            return "all had been restored; what it replaced is removed" + "".join(problems)
        if found.end == "reverted":
            undo.end_revert(warn)
            return "reverted to the previous state" + "".join(problems)
        undo.restore(warn)
        return f"reverted to the previous state, {counted(undo.begun, 'step')} undone" + "".join(problems)
    except OSError as error:
        if found.end:
            state = "restored" if found.end == "done" else "reverted"
            raise CastoreError(
                f"{path} is {state}, but {undo.path} cannot be removed: {explain(error)}; remove it by "
                "hand, or run this again when the cause is fixed"
            ) from error
        raise CastoreError(
            f"the previous state of {path} could not be restored ({error.strerror}): what was moved aside is "
            f"in {undo.path}; when the cause is fixed, run this again"
        ) from error


def _open_undo(top: int, found: Record) -> int:
    """Open the undo directory of a journal, even if it was renamed; -1: it is not in its tree's top."""
    journal = found.journal
    if not same_file(journal.top, os.fstat(top), journal.boot):
        return -1
    # The owner of the top can rename it there, but not move it elsewhere: that needs the right to write to
    # it.
    others = [name for name in map(os.fsencode, os.listdir(top)) if name != journal.undo]
    for name in (journal.undo, *others):
        try:
            held = open_entry(top, name)
        except OSError:
            continue
        try:
            info = os.fstat(held)
            own = is_for_own_user(info) or (stat.S_ISDIR(info.st_mode) and not journal.owned)
            if not own or not same_file(journal.undo_ids, info, journal.boot):
                continue
            fd = os.open(path_of(held), OPEN_DIRECTORY & ~os.O_NOFOLLOW)
        finally:
            os.close(held)
        if _progress(fd)[:TOKEN] == journal.token:
            return fd
        os.close(fd)
    return -1


def _progress(fd: int) -> bytes:
    """Return the progress file of the undo directory open as `fd`; empty if it is not an undo directory."""
    try:
        file = open_regular(fd, PROGRESS)
    except OSError:
        return b""
    with open(file, "rb") as progress:
        return progress.read()


def _begun(fd: int, journal: Journal) -> int:
    """Return how many steps were begun.

    A loss of power may have taken the end of the progress file, but not what steps after it moved aside.
    """
    if fd < 0:
        return 0
    moved = (os.fsencode(name).partition(b".")[0] for name in os.listdir(fd))
    last = max((int(number) for number in moved if number.isdigit()), default=-1)
    return min(max(len(_progress(fd)) - TOKEN, last + 1), len(journal.steps))


def _moved_away(found: Record, path: str) -> str:
    journal = found.journal
    return (
        f"a restore into {path} was interrupted, and {journal.undo_path}, which holds what it moved aside, "
        f"was moved away, replaced or deleted: find it (find {path} -xdev -inum {journal.undo_ids[1]}), move "
        f"it back, and repeat this; if it cannot be found, castore recover --forget {path}/ deletes the "
        f"journal ({found.file}), and the tree stays as it is"
    )
