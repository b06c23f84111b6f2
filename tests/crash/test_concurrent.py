"""Many castores at work on one store, stopped and killed at random: nothing that is reachable is ever missing.

On one machine, where a lock keeps commits and removals apart; and on a place without a lock, each on a
machine of its own, where what is to be removed is set aside first.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import castore
from castore.crypto import Identity
from castore.maintenance.compact import compact
from castore.maintenance.verify import verify
from castore.storage import LocalStorage
from castore.store import MachinePaths, NewStore, Store
from tests.support.checkout import ROOT
from tests.support.store_worker import KEPT, Worker, check_generation

if TYPE_CHECKING:
    from collections.abc import Iterator

ROLES = (
    *(("one", "snapshots", "web"), ("two", "snapshots", "web"), ("three", "snapshots", "mail")),
    *(("four", "snapshots", "wiki"), ("pruner", "prunes", ""), ("verifier", "verifies", "")),
)
GRACE = 4.0
"""Seconds; what is stopped is stopped for far less where there is no lock."""


@pytest.fixture
def folder() -> Iterator[Path]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="castore-concurrent-", dir=memory) as path:
        yield Path(path)


class Workers:
    """The processes, and what is done to them."""

    def __init__(self, folder: Path, rng: random.Random, *, lockless: bool) -> None:
        self.folder = folder
        self.rng = rng
        self.lockless = lockless
        self.counts: Counter[str] = Counter()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        identity = Identity.generate()
        for name in ("logs", "live", "machines"):
            (folder / name).mkdir()
        (folder / "identity").write_text(identity.text() + "\n")
        storage = LocalStorage(str(folder / "store"), create=True)
        first = Worker(folder, ROLES[0][0], lockless=lockless, grace=GRACE)
        recipients = [(identity.recipient, "")]
        Store.create(storage, first.places, recipients, lambda: identity, NewStore(average_chunk_size=4096)).close()
        if lockless:
            for name, _, _ in ROLES[1:]:
                worker = Worker(folder, name, lockless=True, grace=GRACE)
                with worker.open() as store:
                    store.admin.adopt(name, maintain=True)

    def start(self, name: str, role: str, service: str) -> None:
        self.counts["started"] += 1
        words = [str(self.folder), name, role, service, str(self.rng.randrange(1 << 30))]
        command = [sys.executable, "-m", "tests.support.store_worker", *words, "yes" if self.lockless else "no", str(GRACE)]
        self.running[name] = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def disturb(self) -> None:
        """Stop one for a while, or kill it and have another go on."""
        name, role, service = self.rng.choice(ROLES)
        process = self.running[name]
        assert process.poll() is None, self.failures() or f"{name} has ended: {process.returncode}"
        if self.rng.random() < 0.5:
            self.counts["stopped"] += 1
            process.send_signal(signal.SIGSTOP)
            time.sleep(self.rng.random() * (0.3 if self.lockless else 0.8))
            process.send_signal(signal.SIGCONT)
        else:
            self.counts["killed"] += 1
            process.kill()
            process.wait()
            self.start(name, role, service)

    def run(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        try:
            for role in ROLES:
                self.start(*role)
            time.sleep(min(2, seconds / 5))
            while time.monotonic() < deadline:
                time.sleep(self.rng.random() * 0.4)
                self.disturb()
                if self.failures():
                    break
        finally:
            for process in self.running.values():
                process.kill()
            for process in self.running.values():
                process.wait()
        longest = max((line["longest"] for line in self.lines() if "longest" in line), default=0)
        self.counts["ms the longest commit took"] = int(longest * 1000)
        if not (failures := self.failures()):
            return
        if self.lockless and longest > GRACE * 0.9:
            pytest.skip(f"a commit took {longest:.1f} s: this machine is too busy to prove anything")
        self.look()
        pytest.fail(f"now that nobody is at work, all is whole; but before: {failures}")

    def lines(self) -> Iterator[dict]:
        for log in sorted((self.folder / "logs").iterdir()):
            for line in log.read_bytes().split(b"\n"):
                # The last one may have been cut by a kill.
                if line.endswith(b"}"):
                    yield json.loads(line)

    def failures(self) -> list[str]:
        return [line["failed"] for line in self.lines() if "failed" in line]

    def look(self) -> None:
        """Nothing that was acknowledged is missing, but what was to be forgotten; all is whole."""
        taken: dict[tuple[str, int], int] = {}
        forgotten: set[tuple[str, int]] = set()
        for line in self.lines():
            if "taken" in line:
                assert (line["taken"], line["number"]) not in taken, "a number was given twice"
                taken[line["taken"], line["number"]] = line["seed"]
                self.counts["taken"] += 1
            elif "forgetting" in line:
                forgotten |= {(line["forgetting"], number) for number in line["numbers"]}
            elif "verified" in line:
                self.counts["verified"] += 1
            elif "restored" in line:
                self.counts["restored"] += 1
            elif "removed" in line:
                self.counts["compacted"] += 1
                self.counts["packs removed"] += line["removed"]
            elif "false_alarm" in line:
                self.counts["verified during a prune"] += 1
        first = Worker(self.folder, ROLES[0][0], lockless=self.lockless, grace=0)
        fresh = MachinePaths(first.places.state, str(self.folder / "fresh"))
        identity = Identity.parse((self.folder / "identity").read_text(), None)
        for places in (first.places, fresh):
            with Store.open(LocalStorage(str(self.folder / "store")), places, lambda: identity) as store:
                store.sync()
                listed = {(one.service, one.number): one.revision for one in store.generations.all()}
                assert taken.keys() - forgotten <= listed.keys()
                for (service, number), revision in listed.items():
                    if (service, number) in taken:
                        assert revision == f"s{taken[service, number]}"
                    check_generation(store, service, number, self.folder)
                # The data is compared above. A copy of a chunk may depend on what was deleted, where another
                # copy is whole.
                found = verify(store, castore.Progress(), packs=True)
                assert found.sound, (found.damage, found.affected)
        # What was left under way is cleared away, and all is still there.
        with Store.open(LocalStorage(str(self.folder / "store")), fresh, lambda: identity) as store:
            compact(store, castore.Progress(), max_unused=0, grace_seconds=0, unfinished_seconds=0)
            compact(store, castore.Progress(), max_unused=0, grace_seconds=0, unfinished_seconds=0)
            assert verify(store, castore.Progress(), packs=True).sound
            assert {(one.service, one.number) for one in store.generations.all()} == listed.keys()
            for service, number in listed:
                check_generation(store, service, number, self.folder)
        assert len(listed) >= KEPT


def crowded(folder: Path, seconds: float, seed: int, *, lockless: bool) -> str:
    workers = Workers(folder, random.Random(seed), lockless=lockless)
    workers.run(seconds)
    workers.look()
    assert workers.counts["killed"]
    assert workers.counts["taken"]
    summary = ", ".join(f"{count} {what}" for what, count in sorted(workers.counts.items()))
    return f"at once, {'without' if lockless else 'with'} a lock: {seconds:.0f} s: {summary}"


@pytest.mark.parametrize("lockless", [False, True], ids=["with a lock", "without a lock"])
def test_nothing_reachable_goes_missing(folder: Path, lockless: bool) -> None:
    print(crowded(folder, 7, 1, lockless=lockless))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("lockless", [False, True], ids=["with a lock", "without a lock"])
def test_nothing_reachable_goes_missing_for_long(folder: Path, lockless: bool) -> None:
    print(crowded(folder, 600, random.randrange(1 << 30), lockless=lockless))
