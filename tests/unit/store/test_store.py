"""A store in a directory: sessions, packs, index, generations, keys."""

from __future__ import annotations

import functools
import os
import shutil
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from castore.crypto import Cipher, Identity
from castore.errors import (
    BusyError,
    DamageError,
    FormatError,
    IdentityError,
    KeyRotatedError,
    MissingError,
    NotFoundError,
    StorageError,
    UsageError,
)
from castore.kernel import padme
from castore.model.generation import Generation, StoredRef
from castore.model.refs import RecordId, Ref, RefKind
from castore.storage import LocalStorage
from castore.store import (
    MachinePaths,
    NewChunk,
    Store,
    StoreOptions,
    sync,
)
from castore.store.format import pack as packs
from castore.store.index_updater import IndexUpdater
from castore.store.write import session as sessions
from tests.support.stores import admins, remove_copies, signed


class LocalSetup:
    """A store's directory, this machine's places, and an identity."""

    def __init__(self, path):
        self.path = path
        self.places = MachinePaths(str(path / "state"), str(path / "cache"))
        self.identity = Identity.generate()
        self.asked = 0
        recipients = [(self.identity.recipient, "me")]
        self.store = Store.create(self.storage(), self.places, recipients, self.provide)

    def storage(self):
        return LocalStorage(str(self.path / "store"), create=True)

    def provide(self):
        self.asked += 1
        return self.identity

    def open(self, places=None, identity=True, **options):
        provider = self.provide if identity is True else identity
        return Store.open(self.storage(), places or self.places, provider, StoreOptions(**options))

    def elsewhere(self, name="other"):
        return MachinePaths(str(self.path / name / "state"), str(self.path / name / "cache"))

    def objects(self, folder):
        return sorted((self.path / "store" / folder).iterdir())


@pytest.fixture
def local(tmp_path):
    made = LocalSetup(tmp_path)
    yield made
    made.store.close()


def ref_of(session, content):
    return Ref(RefKind.CHUNK, session.chunk_id(content), len(content))


def seal(session, content):
    """Seal a chunk; return None if the store has it."""
    chunk = NewChunk(session.chunk_id(content), 0, len(content))
    if session.use_stored([chunk.id])[0]:
        return None
    (sealed,) = session.seal(bytearray(content), [chunk])
    return sealed


def put(store, *contents):
    """Store chunks and a node of them; return their references and the node's id."""
    with store.session() as session:
        refs = []
        for content in contents:
            sealed = seal(session, content)
            if sealed is not None:
                session.append(sealed)
            refs.append(ref_of(session, content))
        node, _ = session.put_node(refs)
    return refs, node


def generation(store, number=1, service="web", revision="r1", **more):
    details = StoredRef(RefKind.CHUNK, bytes(32), 1)
    made = Generation(service, number, number * 1000, revision, "", (), details, bytes(16), **more)
    return signed(store, made)


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def private(path):
    for folder, folders, files in os.walk(path):
        for name in folders:
            assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o700
        for name in files:
            assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o600


def test_chunks_and_nodes_come_back_and_are_stored_once(local):
    contents = [os.urandom(100_000), b"a" * 65536, b"x"]
    refs, node = put(local.store, *contents)
    assert [local.store.read_chunk(ref.id) for ref in refs] == contents
    assert local.store.reader.read_node(node) == refs
    assert local.asked == 1
    before = local.objects("packs")
    with local.store.session() as session:
        assert seal(session, contents[0]) is None
        assert session.put_node(refs) == (node, 0)
    assert local.objects("packs") == before
    assert len(local.objects("sessions")) == 1
    private(local.places.state)
    private(local.places.cache)


def test_a_chunk_added_twice_in_a_session_is_in_the_pack_once(local):
    with local.store.session() as session:
        first, second = seal(session, b"same" * 1000), seal(session, b"same" * 1000)
        assert first.counter != second.counter
        assert [session.append(first), session.append(second)] == [True, False]
        assert seal(session, b"same" * 1000) is None
    assert local.store.index.count("chunks") == 1


def test_records_are_sealed_on_two_threads_without_sharing_a_counter(local):
    contents = [os.urandom(3000) for _ in range(400)]
    with local.store.session() as session, ThreadPoolExecutor(2) as pool:
        sealed = list(pool.map(functools.partial(seal, session), contents))
        assert len({one.counter for one in sealed}) == len(contents)
        assert all(session.append(one) for one in sealed)
    assert [local.store.read_chunk(one.members[0].id) for one in sealed] == contents


