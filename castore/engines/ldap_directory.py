"""The directory of slapd's database: replaced by renaming, owned by slapd's user, not used by any process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import stat
import struct
import time
from typing import TYPE_CHECKING, Final, Literal, Self

from castore.errors import CastoreError
from castore.fs.beneath import OPEN_DIRECTORY, OPEN_FILE, locate
from castore.fs.durable import sync_if_supported
from castore.process.servers import give

if TYPE_CHECKING:
    import pwd

    from castore.engines.state import PathSwap

_END_SECONDS: Final = 5.0
"""Seconds that slapd may take to end after `stop` has ended."""

_Name = Literal["live", "new", "old"]


class Siblings:
    """The directory that contains the directories of a rollback: links there are not followed."""

    def __init__(self, state: PathSwap) -> None:
        self._folder = os.path.dirname(state.live)
        paths: dict[_Name, str] = {"live": state.live, "new": state.new, "old": state.old}
        self._names = {name: os.path.basename(path) for name, path in paths.items()}

    def __enter__(self) -> Self:
        with locate(self._folder) as located:
            self._fd = located.open_directory()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def has(self, key: _Name, ending: str = "") -> bool:
        """Whether it exists."""
        with contextlib.suppress(FileNotFoundError):
            name = self._names[key] + ending
            return stat.S_ISDIR(os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mode)
        return False

    def rename(self, key: _Name, to: _Name) -> None:
        """Rename a directory. Raises OSError."""
        os.rename(self._names[key], self._names[to], src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def remove(self, key: _Name, ending: str = "") -> None:
        """Delete a directory with its content, if it exists. Raises OSError."""
        if self.has(key, ending):
            shutil.rmtree(self._names[key] + ending, dir_fd=self._fd)

    def sync(self) -> None:
        """Make the names in the directory durable. Raises OSError."""
        sync_if_supported(self._fd)


def make_for(path: str, account: pwd.struct_passwd | None) -> None:
    """Create a directory for a user; None: castore's own. Raises OSError."""
    with locate(os.path.dirname(path)) as located:
        above = located.open_directory()
    try:
        name = os.path.basename(path)
        os.mkdir(name, 0o700, dir_fd=above)
        made = os.open(name, OPEN_DIRECTORY, dir_fd=above)
        try:
            give(made, account)
        finally:
            os.close(made)
    finally:
        os.close(above)


def give_like(top: str, info: os.stat_result) -> None:
    """Give a directory and the files in it to the owner of the live one. Raises OSError.

    The user that loaded it may have put links to files of others there, so each file is opened first.
    """
    with locate(top) as located:
        folder = located.open_directory()
    try:
        if os.geteuid() == 0:
            for name in os.listdir(folder):
                _give_file(folder, name, info)
            os.fchown(folder, info.st_uid, info.st_gid)
        os.fchmod(folder, stat.S_IMODE(info.st_mode) & 0o777)
    finally:
        os.close(folder)


def _give_file(folder: int, name: str, info: os.stat_result) -> None:
    file = os.open(name, OPEN_FILE, dir_fd=folder)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise OSError(errno.EBUSY, f"{name} in it is not a regular file that slapadd made")
        os.fchown(file, info.st_uid, info.st_gid)
    finally:
        os.close(file)


def refuse_held(data: str) -> None:
    """Raise CastoreError while a process has a database open: it would keep using the replaced files."""
    end = time.monotonic() + _END_SECONDS
    while held := is_locked(data) or is_open(data):
        if time.monotonic() > end:
            raise CastoreError(
                f"slapd still has {data} open (process {held}): the `stop` program in castore.toml has to "
                "stop it, and `start` to start it again"
            )
        time.sleep(0.05)


def is_locked(data: str) -> int:
    """Return a process that has an LMDB environment open; 0: none. Each locks the environment's lock file."""
    lock = os.path.join(data, "lock.mdb")
    with contextlib.suppress(OSError), locate(lock) as located, open(located.open_regular(), "rb") as file:
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        kind, _, _, _, holder = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))
        if kind != fcntl.F_UNLCK:
            # A process of another PID namespace is reported as 0.
            return int(holder) or -1
    return 0


def is_open(data: str) -> int:
    """Return a process that has a file in a directory open; 0: none that can be seen."""
    for path in glob.glob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.path.dirname(os.readlink(path)) == data:
                return int(path.split("/")[2])
    return 0
