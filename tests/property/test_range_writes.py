"""Random edits, snapshots, restores in place and kills of a tree with large files, of which ranges are overwritten."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from castore.content.restore import live_file, range_writes
from castore.content.restore import recover as recovering
from castore.content.scan import cache
from castore.errors import NotFoundError
from castore.services.sources import Tree
from tests.support.call_faults import kill, struck_at
from tests.support.stores import Sandbox
from tests.support.tree_walker import compare, walk

STEP = 0.012
"""Seconds: longer than a tick of the kernel's clock, which dates files, and than what counts as recent here."""
NAMES = ("large", "deep/large", "deep/other", "name")
PLACES = st.floats(0, 1)
seeds = st.integers(0, 1 << 32)
picks = st.integers(0, 1 << 16)
points = st.one_of(st.just(0), st.integers(1, 25), st.integers(1, 120))
"""The system call at which a restore is killed; 0: it is not."""


@pytest.fixture(autouse=True)
def files_of_100_kb_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write ranges of such files, and trust what is 10 ms old."""
    monkeypatch.setattr(live_file, "LARGE", 20_000)
    monkeypatch.setattr(range_writes, "_BEGIN", 0)
    monkeypatch.setattr(range_writes, "_RANGE", 0)
    monkeypatch.setattr(range_writes, "_RANGE_BYTE", range_writes._NEW_FILE)  # noqa: SLF001 - of any share
    monkeypatch.setattr(cache, "_RACY_NS", 10_000_000)


def content(rng: random.Random) -> bytes:
    """Return content in which pieces are repeated, some of them zeros."""
    pieces = [rng.randbytes(rng.choice([100, 7000, 20_000])), bytes(30_000)]
    data = b"".join(rng.choice([*pieces, rng.randbytes(rng.randrange(20_000))]) for _ in range(rng.randrange(5, 12)))
    return data + rng.randbytes(20_000)


def edited(rng: random.Random, data: bytes, place: float) -> bytes:
    """Return content of which a range was overwritten, inserted, removed, moved, cut off or appended."""
    at = round(place * len(data))
    new = rng.choice([rng.randbytes, bytes])(rng.choice([1, 100, 5000, 15_000]))
    match rng.randrange(6):
        case 0:
            return data[:at] + new + data[at:]
        case 1:
            return data[:at] + data[at + len(new) :]
        case 2:
            return data[at:] + data[:at]
        case 3:
            return data[: max(at, 20_000)]
        case 4:
            return data + new
        case _:
            return (data[:at] + new + data[at + len(new) :])[: max(len(data), 1)]


class RangeMachine(RuleBasedStateMachine):
    """A live tree, its generations, and what the tree was when each of them was taken."""

    ends: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a kill of a process does not need a disk
        self.folder = Path(tempfile.mkdtemp(prefix="castore-ranges-", dir=memory))
        self.sandbox, self.live = Sandbox(self.folder / "sandbox", average=4096), self.folder / "live"
        self.taken: dict[int, dict[bytes, Any]] = {}
        (self.live / "deep").mkdir(parents=True)
        (self.live / "small").write_text("small")

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def files(self) -> list[Path]:
        return [path for path in (self.live / name for name in NAMES) if path.exists()]

    @initialize(seed=seeds)
    def two_generations_of_some_files(self, seed: int) -> None:
        rng = random.Random(seed)
        for name in NAMES[:3]:
            (self.live / name).write_bytes(content(rng))
        self.snapshot(wait=True)
        self.edit(seed, rng.random(), hides=False)
        self.snapshot(wait=True)

    # Changes

    @rule(seed=seeds, place=PLACES, hides=st.booleans())
    def edit(self, seed: int, place: float, hides: bool) -> None:
        """Edit a file where it is. hides: its size and times do not show it."""
        rng = random.Random(seed)
        path = rng.choice(self.files())
        info, data = path.stat(), path.read_bytes()
        new = edited(rng, data, place)
        if hides:
            new = new[: len(data)].ljust(len(data), b"x")
        with open(path, "r+b") as file:
            file.write(new)
            file.truncate()
        if hides:
            os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))

    @rule(seed=seeds, kind=st.sampled_from(["replace", "remove", "link", "unlink", "hole", "grow", "mode"]))
    def change(self, seed: int, kind: str) -> None:
        """Change what decides whether ranges can be overwritten."""
        rng = random.Random(seed)
        path, name = rng.choice(self.files()), self.live / "name"
        if kind == "replace":
            (self.live / "new").write_bytes(edited(rng, path.read_bytes(), rng.random()))
            os.rename(self.live / "new", path)
        elif kind == "remove" and len(self.files()) > 2:
            path.unlink()
        elif kind == "link" and not name.exists():
            os.link(path, name)
        elif kind == "unlink":
            name.unlink(missing_ok=True)
            if not self.files():
                path.write_bytes(content(rng))
        elif kind == "hole":
            data = path.read_bytes()
            with open(path, "r+b") as file:
                file.truncate(rng.randrange(20_000))
                file.truncate(len(data))
                file.seek(rng.randrange(len(data)))
                file.write(data[:5000])
        elif kind == "grow":
            os.truncate(path, path.stat().st_size + rng.choice([1, 40_000]))
        elif kind == "mode":
            os.chmod(path, rng.choice([0o600, 0o644, 0o400]))

    @rule()
    def lose_the_scan_cache(self) -> None:
        for path in Path(self.sandbox.places.cache).glob("*/*/scan/*"):
            path.unlink()

    # Generations

    @rule(wait=st.booleans())
    def snapshot(self, wait: bool) -> None:
        """Take a generation, which has to have what the tree has. wait: until no file changed just before."""
        if wait:
            time.sleep(STEP)
        generation = self.sandbox.snapshot("s", {"t": Tree(str(self.live))})
        self.taken[generation.number] = walk(self.live)
        out = self.folder / "out"
        self.sandbox.restore(f"s@{generation.number}:t", out)
        assert compare(self.taken[generation.number], walk(out)) == []
        shutil.rmtree(out)

    @precondition(lambda self: self.taken)
    @rule(pick=picks, point=points, torn=st.booleans(), checksum=st.booleans())
    def restore_in_place(self, pick: int, point: int, torn: bool, checksum: bool) -> None:
        number = sorted(self.taken)[pick % len(self.taken)]
        self.go_to(number, point, lambda: self.sandbox.in_place(f"s@{number}:t", self.live, checksum=checksum), torn)

    @precondition(lambda self: self.taken)
    @rule(pick=picks, point=points, torn=st.booleans())
    def rollback(self, pick: int, point: int, torn: bool) -> None:
        number = sorted(self.taken)[pick % len(self.taken)]
        before = walk(self.live)
        self.go_to(number, point, lambda: self.sandbox.rollback(number), torn)
        with self.sandbox.open() as store:
            store.generations.sync()
            for generation in store.generations.all("s"):
                self.taken.setdefault(generation.number, before)  # the pre-rollback generation

    def go_to(self, number: int, point: int, action: Any, torn: bool) -> None:
        """Give the tree the content of a generation, killed at a system call: it becomes that, or stays as it is."""
        before, inodes = walk(self.live), self.inodes()
        status = os.waitstatus_to_exitcode(struck_at(action, point, kill, torn=torn))
        assert status in {0, -signal.SIGKILL}, status
        mixed = compare(before, walk(self.live)) and compare(self.taken[number], walk(self.live))
        with contextlib.suppress(NotFoundError):
            self.sandbox.recover()
        "".join(recovering.recover(os.path.join(self.sandbox.places.state, "in-place"), str(self.live)))
        found = walk(self.live)
        assert not [name for name in os.listdir(self.live) if name.startswith(".castore")]
        is_new = compare(self.taken[number], found) == []
        if status == 0:
            assert is_new, compare(self.taken[number], found)
        elif not is_new:
            found[b"."]["mtime"] = before[b"."]["mtime"]  # it changes if no journal was written yet
            assert compare(before, found) == []
        self.ends["new" if is_new else "old"] += 1
        self.ends["mixed"] += bool(mixed) and status != 0
        same_inode = [name for name, _ in inodes.items() & self.inodes().items()]
        self.ends["ranges"] += is_new and any(found[name]["hash"] != before[name]["hash"] for name in same_inode)

    def inodes(self) -> dict[bytes, int]:
        return {os.fsencode(path.relative_to(self.live)): path.stat().st_ino for path in self.files()}


def test_files_are_exactly_old_or_new_whatever_is_killed_and_snapshots_see_the_truth() -> None:
    RangeMachine.ends.clear()
    run_state_machine_as_test(RangeMachine, settings=settings(max_examples=6, stateful_step_count=12, deadline=None))
    assert min(RangeMachine.ends[name] for name in ("new", "old", "ranges")) > 0, RangeMachine.ends


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_files_are_exactly_old_or_new_whatever_is_killed() -> None:
    RangeMachine.ends.clear()
    run_state_machine_as_test(RangeMachine, settings=settings(max_examples=80, stateful_step_count=30, deadline=None))
    print(f"range writes: {dict(RangeMachine.ends)}")
    assert min(RangeMachine.ends[name] for name in ("new", "old", "mixed", "ranges")) > 10, RangeMachine.ends


@pytest.mark.parametrize("proven", [True, False])
def test_a_file_rewritten_in_ranges_is_read_again_though_inode_size_and_mtime_are_the_same(
    tmp_path: Path, proven: bool
) -> None:
    sandbox, live = Sandbox(tmp_path / "sandbox", average=4096), tmp_path / "live"
    live.mkdir()
    path = live / "large"
    old = random.Random(1).randbytes(100_000)
    for number, data in enumerate((old, old[:50_000] + b"changed" + old[50_007:]), 1):
        with open(path, "r+b" if path.exists() else "wb") as file:
            file.write(data)
        os.utime(path, ns=(0, 0))
        os.utime(live, ns=(0, 0))
        time.sleep(STEP)
        assert sandbox.snapshot("s", {"t": Tree(str(live))}).number == number
    if not proven:
        for found in Path(sandbox.places.cache).glob("*/*/scan/*"):
            found.unlink()
    before = path.stat()
    sandbox.in_place("s@1:t", live)
    after = path.stat()
    assert path.read_bytes() == old
    assert (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)
    taken = sandbox.snapshot("s", {"t": Tree(str(live))})
    sandbox.restore(f"s@{taken.number}:t", tmp_path / "out")
    assert (tmp_path / "out" / "large").read_bytes() == old
