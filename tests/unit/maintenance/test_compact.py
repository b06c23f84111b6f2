"""Compaction: what is needed stays, what is not is deleted, and snapshots may run concurrently."""

from __future__ import annotations

import contextlib
import itertools
import random
import time

import msgspec
import pytest

from castore.content.streams import StreamReader
from castore.errors import DamageError, UsageError
from castore.maintenance import compact as module
from castore.maintenance.compact import compact, plan
from castore.maintenance.limits import Limits
from castore.maintenance.verify import verify
from castore.progress import Progress
from castore.services.config import Keep, Service
from castore.services.prune import forget, prune, spans
from castore.services.reading import read
from castore.services.selectors import select
from castore.services.sources import Tree, file_source
from castore.storage import LocalStorage
from castore.store import Store
from castore.store.format.deletion import pending_deletions
from castore.store.format.envelope import seal_object
from castore.store.format.header import GENERATION
from castore.store.format.names import generation_name
from castore.store.reachability import is_whole, roots_of
from tests.support.stores import Sandbox, take_snapshot


class Lockless(LocalStorage):
    """A directory as other machines see it too: without a lock."""

    @contextlib.contextmanager
    def lock(self, *, exclusive=False):
        yield False


class SandboxWithDumps(Sandbox):
    """A sandbox whose dumps are files, with plain copies of what was taken."""

    def __post_init__(self):
        super().__post_init__()
        self.taken = {}
        self.names = itertools.count()

    def opened(self, *, lockless=False):
        storage = Lockless(str(self.store)) if lockless else LocalStorage(str(self.store))
        return Store.open(storage, self.places, lambda: self.identity)

    def take(self, service, data, **options):
        # Each from a file of its own: what is recorded of its origin is no generation's but its own.
        path = self.folder / f"{service}-{next(self.names)}.dump"
        path.write_bytes(data)
        found = self.snapshot(service, {"db": file_source(str(path))}, **options)
        self.taken[service, found.number] = data
        return found.number

    def drop(self, service, *numbers):
        with self.opened() as store:
            store.sync()
            forget(store, service, [store.generations.get(service, number) for number in numbers])
        for number in numbers:
            del self.taken[service, number]

    def compact(self, *, lockless=False, **options):
        with self.opened(lockless=lockless) as store:
            return compact(store, Progress(), **options)

    def check(self):
        """All that was taken is there, and nothing else is said to be wrong."""
        with self.opened() as store:
            store.sync()
            assert verify(store, Progress(), read_data=True).sound
            found = {(one.service, one.number) for one in store.generations.all()}
            assert found == set(self.taken)
            for (service, number), data in self.taken.items():
                selection = select(store, f"{service}@{number}:db")
                assert b"".join(read(StreamReader(store), selection)) == data

    def packs(self):
        return {path.name: path.stat().st_size for path in (self.store / "packs").iterdir()}

    def size(self):
        return sum(self.packs().values())


@pytest.fixture
def sandbox(tmp_path):
    return SandboxWithDumps(tmp_path, average=4096)


def noise(seed, length):
    return random.Random(seed).randbytes(length)


def test_what_only_forgotten_generations_needed_is_freed(sandbox):
    first = sandbox.take("web", noise(1, 300_000))
    kept = sandbox.packs()
    sandbox.take("web", noise(2, 300_000))
    sandbox.drop("web", first)
    done = sandbox.compact()
    assert done.removed == 1
    assert not kept.keys() & sandbox.packs().keys()
    sandbox.check()


def test_a_pack_of_which_little_is_needed_is_rewritten(sandbox):
    data = noise(1, 400_000)
    sandbox.take("web", data)
    before = sandbox.size()
    sandbox.take("web", data[:100_000])
    sandbox.drop("web", 1)
    with sandbox.opened() as store:
        planned = plan(store)
    assert len(planned.rewrites) == 1
    assert not planned.dead
    assert planned.freed > 200_000
    done = sandbox.compact()
    assert (done.removed, done.damaged) == (1, [])
    assert sandbox.size() < before - 200_000
    sandbox.check()
    assert sandbox.compact().removed == 0


