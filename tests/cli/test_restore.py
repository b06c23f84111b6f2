"""Restores into a place: asked where the tree came from another one, resumed, or of one file."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from castore.storage import LocalStorage
from castore.store import Store
from tests.support.feature_tree import make_feature_tree
from tests.support.tree_walker import compare, walk

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


@pytest.fixture
def several(store: Run, tmp_path: Path) -> Path:
    """A generation s@1 of a tree with everything and many files, and of a dump."""
    make_feature_tree(tmp_path / "live", many=50)
    rng = random.Random(1)
    for number in range(400):
        (tmp_path / "live" / f"d{number % 7}").mkdir(exist_ok=True)
        (tmp_path / "live" / f"d{number % 7}" / f"f{number}").write_bytes(rng.randbytes(rng.randrange(60_000)))
    (tmp_path / "dump").write_bytes(rng.randbytes(3 << 20))
    store("snapshot", "s", "--tree", f"t={tmp_path / 'live'}", "--dump", f"d={tmp_path / 'dump'}")
    return tmp_path / "live"


IGNORED = ["blocks", "extents", "inode"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_restore_is_continued(store: Run, several: Path, tmp_path: Path, number: int) -> None:
    target = tmp_path / "target"
    continued = 0
    for share in (1, 2, 3, 4, 6, 8, 11, 14):
        command = [sys.executable, "-m", "castore", "restore", "--numeric-ids", "s@latest", str(target)]
        running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        # Wait for the first files, then a little.
        while running.poll() is None and not (target.is_dir() and len(os.listdir(target)) > 1):
            time.sleep(0.002)
        time.sleep(share * 0.01)
        running.send_signal(number)
        _, errors = running.communicate(timeout=60)
        assert "Traceback" not in errors
        assert "mistake" not in errors
        if running.returncode == 0:
            shutil.rmtree(target)
            continue
        continued += 1
        if number == signal.SIGINT:
            assert running.returncode == 130, errors
            assert f"castore restore --resume s@1 {target}" in errors
        refused = store("restore", "s@1", target, expect=2)
        if number == signal.SIGKILL and "--resume" not in refused.stderr:
            # It was killed after the restore had ended, before the process did.
            assert compare(walk(several), walk(target / "t"), ignore=IGNORED) == []
            assert (target / "d").read_bytes() == (tmp_path / "dump").read_bytes()
            shutil.rmtree(target)
            continued -= 1
            continue
        assert f"castore restore --resume s@1 {target}" in refused.stderr
        assert f"castore restore --resume s@1 {target}" in store("restore", "--resume", "s@1:t", target, expect=2).stderr
        done = store("restore", "--resume", "--numeric-ids", "s@1", target)
        assert sorted(os.listdir(target)) == ["d", "t"]
        assert compare(walk(several), walk(target / "t"), ignore=IGNORED) == []
        assert (target / "d").read_bytes() == (tmp_path / "dump").read_bytes()
        assert "restored" in done.stdout
        shutil.rmtree(target)
    assert continued > 2


def test_a_continued_restore_writes_again_what_is_incomplete_and_leaves_what_is_not_its_own(
    store: Run, several: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    store("restore", "--numeric-ids", "s@1:t", target)
    complete = target / "d1" / "f1"
    inode = complete.stat().st_ino
    (target / "d2" / "f2").write_bytes(b"incomplete")
    shutil.rmtree(target / "d3")
    (target / "precious").write_text("not of the tree")
    mark = {"service": "s", "number": 1, "part": "t", "path": "", "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip()}
    mark["store"] = store_id(tmp_path)
    (target / ".castore-restore-0123456789abcdef").write_text(json.dumps(mark))
    done = store("restore", "--resume", "--numeric-ids", "s@1:t", target, expect=3)
    assert "precious" in done.stderr
    assert complete.stat().st_ino == inode
    assert (target / "precious").read_text() == "not of the tree"
    (target / "precious").unlink()
    os.utime(target, ns=(several.stat().st_atime_ns, several.stat().st_mtime_ns))
    assert compare(walk(several), walk(target), ignore=IGNORED) == []
    # After a restart of the machine, contents are compared.
    changed = complete.read_bytes()
    times = complete.stat().st_atime_ns, complete.stat().st_mtime_ns
    complete.write_bytes(bytes(len(changed)))
    os.utime(complete, ns=times)
    (target / ".castore-restore-0123456789abcdef").write_text(json.dumps(mark | {"boot": "another"}))
    store("restore", "--resume", "--numeric-ids", "s@1:t", target)
    assert complete.read_bytes() == changed


def store_id(tmp_path: Path) -> str:
    return Store.read_id(LocalStorage(str(tmp_path / "store"))).hex()


def test_resume_is_refused_where_castore_did_not_begin(store: Run, several: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("precious")
    assert "began" in store("restore", "--resume", "s@1:t", tmp_path / "other", expect=2).stderr
    store("restore", "--resume", "s@1:t", tmp_path / "new")
    assert compare(walk(several), walk(tmp_path / "new"), ignore=IGNORED) == []
    store("restore", "--resume", "--in-place", "s@1:t", tmp_path / "new", expect=2)


def test_a_restore_ends_with_a_summary(store: Run, several: Path, tmp_path: Path) -> None:
    lines = store("restore", "s@1", tmp_path / "new").stdout.splitlines()
    assert re.fullmatch(r"restored [\d,]+ files, [\d.,]+ \w+, in [\d.]+ s", lines[-1]), lines
    summary = json.loads(store("restore", "--json", "s@1", tmp_path / "again").stdout)
    assert summary["files"] > 400
    assert summary["bytes"] > 3 << 20
    assert summary["seconds"] > 0


def test_a_part_does_not_inherit_the_default_acl_of_its_destination(
    store: Run, several: Path, tmp_path: Path
) -> None:
    (tmp_path / "target").mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u:4711:rwx", tmp_path / "target"], check=True)
    store("restore", "--numeric-ids", "s@1", tmp_path / "target")
    assert compare(walk(several), walk(tmp_path / "target" / "t"), ignore=IGNORED) == []
    assert "system.posix_acl_access" not in os.listxattr(tmp_path / "target" / "d")
