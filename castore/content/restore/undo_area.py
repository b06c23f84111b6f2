"""The undo directory of a restore in place: it keeps what was replaced or removed until the restore ends.

It is `.castore-aside-X` in the top of the tree, on the same file system, accessible to castore's user only.
What was moved aside is named by the number of its step. `progress` begins with the token of the journal, and
has one byte for each step that was begun. The journal itself is in castore's state
(castore/content/restore/undo_journal.py), and is durable before anything is changed. So a restore that was
killed in the middle is undone, and one that was killed during its final clean-up is finished. castore never
acts on a directory of such a name without a journal.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from functools import partial
from typing import TYPE_CHECKING, Final, Self

import msgspec

from castore.content.restore.copying import check_overwritable, copy, live_entry, overwrite
from castore.content.restore.metadata import Ownership, replace_attributes
from castore.content.restore.saved_ranges import SavedRanges, link_of, ranges_of, save, write_back
from castore.content.restore.undo_journal import JournalFile, boot_id, same_file
from castore.fs.beneath import (
    is_for_own_user,
    make_directory,
    open_below,
    open_entry,
    open_regular,
    path_of,
)
from castore.fs.durable import create_file, sync_if_supported, write_all
from castore.fs.filesystem import sync_file_system
from castore.fs.removing import remove, remove_all_in, remove_directory, remove_many
from castore.fs.stamp import stamp_of
from castore.model.tree import Entry, Owners

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from castore.content.restore.undo_journal import Ids, Journal, Path
    from castore.fs.stamp import Stamp

ASIDE: Final = b".castore-aside-"
PROGRESS: Final = b"progress"
TOKEN: Final = 16
"""Length in bytes of the token that a journal and its undo directory share."""
_PART: Final = b".part"
_NEW: Final = b"new"
_BACK: Final = b".castore-back-"
UNMOVABLE: Final = {errno.EXDEV, errno.EBUSY}
"""Errors of rename(2) for another file system, a lower layer of an overlay, and a mount point."""
_NO_LINK: Final = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOENT}
"""Errors of link(2) for a file that cannot have another name in the undo directory."""
_BEGUN: Final = b"."
_SPECIAL: Final = stat.S_ISUID | stat.S_ISGID


class UndoArea:
    """The undo directory of one restore, in the top directory, which is open as `top`."""

    def __init__(self, top: int, fd: int, file: JournalFile, journal: Journal, begun: int) -> None:
        """fd: the undo directory; -1: it was removed already."""
        self._top = top
        self._fd = fd
        self._file = file
        self._journal = journal
        self._begun = begun
        self.copied = False
        """Whether anything had to be copied instead of renamed: several file systems may have changed."""
        self._synced = False
        self._log = os.open(PROGRESS, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, dir_fd=fd) if fd >= 0 else -1

    @classmethod
    def create(cls, top: int, journal: Journal, folder: str) -> Self:
        """Create it, and write its journal to the directory `folder`, durably.

        Raises StorageError, OSError.
        """
        name = ASIDE + os.urandom(8).hex().encode()
        token = os.urandom(TOKEN)
        fd = -1
        try:
            fd = make_directory(name, top)
            _write_token(fd, token)
            sync_if_supported(top)
            info = os.fstat(fd)
            here = os.fstat(top)
            journal = msgspec.structs.replace(
                journal,
                top=(here.st_dev, here.st_ino),
                undo=name,
                undo_ids=(info.st_dev, info.st_ino),
                token=token,
                boot=boot_id(),
                created=time.time_ns(),
                owned=is_for_own_user(info),
            )
            return cls(top, fd, JournalFile.create(folder, journal), journal, 0)
        except BaseException:
            # No live file was changed.
            with contextlib.suppress(OSError):
                os.unlink(PROGRESS, dir_fd=fd)
            if fd >= 0:
                os.close(fd)
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=top)
            raise

    @property
    def path(self) -> str:
        """The path of the undo directory."""
        return self._journal.undo_path

    @property
    def begun(self) -> int:
        """How many steps were begun."""
        return self._begun

    @property
    def is_complete(self) -> bool:
        """Whether all steps were begun."""
        return self._begun == len(self._journal.steps)

    def begin(self) -> None:
        """Record that the next step begins."""
        os.write(self._log, _BEGUN)
        self._begun += 1

    def save(self, path: Path, ids: Ids | None = None) -> bool:
        """Move the file or directory at `path` aside, in the step that was begun last.

        ids: of the directory that should be at `path`; None: it is not a directory. Returns False for a mount
        point, which cannot be moved: it was copied aside and has to be overwritten. Raises OSError, also if
        another directory has taken its place.
        """
        fd = open_below(self._top, path[:-1])
        name = path[-1]
        try:
            number = b"%d" % (self._begun - 1)
            try:
                os.rename(name, number, src_dir_fd=fd, dst_dir_fd=self._fd)
            except OSError as error:
                if error.errno not in UNMOVABLE:
                    raise
                return self._copy_aside(fd, name, number, mounted=error.errno == errno.EBUSY)
        finally:
            os.close(fd)
        # No other process can reach it now. It has to be the directory that was planned to be removed.
        info = os.stat(number, dir_fd=self._fd, follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode) and ids != (info.st_dev, info.st_ino):
            raise OSError(errno.ESTALE, "another directory took its place: is its service still running?")
        return True

    def _copy_aside(self, fd: int, name: bytes, number: bytes, *, mounted: bool) -> bool:
        """Copy a file or directory aside, and remove it unless it is a mount point."""
        if mounted:
            check_overwritable(fd, name)
        self.copied = True
        part = number + _PART
        copy(fd, name, self._fd, part)
        sync_file_system(self._fd)
        # From here on the original may be changed.
        os.rename(part, number, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        if not mounted:
            try:
                remove(name, fd)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                check_overwritable(fd, name)
                mounted = True
        return not mounted

    def replace_mounted(
        self, path: Path, make: Callable[[int, Path], None]
    ) -> None:
        """Overwrite the mount point at `path` with a file that is created in the undo directory first.

        make: creates the file, given its open directory and its path below the top.
        """
        make(self._fd, (self._journal.undo, _NEW))
        if not _exists(_NEW, self._fd):
            return  # `make` has reported why
        fd = open_below(self._top, path[:-1])
        try:
            overwrite(self._fd, _NEW, fd, path[-1])
        finally:
            os.close(fd)
        os.unlink(_NEW, dir_fd=self._fd)

    def save_ranges(
        self, folder: int, file: int, stamp: Stamp, ranges: Sequence[tuple[int, int]]
    ) -> bool:
        """Save ranges of an open live file durably, in the step that was begun last.

        folder: its open directory. ranges: (start, end) of each. Returns False, and saves nothing, if the
        file no longer has this stamp, if some of its metadata cannot be read, or if it cannot have another
        name in the undo directory. Raises OSError.
        """
        reasons: list[str] = []
        number = self._begun - 1
        live = self._journal.steps[number][1][-1]
        entry, ids = live_entry(folder, live, reasons.append)
        if reasons or ids != (stamp.dev, stamp.ino) or not self._link(folder, live, link_of(number)):
            return False
        info = os.fstat(file)
        before = stamp_of(info)  # the new name has changed its ctime
        if info.st_nlink == 2 and before[:4] == stamp[:4] and self._is(link_of(number), ids):
            # The number of steps that were begun has to survive a loss of power, too.
            os.fsync(self._log)
            save(self._fd, ranges_of(number), file, SavedRanges(entry, stamp.size, tuple(ranges)))
            if stamp_of(os.fstat(file)) == before:
                return True
            os.unlink(ranges_of(number), dir_fd=self._fd)
        os.unlink(link_of(number), dir_fd=self._fd)
        sync_if_supported(self._fd)
        return False

    def _link(self, folder: int, live: bytes, name: bytes) -> bool:
        """Give a live file another name in the undo directory; return False if it cannot have one."""
        try:
            os.link(live, name, src_dir_fd=folder, dst_dir_fd=self._fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NO_LINK:
                return False
            raise
        return True

    def _is(self, name: bytes, ids: Ids) -> bool:
        info = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        return ids == (info.st_dev, info.st_ino)

    def restore(self, warn: Callable[[Path, str], None]) -> None:
        """Undo all steps that were begun; this can be repeated. Raises OSError."""
        for number in reversed(range(self._begun)):
            action, path = self._journal.steps[number]
            if _exists(ranges_of(number), self._fd):
                self._write_back(number, path, warn)
            kept = _exists(b"%d" % number, self._fd)
            if action == "create" or kept:
                self._remove(path)
            if kept:
                self._return(b"%d" % number, path)
        for path, entry, ids in self._journal.before:
            if path != (b".",):
                self._set(path, entry, ids, warn)
        self._file.end(b"~")
        self.end_revert(warn)

    def end_revert(self, warn: Callable[[Path, str], None]) -> None:
        """Clean up after all steps were undone. Raises OSError."""
        self._clear()
        for path, entry, ids in self._journal.before:
            if path == (b".",):
                self._set(path, entry, ids, warn)
        self._file.discard()

    def sync(self) -> None:
        """Make all that was changed durable, and the number of steps. Raises OSError."""
        if self.copied:
            os.sync()  # several file systems
        else:
            sync_file_system(self._top)
        self._synced = True

    def sync_few(self, files: Iterable[Path], folders: Iterable[Path]) -> bool:
        """Make a few files and directories durable, and the undo directory: other writers are not waited for.

        Returns False if `sync` has to be used: one of them cannot be opened, or several file systems may have
        changed. Raises OSError.
        """
        if self.copied:
            return False
        try:
            for path in files:
                folder = open_below(self._top, path[:-1])
                try:
                    _sync_and_close(open_regular(folder, path[-1]))
                finally:
                    os.close(folder)
            for path in folders:
                _sync_and_close(open_below(self._top, path))
            os.fsync(self._fd)
            os.fsync(self._log)
        except OSError as error:
            if error.errno in {errno.EIO, errno.ENOSPC, errno.EDQUOT}:
                raise
            return False
        self._synced = True
        return True

    def discard(self) -> list[tuple[Path, str]]:
        """Keep the restored state, and clean up; return (path, reason) of what could not be removed."""
        # The replacements have to be durable before the replaced files are removed.
        if not self._synced:
            self.sync()
        self._file.end(b"!")
        left = self._return_unremovable() if self._fd >= 0 else []
        self._clear()
        if self._journal.time is not None:
            os.utime(self._top, ns=(self._journal.time, self._journal.time))
        self._file.discard()
        return left

    def _return_unremovable(self) -> list[tuple[Path, str]]:
        """Remove what was moved aside; move back what cannot be removed, if nothing has its place.

        Returns (path, reason) of what was moved back.
        """
        left = []
        numbers = [number for number in map(os.fsencode, set(os.listdir(self._fd))) if number.isdigit()]
        for number, error in zip(numbers, remove_many(numbers, self._fd), strict=True):
            if error is None:
                continue
            action, path = self._journal.steps[int(number)]
            if not isinstance(error, PermissionError) or action != "remove":
                raise error
            fd = open_below(self._top, path[:-1])
            try:
                if _exists(path[-1], fd):
                    raise error
                os.rename(number, path[-1], src_dir_fd=self._fd, dst_dir_fd=fd)
            finally:
                os.close(fd)
            left.append((path, f"cannot be removed: {explain(error)}; what cannot be removed was left"))
        return left

    def close(self) -> None:
        """Close its files."""
        for fd in (self._log, self._fd):
            if fd >= 0:
                os.close(fd)
        self._log = self._fd = -1
        self._file.close()

    def _set(self, path: Path, entry: Entry, ids: Ids, warn: Callable[[Path, str], None]) -> None:
        """Restore the previous metadata of a file that was changed in place."""
        try:
            fd = open_below(self._top, path[:-1])
        except FileNotFoundError:
            return
        try:
            held = open_entry(fd, path[-1])
        except FileNotFoundError:
            return
        finally:
            os.close(fd)
        try:
            info = os.fstat(held)
            if not same_file(ids, info, self._journal.boot):
                warn(path, "has been replaced since: its owner, mode and attributes were left")
                return
            _set_open(held, entry, partial(warn, path))
        finally:
            os.close(held)

    def _write_back(self, number: int, path: Path, warn: Callable[[Path, str], None]) -> None:
        """Restore the previous content and metadata of a file of which ranges were overwritten.

        It is then as if it had been moved aside.
        """
        live = link_of(number)
        if not _exists(live, self._fd):
            return  # all of this was done before
        saved = write_back(self._fd, ranges_of(number), live)
        held = open_entry(self._fd, live)
        try:
            _set_open(held, saved.entry, partial(warn, path))
        finally:
            os.close(held)
        os.rename(live, b"%d" % number, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def _remove(self, path: Path) -> None:
        try:
            fd = open_below(self._top, path[:-1])
        except FileNotFoundError:
            return
        try:
            remove(path[-1], fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise  # a mount point is overwritten instead
        finally:
            os.close(fd)

    def _return(self, number: bytes, path: Path) -> None:
        """Move a file from the undo directory to its place, or copy it if it cannot be moved."""
        fd = open_below(self._top, path[:-1])
        try:
            try:
                os.rename(number, path[-1], src_dir_fd=self._fd, dst_dir_fd=fd)
            except OSError as error:
                if error.errno not in UNMOVABLE:
                    raise
                self._copy_back(number, fd, path[-1])
        finally:
            os.close(fd)

    def _copy_back(self, number: bytes, fd: int, name: bytes) -> None:
        if _exists(name, fd):
            overwrite(self._fd, number, fd, name)
        else:
            back = _BACK + self._journal.undo.removeprefix(ASIDE) + b"-" + number
            with contextlib.suppress(FileNotFoundError):
                remove(back, fd)
            # In a directory that no other user can enter, until it has all its metadata.
            held = make_directory(back, fd) if os.geteuid() == 0 else os.dup(fd)
            try:
                copy(self._fd, number, held, back)
                sync_file_system(held)
                os.rename(back, name, src_dir_fd=held, dst_dir_fd=fd)
                if os.geteuid() == 0:
                    os.rmdir(back, dir_fd=fd)
            finally:
                os.close(held)
        # While it is being removed, it may not be mistaken for a complete file: a part would be moved back.
        os.rename(number, number + _PART, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def _clear(self) -> None:
        """Remove the undo directory. Raises OSError."""
        if self._fd < 0:
            return
        # The progress file is last: the directory is recognised by the token in it.
        for name in {os.fsencode(one) for one in os.listdir(self._fd)} - {PROGRESS}:
            remove(name, self._fd)
        remove_all_in(self._fd)
        remove_directory(self._journal.undo, self._top, self._fd)


def _set_open(held: int, entry: Entry, warn: Callable[[str], None]) -> None:
    """Restore the previous metadata of an open file."""
    ownership = Ownership(change=os.geteuid() == 0, numeric=True)
    # No regular file with set-id bits was changed in place.
    mode = entry.mode & ~_SPECIAL if stat.S_ISREG(os.fstat(held).st_mode) else entry.mode
    replace_attributes(path_of(held), entry, Owners(), ownership, warn, mode=mode)


def _write_token(fd: int, token: bytes) -> None:
    file = create_file(PROGRESS, folder=fd)
    try:
        write_all(file, token)
        os.fsync(file)
    finally:
        os.close(file)
    sync_if_supported(fd)


def explain(error: OSError) -> str:
    """Return why a file cannot be removed, and what to do if root is refused."""
    refused = error.errno == errno.EPERM and os.geteuid() == 0
    hint = " (an immutable file? lsattr shows it, chattr -i allows it)" if refused else ""
    return f"{error.strerror}{hint}"


def _sync_and_close(fd: int) -> None:
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _exists(name: bytes, fd: int) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
