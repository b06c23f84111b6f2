"""Committing a generation: what is not acknowledged does not stay, and says so if it cannot be removed."""

from __future__ import annotations

import os

import pytest
from msgspec.structs import replace

from castore.errors import BusyError, DamageError, NotFoundError, StaleStoreError, StorageError, UsageError
from castore.model.generation import MAX_NUMBER
from castore.services.sources import file_source
from castore.storage import LocalStorage
from castore.store.format.generation import encode_generation
from castore.store.format.names import GENERATIONS, generation_name
from tests.support.stores import Sandbox


@pytest.fixture
def sandbox(tmp_path):
    sandbox = Sandbox(tmp_path / "sandbox")
    (tmp_path / "dump").write_text("content")
    sandbox.snapshot("web", {"d": file_source(str(tmp_path / "dump"))})
    return sandbox


@pytest.fixture
def store(sandbox):
    with sandbox.open(identity=False) as store:
        store.sync()
        yield store


def numbers(sandbox):
    with sandbox.open(identity=False) as store:
        store.sync()
        return [generation.number for generation in store.generations.all("web")]


def following(store):
    """The next generation, which has the same content."""
    (last,) = store.generations.all("web")
    return replace(last, number=2)


def fail_after(monkeypatch, method, folder, *, also=()):
    """Let a method of the storage report an error after it has done its work, or before it in `also`."""
    done = getattr(LocalStorage, method)

    def failing(self, name, *args, **more):
        found = done(self, name, *args, **more)
        if name.startswith(folder):
            raise StorageError("the disk failed")
        return found

    def refusing(self, *args, **more):
        raise StorageError("the disk fails")

    monkeypatch.setattr(LocalStorage, method, failing)
    for other in also:
        monkeypatch.setattr(LocalStorage, other, refusing)


def test_a_number_out_of_range_is_refused(store):
    for number in (0, -1, MAX_NUMBER + 1):
        with pytest.raises(UsageError, match=f"a generation cannot have the number {number}"):
            store.generations.commit(replace(following(store), number=number))


def test_a_number_that_was_taken_is_refused_and_its_generation_stays(sandbox, store):
    store.generations.commit(following(store))
    with pytest.raises(BusyError, match="has just taken the number 2 of 'web'"):
        store.generations.commit(replace(store.generations.get("web", 2), revision="mine"))
    assert numbers(sandbox) == [2, 1]
    assert store.generations.get("web", 2).revision != "mine"


def test_a_generation_whose_writing_is_not_confirmed_is_removed_on_purpose(sandbox, store, monkeypatch):
    with monkeypatch.context() as patch:
        fail_after(patch, "put", GENERATIONS)
        with pytest.raises(StorageError, match=r"^the disk failed$"):
            store.generations.commit(following(store))
    assert numbers(sandbox) == [1]
    assert store.generations.next_number("web") == 3, "others may have seen number 2"


def test_a_generation_that_can_be_neither_confirmed_nor_removed_is_named(sandbox, store, monkeypatch):
    with monkeypatch.context() as patch:
        fail_after(patch, "put", GENERATIONS, also=["delete_all"])
        with pytest.raises(StorageError, match="web@2 could not be removed either: if it is listed, it is complete"):
            store.generations.commit(following(store))
    assert numbers(sandbox) == [2, 1]


def test_the_record_of_another_that_has_the_name_meanwhile_is_not_removed(sandbox, store, monkeypatch):
    mine = following(store)
    path = sandbox.store / generation_name(store.keys.writer_key.tag("web"), 2)
    with monkeypatch.context() as patch:
        fail_after(patch, "put", GENERATIONS)
        patch.setattr(LocalStorage, "get", lambda self, name, *span: b"of another")
        with pytest.raises(StorageError, match=r"^the disk failed$"):
            store.generations.commit(mine)
    assert path.exists()


def fail(keys):
    raise DamageError("config/2 is damaged")


def test_without_knowing_whether_it_is_accepted_nothing_is_committed(sandbox, store, monkeypatch):
    """The configuration is read again after the record is written: the writer key may have been replaced."""
    with monkeypatch.context() as patch:
        patch.setattr(type(store.keys), "refresh", fail)
        with pytest.raises(DamageError, match="config/2 is damaged"):
            store.generations.commit(following(store))
    assert numbers(sandbox) == [1]


def test_a_generation_that_another_machine_deleted_is_not_read(sandbox, store):
    (generation,) = store.generations.all("web")
    assert store.generations.confirmed(generation) == generation
    os.unlink(sandbox.store / generation_name(store.keys.writer_key.tag("web"), 1))
    with pytest.raises((NotFoundError, StaleStoreError)):
        store.generations.confirmed(generation)


def test_a_generation_of_another_copy_of_the_store_is_read_as_the_store_has_it(sandbox, store):
    (generation,) = store.generations.all("web")
    path = sandbox.store / generation_name(store.keys.writer_key.tag("web"), 1)
    path.unlink()
    other = replace(generation, revision="of the copy")
    store.storage.put(str(path.relative_to(sandbox.store)), store_bytes(store, other))
    assert store.generations.confirmed(generation) == other
    assert store.generations.all("web") == [other]


def store_bytes(store, generation):
    return encode_generation(generation, store.keys.writer_key)[0]


def test_generations_that_no_key_reads_are_deleted_and_their_numbers_not_used_again(sandbox, store):
    name = generation_name(store.keys.writer_key.tag("web"), 2)
    store.storage.put(name, b"no generation")
    store.sync()
    assert name in store.damaged
    store.generations.forget_unreadable([name])
    store.sync()
    assert name not in store.damaged
    assert store.generations.next_number("web") == 3
    assert numbers(sandbox) == [1]


def test_a_number_far_above_all_others_is_not_remembered_as_the_newest(sandbox, store):
    """A stolen machine could otherwise make each store that lacks it look older than it is."""
    name = generation_name(store.keys.writer_key.tag("web"), MAX_NUMBER)
    store.storage.put(name, store_bytes(store, replace(following(store), number=MAX_NUMBER)))
    store.sync()
    assert store.generations.newest("web").number == MAX_NUMBER
    (sandbox.store / name).unlink()
    store.sync()
    assert [generation.number for generation in store.generations.all("web")] == [1]
    assert store.generations.next_number("web") == 2
