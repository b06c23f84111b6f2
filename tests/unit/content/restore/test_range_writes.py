"""Large files of which only the ranges that differ are written, and those for which a new file is made."""

from __future__ import annotations

import errno
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import castore
from castore.content import streams
from castore.content.restore import difference, large_files, range_writes, saved_ranges, undo_area
from castore.content.scan import cache
from castore.errors import CastoreError, DamageError
from castore.services.restore_in_place import plan_in_place, restore_in_place
from castore.services.selectors import select
from castore.services.sources import Tree
from castore.state.restore_runs import Work
from tests.support.stores import Sandbox
from tests.support.tree_walker import compare, walk

MIB = 1 << 20


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.setattr(range_writes, "_BEGIN", 0)
    monkeypatch.setattr(range_writes, "_RANGE", 0)
    monkeypatch.setattr(cache, "_RACY_NS", 10_000_000)
    return Sandbox(tmp_path / "sandbox", average=16384)


@pytest.fixture
def live(tmp_path: Path, sandbox: Sandbox) -> Path:
    """A tree with a large file, of which generation 1 has another state."""
    top = tmp_path / "live"
    (top / "deep").mkdir(parents=True)
    (top / "deep" / "large").write_bytes(random.Random(1).randbytes(3 * MIB + 1234))
    (top / "other").write_text("other")
    sandbox.snapshot("s", {"t": Tree(str(top))})
    return top


@pytest.fixture
def stored(live: Path) -> dict:
    return walk(live)


@pytest.fixture
def large(live: Path, stored: dict) -> Path:
    """The large file, changed in two places."""
    path = live / "deep" / "large"
    with open(path, "r+b") as file:
        for offset in (70_000, 2 * MIB):
            file.seek(offset)
            file.write(b"changed")
    return path


def prove(sandbox: Sandbox, live: Path) -> None:
    time.sleep(0.02)
    sandbox.snapshot("s", {"t": Tree(str(live))})


