"""Read the metadata of a live file that lstat does not return: attributes, holes, names of owners."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import re
import stat
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from castore.fs.beneath import open_regular
from castore.model.tree import NO_EXTRA, Extra

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.kernel.dir_listing import Listed

CACHE_TAG: Final = b"CACHEDIR.TAG"
CACHE_TAG_CONTENT: Final = b"Signature: 8a477f597d28d172789f06886806bc55"
"""The beginning of a valid CACHEDIR.TAG (Cache Directory Tagging Specification)."""

ATTRIBUTE: Final = "attribute"
"""Beginning of the reason why attributes of a file are not stored, though its content is."""
_ESCAPED: Final = rb"\\([0-7]{3})"
_GET_FLAGS: Final = 0x80086601
"""FS_IOC_GETFLAGS of ioctl(2)."""
_PROTECTING: Final = 0x30
"""FS_IMMUTABLE_FL and FS_APPEND_FL."""
_NO_XATTRS: Final = {errno.ENOTSUP, errno.ENOSYS}
_WELL_KNOWN: Final = (
    b"security.capability",
    b"security.selinux",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
)
"""Attributes that are read even if the names cannot be listed: access depends on them."""


def mounts_below(top: str) -> set[tuple[bytes, ...]]:
    """Return the mount points below a directory, each as the names from the directory down."""
    mounts = set()
    above = os.fsencode(os.path.realpath(top)).rstrip(b"/") + b"/"
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            point = re.sub(_ESCAPED, lambda match: bytes([int(match[1], 8)]), line.split()[4])
            if point.startswith(above):
                mounts.add(tuple(point[len(above) :].split(b"/")))
    return mounts


def is_mount_point(fd: int, name: bytes) -> bool:
    """Whether another file system is mounted at a name in the directory open as `fd`.

    The mount table also lists mount points that lstat fails for: another user's FUSE, a server that is down.
    """
    try:
        folder = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return False
    return (name,) in mounts_below(folder)


def is_protected(fd: int) -> bool:
    """Whether an open file or directory is immutable or append-only: not even root can remove it."""
    try:
        flags = fcntl.ioctl(fd, _GET_FLAGS, bytes(8))
    except OSError:
        return False  # a file system without such flags
    return bool(int.from_bytes(flags[:4], sys.byteorder) & _PROTECTING)


def is_cache(fd: int) -> bool:
    """Whether the directory open as `fd` has a valid CACHEDIR.TAG."""
    try:
        tag = open_regular(fd, CACHE_TAG)
    except OSError:
        return False
    try:
        return os.read(tag, len(CACHE_TAG_CONTENT)) == CACHE_TAG_CONTENT
    except OSError:
        return False
    finally:
        os.close(tag)


def data_extents(fd: int, size: int, blocks: int) -> tuple[tuple[int, int], ...] | None:
    """Return (offset, length) of the data in a sparse file, or None if it has no holes (SEEK_DATA)."""
    if blocks * 512 >= size:
        return None
    extents = []
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
            position = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data after `position`
                break
            if error.errno == errno.EINVAL:  # the file system does not report holes
                return None
            raise
        extents.append((start, position - start))
    if extents == [(0, size)]:
        return None
    return tuple(extents)


def extra_of(
    entry: Listed,
    device: int,
    xattrs: tuple[tuple[bytes, bytes], ...],
    *,
    target: bytes = b"",
    extents: tuple[tuple[int, int], ...] | None = None,
) -> Extra:
    """Return the fields that few entries have. device: the device number of the tree's top."""
    kind = stat.S_IFMT(entry.mode)
    number = entry.rdev if kind in {stat.S_IFCHR, stat.S_IFBLK} else 0
    link = None
    if entry.nlink > 1 and kind != stat.S_IFDIR:
        # Device numbers may differ after a reboot: the tree's own device is recorded as 0.
        link = (0 if entry.dev == device else entry.dev, entry.ino)
    if not (target or number or link or xattrs or extents is not None):
        return NO_EXTRA
    return Extra(target, number, link, xattrs, extents)


def read_xattrs_at(fd: int, name: bytes, warn: Callable[[str], None]) -> tuple[tuple[bytes, bytes], ...]:
    """Read the extended attributes of `name` in the directory open as `fd`, without following links.

    Use them for comparison only: another file may have the name by now, and listxattrat(2) is not available.
    Attributes that cannot be read are reported to `warn`.
    """
    return read_xattrs(b"/proc/self/fd/%d/%s" % (fd, name), warn, follow=False)


def read_xattrs(
    file: int | bytes, warn: Callable[[str], None], *, follow: bool = True
) -> tuple[tuple[bytes, bytes], ...]:
    """Read extended attributes, sorted by name; none if the file system does not support them.

    file: a descriptor, or `path_of` one that was opened with O_PATH. Attributes that cannot be read are
    reported to `warn`, and left out.
    """
    follow |= isinstance(file, int)
    try:
        names = sorted(map(os.fsencode, os.listxattr(file, follow_symlinks=follow)))
        listed = True
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return ()
        # E2BIG: the kernel returns no list of names that exceeds 64 KiB.
        warn(f"{ATTRIBUTE}s cannot be listed: {error.strerror}")
        names, listed = list(_WELL_KNOWN), False
    attributes = []
    for name in names:
        try:
            attributes.append((name, os.getxattr(file, name, follow_symlinks=follow)))
        except OSError as error:
            # ENODATA: the attribute was removed since it was listed.
            if listed and error.errno != errno.ENODATA:
                shown = name.decode(errors="backslashreplace")
                warn(f"{ATTRIBUTE} {shown} cannot be read: {error.strerror}")
    return tuple(attributes)


@lru_cache(maxsize=4096)
def user_name(uid: int) -> str | None:
    """Return the name of a user of this machine; None if unknown, or not UTF-8."""
    try:
        return _text(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return None


@lru_cache(maxsize=4096)
def group_name(gid: int) -> str | None:
    """Return the name of a group of this machine; None if unknown, or not UTF-8."""
    try:
        return _text(grp.getgrgid(gid).gr_name)
    except KeyError:
        return None


def _text(name: str) -> str | None:
    return None if any("\ud800" <= letter <= "\udfff" for letter in name) else name
