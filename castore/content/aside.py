"""What a restore in place moves aside, and the journal by which it is put back, by whoever comes next.

It lies in the top of the tree, in `.castore-aside-X`: what was replaced or removed, each under the
number of its step, and `journal`: a header, the journal, then a byte for each step that was begun, and at
last one that says that all went well. The journal is durable before anything is touched. So what was killed
in the middle is undone, and what was killed while it was clearing up is finished.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, Self

import msgspec

from castore.content.attributes import Ownership, replace_attributes
from castore.content.beneath import OPEN_DIRECTORY, OPEN_FILE, open_below
from castore.content.copying import check_overwritable, copy, overwrite
from castore.content.removing import remove, remove_tree
from castore.errors import CastoreError, UsageError
from castore.kernel.files import sync_file_system
from castore.model.counting import count as counted
from castore.model.tree import Entry, Owners
from castore.storage.files import sync_if_supported

if TYPE_CHECKING:
    from collections.abc import Callable

Path = tuple[bytes, ...]
Action = Literal["remove", "replace", "create", "metadata"]

_ASIDE: Final = ".castore-aside-"
_JOURNAL: Final = b"journal"
_MAGIC: Final = b"castorej"
_HEADER: Final = struct.Struct("<8sII")
"""Magic, version, length of the journal."""
_VERSION: Final = 1
_PART: Final = b".part"
_NEW: Final = b"new"
_BACK: Final = b".castore-back-"
UNMOVABLE: Final = {errno.EXDEV, errno.EBUSY}
"""What rename(2) answers for another file system, a layer below of an overlay, and a mount point."""
_BEGUN: Final = b"."
_DONE: Final = b"!"


class Journal(msgspec.Struct, frozen=True, array_like=True):
    """What is going to be done, and what it takes to undo it."""

    steps: tuple[tuple[Action, Path], ...]
    before: tuple[tuple[Path, Entry], ...]
    """Owner, mode, time and attributes, as they were, of what is changed in place."""
    time: int | None
    """The time that the top directory is to have in the end; None: the one it has."""
    owner: str = ""
    """The service that this is part of a roll-back of, which is recovered as a whole."""


class Aside:
    """The directory of one restore, in the one open as `top`."""

    def __init__(self, top: int, name: bytes, fd: int, journal: Journal, begun: int) -> None:
        self._top = top
        self._name = name
        self._fd = fd
        self._journal = journal
        self._begun = begun
        self.copied = False
        """Whether anything could not be renamed; several file systems may have changed."""
        self._log = os.open(_JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, dir_fd=fd)

    @classmethod
    def create(cls, top: int, journal: Journal) -> Self:
        """Make it, and the journal durable."""
        name = (_ASIDE + os.urandom(8).hex()).encode()
        os.mkdir(name, 0o700, dir_fd=top)
        try:
            fd = cls._prepare(top, name, journal)
        except BaseException:
            # Nothing was touched: what is left would look like an interrupted restore.
            with contextlib.suppress(OSError):
                remove_tree(name, top)
            raise
        return cls(top, name, fd, journal, 0)

    @staticmethod
    def _prepare(top: int, name: bytes, journal: Journal) -> int:
        """Write the journal, durably, and return its directory, open."""
        fd = os.open(name, OPEN_DIRECTORY, dir_fd=top)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file = os.open(_JOURNAL, flags, 0o600, dir_fd=fd)
        try:
            data = msgspec.msgpack.encode(journal)
            rest = memoryview(_HEADER.pack(_MAGIC, _VERSION, len(data)) + data)
            while rest:
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
        finally:
            os.close(file)
        sync_if_supported(fd)
        sync_if_supported(top)
        return fd

    @property
    def name(self) -> str:
        """The name of the directory."""
        return os.fsdecode(self._name)

    def begin(self) -> None:
        """Say that the next step begins."""
        os.write(self._log, _BEGUN)
        self._begun += 1

    def take(self, path: Path) -> bool:
        """Move what is at `path` aside, in the step that was begun last.

        False: it is a mount point, which cannot be moved; it was copied aside and has to be overwritten.
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
            return True
        finally:
            os.close(fd)

    def _copy_aside(self, fd: int, name: bytes, number: bytes, *, mounted: bool) -> bool:
        """Copy a file or directory aside, and remove it unless it is a mount point."""
        if mounted:
            check_overwritable(fd, name)
        self.copied = True
        part = number + _PART
        copy(fd, name, self._fd, part)
        sync_file_system(self._fd)
        # From here on the original may be touched.
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
        """Overwrite the mount point at `path` with a file that is made aside first.

        make: makes the file in a directory, given open, at a path below the top.
        """
        make(self._fd, (self._name, _NEW))
        if not _exists(_NEW, self._fd):
            return  # reported by who makes it
        fd = open_below(self._top, path[:-1])
        try:
            overwrite(self._fd, _NEW, fd, path[-1])
        finally:
            os.close(fd)
        os.unlink(_NEW, dir_fd=self._fd)

    def open_taken(self) -> int | None:
        """Open the regular file that was moved aside last; None if it is none, or cannot be read."""
        try:
            fd = os.open(b"%d" % (self._begun - 1), OPEN_FILE, dir_fd=self._fd)
        except OSError:
            return None
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        return None

    def put_back(self, warn: Callable[[Path, str], None]) -> None:
        """Undo all steps that were begun; that can be tried again. Raises OSError."""
        for number in reversed(range(self._begun)):
            action, path = self._journal.steps[number]
            kept = _exists(b"%d" % number, self._fd)
            if action == "create" or kept:
                self._remove(path)
            if kept:
                self._return(b"%d" % number, path)
        ownership = Ownership(change=os.geteuid() == 0, numeric=True)
        top = [one for one in self._journal.before if one[0] == (b".",)]
        for path, entry in [one for one in self._journal.before if one not in top]:
            self._set(path, entry, ownership, warn)
        self._clear()
        for path, entry in top:
            self._set(path, entry, ownership, warn)

    def finish(self) -> list[tuple[Path, str]]:
        """Let it all stay, and clear up; return (path, reason) of what could not be removed."""
        # What takes the place of what is going to be removed has to be there, whatever happens.
        if self.copied:
            os.sync()  # several file systems
        else:
            sync_file_system(self._top)
        os.write(self._log, _DONE)
        os.fsync(self._log)
        left = self._return_unremovable()
        self._clear()
        if self._journal.time is not None:
            os.utime(b".", ns=(self._journal.time, self._journal.time), dir_fd=self._top)
        return left

    def _return_unremovable(self) -> list[tuple[Path, str]]:
        """Remove what was moved aside; move back what cannot be removed, where nothing has its place.

        Returns (path, reason) of what was moved back.
        """
        left = []
        for number in {os.fsencode(one) for one in os.listdir(self._fd)}:
            if not number.isdigit():
                continue
            try:
                remove(number, self._fd)
            except PermissionError as error:
                action, path = self._journal.steps[int(number)]
                if action != "remove":
                    raise
                fd = open_below(self._top, path[:-1])
                try:
                    if _exists(path[-1], fd):
                        raise
                    os.rename(number, path[-1], src_dir_fd=self._fd, dst_dir_fd=fd)
                finally:
                    os.close(fd)
                left.append((path, f"cannot be removed: {_why(error)}; what cannot be removed was left"))
        return left

    def close(self) -> None:
        """Close what is open."""
        for fd in (self._log, self._fd):
            if fd >= 0:
                os.close(fd)
        self._log = self._fd = -1

    def _set(
        self, path: Path, entry: Entry, ownership: Ownership, warn: Callable[[Path, str], None]
    ) -> None:
        try:
            fd = open_below(self._top, path[:-1])
        except FileNotFoundError:
            return
        try:
            told = partial(warn, path)
            replace_attributes(fd, path[-1], entry, Owners(), ownership, told, mode=entry.mode)
        finally:
            os.close(fd)

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
                raise  # a mount point is overwritten
        finally:
            os.close(fd)

    def _return(self, number: bytes, path: Path) -> None:
        """Move to its place what was kept aside, or copy it where it cannot be moved."""
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
            back = _BACK + self._name.removeprefix(os.fsencode(_ASIDE)) + b"-" + number
            with contextlib.suppress(FileNotFoundError):
                remove(back, fd)
            copy(self._fd, number, fd, back)
            sync_file_system(fd)
            os.rename(back, name, src_dir_fd=fd, dst_dir_fd=fd)
        # It must not count as kept while it is being removed: half of it would be moved back again.
        os.rename(number, number + _PART, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def _clear(self) -> None:
        """Remove it, the journal last: until then whoever comes next can tell what is to be done."""
        for below in {os.fsencode(one) for one in os.listdir(self._fd)}:
            if below != _JOURNAL:
                remove(below, self._fd)
        sync_if_supported(self._fd)
        remove_tree(self._name, self._top)


def leftovers(top: int | str) -> list[str]:
    """Return the names of what restores that were interrupted left in a directory."""
    return sorted(name for name in os.listdir(top) if name.startswith(_ASIDE))


def refuse_leftovers(path: str) -> None:
    """Raise CastoreError if a restore into the directory `path` was interrupted: it is half of each."""
    try:
        # Where all was restored, only removing the replaced files failed: the tree itself is consistent.
        names = leftovers(path)
    except OSError:
        return  # told by whoever reads it
    for name in names:
        shown = os.path.join(path, name)
        done, owner = _ended(shown)
        if done:
            continue
        if owner:
            raise CastoreError(_is_part(shown, owner, path))
        raise CastoreError(
            f"an earlier restore into {path} was interrupted: {shown} holds what it moved aside; revert it "
            f"with: castore recover {path}"
        )


def _ended(path: str) -> tuple[bool, str]:
    """Return whether the restore that left the directory `path` had restored everything, and its owner."""
    try:
        fd = os.open(path, OPEN_DIRECTORY)
    except OSError:
        return False, ""
    try:
        found = _read(fd)
        return (False, "") if found is None else (found[2], found[0].owner)
    finally:
        os.close(fd)


def _is_part(shown: str, owner: str, path: str) -> str:
    """Say which rollback left a directory, and how that is ended."""
    return (
        f"{shown} is part of a rollback of {owner!r} that was interrupted, which is recovered with all its "
        f"parts: castore recover {owner} (if that knows of no rollback: castore recover --forget {path}/)"
    )


def recover(path: str, *, keep: bool = False, owned: bool = False) -> list[str]:
    """Undo, or finish, what interrupted restores left in the directory `path`; say what was done.

    keep: finish what is whole, though it was not said to stay: the caller knows that it is. owned: also
    what is part of a roll-back of a service, which is else refused. Raises UsageError if it is no
    directory, CastoreError if something there is not to be made sense of.
    """
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot recover {path}: {error.strerror}") from None
    try:
        return [f"{path}: {_recover(top, path, name, keep, owned)}" for name in reversed(leftovers(top))]
    finally:
        os.close(top)


def _recover(top: int, path: str, name: str, keep: bool, owned: bool) -> str:
    shown = os.path.join(path, name)
    fd = os.open(name, OPEN_DIRECTORY, dir_fd=top)
    aside: Aside | None = None
    found = None
    try:
        found = _read(fd)
        if found is None:
            if set(os.listdir(fd)) - {os.fsdecode(_JOURNAL)}:
                raise CastoreError(
                    f"{shown} has no journal that can be read: move back what you need of it, then remove it"
                )
            # Nothing was begun, or all was cleared up: the journal comes first and goes last.
            remove_tree(os.fsencode(name), top)
            return "nothing had been touched, or all that was is done: only an empty folder was left"
        journal, begun, done = found
        if journal.owner and not (owned or done):
            raise CastoreError(_is_part(shown, journal.owner, path))
        aside = Aside(top, os.fsencode(name), os.dup(fd), journal, begun)
        if done or (keep and begun == len(journal.steps)):
            left = aside.finish()
            kept = "".join(f"; {os.fsdecode(b'/'.join(where))}: {why}" for where, why in left)
            return f"all had been restored; what it replaced is removed{kept}"
        problems: list[str] = []
        aside.put_back(lambda where, why: problems.append(f"{os.fsdecode(b'/'.join(where))}: {why}"))
        undone = counted(begun, "step")
        return f"reverted to the previous state, {undone} undone" + "".join(f"; {one}" for one in problems)
    except OSError as error:
        if found is not None and found[2]:
            raise CastoreError(
                f"{path} is restored, but {shown} cannot be removed: {_why(error)}; remove it by hand, or "
                "run this again when the cause is fixed"
            ) from error
        raise CastoreError(
            f"the previous state of {path} could not be restored ({error.strerror}): what was moved aside is "
            f"in {shown}; when the cause is fixed, run this again"
        ) from error
    finally:
        os.close(fd)
        if aside is not None:
            aside.close()


def _read(fd: int) -> tuple[Journal, int, bool] | None:
    """Return the journal, how many steps were begun, and whether all went well; None if there is none."""
    try:
        file = os.open(_JOURNAL, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except FileNotFoundError:
        return None
    with open(file, "rb") as read:
        data = read.read()
    if len(data) < _HEADER.size:
        return None
    magic, version, length = _HEADER.unpack_from(data)
    end = _HEADER.size + length
    if magic != _MAGIC or version != _VERSION or end > len(data):
        return None
    try:
        journal = msgspec.msgpack.decode(data[_HEADER.size : end], type=Journal)
    except msgspec.MsgspecError:
        return None
    begun = min(data[end:].count(_BEGUN), len(journal.steps))
    return journal, begun, data[end:].endswith(_DONE)


def _why(error: OSError) -> str:
    """Say why something cannot be removed, and what to do where root is refused."""
    refused = error.errno == errno.EPERM and os.geteuid() == 0
    hint = " (an immutable file? lsattr shows it, chattr -i allows it)" if refused else ""
    return f"{error.strerror}{hint}"


def _exists(name: bytes, fd: int) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
