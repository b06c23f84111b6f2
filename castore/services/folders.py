"""Record the owners and modes of the directories above parts, and make missing ones in a rollback."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from typing import TYPE_CHECKING

from castore.errors import CastoreError
from castore.model.generation import FileOwner, Origin
from castore.storage.files import sync_if_supported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from castore.content.attributes import Ownership


def path_of(origin: Origin) -> bytes:
    """Return the path of a part that is a directory or a file; empty for every other part."""
    path = origin.settings.get("path")
    if origin.engine in {"file", "sqlite"} and isinstance(path, str):
        return os.fsencode(path)
    return origin.path


def owner_of(path: bytes) -> FileOwner | None:
    """Return the owner and mode of a file or directory; None if it cannot be examined."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    try:
        user = pwd.getpwuid(info.st_uid).pw_name
    except KeyError:
        user = ""
    try:
        group = grp.getgrgid(info.st_gid).gr_name
    except KeyError:
        group = ""
    return FileOwner(path, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, user, group)


def above(path: bytes) -> tuple[FileOwner, ...]:
    """Return the directories above a path, the topmost first, without the root."""
    found = []
    folder = os.path.dirname(path)
    while folder not in {b"", b"/", b"//"}:
        if (owner := owner_of(folder)) is not None:
            found.append(owner)
        folder = os.path.dirname(folder)
    return tuple(found[::-1])


def missing(origins: Iterable[Origin]) -> list[FileOwner]:
    """Return the recorded directories above parts that do not exist, the topmost first."""
    found = {one.path: one for origin in origins for one in origin.above if not os.path.lexists(one.path)}
    return list(found.values())


def make_missing(origins: Iterable[Origin], ownership: Ownership, say: Callable[[str], None]) -> None:
    """Make the directories that are missing, with their recorded owners and modes. Raises CastoreError."""
    for one in missing(origins):
        path = os.fsdecode(one.path)
        try:
            os.mkdir(path, 0o700)
            give(path, one, ownership)
            sync_if_supported(os.path.dirname(path))
        except OSError as error:
            raise CastoreError(
                f"cannot make the directory {path}, of a part: {error.strerror}; make it and try again"
            ) from error
        say(f"made the directory {path}, with the recorded owner and mode")


def give(path: str, owner: FileOwner, ownership: Ownership) -> None:
    """Set the recorded owner and mode of a file or directory that this rollback has made."""
    if ownership.change:
        os.chown(path, *ownership.of_names(owner.uid, owner.gid, owner.user, owner.group))
        os.chmod(path, owner.mode)
    else:
        os.chmod(path, owner.mode & ~(stat.S_ISUID | stat.S_ISGID))
