"""A tree that has every feature a file system can show, to be kept and restored.

Nothing of castore is used here. What the file system or the user's rights refuse is left out, and
`FeatureTree.left_out` says what; on ext4 as root it is empty.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
import struct
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SECOND = 10**9
BLOCK = 4096
ODD_OWNER = 12345
FILE_SIZES = (0, 1, 65535, 65536, 262143, 262144, 262145, 3 << 20)
DEEP_LEVELS = 30
DEEP_NAME = 200

_REFUSALS = {errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.EILSEQ, errno.ENOSPC, errno.ENAMETOOLONG}

NAMES = (
    b"new\nline",
    b"invalid-\xff\xfe-utf8",
    b"\xc3\x28",
    b"-leading-dash",
    b"--",
    b" space ",
    b"*?[glob]",
    b"back\\slash",
    b"quote'\"`$(x)",
    b"#comment",
    b"!negated",
    b"control-\x01\x1b[31m\x7f",
    b"...",
    b".hidden",
    b"~",
    b"Case",
    b"case",
    "é".encode(),  # one code point
    "e\u0301".encode(),  # the same letter as two
    "\U0001f333".encode(),
    b"L" * 255,
    b"\xfe" * 255,
)


@dataclass
class FeatureTree:
    """What was built: `path`, the top; `left_out`, the features that were refused, with reasons."""

    path: str
    left_out: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def feature(self, name: str) -> Iterator[None]:
        """Note the feature as left out if it is refused within the block."""
        try:
            yield
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            self.left_out.append(f"{name}: {error.strerror}")

    def join(self, *steps: str | bytes) -> bytes:
        """Return a path below the top, as bytes."""
        return os.path.join(os.fsencode(self.path), *map(os.fsencode, steps))


def make_feature_tree(path: str | os.PathLike[str], *, many: int = 2000, seed: int = 1) -> FeatureTree:
    """Build the tree at `path`, which is made. many: the files of its one large directory.

    The same seed gives the same tree, times included.
    """
    features = FeatureTree(os.fspath(path))
    os.makedirs(features.path)
    mask = os.umask(0o022)
    try:
        chance = random.Random(seed)
        for part in (_files, _sparse, _names, _links, _specials, _modes, _owners, _attributes, _moments, _deep):
            part(features, chance)
        _crowd(features, many)
        _stamp(features)
        _set_times(features)
    finally:
        os.umask(mask)
    return features


def file_system(path: str | os.PathLike[str]) -> str:
    """Return the type of the file system that holds `path`; ext2 to ext4 are all `ext2/ext3`."""
    answer = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True)
    return answer.stdout.strip()


def must_be_complete(path: str | os.PathLike[str]) -> bool:
    """Return whether nothing may be left out of a features at `path`: root, on ext4."""
    return os.geteuid() == 0 and file_system(path) == "ext2/ext3"


def _directory(features: FeatureTree, *steps: str | bytes) -> bytes:
    path = features.join(*steps)
    os.makedirs(path, exist_ok=True)
    return path


def _write(path: bytes, data: bytes = b"") -> bytes:
    with open(path, "xb") as file:
        file.write(data)
    return path


def _files(features: FeatureTree, chance: random.Random) -> None:
    folder = _directory(features, "files")
    for size in FILE_SIZES:
        _write(os.path.join(folder, b"%d" % size), chance.randbytes(size))
    same = chance.randbytes(100_000)
    for name in (b"twin-a", b"twin-b", b"twin-c"):
        _write(os.path.join(folder, name), same)
    _write(os.path.join(folder, b"zeros"), bytes(1 << 20))  # allocated: no hole
    _write(os.path.join(folder, b"text"), b"to be or not to be\n" * 20_000)
    for name in (b"empty", b"nest/nest/nest"):
        _directory(features, "folders", name)


def _sparse(features: FeatureTree, chance: random.Random) -> None:
    folder = _directory(features, "sparse")
    mebi = 1 << 20
    shapes: dict[bytes, tuple[int, tuple[tuple[int, int], ...]]] = {
        b"hole-at-start": (2 * mebi, ((mebi, mebi),)),
        b"hole-in-middle": (3 * mebi, ((0, mebi), (2 * mebi, mebi))),
        b"hole-at-end": (2 * mebi, ((0, mebi),)),
        b"all-hole": (40 * mebi, ()),
        b"tiny-all-hole": (100, ()),
        b"tiny-hole-then-byte": (BLOCK + 1, ((BLOCK, 1),)),
        b"byte-then-tiny-hole": (BLOCK + 1, ((0, 1),)),
        b"odd-tail": (mebi + 12345, ((mebi, 12345),)),
        b"comb": (600 * BLOCK, tuple((i * BLOCK, BLOCK) for i in range(1, 600, 2))),
    }
    for name, (size, data) in shapes.items():
        with open(os.path.join(folder, name), "xb", buffering=0) as file:
            file.truncate(size)
            for offset, length in data:
                os.pwrite(file.fileno(), chance.randbytes(length), offset)


def _names(features: FeatureTree, _chance: random.Random) -> None:
    folder = _directory(features, "names")
    inside = _directory(features, "names", b"dir-\xff\n-x")
    for name in NAMES:
        with features.feature(f"name {name[:20]!r}"):
            _write(os.path.join(folder, name), b"I am " + name)
            os.mkdir(os.path.join(inside, name))


def _links(features: FeatureTree, chance: random.Random) -> None:
    folder = _directory(features, "links")
    other = _directory(features, "links", "across", "far")
    for name, target in {
        b"relative": b"../files/1",
        b"absolute": b"/etc/passwd",
        b"dangling": b"nowhere/at/all",
        b"to-directory": b"../folders",
        b"loop": b"loop",
        b"odd-\xff": b"\xff\n target ",
    }.items():
        os.symlink(target, os.path.join(folder, name))
    with features.feature("a long link"):
        os.symlink(b"x/" * 2000, os.path.join(folder, b"long"))
    small = _write(os.path.join(folder, b"small-a"), b"one file, three names")
    large = _write(os.path.join(folder, b"large-a"), chance.randbytes(5 << 20))
    with features.feature("hard links"):
        os.link(small, os.path.join(folder, b"small-b"))
        os.link(small, os.path.join(other, b"small-c"))
        os.link(large, os.path.join(other, b"large-b"))
        os.link(features.join("sparse", "hole-in-middle"), os.path.join(other, b"sparse"))
        os.link(_write(os.path.join(folder, b"empty-a")), os.path.join(other, b"empty-b"))
    with features.feature("hard link of a symbolic link"):
        os.link(os.path.join(folder, b"dangling"), os.path.join(other, b"dangling"), follow_symlinks=False)


def _specials(features: FeatureTree, _chance: random.Random) -> None:
    folder = _directory(features, "special")
    for name, kind, device in (
        (b"fifo", stat.S_IFIFO, 0),
        (b"socket", stat.S_IFSOCK, 0),
        (b"null", stat.S_IFCHR, os.makedev(1, 3)),
        (b"large-numbers", stat.S_IFCHR, os.makedev(4000, 500_000)),
        (b"block", stat.S_IFBLK, os.makedev(7, 200)),
    ):
        with features.feature(f"special file {name.decode()}"):
            os.mknod(os.path.join(folder, name), kind | 0o640, device)
    with features.feature("hard link of a fifo"):
        os.link(os.path.join(folder, b"fifo"), os.path.join(folder, b"fifo-b"))


def _modes(features: FeatureTree, _chance: random.Random) -> None:
    folder = _directory(features, "modes")
    for mode in (0o000, 0o200, 0o444, 0o777, 0o1644, 0o2755, 0o4755, 0o6755, 0o7777):
        with features.feature(f"mode {mode:04o}"):
            path = os.path.join(folder, b"file-%04o" % mode)
            os.chmod(_write(path, b"mode"), mode)
            _expect(stat.S_IMODE(os.lstat(path).st_mode) == mode)
    for mode in (0o500, 0o700, 0o1777, 0o2775):
        with features.feature(f"directory of mode {mode:04o}"):
            path = os.path.join(folder, b"directory-%04o" % mode)
            os.mkdir(path)
            _write(os.path.join(path, b"inside"), b"x")
            os.chmod(path, mode)


def _owners(features: FeatureTree, _chance: random.Random) -> None:
    folder = _directory(features, "owners")
    for uid, gid in ((ODD_OWNER, ODD_OWNER), (0, ODD_OWNER), (1, 0), (4_000_000_000, 65533)):
        with features.feature(f"owner {uid}:{gid}"):
            os.chown(_write(os.path.join(folder, b"%d-%d" % (uid, gid)), b"owned"), uid, gid)
    with features.feature("owners of others than files"):
        link = os.path.join(folder, b"link")
        os.symlink(b"anything", link)
        os.lchown(link, ODD_OWNER, ODD_OWNER)
        below = _directory(features, "owners", "directory")
        os.chown(below, ODD_OWNER, ODD_OWNER)
        tool = _write(os.path.join(folder, b"setuid-of-other"), b"#!/bin/true\n")
        os.chown(tool, ODD_OWNER, ODD_OWNER)
        os.chmod(tool, 0o4711)  # after chown, which clears it


def _acl(*entries: tuple[int, int, int]) -> bytes:
    """Return the value of system.posix_acl_*: see linux/posix_acl_xattr.h; (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


_NO_ID = 0xFFFFFFFF
ACL = _acl(
    (0x01, 6, _NO_ID),  # the owner
    (0x02, 7, ODD_OWNER),  # a named user
    (0x04, 4, _NO_ID),  # the group
    (0x08, 5, ODD_OWNER),  # a named group
    (0x10, 7, _NO_ID),  # the mask
    (0x20, 0, _NO_ID),  # others
)
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
"""cap_net_bind_service=ep as security.capability holds it: linux/capability.h, vfs_cap_data."""


def _attributes(features: FeatureTree, chance: random.Random) -> None:
    folder = _directory(features, "attributes")
    below = _directory(features, "attributes", "directory")
    file = _write(os.path.join(folder, b"file"), b"with attributes")
    with features.feature("user attributes"):
        for path in (file, below):
            os.setxattr(path, "user.binary", bytes(range(256)))
            os.setxattr(path, "user.empty", b"")
            os.setxattr(path, "user.long", chance.randbytes(1500))
            os.setxattr(path, b"user.\xff\n name", b"\xff\x00")
        linked = _write(os.path.join(folder, b"linked-a"), b"both names have them")
        os.setxattr(linked, "user.one", b"1")
        os.link(linked, os.path.join(folder, b"linked-b"))
        read_only = _write(os.path.join(folder, b"read-only"), b"x")
        os.setxattr(read_only, "user.one", b"1")
        os.chmod(read_only, 0o444)
    with features.feature("trusted attributes"):
        link = os.path.join(folder, b"link")
        os.symlink(b"nowhere", link)
        for path in (file, link):
            os.setxattr(path, "trusted.mark", b"\x00\x01", follow_symlinks=False)
    with features.feature("access control lists"):
        os.setxattr(_write(os.path.join(folder, b"acl"), b"x"), "system.posix_acl_access", ACL)
        os.setxattr(below, "system.posix_acl_access", ACL)
    with features.feature("default access control lists"):
        # The children have none: a restore must not let the default leak into them.
        inside = _directory(features, "attributes", "default-acl")
        _write(os.path.join(inside, b"child"), b"x")
        os.mkdir(os.path.join(inside, b"child-directory"))
        os.setxattr(inside, "system.posix_acl_default", ACL)
    with features.feature("capabilities"):
        tool = _write(os.path.join(folder, b"capable"), b"#!/bin/true\n")
        os.chmod(tool, 0o755)
        os.setxattr(tool, "security.capability", CAPABILITY)
        owned = _write(os.path.join(folder, b"capable-of-other"), b"#!/bin/true\n")
        os.chown(owned, ODD_OWNER, ODD_OWNER)
        os.setxattr(owned, "security.capability", CAPABILITY)  # after chown, which clears it


def _deep(features: FeatureTree, _chance: random.Random) -> None:
    """Make a path of more than PATH_MAX bytes; it can only be walked, never named as a whole."""
    descriptor = os.open(_directory(features, "deep"), os.O_RDONLY | os.O_DIRECTORY)
    try:
        for level in range(DEEP_LEVELS):
            name = (b"%02d-" % level).ljust(DEEP_NAME, b"d")
            os.mkdir(name, dir_fd=descriptor)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        file = os.open(b"bottom", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640, dir_fd=descriptor)
        os.write(file, b"you found me")
        os.close(file)
        os.symlink(b"bottom", b"link", dir_fd=descriptor)
        os.mkfifo(b"fifo", 0o600, dir_fd=descriptor)
        os.mkdir(b"empty", dir_fd=descriptor)
        with features.feature("hard link out of the deep"):
            os.link(b"bottom", features.join("deep", "top"), src_dir_fd=descriptor)
        with features.feature("attributes in the deep"):
            os.setxattr(b"/proc/self/fd/%d/bottom" % descriptor, "user.deep", b"yes")
    finally:
        os.close(descriptor)


def _crowd(features: FeatureTree, many: int) -> None:
    folder = _directory(features, "crowd")
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for number in range(many):
            file = os.open(b"%06d" % number, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=descriptor)
            os.write(file, b"file number %d\n" % number * (number % 7))
            os.close(file)
    finally:
        os.close(descriptor)


TIMES = {
    "epoch": 0,
    "nanosecond": 1,
    "all-digits": 1_234_567_890_123_456_789,
    "before-1970": -1,
    "negative": -123_456_789 * SECOND + 987_654_321,
    "very-old": -(1 << 31) * SECOND,
    "after-2038": (1 << 31) * SECOND + 999_999_999,
    "far-future": 13_569_465_600 * SECOND + 1,
}
"""Nanoseconds since 1970; the ends lie just within what ext4 can hold (1901 to 2446)."""


def _timed(features: FeatureTree) -> Iterator[tuple[str, int, bytes, bytes, bytes]]:
    for name, when in TIMES.items():
        file, below, link = (features.join("times", f"{kind}-{name}") for kind in ("file", "directory", "link"))
        yield name, when, file, below, link


def _moments(features: FeatureTree, _chance: random.Random) -> None:
    """Make files, directories and links that get odd times when everything is built."""
    _directory(features, "times")
    for _name, _when, file, below, link in _timed(features):
        _write(file, b"when")
        os.mkdir(below)
        _write(os.path.join(below, b"inside"), b"x")
        os.symlink(b"when", link)


def _set_times(features: FeatureTree) -> None:
    for name, when, *paths in _timed(features):
        with features.feature(f"time {name}"):
            for path in paths:
                os.utime(path, ns=(when, when), follow_symlinks=False)
                _expect(os.lstat(path).st_mtime_ns == when)
    os.utime(features.path, ns=(TIMES["negative"], TIMES["negative"]))


def _stamp(features: FeatureTree) -> None:
    """Give every file, link and directory its own old time, so that a time left at "now" is seen."""
    chance = random.Random(7)

    def stamp(directory: int) -> None:
        for name in sorted(map(os.fsencode, os.listdir(directory))):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            when = chance.randrange(10**18, 15 * 10**17)
            if stat.S_ISDIR(status.st_mode):
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                below = os.open(name, flags, dir_fd=directory)
                stamp(below)
                os.close(below)
            os.utime(name, ns=(when, when), dir_fd=directory, follow_symlinks=False)

    top = os.open(features.path, os.O_RDONLY | os.O_DIRECTORY)
    stamp(top)
    os.close(top)


def _expect(holds: bool) -> None:
    """Raise OSError, as a refusal, if the file system took a value and changed it."""
    if not holds:
        raise OSError(errno.EINVAL, "taken, but changed")
