"""The directory that a restore writes into."""

from __future__ import annotations

import os

from castore.content.restore.metadata import drop_inherited
from castore.errors import UsageError
from castore.fs.beneath import locate, make_directory


def open_destination(path: str | bytes) -> int:
    """Open the directory to restore into; create it if it does not exist. Raises UsageError."""
    shown = os.fsdecode(path)
    try:
        with locate(path, make=True) as found:
            try:
                fd = make_directory(found.name, found.folder)
                # The directory may not keep a default ACL that it inherited from its parent.
                drop_inherited(fd)
            except FileExistsError:
                fd = found.open_directory()
    except OSError as error:
        raise UsageError(
            f"cannot restore into {shown}: {error.strerror}; name a directory that you may write to"
        ) from None
    return fd
