"""castore's calls fail one by one: it says so and ends as documented, and what was acknowledged is whole.

Each call of a snapshot and of a prune that changes or reads a file of castore's fails in turn, once, or from
then on; writes fall short, and fsync lies. Run with -m slow, all changes are tried, and every few reads; else every few of both.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crash.test_kill_sweep import library, prepare, report
from tests.support.fault_sweep import Machine, Sweep, explained

if TYPE_CHECKING:
    pass

__all__ = ["library", "report"]

COMMANDS = ("snapshot", "first snapshot", "prune", "compact", "forget", "key add", "reindex")
CHANGES = ("EIO", "ENOSPC", "EDQUOT", "EMFILE", "EINTR", "EROFS")
READS = ("EIO", "EMFILE", "EACCES", "ESTALE")
EVERY = {"change": 101, "read": 401}
"""In the normal run, so many calls apart."""
GOING = {"prune": {("web", 1), ("web", 2)}, "forget": {("web", 2), ("web", 3)}}


class Faults:
    """Runs one command with faults, and looks after each."""

    def __init__(self, machine: Machine, library: Path, command: str) -> None:
        self.machine = machine
        self.command = command
        self.words = prepare(machine, command)
        self.sweep = Sweep(machine, library, self.words)
        self.certain = machine.kept.keys() - GOING.get(command, set())
        number = 1 + max((n for s, n in machine.kept if s == "web"), default=0)
        self.taken = {("web", number): machine.content()} if "snapshot" in command else {}
        self.injected: Counter[str] = Counter()

    def calls(self, kind: str, only: str = "") -> int:
        """Return how many calls there are, where nothing fails."""
        self.sweep.reset()
        done, log = self.sweep.run("kill", 0, calls=kind, only=only)
        assert done.returncode == 0, done.stderr
        return len(log)

    def one(self, kind: str, act: str, at: int, *, on: bool, only: str = "") -> None:
        """Let a call fail, and look at what came of it."""
        self.sweep.reset()
        number = str(getattr(errno, act)) if act.startswith("E") else act
        done, log = self.sweep.run(number, at, on=on, calls=kind, only=only)
        struck = [line for line in log if line.endswith("!")]
        if not struck:
            return
        self.injected[act] += len(struck)
        where = (act, on, struck[0], done.returncode, done.stderr)
        try:
            if act != "EINTR":
                _no_second_fsync(log)
            self.check(done)
        except BaseException:
            print(*where)
            raise

    def check(self, done) -> None:
        folder = str(self.machine.folder)
        explained(done, folder, "web", "config/", "sessions/", "packs/", "generations/")
        possible = self.machine.kept | self.taken
        # Nothing is committed that is not reported, nor the other way round.
        acknowledged = set(self.taken) if done.returncode in {0, 3} else set()
        # What cannot even be reverted stays: intact, and reported as failed.
        if done.returncode not in {0, 3} and "could not be removed either" not in done.stderr:
            possible = self.machine.kept
        for fresh in (False, True):
            listed = self.machine.check(certain=self.certain | acknowledged, possible=possible, fresh=fresh)
        again = self.machine.run(*self.words)
        new = {(s, n + 1): found for (s, n), found in self.taken.items()}
        if self.taken and not listed & self.taken.keys():
            assert again.returncode == 0, again.stderr
            # The number of a withdrawn generation is not used again.
            kept = self.machine.kept
            there = self.machine.check(certain=set(kept), possible=kept | self.taken | new, fresh=False)
            assert len(there - kept.keys()) == len(self.taken)
        else:
            assert again.returncode in {0, 2, 6}, again.stderr
            wanted = self.certain | self.taken.keys() | new.keys()
            self.machine.check(certain=wanted, possible=self.machine.kept | self.taken | new, fresh=False)


def _no_second_fsync(log: list[str]) -> None:
    """What a failed fsync was to make durable is not synced again: the kernel may have forgotten it."""
    failed: set[str] = set()
    for line in log:
        _, kind, path = line.removesuffix(" !").split(" ", 2)
        if kind == "unlink":
            # The file whose write failed is removed. Later files of its directory, or of the directory above,
            # which is synced for a new directory, are other writes.
            failed -= {os.path.dirname(path), os.path.dirname(os.path.dirname(path))}
        if path.endswith("data.mdb") and "write" in kind:
            # Another transaction: it writes all of its pages, and none that the kernel may have forgotten.
            failed.discard(path)
        # The folders of caches may be tried again: what is in them is worth nothing.
        if kind in {"fsync", "fdatasync"} and ("/cache/" not in path or path.endswith(".mdb")):
            assert path not in failed, f"{path} was synced again after that had failed"
            if line.endswith("!"):
                failed.add(path)


def sweep(machine: Machine, library: Path, command: str, kind: str, every: int) -> Counter[str]:
    """Let calls fail, `every` apart, with each error, once and from then on."""
    faults = Faults(machine, library, command)
    count = faults.calls(kind)
    assert count > 10
    ways = [
        (act, on)
        for act in (CHANGES if kind == "change" else READS)
        for on in (False, True)
        if not (on and act == "EINTR")  # Python tries again for ever
    ]
    # The faults are spread: the first call that fails is another one for each.
    for position, (act, on) in enumerate(ways):
        first = 1 + (position * every // len(ways) + COMMANDS.index(command)) % every
        for at in range(first, count + 1, every):
            faults.one(kind, act, at, on=on)
    return faults.injected


def summary(command: str, kind: str, injected: Counter[str]) -> str:
    kinds = ", ".join(f"{count} {act}" for act, count in sorted(injected.items()))
    return f"failed: {command}, {kind}: {injected.total()} calls ({kinds})"


@pytest.mark.parametrize("kind", ["change", "read"])
@pytest.mark.parametrize("command", ["snapshot", "prune"])
def test_some_calls_that_fail_lose_nothing(machine, library, report, command, kind) -> None:
    report.append(summary(command, kind, sweep(machine, library, command, kind, EVERY[kind])))
    print(report[-1])


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["change", "read"])
@pytest.mark.parametrize("command", COMMANDS)
def test_any_call_that_fails_loses_nothing(machine, library, report, command, kind) -> None:
    report.append(summary(command, kind, sweep(machine, library, command, kind, 1 if kind == "change" else 7)))
    print(report[-1])


@pytest.mark.parametrize("only", ["write", "pwrite"])
@pytest.mark.parametrize("command", ["snapshot", "prune"])
def test_short_writes_are_continued(machine, library, command, only) -> None:
    """All of them write half of what they are given."""
    faults = Faults(machine, library, command)
    faults.sweep.reset()
    done, log = faults.sweep.run("short", 1, on=True, only=only)
    assert any(line.endswith("!") for line in log)
    faults.check(done)
    if only == "write":
        assert done.returncode == 0


@pytest.mark.parametrize("only", ["fsync", "fdatasync"])
@pytest.mark.parametrize("command", ["snapshot", "prune"])
def test_what_lies_about_syncing_is_not_noticed_and_harms_nothing_while_the_power_stays(
    machine, library, command, only
) -> None:
    faults = Faults(machine, library, command)
    faults.sweep.reset()
    done, log = faults.sweep.run("lie", 1, on=True, only=only)
    assert any(line.endswith("!") for line in log)
    assert done.returncode == 0
    faults.check(done)
