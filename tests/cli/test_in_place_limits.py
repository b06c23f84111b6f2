"""A restore in place deletes nothing that no snapshot could read, and leaves no dead end."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import castore as castore_package
from castore.content.restore import file_comparison
from castore.services.restore_in_place import plan_in_place, restore_in_place
from castore.services.selectors import select
from tests.support.stores import Sandbox

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def store(castore: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line, with a store."""
    monkeypatch.setenv("CASTORE_STORE", str(tmp_path / "store"))
    castore("init", tmp_path / "store")
    return castore


_LIMITED = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


def limited(*words: object, expect: int) -> str:
    """Run castore without root's right to read everything; return its standard error."""
    prefix = _LIMITED if os.geteuid() == 0 else []
    command = [*prefix, sys.executable, "-m", "castore", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stderr
    return done.stderr


@pytest.fixture
def tree(store: Run, tmp_path: Path) -> Iterator[Path]:
    """A tree with a file and a directory that the user who snapshots cannot read."""
    top = tmp_path / "live"
    (top / "closed").mkdir(parents=True)
    (top / "closed" / "inner").write_text("only here")
    (top / "open").mkdir()
    (top / "open" / "secret").write_text("only here, too")
    (top / "plain").write_text("old")
    (top / "open" / "secret").chmod(0)
    (top / "closed").chmod(0)
    yield top
    (top / "closed").chmod(0o700)


def check_kept(tree: Path) -> None:
    """Check that what could not be read is still there."""
    (tree / "closed").chmod(0o700)
    (tree / "open" / "secret").chmod(0o600)
    assert (tree / "closed" / "inner").read_text() == "only here"
    assert (tree / "open" / "secret").read_text() == "only here, too"


def test_rollback_keeps_what_its_target_could_not_read(tree: Path) -> None:
    limited("snapshot", "s", "--tree", f"t={tree}", "--revision", "r1", expect=3)
    (tree / "plain").write_text("new and longer")
    errors = limited("rollback", "s", "--to", "r1", expect=3)
    assert (tree / "plain").read_text() == "old"
    assert "closed" in errors
    check_kept(tree)


def test_rollback_keeps_what_its_pre_rollback_generation_could_not_read(tree: Path) -> None:
    (tree / "closed").chmod(0o700)
    (tree / "closed").rename(tree / "moved")
    (tree / "open").rename(tree.parent / "open")
    limited("snapshot", "s", "--tree", f"t={tree}", "--revision", "r1", expect=0)
    (tree / "moved").rename(tree / "closed")
    (tree.parent / "open").rename(tree / "open")
    (tree / "closed").chmod(0)
    limited("rollback", "s", "--to", "r1", expect=3)
    assert (tree / "moved" / "inner").read_text() == "only here"
    check_kept(tree)


def test_undo_keeps_what_no_snapshot_could_read_of_a_tree_that_did_not_exist(
    store: Run, tree: Path, tmp_path: Path
) -> None:
    (tree / "closed").chmod(0o700)
    (tree / "closed").rename(tmp_path / "closed")
    (tree / "open").rename(tmp_path / "open")
    limited("snapshot", "s", "--tree", f"t={tree}", "--revision", "r1", expect=0)
    shutil.rmtree(tree)
    limited("rollback", "s", "--to", "r1", expect=0)
    (tmp_path / "closed").rename(tree / "closed")
    (tmp_path / "open").rename(tree / "open")
    (tree / "closed").chmod(0)
    errors = limited("rollback", "s", "--undo", expect=3)
    assert "closed" in errors
    assert not (tree / "plain").exists()
    check_kept(tree)
    assert sorted(os.listdir(tree.parent / "live")) == ["closed", "open"]


def test_undo_removes_all_of_a_tree_that_did_not_exist(store: Run, tmp_path: Path) -> None:
    top = tmp_path / "live"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "file").write_text("stored")
    store("snapshot", "s", "--tree", f"t={top}", "--revision", "r1")
    shutil.rmtree(top)
    store("rollback", "s", "--to", "r1")
    assert (top / "sub" / "file").read_text() == "stored"
    store("rollback", "s", "--undo")
    assert not top.exists()
    assert [name for name in os.listdir(tmp_path) if "castore-old" in name] == []


def test_what_cannot_be_compared_is_left_alone_and_its_neighbours_are_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = Sandbox(tmp_path / "sandbox", average=4096)
    top = tmp_path / "live"
    (top / "sub").mkdir(parents=True)
    for name in ("a", "bad", "c"):
        (top / "sub" / name).write_text("stored")
        os.setxattr(top / "sub" / name, "user.x", b"1")
    sandbox.snapshot("s", {"t": castore_package.Tree(str(top))})
    for name in ("a", "c"):
        (top / "sub" / name).write_text("changed, and longer")
    os.chmod(top / "sub" / "bad", 0o600)
    real = file_comparison.read_xattrs_at

    def fail(fd: int, name: bytes, warn: Callable[[str], None]) -> object:
        if name == b"bad":
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, name, warn)

    monkeypatch.setattr(file_comparison, "read_xattrs_at", fail)
    os.utime(top / "sub" / "bad", ns=(1, os.stat(top / "sub" / "bad").st_mtime_ns))
    os.chmod(top / "sub" / "bad", 0o644)
    with sandbox.open() as opened:
        plan = plan_in_place(opened, select(opened, "s@1:t"), str(top), sandbox.ownership)
        problems = restore_in_place(opened, plan, sandbox.ownership, castore_package.Progress())
    assert [path for path, _ in problems] == [b"sub/bad"]
    assert (top / "sub" / "a").read_text() == (top / "sub" / "c").read_text() == "stored"


