"""Restores in place are durable before they count as done: what a loss of power would leave is mounted and compared."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import castore
from castore.content.restore import in_place, undo_area
from castore.content.streams import StreamReader
from castore.errors import CastoreError
from castore.services.restore_in_place import plan_in_place
from castore.services.selectors import select
from castore.services.sources import Tree
from tests.support.stores import Sandbox
from tests.support.tree_walker import compare, walk


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path / "sandbox", average=16384)


def fill(live: Path) -> None:
    (live / "deep").mkdir(parents=True)
    (live / "deep" / "large").write_bytes(random.Random(1).randbytes(3_000_000))
    (live / "kept").write_text("kept")
    for number in range(6):
        (live / f"small{number}").write_text("stored")


def change(live: Path, files: int) -> None:
    (live / "deep" / "large").write_bytes(random.Random(2).randbytes(2_000_000))
    (live / "deep" / "large").chmod(0o600)
    for number in range(files):
        (live / f"small{number}").write_text("changed")


def apply(sandbox: Sandbox, live: Path) -> Iterator[None]:
    """Carry out a restore in place, and yield before it is confirmed."""
    with sandbox.open() as store:
        store.sync()
        plan = plan_in_place(store, select(store, "s@1:t"), str(live), sandbox.ownership)
        with StreamReader(store) as reader:
            tree = in_place.InPlace(reader, plan, sandbox.ownership, castore.Progress())
            tree.apply()
            yield
            tree.commit()


def mounted(image: Path, point: Path) -> Path:
    point.mkdir()
    done = subprocess.run(["mount", "-o", "loop", image, point], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"ext4 cannot be mounted here: {done.stderr.strip()}")
    return point


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems")
@pytest.mark.parametrize("files", [0, 6])
def test_a_loss_of_power_after_a_restore_leaves_the_stored_tree(sandbox: Sandbox, tmp_path: Path, files: int) -> None:
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True, capture_output=True)
    points = [mounted(image, tmp_path / "disk")]
    try:
        live = points[0] / "live"
        fill(live)
        stored = walk(live)
        sandbox.snapshot("s", {"t": Tree(str(live))})
        change(live, files)
        subprocess.run(["sync", "-f", live], check=True)
        for _ in apply(sandbox, live):
            # What was not synced is only in memory, not in the image.
            subprocess.run(["cp", "--sparse=always", image, tmp_path / "lost"], check=True)
        points.append(mounted(tmp_path / "lost", tmp_path / "after"))
        after = walk(points[1] / "live")
        left = {path for path in after if path.startswith(b".castore-aside-")}
        assert len(left) >= 3  # the directory, its progress and the replaced file
        assert compare(stored, {path: entry for path, entry in after.items() if path not in left}) == []
    finally:
        for point in points:
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)


@pytest.mark.parametrize(("files", "whole"), [(0, 0), (6, 1)])
def test_a_few_files_are_synced_without_the_rest_of_the_file_system(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, whole: int
) -> None:
    live = tmp_path / "live"
    fill(live)
    sandbox.snapshot("s", {"t": Tree(str(live))})
    change(live, files)
    calls: list[int] = []
    monkeypatch.setattr(undo_area, "sync_file_system", calls.append)
    stored = sandbox.restore("s@1:t", tmp_path / "out")
    for _ in apply(sandbox, live):
        assert len(calls) == whole
    assert compare(walk(tmp_path / "out"), walk(live)) == []
    assert stored.report.damaged == []


def test_a_file_that_cannot_be_synced_reverts_the_restore(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = tmp_path / "live"
    fill(live)
    sandbox.snapshot("s", {"t": Tree(str(live))})
    change(live, 0)
    changed = walk(live)
    real = os.fsync

    def fsync(fd: int, *rest: Any) -> None:
        if os.fstat(fd).st_size == 3_000_000:
            raise OSError(errno.EIO, "Input/output error")
        real(fd, *rest)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CastoreError, match="could not be made durable: Input/output error"):
        sandbox.in_place("s@1:t", live)
    assert compare(changed, walk(live)) == []
