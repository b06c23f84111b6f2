"""Directories whose small files are in several streams: changed, kept, repacked, forgotten, compacted and rescued."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
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

import castore
from castore.content.scan import cache
from castore.maintenance.compact import compact
from castore.maintenance.limits import Limits
from castore.maintenance.verify import verify
from castore.model.generation import Generation
from castore.services.config import Keep, Service
from castore.services.prune import forget, prune
from castore.services.sources import Tree
from castore.storage import LocalStorage
from castore.store import MachinePaths, Store, StoreOptions
from tests.support.stored_streams import streams_of
from tests.support.stores import Sandbox, take_snapshot
from tests.support.tree_walker import compare, walk

RESCUE = Path(__file__).parents[2] / "tools" / "rescue.py"
STEP = 0.012
"""Seconds: longer than a tick of the kernel's clock, which dates files, and than what counts as recent here."""
FOLDERS = ("", "deep", "deep/er")
CHANGES = ["write", "hide", "add", "add", "empty", "delete", "rename", "replace", "grow", "mode", "xattr", "link"]
seeds = st.integers(0, 1 << 32)
picks = st.integers(0, 1 << 16)


@pytest.fixture(autouse=True)
def trust_what_is_10_ms_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_RACY_NS", 10_000_000)


class StreamMachine(RuleBasedStateMachine):
    """A tree of small files, its generations, and what the tree was when each of them was taken."""

    seen: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="castore-streams-", dir=memory))
        self.sandbox, self.live = Sandbox(self.folder / "sandbox", average=4096), self.folder / "live"
        self.taken: dict[int, dict[bytes, Any]] = {}
        self.streams: dict[bytes, int] = {}

    def teardown(self) -> None:
        try:
            self.check_all()
            self.rescue(max(self.taken))
            self.rescue(min(self.taken))
        finally:
            shutil.rmtree(self.folder)

    def check_all(self) -> None:
        """Restore generations, and verify all of them on a machine that never saw the store."""
        places = MachinePaths(str(self.folder / "elsewhere"), str(self.folder / "elsewhere"))
        trust = StoreOptions(trust=[self.sandbox.identity.admin.public])
        storage = LocalStorage(str(self.sandbox.store))
        with Store.open(storage, places, lambda: self.sandbox.identity, trust) as store:
            store.sync()
            assert verify(store, castore.Progress(), read_data=True).sound
        for number in {*sorted(self.taken)[-8:], min(self.taken)}:
            self.check(number)

    def check(self, number: int) -> None:
        out = self.folder / "out"
        with self.sandbox.open() as store:
            store.sync()
        self.sandbox.restore(f"s@#{number}:t", out)
        assert compare(self.taken[number], walk(out)) == []
        shutil.rmtree(out)

    def rescue(self, number: int) -> None:
        """Restore a generation with the program that does not need castore."""
        (self.folder / "identity").write_text(self.sandbox.identity.text())
        out = self.folder / "rescued"
        command = [sys.executable, RESCUE, self.sandbox.store, "--identity", self.folder / "identity", "s", str(number), out]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert compare(self.taken[number], walk(out / "t"), ignore={"blocks"}) == []
        shutil.rmtree(out)

    @initialize(seed=seeds)
    def many_small_files(self, seed: int) -> None:
        rng = random.Random(seed)
        (self.live / "deep" / "er").mkdir(parents=True)
        for number in range(40):
            path = self.live / FOLDERS[number % 4 // 2] / f"f{number:02}"
            path.write_bytes(rng.randbytes(rng.choice([0, 1, 300, 2000])))
        self.a_file_is_added_before_each_of_many_snapshots(seed, 5)

    # Changes

    @rule(seed=seeds, kinds=st.lists(st.sampled_from(CHANGES), min_size=1, max_size=4))
    def change(self, seed: int, kinds: list[str]) -> None:
        for number, kind in enumerate(kinds):
            self.change_one(random.Random(seed + number), kind)

    def change_one(self, rng: random.Random, kind: str) -> None:
        files = sorted(path for path in self.live.rglob("*") if path.is_file())
        path, other = rng.choice(files), self.live / rng.choice(FOLDERS) / f"g{rng.randrange(30):02}"
        info = path.stat()
        data = rng.randbytes(rng.choice([1, 40, 700, 5000]))
        if kind == "write":
            path.write_bytes(data)
        elif kind == "hide":  # the same size and time
            path.write_bytes(rng.randbytes(info.st_size))
            os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
        elif kind == "empty":
            path.write_bytes(b"")
        elif kind == "delete" and len(files) > 10:
            path.unlink()
        elif kind == "rename":
            path.rename(other)
        elif kind == "replace":  # an inode number may be used again
            path.unlink()
            path.write_bytes(data)
            os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
        elif kind == "grow":  # it is no longer small, or is small again
            path.write_bytes(rng.randbytes(70_000 if info.st_size < 65_536 else 100))
        elif kind == "mode":
            path.chmod(rng.choice([0o600, 0o644]))
        elif kind == "xattr":
            os.setxattr(path, "user.x", b"1")
        elif kind == "link" and not other.exists():
            os.link(path, other)
        elif kind == "add":
            other.write_bytes(data)

    @rule()
    def lose_the_scan_cache(self) -> None:
        for path in Path(self.sandbox.places.cache).glob("*/*/scan/*"):
            path.unlink()

    @rule()
    def lose_the_index(self) -> None:
        shutil.rmtree(self.sandbox.places.cache, ignore_errors=True)

    # Generations

    @rule(wait=st.booleans())
    def snapshot(self, wait: bool) -> None:
        """Take a generation. wait: until no file changed just before."""
        if wait:
            time.sleep(STEP)
        generation = self.take()
        self.check(generation.number)
        before, self.streams = self.streams, streams_of(self.sandbox, generation)
        assert max(self.streams.values()) <= 16
        self.seen["most"] = max(self.seen["most"], *self.streams.values())
        self.seen["repacked"] += any(1 < before.get(path, 0) > count for path, count in self.streams.items())

    def take(self) -> Generation:
        with self.sandbox.open(identity=False) as store:
            generation = take_snapshot(store, "s", {"t": Tree(str(self.live))})
        self.taken[generation.number] = walk(self.live)
        return generation

    @rule(seed=seeds, times=st.sampled_from([3, 6, 18]))
    def a_file_is_added_before_each_of_many_snapshots(self, seed: int, times: int) -> None:
        rng = random.Random(seed)
        folder = self.live / rng.choice(FOLDERS)
        for number in range(times):
            (folder / f"h{number}").write_bytes(rng.randbytes(200))
            time.sleep(STEP)
            self.take()
        self.snapshot(wait=True)

    @precondition(lambda self: self.taken)
    @rule(pick=picks)
    def restore_in_place(self, pick: int) -> None:
        number = sorted(self.taken)[pick % len(self.taken)]
        self.sandbox.in_place(f"s@#{number}:t", self.live)
        assert compare(self.taken[number], walk(self.live)) == []

    # Deleting

    @precondition(lambda self: len(self.taken) > 1)
    @rule(picks=st.lists(picks, min_size=1, max_size=5))
    def forget(self, picks: list[int]) -> None:
        numbers = {sorted(self.taken)[pick % len(self.taken)] for pick in picks} - {max(self.taken)}
        with self.sandbox.open(identity=False) as store:
            store.generations.sync()
            forget(store, "s", [store.generations.get("s", number) for number in numbers])
        for number in numbers:
            del self.taken[number]

    @rule(last=st.integers(1, 4))
    def prune(self, last: int) -> None:
        with self.sandbox.open(identity=False) as store:
            store.generations.sync()
            settings = {"s": Service(keep=Keep(last=last, per_revision=0))}
            removed, busy, _ = prune(store, settings, castore.Progress(), Limits(grace_seconds=0))
        assert not busy
        for generation in removed:
            del self.taken[generation.number]

    @rule(share=st.sampled_from([0, 0.5]))
    def compact(self, share: float) -> None:
        with self.sandbox.open(identity=False) as store:
            done = compact(store, castore.Progress(), max_unused=share, grace_seconds=0, unfinished_seconds=0)
        assert done.damaged == []
        assert done.plan.lost == 0


def test_small_files_are_restored_whatever_streams_they_are_in() -> None:
    StreamMachine.seen.clear()
    run_state_machine_as_test(StreamMachine, settings=settings(max_examples=3, stateful_step_count=10, deadline=None))
    assert StreamMachine.seen["most"] >= 4, StreamMachine.seen


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_small_files_are_restored_whatever_streams_they_are_in() -> None:
    StreamMachine.seen.clear()
    run_state_machine_as_test(StreamMachine, settings=settings(max_examples=30, stateful_step_count=25, deadline=None))
    print(f"streams: {dict(StreamMachine.seen)}")
    assert StreamMachine.seen["most"] >= 8
    assert StreamMachine.seen["repacked"] > 20
