"""The stamp of a file: what is compared to know whether its content changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import os


class Stamp(NamedTuple):
    """What is compared of a file: no user can set its ctime.

    A write through a memory map changes the times only if it is the first to its page since that was written
    to the disk; on tmpfs it never does.
    """

    dev: int
    ino: int
    size: int
    mtime: int
    ctime: int
    """Times in nanoseconds."""


def stamp_of(info: os.stat_result) -> Stamp:
    """Return the stamp of a file."""
    return Stamp(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
