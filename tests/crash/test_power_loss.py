"""The power is lost after every operation of the file system: what was acknowledged exists, and is intact.

A history (tests/support/store_histories.py: how to add a step to it is said there) runs once, on a disk that
distinguishes what is durable from what is not (tests/support/power_loss_disk.py), and is logged. Then, for each place in
the log, what the disk may hold is built in several ways: nothing that was not synced is there; everything
is; names without contents; names, and zeros for contents; and by chance, a part of it, torn. States that
differ are each looked at once for all that was guaranteed when they could come about:

- the store opens; or, if `init` had not returned, there is none, and `init` can be repeated;
- every generation that was acknowledged restores, byte for byte, and so does any other that is listed;
- `verify`, which reads all data, finds nothing;
- each acknowledged recipient opens every session;
- the next snapshot succeeds, restores, and is durable.

The index is rebuilt for that; in some of the states it is as it was at that moment, with caches
that were never synced and are cut, zeroed or gone.

What a store under `tmp/` is left with takes part in no check but the opening: states that differ in
nothing else are one state ("distinct" in what is printed: pytest -rP, or the summary of the run).

Histories are drawn from seeds: CASTORE_TEST_POWER_SEEDS="3 17" runs those, and no others. A seed gives
the same steps and the same contents; keys are new each time, and threads run as they like.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from castore.errors import CastoreError, UsageError
from castore.storage import LocalStorage
from castore.storage.base import Writer
from castore.store import MachinePaths, Store
from castore.store.format.names import pack_name
from tests.support import store_histories
from tests.support.power_loss_checks import CHANCES, check_all_losses, shown
from tests.support.power_loss_disk import CHANGES, ON, Disk, DiskFiles, Fault, Killed, cuts
from tests.support.repairs import repair_store
from tests.support.store_histories import DurabilityMonitor, SimulatedHost, history, restored, run

pytestmark = pytest.mark.usefixtures("small_packs")

LENGTH = 8
"""Steps of a history, in addition to `init` and a first snapshot."""
_CHOSEN = os.environ.get("CASTORE_TEST_POWER_SEEDS", "").split()
SEEDS = _CHOSEN or [str(seed) for seed in range(16)]
MORE_SEEDS = _CHOSEN or [str(seed) for seed in range(1000, 1200)]


PLAIN = ["init", "snapshot", "snapshot", "add_recipient", "snapshot"]


def recorded(folder: Path, seed: str, length: int, monkeypatch: pytest.MonkeyPatch, **options) -> tuple[SimulatedHost, DurabilityMonitor]:
    """Run a history, and return what it was run on."""
    host = SimulatedHost(folder, seed, **options)
    with monkeypatch.context() as patch:
        monitor = DurabilityMonitor(host, patch)
        run(host, history(seed, length))
    return host, monitor


@pytest.mark.parametrize("seed", SEEDS)
def test_whenever_the_power_is_lost_what_was_acknowledged_is_whole(
    folder: Path, seed: str, monkeypatch: pytest.MonkeyPatch, record_property
) -> None:
    began = time.monotonic()
    host, monitor = recorded(folder, seed, LENGTH, monkeypatch)
    counts = check_all_losses(host, monitor)
    counts["reported"] = monitor.reported
    record_property("power loss", dict(counts))
    print(f"seed {seed}: {host.done}\n{dict(counts)} in {time.monotonic() - began:.1f} s")


@pytest.mark.slow
@pytest.mark.parametrize("seed", MORE_SEEDS)
def test_and_in_many_more_and_longer_histories(
    folder: Path, seed: str, monkeypatch: pytest.MonkeyPatch, record_property
) -> None:
    host, monitor = recorded(folder, seed, 3 * LENGTH, monkeypatch)
    record_property("power loss", dict(check_all_losses(host, monitor)))


class WithoutLinks(DiskFiles):
    """A file system that has no hard links: names are given by rename."""

    links = False


class ShortWrites(DiskFiles):
    """Takes of each write what it likes, at least a byte."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self._chance = random.Random("short")

    def taken(self, data: bytes) -> int:
        return self._chance.choice([1, self._chance.randint(1, len(data)), len(data)])


