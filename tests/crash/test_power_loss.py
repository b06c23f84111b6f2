"""The power is lost behind every operation of the file system: what was acknowledged is there, and whole.

A history (tests/support/histories.py: how to add a step to it is said there) runs once, on a disk that
tells what is durable from what is not (tests/support/powerloss.py), and is logged. Then, for each place in
the log, what the disk may hold is built in several ways: nothing that was not synced is there; everything
is; names without contents; names, and zeros for contents; and by chance, a part of it, torn. States that
differ are each looked at once for all that was promised when they could come about:

- the store opens; or, if `init` had not returned, there is none, and `init` can be repeated;
- every generation that was acknowledged restores, byte for byte, and so does any other that is listed;
- `verify`, which reads all data, finds nothing;
- each acknowledged recipient opens every session;
- the next snapshot succeeds, restores, and is durable.

The index is built anew for that; in some of the states it is as it was at that moment, beside caches
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
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

import castore
import castore.store.pack
from castore.errors import NotFoundError, UsageError
from castore.sealing import Identity
from castore.storage import LocalStorage
from castore.store import Places, Store
from castore.store.sessions import decode_session, session_name, session_numbers
from tests.support import histories
from tests.support.histories import ROOT, SERVICES, Content, Promise, Watch, World, history, restored, run
from tests.support.powerloss import CHANGES, ON, Disk, DiskFiles, Fault, Killed, Mark, State, cuts

CHANCES = 4
"""States by chance, a cut."""
OLD_INDEX = 0.25
"""How many of the states are looked at with the index of that time."""
_CHOSEN = os.environ.get("CASTORE_TEST_POWER_SEEDS", "").split()
SEEDS = _CHOSEN or [str(seed) for seed in range(12)]
MORE_SEEDS = _CHOSEN or [str(seed) for seed in range(1000, 1200)]


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(castore.store.pack, "PACK_BYTES", histories.PACK_BYTES)


@pytest.fixture
def folder():
    """A folder in memory: the index is none of what is tested here."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="castore-power-", dir=memory) as path:
        yield Path(path)


class Inspector:
    """Looks at what a loss of power left of a world's store."""

    def __init__(self, world: World, watch: Watch | None = None) -> None:
        self.world = world
        self.kept = watch.kept if watch is not None else []
        self.chance = random.Random(f"inspect {world.seed}")
        self.counts: Counter[str] = Counter()
        self._scratch = 0
        dump = world.folder / "next"
        content = self.chance.choice([*world.dumps.values()])[:9000] + self.chance.randbytes(500)
        dump.write_bytes(content)
        self._next = {}
        for service in SERVICES:
            sources = world.plant(service, Content("", world.trees[service], world.dumps[service]))
            self._next[service] = (
                sources | {"dump": castore.FileSource(str(dump))},
                Content("next", world.trees[service], content),
            )

    def _fresh(self) -> Path:
        self._scratch += 1
        return self.world.folder / f"scratch-{self._scratch}"

    def look(self, state: State, known: Promise | None, step: int) -> None:
        """Check all that was promised."""
        known = known or Promise()
        world, chance = self.world, self.chance
        scratch = self._fresh()
        files = DiskFiles(Disk(state))
        old = next((path for at, path in reversed(self.kept) if at <= step), None)
        if old is not None and chance.random() < OLD_INDEX:
            self.counts["with the old index"] += 1
            shutil.copytree(old, scratch / "cache")
            _spoil(scratch / "cache", chance)
        places = Places(str(world.folder / "state"), str(scratch / "cache"))
        readers = {name: world.identities[name] for name in known.readers}
        if not known.begun:
            readers = {"first": world.identities["first"]}
            try:
                Store.read_id(LocalStorage(ROOT, files=files))
            except NotFoundError:
                self.counts["begun again"] += 1
                storage = LocalStorage(ROOT, create=True, files=files)
                readers = {"again": Identity.generate()}
                to = [(readers["again"].recipient, "again")]
                Store.create(storage, places, to, average=histories.AVERAGE).close()
        reader = readers[chance.choice(sorted(readers))]
        with Store.open(LocalStorage(ROOT, files=files), places, lambda: reader) as store:
            store.sync()
            assert store.damaged == {}
            self._generations(store, known, scratch)
            found = castore.verify(store, castore.Tally(), read_data=True)
            assert found.sound, (found.damage, found.affected)
            _all_open(store, readers.values())
            self._go_on(store, scratch)
        assert files.left_open() == []
        shutil.rmtree(scratch)

    def _generations(self, store: Store, known: Promise, scratch: Path) -> None:
        listed = {(one.service, one.number) for one in store.generations()}
        assert known.whole.keys() <= listed, "an acknowledged generation is not there"
        assert listed <= known.whole.keys() | known.maybe.keys(), "a generation is there that must not be"
        for key in listed:
            expected = (known.whole[key],) if key in known.whole else known.maybe[key]
            assert restored(store, key, str(scratch / "out")) in expected, key
        self.counts["restored"] += len(listed)

    def _go_on(self, store: Store, scratch: Path) -> None:
        service = self.chance.choice(SERVICES)
        sources, content = self._next[service]
        taken = castore.snapshot(store, service, sources, revision="next")
        assert restored(store, (service, taken.number), str(scratch / "out")) == content
        disk, tmp = store.storage._files.disk, f"{ROOT}/tmp/"
        assert disk.worst().but(tmp) == disk.live().but(tmp), "what the next snapshot wrote is not durable"


