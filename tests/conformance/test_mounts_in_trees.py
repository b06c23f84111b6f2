"""In-place work where files cannot be renamed: overlays, mount points, immutable files."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import castore as package
from castore.content.restore.recover import recover
from castore.content.restore.undo_area import UndoArea
from castore.errors import CastoreError
from castore.services.restore_in_place import plan_in_place, restore_in_place
from castore.services.selectors import select
from tests.support.stores import Sandbox
from tests.support.tree_walker import compare, walk

Run = Callable[..., subprocess.CompletedProcess]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems")


def mount(*words: object) -> None:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot be mounted here: {done.stderr.strip()}")


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path / "sandbox", average=16384)


@pytest.fixture
def store(castore: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line, with a store."""
    monkeypatch.setenv("CASTORE_STORE", str(tmp_path / "store"))
    castore("init", tmp_path / "store")
    return castore


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Path]:
    """An overlay whose lower layer has directories; its top directory is in the lower layer, too."""
    for name in ("lower", "upper", "work", "point"):
        (tmp_path / name).mkdir()
    top = tmp_path / "lower" / "live"
    (top / "kept").mkdir(parents=True)
    (top / "kept" / "file").write_bytes(b"from the layer below")
    for name in ("extra", "becomes-file"):
        (top / name / "deep").mkdir(parents=True)
        (top / name / "deep" / "file").write_bytes(b"below")
        os.link(top / name / "deep" / "file", top / name / "link")
        os.setxattr(top / name / "deep", "user.x", b"1")
        os.chown(top / name / "deep" / "file", 12, 34)
        with (top / name / "holes").open("wb") as file:
            file.seek(1 << 20)
            file.write(b"end")
        (top / name / "points").symlink_to("nowhere")
        os.mkfifo(top / name / "fifo")
    folders = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    mount("-t", "overlay", "castore-test", "-o", folders, tmp_path / "point")
    try:
        yield tmp_path / "point" / "live"
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / "point"], check=True)


def stored_without_the_layer(sandbox: Sandbox, tmp_path: Path) -> None:
    """Snapshot what the overlay is to become, as s@1:t."""
    wanted = tmp_path / "wanted"
    (wanted / "kept").mkdir(parents=True)
    (wanted / "kept" / "file").write_bytes(b"stored")
    (wanted / "becomes-file").write_bytes(b"a file now")
    sandbox.snapshot("s", {"t": package.Tree(str(wanted))})


def test_directories_of_a_lower_layer_are_replaced_and_removed(sandbox: Sandbox, overlay: Path, tmp_path: Path) -> None:
    stored_without_the_layer(sandbox, tmp_path)
    sandbox.in_place("s@1:t", overlay)
    assert compare(walk(tmp_path / "wanted"), walk(overlay), ignore=["blocks", "extents"]) == []