def test_packs_with_little_waste_stay_as_they_are(sandbox):
    data = noise(1, 400_000)
    sandbox.take("web", data)
    sandbox.take("web", data[:380_000])
    sandbox.drop("web", 1)
    assert sandbox.compact().removed == 0
    assert sandbox.compact(max_unused=0.01).removed >= 1
    sandbox.check()


def test_a_delta_keeps_its_base(sandbox):
    data = bytearray(noise(1, 200_000))
    sandbox.take("web", bytes(data))
    for night in range(6):
        for at in range(0, len(data), 3000):
            data[at] = night
        sandbox.take("web", bytes(data))
    with sandbox.opened() as store:
        assert any(bases for *_, bases in store.index.locations.records())
    sandbox.drop("web", 1, 2, 3, 4, 5)
    sandbox.compact()
    sandbox.check()
    sandbox.drop("web", 6)
    sandbox.compact(max_unused=0)
    sandbox.check()


def test_dumps_after_a_compaction_are_deltas_of_moved_chunks(sandbox):
    data = bytearray(noise(1, 400_000))
    sandbox.take("web", bytes(data))
    sandbox.take("other", bytes(data[:200_000]))
    sandbox.drop("web", 1)
    assert sandbox.compact().written_bytes
    before = sandbox.size()
    for at in range(0, 200_000, 2000):
        data[at] ^= 1
    sandbox.take("other", bytes(data[:200_000]))
    assert sandbox.size() - before < 60_000
    sandbox.check()


def test_many_small_packs_are_put_together(sandbox):
    for night in range(20):
        sandbox.take("web", noise(night, 5000))
    assert len(sandbox.packs()) >= 20
    done = sandbox.compact()
    assert done.removed >= 20
    assert len(sandbox.packs()) == 1
    sandbox.check()
    assert sandbox.compact().removed == 0


def test_a_damaged_pack_is_not_moved_under_a_new_name(sandbox):
    data = noise(1, 400_000)
    sandbox.take("web", data)
    sandbox.take("web", data[:50_000])
    sandbox.drop("web", 1)
    name = max(sandbox.packs(), key=sandbox.packs().get)
    path = sandbox.store / "packs" / name
    raw = bytearray(path.read_bytes())
    raw[1000] ^= 1
    path.chmod(0o600)
    path.write_bytes(raw)
    done = sandbox.compact()
    assert len(done.damaged) == 1
    assert name in done.damaged[0]
    assert name in sandbox.packs()


def test_nothing_is_removed_while_a_record_cannot_be_read(sandbox):
    sandbox.take("web", noise(1, 100_000))
    sandbox.take("web", noise(2, 100_000))
    (record,) = [p for p in (sandbox.store / "generations").iterdir() if p.name.endswith("1")]
    data = record.read_bytes()
    record.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with sandbox.opened() as store:
        store.updater.rebuild()
    with pytest.raises(DamageError, match="nothing was removed: generations/"):
        sandbox.compact()
    assert len(sandbox.packs()) == 2


def test_without_a_lock_packs_are_set_aside_first(sandbox):
    sandbox.take("web", noise(1, 100_000))
    sandbox.take("web", noise(2, 100_000))
    sandbox.drop("web", 1)
    done = sandbox.compact(lockless=True)
    assert (done.removed, done.pending_deletion) == (0, 1)
    assert len(sandbox.packs()) == 2
    assert sandbox.compact(lockless=True).pending_deletion == 1
    done = sandbox.compact(lockless=True, grace_seconds=0)
    assert (done.removed, done.pending_deletion) == (1, 0)
    assert not list((sandbox.store / "deletions").iterdir())
    sandbox.check()


def test_what_is_pending_deletion_is_stored_again(sandbox):
    sandbox.take("web", noise(1, 100_000))
    sandbox.take("web", noise(2, 100_000))
    sandbox.drop("web", 1)
    sandbox.compact(lockless=True)
    sandbox.take("mail", noise(1, 100_000))
    assert len(sandbox.packs()) == 3
    sandbox.compact(lockless=True, grace_seconds=0)
    assert len(sandbox.packs()) == 2
    sandbox.check()


