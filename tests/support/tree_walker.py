"""A tree as the system calls show it, and what differs between two.

Nothing of castore is used here: this is the oracle for what castore restores. Every path is reached
through directory descriptors, so that names may hold any byte and paths may pass PATH_MAX.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

Node = dict[str, Any]
Tree = dict[bytes, Node]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 1 << 20
_BLOCK_SLACK = 64 << 10
"""Blocks of two equal files may differ by this much: extent trees and attribute blocks count."""


def walk(root: str | bytes | os.PathLike[Any]) -> Tree:
    """Return every path under `root`, relative, as bytes, with what is known of it; b"." is the top.

    The keys of a node: type, mode, uid, gid, mtime (ns), size (regular files), hash, target, rdev,
    xattrs (name to value), links (all paths of a hard-linked file, itself among them), extents
    ((start, end) of data in a regular file), blocks (bytes allocated to a regular file).
    """
    tree: Tree = {}
    inodes: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        tree[b"."] = _node(descriptor, b".", os.fstat(descriptor))
        _walk(descriptor, b"", tree, inodes)
    finally:
        os.close(descriptor)
    for paths in inodes.values():
        for path in paths:
            tree[path]["links"] = tuple(sorted(paths))
    return tree


def _walk(directory: int, prefix: bytes, tree: Tree, inodes: dict[tuple[int, int], list[bytes]]) -> None:
    for name in sorted(map(os.fsencode, os.listdir(directory))):
        path = prefix + name
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        tree[path] = _node(directory, name, status)
        if stat.S_ISDIR(status.st_mode):
            below = os.open(name, _DIRECTORY, dir_fd=directory)
            try:
                _walk(below, path + b"/", tree, inodes)
            finally:
                os.close(below)
        elif status.st_nlink > 1:
            inodes[status.st_dev, status.st_ino].append(path)


def _node(directory: int, name: bytes, status: os.stat_result) -> Node:
    mode = status.st_mode
    node: Node = {
        "type": stat.S_IFMT(mode),
        "mode": stat.S_IMODE(mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime": status.st_mtime_ns,
        "xattrs": _xattrs(directory, name),
    }
    if stat.S_ISREG(mode):
        node["size"] = status.st_size
        node["blocks"] = status.st_blocks * 512
        node["extents"], node["hash"] = _content(directory, name)
    elif stat.S_ISLNK(mode):
        node["target"] = os.readlink(name, dir_fd=directory)
    elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        node["rdev"] = (os.major(status.st_rdev), os.minor(status.st_rdev))
    return node


def _xattrs(directory: int, name: bytes) -> dict[bytes, bytes]:
    # There is no llistxattrat(2); the magic link keeps the path short and reaches what cannot be
    # opened without harm: fifos, devices, symbolic links.
    path = b"/proc/self/fd/%d/%s" % (directory, name)
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    return {os.fsencode(each): os.getxattr(path, each, follow_symlinks=False) for each in names}


def _content(directory: int, name: bytes) -> tuple[tuple[tuple[int, int], ...], str]:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except PermissionError:  # never for root, as whom the comparison is complete
        return (), "unreadable"
    try:
        extents = _extents(descriptor, os.fstat(descriptor).st_size)
        os.lseek(descriptor, 0, os.SEEK_SET)
        digest = hashlib.sha256()
        while piece := os.read(descriptor, _PIECE):
            digest.update(piece)
    finally:
        os.close(descriptor)
    return extents, digest.hexdigest()


def _extents(descriptor: int, size: int) -> tuple[tuple[int, int], ...]:
    extents = []
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                break
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        extents.append((start, end))
    return tuple(extents)


def compare(a: Tree, b: Tree, *, ignore: Collection[str] = ()) -> list[str]:
    """Return a line for each difference of b from a, none if they are equal.

    ignore: keys of nodes (as `walk` lists them) that may differ.
    """
    lines = [f"{_show(path)}: missing" for path in a if path not in b]
    lines += [f"{_show(path)}: should not be there" for path in b if path not in a]
    for path in a:
        if path in b:
            lines += _compare_nodes(path, a[path], b[path], ignore)
    return lines


def _compare_nodes(path: bytes, a: Node, b: Node, ignore: Collection[str]) -> list[str]:
    lines = [
        f"{_show(path)}: {key} is {_value(key, b.get(key))}, was {_value(key, a.get(key))}"
        for key in sorted((a.keys() | b.keys()) - set(ignore) - {"blocks"})
        if a.get(key) != b.get(key)
    ]
    if "blocks" not in ignore and "blocks" in a and "blocks" in b:
        was, now = a["blocks"], b["blocks"]
        if abs(was - now) > max(_BLOCK_SLACK, was // 8):
            lines.append(f"{_show(path)}: {now} bytes are allocated, were {was}")
    return lines


def _show(path: bytes) -> str:
    text = ascii(os.fsdecode(path))
    return text if len(text) <= 240 else f"{text[:100]}...{text[-100:]} ({len(path)} bytes)"


def _value(key: str, value: Any) -> str:
    text = oct(value) if key in {"mode", "type"} and value is not None else repr(value)
    return text if len(text) <= 400 else f"{text[:400]}..."
