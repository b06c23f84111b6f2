"""Durable writes: a file is complete under its name, or not there, whenever castore is killed or refused."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import castore
from castore.errors import StorageError
from castore.fs import durable


def test_a_private_file_is_for_its_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        durable.write_private(str(tmp_path / "a" / "b" / "file"), b"content")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a" / "b" / "file").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    assert durable.read_private(str(tmp_path / "a" / "b" / "file")) == "content"
    assert durable.read_private(str(tmp_path / "a" / "b" / "other")) is None


def test_content_is_durable_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, rename = os.fsync, os.rename

    def seen_fsync(fd: int) -> None:
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{fd}").partition(".")[0]))
        fsync(fd)

    def seen_rename(old: str, new: str) -> None:
        calls.append(("rename", new))
        rename(old, new)

    (tmp_path / "state").mkdir()
    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "rename", seen_rename)
    path = str(tmp_path / "state" / "file")
    durable.write_private(path, b"x")
    assert calls == [
        ("fsync", path),
        ("rename", path),
        ("fsync", str(tmp_path / "state")),
        ("fsync", str(tmp_path)),
    ]


def test_a_cache_file_is_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _fd: pytest.fail("synced"))
    file = durable.NewFile(str(tmp_path / "part"))
    file.write(b"content")
    file.commit(str(tmp_path / "file"), durable=False)
    file.discard()
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("failing", ["write", "fsync", "rename"])
def test_a_failed_write_leaves_the_previous_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "file"
    durable.write_private(str(path), b"previous")
    tries = []

    def refuse(*_: object) -> int:
        tries.append(failing)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, refuse)
    with pytest.raises(StorageError, match=f"cannot write {path}: No space left"):
        durable.write_private(str(path), b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"previous"
    assert os.listdir(tmp_path) == ["file"]
    assert tries == [failing], "a failed fsync must not be tried again on the same file"


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    buffer = bytearray(b"0123456789")
    durable.write_private(str(tmp_path / "file"), buffer)
    buffer.clear()  # no view of it remains
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_a_new_file_never_replaces_another(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("previous")
    with pytest.raises(FileExistsError):
        durable.write_file(str(tmp_path / "file"), b"new", replace=False)
    assert (tmp_path / "file").read_text() == "previous"
    durable.write_file(str(tmp_path / "other"), b"new", replace=False)
    assert sorted(os.listdir(tmp_path)) == ["file", "other"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_new_file_never_replaces_another_where_there_are_no_hard_links(tmp_path: Path, code: int) -> None:
    class Names(durable.FileNames):
        @staticmethod
        def link(_old: str, _new: str) -> None:
            raise OSError(code, os.strerror(code))

    (tmp_path / "new").write_text("new")
    durable.give_new_name(str(tmp_path / "new"), str(tmp_path / "file"), Names())
    assert os.listdir(tmp_path) == ["file"]
    (tmp_path / "new").write_text("another")
    with pytest.raises(FileExistsError):
        durable.give_new_name(str(tmp_path / "new"), str(tmp_path / "file"), Names())
    assert (tmp_path / "file").read_text() == "new"


def test_a_symbolic_link_of_the_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        durable.create_file(str(tmp_path / "link"))
    durable.write_private(str(tmp_path / "link"), b"x")
    assert not (tmp_path / "link").is_symlink()
    assert not (tmp_path / "elsewhere").exists()


def test_a_killed_writer_leaves_a_complete_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    program = (
        "import sys\nfrom castore.fs.durable import write_private\nnumber = 0\n"
        "while True:\n    write_private(sys.argv[1], b'%08d' % number * 4096)\n    number += 1\n"
    )
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", program, str(path)]) as process:
            while not path.exists():
                time.sleep(0.005)
            time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        content = path.read_bytes()
        assert content == content[:8] * 4096
        path.unlink()


def test_a_removed_file_may_be_missing(tmp_path: Path) -> None:
    durable.write_private(str(tmp_path / "file"), b"x")
    durable.remove_private(str(tmp_path / "file"))
    durable.remove_private(str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cannot remove"):
        durable.remove_private(str(tmp_path))


def test_files_are_created_and_locked_in_one_module_each() -> None:
    package = Path(castore.__file__).parent
    for text, home in (("O_EXCL", "fs/durable.py"), ("fcntl.flock(", "fs/flock.py")):
        found = [str(one.relative_to(package)) for one in package.rglob("*.py") if text in one.read_text()]
        assert found == [home], text
