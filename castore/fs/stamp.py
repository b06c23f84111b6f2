"""The stamp of a file: what is compared to know whether its content changed."""

from __future__ import annotations

import os
from typing import NamedTuple


class Stamp(NamedTuple):
    """What is compared of a file: no user can change its content and keep all of it."""

    dev: int
    ino: int
    size: int
    mtime: int
    ctime: int
    """Times in nanoseconds."""


def stamp_of(fd: int) -> Stamp:
    """Return the stamp of an open file."""
    info = os.fstat(fd)
    return Stamp(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
