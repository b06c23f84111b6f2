"""Open files by name in directories where other users may write, without following their links.

`locate` resolves a path that an administrator configured, and follows only links that no other user could
have made. Below that path, `open_below` and `open_regular` follow no links at all.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from castore.errors import UntrustedPathError
from castore.fs.durable import create_file, sync_if_supported

if TYPE_CHECKING:
    from types import TracebackType

OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""Flags to open a file that may have become a link, a fifo or a terminal since it was listed."""
REPLACED: Final = "another user replaced it while it was being made"
_PATH: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS: Final = 40
_LONGEST: Final = 4000
"""Bytes of a path that one system call takes (PATH_MAX)."""
_OPENAT2: Final = 437
"""Number of the system call, the same on all architectures."""
_BENEATH: Final = 0x08 | 0x04 | 0x02
"""RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_MAGICLINKS of openat2(2)."""
_NO_OPENAT2: Final = {errno.ENOSYS, errno.EPERM}
"""Errors of openat2 before Linux 5.6, and under a seccomp filter that does not know it."""


class _How(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_DIRECTORY: Final = _How(OPEN_DIRECTORY, 0, _BENEATH)
_syscall: Final = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_How), ctypes.c_size_t)


class UnexpectedFileError(OSError):
    """A name leads to another file than expected: of another type, or with another inode."""


def open_below(top: int, path: tuple[bytes, ...]) -> int:
    """Open the directory at `path` below the one open as `top`, following no link. Raises OSError."""
    if any(name in {b"", b".", b".."} or b"/" in name for name in path):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    whole = b"/".join(path)
    if len(path) < 2 or len(whole) > _LONGEST:
        return _open_each(top, path)
    while (fd := _syscall(_OPENAT2, top, whole, _DIRECTORY, ctypes.sizeof(_How))) < 0:
        code = ctypes.get_errno()
        if code in _NO_OPENAT2:
            return _open_each(top, path)
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code), whole)
    return int(fd)


def _open_each(top: int, path: tuple[bytes, ...]) -> int:
    """Open the directory at `path`, one name at a time."""
    fd = os.dup(top)
    for name in path:
        try:
            below = os.open(name, OPEN_DIRECTORY, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def open_regular(fd: int, name: bytes) -> int:
    """Open the regular file `name`, in the directory open as `fd`, for reading.

    Never blocks and never opens a device, whatever another user replaces the file by. Raises OSError.
    """
    if os.geteuid():
        # Opening a device may have effects, but only root can open the devices that matter.
        return _refuse_special(os.open(name, OPEN_FILE, dir_fd=fd))
    held = _refuse_special(os.open(name, _PATH, dir_fd=fd))
    try:
        return os.open(path_of(held), OPEN_FILE & ~os.O_NOFOLLOW)
    except FileNotFoundError:  # /proc is not mounted
        return _refuse_special(os.open(name, OPEN_FILE, dir_fd=fd))
    finally:
        os.close(held)


def _refuse_special(fd: int) -> int:
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise UnexpectedFileError(errno.EINVAL, "it is not a regular file")


def open_content(fd: int, name: bytes) -> int:
    """Open the regular file or directory `name` in the directory open as `fd`. Raises OSError."""
    try:
        return os.open(name, OPEN_DIRECTORY, dir_fd=fd)
    except NotADirectoryError:
        return open_regular(fd, name)


def open_entry(fd: int, name: bytes) -> int:
    """Open any file `name` in the directory open as `fd` with O_PATH, which has no effect on the file."""
    return os.open(name, _PATH, dir_fd=fd)


def path_of(fd: int) -> bytes:
    """Return a path of an open file, also one opened with O_PATH, that does not depend on its name."""
    return b"/proc/self/fd/%d" % fd


def make_directory(name: bytes, parent: int) -> int:
    """Create the directory `name` in the one open as `parent`, for castore's user only, and open it.

    Raises OSError, also if another user replaced it before it was opened.
    """
    os.mkdir(name, 0o700, dir_fd=parent)
    fd = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
    if is_for_own_user(os.fstat(fd)):
        return fd
    try:
        own = not keeps_owners(parent)
    except BaseException:
        os.close(fd)
        raise
    if own:
        return fd
    os.close(fd)
    raise OSError(errno.ESTALE, REPLACED)


def is_for_own_user(info: os.stat_result) -> bool:
    """Whether castore's user owns a directory, and alone can enter it: no other user can make such a one."""
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and not info.st_mode & 0o077


def keeps_owners(folder: int) -> bool:
    """Whether a new file in an open directory has castore's user as owner, and the requested mode.

    That is not so on FAT, on NFS for root, and on other file systems that map users. Raises OSError.
    """
    name = f".castore-probe-{os.urandom(8).hex()}"
    fd = create_file(name, folder=folder)
    try:
        info = os.fstat(fd)
    finally:
        os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)
    return info.st_uid == os.geteuid() and not info.st_mode & 0o077


