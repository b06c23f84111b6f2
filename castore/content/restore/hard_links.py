"""Hard links: files with several names."""

from __future__ import annotations

import errno
import os

from castore.fs.beneath import REPLACED, open_entry, path_of

Link = tuple[tuple[bytes, ...], tuple[int, int]]
"""One name of a file that has several, and the file's device and inode."""


def link_to(first: Link, source: int, name: bytes, target: int) -> None:
    """Create another name of a file whose first name is in the directory open as `source`. Raises OSError."""
    (*_, old), ids = first
    held = open_entry(source, old)
    try:
        info = os.fstat(held)
        if ids != (info.st_dev, info.st_ino):
            error = OSError(errno.ESTALE, REPLACED)
        else:
            # Even if another file has the old name by now, the link is to the file that was checked.
            os.link(path_of(held), name, dst_dir_fd=target)
            return
    finally:
        os.close(held)
    raise error