def test_packs_are_cut_when_full_and_padded(local, monkeypatch):
    monkeypatch.setattr(packs, "PACK_BYTES", 1 << 20)
    refs, _ = put(local.store, *(os.urandom(60_000) for _ in range(60)))
    sizes = sorted(path.stat().st_size for path in local.objects("packs"))
    assert sizes[1:] == [1 << 20] * (len(sizes) - 1)
    assert len(sizes) == 4
    assert padme(sizes[0]) == sizes[0]
    assert all(len(local.store.read_chunk(ref.id)) == 60_000 for ref in refs)
    assert sum(size for _, size in local.store.index.packs.lengths()) == sum(sizes)


@pytest.mark.parametrize("cipher", Cipher)
def test_a_store_reads_sessions_of_either_cipher(local, monkeypatch, cipher):
    monkeypatch.setattr(sessions, "best_cipher", lambda: cipher)
    refs, node = put(local.store, b"content")
    with local.open() as store:
        assert store.read_chunk(refs[0].id) == b"content"
        assert store.reader.read_node(node) == refs


def test_an_identity_alone_opens_everything_and_adopt_keeps_the_writer_key(local):
    refs, node = put(local.store, b"content")
    local.store.generations.commit(generation(local.store))
    places = local.elsewhere()
    with local.open(places) as store:
        store.sync()
        assert store.read_chunk(refs[0].id) == b"content"
        assert store.reader.read_node(node) == refs
        assert store.generations.all() == [generation(local.store)]
        with pytest.raises(IdentityError, match="castore key adopt"):
            local.open(places, identity=None)
        store.admin.adopt("other")
    with local.open(places, identity=None) as store:
        assert store.keys.writer_key == local.store.keys.writer_key
    private(places.state)


def test_a_writer_key_alone_adds_and_lists_but_reads_no_chunk(local):
    with local.open(identity=None) as store:
        refs, node = put(store, b"content")
        store.generations.commit(generation(store))
        assert store.reader.read_node(node) == refs
        with pytest.raises(IdentityError):
            store.read_chunk(refs[0].id)


def test_a_wrong_identity_is_refused_with_the_recipients_of_the_store(local):
    refs, _ = put(local.store, b"content")
    with (
        local.open(identity=Identity.generate) as store,
        pytest.raises(IdentityError, match=local.identity.recipient.text),
    ):
        store.read_chunk(refs[0].id)
    with pytest.raises(IdentityError, match="opens nothing"):
        local.open(local.elsewhere(), identity=Identity.generate)


def test_what_is_no_store_or_another_store_or_version_is_refused(local, tmp_path):
    with pytest.raises(NotFoundError, match="holds no castore store"):
        Store.open(LocalStorage(str(tmp_path / "empty"), create=True), local.places)
    with pytest.raises(UsageError, match="already"):
        Store.create(local.storage(), local.places, [(local.identity.recipient, "")])
    path = local.places.writer_key_of(local.store.store_id)
    other = LocalSetup(tmp_path / "2")
    shutil.copy(other.places.writer_key_of(other.store.store_id), path)
    with pytest.raises(UsageError, match=other.store.store_id.hex()):
        local.open()
    other.store.close()
    with local.open(local_key=False) as store:
        store.admin.adopt("again")
    local.open().close()
    config = tmp_path / "store/config/2"
    remove_copies(tmp_path / "store")
    flip(config, 8)
    with pytest.raises(FormatError):
        local.open()


def test_every_flipped_byte_of_a_config_is_noticed(local, tmp_path):
    remove_copies(tmp_path / "store")
    config = tmp_path / "store/config/1"
    whole = config.read_bytes()
    for at in range(len(whole)):
        config.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises((DamageError, FormatError, IdentityError)):
            local.open(local.places, identity=None)
    for length in (0, 15, 33, 40, len(whole) - 1):
        config.write_bytes(whole[:length])
        with pytest.raises(DamageError, match="config/1"):
            local.open(identity=None)


def test_an_index_that_is_lost_or_damaged_or_cut_is_built_again(local):
    refs, _ = put(local.store, b"content")
    local.store.generations.commit(generation(local.store))
    local.store.close()
    path = local.places.index_of(local.store.store_id, local.store.storage.canonical_location)
    file = os.path.join(path, "data.mdb")

    def cut(length):
        os.truncate(file, length)

    def spoil():
        with open(file, "r+b") as opened:
            opened.write(b"\xff" * 8192)

    for harm in (lambda: shutil.rmtree(path), spoil, *(lambda n=n: cut(n) for n in (0, 100, 8192, 20480))):
        harm()
        with local.open() as store:
            store.sync()
            assert store.read_chunk(refs[0].id) == b"content"
            assert store.generations.all() == [generation(store)]
            store.updater.rebuild()
            assert store.generations.all() == [generation(store)]
            assert store.index.count("chunks") == 1