class Located(NamedTuple):
    """The place that a path leads to: an open directory, and a name in it."""

    folder: int
    """Opened with O_PATH: for `dir_fd` only."""
    name: bytes
    """Not a link that was followed. A file of this name need not exist."""
    path: bytes
    """The absolute path of the place, without links."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the directory."""
        with contextlib.suppress(OSError):
            os.close(self.folder)

    def sync(self) -> None:
        """Make the names in the directory durable, if its file system supports that. Raises OSError."""
        fd = os.open(b".", OPEN_DIRECTORY, dir_fd=self.folder)
        try:
            sync_if_supported(fd)
        finally:
            os.close(fd)

    def open_directory(self) -> int:
        """Open the directory that the path leads to. Raises OSError."""
        return os.open(self.name, OPEN_DIRECTORY, dir_fd=self.folder)

    def open_regular(self) -> int:
        """Open the regular file that the path leads to, for reading. Raises OSError."""
        return open_regular(self.folder, self.name)


def locate(path: str | bytes, *, make: bool = False, follow: bool = True) -> Located:
    """Resolve a configured path, of which all but the last name must exist.

    Only links that no other user could have made are followed. Such a link and its directory belong to root
    or to castore's user, and no other user may write in the directory, unless it is sticky as /tmp is.
    make: create missing directories above the last name, for their owner only. follow: follow the last name,
    too, if it is a link. The caller closes the result. Raises UntrustedPathError for other links, and
    OSError.
    """
    pending = _names(os.path.abspath(os.fsencode(path)))
    names: list[bytes] = []
    # O_PATH: the directories need not be readable.
    folders = [os.open(b"/", _PATH | os.O_DIRECTORY)]
    links = 0
    try:
        while pending:
            name = pending.pop()
            if name == b"..":
                if names:
                    names.pop()
                    os.close(folders.pop())
                continue
            target = _followed(folders[-1], names, name) if pending or follow else None
            if target is not None:
                links += 1
                if links > _LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(path))
                if target.startswith(b"/"):
                    while names:
                        names.pop()
                        os.close(folders.pop())
                pending += _names(target)
                continue
            if not pending:
                return Located(folders.pop(), name, _joined(names, name))
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=folders[-1])
            folders.append(os.open(name, _PATH | os.O_DIRECTORY, dir_fd=folders[-1]))
            names.append(name)
        # The root directory, or a path that ends with a link to `..` or `.`.
        return Located(folders.pop(), b".", _joined(names))
    finally:
        for fd in folders:
            os.close(fd)


def open_top(path: str | bytes) -> int:
    """Open the directory at a configured path, which is resolved as `locate` does.

    Raises UntrustedPathError and OSError.
    """
    with locate(path) as located:
        return located.open_directory()


def real_path(path: str | bytes) -> bytes:
    """Return a configured path without links. Raises UntrustedPathError and OSError."""
    with locate(path) as located:
        return located.path


def _names(path: bytes) -> list[bytes]:
    """Return the names in a path in reverse order."""
    return [name for name in reversed(path.split(b"/")) if name not in {b"", b"."}]


def _joined(names: list[bytes], *more: bytes) -> bytes:
    return b"/" + b"/".join([*names, *more])


def _followed(folder: int, names: list[bytes], name: bytes) -> bytes | None:
    """Return the target of a link that may be followed; None if the name is not a link, or does not exist."""
    try:
        fd = open_entry(folder, name)
    except FileNotFoundError:
        return None
    try:
        link = os.fstat(fd)
        if not stat.S_ISLNK(link.st_mode):
            return None
        reason = _why_untrusted(os.fstat(folder), link)
        if reason:
            shown = os.fsdecode(_joined(names, name))
            raise UntrustedPathError(
                f"{shown} is a symbolic link that another user could have made ({reason}), and is not "
                "followed: name the directory or file that it leads to instead, or have root own the link "
                "and its directory"
            )
        # Read the link that was checked, not one that replaced it.
        return os.readlink(b"", dir_fd=fd)
    finally:
        os.close(fd)


def _why_untrusted(folder: os.stat_result, link: os.stat_result) -> str:
    """Return why another user than root and castore's own could have made a link; empty if none could."""
    own = os.geteuid()
    if link.st_uid not in {0, own}:
        return f"it belongs to the user {link.st_uid}"
    if folder.st_uid not in {0, own}:
        return f"its directory belongs to the user {folder.st_uid}"
    # Users' own directories may be group-writable: often the group has that user only.
    others = stat.S_IWGRP | stat.S_IWOTH if own == 0 else stat.S_IWOTH
    if folder.st_mode & others and not folder.st_mode & stat.S_ISVTX:
        return "its directory is writable by others"
    return ""
