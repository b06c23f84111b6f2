"""Record owners, modes and ACLs of the directories above parts, and make missing ones in a rollback."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from functools import partial
from typing import TYPE_CHECKING, Final

from castore.errors import CastoreError
from castore.fs import beneath
from castore.fs.acl import ACCESS_ACL, DEFAULT_ACL, acl_ids
from castore.fs.beneath import REPLACED, locate, make_directory, open_entry
from castore.fs.metadata import group_name, user_name
from castore.model.generation import FileOwner, Origin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from castore.content.restore.metadata import Ownership


_ACLS: Final = (ACCESS_ACL, DEFAULT_ACL)


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
    acls = []
    for key in _ACLS:
        with contextlib.suppress(OSError):
            acls.append((key.encode(), os.getxattr(path, key)))
    uids, gids = acl_ids(tuple(acls))
    return FileOwner(
        path,
        stat.S_IMODE(info.st_mode),
        info.st_uid,
        info.st_gid,
        user_name(info.st_uid) or "",
        group_name(info.st_gid) or "",
        tuple(acls),
        tuple((uid, name) for uid in sorted(uids) if (name := user_name(uid))),
        tuple((gid, name) for gid in sorted(gids) if (name := group_name(gid))),
    )


def above(path: bytes) -> tuple[FileOwner, ...]:
    """Return the directories above a path, the topmost first, without the root."""
    owners = []
    folder = os.path.dirname(path)
    while folder not in {b"", b"/", b"//"}:
        if (owner := owner_of(folder)) is not None:
            owners.append(owner)
        folder = os.path.dirname(folder)
    return tuple(owners[::-1])


def missing(origins: Iterable[Origin]) -> list[FileOwner]:
    """Return the recorded directories above parts that do not exist, the topmost first."""
    folders = {}
    for origin in origins:
        path = path_of(origin)
        for folder in origin.above:
            # A hostile generation may list directories that are not above the part.
            if path.startswith(folder.path.rstrip(b"/") + b"/") and not os.path.isdir(folder.path):
                folders[folder.path] = folder
    return list(folders.values())


def make_missing(origins: Iterable[Origin], ownership: Ownership, say: Callable[[str], None]) -> None:
    """Make the directories that are missing, with their recorded owners and modes. Raises CastoreError."""
    for folder in missing(origins):
        path = os.fsdecode(folder.path)
        if os.path.isfile(path):
            raise CastoreError(
                f"cannot make the directory {path}, of a part: a file has that name; move it away, then "
                "repeat the command"
            )
        try:
            with locate(path, follow=False) as at:
                made = make_directory(at.name, at.folder)
                try:
                    _give(made, path, folder, ownership, say)
                finally:
                    os.close(made)
                at.sync()
        except FileExistsError:
            raise CastoreError(
                f"cannot make the directory {path}, of a part: a symbolic link that leads nowhere has that "
                "name; move it away, or make the directory that it names"
            ) from None
        except NotADirectoryError:
            raise CastoreError(
                f"cannot make the directory {path}, of a part: the path above it is not a directory; move "
                "that file away"
            ) from None
        except OSError as error:
            raise CastoreError(
                f"cannot make the directory {path}, of a part: {error.strerror}; make it and try again"
            ) from error
        say(f"created the directory {path}, with the recorded owner and mode")


def give(
    path: str, inode: tuple[int, int], owner: FileOwner, ownership: Ownership, say: Callable[[str], None]
) -> None:
    """Set the recorded owner, mode and ACLs of a regular file that this rollback created. Raises OSError.

    inode: the device and inode number of the file: another file that replaced it is not changed.
    """
    with locate(path, follow=False) as at:
        held = open_entry(at.folder, at.name)
    try:
        info = os.fstat(held)
        if not stat.S_ISREG(info.st_mode) or inode != (info.st_dev, info.st_ino) or info.st_nlink != 1:
            raise OSError(errno.ESTALE, REPLACED)
        _give(beneath.path_of(held), path, owner, ownership, say, mode=owner.mode & 0o777)
    finally:
        os.close(held)


def _give(
    file: int | bytes,
    path: str,
    owner: FileOwner,
    ownership: Ownership,
    say: Callable[[str], None],
    *,
    mode: int | None = None,
) -> None:
    """Set the recorded owner, mode (or `mode`) and ACLs of a file or directory; file: open, or its path."""
    mode = owner.mode if mode is None else mode
    if ownership.change:
        uid, gid = ownership.of_names(owner.uid, owner.gid, owner.user, owner.group)
        os.chown(file, uid, gid)
        os.chmod(file, mode)
        if not ownership.numeric:
            if owner.user and user_name(uid) != owner.user:
                say(f"{path} has the user number {uid}: there is no user {owner.user!r} here")
            if owner.group and group_name(gid) != owner.group:
                say(f"{path} has the group number {gid}: there is no group {owner.group!r} here")
    else:
        os.chmod(file, mode & ~(stat.S_ISUID | stat.S_ISGID))
    warn = partial(_warn, say, path)
    wanted = dict(ownership.mapped(owner.acls, dict(owner.users), dict(owner.groups), warn))
    for key in _ACLS:
        try:
            if (value := wanted.get(key.encode())) is not None:
                os.setxattr(file, key, value)
            else:
                # Remove an ACL that was inherited from the default ACL of the directory above.
                os.removexattr(file, key)
        except OSError as error:
            if value is not None:
                say(f"{path}: {key} cannot be set: {error.strerror}")


def _warn(say: Callable[[str], None], path: str, reason: str) -> None:
    say(f"{path}: {reason}")
