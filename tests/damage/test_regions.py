"""Every region of every object of a store, damaged in every way, while it is read, added to and compacted.

Never a wrong byte; what is damaged is named, or is none that anything needs; and what is taken or compacted
meanwhile costs nothing that was whole: put right again, the store has all that it had.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import castore
from castore.content.streams import StreamReader
from castore.crypto import Identity
from castore.errors import CastoreError
from castore.maintenance.compact import compact
from castore.maintenance.verify import verify
from castore.model.refs import PackId
from castore.services.prune import forget
from castore.services.reading import read
from castore.services.selectors import select
from castore.services.sources import Tree, file_source
from castore.store.format.deletion import write_deletion
from tests.support.fault_sweep import plain_tree, stored_tree
from tests.support.stores import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

REGIONS = 12
KINDS = ("config", "sessions", "packs", "generations", "deletions", "pins")
WAYS = ("flipped", "zeroed", "cut", "grown", "swapped", "older", "emptied", "removed")
MODES = ("index kept", "index deleted")


class PristineStore:
    """A sound store with two of everything, and what its generations hold."""

    def __init__(self, folder: Path) -> None:
        self.sandbox = Sandbox(folder / "sandbox", average=4096)
        self.live, self.dump = folder / "live", folder / "dump"
        self.kept: dict[int, tuple[object, bytes]] = {}
        self.older: dict[str, bytes] = {}
        """Objects as they once were, by their names."""
        other = Identity.generate()
        self.older |= self.objects()
        for number in (1, 2, 3):
            self.change(number)
            self.sandbox.snapshot("web", self.sources())
            self.kept[number] = self.content()
            self.older |= self.objects()
        with self.sandbox.open() as store:
            store.sync()
            forget(store, "web", [store.generations.get("web", 3)])
            # A machine that never saw the third gives its number again.
            os.unlink(self.sandbox.places.seen_of(store.store_id, store.storage.canonical_location))
            # Nor is there a record of the removal.
            shutil.rmtree(self.sandbox.store / "removals")
        self.change(4)
        self.sandbox.snapshot("web", self.sources())
        self.replaced = self.kept[3]
        self.kept[3] = self.content()
        with self.sandbox.open() as store:
            store.sync()
            store.generations.pin("web", 1, "old")
            self.older |= {name: data for name, data in self.objects().items() if name.startswith("pins/")}
            store.generations.unpin("web", 1)
            store.generations.pin("web", 1, "new")
            store.generations.pin("web", 2, "")
            # Packs that nothing needs, set aside.
            store.admin.reseal([*store.keys.recipients, (other.recipient, "other")])
        for seed in (7, 8):
            self.change(seed)
            self.sandbox.snapshot("gone", self.sources())
        with self.sandbox.open() as store:
            store.sync()
            gone = store.generations.all("gone")
            packs = {p.name for p in (self.sandbox.store / "packs").iterdir()}
            forget(store, "gone", gone)
            needed = {name for name in self.older if name.startswith("packs/")}
            dead = sorted(name for name in packs if f"packs/{name}" not in needed)[-2:]
            for name in dead:
                write_deletion(store.storage, store.keys.writer_key, [PackId(bytes.fromhex(name))])
        # The one at which it is still as it was is what names are looked for in.
        self.names = {kind: sorted(n for n in self.objects() if n.startswith(f"{kind}/")) for kind in KINDS}

    def objects(self) -> dict[str, bytes]:
        store = self.sandbox.store
        return {
            f"{folder}/{path.name}": path.read_bytes()
            for folder in KINDS
            if (store / folder).is_dir()
            for path in (store / folder).iterdir()
        }

    def change(self, seed: int) -> None:
        rng = random.Random(seed)
        shutil.rmtree(self.live, ignore_errors=True)
        (self.live / "sub").mkdir(parents=True)
        for number in range(5):
            (self.live / "sub" / f"f{number}").write_bytes(random.Random(number).randbytes(200 * number))
        data = bytearray(random.Random(0).randbytes(40_000))
        data[seed * 1000 : seed * 1000 + 8] = rng.randbytes(8)
        (self.live / "large").write_bytes(data)
        (self.live / "own").write_bytes(rng.randbytes(7000))
        self.dump.write_bytes(data[:20_000] + rng.randbytes(9000))

    def sources(self) -> dict:
        return {"t": Tree(str(self.live)), "d": file_source(str(self.dump))}

    def content(self) -> tuple[object, bytes]:
        return plain_tree(self.live), self.dump.read_bytes()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> PristineStore:
    return PristineStore(tmp_path_factory.mktemp("regions"))


@pytest.fixture
def room() -> Iterator[Path]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="castore-regions-", dir=memory) as folder:
        yield Path(folder)


def damages(pristine: PristineStore, name: str, way: str) -> Iterator[bytes | None]:
    """Yield what becomes of an object; None: it is removed."""
    data = (pristine.sandbox.store / name).read_bytes()
    kind = name.partition("/")[0]
    borders = [len(data) * at // REGIONS for at in range(REGIONS + 1)]
    # The first and the last 64 bytes hold more than one thing.
    regions = [*itertools.pairwise(borders), (0, 8), (8, 10), (10, 16), (16, 32), (len(data) - 16, len(data)), (len(data) - 48, len(data) - 24)]
    if way in {"flipped", "zeroed"}:
        for start, end in regions:
            out = bytearray(data)
            if way == "flipped":
                out[(start + end) // 2] ^= 0x10
            else:
                out[start:end] = bytes(end - start)
            if out != data:
                yield bytes(out)
    elif way == "cut":
        for start, _ in regions:
            yield data[:start]
    elif way == "grown":
        yield from (data + b"\0", data + data[-48:], b"\0" + data)
    elif way == "swapped":
        for other in pristine.names[kind]:
            if other != name:
                yield (pristine.sandbox.store / other).read_bytes()
    elif way == "older":
        found = {k: v for k, v in pristine.older.items() if k.partition("/")[0] == kind and k.partition(".")[0] == name.partition(".")[0]}
        yield from (old for old in found.values() if old != data)
    else:
        yield b"" if way == "emptied" else None


class Case:
    """A copy of the pristine, one object of which is damaged."""

    def __init__(self, pristine: PristineStore, folder: Path, name: str, mode: str) -> None:
        self.pristine, self.name = pristine, name
        self.sandbox = object.__new__(Sandbox)
        self.sandbox.folder, self.sandbox.identity = folder, pristine.sandbox.identity
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(pristine.sandbox.folder, folder)
        if mode == "index deleted":
            shutil.rmtree(folder / "cache")

    def damage(self, data: bytes | None) -> None:
        path = self.sandbox.store / self.name
        if data is None:
            path.unlink()
        else:
            path.chmod(0o600)
            path.write_bytes(data)

    def reads(self, number: int, *contents: tuple[object, bytes]) -> bool:
        """Restore a generation; it is one of these, or an error says that it is not."""
        try:
            with self.sandbox.open() as store, StreamReader(store) as reader:
                store.sync()
                dump = b"".join(read(reader, select(store, f"web@#{number}:d")))
                part = select(store, f"web@#{number}:t").part
                assert part is not None
                tree = stored_tree(reader, part.content)
        except CastoreError:
            return False
        assert any(tree == one[0] for one in contents), f"a wrong tree of {number}"
        assert any(dump == one[1] for one in contents), f"a wrong dump of {number}"
        return True

    def verified(self) -> str:
        try:
            with self.sandbox.open() as store:
                found = verify(store, castore.Progress(), read_data=True)
                return "\n".join(found.damage + [hit.reason for hit in found.affected])
        except CastoreError as error:
            return str(error)

    def runs(self) -> Counter[str]:
        """Verify, restore, take, compact; then put the object right, and see that all is there."""
        counts: Counter[str] = Counter()
        kept = dict(self.pristine.kept)
        reported = self.verified()
        for number, content in kept.items():
            right = self.reads(number, content, *([self.pristine.replaced] if number == 3 else []))
            counts["restored" if right else "refused"] += 1
            # A generation whose record is removed is one that was forgotten.
            gone = not (self.sandbox.store / self.name).exists() and number in number_of(self.name)
            assert right or reported or gone, "what does not restore was not reported"
        taken = 0
        try:
            generation = self.sandbox.snapshot("web", self.pristine.sources())
            taken = generation.number
            counts["taken"] += 1
        except CastoreError:
            counts["not taken"] += 1
        if taken:
            shutil.rmtree(self.sandbox.folder / "cache")
            whole = self.reads(taken, self.pristine.content())
            # Bytes of a pack that were changed are noticed by a reader, which reports them.
            assert whole or (self.name.startswith(("packs/", "sessions/")) and self.verified())
            counts["taken, and intact" if whole else "taken, and reported as damaged"] += 1
        try:
            with self.sandbox.open(identity=False) as store:
                compact(store, castore.Progress(), max_unused=0, grace_seconds=0)
            counts["compacted"] += 1
        except CastoreError:
            counts["not compacted"] += 1
        return counts

    def repaired(self, *, forgotten: set[int]) -> None:
        """With the object as it was, everything is as it was: nothing was removed for what was damaged."""
        path = self.sandbox.store / self.name
        path.write_bytes((self.pristine.sandbox.store / self.name).read_bytes())
        shutil.rmtree(self.sandbox.folder / "cache", ignore_errors=True)
        for number, content in self.pristine.kept.items():
            if number not in forgotten:
                assert self.reads(number, content), f"{number} was lost"


def number_of(name: str) -> set[int]:
    return {int(name[-10:])} if name.startswith("generations/") else set()


def sweep(pristine: PristineStore, room: Path, kind: str, mode: str, *, sample: int) -> Counter[str]:
    rng = random.Random(f"{kind} {mode}")
    counts: Counter[str] = Counter()
    cases = [(name, way, data) for name in pristine.names[kind] for way in WAYS for data in damages(pristine, name, way)]
    if sample and len(cases) > sample:
        # Of each way some.
        by_way = {way: [case for case in cases if case[1] == way] for way in WAYS}
        cases = [case for some in by_way.values() for case in rng.sample(some, min(len(some), -(-sample // len(WAYS))))]
    for name, way, data in cases:
        case = Case(pristine, room / "case", name, mode)
        case.damage(data)
        try:
            counts += case.runs()
            # A generation that is removed is forgotten: what only it needs may go.
            forgotten = number_of(name) if data is None or way == "older" else set()
            # With the bytes of another, a pack is a copy of that, and may be what is counted on since.
            if not (kind == "packs" and way == "swapped"):
                case.repaired(forgotten=forgotten)
        except BaseException:
            print(name, way, None if data is None else len(data), mode)
            raise
        counts["damages"] += 1
    return counts


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_some_regions_damaged(pristine: PristineStore, room: Path, kind: str, mode: str) -> None:
    assert len(pristine.names[kind]) >= (2 if kind != "config" else 1)
    counts = sweep(pristine, room, kind, mode, sample=10)
    print(f"damaged: {kind}, {mode}: {dict(counts)}")
    assert counts["damages"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_region_damaged(pristine: PristineStore, room: Path, kind: str, mode: str) -> None:
    counts = sweep(pristine, room, kind, mode, sample=0)
    print(f"damaged: {kind}, {mode}: {dict(counts)}")
