"""Restore a large file by writing only the ranges that differ into the live file.

This is for file systems that cannot share blocks between files: there, a new file costs as much as a full
restore, however little differs. The previous content of the ranges is durable in the undo directory before
the first of them is overwritten. While they are written, a reader of the live file sees a mixture of both
contents, and so does everybody after a kill, until `castore recover` restores exactly the previous content.
So only a restore that holds an undo journal does this, and only to a file that no other process has open: one
that has it mapped, such as a shared library, would run the mixture.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from castore.content.restore.difference import difference_of, has_size_of_stream, write_difference
from castore.content.restore.live_file import is_large, may_share, open_live
from castore.content.restore.metadata import is_privileged
from castore.errors import CastoreError, DamageError
from castore.fs.beneath import locate, open_below, path_of
from castore.fs.filesystem import network_of
from castore.fs.metadata import data_extents, read_xattrs
from castore.fs.sharing import can_share_blocks_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.content.restore.difference import Difference
    from castore.content.restore.live_file import LiveFile
    from castore.content.restore.metadata import Ownership
    from castore.content.restore.plan import Step, TreePlan
    from castore.content.restore.undo_area import UndoArea
    from castore.content.stored_dirs import Child
    from castore.content.streams import StreamReader
    from castore.fs.stamp import Stamp

_WRITABLE: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NOT_WRITABLE: Final = {
    *(errno.EACCES, errno.EPERM, errno.ETXTBSY, errno.EROFS, errno.ELOOP, errno.ENOENT, errno.EAGAIN)
}

# Seconds, measured on 2 cores of a Zen 5 server with ext4 on a virtual disk of 2 to 3 GB/s, 2026-11-29. On
# slower disks they grow in about the same proportion: a range is written twice, a new file once. On a busy
# machine, of 768 MiB that do not compress, ranges of 10, 30 and 50 % took 1.5, 1.5 and 2.5 s with the
# comparison of the live file, and a new file 2.8 to 3.9 s.
_NEW_FILE: Final = 1.1 / (1 << 30)
"""For each byte of a new file: read it from the store (0.5), write it to new pages (0.4), sync (0.4); partly
at the same time."""
_RANGE_BYTE: Final = 2.0 / (1 << 30)
"""For each byte of a range: copy the previous one to new pages and sync them (0.9), read the new one from the
store (0.5), overwrite (0.15), sync (0.4)."""
_RANGE: Final = 60e-6
"""For each range: 17 to 58 us, most of it for writing and syncing a page at a random place."""
_BEGIN: Final = 0.02
"""For each file: three syncs."""


def is_cheaper(difference: Difference, size: int) -> bool:
    """Whether writing ranges costs less than a new file of `size` bytes."""
    cost = _BEGIN + len(difference) * _RANGE + difference.size * _RANGE_BYTE
    return cost < size * _NEW_FILE


class RangePlan(NamedTuple):
    """Whether only ranges of a live file are overwritten, and which."""

    stamp: Stamp
    """The live file that was compared."""
    difference: Difference | None
    """None: a new file is written."""
    size: int
    """Of the stored file, in bytes."""
    compared: int = 0
    """Bytes of the live file that were read for this decision."""

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The ranges to save: those that differ, and what is cut off."""
        tail = ((self.size, self.stamp.size),) if self.stamp.size > self.size else ()
        return (*(self.difference or ()), *tail)

    @property
    def written(self) -> int:
        """Bytes that are written: of stored content, and of previous content to the undo area."""
        if self.difference is None:
            return self.size
        saved = sum(max(min(end, self.stamp.size) - start, 0) for start, end in self.ranges)
        return self.difference.size + saved


