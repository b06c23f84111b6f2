"""Share blocks between files, on file systems that can (btrfs, xfs, ...)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

_CLONE: Final = 0x40049409
"""FICLONE of ioctl(2)."""
_CLONE_RANGE: Final = 0x4020940D
"""FICLONERANGE of ioctl(2)."""
_RANGE: Final = struct.Struct("<qQQQ")
"""Source, its offset, length, offset in the target."""
_NAMELESS: Final = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
_UNSHARED: Final = {
    *(errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EPERM, errno.EBADF)
}
"""Errors of these ioctls if blocks cannot be shared between these files."""


def can_share_blocks(source: int, fd: int) -> bool:
    """Whether the empty file open as `fd` can share the blocks of another open file. Raises OSError."""
    try:
        fcntl.ioctl(fd, _CLONE_RANGE, _RANGE.pack(source, 0, os.fstatvfs(source).f_bsize, 0))
    except OSError:
        return False
    os.ftruncate(fd, 0)
    return True


def can_share_blocks_in(source: int, folder: int) -> bool:
    """Whether a new file in the directory open as `folder` can share the blocks of an open file."""
    try:
        trial = os.open(b".", _NAMELESS, 0o600, dir_fd=folder)
    except OSError:
        return False
    try:
        return can_share_blocks(source, trial)
    finally:
        os.close(trial)


def clone(source: int, fd: int) -> bool:
    """Give the empty file open as `fd` the content of an open file; return False if they cannot share blocks.

    Raises OSError for other errors.
    """
    try:
        fcntl.ioctl(fd, _CLONE, source)
    except OSError as error:
        if error.errno in _UNSHARED:
            return False
        raise
    return True
