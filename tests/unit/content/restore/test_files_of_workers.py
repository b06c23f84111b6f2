"""Files with content of their own in a tree: each is created by one worker thread."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from castore.content.restore import file_writer, tree_writer
from castore.errors import CastoreError, DamageError
from castore.services.sources import Tree
from tests.support.stores import Sandbox
from tests.support.tree_walker import compare, walk

COUNT = 12


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.setattr(tree_writer, "ROOM", 0)  # nothing is read with its directory
    monkeypatch.setattr(tree_writer, "_MOST_WAITING", 3)
    return Sandbox(tmp_path / "sandbox", average=16384)


@pytest.fixture
def live(tmp_path: Path, sandbox: Sandbox) -> Path:
    top = tmp_path / "live"
    rng = random.Random(1)
    for folder in (top, top / "below"):
        folder.mkdir()
        for number in range(COUNT):
            (folder / f"{number:02}").write_bytes(rng.randbytes(rng.randrange(100_000, 400_000)))
    os.link(top / "03", top / "below" / "linked")
    sandbox.snapshot("s", {"t": Tree(str(top))})
    return top


def test_each_file_is_written_by_one_worker(
    sandbox: Sandbox, live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers: dict[int, set[int]] = {}
    real = os.pwrite

    def pwrite(fd: int, *arguments: Any) -> int:
        writers.setdefault(os.fstat(fd).st_ino, set()).add(threading.get_ident())
        return real(fd, *arguments)

    monkeypatch.setattr(os, "pwrite", pwrite)
    done = sandbox.restore("s@1:t", tmp_path / "out")
    assert compare(walk(live), walk(tmp_path / "out")) == []
    linked = (tmp_path / "out" / "03").stat().st_ino
    alone = [threads for inode, threads in writers.items() if inode != linked]
    assert len(alone) == 2 * COUNT - 1
    assert {len(threads) for threads in alone} == {1}
    assert threading.get_ident() not in set.union(*alone)
    assert (done.report.damaged, done.report.warnings) == ([], [])


def test_damaged_files_are_reported_in_order_and_the_others_restored(
    sandbox: Sandbox, live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = file_writer.write_large

    def write(reader: Any, fd: int, child: Any, *rest: Any) -> None:
        if child.entry.name in {b"02", b"07", b"10"}:
            raise DamageError("chunk: damaged")
        real(reader, fd, child, *rest)

    monkeypatch.setattr(file_writer, "write_large", write)
    done = sandbox.restore("s@1:t/below", tmp_path / "out")
    assert done.report.damaged == [(name, "chunk: damaged") for name in (b"02", b"07", b"10")]
    restored = {name.decode() for name in walk(tmp_path / "out")} - {"."}
    assert restored == {f"{number:02}" for number in range(COUNT) if number not in {2, 7, 10}} | {"linked"}


def test_a_full_disk_ends_the_restore(
    sandbox: Sandbox, live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CastoreError, match=r"cannot restore .*: No space left on device"):
        sandbox.restore("s@1:t", tmp_path / "out")
    assert len(os.listdir("/proc/self/fd")) == before
