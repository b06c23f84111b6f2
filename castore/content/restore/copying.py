"""Copy live files with all their metadata, if a rename cannot move them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Any, Final

from castore.content.restore.metadata import Ownership, is_privileged, replace_attributes
from castore.fs.beneath import (
    OPEN_DIRECTORY,
    REPLACED,
    make_directory,
    open_below,
    open_entry,
    open_regular,
    path_of,
)
from castore.fs.durable import create_file
from castore.fs.metadata import data_extents, is_protected, read_xattrs
from castore.fs.removing import remove
from castore.model.trampoline import run
from castore.model.tree import Content, Entry, Extra, Owners, clamped_time

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

Path = tuple[bytes, ...]

_OVERWRITE: Final = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def live_entry(fd: int, name: bytes, warn: Callable[[str], None]) -> tuple[Entry, tuple[int, int]]:
    """Return the metadata of a live file in the directory open as `fd`, and its device and inode.

    warn: called with the reason for each attribute that cannot be read. Raises OSError.
    """
    held = open_entry(fd, name)
    try:
        info = os.fstat(held)
        return _entry_of(path_of(held), name, info, warn), (info.st_dev, info.st_ino)
    finally:
        os.close(held)


def _entry_of(
    file: int | bytes, name: bytes, info: os.stat_result, warn: Callable[[str], None]
) -> Entry:
    extra = Extra(xattrs=read_xattrs(file, warn))
    kind, time = info.st_mode >> 12, clamped_time(info.st_mtime_ns)
    ids = info.st_uid, info.st_gid
    return Entry(name, kind, stat.S_IMODE(info.st_mode), *ids, time, 0, Content.NONE, extra)


def copy(source: int, name: bytes, target: int, new: bytes) -> None:
    """Copy the file or directory `name` in the directory open as `source`, as `new` in `target`.

    The copy includes owners, modes, times, attributes, holes and hard links. Raises OSError, and leaves
    nothing, if the copy would be incomplete, or if the original could not be removed afterwards.
    """
    try:
        run(_copy(source, name, target, (new,), target, {}))
    except BaseException:
        with contextlib.suppress(OSError):
            remove(new, target)
        raise


def overwrite(source: int, name: bytes, target: int, old: bytes) -> None:
    """Give the regular file `old` in `target` the content and metadata of another, without moving it.

    This is for a mount point, which cannot be renamed. Raises OSError.
    """
    file = open_regular(source, name)
    try:
        into = os.open(old, _OVERWRITE, dir_fd=target)
        try:
            _refuse_special(into)
            _refuse_privileged(file)
            os.ftruncate(into, 0)
            _copy_data(file, into)
            _copy_metadata(file, into)
            os.fsync(into)
        finally:
            os.close(into)
    finally:
        os.close(file)


def check_overwritable(fd: int, name: bytes) -> None:
    """Raise OSError unless `name` is a regular file that can be written."""
    into = os.open(name, _OVERWRITE, dir_fd=fd)
    try:
        _refuse_special(into)
        _refuse_privileged(into)
    finally:
        os.close(into)


def _refuse_privileged(fd: int) -> None:
    """Raise OSError for a file that gives rights to a program: another user may write to it meanwhile."""
    if is_privileged(os.fstat(fd).st_mode, read_xattrs(fd, lambda _reason: None)):
        raise OSError(errno.EBUSY, "it is a mount point with set-id bits or capabilities: unmount it")


def _refuse_special(fd: int) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _copy(
    source: int, name: bytes, target: int, path: Path, top: int, links: dict[tuple[int, int], Path]
) -> Generator[Any, Any, None]:
    """Copy one file or directory. A generator for `run`.

    path: of the copy, below the directory open as `top`. links: copies of files with several names.
    """
    held = open_entry(source, name)
    try:
        info = os.fstat(held)
        new = path[-1]
        if stat.S_ISDIR(info.st_mode):
            below = os.open(path_of(held), OPEN_DIRECTORY & ~os.O_NOFOLLOW)
            into = -1
            try:
                _refuse_protected(below)
                into = make_directory(new, target)
                for one in {os.fsencode(each) for each in os.listdir(below)}:
                    yield _copy(below, one, into, (*path, one), top, links)
                _copy_metadata(below, into)
            finally:
                os.close(below)
                if into >= 0:
                    os.close(into)
        elif info.st_nlink > 1 and (info.st_dev, info.st_ino) in links:
            _link(links[info.st_dev, info.st_ino], target, new, top)
        else:
            _copy_file(held, info, target, new)
            links[info.st_dev, info.st_ino] = path
    finally:
        os.close(held)


def _link(first: Path, target: int, new: bytes, top: int) -> None:
    at = open_below(top, first[:-1])
    try:
        os.link(first[-1], new, src_dir_fd=at, dst_dir_fd=target, follow_symlinks=False)
    finally:
        os.close(at)


def _copy_file(held: int, info: os.stat_result, target: int, new: bytes) -> None:
    """Copy anything but a directory. held: the original, opened with O_PATH."""
    if not stat.S_ISREG(info.st_mode):
        if stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(b"", dir_fd=held), new, dir_fd=target)
        else:
            os.mknod(new, stat.S_IFMT(info.st_mode) | 0o600, info.st_rdev, dir_fd=target)
        made = open_entry(target, new)
        try:
            if stat.S_IFMT(os.fstat(made).st_mode) != stat.S_IFMT(info.st_mode):
                raise OSError(errno.ESTALE, REPLACED)
            _copy_metadata(path_of(held), path_of(made))
        finally:
            os.close(made)
        return
    file = os.open(path_of(held), os.O_RDONLY | os.O_CLOEXEC)
    try:
        _refuse_protected(file)
        into = create_file(new, folder=target)
        try:
            _copy_data(file, into)
            # After the content: a process that wrote to the original meanwhile has thereby removed its set-id
            # bits.
            _copy_metadata(file, into)
            os.fsync(into)
        finally:
            os.close(into)
    finally:
        os.close(file)


def _copy_data(file: int, into: int) -> None:
    """Copy the content of a file into an empty one, with its holes."""
    info = os.fstat(file)
    extents = data_extents(file, info.st_size, info.st_blocks)
    for start, length in ((0, info.st_size),) if extents is None else extents:
        position, end = start, start + length
        os.lseek(into, start, os.SEEK_SET)
        while position < end and (count := os.sendfile(into, file, position, end - position)):
            position += count
    os.ftruncate(into, info.st_size)


def _refuse_protected(fd: int) -> None:
    if is_protected(fd):
        raise PermissionError(errno.EPERM, "it is immutable or append-only (see lsattr)")


def _copy_metadata(file: int | bytes, into: int | bytes) -> None:
    """Give a copy the metadata of its original. Raises OSError if any of it cannot be set.

    Both are descriptors, or `path_of` a descriptor that was opened with O_PATH.
    """
    failed: list[str] = []
    entry = _entry_of(file, b"", os.stat(file), failed.append)
    ownership = Ownership(change=os.geteuid() == 0, numeric=True)
    replace_attributes(into, entry, Owners(), ownership, failed.append, mode=entry.mode)
    info = os.stat(into)
    if (info.st_uid, info.st_gid) != (entry.uid, entry.gid):
        failed.append("owner cannot be set: only root can")
    if failed:
        raise OSError(errno.ENOTSUP, f"a copy of it cannot have its metadata: {failed[0]}")
