"""Distinguish regular files, the only ones that are restored, from devices, pipes and other files."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, Final

from castore.errors import CastoreError, UsageError
from castore.fs.trusted import kind_of

if TYPE_CHECKING:
    from castore.fs.beneath import Located

_DESCRIPTOR: Final = r"/proc/(?:self|thread-self|\d+)/(?:task/\d+/)?fd/(\d+)"
_LINKS: Final = 40
_LONGEST: Final = 100
"""Bytes of a name that a temporary name keeps: with its suffix it fits any file system."""


def descriptor_of(path: str) -> int | None:
    """Return the open file that a path such as /dev/stdin refers to; None if it names no open file."""
    for _ in range(_LINKS):
        folder, name = os.path.split(os.path.abspath(path))
        path = os.path.join(os.path.realpath(folder), name)
        if match := re.fullmatch(_DESCRIPTOR, path):
            return int(match[1])
        try:
            path = os.path.join(os.path.dirname(path), os.readlink(path))
        except OSError:
            return None
    return None


def open_stream(path: str) -> int | None:
    """Open a pipe or an open file, which can be read once only, and cannot be restored to.

    Return its descriptor, or None for every other path. Raises UsageError if it cannot be read.
    """
    number = descriptor_of(path)
    try:
        if number is not None and _is_own(path):
            return os.dup(number)
        if number is not None or stat.S_ISFIFO(os.stat(path).st_mode):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if number is None:
            return None
        raise UsageError(f"cannot read the dump {path}: {error.strerror}") from None
    return None


def _is_own(path: str) -> bool:
    """Whether the path names a descriptor of this process."""
    folder = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    return folder.startswith(f"/proc/{os.getpid()}/") or path == "/dev/stdin"


def exists(located: Located) -> bool:
    """Whether a file exists at a resolved path. Raises OSError."""
    try:
        os.stat(located.name, dir_fd=located.folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def refuse_irregular(located: Located) -> None:
    """Raise CastoreError if a rollback would replace something other than a regular file. Raises OSError."""
    try:
        kind = kind_of(os.stat(located.name, dir_fd=located.folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return
    if kind:
        raise CastoreError(
            f"{os.fsdecode(located.path)} is {kind}, not a regular file, and is not replaced: nothing was "
            "touched; move it away, or use 'castore restore' or 'castore cat'"
        )


def temporary_names(path: str) -> tuple[str, str]:
    """Return two names next to a path: of the file that a rollback stages, and of the one it moves aside."""
    folder, name = os.path.split(path)
    while len(os.fsencode(name)) > _LONGEST:
        name = name[:-1]
    mark = os.urandom(6).hex()
    return tuple(os.path.join(folder, f"{name}.castore-{kind}-{mark}") for kind in ("new", "old"))  # type: ignore[return-value]