@pytest.mark.parametrize("steps", [2, 3, 4, 5])
def test_directories_of_a_lower_layer_come_back_after_a_failure(
    sandbox: Sandbox, overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    stored_without_the_layer(sandbox, tmp_path)
    before = walk(overlay)
    left = [steps]
    begin = UndoArea.begin

    def fail_later(aside: UndoArea) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        begin(aside)

    monkeypatch.setattr(UndoArea, "begin", fail_later)
    with sandbox.open() as opened:
        plan = plan_in_place(opened, select(opened, "s@1:t"), str(overlay), sandbox.ownership)
        if len(plan.steps) < steps:
            pytest.skip("it has fewer steps")
        with pytest.raises(CastoreError):
            restore_in_place(opened, plan, sandbox.ownership, package.Progress())
    assert compare(before, walk(overlay), ignore=["blocks", "extents", "inode"]) == []
    assert recover(sandbox.places.journals, str(overlay)) == []


def test_a_bind_mounted_file_is_overwritten_where_it_is(store: Run, tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    (tmp_path / "outside").write_text("stored")
    (live / "bound").touch()
    (live / "other").write_text("stored")
    mount("--bind", tmp_path / "outside", live / "bound")
    try:
        os.setxattr(live / "bound", "user.x", b"1")
        store("snapshot", "s", "--tree", f"t={live}", "--revision", "r1")
        inode = os.stat(live / "bound").st_ino
        (live / "bound").write_text("changed, and longer")
        os.removexattr(live / "bound", "user.x")
        (live / "other").write_text("changed, too")
        store("rollback", "s", "--to", "r1")
        assert (tmp_path / "outside").read_text() == "stored"
        assert os.stat(live / "bound").st_ino == inode
        assert os.getxattr(live / "bound", "user.x") == b"1"
        assert (live / "other").read_text() == "stored"
        (live / "bound").write_text("changed once more")
        store("restore", "--in-place", "s@r1:t/bound", live / "bound")
        assert (tmp_path / "outside").read_text() == "stored"
        # A rollback that fails restores it, too.
        (live / "bound").write_text("kept after a failure")
        (tmp_path / "castore.toml").write_text(
            f'[service.s]\nhealth = ["false"]\nhealth-timeout = 0.1\n'
            f'[service.s.parts.t]\nengine = "tree"\npath = "{live}"\n'
        )
        store("rollback", "--config", tmp_path / "castore.toml", "s", "--to", "r1", expect=4)
        assert (tmp_path / "outside").read_text() == "kept after a failure"
        assert sorted(os.listdir(live)) == ["bound", "other"]
    finally:
        subprocess.run(["umount", "--lazy", live / "bound"], check=True)


@pytest.mark.parametrize("engine", ["file", "sqlite"])
def test_a_dump_that_is_a_bind_mounted_file_is_exchanged(store: Run, tmp_path: Path, engine: str) -> None:
    (tmp_path / "live").mkdir()
    outside, live = tmp_path / "outside", tmp_path / "live" / "data"

    def write(value: str) -> None:
        if engine == "file":
            live.write_text(value)
            return
        with contextlib.closing(sqlite3.connect(live)) as database, database:
            database.execute("create table if not exists t (v)")
            database.execute("delete from t")
            database.execute("insert into t values (?)", [value])

    def read() -> str:
        if engine == "file":
            return live.read_text()
        with contextlib.closing(sqlite3.connect(live)) as database:
            return database.execute("select v from t").fetchone()[0]

    outside.touch()
    live.touch()
    mount("--bind", outside, live)
    try:
        config = tmp_path / "castore.toml"
        part = f'[service.s.parts.d]\nengine = "{engine}"\npath = "{live}"\n'
        config.write_text(part)
        write("stored")
        store("snapshot", "--config", config, "s", "--revision", "r1")
        write("changed")
        store("rollback", "--config", config, "s", "--to", "r1")
        assert read() == "stored"
        write("kept after a failure")
        config.write_text(f'[service.s]\nhealth = ["false"]\nhealth-timeout = 0.1\n{part}')
        store("rollback", "--config", config, "s", "--to", "r1", expect=4)
        assert read() == "kept after a failure"
        assert os.listdir(tmp_path / "live") == ["data"]
    finally:
        subprocess.run(["umount", "--lazy", live], check=True)


def test_a_file_system_mounted_in_the_tree_is_restored_with_it(store: Run, tmp_path: Path) -> None:
    live = tmp_path / "live"
    (live / "mounted").mkdir(parents=True)
    mount("-t", "tmpfs", "castore-test", live / "mounted")
    try:
        (live / "mounted" / "file").write_text("stored")
        (live / "mounted" / "folder").mkdir()
        store("snapshot", "s", "--tree", f"t={live}", "--revision", "r1")
        before = walk(live)
        (live / "mounted" / "file").write_text("changed, and longer")
        (live / "mounted" / "folder").rmdir()
        (live / "mounted" / "extra").mkdir()
        (live / "mounted" / "extra" / "file").write_text("new")
        store("rollback", "s", "--to", "r1")
        assert compare(before, walk(live), ignore=["blocks", "extents", "inode"]) == []
        assert os.path.ismount(live / "mounted")
    finally:
        subprocess.run(["umount", "--lazy", live / "mounted"], check=True)


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """An ext4 file system of its own, where files can be immutable."""
    if shutil.which("mkfs.ext4") is None or shutil.which("chattr") is None:
        pytest.skip("mkfs.ext4 or chattr is not installed")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True, capture_output=True)
    (tmp_path / "point").mkdir()
    mount("-o", "loop", image, tmp_path / "point")
    try:
        yield tmp_path / "point"
    finally:
        subprocess.run(["chattr", "-R", "-i", tmp_path / "point"], capture_output=True, check=False)
        subprocess.run(["umount", "--lazy", tmp_path / "point"], check=True)


@pytest.mark.parametrize("command", ["restore", "rollback"])
@pytest.mark.parametrize("protected", ["new/deep/file", "new/deep", "new", "file-too"])
def test_what_is_immutable_is_left_and_reported_and_blocks_nothing(
    store: Run, ext4: Path, command: str, protected: str
) -> None:
    live = ext4 / "live"
    live.mkdir()
    (live / "file").write_text("stored")
    store("snapshot", "s", "--tree", f"t={live}", "--revision", "r1")
    (live / "file").write_text("changed, and longer")
    (live / "new" / "deep").mkdir(parents=True)
    (live / "new" / "deep" / "file").write_text("immutable")
    (live / "file-too").write_text("new")
    subprocess.run(["chattr", "+i", live / protected], check=True)
    words = ["restore", "--in-place", "s@r1:t", live] if command == "restore" else ["rollback", "s", "--to", "r1"]
    for _ in range(2):
        done = store(*words, expect=3)
        assert protected.split("/", maxsplit=1)[0] in done.stderr
        assert (live / "file").read_text() == "stored"
        assert (live / protected).exists()
        assert sorted(os.listdir(live)) == ["file", protected.split("/", maxsplit=1)[0]]
    store("snapshot", "s", "--tree", f"t={live}", "--revision", "r2")
    subprocess.run(["chattr", "-i", live / protected], check=True)
    store(*words)
    assert os.listdir(live) == ["file"]


def test_among_many_removed_files_those_that_are_immutable_are_left_and_reported(store: Run, ext4: Path) -> None:
    live = ext4 / "live"
    live.mkdir()
    for number in range(60):
        (live / f"{number:02}").write_text("stored")
    store("snapshot", "s", "--tree", f"t={live}", "--revision", "r1")
    for number in range(60):
        (live / f"{number:02}").write_text("changed, and longer")
        (live / f"new-{number:02}").mkdir()
        (live / f"new-{number:02}" / "file").write_text("new")
    subprocess.run(["chattr", "+i", live / "new-07" / "file", live / "new-31" / "file"], check=True)
    done = store("restore", "--in-place", "s@r1:t", live, expect=3)
    assert "new-07" in done.stderr
    assert "new-31" in done.stderr
    assert sorted(os.listdir(live)) == [*(f"{number:02}" for number in range(60)), "new-07", "new-31"]
    assert {(live / f"{number:02}").read_text() for number in range(60)} == {"stored"}


def test_an_immutable_file_that_is_to_be_replaced_fails_and_names_chattr(store: Run, ext4: Path) -> None:
    live = ext4 / "live"
    live.mkdir()
    (live / "file").write_text("stored")
    (live / "other").write_text("stored")
    store("snapshot", "s", "--tree", f"t={live}", "--revision", "r1")
    (live / "file").write_text("changed, and longer")
    (live / "other").write_text("changed, and longer")
    subprocess.run(["chattr", "+i", live / "other"], check=True)
    failed = store("rollback", "s", "--to", "r1", expect=1)
    assert "chattr -i" in failed.stderr
    assert (live / "file").read_text() == "changed, and longer"
    store("snapshot", "s", "--tree", f"t={live}", "--revision", "r2")


@pytest.mark.parametrize("command", ["restore", "rollback"])
def test_an_immutable_file_in_a_directory_that_becomes_a_file_blocks_nothing(
    store: Run, ext4: Path, command: str
) -> None:
    live = ext4 / "live"
    live.mkdir()
    (live / "name").write_text("stored")
    store("snapshot", "s", "--tree", f"t={live}", "--revision", "r1")
    (live / "name").unlink()
    (live / "name").mkdir()
    (live / "name" / "file").write_text("immutable")
    subprocess.run(["chattr", "+i", live / "name" / "file"], check=True)
    words = ["restore", "--in-place", "s@r1:t", live] if command == "restore" else ["rollback", "s", "--to", "r1"]
    store(*words, expect=3)
    assert (live / "name").read_text() == "stored"
    store("snapshot", "s", "--tree", f"t={live}", "--revision", "r2")
    store("recover", live, expect=1)
    subprocess.run(["chattr", "-R", "-i", live], check=True)
    store("recover", live)
    assert os.listdir(live) == ["name"]


@contextlib.contextmanager
def foreign_mount(point: Path) -> Iterator[None]:
    """Mount another user's FUSE file system, which even root cannot look at."""
    system = ctypes.CDLL(None, use_errno=True)
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse")
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={descriptor},rootmode=40000,user_id=1000,group_id=1000".encode()
    try:
        if system.mount(b"castore-test", os.fsencode(point), b"fuse", 0, options):
            pytest.skip(f"FUSE cannot be mounted here: {os.strerror(ctypes.get_errno())}")
        try:
            with pytest.raises(PermissionError):
                os.lstat(point)
            yield
        finally:
            system.umount2(os.fsencode(point), 2)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("name", ["mnt", "with space\n"])
def test_a_mount_of_another_user_is_not_crossed_and_not_reported(store: Run, tmp_path: Path, name: str) -> None:
    live = tmp_path / "live"
    (live / "deep" / name).mkdir(parents=True)
    (live / "file").write_text("stored")
    taken = ("snapshot", "s", "--tree", f"t={live}")
    with foreign_mount(live / "deep" / name):
        store(*taken, "--one-file-system", "--revision", "r1")
        store(*taken, "--one-file-system", "--dry-run")
        store(*taken, "--revision", "r2", expect=3)
        (live / "file").write_text("changed, and longer")
        store(*taken, "--one-file-system", "--revision", "r3")
        store("rollback", "s", "--to", "r1")
    assert (live / "file").read_text() == "stored"
    assert (live / "deep" / name).is_dir()