@pytest.mark.parametrize("files", [WithoutLinks, ShortWrites])
def test_and_on_file_systems_that_are_poor(
    folder: Path, files: type[DiskFiles], monkeypatch: pytest.MonkeyPatch, record_property
) -> None:
    host, monitor = recorded(folder, "poor", LENGTH, monkeypatch, files=files)
    record_property("power loss", dict(check_all_losses(host, monitor)))


KILLED = {
    "init": [],
    "first_snapshot": ["init"],
    "snapshot": ["init", "snapshot"],
    "add_recipient": ["init", "snapshot", "snapshot"],
    "remove_recipient": ["init", "snapshot", "add_recipient"],
    "forget": ["init", "snapshot", "snapshot", "snapshot"],
    "compact": ["init", "snapshot", "snapshot", "snapshot", "forget", "forget"],
    "compact_without_lock": ["init", "snapshot", "snapshot", "snapshot", "forget", "forget"],
}
"""Steps, and what comes before each."""


@pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KILLED)
def test_what_a_killed_process_left_unsynced_is_not_rested_on(folder: Path, name: str, record_property, every: int) -> None:
    """A process is killed, and the kernel goes on: what it had not synced is seen by the next, until the power goes."""
    counts = killed_everywhere(folder, name, every)
    record_property("power loss", dict(counts))
    print(f"{name}: {dict(counts)}")


def killed_everywhere(folder: Path, name: str, every: int = 1, **options) -> Counter[str]:
    """Kill a step before its operations, `every` apart, do it again, and look at every loss of power from there on."""
    counts: Counter[str] = Counter()
    for number in range(len(name) % every, 100, every):
        host = SimulatedHost(folder / f"{number}", f"killed {name} {number}", **options)
        run(host, KILLED[name])
        host.files.fault = Fault(number, Killed, ON, CHANGES)
        with contextlib.suppress(Killed):
            store_histories.STEPS[name.removeprefix("first_")](host)
        fired, host.files.fault = host.files.fault.fired, None
        host.files.forget()
        begin = len(host.disk.log)
        try:
            again(host, name)
            counts += check_all_losses(host, begin=begin)
        except BaseException as error:
            error.add_note(f"killed before operation {number}; {shown(host.disk.log[begin - 12 :])}")
            raise
        shutil.rmtree(host.folder)
        if not fired:
            break
    assert not fired, "there are more operations than were tried"
    return counts


def again(host: SimulatedHost, name: str) -> None:
    """Do again what was broken off."""
    if name == "init":
        # The machine that was killed has the writer key of each store that it began.
        with contextlib.suppress(UsageError):
            store_histories.STEPS[name.removeprefix("first_")](host)
    store_histories.STEPS["same_again" if name in {"init", "snapshot", "first_snapshot"} else name](host)


# Repair, which begins with a store that is not whole


@pytest.mark.parametrize("seed", range(4))
def test_a_repair_that_loses_its_power_is_done_by_the_next(folder: Path, seed: int, record_property) -> None:
    host = SimulatedHost(folder, f"repair {seed}")
    run(host, ["init", "snapshot", "snapshot", "snapshot"])
    with host.open("first") as store:
        store.sync()
        packs = [pack_name(pack) for pack, _ in store.index.packs.lengths()]
    damaged = host.chance.sample(packs, 2)
    for name in damaged:
        _damage(host, f"{store_histories.ROOT}/{name}")
    begin = len(host.disk.log)
    with host.open("first") as store:
        after = repair_store(store)[1].after
        lost = {(hit.service, hit.number) for hit in after.affected}
    assert after.damage == []
    chance = random.Random(f"repair cuts {seed}")
    looked, counts = set(), Counter()
    for cut in cuts(host.disk.log, chance, CHANCES, begin):
        counts["cuts"] += 1
        for label, state in cut.losses:
            counts["states"] += 1
            key = state.but(f"{store_histories.ROOT}/tmp/")
            if key in looked:
                continue
            looked.add(key)
            counts["looked at"] += 1
            scratch = folder / f"cut{counts['looked at']}"
            places = MachinePaths(str(host.folder / "state"), str(scratch / "cache"))
            storage = LocalStorage(store_histories.ROOT, files=DiskFiles(Disk(state)))
            with Store.open(storage, places, lambda: host.identities["first"]) as store:
                after = repair_store(store)[1].after
                assert after.damage == [], label
                # Without the index of before, a pack with a broken footer is lost as a whole: here none is.
                assert {(hit.service, hit.number) for hit in after.affected} <= lost, label
                for key, content in host.guaranteed.whole.items():
                    if key not in lost:
                        assert restored(store, key, str(scratch / "out")) == content, label
            shutil.rmtree(scratch)
    record_property("power loss", dict(counts))


