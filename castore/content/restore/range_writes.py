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
from typing import TYPE_CHECKING, Final

from castore.content.restore.difference import difference_of, write_difference
from castore.content.restore.live_file import may_share
from castore.content.restore.metadata import is_privileged
from castore.fs.beneath import path_of
from castore.fs.filesystem import network_of
from castore.fs.metadata import data_extents, read_xattrs
from castore.fs.sharing import can_share_blocks_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.content.restore.difference import Difference
    from castore.content.restore.live_file import LiveFile, Stamp
    from castore.content.restore.metadata import Ownership
    from castore.content.restore.undo_area import UndoArea
    from castore.content.stored_dirs import Child
    from castore.content.streams import StreamReader

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


class RangeWriter:
    """Writes ranges of live files. wrote: called with the number of bytes of each write."""

    def __init__(self, reader: StreamReader, ownership: Ownership, wrote: Callable[[int], None]) -> None:
        self._reader = reader
        self._ownership = ownership
        self._wrote = wrote

    def write(self, undo: UndoArea, folder: int, live: LiveFile, child: Child) -> bool:
        """Give a live file the content of a stored one, if that is cheaper than a new file.

        folder: its open directory, in which it has the name of the stored one. The caller then sets its
        metadata. Returns False, and has changed nothing, if a new file has to be written. Raises OSError,
        DamageError, CastoreError; the caller then reverts the step.
        """
        if not self._may_be_changed(folder, live, child):
            return False
        difference = difference_of(self._reader, live, child.ref)
        if difference is None or not is_cheaper(difference, child.entry.size):
            return False
        try:
            file = os.open(child.entry.name, _WRITABLE, dir_fd=folder)
        except OSError as error:
            if error.errno in _NOT_WRITABLE:
                return False
            raise
        try:
            return self._write(undo, folder, file, live.stamp, difference, child)
        finally:
            os.close(file)

    def _write(
        self, undo: UndoArea, folder: int, file: int, before: Stamp, difference: Difference, child: Child
    ) -> bool:
        """Save ranges of an open file, then overwrite them."""
        if not undo.save_ranges(folder, file, before, _with_tail(difference, child.entry.size, before)):
            return False
        write_difference(self._reader, file, difference, child.ref, self._wrote)
        os.ftruncate(file, child.entry.size)
        os.fsync(file)
        self._wrote(child.entry.size - difference.size)
        return True

    def _may_be_changed(self, folder: int, live: LiveFile, child: Child) -> bool:
        """Whether ranges of a live file may be overwritten, and nothing better can be done with it."""
        info = os.fstat(live.fd)
        return (
            info.st_nlink == 1  # other names must not change
            and child.entry.extra.link is None
            and child.entry.extra.extents is None
            and not is_privileged(info.st_mode, read_xattrs(live.fd, lambda _reason: None))
            and may_share(self._ownership, live.fd, child)
            and network_of(os.fsdecode(path_of(live.fd))) is None
            and data_extents(live.fd, info.st_size, info.st_blocks) is None
            and not can_share_blocks_in(live.fd, folder)
            and not _is_open_elsewhere(live.fd)
        )


def _with_tail(difference: Difference, size: int, before: Stamp) -> tuple[tuple[int, int], ...]:
    """Return the ranges to save: those that differ, and what is cut off."""
    tail = ((size, before.size),) if before.size > size else ()
    return (*difference, *tail)


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
