"""File systems on which a directory cannot be synced: restores work there, a store says so."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from castore.errors import StorageError
from castore.services.config import Service
from castore.services.sources import Tree, file_source
from tests.support.stores import Sandbox
from tests.support.tree_walker import compare, walk


def without_sync(monkeypatch: pytest.MonkeyPatch, tops: list[Path], code: int) -> None:
    """Let fsync of directories below `tops` fail."""
    real = os.fsync

    def fsync(fd: int) -> None:
        where = os.readlink(f"/proc/self/fd/{fd}")
        if stat.S_ISDIR(os.fstat(fd).st_mode) and any((where + "/").startswith(f"{top}/") for top in tops):
            raise OSError(code, os.strerror(code))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_live_state_is_restored_where_directories_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    sandbox = Sandbox(tmp_path / "sandbox", average=4096)
    live = tmp_path / "files" / "live"
    (live / "sub").mkdir(parents=True)
    (live / "sub" / "file").write_text("stored")
    (tmp_path / "files" / "dump").write_text("stored")
    sources = {
        "t": Tree(str(live)),
        "d": file_source(str(tmp_path / "files" / "dump")),
    }
    sandbox.snapshot("s", sources)
    before = walk(live)
    without_sync(monkeypatch, [tmp_path / "files", tmp_path / "sandbox" / "state", tmp_path / "sandbox" / "cache"], code)
    (live / "sub" / "file").write_text("changed, and longer")
    (tmp_path / "files" / "dump").write_text("changed")
    sandbox.rollback(1, Service())
    assert compare(before, walk(live)) == []
    assert (tmp_path / "files" / "dump").read_text() == "stored"
    (live / "sub" / "file").write_text("changed, and longer")
    sandbox.in_place("s@1:t/sub/file", live / "sub" / "file")
    sandbox.in_place("s@1:t", live)
    sandbox.restore("s@1", tmp_path / "files" / "new")
    assert (live / "sub" / "file").read_text() == "stored"


def test_a_store_says_that_its_file_system_cannot_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = Sandbox(tmp_path / "sandbox", average=4096)
    (tmp_path / "live").mkdir()
    without_sync(monkeypatch, [sandbox.store], errno.EINVAL)
    with pytest.raises(StorageError, match="does not support fsync"):
        sandbox.snapshot("s", {"t": Tree(str(tmp_path / "live"))})