def test_what_a_generation_needs_after_all_is_not_removed(sandbox, monkeypatch):
    """A snapshot that looked before packs were pending commits before they are removed."""
    sandbox.take("web", noise(1, 100_000))
    sandbox.take("web", noise(2, 100_000))
    sandbox.drop("web", 1)
    pending = module.write_deletion

    def late(*arguments):
        with monkeypatch.context() as undone:
            undone.setattr(module, "write_deletion", pending)
            sandbox.take("mail", noise(1, 100_000))
        return pending(*arguments)

    monkeypatch.setattr(module, "write_deletion", late)
    assert sandbox.compact(lockless=True).pending_deletion == 1
    monkeypatch.undo()
    assert sandbox.compact(lockless=True, grace_seconds=0).removed == 0
    sandbox.check()
    assert not list((sandbox.store / "deletions").iterdir())
    assert sandbox.compact(lockless=True, grace_seconds=0).removed == 0
    sandbox.check()


@pytest.mark.parametrize("lockless", [False, True])
@pytest.mark.parametrize("kind", ["dump", "tree"])
def test_a_snapshot_under_way_stores_again_what_a_prune_took_away(sandbox, tmp_path, kind, lockless):
    shared = noise(1, 100_000)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(shared)
    sources = {
        "a": Tree(str(tree)) if kind == "tree" else file_source(str(tree / "file")),
        "b": file_source(str(tree / "file")),
    }
    with sandbox.open(identity=False) as store:
        old = take_snapshot(store, "old", sources)
    rounds = []

    def progress(name, tally):
        if name == "b" and not rounds:
            rounds.append(name)
            with sandbox.opened() as other:
                other.sync()
                forget(other, "old", [old])
            sandbox.compact(lockless=lockless)
            if lockless:
                sandbox.compact(lockless=True, grace_seconds=0)

    with sandbox.opened(lockless=lockless) as store:
        take_snapshot(store, "new", sources, watch=progress)
    with sandbox.opened() as store:
        assert verify(store, Progress(), read_data=True).sound
        assert b"".join(read(StreamReader(store), select(store, "new@1:b"))) == shared


