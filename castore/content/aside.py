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
from castore.content.live import OPEN_DIRECTORY, OPEN_FILE, open_below
from castore.errors import CastoreError, UsageError
from castore.kernel.files import sync_file_system
from castore.model.tree import Entry, Owners

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
        _sync_directory(fd)
        _sync_directory(top)
        return fd

    @property
    def name(self) -> str:
        """The name of the directory."""
        return os.fsdecode(self._name)

    def begin(self) -> None:
        """Say that the next step begins."""
        os.write(self._log, _BEGUN)
        self._begun += 1

    def take(self, path: Path) -> None:
        """Move what is at `path` aside, in the step that was begun last."""
        fd = open_below(self._top, path[:-1])
        try:
            number = b"%d" % (self._begun - 1)
            os.rename(path[-1], number, src_dir_fd=fd, dst_dir_fd=self._fd)
        finally:
            os.close(fd)

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
            if action == "create" or (action == "replace" and kept):
                self._remove(path)
            if kept:
                fd = open_below(self._top, path[:-1])
                try:
                    os.rename(b"%d" % number, path[-1], src_dir_fd=self._fd, dst_dir_fd=fd)
                finally:
                    os.close(fd)
        ownership = Ownership(change=os.geteuid() == 0, numeric=True)
        top = [one for one in self._journal.before if one[0] == (b".",)]
        for path, entry in [one for one in self._journal.before if one not in top]:
            self._set(path, entry, ownership, warn)
        self._clear()
        for path, entry in top:
            self._set(path, entry, ownership, warn)

    def finish(self) -> None:
        """Let it all stay, and clear up."""
        # What takes the place of what is going to be removed has to be there, whatever happens.
        sync_file_system(self._top)
        os.write(self._log, _DONE)
        os.fsync(self._log)
        self._clear()
        if self._journal.time is not None:
            os.utime(b".", ns=(self._journal.time, self._journal.time), dir_fd=self._top)

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
        finally:
            os.close(fd)

    def _clear(self) -> None:
        """Remove it, the journal last: until then whoever comes next can tell what is to be done."""
        for below in map(os.fsencode, os.listdir(self._fd)):
            if below != _JOURNAL:
                remove(below, self._fd)
        _sync_directory(self._fd)
        remove_tree(self._name, self._top)


def leftovers(top: int | str) -> list[str]:
    """Return the names of what restores that were interrupted left in a directory."""
    return sorted(name for name in os.listdir(top) if name.startswith(_ASIDE))


def refuse_leftovers(path: str) -> None:
    """Raise CastoreError if a restore into the directory `path` was interrupted: it is half of each."""
    try:
        # Where all was restored, only removing the replaced files failed: the tree itself is consistent.
        found = [name for name in leftovers(path) if not _is_done(os.path.join(path, name))]
    except OSError:
        return  # told by whoever reads it
    if found:
        raise CastoreError(
            f"an earlier restore into {path} was interrupted: {os.path.join(path, found[0])} holds what it "
            f"moved aside; put it back with: castore recover {path}"
        )


def _is_done(path: str) -> bool:
    """Whether the restore that left the directory `path` had restored everything."""
    try:
        fd = os.open(path, OPEN_DIRECTORY)
    except OSError:
        return False
    try:
        found = _read(fd)
        return found is not None and found[2]
    finally:
        os.close(fd)


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
        if journal.owner and not owned:
            raise CastoreError(
                f"{shown} is part of a roll-back of {journal.owner!r}, which is recovered as a whole: "
                f"castore recover {journal.owner} (if that knows of none any more: "
                f"castore recover --forget {path}/)"
            )
        aside = Aside(top, os.fsencode(name), os.dup(fd), journal, begun)
        if done or (keep and begun == len(journal.steps)):
            aside.finish()
            return "all had been restored; what it replaced is removed"
        problems: list[str] = []
        aside.put_back(lambda where, why: problems.append(f"{os.fsdecode(b'/'.join(where))}: {why}"))
        return f"put back as it was, {begun} steps undone" + "".join(f"; {one}" for one in problems)
    except OSError as error:
        raise CastoreError(
            f"{path} could not be put back as it was ({error.strerror}): what was moved aside is in {shown}; "
            "when the cause is mended, run this again"
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


def remove(name: bytes, parent: int) -> None:
    """Remove what is called `name` in the directory open as `parent`. Raises OSError."""
    if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        remove_tree(name, parent)
    else:
        os.unlink(name, dir_fd=parent)


def remove_tree(name: bytes, parent: int) -> None:
    """Remove the directory `name` in the one open as `parent`, but nothing of another file system in it.

    Directories that do not allow it are made to. Raises OSError.
    """
    device = os.stat(name, dir_fd=parent, follow_symlinks=False).st_dev
    stack = [(name, _open_to_empty(name, parent, device))]
    try:
        while stack:
            current, fd = stack[-1]
            for below in map(os.fsencode, os.listdir(fd)):
                info = os.stat(below, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    stack.append((below, _open_to_empty(below, fd, device)))
                    break
                os.unlink(below, dir_fd=fd)
            else:
                stack.pop()
                os.close(fd)
                os.rmdir(current, dir_fd=stack[-1][1] if stack else parent)
    finally:
        for _, fd in stack:
            os.close(fd)


def _open_to_empty(name: bytes, parent: int, device: int) -> int:
    try:
        fd = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        fd = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
    info = os.fstat(fd)
    if info.st_dev != device:
        os.close(fd)
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    if info.st_mode & 0o700 != 0o700:
        os.fchmod(fd, 0o700)
    return fd


def _sync_directory(fd: int) -> None:
    """Make a directory durable, where its file system can (some network and FUSE ones answer EINVAL)."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise


def _exists(name: bytes, fd: int) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
