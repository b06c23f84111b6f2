"""Preview a scan of a tree by listing directories: no file is read, nothing is stored."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

import msgspec

from castore.content.scan.scanned import joined
from castore.errors import UsageError
from castore.fs.beneath import OPEN_DIRECTORY, open_regular, open_top
from castore.fs.metadata import CACHE_TAG, data_extents, is_cache, is_mount_point
from castore.kernel.dir_listing import entries_of, list_directory
from castore.process.own_process import raise_file_limit

if TYPE_CHECKING:
    from castore.content.scan.rules import ScanRules
    from castore.kernel.dir_listing import Listed

_MOST_NAMED: Final = 1000


class TreePreview(msgspec.Struct):
    """What a scan of a tree would store."""

    files: int = 0
    """Names below the top: files, directories, links and others."""
    size: int = 0
    """Bytes of content, without holes."""
    excluded: int = 0
    """Names that patterns or the other rules leave out; names below them are not counted."""
    excluded_paths: list[bytes] = []
    """The first excluded paths, relative to the top; directories end with a slash."""
    unreadable: list[tuple[bytes, str]] = []
    """(path, reason) of files that a snapshot would report as missing."""


def preview_tree(path: str, rules: ScanRules) -> TreePreview:
    """Preview the tree at `path` as these rules would scan it. Raises UsageError if it cannot be listed."""
    try:
        top = open_top(path)
    except OSError as error:
        raise UsageError(f"cannot read the tree {path}: {error.strerror}") from None
    raise_file_limit()
    return _Preview(rules, os.fstat(top).st_dev).run(top)


class _Preview:
    def __init__(self, rules: ScanRules, device: int) -> None:
        self._rules = rules
        self._device = device
        self._found = TreePreview()

    def run(self, top: int) -> TreePreview:
        """Walk the tree without recursion, because trees may be deep."""
        stack = [(top, b"", self._list(top, b""))]
        try:
            while stack:
                fd, path, directories = stack[-1]
                if not directories:
                    os.close(fd)
                    stack.pop()
                    continue
                name = directories.pop()
                below = joined(path, name)
                try:
                    child = os.open(name, OPEN_DIRECTORY, dir_fd=fd)
                except OSError as error:
                    self._found.unreadable.append((below, error.strerror or str(error)))
                    continue
                stack.append((child, below, self._list(child, below)))
        finally:
            for fd, _, _ in stack:
                os.close(fd)
        return self._found

    def _list(self, fd: int, path: bytes) -> list[bytes]:
        """Count the entries of a directory; return the directories to enter, in reverse order."""
        try:
            entries = entries_of(list_directory(fd))
        except OSError as error:
            self._found.unreadable.append((path, f"cannot be listed: {error.strerror}"))
            return []
        only_tag = self._rules.exclude_caches and is_cache(fd)
        directories = [
            entry.name
            for entry in entries
            if self._takes(fd, entry, joined(path, entry.name), only_tag=only_tag)
        ]
        directories.reverse()
        return directories

    def _takes(self, fd: int, entry: Listed, path: bytes, *, only_tag: bool) -> bool:
        """Count an entry; return whether it is a directory to enter."""
        rules, found = self._rules, self._found
        is_dir = stat.S_ISDIR(entry.mode)
        shut = only_tag and entry.name != CACHE_TAG
        if shut or path in rules.own or (rules.exclude and rules.exclude.matches(path, is_dir=is_dir)):
            self._leave_out(path + b"/" * is_dir)
            return False
        if entry.error and rules.one_file_system and is_mount_point(fd, entry.name):
            self._leave_out(path + b"/*")
            return False
        if entry.error:
            found.unreadable.append((path, os.strerror(entry.error)))
            return False
        found.files += 1
        if stat.S_ISREG(entry.mode):
            found.size += _size_of(fd, entry)
        if not is_dir:
            return False
        other = rules.one_file_system and entry.dev != self._device
        if other or (entry.dev, entry.ino) in rules.leave_out:
            self._leave_out(path + b"/*")
            return False
        return True

    def _leave_out(self, path: bytes) -> None:
        self._found.excluded += 1
        if len(self._found.excluded_paths) < _MOST_NAMED:
            self._found.excluded_paths.append(path)


def _size_of(fd: int, entry: Listed) -> int:
    """Return the bytes of a file's data; only a file that may have holes is opened."""
    if entry.blocks * 512 >= entry.size:
        return entry.size
    try:
        file = open_regular(fd, entry.name)
    except OSError:
        return entry.size
    try:
        extents = data_extents(file, entry.size, entry.blocks)
    except OSError:
        extents = None
    finally:
        os.close(file)
    return entry.size if extents is None else sum(length for _, length in extents)
