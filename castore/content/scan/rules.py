"""The rules for scanning a tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

from castore.content.scan.small_files import SMALL

if TYPE_CHECKING:
    import os

    from castore.content.scan.exclude import Exclude


class ScanRules(msgspec.Struct, frozen=True):
    """Which files of a tree are stored."""

    exclude: Exclude | None = None
    one_file_system: bool = False
    """Store directories on other file systems than the top's empty."""
    exclude_caches: bool = False
    """Store only the tag of directories with a valid CACHEDIR.TAG."""
    leave_out: frozenset[tuple[int, int]] = frozenset()
    """(device, inode) of directories that are stored empty: those of the store itself."""
    own: frozenset[bytes] = frozenset()
    """Paths, relative to the top, of castore's temporary files there, which are not stored."""
    any_top: bool = False
    """Compare with the last scan although it was of another directory: a copy of an earlier state."""

    def digest(self, top: os.stat_result) -> bytes:
        """Return a digest that identifies these rules and the tree that they apply to.

        Patterns are relative to the top, and files on the top's device are stored without their device.
        castore's own temporary files are not part of the digest: directories that contain them are read
        again.
        """
        patterns = self.exclude.patterns if self.exclude is not None else ()
        kinds = (self.one_file_system, self.exclude_caches, sorted(self.leave_out), SMALL)
        rules = (patterns, *kinds, *(() if self.any_top else (top.st_dev, top.st_ino)))
        return blake3(repr(rules).encode("utf-8", "surrogateescape")).digest()
