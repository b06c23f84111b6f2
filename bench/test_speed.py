"""How fast each stage is, and the whole: rates and dedup ratios are printed.

    pytest bench -s --benchmark-enable --benchmark-columns=median,min,max

The dedup ratio (bytes of content for each stored byte) is printed next to the speed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3

import castore
from bench.data import write_dump, write_tree
from castore.content.restore.metadata import Ownership
from castore.crypto import Cipher, Identity, RecordSealer, random_key
from castore.kernel import Cutter
from castore.services.restore import restore as restore_parts
from castore.services.selectors import select
from castore.services.sources import Tree, file_source
from castore.storage import LocalStorage
from castore.store import MachinePaths, Store, open_store
from tests.support.stores import take_snapshot

if TYPE_CHECKING:
    from castore.model.generation import Generation

MB = 10**6
SIZE = int(os.environ.get("CASTORE_BENCH_MB", "200")) * MB
FILES = int(os.environ.get("CASTORE_BENCH_FILES", "5000"))


@pytest.fixture(scope="module")
def dump(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("data") / "dump")
    write_dump(path, SIZE)
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("tree"))
    write_tree(path, FILES)
    return path


class Machine:
    """A store, and what a benchmark does with it."""

    def __init__(self, folder: str) -> None:
        identity = Identity.generate()
        places = MachinePaths(os.path.join(folder, "state"), os.path.join(folder, "cache"))
        storage = LocalStorage(os.path.join(folder, "store"), create=True)
        Store.create(storage, places, [(identity.recipient, "")], lambda: identity).close()
        self.store = open_store(storage.location, places, lambda: identity)

    def snapshot(self, service: str, source) -> Generation:
        return take_snapshot(self.store, service, {"part": source})


@pytest.fixture
def machine(tmp_path):
    made = Machine(str(tmp_path))
    yield made
    made.store.close()


def report(benchmark, size: int, taken: Generation | None = None, store: Store | None = None) -> None:
    """Add the rate, and what the store holds for each stored byte, to the benchmark's row."""
    seconds = benchmark.stats.stats.median if benchmark.stats else 0
    line = f"{size / MB / seconds:8.0f} MB/s" if seconds else ""
    benchmark.extra_info["MB/s"] = round(size / MB / seconds) if seconds else None
    if taken is not None and store is not None:
        stored = sum(length for _, length in store.index.packs.lengths())
        ratio = sum(g.size for g in store.generations.all()) / max(stored, 1)
        benchmark.extra_info["dedup ratio"] = round(ratio, 2)
        line += f"   dedup ratio {ratio:.2f}"
    print(f"\n  {benchmark.name}: {line}")


@pytest.mark.parametrize("average", [16384, 65536, 262144])
def test_cutting(benchmark, average) -> None:
    cutter = Cutter(os.urandom(2048), average)
    data = bytearray(os.urandom(64 * MB))
    benchmark(cutter.scan, data, 0, len(data), final=True)
    report(benchmark, len(data))


@pytest.mark.parametrize("size", [4096, 65536])
def test_hashing(benchmark, size) -> None:
    data = memoryview(os.urandom(64 * MB))
    key = random_key()
    benchmark(
        lambda: [blake3(data[i : i + size], key=key).digest() for i in range(0, len(data) - size, size)]
    )
    report(benchmark, len(data))


@pytest.mark.parametrize("cipher", list(Cipher))
def test_sealing(benchmark, cipher) -> None:
    sealer = RecordSealer(cipher, random_key(), bytes(16))
    data = os.urandom(65536)
    count = 500

    def seal() -> None:
        for counter in range(count):
            sealer.seal(counter, bytes(32), len(data), 0, 0, data)

    benchmark(seal)
    report(benchmark, count * len(data))


def test_index_look_up(benchmark, machine, dump) -> None:
    machine.snapshot("s", file_source(dump))
    index, reader = machine.store.index, machine.store.reader
    ids = [entry.id for pack, _ in index.packs.lengths() for entry in reader.pack_entries(pack)]
    benchmark(lambda: index.locations.contains(ids))
    benchmark.extra_info["look-ups"] = len(ids)
    print(f"\n  {benchmark.name}: {len(ids)} look-ups")


def test_first_ingest(benchmark, machine, dump) -> None:
    services = iter(range(100))
    # A copy of the bytes under another cut of the stream would be found again: a store each round.

    def fresh() -> tuple[tuple[Machine, str], dict]:
        folder = os.path.join(os.path.dirname(dump), f"store-{next(services)}")
        os.mkdir(folder)
        return (Machine(folder), dump), {}

    taken = []

    def ingest(one: Machine, path: str) -> None:
        taken.append((one, one.snapshot("s", file_source(path))))

    benchmark.pedantic(ingest, setup=fresh, rounds=3)
    report(benchmark, SIZE, taken[-1][1], taken[-1][0].store)


def test_duplicate_ingest(benchmark, machine, dump) -> None:
    machine.snapshot("s", file_source(dump))
    taken = benchmark.pedantic(machine.snapshot, ("s", file_source(dump)), rounds=5, warmup_rounds=1)
    assert taken.parts[0].new_chunks == 0
    report(benchmark, SIZE, taken, machine.store)


def test_dump_to_nowhere(benchmark, machine, dump) -> None:
    from castore.content.streams import StreamReader

    taken = machine.snapshot("s", file_source(dump))

    def read() -> int:
        with StreamReader(machine.store) as reader:
            return sum(map(len, reader.read(taken.parts[0].content)))

    assert benchmark.pedantic(read, rounds=3, warmup_rounds=1) == os.path.getsize(dump)
    report(benchmark, SIZE, taken, machine.store)


def test_unchanged_tree(benchmark, machine, tree) -> None:
    machine.snapshot("t", Tree(tree))
    taken = benchmark.pedantic(machine.snapshot, ("t", Tree(tree)), rounds=3, warmup_rounds=1)
    report(benchmark, taken.size, taken, machine.store)


def test_tree_restore(benchmark, machine, tree, tmp_path) -> None:
    taken = machine.snapshot("t", Tree(tree))
    number = iter(range(100))

    def restore() -> None:
        selection = select(machine.store, "t@1:part")
        into = str(tmp_path / f"out-{next(number)}")
        restore_parts(machine.store, selection, into, Ownership(change=False), castore.Progress())

    benchmark.pedantic(restore, rounds=3)
    report(benchmark, taken.size, taken, machine.store)
