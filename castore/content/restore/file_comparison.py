"""Compare live files with stored ones."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from castore.content.restore.large_files import holds_content
from castore.content.restore.metadata import is_privileged
from castore.content.stored_dirs import check_content
from castore.content.streams import RangeReader
from castore.fs.beneath import open_regular
from castore.fs.metadata import read_xattrs_at
from castore.model.tree import Content, clamped_time

if TYPE_CHECKING:
    from castore.content.restore.metadata import Ownership
    from castore.content.restore.plan import Comparison
    from castore.content.restore.undo_journal import Path
    from castore.content.stored_dirs import Child
    from castore.content.streams import StreamReader
    from castore.kernel.dir_listing import Listed
    from castore.model.refs import Ref


class FileComparison:
    """Compares the files of one live tree with the stored ones."""

    def __init__(self, reader: StreamReader, ownership: Ownership, comparison: Comparison) -> None:
        self._reader = reader
        self.ownership = ownership
        self._comparison = comparison
        self._bundle: tuple[Ref | None, RangeReader] = (None, RangeReader(reader.store, None))
        self._live_links: dict[tuple[int, int], tuple[int, int] | Path] = {}
        self._stored_links: dict[tuple[int, int], tuple[int, int]] = {}

    def same(
        self, fd: int, path: Path, found: Child, info: Listed, *, holds: bool | None = None
    ) -> bool:
        """Whether a live file has the stored content, and the same other names.

        holds: whether it has the stored content; None: compare it, if content is to be compared.
        """
        entry = found.entry
        if b"/".join(path) in self._comparison.changed:
            return False
        if entry.is_file and (info.size, clamped_time(info.mtime_ns)) != (entry.size, entry.mtime):
            return False
        if holds is None:
            holds = not (entry.is_file and self._comparison.checksum) or self._holds(fd, found)
        if not holds:
            return False
        if stat.S_ISLNK(entry.st_mode) and os.readlink(entry.name, dir_fd=fd) != entry.extra.target:
            return False
        if stat.S_IFMT(info.mode) in {stat.S_IFCHR, stat.S_IFBLK} and (
            info.rdev != entry.extra.device
        ):
            return False
        live = (info.dev, info.ino)
        if entry.extra.link is not None and (
            self._stored_links.setdefault(entry.extra.link, live) != live
        ):
            return False
        if info.nlink > 1:
            owner = self._live_links.setdefault(live, entry.extra.link or path)
            return owner == (entry.extra.link or path)
        return True

    def _holds(self, fd: int, found: Child) -> bool:
        """Whether a live file has the stored bytes."""
        entry, ref, offset, _ = found
        check_content(found)
        with open(open_regular(fd, entry.name), "rb") as live:
            if entry.content is not Content.SMALL_FILES:
                return holds_content(self._reader.store, live.fileno(), found)
            if self._bundle[0] != ref:
                self._bundle = ref, RangeReader(self._reader.store, ref)
            data = self._bundle[1].read(offset, entry.size)
            return live.read(len(data)) == data and not live.read(1)

    def has_to_be_new(self, fd: int, child: Child, info: Listed) -> bool:
        """Whether to replace a file that has the stored content, because another user may write to it.

        A user who has it open, or has another name of it, could keep writing to a file that is no longer
        theirs, or that runs with the rights of its owner.
        """
        entry = child.entry
        if not self.ownership.change or not stat.S_ISREG(info.mode):
            return False
        own = info.uid == os.geteuid() and info.nlink == 1
        if info.uid != self.ownership.of(entry, child.owners)[0] and not own:
            return True
        if is_privileged(entry.st_mode, entry.extra.xattrs):
            return True
        return is_privileged(info.mode, read_xattrs_at(fd, info.name, lambda _reason: None))

    def metadata_differs(
        self, fd: int, path: Path, child: Child, info: Listed, *, bare: bool = False
    ) -> bool:
        """Whether a live file's owner, mode, time or attributes differ from the stored ones.

        bare: whether it is known to have no attributes.
        """
        entry = child.entry
        if self.ownership.change and (
            (info.uid, info.gid) != self.ownership.of(entry, child.owners)
        ):
            return True
        is_link = stat.S_ISLNK(info.mode)
        kept = ~0 if self.ownership.change else ~(stat.S_ISUID | stat.S_ISGID)
        if clamped_time(info.mtime_ns) != entry.mtime or (
            not is_link and (stat.S_IMODE(info.mode) ^ entry.mode) & kept
        ):
            return True
        failed: list[str] = []
        live = () if bare else read_xattrs_at(fd, info.name, failed.append)
        wanted = self.ownership.xattrs_of(entry, child.owners)
        if b"/".join(path) in self._comparison.unread_attributes:
            return not set(wanted) <= set(live)
        return bool(failed) or live != wanted
