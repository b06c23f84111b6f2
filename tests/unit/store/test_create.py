"""Creating a store: of two that are created at once in one place, one exists."""

from __future__ import annotations

import os

import pytest

from castore.crypto import Identity
from castore.errors import StorageError, UsageError
from castore.storage import LocalStorage
from castore.store import MachinePaths, NewStore, Store
from castore.store.format.names import CONFIGS


@pytest.fixture
def places(tmp_path):
    return MachinePaths(str(tmp_path / "state"), str(tmp_path / "cache"))


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(str(tmp_path / "store"), create=True)


def create(storage, places, **options):
    identity = Identity.generate()
    return Store.create(storage, places, [(identity.recipient, "test")], lambda: identity, NewStore(**options))


def test_of_two_that_are_created_at_once_one_is_refused_and_keeps_no_key(storage, places, tmp_path):
    elsewhere = MachinePaths(str(tmp_path / "other"), str(tmp_path / "other cache"))
    created = []
    with pytest.raises(UsageError, match="holds a castore store already"):
        create(storage, places, before_create=lambda store_id: created.append(create(storage, elsewhere)))
    with created[0] as store:
        assert Store.read_ids(storage) == [store.store_id]
        assert os.path.exists(elsewhere.writer_key_of(store.store_id))
    assert [files for _, _, files in os.walk(places.state) if files] == []


def test_a_place_with_a_store_or_with_what_is_left_of_one_is_refused(storage, places, tmp_path):
    create(storage, places).close()
    with pytest.raises(UsageError, match=r"holds a castore store already$"):
        create(storage, places)
    for path in (tmp_path / "store" / "config").iterdir():
        path.unlink()
    storage.put(f"packs/{bytes(32).hex()}", b"of the store")
    with pytest.raises(UsageError, match="but its config/ is missing: restore that from a copy"):
        create(storage, places)


@pytest.mark.parametrize("size", [1, 1 << 30])
def test_chunks_of_an_impossible_size_are_refused_before_anything_is_written(storage, places, tmp_path, size):
    with pytest.raises(UsageError, match=f"chunks cannot have {size} bytes on average"):
        create(storage, places, average_chunk_size=size)
    assert list(storage.list(CONFIGS)) == []
    assert not (tmp_path / "state").exists()


def test_a_store_without_a_copy_of_its_configuration_is_created_and_says_so(storage, places, monkeypatch):
    put = LocalStorage.put

    def failing(self, name, data):
        if name != f"{CONFIGS}/0000000001" and name.startswith(CONFIGS) and list(self.list(CONFIGS)):
            raise StorageError("the disk is full")
        put(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "put", failing)
        with pytest.raises(StorageError, match="the store was created nevertheless, and can be used"):
            create(storage, places)
    (store_id,) = Store.read_ids(storage)
    with Store.open(storage, places) as store:
        assert store.store_id == store_id