def test_a_damaged_pack_is_named_and_the_rest_of_the_store_is_usable(local):
    lost, _ = put(local.store, b"lost")
    (broken,) = local.objects("packs")
    kept, _ = put(local.store, b"kept")
    flip(broken, -1)
    with local.open(local.elsewhere()) as store:
        store.sync()
        assert list(store.damaged) == [f"packs/{broken.name}"]
        assert store.read_chunk(kept[0].id) == b"kept"
        with pytest.raises(MissingError, match=broken.name):
            store.read_chunk(lost[0].id)


def test_every_flipped_byte_of_a_pack_is_noticed_or_padding(local):
    refs, node = put(local.store, b"content" * 20)
    (path,) = local.objects("packs")
    whole = path.read_bytes()
    noticed = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        local.store.index.clear()
        try:
            local.store.sync()
            assert local.store.read_chunk(refs[0].id) == b"content" * 20
            assert local.store.reader.read_node(node) == refs
        except DamageError as error:
            noticed += 1
            assert path.name in str(error)
    assert len(whole) * 7 // 8 <= noticed <= len(whole)
    for length in (0, 31, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DamageError, match=path.name):
            local.store.reader.pack_entries(bytes.fromhex(path.name))


def test_damaged_generations_are_named_and_their_numbers_not_used_again(local):
    for number in (1, 2, 3):
        local.store.generations.commit(generation(local.store, number))
    flip(local.objects("generations")[2], 30)
    with local.open(local.elsewhere()) as store:
        store.generations.sync()
        assert [g.number for g in store.generations.all("web")] == [2, 1]
        assert store.generations.get("web", 3) is None
        assert list(store.damaged) == [f"generations/{local.objects('generations')[2].name}"]
        assert store.generations.next_number("web") == 4
        local.objects("generations")[2].unlink()
        store.sync()
        assert store.damaged == {}


def test_a_damaged_or_missing_session_is_named_when_a_record_of_it_is_read(local):
    refs, node = put(local.store, b"content")
    (path,) = local.objects("sessions")
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with local.open() as store, pytest.raises(DamageError, match=path.name):
            store.reader.read_node(node)
    path.unlink()
    with local.open() as store, pytest.raises(MissingError, match=path.name.split(".", 1)[0]):
        store.read_chunk(refs[0].id)


def test_generations_are_found_by_number_service_and_revision(local):
    store = local.store
    store.generations.commit(generation(store, 1, revision="9f3c"))
    store.generations.commit(generation(store, 2, revision="9f3d"))
    store.generations.commit(generation(store, 3, revision="9f3c"))
    store.generations.commit(generation(store, 4, revision="9f3c", pre_rollback=True))
    store.generations.commit(generation(store, 256, "web2", revision="9f3c"))
    assert store.generations.services() == ["web", "web2"]
    assert [g.number for g in store.generations.all("web")] == [4, 3, 2, 1]
    assert [g.number for g in store.generations.all()] == [256, 4, 3, 2, 1]
    assert [g.number for g in store.generations.by_revision("web", "9f3")] == [3, 2, 1]
    assert [g.number for g in store.generations.by_revision("web", "9f3c")] == [3, 1]
    assert [g.number for g in store.generations.by_revision("web2", "")] == [256]
    assert store.generations.by_revision("we", "") == []
    assert (store.generations.next_number("web"), store.generations.next_number("new")) == (5, 1)
    with pytest.raises(BusyError):
        store.generations.commit(generation(store, 2))
    local.objects("generations")
    removed = [path for path in local.objects("generations") if path.name.endswith("0000000003")]
    removed[0].unlink()
    store.generations.sync()
    assert [g.number for g in store.generations.by_revision("web", "9f3c")] == [1]
    assert [g.number for g in store.generations.all("web")] == [4, 2, 1]


def test_a_pack_that_another_machine_added_is_found_on_a_miss_and_a_vanished_one_forgotten(local):
    with local.open(local.elsewhere()) as other:
        other.admin.adopt("other")
        refs, _ = put(local.store, b"content")
        assert other.read_chunk(refs[0].id) == b"content"
        local.objects("packs")[0].unlink()
        with pytest.raises(MissingError, match=rf"{refs[0].id.hex()}.*packs/[0-9a-f]{{64}} does not exist"):
            other.read_chunk(refs[0].id)
        assert not other.index.locations.contains([refs[0].id])[0]


