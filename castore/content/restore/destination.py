"""The directory that a restore writes into."""

from __future__ import annotations

import os

from castore.content.restore.metadata import drop_inherited
from castore.errors import UsageError
from castore.fs.beneath import locate, make_directory


def open_destination(path: str | bytes) -> int:
    """Open the directory to restore into; make it if it does not exist. Raises UsageError."""
    shown = os.fsdecode(path)
    try:
        with locate(path, make=True) as found:
            try:
                fd = make_directory(found.name, found.folder)
                # A default ACL of the parent is the parent's, not the restored directory's.
                drop_inherited(fd)
            except FileExistsError:
                fd = found.open_directory()
    except OSError as error:
        raise UsageError(f"cannot restore into {shown}: {error.strerror}") from None
    return fd
