"""Locks of files: exclusive, shared, waited for, and released however their holder ends."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from castore.fs.flock import directory_lock, has_no_locks, open_lock_file, try_lock, wait_for_lock

_HOLDER = (
    "import sys\nfrom castore.fs.flock import open_lock_file, try_lock\n"
    "assert try_lock(open_lock_file(sys.argv[1]), shared=sys.argv[2] == 'shared')\n"
    "print(flush=True)\nsys.stdin.read()\n"
)


class Holder:
    """Another process that holds a lock."""

    def __init__(self, path: Path, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, str(path), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize(
    ("held", "wanted", "taken"),
    [
        ("exclusive", "exclusive", False),
        ("exclusive", "shared", False),
        ("shared", "exclusive", False),
        ("shared", "shared", True),
    ],
)
def test_a_lock_keeps_out_what_it_conflicts_with_until_its_holder_is_killed(
    tmp_path: Path, held: str, wanted: str, *, taken: bool
) -> None:
    holder = Holder(tmp_path / "lock", held)
    fd = open_lock_file(str(tmp_path / "lock"))
    try:
        assert try_lock(fd, shared=wanted == "shared") is taken
        holder.kill()
        assert try_lock(fd, shared=wanted == "shared")
    finally:
        os.close(fd)
        holder.kill()


def test_waiting_ends_when_the_holder_ends(tmp_path: Path) -> None:
    holder = Holder(tmp_path / "lock", "exclusive")
    threading.Timer(0.2, holder.process.kill).start()
    fd = open_lock_file(str(tmp_path / "lock"))
    wait_for_lock(fd)
    os.close(fd)
    holder.kill()


def test_a_lock_file_is_for_its_owner_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        os.close(open_lock_file(str(tmp_path / "lock")))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600


def test_a_directory_is_locked_during_the_block(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with directory_lock(str(tmp_path), shared=True):
            assert not try_lock(fd)
            assert try_lock(fd, shared=True)
        assert try_lock(fd)
    finally:
        os.close(fd)


def test_an_error_of_a_file_system_without_locks_is_recognized() -> None:
    assert has_no_locks(OSError(errno.ENOLCK, ""))
    assert not has_no_locks(OSError(errno.EIO, ""))
