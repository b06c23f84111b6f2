"""Maintenance concurrently with other processes and machines: what they cannot see of each other loses nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time

import pytest

import castore
from castore.content.streams import StreamReader
from castore.crypto import Identity
from castore.errors import (
    BusyError,
    DamageError,
    KeyRotatedError,
    MissingError,
    StaleStoreError,
    StorageError,
)
from castore.maintenance.compact import compact, plan
from castore.maintenance.verify import verify
from castore.model.refs import RecordId, Ref, RefKind
from castore.progress import Progress
from castore.services.prune import forget
from castore.services.reading import read
from castore.services.selectors import select
from castore.services.sources import Stream, file_source
from castore.state import first_seen
from castore.storage import LocalStorage
from castore.store import MachinePaths, Store, StoreOptions
from castore.store.format.rotation import encode_rotation
from castore.store.keys.key_manager import KeyManager
from tests.support.repairs import repair_store
from tests.support.stores import take_snapshot
from tests.unit.maintenance.test_compact import Lockless, SandboxWithDumps, noise

OLD = 30 * 86400 * 10**9


@pytest.fixture
def sandbox(tmp_path):
    return SandboxWithDumps(tmp_path, average=4096)


def another(sandbox, **options):
    """The store as another machine sees it."""
    places = MachinePaths(str(sandbox.folder / "other" / "state"), str(sandbox.folder / "other" / "cache"))
    return Store.open(LocalStorage(str(sandbox.store)), places, lambda: sandbox.identity, StoreOptions(**options))


def content(store, what):
    with StreamReader(store) as reader:
        return b"".join(read(reader, select(store, what)))


def later(monkeypatch, nanoseconds=OLD):
    """Let so much time pass, while the machine runs."""
    now = first_seen._now

    def later():
        start, boot, calendar = now()
        return start, boot + nanoseconds, calendar + nanoseconds

    monkeypatch.setattr(first_seen, "_now", later)


def test_the_index_is_not_rebuilt_while_packs_are_removed(sandbox):
    sandbox.take("web", noise(1, 50_000))
    with sandbox.opened() as store, store.state.upkeep_lock(), sandbox.opened() as other, pytest.raises(BusyError):
        other.updater.rebuild()


def test_keys_are_removed_only_after_nothing_was_seen_of_them_for_days(sandbox, monkeypatch):
    sandbox.take("web", noise(1, 50_000))
    sandbox.take("web", noise(2, 50_000))
    sandbox.drop("web", 1)
    sessions = set((sandbox.store / "sessions").iterdir())
    assert sandbox.compact().sessions == 0
    assert set((sandbox.store / "sessions").iterdir()) == sessions
    with monkeypatch.context() as patch:
        later(patch)
        assert sandbox.compact().sessions == 1
    sandbox.check()


def test_the_key_of_a_generation_stays_while_its_pack_is_missing(sandbox, monkeypatch):
    sandbox.take("web", noise(1, 3000))
    sandbox.take("web", noise(2, 3000))
    packs = {path: path.read_bytes() for path in (sandbox.store / "packs").iterdir()}
    for path in packs:
        path.unlink()
    for ahead in (0, OLD):
        with monkeypatch.context() as patch:
            later(patch, ahead)
            with contextlib.suppress(DamageError):
                sandbox.compact()
    for path, data in packs.items():
        path.write_bytes(data)
    sandbox.check()


def test_a_number_given_again_by_who_lost_its_memory_harms_nobody(sandbox):
    sandbox.take("web", noise(1, 50_000))
    sandbox.take("web", noise(2, 50_000))
    with another(sandbox) as other:
        other.sync()
        assert content(other, "web@2:db") == noise(2, 50_000)
    sandbox.drop("web", 2)
    with sandbox.opened() as store:
        os.unlink(sandbox.places.seen_of(store.store_id, store.storage.canonical_location))
    # The record of the removal keeps the number from being given again.
    shutil.rmtree(sandbox.store / "removals")
    assert sandbox.take("web", noise(3, 50_000)) == 2
    with another(sandbox) as other, pytest.raises(StaleStoreError, match="web@2 is not the generation"):
        compact(other, Progress(), max_unused=0)
    with another(sandbox, accept_older=True) as other:
        compact(other, Progress(), max_unused=0)
        assert content(other, "web@2:db") == noise(3, 50_000)
    sandbox.check()


def test_a_generation_that_was_withdrawn_leaves_its_number_used(sandbox, monkeypatch):
    sandbox.take("web", noise(1, 50_000))
    refreshed = KeyManager.refresh

    def fails(self):
        if any(path.name.endswith("2") for path in (sandbox.store / "generations").iterdir()):
            raise castore.errors.StorageError("the disk failed")
        return refreshed(self)

    with monkeypatch.context() as patch:
        patch.setattr(KeyManager, "refresh", fails)
        with pytest.raises(castore.errors.StorageError, match="the disk failed"):
            sandbox.take("web", noise(2, 50_000))
    assert len(list((sandbox.store / "generations").iterdir())) == 1
    assert sandbox.take("web", noise(3, 50_000)) == 3
    sandbox.check()


def test_a_repair_with_a_former_writer_key_drops_nothing(sandbox):
    sandbox.take("web", noise(1, 50_000))
    with another(sandbox) as other:
        other.admin.adopt("other", maintain=True)
        other.sync()
        with sandbox.opened() as store:
            store.admin.rotate()
        number = sandbox.take("web", noise(2, 50_000))
        for act in (lambda: repair_store(other), lambda: verify(other, Progress())):
            with pytest.raises(KeyRotatedError):
                act()
    assert number == 2
    sandbox.check()


def test_recipients_and_the_writer_key_change_one_after_the_other(sandbox):
    sandbox.take("web", noise(1, 50_000))
    other = castore.Identity.generate()
    with sandbox.opened() as store, store.state.keys_lock(), sandbox.opened() as second:
        with pytest.raises(BusyError):
            second.admin.reseal([*second.keys.recipients, (other.recipient, "other")])
        with pytest.raises(BusyError):
            second.admin.rotate()
    with sandbox.opened() as store, sandbox.opened() as second:
        second.admin.rotate()
        with pytest.raises(KeyRotatedError):
            store.admin.reseal([*store.keys.recipients, (other.recipient, "other")])
    sandbox.check()


def test_objects_of_previous_keys_are_neither_dropped_nor_orphaned_while_their_list_is_missing(sandbox):
    sandbox.take("web", noise(1, 50_000))
    with sandbox.opened() as store:
        store.admin.rotate()
    sandbox.take("web", noise(2, 50_000))
    lists = sandbox.store / "rotations"
    lists.rename(sandbox.folder / "aside")
    with sandbox.opened() as store:
        with pytest.raises(MissingError, match="restore it from"):
            repair_store(store)
        with pytest.raises(MissingError, match="restore it from"):
            store.admin.rotate()
    (sandbox.folder / "aside").rename(lists)
    sandbox.check()


def test_what_cannot_be_put_together_is_not_moved_night_by_night(sandbox):
    data = bytearray(noise(1, 200_000))
    sandbox.take("web", bytes(data))
    first = set((sandbox.store / "packs").iterdir())
    for at in range(0, len(data), 3000):
        data[at] ^= 1
    sandbox.take("web", bytes(data) + noise(2, 200_000))
    sandbox.take("web", bytes(data))
    for path in first:
        path.unlink()
    with sandbox.opened() as store:
        store.sync()
        forget(store, "web", [store.generations.get("web", 1), store.generations.get("web", 2)])
    for _ in range(3):
        with contextlib.suppress(DamageError):
            sandbox.compact(max_unused=0)
    sizes = sandbox.size()
    for _ in range(3):
        with contextlib.suppress(DamageError):
            sandbox.compact(max_unused=0)
        assert sandbox.size() == sizes


def test_a_pack_that_vanishes_while_it_is_verified_is_no_sound_one(sandbox, monkeypatch):
    from castore.maintenance import verify_packs

    sandbox.take("web", noise(1, 50_000))
    looked = verify_packs.examine_pack

    def vanishing(store, pack, *arguments):
        (sandbox.store / "packs" / pack.hex()).unlink(missing_ok=True)
        return looked(store, pack, *arguments)

    monkeypatch.setattr(verify_packs, "examine_pack", vanishing)
    with sandbox.opened() as store:
        found = verify(store, Progress(), packs=True)
        assert not found.sound
        assert store.index.verification.verified(1) == {}


def test_who_sees_a_network_says_so_to_the_machine_whose_disk_it_is(sandbox, monkeypatch):
    from castore.storage import os_files

    sandbox.take("web", noise(1, 50_000))
    sandbox.take("web", noise(2, 50_000))
    sandbox.drop("web", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os_files, "network_of", lambda path: "NFS" if str(sandbox.store) in path else None)
        sandbox.take("web", noise(3, 50_000))
    assert (sandbox.store / "flags" / "shared").exists()
    done = sandbox.compact()
    assert (done.removed, done.pending_deletion) == (0, 1)
    assert sandbox.compact(grace_seconds=0).removed == 1
    sandbox.check()
    shutil.rmtree(sandbox.store / "flags")


# What snapshots have stored that have not ended


@pytest.fixture
def small_packs(monkeypatch):
    monkeypatch.setattr("castore.store.format.pack.PACK_BYTES", 1 << 20)


class Killed(BaseException):
    """As good as SIGKILL, but for what is closed."""


def until(condition):
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it never came to that")


def killed(sandbox, data):
    """Begin to take this, and be killed; return the packs that are left."""
    path = sandbox.folder / "killed"
    path.write_bytes(data)
    before = sandbox.packs()

    def progress(name, _tally):
        if name == "b":
            until(lambda: len(sandbox.packs()) > len(before) + 2)
            raise Killed

    with sandbox.opened() as store, pytest.raises(Killed):
        sources = {"a": file_source(str(path)), "b": file_source(str(path))}
        take_snapshot(store, "web", sources, watch=progress)
    return {pack: size for pack, size in sandbox.packs().items() if pack not in before}


@pytest.mark.usefixtures("small_packs")
@pytest.mark.parametrize("lockless", [False, True])
def test_chunks_of_a_running_snapshot_survive_a_concurrent_prune(sandbox, lockless):
    """Not taken again: a stream cannot be."""
    before, after = noise(1, 8 << 20), noise(2, 100_000)
    sandbox.take("other", noise(3, 100_000))
    sandbox.take("other", noise(4, 100_000))
    sandbox.drop("other", 1)
    path, second = sandbox.folder / "before", sandbox.folder / "after"
    path.write_bytes(before)
    second.write_bytes(after)
    kept = []

    def progress(name, _tally):
        if name == "b":
            until(lambda: len(sandbox.packs()) > 4)
            kept.extend(sandbox.compact(lockless=lockless, max_unused=0, grace_seconds=0) for _ in range(2))

    with sandbox.opened(lockless=lockless) as store, open(second, "rb") as stream:
        sources = {"a": file_source(str(path)), "b": Stream(stream.fileno())}
        take_snapshot(store, "web", sources, watch=progress)
    assert len(kept) == 2  # once, that is
    assert sum(done.removed for done in kept) == 1
    assert sum(kept[1].plan.unfinished_packs.values()) > 2 << 20
    with sandbox.opened() as store:
        assert content(store, "web@1:a") == before
        assert content(store, "web@1:b") == after
    assert sandbox.compact().plan.unfinished_packs == {}


@pytest.mark.usefixtures("small_packs")
def test_what_a_killed_snapshot_left_helps_the_next_and_goes_after_a_week(sandbox, monkeypatch):
    sandbox.take("other", noise(3, 5000))
    left = killed(sandbox, noise(1, 8 << 20))
    done = sandbox.compact()
    assert (done.removed, done.plan.unfinished_packs.keys()) == (0, {bytes.fromhex(one) for one in left})
    sandbox.take("web", noise(1, 2 << 20))
    assert sum(sandbox.packs()[one] for one in sandbox.packs().keys() - left.keys()) < 1 << 20
    # It is older by then than the generation that depends on it.
    sandbox.take("web", noise(2, 50_000))
    sandbox.drop("web", 1)
    assert sandbox.compact().removed <= 1  # of web@1's own
    with monkeypatch.context() as patch:
        later(patch)
        assert sandbox.compact().removed == len(left)
    sandbox.check()


@pytest.mark.usefixtures("small_packs")
def test_what_is_known_to_be_left_over_can_be_removed_at_once(sandbox):
    sandbox.take("web", noise(1, 50_000))
    left = killed(sandbox, noise(2, 8 << 20))
    with sandbox.opened() as store:
        assert len(plan(store).unfinished_packs) == len(left)
        assert plan(store, unfinished_seconds=0).unfinished_packs == {}
    assert sandbox.compact().removed == 0
    assert sandbox.compact(unfinished_seconds=0).removed == len(left)
    sandbox.check()


def test_a_session_that_another_machine_ended_is_known_to_have_ended(sandbox):
    sandbox.take("web", noise(1, 50_000))
    sandbox.take("web", noise(2, 50_000))
    with another(sandbox) as other:
        other.sync()
        sandbox.drop("web", 1)
        assert compact(other, Progress()).removed == 1
    sandbox.check()


def test_a_rotation_that_withdraws_itself_removes_the_copy_that_another_process_made(sandbox):
    """On a place without a lock; somebody else begins a session between the two."""
    lost = Identity.generate()
    sandbox.take("web", noise(1, 5000))
    with sandbox.opened() as store:
        store.admin.reseal([*store.keys.recipients, (lost.recipient, "lost")])
        store.storage.put("rotations/3", encode_rotation(3, {}, store.keys.writer_key.successor()))

    class Between(Lockless):
        def put(self, name, data):
            if name == "rotations/4":
                with another(sandbox) as other:
                    other.admin.adopt("other")
                    other.admin.reseal([one for one in other.keys.recipients if one[1] != "lost"])
            super().put(name, data)
            if name == "config/4":
                places = MachinePaths(str(sandbox.folder / "third" / "state"), str(sandbox.folder / "third" / "cache"))
                with Store.open(Lockless(str(sandbox.store)), places, lambda: sandbox.identity, StoreOptions(local_key=False)) as third:
                    third.session().abort()

    with (
        Store.open(Between(str(sandbox.store)), sandbox.places, lambda: sandbox.identity) as store,
        pytest.raises(BusyError, match="has just changed the keys"),
    ):
        store.admin.rotate()
    with another(sandbox) as store:
        assert [label for _, label in store.keys.recipients] == ["test"]
        assert not store.keys.writer_key.previous_keys


def test_a_first_generation_that_was_withdrawn_leaves_its_number_used(sandbox, monkeypatch):
    refreshed = KeyManager.refresh

    def failing(self):
        if sys._getframe(1).f_code.co_name == "commit":
            raise StorageError("the disk failed")
        refreshed(self)

    with monkeypatch.context() as patch:
        patch.setattr(KeyManager, "refresh", failing)
        with pytest.raises(StorageError, match="the disk failed"):
            sandbox.take("web", noise(1, 50_000))
    assert sandbox.take("web", noise(2, 50_000)) == 2


def test_small_packs_that_stay_do_not_make_others_be_written_again_and_again(sandbox):
    sandbox.take("web", noise(1, 5000))
    with sandbox.opened() as store, store.session() as session:
        for _ in range(20):
            session.put_node([Ref(RefKind.CHUNK, RecordId(os.urandom(32)), 5)])
            session._close_pack(full=False)
    with sandbox.opened() as store:
        assert len(plan(store).unfinished_packs) == 20
    for _ in range(3):
        assert sandbox.compact().written_bytes == 0
