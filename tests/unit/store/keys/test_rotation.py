"""A writer key that takes the place of another, and what a thief of the former one can still do."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from blake3 import blake3

import castore
from castore.content.restore.metadata import Ownership
from castore.crypto import Identity, KeyHistory, WriterKey
from castore.errors import (
    BusyError,
    DamageError,
    IdentityError,
    KeyRotatedError,
    RevokedKeyError,
)
from castore.maintenance.verify import verify as verify_store
from castore.services.restore import restore as restore_parts
from castore.services.selectors import select
from castore.services.sources import Tree, file_source
from castore.state.writer_key_file import next_of
from castore.storage import LocalStorage, Storage
from castore.store import MachinePaths, Store, StoreOptions
from castore.store.format.config import config_numbers
from castore.store.format.generation import encode_generation
from castore.store.format.names import generation_name
from castore.store.format.rotation import decode_rotation, encode_rotation, rotation_numbers
from tests.support.checkout import ROOT
from tests.support.stores import Sandbox, admins, remove_copies, signed, take_snapshot

RESCUE = ROOT / "tools" / "rescue.py"
SAME = random.Random(1).randbytes(300_000)


@pytest.fixture(autouse=True)
def without_a_lock(monkeypatch):
    """Machines that see no lock of each other: what a lock keeps apart happens at the same time here."""
    monkeypatch.setattr(LocalStorage, "lock", lambda _self, *, exclusive=False: contextlib.nullcontext(False))


class TrackedStore:
    """A store with a machine, and what was put into it."""

    def __init__(self, folder):
        self.sandbox = Sandbox(folder, average=16384)
        self.folder = folder
        self.versions = {}
        self.storage = LocalStorage(str(self.sandbox.store))

    def open(self, places=None, identity=True, storage=None, **options):
        provider = (lambda: self.sandbox.identity) if identity else None
        return Store.open(storage or self.storage, places or self.sandbox.places, provider, StoreOptions(**options))

    def machine(self, name):
        return MachinePaths(str(self.folder / name / "state"), str(self.folder / name / "cache"))

    def take(self, places=None, **options):
        number = len(self.versions) + 1
        dump, tree = self.folder / "dump", self.folder / "tree"
        tree.mkdir(exist_ok=True)
        data = b"%d" % number + SAME[:100_000] + b"more %d" % number + SAME[100_000:]
        data += random.Random(number).randbytes(20_000)
        dump.write_bytes(data)
        (tree / f"file{number}").write_bytes(b"%d" % number * 1000)
        (tree / "large").write_bytes(SAME[:200_000])
        sources = {"d": file_source(str(dump)), "t": Tree(str(tree))}
        with self.open(places, identity=False) as store:
            taken = take_snapshot(store, "web", sources, **options)
        assert taken.number == number
        self.versions[number] = data, {path.name: path.read_bytes() for path in tree.iterdir()}
        return taken

    def rotate(self, **options):
        with self.open() as store:
            store.admin.rotate(**options)
            return store.keys.writer_key

    def check(self, places=None, **options):
        """See that all that was put in is whole, and restores."""
        with self.open(places, **options) as store:
            store.sync()
            assert store.damaged == {}
            assert [g.number for g in store.generations.all("web")] == sorted(self.versions, reverse=True)
            assert verify_store(store, castore.Progress(), read_data=True).sound
            for number, (data, tree) in self.versions.items():
                out = self.folder / f"out-{os.urandom(4).hex()}"
                selection = select(store, f"web@{number}")
                restore_parts(store, selection, str(out), Ownership(change=False), castore.Progress())
                assert (out / "d").read_bytes() == data
                assert {path.name: path.read_bytes() for path in (out / "t").iterdir()} == tree
                shutil.rmtree(out)

    def rescued(self):
        """See that all of it restores without castore."""
        identity = self.folder / "identity"
        identity.write_text(self.sandbox.identity.text() + "\n")
        command = [sys.executable, str(RESCUE), str(self.sandbox.store), "--identity", str(identity)]
        for number, (data, tree) in self.versions.items():
            out = self.folder / f"out-{os.urandom(4).hex()}"
            done = subprocess.run([*command, "web", str(number), str(out)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert (out / "d").read_bytes() == data
            assert {path.name: path.read_bytes() for path in (out / "t").iterdir()} == tree
            shutil.rmtree(out)
        return command

    def names(self):
        return {str(path.relative_to(self.sandbox.store)) for path in self.sandbox.store.rglob("*") if path.is_file()}


@pytest.fixture
def tracked(tmp_path):
    return TrackedStore(tmp_path)


@pytest.mark.parametrize("new_ids", [False, True])
def test_all_of_it_restores_after_rotations_here_elsewhere_and_without_castore(tracked, new_ids):
    tracked.take(), tracked.take()
    old = tracked.rotate(new_ids=new_ids)
    tracked.check()
    third = tracked.take()
    again = third.part("d").new_chunks
    assert (again > 12) == new_ids, "chunks are found again only under the same ids"
    assert third.parent == 2
    tracked.rotate()
    tracked.take()
    tracked.check()
    tracked.check(tracked.machine("fresh"))
    tracked.rescued()
    assert rotation_numbers(tracked.storage) == [3], "the last list holds what earlier ones listed"
    with tracked.open() as store:
        assert len(store.keys.writer_key.previous_keys) == 2
        assert store.keys.writer_key.previous_keys[1] == old
        assert len(set(store.keys.writer_key.tags("web"))) == 3
    shutil.rmtree(tracked.sandbox.places.cache)
    tracked.check()


def test_deltas_are_based_on_what_a_previous_key_sealed(tracked):
    tracked.take()
    tracked.rotate()
    taken = tracked.take()
    part = taken.part("d")
    assert 0 < part.new_chunks < 8
    assert part.after_delta <= part.new_bytes
    with tracked.open() as store:
        store.sync()
        (newest,) = [p for p, _ in store.index.packs.lengths() if any(e.session == taken.session for e in store.reader.pack_entries(p))]
        assert any(entry.bases for entry in store.reader.pack_entries(newest))


def test_no_identity_is_needed_and_files_are_replaced(tracked):
    tracked.take()
    path = Path(tracked.sandbox.places.writer_key_of(Store.read_id(tracked.storage)))
    before = path.read_text()
    tracked.rotate()
    assert path.read_text() != before
    assert not Path(next_of(str(path))).exists()
    tracked.take()
    names = [name for name in tracked.names() if name.startswith(("config", "rotations"))]
    assert len(names) == 4
    assert {name.split(".")[0] for name in names} == {"config/2", "rotations/2"}


def test_a_machine_takes_the_new_key_by_itself_unless_it_is_revoked(tracked):
    tracked.take()
    other = tracked.machine("other")
    with tracked.open(other) as store:
        store.admin.adopt("other")
    tracked.rotate()
    tracked.take(other)  # it has the new one by itself
    with tracked.open() as store:
        store.admin.revoke("other")
    for identity in (False, True):
        with pytest.raises(KeyRotatedError, match="castore key adopt"):
            tracked.open(other, identity=identity)
    with tracked.open(other, local_key=False) as store:
        store.admin.adopt("other")
    tracked.take(other)
    tracked.check(other)
    tracked.check()


def test_a_session_in_flight_does_not_commit_under_the_former_key(tracked):
    tracked.take()
    other = tracked.machine("other")
    with tracked.open(other) as store:
        store.admin.adopt("other")
    with tracked.open(other, identity=False) as late:
        late.sync()
        (model,) = late.generations.all()
        with late.session() as session:
            session.put_node([model.details.ref])
        tracked.rotate()
        import msgspec

        with pytest.raises(KeyRotatedError, match="web@2 is not committed"):
            late.generations.commit(msgspec.structs.replace(model, number=2))
        with pytest.raises(KeyRotatedError):
            late.session()
    with tracked.open() as store:
        store.sync()
        (name,) = store.damaged
        assert "former writer key" in store.damaged[name]
        assert store.generations.next_number("web") == 2, "what does not count takes no number"
        assert [g.number for g in store.generations.all()] == [1]


def test_a_thief_of_the_former_key_forges_nothing(tracked):
    import msgspec

    tracked.take(), tracked.take()
    with tracked.open() as store:
        store.sync()
        stolen, model = store.keys.writer_key, store.generations.newest("web")
    (listed,) = [name for name in tracked.names() if name.endswith("-0000000002")]
    tracked.rotate()
    forged = msgspec.structs.replace(model, number=9, revision="forged")
    name = generation_name(stolen.tag("web"), 9)
    tracked.storage.put(name, encode_generation(forged, stolen)[0])
    # In the place of one that was there, too.
    changed = msgspec.structs.replace(model, revision="forged")
    genuine = (tracked.sandbox.store / listed).read_bytes()
    (tracked.sandbox.store / listed).write_bytes(encode_generation(changed, stolen)[0])
    for places in (None, tracked.machine("fresh")):
        with tracked.open(places) as store:
            store.updater.rebuild()
            assert set(store.damaged) == {name, listed}
            for reason in store.damaged.values():
                assert "former writer key" in reason
            assert [g.number for g in store.generations.all()] == [1]
            assert store.generations.next_number("web") == 3
            found = verify_store(store, castore.Progress())
            assert len(found.damage) == 2
            with pytest.raises(RevokedKeyError):
                select(store, "web@latest")
    command = [sys.executable, str(RESCUE), str(tracked.sandbox.store), "--identity", str(tracked.folder / "identity")]
    (tracked.folder / "identity").write_text(tracked.sandbox.identity.text() + "\n")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "not listed" in done.stderr
    assert "forged" not in done.stdout
    (tracked.sandbox.store / listed).write_bytes(genuine)
    (tracked.sandbox.store / name).unlink()
    tracked.check()


def test_what_was_forged_after_a_rotation_is_not_listed_by_the_next(tracked):
    import msgspec

    tracked.take()
    with tracked.open() as store:
        store.sync()
        stolen, model = store.keys.writer_key, store.generations.newest("web")
    tracked.rotate()
    name = generation_name(stolen.tag("web"), 5)
    tracked.storage.put(name, encode_generation(msgspec.structs.replace(model, number=5), stolen)[0])
    tracked.rotate()
    with tracked.open() as store:
        store.sync()
        assert set(store.damaged) == {name}
    (tracked.sandbox.store / name).unlink()
    tracked.take()
    tracked.check()


def test_an_index_that_took_a_forgery_in_forgets_it(tracked):
    import msgspec

    tracked.take()
    other = tracked.machine("other")
    with tracked.open(other) as store:
        store.admin.adopt("other")
        store.sync()
        stolen, model = store.keys.writer_key, store.generations.newest("web")
    with tracked.open(other, identity=False) as late:
        tracked.rotate()
        name = generation_name(stolen.tag("web"), 5)
        forged = signed(late, msgspec.structs.replace(model, number=5))
        tracked.storage.put(name, encode_generation(forged, stolen)[0])
        late.sync()
        assert late.generations.newest("web").number == 5, "it cannot know"
    with tracked.open(other, local_key=False) as store:
        store.admin.adopt("other")
        assert store.generations.newest("web").number == 1


def test_a_forged_session_object_hides_no_genuine_one(tracked):
    from castore.store.format.session_key import decode_session, encode_session, session_numbers

    tracked.take()
    (session, _numbers), = session_numbers(tracked.storage).items()
    with tracked.open() as store:
        stolen = store.keys.writer_key
    record = decode_session(session, 0, tracked.storage.get(f"sessions/{session.hex()}.0"), stolen)
    tracked.rotate()
    tracked.storage.put(f"sessions/{session.hex()}.7", encode_session(session, 7, record, stolen))
    tracked.check()
    more = Identity.generate()
    with tracked.open() as store:
        named = [*store.keys.config.admins, *admins(more)]
        assert store.admin.reseal([*store.keys.recipients, (more.recipient, "more")], admins=named)
    tracked.check()
    trust = [tracked.sandbox.identity.admin.public]
    tracked.sandbox.identity = more
    tracked.check(tracked.machine("fresh"), trust=trust)


def test_recipients_come_and_go_after_a_rotation(tracked):
    tracked.take()
    tracked.rotate()
    tracked.take()
    first, second = tracked.sandbox.identity, Identity.generate()
    with tracked.open() as store:
        named = admins(first, second)
        assert store.admin.reseal([*store.keys.recipients, (second.recipient, "second")], admins=named)
    tracked.check()
    tracked.sandbox.identity = second
    tracked.check(tracked.machine("second"), trust=[first.admin.public])
    tracked.rescued()
    with tracked.open() as store:
        assert store.admin.reseal([(second.recipient, "second")], admins=admins(second))
    tracked.rotate(new_ids=True)
    tracked.take()
    tracked.check()
    tracked.check(tracked.machine("third"))
    tracked.rescued()
    tracked.sandbox.identity = first
    with pytest.raises(IdentityError):
        tracked.open(tracked.machine("fourth"))


def test_what_a_machine_keeps_of_a_service_stays_its_own(tracked):
    tracked.take()
    with tracked.open() as store:
        store.state.set_live_revision("web", "r1")
        store.state.set_undo_number("web", 1)
        store.state.write_rollback_journal("web", b"journal")
    tracked.rotate(), tracked.rotate()
    with tracked.open() as store:
        assert store.state.live_revision("web") == "r1"
        assert store.state.undo_number("web") == 1
        assert store.state.rollback_journal("web") == b"journal"


def test_it_waits_for_nobody(tracked):
    tracked.take()
    with tracked.open() as store, tracked.open() as other, store.state.lock("web"), pytest.raises(BusyError):
        other.admin.rotate()
    tracked.check()


def test_an_unchanged_tree_is_read_again_under_new_ids_only(tracked):
    tracked.take()
    tracked.rotate()
    with tracked.open() as store:
        epoch = store.index.epoch()
    tracked.rotate(new_ids=True)
    with tracked.open() as store:
        assert store.index.epoch() != epoch


def test_without_the_list_nothing_old_counts_and_rescue_goes_on(tracked):
    tracked.take()
    tracked.rotate()
    shutil.rmtree(tracked.sandbox.store / "rotations")
    (tracked.sandbox.store / "rotations").mkdir()
    with tracked.open(tracked.machine("fresh")) as store:
        store.sync()
        assert store.damaged
        assert all("rotations/2 is missing" in reason for reason in store.damaged.values())
    identity = tracked.folder / "identity"
    identity.write_text(tracked.sandbox.identity.text())
    out = tracked.folder / "out"
    command = [sys.executable, str(RESCUE), str(tracked.sandbox.store), "--identity", str(identity)]
    done = subprocess.run([*command, "web", "1", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "rotations/2" in done.stderr
    assert (out / "d").read_bytes() == tracked.versions[1][0]


def test_without_the_list_the_key_is_not_replaced_again(tracked):
    """The next list would lack all that was added under the first key, for good."""
    tracked.take()
    tracked.rotate()
    rotations = tracked.sandbox.store / "rotations"
    kept = {path: path.read_bytes() for path in rotations.iterdir()}
    for path in kept:
        path.unlink()
    with tracked.open() as store, pytest.raises(DamageError, match="rotations/2 is missing"):
        store.admin.rotate()
    for path, data in kept.items():
        path.write_bytes(data)
    tracked.rotate()
    tracked.check()


@pytest.mark.parametrize("at", [3, 8, 12, 20, 60, -1, "cut", "another's"])
def test_a_damaged_list_is_named_and_nothing_that_it_vouched_for_is_taken(tracked, at):
    tracked.take()
    tracked.rotate()
    remove_copies(tracked.sandbox.store)
    path = tracked.sandbox.store / "rotations" / "2"
    data = bytearray(path.read_bytes())
    if at == "another's":
        data = bytearray(encode_rotation(2, {}, WriterKey.generate()))
    elif at == "cut":
        del data[len(data) // 2 :]
    else:
        data[at] ^= 1
    path.write_bytes(data)
    with tracked.open(tracked.machine("fresh")) as store:
        store.sync()
        assert store.generations.all() == []
        assert store.damaged
        assert all("rotations/2" in reason for reason in store.damaged.values())
        assert store.generations.next_number("web") == 2, "a number is not given twice, even so"
    # New snapshots work, and depend on nothing that is not accepted.
    shutil.rmtree(tracked.sandbox.places.cache)
    with tracked.open(identity=False, accept_older=True) as store:
        store.sync()
    taken = tracked.take()
    assert taken.part("d").new_chunks == taken.part("d").chunks
    with tracked.open() as store:
        store.sync()
        assert [one.number for one in store.generations.all()] == [2]
        selection = select(store, "web@2:d")
        restore_parts(store, selection, str(tracked.folder / "out"), Ownership(change=False), castore.Progress())
        assert (tracked.folder / "out" / "d").read_bytes() == tracked.versions[2][0]


def test_the_era_object_is_what_the_format_says():
    from nacl import bindings

    writer = WriterKey.generate()
    listed = {"packs/" + "ab" * 32: b"\xab" * 32, "sessions/" + "0" * 32 + ".0": b"h" * 32}
    data = encode_rotation(7, listed, writer)
    assert decode_rotation(7, data, writer) == listed
    assert data[:16] == b"castorer\x01" + bytes(7)
    def derive(name, secret):
        return blake3(secret, derive_key_context=f"castore 1 {name}").digest()
    key = derive("objects", derive("index", writer.secret))
    associated = b"rotations/7" + writer.store_id + data[:16]
    plain = bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(data[40:], associated, data[16:40], key)
    assert b"\xab" * 32 in plain
    for wrong in (data[:-1], data[:39], data[:20] + b"x" + data[21:]):
        with pytest.raises(DamageError):
            decode_rotation(7, wrong, writer)
    with pytest.raises(DamageError):
        decode_rotation(8, data, writer)


def test_no_secret_of_a_past_is_shown():
    first = WriterKey.generate()
    later = WriterKey(first.store_id, os.urandom(32), KeyHistory((first.secret,), first.secret, dict))
    assert first.secret.hex() not in repr([later, later.previous_keys])
    assert repr(KeyHistory((first.secret,), first.secret, dict)).startswith("<")
    assert (later.chunk_id_key, later.gear, later.sketch) == (first.chunk_id_key, first.gear, first.sketch)
    assert later.tag("s") != first.tag("s")


# Cut off at every step


class CutError(Exception):
    """The power went."""


class CuttingStorage(Storage):
    """A storage that fails at its k-th change, before or after that happens."""

    def __init__(self, inner, at, after):
        self._inner, self._left, self._after = inner, at, after
        self.changes = []

    def _change(self, what, action):
        self.changes.append(what)
        self._left -= 1
        if self._left == 0 and not self._after:
            raise CutError(what)
        action()
        if self._left == 0:
            raise CutError(what)

    @property
    def location(self):
        return self._inner.location

    def create(self):
        raise AssertionError("a rotation writes whole objects")

    def put(self, name, data):
        self._change(f"put {name}", lambda: self._inner.put(name, data))

    def get(self, name, offset=0, length=None):
        return self._inner.get(name, offset, length)

    def size(self, name):
        return self._inner.size(name)

    def list(self, folder, after=""):
        return self._inner.list(folder, after)

    def delete(self, name):
        self._change(f"delete {name}", lambda: self._inner.delete(name))


def cut_files(monkeypatch, at, after):
    """Let the k-th change of this machine's key files fail."""
    from castore.store.keys import administration as module

    left = [at]

    def wrapped(function):
        def run(*args):
            left[0] -= 1
            if left[0] == 0 and not after:
                raise CutError(function.__name__)
            function(*args)
            if left[0] == 0:
                raise CutError(function.__name__)

        return run

    for name in ("keep_writer_key", "drop_next"):
        monkeypatch.setattr(module, name, wrapped(getattr(module, name)))


