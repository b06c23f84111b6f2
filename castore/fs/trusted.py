"""Read files that decide what castore does, or hold a secret, only if no other user could have written them.

A file is opened once, checked by its descriptor, and read from that descriptor.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import stat
from typing import TYPE_CHECKING, Final

from castore.fs.beneath import locate, open_entry, path_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MOST: Final = 1 << 24
"""Bytes of the largest such file."""
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_OWN_DESCRIPTOR: Final = r"/dev/(?:stdin|fd/(\d+))|/proc/self/fd/(\d+)"
_BLOCK: Final = 1 << 16


class UntrustedFileError(OSError):
    """A file is not read because another user could have written it, or it is not a regular file."""

    def __init__(self, reason: str) -> None:
        super().__init__(None, reason)

    def __str__(self) -> str:
        return self.strerror or ""


def read_trusted(path: str, *, most: int = MOST, also: Iterable[int] = ()) -> bytes:
    """Return the content of a file that `open_trusted` accepts. Raises OSError, UntrustedPathError.

    most: bytes that it may have.
    """
    descriptor = open_trusted(path, also)
    content = bytearray()
    try:
        while block := os.read(descriptor, _BLOCK):
            content += block
            if len(content) > most:
                raise UntrustedFileError(f"it has more than {most} bytes")
    finally:
        os.close(descriptor)
    return bytes(content)


def open_trusted(path: str, also: Iterable[int] = ()) -> int:
    """Open a regular file for reading that only trusted users can have written; never wait for a pipe.

    also: ids of users who are trusted in addition to root and castore's own. The open file is checked, and
    every directory on the way to it. An open file of this process, such as /dev/stdin, is not checked. Raises
    OSError (UntrustedFileError says what to do) and UntrustedPathError.
    """
    own = re.fullmatch(_OWN_DESCRIPTOR, path)
    if own is not None:
        return os.dup(int(own[1] or own[2] or 0))
    trusted = frozenset((0, os.geteuid(), *also))
    with locate(path) as located:
        # O_PATH: opening a pipe does not block, and opening a device has no effect.
        held = open_entry(located.folder, located.name)
        try:
            _check_file(os.fstat(held), os.fsdecode(located.path), trusted)
            _check_directories(located.path, trusted)
            return os.open(path_of(held), os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(held)


def refuse_loose(path: str) -> None:
    """Raise OSError if an untrusted user can replace names in a directory, or in one above it."""
    with locate(path) as located:
        _check_directories(os.path.join(located.path, b"-"), frozenset((0, os.geteuid())))


def _check_file(info: os.stat_result, path: str, trusted: frozenset[int]) -> None:
    if kind := kind_of(info.st_mode):
        raise UntrustedFileError(f"it is {kind}, not a regular file")
    if info.st_uid not in trusted:
        raise UntrustedFileError(
            f"{_not_owned(path, info.st_uid)}, or, if that user did not change it: "
            f"chown {_own()} {shlex.quote(path)}"
        )
    if info.st_mode & _OTHERS_WRITE:
        raise UntrustedFileError(_writable("", path, info.st_mode))


def _check_directories(path: bytes, trusted: frozenset[int]) -> None:
    """Raise UntrustedFileError if another user could have replaced a name on the way to a path.

    Directories are checked from the top: if no other user can replace a directory, its name is as reliable as
    a descriptor.
    """
    for folder, info in directories_above(path):
        if info.st_uid not in trusted:
            # Do not suggest chown: the directory may be that user's home, or a service may need it.
            shown = os.fsdecode(folder)
            raise UntrustedFileError(f"the directory {_not_owned(shown, info.st_uid)}: move it there (mv)")
        if info.st_mode & others_write() and not info.st_mode & stat.S_ISVTX:
            raise UntrustedFileError(_writable("the directory ", os.fsdecode(folder), info.st_mode))


def directories_above(path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield the directories above an absolute path without links, the topmost first. Raises OSError."""
    end = 0
    while end >= 0:
        folder = path[:end] or b"/"
        yield folder, os.stat(folder, follow_symlinks=False)
        end = path.find(b"/", end + 1)


def others_write() -> int:
    """Return the bits of a directory's mode by which other users may write in it.

    Users' own directories may be group-writable: often the group has that user only.
    """
    return _OTHERS_WRITE if os.geteuid() == 0 else stat.S_IWOTH


def user_text(uid: int) -> str:
    """Return the name of a user as messages show it."""
    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"the user id {uid}"


def _own() -> str:
    return user_text(os.geteuid()).rpartition(" ")[2]


def _not_owned(path: str, uid: int) -> str:
    return (
        f"{path} belongs to {user_text(uid)}, who could have changed what is read: keep the file where only "
        f"{_own()} can write"
    )


def _writable(what: str, path: str, mode: int) -> str:
    # As OpenSSH does, even if the group has no other member: its members may change at any time.
    return (
        f"other users may write {what or 'to '}{path} (mode {stat.S_IMODE(mode):04o}), and could have "
        f"changed what is read; if they did not: chmod go-w {shlex.quote(path)}"
    )


_KINDS: Final[tuple[tuple[Callable[[int], bool], str], ...]] = (
    (stat.S_ISREG, ""),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a symbolic link"),
)


def kind_of(mode: int) -> str:
    """Return what a file is that is not a regular one; empty for a regular file."""
    return next((kind for test, kind in _KINDS if test(mode)), "a special file")
