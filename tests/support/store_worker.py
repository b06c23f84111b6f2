"""What one of several processes does that are at work on a store at once: `python -m tests.support.store_worker`.

Each writes a line to its log before and after what it does, so that the process that killed it knows what to expect.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import castore
from castore.content.streams import StreamReader
from castore.crypto import Identity
from castore.errors import BusyError, DamageError, NotFoundError, ObjectMissingError
from castore.maintenance.compact import compact
from castore.maintenance.verify import verify
from castore.services.prune import forget
from castore.services.reading import read
from castore.services.selectors import select
from castore.services.snapshot import _OvertakenError
from castore.services.sources import Source, Tree, file_source
from castore.storage import LocalStorage
from castore.store import MachinePaths, Store
from tests.support.fault_sweep import plain_tree, stored_tree
from tests.support.stores import take_snapshot

KEPT = 3
"""Generations of each service that are not forgotten."""


class Lockless(LocalStorage):
    """A directory as other machines see it too: without a lock."""

    longest = 0.0
    """Seconds that a commit took, from its look at what is pending: less than the grace period, or it is no use."""

    @contextlib.contextmanager
    def lock(self, *, exclusive: bool = False) -> Iterator[bool]:
        began = time.monotonic()
        try:
            yield False
        finally:
            if not exclusive:
                Lockless.longest = max(Lockless.longest, time.monotonic() - began)


def dump_of(seed: int) -> bytes:
    """Return a dump: much of it is in those of other seeds too."""
    rng = random.Random(seed)
    pieces = [random.Random(1000 + rng.randrange(12)).randbytes(9000) for _ in range(5)]
    data = bytearray(b"".join(pieces))
    for _ in range(3):
        at = rng.randrange(len(data) - 8)
        data[at : at + 8] = rng.randbytes(8)
    return bytes(data)


def lay_tree(top: Path, seed: int) -> None:
    """Make a tree what it is at a time."""
    rng = random.Random(seed)
    (top / "sub").mkdir(parents=True, exist_ok=True)
    for number in range(4):
        (top / "sub" / f"file{number}").write_bytes(random.Random(rng.randrange(8)).randbytes(2000))
    (top / "large").write_bytes(random.Random(2000 + rng.randrange(6)).randbytes(20_000))


class Worker:
    """One process; folder: all that it and the others share."""

    def __init__(self, folder: Path, name: str, *, lockless: bool, grace: float) -> None:
        self.folder = folder
        self.name = name
        self.lockless = lockless
        self.grace = grace
        machine = folder / "machines" / (name if lockless else "one")
        self.places = MachinePaths(str(machine / "state"), str(machine / "cache"))
        self.identity = Identity.parse((folder / "identity").read_text(), None)

    def open(self) -> Store:
        kind = Lockless if self.lockless else LocalStorage
        return Store.open(kind(str(self.folder / "store")), self.places, lambda: self.identity)

    def report(self, **what: object) -> None:
        with open(self.folder / "logs" / self.name, "ab") as file:
            file.write(json.dumps(what).encode() + b"\n")

    def snapshots(self, service: str, rng: random.Random) -> None:
        """Take one generation after the other; the revision says what is in it."""
        live, dump = self.folder / "live" / self.name, self.folder / "live" / f"{self.name}.dump"
        while True:
            seed = rng.randrange(1 << 30)
            lay_tree(live, seed)
            dump.write_bytes(dump_of(seed))
            sources: dict[str, Source] = {"d": file_source(str(dump)), "t": Tree(str(live))}
            try:
                with self.open() as store, store.state.lock(service):
                    taken = take_snapshot(store, service, sources, revision=f"s{seed}")
                self.report(taken=service, number=taken.number, seed=seed, longest=Lockless.longest)
            except (BusyError, _OvertakenError):
                time.sleep(0.02)

    def prunes(self, rng: random.Random) -> None:
        """Forget what is old, and give the space back."""
        while True:
            with self.open() as store:
                store.sync()
                for service in store.generations.services():
                    with contextlib.suppress(BusyError), store.state.lock(service):
                        store.generations.sync()
                        old = store.generations.all(service)[KEPT:]
                        if old:
                            self.report(forgetting=service, numbers=[one.number for one in old])
                            forget(store, service, old)
                with contextlib.suppress(BusyError):
                    limits = {"max_unused": rng.choice((0, 0.1, 0.5)), "unfinished_seconds": rng.choice((0, 3600))}
                    done = compact(store, castore.Progress(), grace_seconds=self.grace, **limits)
                    assert not done.damaged, done.damaged
                    self.report(removed=done.removed, pending=done.pending_deletion, written=done.written_bytes)
            time.sleep(rng.random() * 0.1)

    def verifies(self, rng: random.Random) -> None:
        """Restore what is listed, and verify it all: what is found must still be so when it is looked at again."""
        while True:
            with self.open() as store:
                store.sync()
                listed = store.generations.all()
                for one in rng.sample(listed, min(2, len(listed))):
                    self.restores(store, one.service, one.number)
                # A prune takes packs away between the look at the list and the look at the pack.
                for last in (False, False, True):
                    try:
                        found = verify(store, castore.Progress(), packs=True)
                    except (DamageError, ObjectMissingError):
                        self.report(false_alarm=1)
                        continue
                    if found.sound:
                        self.report(verified=found.packs)
                        break
                    if last and found.affected:
                        self.still_there(store, [(hit.service, hit.number, hit.reason) for hit in found.affected])
                    self.report(false_alarm=len(found.damage))

    def restores(self, store: Store, service: str, number: int) -> None:
        for _attempt in range(3):
            store.sync()
            if store.generations.get(service, number) is None:
                return
            try:
                check_generation(store, service, number, self.folder)
            except (DamageError, NotFoundError, ObjectMissingError) as error:
                failure = f"{service}@{number}: {type(error).__name__}: {error}"
            else:
                self.report(restored=service, number=number)
                return
        store.sync()
        if store.generations.get(service, number) is not None:
            self.report(failed=failure)

    def still_there(self, store: Store, hits: list[tuple[str, int, str]]) -> None:
        store.sync()
        for service, number, _reason in hits:
            if store.generations.get(service, number) is not None:
                self.restores(store, service, number)


def check_generation(store: Store, service: str, number: int, folder: Path) -> None:
    """Restore a generation and compare it with what its revision says."""
    generation = store.generations.get(service, number)
    assert generation is not None
    seed = int(generation.revision[1:])
    with StreamReader(store) as reader:
        dump = b"".join(read(reader, select(store, f"{service}@#{number}:d")))
        part = generation.part("t")
        assert part is not None
        tree = {path: content for path, (_, content) in stored_tree(reader, part.content).items()}
    assert dump == dump_of(seed), f"{service}@{number}: wrong bytes"
    assert tree == tree_of(seed, folder), f"{service}@{number}: wrong tree"


def tree_of(seed: int, folder: Path) -> dict[bytes, object]:
    top = folder / f"expected-{os.getpid()}"
    lay_tree(top, seed)
    return {path: content for path, (_, content) in plain_tree(top).items()}


def main() -> None:
    folder, name, role, service, seed, lockless, grace = sys.argv[1:]
    worker = Worker(Path(folder), name, lockless=lockless == "yes", grace=float(grace))
    rng = random.Random(int(seed))
    try:
        if role == "snapshots":
            worker.snapshots(service, rng)
        elif role == "prunes":
            worker.prunes(rng)
        else:
            worker.verifies(rng)
    except BaseException as error:
        import traceback

        worker.report(failed=f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        raise


if __name__ == "__main__":
    main()
