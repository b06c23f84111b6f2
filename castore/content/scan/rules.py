"""The rules by which a tree is scanned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from castore.content.scan.small_files import SMALL

if TYPE_CHECKING:
    import os

    from castore.content.scan.exclude import Exclude


@dataclass(frozen=True)
class ScanRules:
    """What of a tree is taken."""

    exclude: Exclude | None = None
    one_file_system: bool = False
    """Directories on other file systems than the top's are kept, empty."""
    exclude_caches: bool = False
    """Of directories with a valid CACHEDIR.TAG, only the tag is kept."""
    leave_out: frozenset[tuple[int, int]] = frozenset()
    """(device, inode) of directories kept empty: the store's own."""
    own: frozenset[bytes] = frozenset()
    """Paths, relative to the top, of what castore has made there for the moment, which is not taken."""

    def digest(self, top: os.stat_result) -> bytes:
        """Return what tells these rules, and what they are for, from others.

        Patterns are relative to the top, and links to files on its device are stored without it. What is
        castore's own is not of it: directories that hold such are looked at again.
        """
        patterns = self.exclude.patterns if self.exclude is not None else ()
        kinds = (self.one_file_system, self.exclude_caches, sorted(self.leave_out), SMALL)
        rules = (patterns, *kinds, top.st_dev, top.st_ino)
        return blake3(repr(rules).encode("utf-8", "surrogateescape")).digest()