def cut_rotation(tracked, storage=None):
    try:
        with tracked.open(storage=storage) as store:
            store.admin.rotate()
    except CutError:
        return True
    return False


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("where", ["store", "machine"])
def test_cut_off_at_any_step_it_opens_with_the_old_or_the_new_key(tracked, monkeypatch, where, after):
    tracked.take(), tracked.take()
    tracked.rotate()  # so that there is something of an earlier one to remove
    tracked.take()
    master = tracked.folder / "master"
    for folder in ("store", "state", "cache"):
        shutil.copytree(tracked.folder / folder, master / folder)
    seen = set()
    for at in range(1, 20):
        for folder in ("store", "state", "cache"):
            shutil.rmtree(tracked.folder / folder)
            shutil.copytree(master / folder, tracked.folder / folder)
        versions = dict(tracked.versions)
        if where == "store":
            storage = CuttingStorage(tracked.storage, at, after)
            cut = cut_rotation(tracked, storage)
        else:
            with monkeypatch.context() as patch:
                cut_files(patch, at, after)
                cut = cut_rotation(tracked)
        tracked.check()
        tracked.check(tracked.machine(f"fresh{at}"))
        with tracked.open() as store:
            seen.add(len(store.keys.writer_key.previous_keys))
        tracked.take()
        tracked.rotate()  # what was left lying about is no obstacle
        tracked.take()
        tracked.check()
        assert len(rotation_numbers(tracked.storage)) == 1
        assert not list(tracked.folder.glob("state/*/*.next"))
        tracked.versions = versions
        if not cut:
            break
    else:
        pytest.fail("it never ended")
    assert at > 2
    assert seen == {1, 2}, "cut off, it has happened, or has not"


