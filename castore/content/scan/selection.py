"""Select the entries of a directory that a scan stores."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from castore.content.scan.scanned import joined
from castore.fs.metadata import CACHE_TAG, is_cache, is_mount_point
from castore.kernel.dir_listing import DIRECTORY, FAILED, name_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castore.content.scan.entries import EntryRecorder
    from castore.content.scan.rules import ScanRules
    from castore.content.scan.scanned import Scanned
    from castore.kernel.dir_listing import Listed
    from castore.progress import Progress

_MAYBE_DIRECTORY: Final = {0, stat.S_IFDIR}


class Selection:
    """Applies the rules of a scan to directories and their entries."""

    def __init__(self, progress: Progress, rules: ScanRules, entries: EntryRecorder) -> None:
        self._progress = progress
        self._rules = rules
        self._entries = entries

    def chosen(self, directory: Scanned) -> Sequence[int]:
        """Return the positions of the entries to store."""
        taken: Sequence[int] = range(len(directory.kinds))
        if self._rules.exclude_caches and is_cache(directory.fd):
            taken = [one for one in taken if directory.listed(one).name == CACHE_TAG]
        if self._rules.exclude is not None or self._rules.own or FAILED in directory.kinds:
            taken = [one for one in taken if self._allowed(directory, one)]
        self._progress.files += len(taken)
        directory.count = len(taken)
        return taken

    def _allowed(self, directory: Scanned, position: int) -> bool:
        """Whether an entry is stored; report one that cannot be examined."""
        path = joined(directory.path, name_at(directory.listing, directory.places[position]))
        if path in self._rules.own:
            directory.distrust = True
            return False
        kind = directory.kinds[position]
        entry = directory.listed(position) if kind == FAILED else None
        # An entry that cannot be examined may still be excluded. Most often it is a directory on which
        # another file system is mounted. If its type is unknown, patterns for directories match, too.
        is_dir = entry.mode in _MAYBE_DIRECTORY if entry is not None else kind == DIRECTORY
        exclude = self._rules.exclude
        if exclude is not None and exclude.matches(path, is_dir=is_dir):
            return False
        if entry is not None and not (
            self._rules.one_file_system and is_mount_point(directory.fd, entry.name)
        ):
            self._entries.warn(directory, entry.name, OSError(entry.error, os.strerror(entry.error)))
        return entry is None

    def is_left_empty(self, entry: Listed) -> bool:
        """Whether a directory is stored without its content."""
        if self._rules.one_file_system and entry.dev != self._entries.device:
            return True
        return (entry.dev, entry.ino) in self._rules.leave_out