def test_a_file_that_the_scan_proves_is_not_read(
    sandbox: Sandbox, live: Path, large: Path, stored: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove(sandbox, live)
    monkeypatch.setattr(difference, "difference_of_file", lambda *_: pytest.fail("it is proven"))
    inode = large.stat().st_ino
    sandbox.in_place("s@1:t", live)
    assert compare(stored, walk(live)) == []
    assert large.stat().st_ino == inode


def test_a_file_whose_ranges_are_written_counts_as_restored(sandbox: Sandbox, live: Path, large: Path) -> None:
    progress, inode = castore.Progress(), large.stat().st_ino
    with sandbox.open() as store:
        store.sync()
        plan = plan_in_place(store, select(store, "s@1:t"), str(live), sandbox.ownership)
        assert restore_in_place(store, plan, sandbox.ownership, progress) == []
    assert large.stat().st_ino == inode
    assert progress.files == 1


def test_a_file_that_the_scan_does_not_prove_is_compared(sandbox: Sandbox, live: Path, large: Path, stored: dict) -> None:
    prove(sandbox, live)
    times = large.stat()
    with open(large, "r+b") as file:
        file.seek(MIB)
        file.write(b"later")
    os.utime(large, ns=(times.st_atime_ns, times.st_mtime_ns))
    sandbox.in_place("s@1:t", live)
    assert compare(stored, walk(live)) == []
    assert large.stat().st_ino == times.st_ino


@pytest.mark.parametrize("change", ["linked", "written", "open", "holes", "mode", "different"])
def test_a_new_file_is_made_of_one_that_must_not_be_overwritten(
    sandbox: Sandbox, live: Path, large: Path, stored: dict, change: str
) -> None:
    inode = large.stat().st_ino
    held = os.open(large, os.O_RDWR if change == "written" else os.O_RDONLY) if change in {"written", "open"} else -1
    if change == "linked":
        os.link(large, live / "second")
    elif change == "holes":
        os.truncate(large, 8 * MIB)
    elif change == "mode":
        large.chmod(0o666)
    elif change == "different":
        large.write_bytes(random.Random(2).randbytes(3 * MIB))
    before = large.read_bytes()
    prove(sandbox, live)
    try:
        sandbox.in_place("s@1:t", live)
        assert held < 0 or os.pread(held, 9 * MIB, 0) == before
    finally:
        if held >= 0:
            os.close(held)
    assert compare(stored, walk(live)) == []
    assert large.stat().st_ino != inode


def test_no_room_for_the_previous_ranges_changes_nothing(
    sandbox: Sandbox, live: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, inode = large.read_bytes(), large.stat().st_ino

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "sendfile", full)
    with pytest.raises(CastoreError, match=r"cannot replace .*/large: No space left"):
        sandbox.in_place("s@1:t", live)
    assert (large.read_bytes(), large.stat().st_ino) == (before, inode)
    assert not [name for name in os.listdir(live) if name.startswith(".castore")]


def test_a_file_that_changes_before_it_is_overwritten_is_replaced(
    sandbox: Sandbox, live: Path, large: Path, stored: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = large.stat().st_ino

    def save(*arguments: object) -> None:
        saved_ranges.save(*arguments)
        with open(large, "ab") as file:
            file.write(b"meanwhile")

    monkeypatch.setattr(undo_area, "save", save)
    sandbox.in_place("s@1:t", live)
    assert compare(stored, walk(live)) == []
    assert large.stat().st_ino != inode


def test_a_file_that_changes_after_it_was_proven_is_replaced(
    sandbox: Sandbox, live: Path, large: Path, stored: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove(sandbox, live)
    inode = large.stat().st_ino

    def change(*_: object) -> bool:
        with open(large, "r+b") as file:
            file.seek(MIB)
            file.write(b"meanwhile")
        return False

    monkeypatch.setattr(range_writes, "can_share_blocks_in", change)
    sandbox.in_place("s@1:t", live)
    assert compare(stored, walk(live)) == []
    assert large.stat().st_ino != inode


def test_a_file_that_changes_while_its_content_is_used_is_not_trusted(
    sandbox: Sandbox, live: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove(sandbox, live)
    real = large_files._copy_kept

    def copy(fd: int, old: int, *rest: Any) -> Any:
        yield from real(fd, old, *rest)
        os.utime(old)

    monkeypatch.setattr(large_files, "_copy_kept", copy)
    monkeypatch.setattr(large_files, "clone", lambda *_: False)
    monkeypatch.setattr(range_writes, "is_cheaper", lambda *_: False)
    before = large.read_bytes()
    with pytest.raises(CastoreError, match="changed meanwhile: is its service still running"):
        sandbox.in_place("s@1:t", live)
    assert large.read_bytes() == before


def test_damage_in_the_store_reverts_what_was_written(
    sandbox: Sandbox, live: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = walk(live)
    real = difference.write_at
    done: list[int] = []

    def write_at(*arguments: object) -> None:
        real(*arguments)
        done.append(1)
        raise difference.DamageError("chunk: damaged")

    monkeypatch.setattr(difference, "write_at", write_at)
    with pytest.raises(CastoreError, match="deep/large: chunk: damaged"):
        sandbox.in_place("s@1:t", live)
    assert done
    assert compare(before, walk(live)) == []


@pytest.mark.parametrize("length", [3 * MIB, 4 * MIB])
def test_a_stored_file_of_another_length_than_its_stream_is_damaged(
    sandbox: Sandbox, live: Path, large: Path, stored: dict, length: int
) -> None:
    before = walk(live)
    with sandbox.open() as store:
        store.sync()
        plan = plan_in_place(store, select(store, "s@1:t"), str(live), sandbox.ownership)
        child = plan.steps[0].child
        wrong = child._replace(entry=replace(child.entry, size=length))
        plan = replace(plan, steps=(replace(plan.steps[0], child=wrong, ranges=None), *plan.steps[1:]))
        with pytest.raises(DamageError, match=r"deep/large: a file's stream is (longer|shorter)"):
            restore_in_place(store, plan, sandbox.ownership, castore.Progress())
    assert compare(before, walk(live)) == []


def test_a_rollback_writes_ranges(sandbox: Sandbox, live: Path, large: Path, stored: dict) -> None:
    time.sleep(0.02)
    inode = large.stat().st_ino
    sandbox.rollback(1)
    assert compare(stored, walk(live)) == []
    assert large.stat().st_ino == inode
    sandbox.undo()
    assert large.read_bytes()[70_000:70_007] == b"changed"


def test_few_ranges_of_a_large_file_are_cheaper_and_many_are_not() -> None:
    few, many = difference.Difference(), difference.Difference()
    few.add(0, 64 * MIB)
    for number in range(500):
        many.add(4 * number * MIB, (4 * number + 3) * MIB)
    assert range_writes.is_cheaper(few, 2000 * MIB)
    assert not range_writes.is_cheaper(many, 2000 * MIB)
    assert not range_writes.is_cheaper(few, 100 * MIB)
    assert not range_writes.is_cheaper(difference.Difference(), 4 * MIB)


def test_a_plan_of_range_writes_counts_exactly_what_is_read_and_written(
    sandbox: Sandbox, live: Path, large: Path, stored: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove(sandbox, live)
    check_counts(sandbox, live, large, monkeypatch, compared=(0, 0))
    assert compare(stored, walk(live)) == []


def test_a_plan_of_range_writes_counts_the_comparison_of_a_file_that_is_not_proven(
    sandbox: Sandbox, live: Path, large: Path, stored: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(large, 3 * MIB)
    check_counts(sandbox, live, large, monkeypatch, compared=(3 * MIB, 4 * MIB + MIB // 2))
    assert compare(stored, walk(live)) == []


def test_a_file_that_differs_everywhere_costs_no_more_than_samples_and_a_full_restore(
    sandbox: Sandbox, live: Path, large: Path, stored: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = large.read_bytes()
    large.write_bytes(b"inserted" + before)
    work = check_counts(sandbox, live, large, monkeypatch, compared=(1, 32 * 65536))
    assert work.written == len(before)
    assert compare(stored, walk(live)) == []


def test_a_comparison_ends_when_ranges_are_no_longer_cheaper(
    sandbox: Sandbox, live: Path, large: Path, stored: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(difference, "_LEAST_EQUAL", 0)
    monkeypatch.setattr(streams, "_RUN_BYTES", 65536)
    large.write_bytes(random.Random(2).randbytes(3 * MIB + 1234))
    work = check_counts(sandbox, live, large, monkeypatch, compared=(MIB, 3 * MIB))
    assert work.written == 3 * MIB + 1234
    assert compare(stored, walk(live)) == []


def check_counts(
    sandbox: Sandbox, live: Path, large: Path, monkeypatch: pytest.MonkeyPatch, *, compared: tuple[int, int]
) -> Work:
    """Restore a tree, and check that the plan has exactly the bytes that are read and written; return them."""
    inode, counts = large.stat().st_ino, Counter[str]()

    def watch(name: str) -> None:
        real = getattr(os, name)

        def call(fd: int, *arguments: Any) -> Any:
            done = real(fd, *arguments)
            if done > 1 if name != "preadv" else os.fstat(fd).st_ino == inode:  # the journal ends with a byte
                counts[name] += done
            return done

        monkeypatch.setattr(os, name, call)

    for name in ("preadv", "pwrite", "sendfile"):
        watch(name)
    with sandbox.open() as store:
        store.sync()
        plan = plan_in_place(store, select(store, "s@1:t"), str(live), sandbox.ownership)
        assert counts["pwrite"] == 0
        assert restore_in_place(store, plan, sandbox.ownership, castore.Progress()) == []
    read = plan.work.read - plan.read  # `other` is read by the comparison of the tree
    assert (read, plan.work.written) == (counts["preadv"], counts["pwrite"] + counts["sendfile"])
    assert compared[0] <= read <= compared[1]
    return plan.work


def test_a_file_that_changes_after_the_plan_is_compared_again(
    sandbox: Sandbox, live: Path, large: Path, stored: dict
) -> None:
    with sandbox.open() as store:
        store.sync()
        plan = plan_in_place(store, select(store, "s@1:t"), str(live), sandbox.ownership)
        assert [step.ranges is not None for step in plan.steps] == [True, False, False]
        time.sleep(0.02)
        with open(large, "r+b") as file:
            file.seek(MIB)
            file.write(b"after the plan")
        assert restore_in_place(store, plan, sandbox.ownership, castore.Progress()) == []
    assert compare(stored, walk(live)) == []


def test_no_ranges_are_written_if_that_is_not_wanted(
    sandbox: Sandbox, live: Path, large: Path, stored: dict
) -> None:
    prove(sandbox, live)
    inode, size = large.stat().st_ino, large.stat().st_size
    with sandbox.open() as store:
        store.sync()
        plan = plan_in_place(store, select(store, "s@1:t"), str(live), sandbox.ownership, range_writes=False)
        assert plan.work.written == size
        assert restore_in_place(store, plan, sandbox.ownership, castore.Progress()) == []
    assert compare(stored, walk(live)) == []
    assert large.stat().st_ino != inode


@pytest.mark.parametrize("command", ["restore", "rollback"])
def test_the_command_line_can_forbid_range_writes(
    castore: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("CASTORE_STORE", str(tmp_path / "store"))
    castore("init", "--average", "16384", tmp_path / "store")
    live, size = tmp_path / "live", 40 * MIB
    live.mkdir()
    large = live / "large"
    large.write_bytes(random.Random(1).randbytes(size))
    castore("snapshot", "s", "--tree", f"t={live}")
    with open(large, "r+b") as file:
        file.seek(MIB)
        file.write(b"changed")
    words = {"restore": ["restore", "--in-place", "s@1:t", live], "rollback": ["rollback", "s", "--to", "1"]}[command]

    def written(*options: str) -> int:
        plan = json.loads(castore(*words, "--dry-run", "--json", *options).stdout)
        tree = plan["trees"]["t"] if command == "rollback" else plan
        assert tree["bytes"] == size
        return int(tree["written_bytes"])

    assert written() < MIB
    assert written("--no-range-writes") == size
    inode = large.stat().st_ino
    castore(*words, "--no-range-writes")
    assert large.read_bytes() == random.Random(1).randbytes(size)
    assert large.stat().st_ino != inode
