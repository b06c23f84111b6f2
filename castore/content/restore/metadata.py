"""Set the metadata of an entry on a live file."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from castore.fs.acl import ACCESS_ACL, DEFAULT_ACL, acl_ids, mapped_acls
from castore.fs.metadata import read_xattrs
from castore.kernel.dir_entries import NewOwners

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from castore.model.tree import Entry, Owners

_SET_ID: Final = stat.S_ISUID | stat.S_ISGID
_SECURITY: Final = b"security."
_CAPABILITY: Final = b"security.capability"
_UNSUPPORTED: Final = {errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.EACCES}

_SECOND: Final = 10**9
_ALWAYS_HELD: Final = _SECOND << 31
"""Every file system can store times from 0 up to this one (ns)."""


class Ownership(msgspec.Struct, frozen=True):
    """Which owners, and which rights, restored files get."""

    change: bool
    """Set owners and groups, which needs root; else files belong to the restoring user."""
    numeric: bool = False
    """Use the stored numbers; else a name that this machine knows has precedence over its stored number."""
    privileges: bool = True
    """Restore what gives rights: set-id bits, security attributes including capabilities, devices."""

    def of(self, entry: Entry, owners: Owners) -> tuple[int, int]:
        """Return the (uid, gid) that a file of this entry gets."""
        if self.numeric:
            return entry.uid, entry.gid
        user, group = owners.users.get(entry.uid), owners.groups.get(entry.gid)
        return self.of_names(entry.uid, entry.gid, user, group)

    def of_names(self, uid: int, gid: int, user: str | None, group: str | None) -> tuple[int, int]:
        """Return the (uid, gid) on this machine for stored ids and their stored names."""
        if self.numeric:
            return uid, gid
        user_here, group_here = _uid(user), _gid(group)
        return (uid if user_here is None else user_here), (gid if group_here is None else group_here)

    def xattrs_of(
        self, entry: Entry, owners: Owners, warn: Callable[[str], None] = lambda _reason: None
    ) -> tuple[tuple[bytes, bytes], ...]:
        """Return the attributes that a file of this entry gets: ids in ACLs follow their names.

        warn: called if several stored ids become the same id.
        """
        xattrs = entry.extra.xattrs
        if not self.privileges:
            xattrs = tuple(xattr for xattr in xattrs if not xattr[0].startswith(_SECURITY))
        return self.mapped(xattrs, owners.users, owners.groups, warn)

    @property
    def allowed_mode(self) -> int:
        """The bits of a stored mode that a file may get.

        A set-id file that does not belong to its stored owner would give programs the rights of another user.
        """
        return 0o7777 if self.change and self.privileges else 0o7777 & ~_SET_ID

    def mapped(
        self,
        xattrs: tuple[tuple[bytes, bytes], ...],
        user_names: Mapping[int, str],
        group_names: Mapping[int, str],
        warn: Callable[[str], None] = lambda _reason: None,
    ) -> tuple[tuple[bytes, bytes], ...]:
        """Return attributes with the ids in ACLs replaced by those that the stored names have here."""
        if self.numeric or not xattrs:
            return xattrs
        uids, gids = acl_ids(xattrs)
        users = {uid: now for uid in uids if (now := _uid(user_names.get(uid))) is not None}
        groups = {gid: now for gid in gids if (now := _gid(group_names.get(gid))) is not None}
        return mapped_acls(xattrs, users, groups, warn)


@lru_cache(maxsize=4096)
def _uid(name: str | None) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid if name else None
    except (KeyError, ValueError):  # ValueError: a name with a zero byte, which a store may contain
        return None


@lru_cache(maxsize=4096)
def _gid(name: str | None) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid if name else None
    except (KeyError, ValueError):
        return None


def new_owners(owners: Owners, ownership: Ownership) -> NewOwners:
    """Return the owners that the files of a stored directory get, and the allowed bits of their modes."""
    mode = ownership.allowed_mode
    if not ownership.change or ownership.numeric:
        return NewOwners(ownership.change, mode)
    users = {uid: now for uid, name in owners.users.items() if (now := _uid(name)) not in {None, uid}}
    groups = {gid: now for gid, name in owners.groups.items() if (now := _gid(name)) not in {None, gid}}
    return NewOwners(ownership.change, mode, users, groups)


def inherits(fd: int) -> bool:
    """Whether a file created in the directory open as `fd` inherits an access control list from it."""
    try:
        os.getxattr(fd, DEFAULT_ACL)
    except OSError:
        return False
    return True


def is_privileged(mode: int, xattrs: tuple[tuple[bytes, bytes], ...]) -> bool:
    """Whether running a file of this mode and these attributes gives rights."""
    return stat.S_ISREG(mode) and (bool(mode & _SET_ID) or any(key == _CAPABILITY for key, _ in xattrs))


def without_privileges(entry: Entry) -> Entry:
    """Return an entry without set-id bits and capabilities."""
    xattrs = tuple(xattr for xattr in entry.extra.xattrs if xattr[0] != _CAPABILITY)
    extra = msgspec.structs.replace(entry.extra, xattrs=xattrs)
    return msgspec.structs.replace(entry, mode=entry.mode & ~_SET_ID, extra=extra)


def is_private(info: os.stat_result) -> bool:
    """Whether only castore's user can change which files a directory holds."""
    return info.st_uid == os.geteuid() and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def drop_inherited(fd: int) -> None:
    """Remove the access control lists that an open new file or directory inherited from its directory."""
    for key in (DEFAULT_ACL, ACCESS_ACL):
        with contextlib.suppress(OSError):
            os.removexattr(fd, key)