def test_of_two_copies_of_a_chunk_the_sound_one_is_read(local):
    with local.open(local.elsewhere()) as other:
        refs, node = put(local.store, b"content")
        assert put(other, b"content") == (refs, node)
        for path in local.objects("packs"):
            whole = path.read_bytes()
            flip(path, 40)
            local.store.updater.rebuild()
            assert local.store.read_chunk(refs[0].id) == b"content"
            path.unlink()
            local.store.sync()
            assert local.store.read_chunk(refs[0].id) == b"content"
            assert local.store.reader.read_node(node) == refs
            path.write_bytes(whole)


def test_a_session_refuses_everything_after_its_first_error(local, monkeypatch):
    monkeypatch.setattr(packs, "PACK_BYTES", 1 << 20)
    failure = StorageError("no space")

    def fail(self, *, full):
        raise failure

    monkeypatch.setattr(packs.PackWriter, "commit", fail)
    with pytest.raises(StorageError) as caught, local.store.session() as session:
        for _ in range(1000):
            session.append(seal(session, os.urandom(60_000)))
    assert caught.value is failure
    for refused in (lambda: session.seal(bytearray(), []), lambda: session.put_node([]), session.finish):
        if refused != session.finish:
            with pytest.raises(StorageError):
                refused()
    assert local.objects("tmp") == []
    assert not (local.path / "store" / "packs").exists()


def test_what_was_stored_before_an_error_is_found_by_the_next_try(local):
    with pytest.raises(ZeroDivisionError), local.store.session() as session:
        session.append(seal(session, b"content"))
        raise ZeroDivisionError
    assert local.store.read_chunk(session.chunk_id(b"content")) == b"content"
    with pytest.raises(StorageError, match="ended"):
        session.seal(bytearray(b"more"), [])
    assert not [t for t in threading.enumerate() if t.name.startswith("castore-pack")]


