"""Restores that overwrite ranges of a large file: killed or failing at any call, they leave the old or the new file."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from castore.content.restore import range_writes
from castore.content.restore import recover as recovering
from castore.content.scan import cache
from castore.errors import NotFoundError
from castore.services.sources import Tree
from tests.support.call_faults import FAILED, WARNED, kill, struck_at
from tests.support.stores import Sandbox
from tests.support.tree_walker import compare, walk

MIB = 1 << 20
ORIGINAL = random.Random(1).randbytes(MIB + 300_000)
METADATA = ((b".", "mtime"), (b"large", "mode"), (b"large", "mtime"))
"""What is only reported if it cannot be set."""


@pytest.fixture(autouse=True)
def ranges_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write ranges of small files, too, and let files that were just changed be proven."""
    monkeypatch.setattr(range_writes, "_BEGIN", 0)
    monkeypatch.setattr(range_writes, "_RANGE", 0)
    monkeypatch.setattr(cache, "_RACY_NS", 10_000_000)


@dataclass
class Machine:
    """A store with one generation of a tree, the tree, and what it was before its restore."""

    sandbox: Sandbox
    live: Path
    stored: dict[bytes, Any]

    def change(self, rng: random.Random) -> dict[bytes, Any]:
        """Overwrite some places in the large file, and change its length; return the tree."""
        with open(self.live / "large", "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            for _ in range(rng.randrange(1, 5)):
                file.seek(rng.randrange(size))
                file.write(rng.randbytes(rng.randrange(1, 9000)))
            size = file.seek(0, os.SEEK_END)
            file.truncate(max(size - rng.choice([0, 1, 5000, 100_000]), MIB))
            file.seek(0, os.SEEK_END)
            file.write(rng.randbytes(rng.choice([0, 1, 70_000])))
        os.chmod(self.live / "large", 0o640)
        return walk(self.live)

    def prove(self) -> None:
        """Take a generation, so that the scan cache has the live file."""
        time.sleep(0.02)
        self.sandbox.snapshot("s", {"t": Tree(str(self.live))})

    def restore(self) -> None:
        self.sandbox.in_place("s@1:t", self.live)

    def recover(self) -> str:
        return "".join(recovering.recover(os.path.join(self.sandbox.places.state, "in-place"), str(self.live)))

    @property
    def large(self) -> bytes:
        return (self.live / "large").read_bytes()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    live = tmp_path / "live"
    live.mkdir()
    (live / "large").write_bytes(ORIGINAL)
    (live / "small").write_text("small")
    sandbox = Sandbox(tmp_path / "sandbox", average=16384)
    sandbox.snapshot("s", {"t": Tree(str(live))})
    return Machine(sandbox, live, walk(live))


def points(machine: Machine, *, torn: bool = False) -> Iterator[tuple[int, dict[bytes, Any], bool]]:
    """Kill a restore at every second call; yield the call, the previous tree, and whether the file is a mixture."""
    for point in range(1 + torn, 300, 2):
        before = machine.change(random.Random(point))
        old = machine.large
        machine.prove()
        status = struck_at(machine.restore, point, kill, torn=torn)
        if os.waitstatus_to_exitcode(status) == 0:
            assert compare(machine.stored, walk(machine.live)) == []
            return
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        now = machine.large
        yield point, before, now != old and compare(machine.stored, walk(machine.live)) != []


@pytest.mark.parametrize("torn", [False, True])
def test_a_file_is_exactly_old_or_new_after_a_kill_at_any_call(machine: Machine, torn: bool) -> None:
    ends: Counter[str] = Counter()
    for point, before, mixed in points(machine, torn=torn):
        shown = machine.recover()
        found = walk(machine.live)
        if "all had been restored" in shown or (not shown and compare(machine.stored, found) == []):
            ends["new"] += 1
            assert compare(machine.stored, found) == [], (point, shown)
        else:
            if not shown or "nothing had been touched" in shown:
                found[b"."]["mtime"] = before[b"."]["mtime"]  # no journal was written yet
            ends["old"] += 1
            ends["mixed"] += mixed
            assert compare(before, found) == [], (point, shown)
        assert machine.recover() == ""
        assert not [name for name in os.listdir(machine.live) if name.startswith(".castore")]
        # The next one begins with the same file.
        machine.restore()
        assert compare(machine.stored, walk(machine.live)) == []
    assert ends["mixed"] >= 3, ends
    assert ends["new"] >= 1, ends


def test_a_file_that_took_the_place_of_a_mixture_is_not_overwritten_by_ranges(machine: Machine) -> None:
    point = next(point for point, _, mixed in points_of_one_change(machine) if mixed)
    machine.recover()
    before = machine.change(random.Random(0))
    machine.prove()
    assert struck_at(machine.restore, point, kill) == signal.SIGKILL
    length = len(machine.large)
    (machine.live / "large").unlink()  # its inode number may be given to the next file
    (machine.live / "large").write_bytes(random.Random(9).randbytes(length))
    machine.recover()
    assert compare(before, walk(machine.live)) == []


def test_recovery_killed_at_any_call_is_repeated(machine: Machine) -> None:
    mixtures = (point for point, _, mixed in points_of_one_change(machine) if mixed)
    point = next(itertools.islice(mixtures, 2, None))
    machine.recover()
    machine.restore()
    killed = 0
    for again in range(1, 100, 2):
        before = machine.change(random.Random(0))
        machine.prove()
        assert struck_at(machine.restore, point, kill) == signal.SIGKILL
        status = struck_at(machine.recover, again, kill, torn=bool(again % 4 == 1))
        if os.waitstatus_to_exitcode(status) == 0:
            break
        killed += 1
        machine.recover()
        assert compare(before, walk(machine.live)) == [], again
        machine.restore()
    assert killed > 3


def points_of_one_change(machine: Machine) -> Iterator[tuple[int, dict[bytes, Any], bool]]:
    """Kill restores of one change at each call; yield as `points` does, and recover."""
    for point in range(1, 300):
        before = machine.change(random.Random(0))
        old = machine.large
        machine.prove()
        status = struck_at(machine.restore, point, kill)
        if os.waitstatus_to_exitcode(status) == 0:
            return
        yield point, before, machine.large != old and compare(machine.stored, walk(machine.live)) != []
        machine.recover()
        machine.restore()


def test_a_rollback_killed_while_it_writes_ranges_is_reverted_or_completed(machine: Machine) -> None:
    ends: Counter[str] = Counter()
    for point in range(1, 400, 3):
        before = machine.change(random.Random(point))
        old = machine.large
        time.sleep(0.02)
        status = struck_at(lambda: machine.sandbox.rollback(1), point, kill)
        if os.waitstatus_to_exitcode(status) == 0:
            break
        ends["mixed"] += machine.large not in {old, ORIGINAL}
        with contextlib.suppress(NotFoundError):
            machine.sandbox.recover()
        machine.recover()
        found = walk(machine.live)
        is_new = compare(machine.stored, found) == []
        found[b"."]["mtime"] = before[b"."]["mtime"]  # it changes if no journal was written yet
        assert is_new or compare(before, found) == [], point
        ends["new" if is_new else "old"] += 1
        machine.restore()
    assert ends["mixed"] >= 1, ends
    assert ends["old"] > 10, ends


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_call_that_fails_reverts_the_file(machine: Machine, code: int) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    failed = reverted = 0
    for point in range(1 + code % 2, 300, 3):
        before = machine.change(random.Random(point))
        status = os.waitstatus_to_exitcode(struck_at(machine.restore, point, fail))
        assert status in {0, WARNED, FAILED}, (point, status)
        shown = machine.recover()
        found = walk(machine.live)
        if status == WARNED:  # all was restored, and `recover` may revert it if that could not be recorded
            shown_as = before if "reverted" in shown else machine.stored
            for name, key in METADATA:
                found[name][key] = shown_as[name][key]
            assert compare(shown_as, found) == [], (point, shown)
        elif status == 0:
            assert compare(machine.stored, found) == [], (point, shown)
        else:
            failed += 1
            reverted += not shown
            if b"." in found and (not shown or "nothing had been touched" in shown):
                found[b"."]["mtime"] = before[b"."]["mtime"]
            assert compare(before, found) == [], (point, shown)
            machine.restore()
        if point > 45 and status == 0:
            break
    assert failed > 5
    assert reverted > 2


def test_random_files_killed_at_random_calls_are_exactly_old_or_new(machine: Machine) -> None:
    rng = random.Random(5)
    ends: Counter[bool] = Counter()
    for _ in range(16):
        before = machine.change(rng)
        if rng.random() < 0.5:
            machine.prove()
        status = struck_at(machine.restore, rng.randrange(1, 60), kill, torn=rng.random() < 0.5)
        machine.recover()
        found = walk(machine.live)
        is_new = compare(machine.stored, found) == []
        found[b"."]["mtime"] = before[b"."]["mtime"]
        assert is_new or compare(before, found) == [], status
        ends[is_new] += 1
        machine.restore()
    assert min(ends.values()) > 2
