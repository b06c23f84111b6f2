"""What a loss of power left of a store, held against what was guaranteed (tests/support/store_histories.py)."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import castore
from castore.crypto import Identity
from castore.errors import NotFoundError
from castore.maintenance.verify import verify as verify_store
from castore.services.sources import file_source
from castore.storage import LocalStorage
from castore.store import MachinePaths, NewStore, Store, StoreOptions
from castore.store.format.names import session_name
from castore.store.format.session_key import read_session, session_numbers
from tests.support import store_histories
from tests.support.power_loss_disk import Disk, DiskFiles, Mark, State, Step, cuts
from tests.support.store_histories import (
    ROOT,
    SERVICES,
    Content,
    DurabilityMonitor,
    Guarantee,
    SimulatedHost,
    restored,
)
from tests.support.stores import take_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable

CHANCES = 4
"""States by chance, a cut."""
OLD_INDEX = 0.25
"""How many of the states are looked at with the index of that time."""


class PowerLossChecker:
    """Looks at what a loss of power left of a host's store."""

    def __init__(self, host: SimulatedHost, monitor: DurabilityMonitor | None = None) -> None:
        self.host = host
        self.kept = monitor.kept if monitor is not None else []
        self.chance = random.Random(f"inspect {host.seed}")
        self.counts: Counter[str] = Counter()
        self._scratch = 0
        dump = host.folder / "next"
        content = self.chance.choice([*host.dumps.values()])[:9000] + self.chance.randbytes(500)
        dump.write_bytes(content)
        self._next = {}
        for service in SERVICES:
            sources = host.write_content(service, Content("", host.trees[service], host.dumps[service]))
            self._next[service] = (
                sources | {"dump": file_source(str(dump))},
                Content("next", host.trees[service], content),
            )

    def _fresh(self) -> Path:
        self._scratch += 1
        return self.host.folder / f"scratch-{self._scratch}"

    def look(self, state: State, known: Guarantee | None, step: int) -> None:
        """Check all that was guaranteed."""
        known = known or Guarantee()
        host, chance = self.host, self.chance
        scratch = self._fresh()
        files = DiskFiles(Disk(state))
        old = next((path for at, path in reversed(self.kept) if at <= step), None)
        if old is not None and chance.random() < OLD_INDEX:
            self.counts["with the old index"] += 1
            shutil.copytree(old, scratch / "cache")
            _spoil(scratch / "cache", chance)
        places = MachinePaths(str(host.folder / "state"), str(scratch / "cache"))
        readers = {name: host.identities[name] for name in known.readers}
        if not known.begun:
            readers = {"first": host.identities["first"]}
            try:
                Store.read_id(LocalStorage(ROOT, files=files))
            except NotFoundError:
                self.counts["begun again"] += 1
                storage = LocalStorage(ROOT, create=True, files=files)
                again = Identity.generate()
                readers = {"again": again}
                to = [(again.recipient, "again")]
                Store.create(storage, places, to, lambda: again, NewStore(average_chunk_size=store_histories.AVERAGE)).close()
        reader = readers[chance.choice(sorted(readers))]
        # The machine's memory is that of the end of the history.
        storage = LocalStorage(ROOT, files=files)
        # So are the admins that it trusts: earlier ones are given.
        trust = [one.admin.public for one in host.identities.values()]
        with Store.open(storage, places, lambda: reader, StoreOptions(accept_older=True, trust=trust)) as store:
            store.sync()
            assert store.damaged == {}
            self._generations(store, known, scratch)
            found = verify_store(store, castore.Progress(), read_data=True)
            assert found.sound, (found.damage, found.affected)
            _all_open(store, readers.values())
            self._go_on(store, files, scratch)
        assert files.left_open() == []
        shutil.rmtree(scratch)

    def _generations(self, store: Store, known: Guarantee, scratch: Path) -> None:
        listed = {(one.service, one.number) for one in store.generations.all()}
        assert known.whole.keys() <= listed, "an acknowledged generation is not there"
        assert listed <= known.whole.keys() | known.maybe.keys(), "a generation is there that must not be"
        for key in listed:
            expected = (known.whole[key],) if key in known.whole else known.maybe[key]
            assert restored(store, key, str(scratch / "out")) in expected, key
        self.counts["restored"] += len(listed)

    def _go_on(self, store: Store, files: DiskFiles, scratch: Path) -> None:
        service = self.chance.choice(SERVICES)
        sources, content = self._next[service]
        taken = take_snapshot(store, service, sources, revision="next")
        assert restored(store, (service, taken.number), str(scratch / "out")) == content
        disk, tmp = files.disk, f"{ROOT}/tmp/"
        assert disk.worst().but(tmp) == disk.live().but(tmp), "what the next snapshot wrote is not durable"


def _all_open(store: Store, identities: Iterable[Identity]) -> None:
    for session, numbers in session_numbers(store.storage).items():
        number, record = read_session(store.storage, session, numbers, store.keys.writer_key)
        name = session_name(session, number)
        for identity in identities:
            assert record.data_key(name, session, identity) is not None, f"{name} does not open to all"


def _spoil(cache: Path, chance: random.Random) -> None:
    """Let the caches, which are never synced, be what a loss of power leaves of them."""
    for folder in ("base-cache", "scan"):
        for path in sorted(cache.glob(f"*/*/{folder}/*")):
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


def check_all_losses(host: SimulatedHost, monitor: DurabilityMonitor | None = None, begin: int = 0) -> Counter[str]:
    """Take the power away at every place of a host's log, from one on; return what was counted."""
    checker = PowerLossChecker(host, monitor)
    counts = checker.counts
    distinct = set()
    looked = set()
    for cut in cuts(host.disk.log, random.Random(f"cuts {host.seed}"), CHANCES, begin):
        marked = cut.step and isinstance(host.disk.log[cut.step - 1], Mark)
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
                checker.look(state, cut.known, cut.step)
            except BaseException as error:
                error.add_note(
                    f"seed {host.seed}, step {cut.step} of {len(host.disk.log)}, {label}; history: {host.done}; "
                    f"before: {shown(host.disk.log[max(cut.step - 12, 0) : cut.step])}"
                )
                raise
    counts["distinct"] = len(distinct)
    return counts


def shown(log: list[Step | Mark]) -> list[str]:
    return ["mark" if isinstance(one, Mark) else " ".join(str(a)[:40] for a in one) for one in log]
