"""The file system of a file: its kind, and a sync of all of it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from castore.fs.filesystem import network_of, sync_file_system


def test_a_local_file_system_is_not_a_network(tmp_path: Path) -> None:
    assert network_of(str(tmp_path)) is None
    assert network_of(str(tmp_path / "missing")) is None


def test_a_file_system_is_synced_by_any_of_its_files(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    sync_file_system(fd)
    os.close(fd)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        sync_file_system(fd)
