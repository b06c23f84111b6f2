"""The plan of a restore in place: data that can be shown before it is carried out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from castore.content.scan.rules import ScanRules
from castore.state.restore_runs import Work

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from castore.content.restore.hard_links import Link
    from castore.content.restore.live_file import Proof
    from castore.content.restore.range_writes import RangePlan
    from castore.content.restore.undo_journal import Action, Ids, Path
    from castore.content.scan.cache_reader import ScanCacheReader
    from castore.content.stored_dirs import Child
    from castore.kernel.dir_listing import Listed


class Step(msgspec.Struct, frozen=True):
    """One change."""

    action: Action
    path: Path
    """The path below the top; empty for the top itself."""
    child: Child | None = None
    """The stored file or directory; None to remove."""
    removed: int = 0
    """How many live files and directories it removes."""
    ids: Ids | None = None
    """Device and inode of the live file that was compared; None: there was none."""
    keep_attributes: bool = False
    """Whether to keep attributes that are not stored: there may be no copy of them."""
    proof: Proof | None = None
    """What the last snapshot proves of the content of the live file."""
    ranges: RangePlan | None = None
    """Whether only ranges of the live file are overwritten; None: that is decided when it is done."""

    @property
    def size(self) -> int:
        """Bytes of content that it restores."""
        if self.child is None or self.action == "metadata":
            return 0
        return self.child.ref.size if self.child.entry.is_dir and self.child.ref else self.child.entry.size

    @property
    def written(self) -> int:
        """Bytes of content to write, also to the undo area."""
        return self.ranges.written if self.ranges is not None else self.size


class TreePlan(msgspec.Struct, frozen=True):
    """The steps that make a live directory equal to a stored one."""

    top: str
    steps: tuple[Step, ...]
    kept_links: dict[tuple[int, int], Link]
    """One name of each unchanged file that has several names."""
    skipped: tuple[tuple[bytes, str], ...] = ()
    """(path, reason) of files that are left alone because there may be no copy of them."""
    one_file: bool = False
    """Whether the plan is for one file in the directory `top`, which has to change in one step."""
    crosses: bool = False
    """Whether a step is on another file system, mounted below the top."""
    empties: bool = False
    """Whether the stored directory is empty."""
    ids: Ids | None = None
    """Device and inode of `top`."""
    compared: int = 0
    """Entries of stored directories that were compared with live ones."""
    read: int = 0
    """Bytes of live files that were read to compare them."""
    seconds: float = 0.0
    """How long the comparison took."""
    range_writes: bool = True
    """Whether ranges of large live files may be overwritten."""

    @property
    def work(self) -> Work:
        """What a restore that makes this plan and carries it out has to do."""
        read = self.read + sum(step.ranges.compared for step in self.steps if step.ranges is not None)
        return Work(self.compared, read, len(self.steps), sum(step.written for step in self.steps))

    @property
    def size(self) -> int:
        """Bytes of content that the steps restore."""
        return sum(step.size for step in self.steps)

    @property
    def summary(self) -> tuple[int, int, int]:
        """The numbers of entries that are added, that are changed, and that are removed."""
        actions = [step.action for step in self.steps if step.path or step.action != "metadata"]
        removed = sum(step.removed for step in self.steps if step.action == "remove")
        return actions.count("create"), actions.count("replace") + actions.count("metadata"), removed


class Comparison(msgspec.Struct, frozen=True):
    """How a live tree is compared with a stored one.

    A regular file of another size or time always differs.
    """

    changed: AbstractSet[bytes] = frozenset()
    """Paths of files that are treated as different, regardless of size and time."""
    checksum: bool = False
    """Also compare the content of files of the same size and time, except those unchanged since `scan`."""
    rules: ScanRules = msgspec.field(default_factory=ScanRules)
    """Files that snapshots leave out are left alone."""
    apart: AbstractSet[bytes] = frozenset()
    """Paths below the top that are left alone, stored or not: files of other parts in this tree."""
    unread: AbstractSet[bytes] = frozenset()
    """Paths below the top that a snapshot could not read: they and all below them are left alone."""
    unread_attributes: AbstractSet[bytes] = frozenset()
    """Paths of which a snapshot could not read some attribute: none of their attributes are removed."""
    below: bytes = b""
    """The path of the stored directory in its tree, to which patterns are relative."""
    scan: ScanCacheReader | None = None
    """The last snapshot's record of the live tree: files that are unchanged since are not read again.

    It compares inodes and ctimes, which no user can set.
    """
    range_writes: bool = True
    """Whether ranges of large live files may be overwritten."""


def ids_of(info: os.stat_result | Listed) -> Ids:
    """Return the device and inode of a file."""
    return (info.st_dev, info.st_ino) if isinstance(info, os.stat_result) else (info.dev, info.ino)
