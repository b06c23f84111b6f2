"""Bringing the index up to date: an object that the disk refuses makes no other unreadable."""

from __future__ import annotations

import pytest

from castore.errors import StorageError
from castore.services.sources import file_source
from castore.storage import LocalStorage
from castore.store import sync
from castore.store.format.names import GENERATIONS, PACKS, generation_name
from tests.support.stores import Sandbox


@pytest.fixture
def sandbox(tmp_path):
    sandbox = Sandbox(tmp_path / "sandbox")
    for number in range(3):
        (tmp_path / "dump").write_text(f"content {number}")
        sandbox.snapshot("web", {"d": file_source(str(tmp_path / "dump"))})
    return sandbox


def refuse(monkeypatch, refused):
    get = LocalStorage.get

    def failing(self, name, *span):
        if name == refused:
            raise StorageError(f"{name}: a sector is bad")
        return get(self, name, *span)

    monkeypatch.setattr(LocalStorage, "get", failing)


def test_a_generation_that_the_disk_refuses_is_named_and_all_others_are_indexed(sandbox, monkeypatch):
    with sandbox.open() as store:
        store.index.clear()
        name = generation_name(store.keys.writer_key.tag("web"), 2)
        refuse(monkeypatch, name)
        store.sync()
        assert list(store.damaged) == [name]
        assert "a sector is bad" in store.damaged[name]
        assert [generation.number for generation in store.generations.all("web")] == [3, 1]
        with pytest.raises(StorageError, match="a sector is bad"):
            store.sync(reread=True)
        monkeypatch.undo()
        store.sync()
        assert store.damaged == {}
        assert [generation.number for generation in store.generations.all("web")] == [3, 2, 1]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_pack_that_the_disk_refuses_is_named_and_all_others_are_indexed(sandbox, monkeypatch, at_once):
    monkeypatch.setattr(sync, "_MANY", 1 if at_once else 1000)
    monkeypatch.setattr(sync, "_BATCH", 1)
    with sandbox.open() as store:
        packs = store.index.packs.ids()
        store.index.clear()
        first, *_ = sorted(store.storage.list(PACKS))
        refuse(monkeypatch, f"{PACKS}/{first}")
        store.sync()
        assert list(store.damaged) == [f"{PACKS}/{first}"]
        assert {pack.hex() for pack in store.index.packs.ids()} == {pack.hex() for pack in packs} - {first}


def test_many_generations_are_indexed_in_several_transactions(sandbox, monkeypatch):
    monkeypatch.setattr(sync, "_RECORDS", 2)
    with sandbox.open() as store:
        store.index.clear()
        store.sync()
        assert [generation.number for generation in store.generations.all("web")] == [3, 2, 1]
        assert len(list(store.storage.list(GENERATIONS))) == 3