def mode_of(entry: Entry, ownership: Ownership) -> int:
    """Return the mode that a file of this entry gets."""
    return entry.mode & ownership.allowed_mode


def set_attributes(
    file: int | bytes,
    entry: Entry,
    owners: Owners,
    ownership: Ownership,
    warn: Callable[[str], None],
    *,
    mode: int | None = None,
) -> None:
    """Give an open file an entry's owner, mode (or this one), attributes and time.

    file: its descriptor, or `path_of` a descriptor that was opened with O_PATH; never a name, which may
    belong to another file by now. The order matters: a change of owner clears set-id bits and capabilities, a
    change of mode changes an access control list, and all but the time change only the ctime. warn: called
    with the reason for each item that cannot be set.
    """
    if ownership.change:
        uid, gid = ownership.of(entry, owners)
        _try(warn, "owner", lambda: os.chown(file, uid, gid))
    if not stat.S_ISLNK(entry.st_mode):
        wanted = mode_of(entry, ownership) if mode is None else mode
        _try(warn, "mode", lambda: os.chmod(file, wanted))
    for key, value in ownership.xattrs_of(entry, owners, warn):
        _set_xattr(file, key, value, warn)
    _try(warn, "time", lambda: os.utime(file, ns=(entry.mtime, entry.mtime)))
    if not 0 <= entry.mtime < _ALWAYS_HELD:
        _try(warn, "time", lambda: _check_time(os.stat(file), entry.mtime, warn))


def _check_time(info: os.stat_result, mtime: int, warn: Callable[[str], None]) -> None:
    """Report a time (ns) that the file system has replaced because it cannot store it."""
    if info.st_mtime_ns // _SECOND != mtime // _SECOND:
        year = time.gmtime(info.st_mtime_ns // _SECOND).tm_year
        warn(f"time is out of range for this file system: set to the nearest possible one, in {year}")


def replace_attributes(
    file: int | bytes,
    entry: Entry,
    owners: Owners,
    ownership: Ownership,
    warn: Callable[[str], None],
    *,
    mode: int | None = None,
    keep: bool = False,
) -> None:
    """Do as `set_attributes`, and remove the attributes that the entry does not have.

    keep: do not remove them.
    """
    stored = {key for key, _ in entry.extra.xattrs}
    for key, _ in () if keep else read_xattrs(file, warn):
        if key not in stored:
            with contextlib.suppress(OSError):
                os.removexattr(file, key)
    set_attributes(file, entry, owners, ownership, warn, mode=mode)


def _set_xattr(file: int | bytes, key: bytes, value: bytes, warn: Callable[[str], None]) -> None:
    shown = key.decode(errors="backslashreplace")
    try:
        os.setxattr(file, key, value)
    except OSError as error:
        reason = "not allowed or not supported here" if error.errno in _UNSUPPORTED else error.strerror
        warn(f"attribute {shown} cannot be set: {reason}")


def _try(warn: Callable[[str], None], what: str, action: Callable[[], None]) -> None:
    try:
        action()
    except OSError as error:
        warn(f"{what} cannot be set: {error.strerror}")
    except OverflowError:
        warn(f"{what} cannot be set: out of this system's range")
