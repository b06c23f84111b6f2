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
