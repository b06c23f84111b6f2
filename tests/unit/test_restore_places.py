"""Restores into a place: asked where the tree came from another one, resumed, or of one file."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def store(castore: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line, with a store."""
    monkeypatch.setenv("CASTORE_STORE", str(tmp_path / "store"))
    castore("init", tmp_path / "store")
    return castore


@pytest.fixture
def elsewhere(store: Run, tmp_path: Path) -> Path:
    """A directory of 200 files that no snapshot has, and a generation s@1:t of another one."""
    live = tmp_path / "live"
    live.mkdir()
    (live / "file").write_text("stored")
    store("snapshot", "s", "--tree", f"t={live}")
    other = tmp_path / "other"
    (other / "sub").mkdir(parents=True)
    for number in range(199):
        (other / "sub" / f"precious{number}").write_text("only here")
    return other


def answer(reply: bytes, *words: object) -> tuple[int, str]:
    """Run castore on a terminal where somebody answers; return its exit code and output."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "castore", *map(str, words)]
    running = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, close_fds=True)
    os.close(slave)
    os.write(master, reply)
    output = b""
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:  # EIO: the last process has closed the terminal
            break
        if not data:
            break
        output += data
    os.close(master)
    return running.wait(timeout=60), output.decode()


def test_in_place_elsewhere_is_refused_without_a_terminal(store: Run, elsewhere: Path) -> None:
    refused = store("restore", "--in-place", "s@1:t", elsewhere, expect=2)
    assert "--yes" in refused.stderr
    assert "--dry-run" in refused.stderr
    assert "200 removed" in refused.stderr
    assert len(os.listdir(elsewhere / "sub")) == 199
    store("restore", "--in-place", "--dry-run", "s@1:t", elsewhere)
    assert len(os.listdir(elsewhere / "sub")) == 199
    store("restore", "--in-place", "--yes", "s@1:t", elsewhere)
    assert os.listdir(elsewhere) == ["file"]


def test_in_place_elsewhere_asks_on_a_terminal(store: Run, elsewhere: Path) -> None:
    code, output = answer(b"n\n", "restore", "--in-place", "s@1:t", elsewhere)
    assert code == 0, output
    assert "200 removed" in output
    assert "nothing was changed" in output
    assert len(os.listdir(elsewhere / "sub")) == 199
    code, output = answer(b"y\n", "restore", "--in-place", "s@1:t", elsewhere)
    assert code == 0, output
    assert os.listdir(elsewhere) == ["file"]


def test_in_place_where_the_tree_came_from_or_into_an_empty_directory_asks_nothing(
    store: Run, elsewhere: Path, tmp_path: Path
) -> None:
    live = tmp_path / "live"
    (live / "extra").write_text("new")
    (tmp_path / "link").symlink_to(live)
    store("restore", "--in-place", "s@1:t", tmp_path / "link")
    assert os.listdir(live) == ["file"]
    (tmp_path / "empty").mkdir()
    store("restore", "--in-place", "s@1:t", tmp_path / "empty")
    assert os.listdir(tmp_path / "empty") == ["file"]


def test_in_place_goes_by_the_directory_of_castore_toml(store: Run, elsewhere: Path, tmp_path: Path) -> None:
    (tmp_path / "castore.toml").write_text(f'[service.s.parts.t]\nengine = "tree"\npath = "{elsewhere}"\n')
    store("restore", "--config", tmp_path / "castore.toml", "--in-place", "s@1:t", elsewhere)
    assert os.listdir(elsewhere) == ["file"]


@pytest.fixture
def etc(store: Run, tmp_path: Path) -> Path:
    """A tree with a file that has everything, stored as s@1:t, and changed since."""
    live = tmp_path / "live"
    (live / "sub").mkdir(parents=True)
    file = live / "sub" / "file"
    file.write_text("stored")
    os.setxattr(file, "user.comment", b"hello")
    if os.geteuid() == 0:
        os.chown(file, 12345, 23456)
    subprocess.run(["setfacl", "-m", "u:4711:r", file], check=True)
    os.utime(file, ns=(5, 123456789))
    os.link(file, live / "second-name")
    (live / "points").symlink_to("stored-target")
    store("snapshot", "s", "--tree", f"t={live}")
    return live


def state(path: Path) -> tuple[object, ...]:
    info = path.lstat()
    names = sorted(os.listxattr(path, follow_symlinks=False))
    content = os.readlink(path) if path.is_symlink() else path.read_bytes()
    ids = info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns
    return *ids, content, [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names]


def test_one_file_comes_back_to_its_place_with_all_its_metadata(store: Run, etc: Path) -> None:
    file = etc / "sub" / "file"
    before = state(file)
    file.unlink()
    store("restore", "--in-place", "s@1:t/sub/file", file)
    assert state(file) == before
    file.write_text("changed, and longer")
    file.chmod(0o600)
    os.removexattr(file, "user.comment")
    store("restore", "--in-place", "--dry-run", "s@1:t/sub/file", file)
    assert file.read_text() == "changed, and longer"
    store("restore", "--in-place", "s@1:t/sub/file", file)
    assert state(file) == before
    inode = file.stat().st_ino
    file.chmod(0o600)
    store("restore", "--in-place", "s@1:t/sub/file", file)
    assert state(file) == before
    assert file.stat().st_ino == inode
    assert os.listdir(etc / "sub") == ["file"]


def test_one_file_replaces_what_has_become_of_it(store: Run, etc: Path) -> None:
    file = etc / "sub" / "file"
    before = state(file)
    file.unlink()
    file.symlink_to("elsewhere")
    store("restore", "--in-place", "s@1:t/sub/file", file)
    assert state(file) == before
    link = etc / "points"
    link.unlink()
    link.write_text("a file now")
    store("restore", "--in-place", "s@1:t/points", link)
    assert os.readlink(link) == "stored-target"
    file.unlink()
    file.mkdir()
    assert "directory" in store("restore", "--in-place", "s@1:t/sub/file", file, expect=2).stderr
    assert "no-such" in store("restore", "--in-place", "s@1:t/sub/file", etc / "no-such/file", expect=2).stderr


def test_one_file_elsewhere_asks_before_it_replaces_another(store: Run, etc: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    store("restore", "--in-place", "s@1:t/sub/file", other)
    assert other.read_text() == "stored"
    other.write_text("precious")
    assert "--yes" in store("restore", "--in-place", "s@1:t/sub/file", other, expect=2).stderr
    assert other.read_text() == "precious"
    store("restore", "--in-place", "--yes", "s@1:t/sub/file", other)
    assert other.read_text() == "stored"


def test_one_file_is_never_missing_or_incomplete_while_it_is_restored(store: Run, etc: Path) -> None:
    large = etc / "large"
    large.write_bytes(os.urandom(8 << 20))
    size = large.stat().st_size
    store("snapshot", "s", "--tree", f"t={etc}")
    large.write_bytes(bytes(size))
    command = [sys.executable, "-m", "castore", "restore", "--in-place", "s@2:t/large", str(large)]
    running = subprocess.Popen(command)
    while running.poll() is None:
        assert large.stat().st_size == size
    assert running.returncode == 0