def test_the_next_key_is_taken_at_the_next_start(tracked):
    tracked.take()
    storage = CuttingStorage(tracked.storage, 3, after=True)  # config/2 is there, and the file is not replaced
    assert cut_rotation(tracked, storage)
    assert [change.split(".")[0] for change in storage.changes] == ["put rotations/2", "put rotations/2", "put config/2"]
    path = Path(tracked.sandbox.places.writer_key_of(Store.read_id(tracked.storage)))
    following = Path(next_of(str(path)))
    assert following.read_text() != path.read_text()
    text = following.read_text()
    tracked.open(identity=False).close()
    assert path.read_text() == text
    assert not following.exists()


def test_of_two_rotations_at_once_one_counts(tracked, monkeypatch):
    tracked.take()
    other = tracked.machine("other")
    with tracked.open(other) as store:
        store.admin.adopt("other")
    from castore.store.keys import rotation

    listed = rotation._listed

    def meanwhile(*args):
        monkeypatch.setattr(rotation, "_listed", listed)
        with tracked.open(other) as store:
            store.admin.rotate()
        return listed(*args)

    monkeypatch.setattr(rotation, "_listed", meanwhile)
    with tracked.open() as store, pytest.raises((BusyError, KeyRotatedError)):
        store.admin.rotate()
    tracked.check(other)
    tracked.check()


def test_what_comes_in_meanwhile_is_listed_all_the_same(tracked, monkeypatch):
    tracked.take()
    other = tracked.machine("other")
    with tracked.open(other) as store:
        store.admin.adopt("other")
    from castore.store.keys import rotation

    encode = rotation.encode_rotation

    def meanwhile(*args):
        monkeypatch.setattr(rotation, "encode_rotation", encode)
        tracked.take(other)  # it is committed, and nobody knows better
        return encode(*args)

    monkeypatch.setattr(rotation, "encode_rotation", meanwhile)
    tracked.rotate()
    tracked.check()
    assert config_numbers(tracked.storage) == [4], "adopted, replaced, and listed again"
