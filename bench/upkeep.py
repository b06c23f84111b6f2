#!/usr/bin/env python3
"""What keeping a store costs: durability in a snapshot, verification, compaction.

    python bench/upkeep.py [--size BYTES] [--nights N] [--runs N] [--folder DIR]

Nights of a made-up dump (bench/data.py) and of a tree are stored with and without what makes them
durable (syncs of files, directories and of the index), in turns; figures are medians of the runs. Then all
is verified at each depth, a half of what was random is forgotten, all but the last night too, and the store
is compacted. restic's `check --read-data` and `prune` of the same dumps follow, where it is installed.
FOLDER should be on a disk, not in memory.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import castore
from bench.data import write_dump, write_tree
from castore.crypto import Identity
from castore.maintenance.compact import compact
from castore.maintenance.verify import verify
from castore.services.prune import forget
from castore.services.sources import Tree, file_source
from castore.storage import LocalStorage
from castore.storage.os_files import Files
from castore.store import MachinePaths, Store
from castore.store.index import lmdb_env, lmdb_files
from tests.support.stores import take_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator


NOISE = 400 << 20


class Unsynced(Files):
    """A file system that is asked to make nothing durable."""

    @staticmethod
    def fsync(_descriptor: int) -> None:
        pass

    @staticmethod
    def sync_directory(_path: str) -> None:
        pass


class Timed(Files):
    """The file system as it is; how long its syncs take is added up."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0

    def _timed(self, sync, what) -> None:
        began = time.perf_counter()
        sync(what)
        self.seconds += time.perf_counter() - began
        self.calls += 1

    def fsync(self, descriptor: int) -> None:
        self._timed(Files.fsync, descriptor)

    def sync_directory(self, path: str) -> None:
        self._timed(Files.sync_directory, path)


@contextlib.contextmanager
def index_unsynced() -> Iterator[None]:
    """Let LMDB sync nothing."""
    opened = lmdb_files.open_lmdb
    with mock.patch.object(lmdb_env, "open_lmdb", lambda path, durable: opened(path, durable=False)):
        yield


class Place:
    """A store in a folder, and the machine that uses it."""

    def __init__(self, folder: str, files: Files) -> None:
        self.folder, self.files = folder, files
        self.identity = Identity.generate()
        storage = LocalStorage(folder + "/store", create=True, files=files)
        self.places = MachinePaths(folder + "/state", folder + "/cache")
        recipients = [(self.identity.recipient, "")]
        Store.create(storage, self.places, recipients, lambda: self.identity).close()

    def open(self) -> Store:
        storage = LocalStorage(self.folder + "/store", files=self.files)
        return Store.open(storage, self.places, lambda: self.identity)

    def take(self, sources, service: str = "s") -> float:
        began = time.perf_counter()
        with self.open() as store:
            take_snapshot(store, service, sources)
        return time.perf_counter() - began

    def stored(self) -> int:
        packs = self.folder + "/store/packs"
        return sum(os.path.getsize(os.path.join(packs, name)) for name in os.listdir(packs))


def durability(folder: str, nights: list[dict], runs: int) -> None:
    """Compare snapshots with ones that make nothing durable."""
    times: dict[str, list[list[float]]] = {"durable": [], "not": []}
    shares: list[list[tuple[float, int]]] = []
    for run in range(runs):
        for kind in ("durable", "not"):
            top = os.path.join(folder, f"{kind}-{run}")
            os.mkdir(top)
            files = Timed() if kind == "durable" else Unsynced()
            with index_unsynced() if kind == "not" else contextlib.nullcontext():
                place = Place(top, files)
                taken, syncs = [], []
                for sources in nights:
                    if isinstance(files, Timed):
                        files.seconds, files.calls = 0.0, 0
                    taken.append(place.take(sources))
                    if isinstance(files, Timed):
                        syncs.append((files.seconds, files.calls))
            times[kind].append(taken)
            if syncs:
                shares.append(syncs)
            os.sync()
            shutil.rmtree(top)
    print(f"{'night':>6} {'durable':>9} {'not':>9} {'ratio':>6}   syncs of the store, and seconds in them")
    for night in range(len(nights)):
        durable = statistics.median(one[night] for one in times["durable"])
        without = statistics.median(one[night] for one in times["not"])
        inside = statistics.median(one[night][0] for one in shares)
        calls = shares[0][night][1]
        ratio = durable / without
        print(f"{night + 1:>6} {durable:>8.2f}s {without:>8.2f}s {ratio:>6.2f}   {calls}, {inside:.2f}s")