def test_restore_in_place_leaves_what_it_cannot_read(tree: Path) -> None:
    (tree / "closed").chmod(0o700)
    limited("snapshot", "s", "--tree", f"t={tree}", "--revision", "r1", expect=3)
    (tree / "closed").chmod(0)
    (tree / "plain").write_text("new and longer")
    limited("restore", "--in-place", "s@r1:t", tree, expect=3)
    assert (tree / "plain").read_text() == "old"
    check_kept(tree)


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A directory for a deep tree, which pytest itself could not remove."""
    (tmp_path / "deep").mkdir()
    yield tmp_path / "deep"
    subprocess.run(["rm", "-rf", tmp_path / "deep", tmp_path / "copy"], check=True)


def test_a_tree_of_1200_levels_is_compared_and_rolled_back(store: Run, tmp_path: Path, deep: Path) -> None:
    top = deep
    fd = os.open(top, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    file = os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=fd)
    os.write(file, b"old")
    store("snapshot", "s", "--tree", f"t={top}", "--revision", "r1")
    os.write(file, b" and new")
    os.close(file)
    store("snapshot", "s", "--tree", f"t={top}", "--revision", "r2")
    assert "f" in store("diff", "s@r1", "s@r2").stdout
    store("ls", "-R", "s@r1:t")
    store("restore", "s@r1:t", tmp_path / "copy")
    store("rollback", "s", "--to", "r1")
    assert os.stat("f", dir_fd=fd).st_size == 3
    file = os.open("f", os.O_WRONLY | os.O_TRUNC, dir_fd=fd)
    os.write(file, b"newer")
    os.close(file)
    store("restore", "--in-place", "s@r1:t", top)
    assert os.stat("f", dir_fd=fd).st_size == 3
    assert store("cat", "s@r1:t" + "/d" * 1200 + "/f").stdout == "old"
    store("verify", "--read-data")
    os.close(fd)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8, 1.0])
def test_an_interrupted_rollback_of_a_large_file_leaves_no_dead_end(
    store: Run, tmp_path: Path, share: float
) -> None:
    top = tmp_path / "live"
    top.mkdir()
    (top / "large").write_bytes(os.urandom(48 << 20))
    store("snapshot", "s", "--tree", f"t={top}", "--revision", "r1")
    with (top / "large").open("r+b") as file:
        file.write(os.urandom(1 << 20))
    command = [sys.executable, "-m", "castore", "rollback", "s", "--to", "r1"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    time.sleep(share)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    # -SIGINT: it came while the interpreter ended; a shell shows 130.
    assert running.returncode in {0, 130, -signal.SIGINT}, errors
    assert "mistake" not in errors
    assert "Traceback" not in errors
    store("rollback", "s", "--to", "r1")


def test_a_file_system_with_only_lost_and_found_counts_as_empty(store: Run, tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    (tmp_path / "live" / "file").write_text("x")
    store("snapshot", "s", "--tree", f"t={tmp_path / 'live'}")
    (tmp_path / "new" / "lost+found").mkdir(parents=True)
    store("restore", "s@latest:t", tmp_path / "new")
    assert (tmp_path / "new" / "file").read_text() == "x"


def test_a_tree_that_is_deeper_than_the_limit_of_open_files_names_the_limit(store: Run, deep: Path) -> None:
    fd = os.open(deep, os.O_RDONLY)
    for _ in range(120):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    store("snapshot", "s", "--tree", f"t={deep}")
    command = ["prlimit", "--nofile=60:60", sys.executable, "-m", "castore", "restore", "s@1:t", str(deep / "copy")]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert "castore may open 60 files" in failed.stderr, failed.stderr
    assert "LimitNOFILE=" in failed.stderr


def test_an_interrupted_restore_below_a_tree_is_noticed(
    store: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tmp_path / "live"
    (top / "a" / "b").mkdir(parents=True)
    for number in range(40):
        (top / "a" / "b" / f"f{number}").write_bytes(os.urandom(1000))
    store("snapshot", "s", "--tree", f"t={top}", "--revision", "r1")
    for number in range(40):
        (top / "a" / "b" / f"f{number}").write_text("changed")
    below = top / "a" / "b"
    script = (
        "import os, signal\n"
        "from castore.content.restore import undo_area\n"
        "undo_area.UndoArea.discard = lambda self: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from castore.cli.main import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, "restore", "--in-place", "s@r1:t/a/b", str(below)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    for words in (
        ["snapshot", "s", "--tree", f"t={top}"],
        ["snapshot", "other", "--tree", f"t={top / 'a'}"],
        ["rollback", "s", "--to", "r1"],
        ["restore", "--in-place", "s@r1:t", top],
    ):
        assert f"castore recover {below}" in store(*words, expect=1).stderr
    (tmp_path / "elsewhere").mkdir()
    store("snapshot", "elsewhere", "--tree", f"t={tmp_path / 'elsewhere'}")
    store("recover", below)
    store("snapshot", "s", "--tree", f"t={top}")
    (below / "f1").write_text("changed again")
    store("restore", "--in-place", "s@r1:t/a/b", below)
    store("rollback", "s", "--to", "r1")
    records = [one for _, folders, _ in os.walk(tmp_path) for one in folders if one == "in-place"]
    assert len(records) == 1
    assert [names for folder, _, names in os.walk(tmp_path) if folder.endswith("/in-place")] == [[]]