def _damage(host: SimulatedHost, path: str) -> None:
    """Flip a bit in the first record of a pack, durably."""
    at = 16 + 16 + 5
    number = host.disk.find(path)
    data = bytearray(host.disk.nodes[number].live)
    data[at] ^= 1
    host.disk.do("write", number, 0, bytes(data))
    host.disk.do("fsync", number)


# Stores that are wrong are found out


class NoDirectorySync(DiskFiles):
    """Does not sync directories."""

    def sync_directory(self, path):
        self.disk.directory(path)


class NoFileSync(DiskFiles):
    """Does not sync files."""

    def fsync(self, descriptor):
        pass


class NoSyncAbove(DiskFiles):
    """Syncs the directory that an object is in, and not what that is in."""

    def sync_directory(self, path):
        if path.startswith(store_histories.ROOT + "/"):
            super().sync_directory(path)


class NamedFirst(DiskFiles):
    """Syncs a file only when it has its name, and that is durable."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self._late: list[int] = []

    def fsync(self, descriptor):
        self._late.append(self._of(descriptor)[0])

    def sync_directory(self, path):
        super().sync_directory(path)
        with self.mutex:
            while self._late:
                self.disk.do("fsync", self._late.pop())


class GenerationFirst(LocalStorage):
    """Writes packs after the generation that needs them."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.late: list[tuple[Writer, str]] = []

    def create(self):
        return _Late(self, super().create())


class _Late(Writer):
    def __init__(self, storage: GenerationFirst, writer: Writer) -> None:
        self._storage, self._writer = storage, writer

    def write(self, data):
        self._writer.write(data)

    def commit(self, name):
        if name.startswith("packs/"):
            self._storage.late.append((self._writer, name))
            return
        self._writer.commit(name)
        while name.startswith("generations/") and self._storage.late:
            writer, late = self._storage.late.pop()
            writer.commit(late)

    def abort(self):
        if all(writer is not self._writer for writer, _ in self._storage.late):
            self._writer.abort()


class Unsettled(LocalStorage):
    """Takes for durable what a listing shows."""

    def sync_dir(self, folder):
        pass


class FoldersTrusted(LocalStorage):
    """Takes a folder that is there for durable."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self._folders |= {os.path.join(self._root, name) for name in self._files.listdir(self._root)}


FOUND_OUT = (AssertionError, CastoreError)
WRONG = {
    "that does not sync directories": {"files": NoDirectorySync},
    "that does not sync files": {"files": NoFileSync},
    "that does not sync what it makes directories in": {"files": NoSyncAbove},
    "that names files before it syncs them": {"files": NamedFirst},
    "that writes generations before packs": {"storage": GenerationFirst},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_store_is_found_out(folder: Path, wrong: str) -> None:
    host = SimulatedHost(folder, wrong, **WRONG[wrong])
    with pytest.raises(FOUND_OUT) as found:
        run(host, PLAIN)
        check_all_losses(host)
    print(f"a store {wrong}: {found.value}")


@pytest.mark.parametrize("wrong", [name for name in WRONG if "names files" not in name])
def test_a_store_that_reports_what_is_not_durable_is_detected_at_once(
    folder: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = SimulatedHost(folder, wrong, **WRONG[wrong])
    DurabilityMonitor(host, monkeypatch)
    with pytest.raises(AssertionError, match="is reported, and"):
        run(host, PLAIN)


@pytest.mark.parametrize("name", ["init", "snapshot", "add_recipient"])
def test_a_store_that_depends_on_what_a_killed_process_left_unsynced_is_detected(folder: Path, name: str) -> None:
    with pytest.raises(FOUND_OUT):
        killed_everywhere(folder, name, 2, storage=Unsettled)


def test_a_store_that_takes_a_folder_that_is_there_for_durable_is_found_out(folder: Path) -> None:
    with pytest.raises(FOUND_OUT):
        killed_everywhere(folder, "first_snapshot", 2, storage=FoldersTrusted)