def test_unchanged_directories_are_not_read_again_after_a_prune(sandbox, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(20):
        (tree / f"f{number}").write_bytes(noise(number, 3000))
    time.sleep(2.1)  # what is younger is read again in any case
    sandbox.snapshot("web", {"t": Tree(str(tree))})
    sandbox.snapshot("web", {"t": Tree(str(tree))})
    sandbox.take("other", noise(99, 50_000))
    sandbox.take("other", noise(98, 50_000))
    sandbox.drop("other", 1)
    assert sandbox.compact().removed
    with sandbox.opened() as store:
        epoch = store.index.epoch()
    tally = []
    with sandbox.open(identity=False) as store:
        take_snapshot(
            store, "web", {"t": Tree(str(tree))}, watch=lambda _name, one: tally.append(one)
        )
        assert store.index.epoch() == epoch
    assert tally[0].new_chunks == 0
    assert tally[0].stored == 0


def test_rules_let_generations_go_and_pins_hold_them(sandbox):
    for night in range(5):
        sandbox.take("web", noise(night, 20_000))
    with sandbox.opened() as store:
        store.sync()
        assert store.generations.pin("web", 2, "before the move")
        assert not store.generations.pin("web", 2, "again")
        assert store.generations.pins("web") == {2: "before the move"}
        settings = Service(keep=Keep(last=1))
        gone, busy, done = prune(store, {"web": settings}, Progress(), Limits(grace_seconds=0))
    assert [one.number for one in gone] == [4, 3, 1]
    assert not busy
    assert done.removed
    for one in gone:
        del sandbox.taken["web", one.number]
    sandbox.check()
    with sandbox.opened() as store:
        with pytest.raises(UsageError, match=r"web@2 is pinned \(before the move\)"):
            forget(store, "web", [store.generations.get("web", 2)])
        assert store.generations.unpin("web", 2)
        assert not store.generations.unpin("web", 2)


def test_numbers_are_written_as_people_write_them():
    assert spans([7, 1, 2, 3, 9, 10]) == "1-3, 7, 9-10"
    assert spans([]) == ""


def test_an_unreferenced_delta_without_its_base_is_no_damage(sandbox):
    data = bytearray(noise(1, 300_000))
    sandbox.take("web", bytes(data))
    for at in range(0, len(data), 3000):
        data[at] ^= 1
    sandbox.take("web", bytes(data) + noise(2, 600_000))
    sandbox.take("web", noise(2, 600_000))
    sandbox.drop("web", 1, 2)
    sandbox.compact(max_unused=0.9)
    with sandbox.opened() as store:
        ids = [record for _, record, _, bases in store.index.locations.records() if bases]
        assert not all(store.index.locations.contains(ids))
    sandbox.check()


def test_no_delta_is_based_on_what_is_about_to_be_removed(sandbox):
    """A delta of a pending base would hold nothing back from a removal that is under way."""
    base = noise(1, 100_000)
    sandbox.take("web", base)
    sandbox.take("web", noise(2, 100_000))
    sandbox.drop("web", 1)
    assert sandbox.compact(lockless=True).pending_deletion == 1
    like = bytearray(base)
    for at in range(0, len(like), 2000):
        like[at] ^= 1
    sandbox.take("mail", bytes(like))
    with sandbox.opened(lockless=True) as store:
        store.sync()
        (mail,) = store.generations.all("mail")
        assert is_whole(store, roots_of(mail))
    # Removed by a process that looked at the generations before this one came.
    (pending,) = (sandbox.store / "deletions").iterdir()
    with sandbox.opened(lockless=True) as store:
        (one,) = pending_deletions(store.storage, store.keys.writer_key)[0]
        store.storage.delete_all(f"packs/{pack.hex()}" for pack in one.packs)
    pending.unlink()
    sandbox.check()


def test_what_is_used_of_packs_is_never_more_than_all_of_them(sandbox):
    """However often compactions are killed between moving records and removing the packs they were in."""
    sandbox.take("web", noise(1, 50_000))
    sandbox.take("web", noise(2, 50_000))
    with sandbox.opened() as store:
        store.sync()
        one, other = sorted(pack for pack, _ in store.index.packs.lengths())
        lengths = dict(store.index.packs.lengths())
        for _ in range(100):
            store.index.usage.move([(one, other), (other, one)])
        used = store.index.usage.total()
        assert used.keys() == {one, other}
        assert all(0 < used[pack] <= lengths[pack] for pack in used)
        store.index.packs.remove([one])
        assert len(store.index.usage.of("web")) == 2
        store.index.usage.move([])
        assert len(store.index.usage.of("web")) == 1


def test_what_is_interrupted_leaves_nothing_half_written(sandbox, monkeypatch):
    data = noise(1, 400_000)
    sandbox.take("web", data)
    sandbox.take("web", data[:100_000])
    sandbox.drop("web", 1)
    record, calls = module.record_in, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return record(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "record_in", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sandbox.compact()
    assert list((sandbox.store / "tmp").iterdir()) == []
    assert sandbox.compact().removed == 1
    sandbox.check()


@pytest.mark.parametrize("harm", [{"number": 9_999_999_999}, {"service": "", "number": 1}, {"number": 0}])
def test_a_generation_that_no_castore_writes_is_damage_and_stops_nothing(sandbox, harm):
    """Anyone who has a writer key can seal one."""
    sandbox.take("web", noise(1, 50_000))
    with sandbox.opened() as store:
        store.sync()
        forged = msgspec.structs.replace(store.generations.get("web", 1), **harm)
        name = generation_name(store.keys.writer_key.tag(forged.service), forged.number)
        plain = msgspec.msgpack.encode(forged)
        store.storage.put(name, seal_object(GENERATION, name, plain, store.keys.writer_key))
        store.sync()
        assert store.damaged.keys() == {name}
    sandbox.take("web", noise(2, 50_000))
    with sandbox.opened() as store:
        store.sync()
        assert store.generations.services() == ["web"]
        assert [one.number for one in store.generations.all()] == [2, 1]
