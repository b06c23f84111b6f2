"""Trees on the file systems that people have: kept, changed, restored elsewhere and in place."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import castore
from castore.content.restore.metadata import Ownership
from castore.content.scan import cache, small_files
from castore.services.restore_in_place import plan_in_place, restore_in_place
from castore.services.selectors import select
from castore.services.sources import Tree
from tests.support.feature_tree import make_feature_tree
from tests.support.stores import Sandbox
from tests.support.tree_walker import compare, walk

MIB = 1 << 20
SIZES = {"ext4": 256, "xfs": 400, "btrfs": 400}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems")


@pytest.fixture(params=["ext4", "xfs", "btrfs", "tmpfs", "overlay"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A file system of its own, and its name."""
    kind = request.param
    point = tmp_path / "point"
    point.mkdir()
    if kind in {"tmpfs", "ramfs"}:
        command = ["mount", "-t", kind, "castore-test", str(point)]
    elif kind == "overlay":
        for name in ("lower", "upper", "work"):
            (tmp_path / name).mkdir()
        (tmp_path / "lower" / "below").mkdir()
        (tmp_path / "lower" / "below" / "file").write_bytes(b"from the layer below")
        folders = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
        command = ["mount", "-t", "overlay", "castore-test", "-o", folders, str(point)]
    else:
        if shutil.which(f"mkfs.{kind}") is None:
            assert not os.environ.get("CI"), f"mkfs.{kind} is not installed"
            pytest.skip(f"mkfs.{kind} is not installed")
        image = tmp_path / "image"
        with open(image, "wb") as file:
            file.truncate(SIZES[kind] * MIB)
        options = {"ext4": ["-q", "-b", "4096", "-I", "1024"], "xfs": ["-q"], "btrfs": ["-q"]}[kind]
        subprocess.run([f"mkfs.{kind}", *options, image], check=True, capture_output=True)
        command = ["mount", "-t", kind, "-o", "loop", str(image), str(point)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{kind} cannot be mounted here: {done.stderr.strip()}")
    try:
        yield kind, point
    finally:
        subprocess.run(["umount", "--lazy", point], check=True)


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path / "sandbox", average=16384)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_RACY_NS", 10_000_000)


def in_place(sandbox: Sandbox, what: str, top: Path) -> list[tuple[bytes, str]]:
    with sandbox.open() as store:
        selection = select(store, what)
        ownership = Ownership(change=True, numeric=True)
        plan = plan_in_place(store, selection, str(top), ownership)
        return restore_in_place(store, plan, ownership, castore.Progress())


def test_every_kind_of_file_is_kept_and_restored(place, sandbox: Sandbox, tmp_path: Path, monkeypatch):
    kind, point = place
    if kind != "overlay":
        make_feature_tree(point / "live", many=200)
        live = point / "live"
    else:
        make_feature_tree(point / "below" / "feature_tree", many=200)
        live = point / "below"
    source = {"t": Tree(str(live))}
    time.sleep(0.02)
    first = sandbox.snapshot("s", source)
    assert first.skipped_files == 0
    sandbox.restore("s@1:t", point / "out")
    # How a file system allocates is its own affair.
    left = [] if kind == "ext4" else ["blocks", "extents"]
    assert compare(walk(live), walk(point / "out"), ignore=left) == []

    read: list[int] = []
    real = small_files.read_files
    monkeypatch.setattr(small_files, "read_files", lambda *args: (read.append(len(args[2])), real(*args))[1])
    assert sandbox.snapshot("s", source).parts[0].stored_bytes == 0
    assert sum(read) == 0  # by what was seen of it then
    before = walk(live)
    rng = random.Random(3)
    paths = [Path(folder, name) for folder, _, names in os.walk(live) for name in names]
    for path in rng.sample(sorted(path for path in paths if path.is_file() and not path.is_symlink()), 20):
        if rng.randrange(2):
            path.write_bytes(rng.randbytes(rng.randrange(100_000)))
        else:
            path.unlink()
    (live / "new").mkdir()
    (live / "new" / "file").write_bytes(b"new")
    assert sandbox.snapshot("s", source).skipped_files == 0
    sandbox.restore("s@3:t", tmp_path / "out3")
    assert compare(walk(live), walk(tmp_path / "out3"), ignore=left) == []
    assert in_place(sandbox, "s@1:t", live) == []
    assert compare(before, walk(live), ignore=left) == []


def test_blocks_of_a_large_file_are_shared_where_that_can_be(place, sandbox: Sandbox):
    kind, point = place
    live = point / "live"
    live.mkdir()
    size = 40 * MIB
    data = bytearray(random.Random(4).randbytes(size))
    (live / "large").write_bytes(data)
    sandbox.snapshot("s", {"t": Tree(str(live))})
    data[size // 2 : size // 2 + 6] = b"change"
    (live / "large").write_bytes(data)
    assert in_place(sandbox, "s@1:t", live) == []
    assert (live / "large").read_bytes() == random.Random(4).randbytes(size)

    if kind in {"xfs", "btrfs"}:
        # Again, with the old file kept open: what is shared takes no room twice.
        data[5 * MIB : 5 * MIB + 6] = b"change"
        (live / "large").write_bytes(data)
        os.sync()
        used = used_of(point)
        inode = (live / "large").stat().st_ino
        with open(live / "large", "rb") as old:
            in_place(sandbox, "s@1:t", live)
            # It is replaced in one step: a reader of the old file sees no mixture.
            assert (live / "large").stat().st_ino != inode
            assert old.read() == data
            os.sync()
            assert used_of(point) - used < 4 * MIB


def used_of(point: Path) -> int:
    info = os.statvfs(point)
    return (info.f_blocks - info.f_bfree) * info.f_frsize


@pytest.mark.parametrize("place", ["ramfs"], indirect=True)
def test_unsupported_features_of_a_file_system_are_reported(place, sandbox: Sandbox, tmp_path: Path):
    _, point = place
    live = tmp_path / "live"
    live.mkdir()
    (live / "attributed").write_bytes(b"file")
    os.setxattr(live / "attributed", "user.comment", b"hello")
    (live / "listed").write_bytes(b"file")
    subprocess.run(["setfacl", "-m", "u:12345:r", live / "listed"], check=True)
    sandbox.snapshot("s", {"t": Tree(str(live))})
    restored = sandbox.restore("s@1:t", point / "out")
    warned = dict(restored.report.warnings)
    assert restored.report.damaged == []
    assert warned.keys() == {b"attributed", b"listed"}
    assert "user.comment cannot be set: not allowed or not supported here" in warned[b"attributed"]
    assert "system.posix_acl_access" in warned[b"listed"]
    assert (point / "out" / "attributed").read_bytes() == b"file"
