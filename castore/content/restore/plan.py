"""The plan of a restore in place: data that can be shown before it is carried out."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from castore.content.scan.rules import ScanRules

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from castore.content.restore.hard_links import Link
    from castore.content.restore.undo_journal import Action, Ids, Path
    from castore.content.scan.cache import ScanCacheReader
    from castore.content.stored_dirs import Child
    from castore.kernel.dir_listing import Listed


@dataclass(frozen=True)
class Step:
    """One thing to do."""

    action: Action
    path: Path
    """Below the top; empty for the top itself."""
    child: Child | None = None
    """What is to be there; None to remove."""
    removed: int = 0
    """How many live files and directories go."""
    ids: Ids | None = None
    """Device and inode of the live file that was compared; None: there was none."""
    keep_attributes: bool = False
    """Of what is changed in place, keep the attributes that are not stored: there may be no copy of them."""

    @property
    def size(self) -> int:
        """Bytes of content to write."""
        if self.child is None or self.action == "metadata":
            return 0
        return self.child.ref.size if self.child.entry.is_dir and self.child.ref else self.child.entry.size


@dataclass(frozen=True)
class TreePlan:
    """How a live directory becomes a stored one."""

    top: str
    steps: tuple[Step, ...]
    kept_links: dict[tuple[int, int], Link]
    """Of files with several names that stay: one name of each."""
    skipped: tuple[tuple[bytes, str], ...] = ()
    """(path, reason) of what is left alone because there may be no copy of it."""
    one_file: bool = False
    """Whether it is about one file in the directory `top`, which has to change in one step."""
    crosses: bool = False
    """Whether a step is on another file system, mounted below the top."""
    empties: bool = False
    """Whether the stored directory is empty."""
    ids: Ids | None = None
    """Device and inode of `top`."""

    @property
    def summary(self) -> tuple[int, int, int]:
        """How many entries are added, how many changed, and how many live ones are removed."""
        actions = [step.action for step in self.steps if step.path or step.action != "metadata"]
        removed = sum(step.removed for step in self.steps if step.action == "remove")
        return actions.count("create"), actions.count("replace") + actions.count("metadata"), removed


@dataclass(frozen=True)
class Comparison:
    """How a live tree is compared with a stored one.

    A regular file of another size or time is different.
    """

    changed: AbstractSet[bytes] = frozenset()
    """Paths of files that count as different, regardless of size and time."""
    checksum: bool = False
    """Compare also the content of files of the same size and time, unless `scan` says that it is the same."""
    rules: ScanRules = field(default_factory=ScanRules)
    """What snapshots leave out is left alone."""
    apart: AbstractSet[bytes] = frozenset()
    """Paths below the top that are left alone, stored or not: what other parts keep in this tree."""
    unread: AbstractSet[bytes] = frozenset()
    """Paths below the top that a snapshot could not read: they and all below them are left alone."""
    unread_attributes: AbstractSet[bytes] = frozenset()
    """Paths of which a snapshot could not read some attribute: none of theirs are removed."""
    below: bytes = b""
    """The path of the stored directory in its tree, which patterns are relative to."""
    scan: ScanCacheReader | None = None
    """What the last snapshot saw of the live tree: what is as it was then is not read again.

    It goes by inodes and ctimes, which no user can set.
    """


def ids_of(info: os.stat_result | Listed) -> Ids:
    """Return the device and inode of a file."""
    return (info.st_dev, info.st_ino) if isinstance(info, os.stat_result) else (info.dev, info.ino)