def upkeep(folder: str, nights: list[dict]) -> None:
    """Time verification at each depth, and compaction."""
    place = Place(folder, Files())
    for sources in nights:
        place.take(sources)
    noise = os.path.join(folder, "noise")
    for part in (2, 1):
        rng = random.Random(0)
        with open(noise, "wb") as file:
            file.writelines(rng.randbytes(1 << 20) for _ in range(part * NOISE // (2 << 20)))
        place.take({"d": file_source(noise)}, "noise")
    size = place.stored()
    print(f"store: {size / 1e6:.0f} MB in {len(os.listdir(folder + '/store/packs'))} packs")
    for name, options in (("index", {}), ("packs", {"packs": True}), ("read-data", {"read_data": True})):
        with place.open() as store:
            began = time.perf_counter()
            found = verify(store, castore.Progress(), **options)
            took = time.perf_counter() - began
        assert found.sound
        print(f"verify --{name}: {took:.2f}s, {size / took / 1e6:.0f} MB/s")
    with place.open() as store:
        store.sync()
        forget(store, "s", store.generations.all("s")[1:])
        forget(store, "noise", store.generations.all("noise")[1:])
        began = time.perf_counter()
        done = compact(store, castore.Progress())
        took = time.perf_counter() - began
        began = time.perf_counter()
        again = compact(store, castore.Progress())
        nothing = time.perf_counter() - began
        assert again.removed == 0
        store.updater.rebuild()
        assert verify(store, castore.Progress(), read_data=True).sound
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    moved = f"{done.removed_bytes / 1e6:.0f} MB removed, {done.written_bytes / 1e6:.0f} MB written"
    sizes = f"{size / 1e6:.0f} MB before, {place.stored() / 1e6:.0f} MB after"
    print(f"compact: {took:.2f}s, {moved}; {sizes}; with nothing to do {nothing:.2f}s")
    print(f"peak of this process: {memory:.0f} MiB")


def restic(folder: str, paths: list[str]) -> None:
    """The same with restic."""
    env = {**os.environ, "RESTIC_PASSWORD": "x", "RESTIC_REPOSITORY": folder + "/restic"}

    def run(*words: str) -> float:
        began = time.perf_counter()
        subprocess.run(["restic", "--quiet", *words], env=env, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    run("init")
    for path in paths:
        run("backup", path)
    print(f"restic check --read-data: {run('check', '--read-data'):.2f}s")
    took = run("forget", "--keep-last", "1", "--group-by", "", "--prune")
    print(f"restic forget --keep-last 1 --prune: {took:.2f}s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=500_000_000)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--nights", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="castore-upkeep-", dir=options.folder) as folder:
        dumps = [os.path.join(folder, f"dump-{night}") for night in range(options.nights)]
        for night, path in enumerate(dumps):
            write_dump(path, options.size, night=night)
        tree = os.path.join(folder, "tree")
        write_tree(tree, options.files)
        nights = [{"d": file_source(path), "t": Tree(tree)} for path in dumps]
        durability(folder, nights, options.runs)
        place = os.path.join(folder, "upkeep")
        os.mkdir(place)
        upkeep(place, nights)
        if shutil.which("restic"):
            restic(folder, dumps)


if __name__ == "__main__":
    main()