def _all_open(store: Store, identities) -> None:
    for session, numbers in session_numbers(store.storage).items():
        name = session_name(session, numbers[-1])
        record = decode_session(session, numbers[-1], store.storage.get(name), store.writer_key)
        for identity in identities:
            assert record.data_key(name, session, identity) is not None, f"{name} does not open to all"


def _spoil(cache: Path, chance: random.Random) -> None:
    """Let the caches, which are never synced, be what a loss of power leaves of them."""
    for folder in ("reference", "scan"):
        for path in sorted(cache.glob(f"*/{folder}/*")):
            size, kind = path.stat().st_size, chance.randrange(5)
            if kind == 0:
                path.unlink()
            elif kind == 1:
                os.truncate(path, chance.randint(0, size))
            elif kind == 2:
                path.write_bytes(bytes(size))
            elif kind == 3:
                at = chance.randint(0, size)
                path.write_bytes(path.read_bytes()[:at] + bytes(size - at))


def look_at_all(world: World, watch: Watch | None = None, begin: int = 0) -> Counter[str]:
    """Take the power away at every place of a world's log, from one on; return what was counted."""
    inspector = Inspector(world, watch)
    counts = inspector.counts
    distinct = set()
    looked = set()
    for cut in cuts(world.disk.log, random.Random(f"cuts {world.seed}"), CHANCES, begin):
        marked = cut.step and isinstance(world.disk.log[cut.step - 1], Mark)
        counts["cuts"] += not marked
        for label, state in cut.losses:
            counts["states"] += not marked
            distinct.add(state.whole)
            # Promises grow, or are about other things: of one state, each is looked at.
            key = state.but(f"{ROOT}/tmp/"), id(cut.known)
            if key in looked:
                continue
            looked.add(key)
            counts["looked at"] += 1
            try:
                inspector.look(state, cut.known, cut.step)
            except BaseException as error:
                error.add_note(
                    f"seed {world.seed}, step {cut.step} of {len(world.disk.log)}, {label}; history: {world.done}; "
                    f"before: {_shown(world.disk.log[max(cut.step - 12, 0) : cut.step])}"
                )
                raise
    counts["distinct"] = len(distinct)
    return counts


def _shown(log: list) -> list[str]:
    return ["mark" if isinstance(one, Mark) else " ".join(str(a)[:40] for a in one) for one in log]


def recorded(folder: Path, seed: str, length: int, monkeypatch: pytest.MonkeyPatch, **options) -> tuple[World, Watch]:
    """Run a history, and return what it was run on."""
    world = World(folder, seed, **options)
    with monkeypatch.context() as patch:
        watch = Watch(world, patch)
        run(world, history(seed, length))
    return world, watch


@pytest.mark.parametrize("seed", SEEDS)
def test_whenever_the_power_is_lost_what_was_acknowledged_is_whole(
    folder: Path, seed: str, monkeypatch: pytest.MonkeyPatch, record_property
) -> None:
    began = time.monotonic()
    world, watch = recorded(folder, seed, 7, monkeypatch)
    counts = look_at_all(world, watch)
    counts["told"] = watch.told
    record_property("power loss", dict(counts))
    print(f"seed {seed}: {world.done}\n{dict(counts)} in {time.monotonic() - began:.1f} s")


KILLED = {
    "init": [],
    "snapshot": ["init", "snapshot"],
    "add_recipient": ["init", "snapshot", "snapshot"],
    "remove_recipient": ["init", "snapshot", "add_recipient"],
    "delete": ["init", "snapshot", "snapshot", "snapshot"],
}
"""Steps, and what comes before each."""


@pytest.mark.parametrize("name", KILLED)
def test_what_a_killed_process_left_unsynced_is_not_rested_on(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, record_property
) -> None:
    """A process is killed, and the kernel goes on: what it had not synced is seen by the next, until the power goes."""
    counts: Counter[str] = Counter()
    for number in range(100):
        world = World(folder / f"{number}", f"killed {name} {number}")
        run(world, KILLED[name])
        world.files.fault = Fault(number, Killed, ON, CHANGES)
        with contextlib.suppress(Killed):
            histories.STEPS[name](world)
        fired, world.files.fault = world.files.fault.fired, None
        world.files.forget()
        begin = len(world.disk.log)
        try:
            again(world, name)
            counts += look_at_all(world, begin=begin)
        except BaseException as error:
            error.add_note(f"killed in front of operation {number}; {_shown(world.disk.log[begin - 12 :])}")
            raise
        shutil.rmtree(world.folder)
        if not fired:
            break
    assert not fired, "there are more operations than were tried"
    record_property("power loss", dict(counts))
    print(f"{name}: {number} operations, {dict(counts)}")


def again(world: World, name: str) -> None:
    """Do again what was broken off."""
    if name == "init":
        # The machine that was killed has the writer key of each store that it began.
        with contextlib.suppress(UsageError):
            histories.STEPS[name](world)
        name = "snapshot"
    histories.STEPS[name](world)