def test_resealing_adds_and_removes_recipients_and_can_be_repeated(local, monkeypatch):
    refs, _ = put(local.store, b"content")
    second = Identity.generate()
    both = [(local.identity.recipient, "me"), (second.recipient, "you")]
    local.store.admin.reseal(both, admins=admins(local.identity, second))
    assert local.store.keys.recipients == both
    assert {p.name.split(".")[0] for p in local.objects("config")} == {"2"}
    assert [p.name.split(".")[1] for p in local.objects("sessions")] == ["1"]
    trust = [local.identity.admin.public]
    with local.open(local.elsewhere(), identity=lambda: second, trust=trust) as store:
        assert store.read_chunk(refs[0].id) == b"content"
        delete_all = LocalStorage.delete_all
        monkeypatch.setattr(LocalStorage, "delete_all", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.admin.reseal(both[1:], admins=admins(second))
        monkeypatch.setattr(LocalStorage, "delete_all", delete_all)
    with local.open(local.elsewhere(), identity=lambda: second, trust=trust) as store:
        store.admin.reseal(both[1:], admins=admins(second))
    assert {p.name.split(".")[0] for p in local.objects("config")} == {"3"}
    assert [p.name.split(".")[1] for p in local.objects("sessions")] == ["2"]
    with local.open() as store, pytest.raises(IdentityError, match=second.recipient.text):
        store.read_chunk(refs[0].id)
    with pytest.raises(KeyRotatedError):
        put(local.store, b"more")  # who is no admin any more knows the writer key: it was replaced
    with local.open(identity=None) as store:
        put(store, b"more")
    with local.open(identity=lambda: second) as store:
        more, _ = put(store, b"more")
        assert store.read_chunk(more[0].id) == b"more"
        with pytest.raises(UsageError):
            store.admin.reseal([])


def test_a_service_is_locked_once(local):
    with local.store.state.lock("web"), local.open() as other:
        with pytest.raises(BusyError, match=rf"pid {os.getpid()} on \S+ since \d"), other.state.lock("web"):
            pass
        with other.state.lock("db"):
            pass
    with local.store.state.lock("web"):
        pass


def test_the_live_revision_is_remembered(local):
    assert local.store.state.live_revision("web") is None
    local.store.state.set_live_revision("web", "r1")
    local.store.state.set_live_revision("web", "r2")
    assert local.store.state.live_revision("web") == "r2"


def test_a_store_that_misses_a_chunk_says_which(local):
    with pytest.raises(MissingError, match="00" * 32):
        local.store.read_chunk(RecordId(bytes(32)))
    with pytest.raises(MissingError, match="00" * 32):
        local.store.reader.read_node(RecordId(bytes(32)))
    assert Ref(RefKind.CHUNK, RecordId(bytes(32)), 0).size == 0


def test_many_missing_records_cost_one_sync(local, monkeypatch):
    put(local.store, b"content")
    synced = []
    sync_all = IndexUpdater.sync
    monkeypatch.setattr(IndexUpdater, "sync", lambda updater, **options: synced.append(updater) or sync_all(updater, **options))
    for number in range(20):
        with pytest.raises(MissingError):
            local.store.read_chunk(RecordId(number.to_bytes(32, "big")))
        with pytest.raises(MissingError):
            local.store.reader.read_node(RecordId(number.to_bytes(32, "big")))
    assert len(synced) == 1


def test_records_of_a_lost_pack_cost_few_syncs_and_later_packs_are_found_again(local, monkeypatch):
    with local.open(local.elsewhere()) as other:
        other.admin.adopt("other")
        lost, _ = put(local.store, *(b"%d" % number for number in range(20)))
        assert other.read_chunk(lost[0].id) == b"0"
        before = set(local.objects("packs"))
        synced = []
        sync_all = IndexUpdater.sync
        monkeypatch.setattr(IndexUpdater, "sync", lambda updater, **options: synced.append(updater) or sync_all(updater, **options))
        for path in before:
            path.unlink()
        for ref in lost:
            with pytest.raises(MissingError, match="is not in the store"):
                other.read_chunk(ref.id)
        assert len(synced) <= 2
        # Later packs are found, and what a generation references that was added meanwhile.
        added, _ = put(local.store, b"of a new generation")
        local.store.generations.commit(generation(local.store))
        other.generations.sync()
        assert other.read_chunk(added[0].id) == b"of a new generation"
        kept, _ = put(local.store, b"kept")
        other.sync()
        local.objects("packs")[0].unlink()
        local.store.updater.rebuild()
        moved, _ = put(local.store, b"kept", b"another")
        assert other.read_chunk(kept[0].id) == b"kept"
        assert other.read_chunk(moved[1].id) == b"another"


def test_a_session_of_many_threads_and_packs_keeps_every_node_after_its_chunks(local, monkeypatch):
    monkeypatch.setattr(packs, "PACK_BYTES", 1 << 19)
    contents = [os.urandom(20_000) for _ in range(150)]
    nodes = []
    with local.store.session() as session, ThreadPoolExecutor(2) as pool:
        sealed = pool.map(functools.partial(seal, session), contents * 2)
        for content, one in zip(contents * 2, sealed, strict=True):
            if one is not None:
                session.append(one)
            ref = ref_of(session, content)
            nodes.append((session.put_node([ref])[0], ref))
        session.finish()
        session.finish()
    assert local.store.index.count("chunks") == len(contents)
    with local.open(local.elsewhere()) as store:
        for node, ref in nodes:
            assert store.reader.read_node(node) == [ref]
        assert sorted(store.index.packs.lengths()) == sorted(local.store.index.packs.lengths())
        assert not store.index.locations.copies(nodes[0][1].id)


def test_many_packs_are_indexed_at_once_and_damaged_ones_named(local, monkeypatch):
    monkeypatch.setattr(sync, "_MANY", 3)
    contents = [os.urandom(2000) for _ in range(5)]
    nodes = [put(local.store, content)[1] for content in contents]
    local.store.generations.commit(generation(local.store))
    packs_of = {pack: local.store.reader.pack_entries(pack) for pack, _ in local.store.index.packs.lengths()}
    (broken,) = (pack for pack, found in packs_of.items() if nodes[2] in {entry.id for entry in found})
    flip(local.path / "store/packs" / broken.hex(), -1)
    places = local.elsewhere()
    with local.open(places) as store:
        store.sync()
        assert list(store.damaged) == [f"packs/{broken.hex()}"]
        assert {pack for pack, _ in store.index.packs.lengths()} == packs_of.keys() - {broken}
        assert [store.index.locations.has_node(node) for node in nodes] == [True, True, False, True, True]
        assert store.generations.all() == [generation(local.store)]
        # What is added later is taken in as ever, by another store that had this index open too.
        with local.open(places) as other:
            _, node = put(local.store, b"more")
            other.sync()
            assert other.index.locations.has_node(node)
            assert store.index.locations.has_node(node)
            other.updater.rebuild()
            assert store.index.locations.has_node(node)
            assert [g.number for g in store.generations.all()] == [1]
    assert os.listdir(os.path.dirname(places.index_of(local.store.store_id, local.store.storage.canonical_location))) == ["index"]