class RangePlanner:
    """Decides whether ranges of live files are overwritten."""

    def __init__(self, reader: StreamReader, ownership: Ownership) -> None:
        self._reader = reader
        self._ownership = ownership

    def plan(self, folder: int, live: LiveFile, child: Child) -> RangePlan:
        """Compare a live file with a stored one, if its ranges may be overwritten.

        folder: its open directory. Raises OSError, DamageError, CastoreError.
        """
        size = child.entry.size
        if not self._may_be_changed(folder, live, child):
            return RangePlan(live.stamp, None, size)
        found = difference_of(self._reader, live, child.ref, lambda found: is_cheaper(found, size))
        return RangePlan(live.stamp, found.difference, size, found.read)

    def current(self, planned: RangePlan | None, folder: int, live: LiveFile, child: Child) -> RangePlan:
        """Return a plan for a live file: the one that was made before, if it still holds.

        A write after the plan was begun changes the stamp, as it does after a comparison just now.
        """
        if planned is None or planned.stamp != live.stamp:
            return self.plan(folder, live, child)
        if planned.difference is not None and not self._may_be_changed(folder, live, child):
            return planned._replace(difference=None)
        return planned

    def _may_be_changed(self, folder: int, live: LiveFile, child: Child) -> bool:
        """Whether ranges of a live file may be overwritten, and nothing better can be done with it."""
        info = os.fstat(live.fd)
        return (
            info.st_nlink == 1  # other names must not change
            and child.entry.extra.link is None
            and has_size_of_stream(child)
            and not is_privileged(info.st_mode, read_xattrs(live.fd, lambda _reason: None))
            and may_share(self._ownership, live.fd, child)
            and network_of(os.fsdecode(path_of(live.fd))) is None
            and data_extents(live.fd, info.st_size, info.st_blocks) is None
            and not can_share_blocks_in(live.fd, folder)
            and not _is_open_elsewhere(live.fd)
        )


class RangeWriter(RangePlanner):
    """Writes ranges of live files. wrote: called with the number of bytes of each write."""

    def __init__(self, reader: StreamReader, ownership: Ownership, wrote: Callable[[int], None]) -> None:
        super().__init__(reader, ownership)
        self._wrote = wrote

    def write(
        self, undo: UndoArea, folder: int, live: LiveFile, child: Child, planned: RangePlan | None
    ) -> bool:
        """Give a live file the content of a stored one, if that is cheaper than a new file.

        folder: its open directory, in which it has the name of the stored one. planned: the plan that was
        made before, if there is one. The caller then sets its metadata. Returns False, and has changed
        nothing, if a new file has to be written. Raises OSError, DamageError, CastoreError; the caller then
        reverts the step.
        """
        plan = self.current(planned, folder, live, child)
        if plan.difference is None:
            return False
        try:
            file = os.open(child.entry.name, _WRITABLE, dir_fd=folder)
        except OSError as error:
            if error.errno in _NOT_WRITABLE:
                return False
            raise
        try:
            return self._write(undo, folder, file, plan.difference, plan, child)
        finally:
            os.close(file)

    def _write(
        self, undo: UndoArea, folder: int, file: int, difference: Difference, plan: RangePlan, child: Child
    ) -> bool:
        """Save ranges of an open file, then overwrite them."""
        if not undo.save_ranges(folder, file, plan.stamp, plan.ranges):
            return False
        write_difference(self._reader, file, difference, child.ref, self._wrote)
        os.fsync(file)
        return True


def with_range_plans(
    reader: StreamReader, plan: TreePlan, ownership: Ownership, top: int | None = None
) -> TreePlan:
    """Add to the steps that replace large files whether only their ranges are overwritten.

    top: the open directory; None: it is opened. Steps that have it keep it, and files that cannot be compared
    have none. Raises CastoreError.
    """
    wanted = [step for step in plan.steps if step.ranges is None and is_large(step)]
    if not wanted or not plan.range_writes:
        return plan
    if top is None:
        try:
            with locate(plan.top) as found:
                top = found.open_directory()
        except OSError as error:
            raise CastoreError(f"cannot compare {plan.top}: {error.strerror}") from error
        try:
            return with_range_plans(reader, plan, ownership, top)
        finally:
            os.close(top)
    planner = RangePlanner(reader, ownership)
    planned = {step.path: _plan_step(planner, top, step) for step in wanted}
    steps = (msgspec.structs.replace(step, ranges=planned.get(step.path, step.ranges)) for step in plan.steps)
    return msgspec.structs.replace(plan, steps=tuple(steps))


def _plan_step(planner: RangePlanner, top: int, step: Step) -> RangePlan | None:
    """Return the plan for the file that a step replaces; None if it cannot be compared."""
    if step.child is None:
        return None
    try:
        folder = open_below(top, step.path[:-1])
    except OSError:
        return None
    live = None
    try:
        live = open_live(folder, step.path[-1], step.proof)
        return planner.plan(folder, live, step.child) if live is not None else None
    except (OSError, DamageError):
        return None  # the restore itself reports it
    finally:
        if live is not None:
            os.close(live.fd)
        os.close(folder)


def _is_open_elsewhere(fd: int) -> bool:
    """Whether the file, which is open for reading as `fd`, is open a second time, or may be.

    A write lease is granted only if it is not.
    """
    try:
        # A process that opens the file during the lease makes the kernel send a signal: one that is ignored.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return True
    return False
