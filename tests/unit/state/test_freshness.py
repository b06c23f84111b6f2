"""What a machine has seen of a store, and an older copy in its place."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castore.crypto import Identity
from castore.errors import StaleStoreError, StorageError
from castore.model.removals import Removals
from castore.services.sources import file_source
from castore.state.freshness import FreshnessGuard, FreshnessState, PresentGenerations, ServiceHighWater
from tests.support.stores import Sandbox


@pytest.fixture
def sandbox(tmp_path):
    made = Sandbox(tmp_path)
    (tmp_path / "dump").write_bytes(os.urandom(5000))
    return made


def take(sandbox, service="web"):
    (sandbox.folder / "dump").write_bytes(os.urandom(5000))
    return sandbox.snapshot(service, {"d": file_source(str(sandbox.folder / "dump"))})


def copied(sandbox, name):
    shutil.copytree(sandbox.store, sandbox.folder / name)


def put_in_place(sandbox, name):
    shutil.rmtree(sandbox.store)
    shutil.copytree(sandbox.folder / name, sandbox.store)


def opened(sandbox, **options):
    from castore.storage import LocalStorage
    from castore.store import Store, StoreOptions

    return Store.open(LocalStorage(str(sandbox.store)), sandbox.places, lambda: sandbox.identity, StoreOptions(**options))


def objects(sandbox, service, number):
    with opened(sandbox) as store:
        store.generations.sync()
        return store.generations.objects(service, [number])


def test_an_older_copy_is_refused_and_says_what_went_back(sandbox):
    take(sandbox), take(sandbox, "mail")
    copied(sandbox, "old")
    take(sandbox), take(sandbox), take(sandbox, "mail")
    put_in_place(sandbox, "old")
    for forget_index in (False, True):
        if forget_index:
            shutil.rmtree(sandbox.places.cache)
        with opened(sandbox) as store, pytest.raises(StaleStoreError) as refused:
            store.generations.sync()
        for said in ("web@3", "web@1", "mail@2", "mail@1", "--accept-older", "older copy"):
            assert said in str(refused.value)
    with opened(sandbox, accept_older=True) as store:
        store.sync()
    with opened(sandbox) as store:
        store.sync()
        assert store.generations.next_number("web") == 4, "a number that was seen is never given again"
    taken = take(sandbox)
    assert (taken.number, taken.parent) == (4, 1)


def test_a_service_that_vanished_and_one_that_is_another(sandbox):
    take(sandbox)
    copied(sandbox, "old")
    take(sandbox)
    copied(sandbox, "first")
    with opened(sandbox) as store:
        store.sync()
    for name in objects(sandbox, "web", 2):
        os.unlink(sandbox.store / name)
    (state,) = Path(sandbox.places.state).glob("*/locations/*/seen")
    memory = state.read_bytes()
    state.unlink()
    take(sandbox)  # another number 2
    state.write_bytes(memory)
    with opened(sandbox) as store, pytest.raises(StaleStoreError, match="not the generation that had this number"):
        store.sync()
    shutil.rmtree(sandbox.store / "generations")
    with opened(sandbox) as store, pytest.raises(StaleStoreError, match="there is none"):
        store.sync()


def test_a_configuration_that_went_back_is_refused(sandbox):
    copied(sandbox, "old")
    with opened(sandbox) as store:
        store.admin.reseal([*store.keys.recipients, (Identity.generate().recipient, "more")])
    put_in_place(sandbox, "old")
    with pytest.raises(StaleStoreError, match=r"was config/2 and is config/1.*--accept-older"):
        opened(sandbox)
    opened(sandbox, accept_older=True).close()
    opened(sandbox).close()


def test_a_machine_that_remembers_nothing_accepts_the_store(sandbox, tmp_path):
    take(sandbox)
    copied(sandbox, "old")
    take(sandbox)
    put_in_place(sandbox, "old")
    shutil.rmtree(sandbox.places.state)
    with opened(sandbox) as store:
        store.sync()
        assert store.generations.newest("web").number == 1


def test_a_damaged_newest_generation_is_damage_and_nothing_older(sandbox):
    take(sandbox), take(sandbox)
    (name,) = objects(sandbox, "web", 2)
    data = (sandbox.store / name).read_bytes()
    (sandbox.store / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    shutil.rmtree(sandbox.places.cache)
    with opened(sandbox) as store:
        store.sync()
        assert list(store.damaged) == [name]
        assert store.generations.next_number("web") == 3


def test_what_is_removed_on_purpose_is_not_missed(sandbox):
    for _ in range(4):
        take(sandbox)
    (last,), (third,) = objects(sandbox, "web", 4), objects(sandbox, "web", 3)
    with opened(sandbox) as store:
        store.sync()
        store.generations.expect_removal("web", [4, 3])
        store.sync()  # another process looks before they are deleted: they may still exist
    for name in (last, third):
        os.unlink(sandbox.store / name)
    with opened(sandbox) as store:
        store.sync()
        assert store.generations.next_number("web") == 5
        store.generations.expect_removal("web", [1, 2])
    shutil.rmtree(sandbox.store / "generations")
    shutil.rmtree(sandbox.places.cache)
    with opened(sandbox) as store:
        store.sync()
        assert store.generations.next_number("web") == 5
    assert take(sandbox).number == 5
    for name in objects(sandbox, "web", 5):
        os.unlink(sandbox.store / name)
    with opened(sandbox) as store, pytest.raises(StaleStoreError):
        store.sync()


def test_the_file_is_private_and_written_only_when_something_changed(sandbox):
    take(sandbox)
    with opened(sandbox) as store:
        store.sync()
        path = sandbox.places.seen_of(store.store_id, store.storage.canonical_location)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    before = os.stat(path).st_ino
    with opened(sandbox) as store:
        store.sync()
    assert os.stat(path).st_ino == before
    Path(path).write_text("{nonsense")
    with pytest.raises(StorageError, match="delete it"):
        opened(sandbox)


def test_a_state_folder_that_cannot_be_written_keeps_nobody_from_reading(sandbox, monkeypatch):
    take(sandbox)

    def refused(*_):
        raise StorageError("no space left")

    with opened(sandbox) as store:
        path = sandbox.places.seen_of(store.store_id, store.storage.canonical_location)
    os.unlink(path)
    monkeypatch.setattr("castore.state.freshness.write_private", refused)
    with opened(sandbox) as store:
        store.sync()
        with pytest.raises(StorageError):
            store.generations.expect_removal("web", [1])


def _note(path, service, numbers):
    from tests.unit.state.test_freshness import generation

    seen = FreshnessGuard(path, "here")
    for number in numbers:
        seen.remember_commit(generation(service, number))


def generation(service, number):
    from castore.model.generation import Generation, StoredRef
    from castore.model.refs import RefKind

    details = StoredRef(RefKind.CHUNK, bytes(32), 1)
    return Generation(service, number, 1, "", "", (), details, number.to_bytes(16, "big"))


def test_processes_at_once_lose_nothing_of_each_other(tmp_path):
    path = str(tmp_path / "state" / "seen")
    context = multiprocessing.get_context("spawn")
    runs = [context.Process(target=_note, args=(path, s, range(k, 40, 2))) for s in ("a", "b") for k in (1, 2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    seen = FreshnessGuard(path, "here")
    assert (seen.last("a"), seen.last("b")) == (39, 39)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.just(0)),
        st.tuples(st.just("forget"), st.integers(0, 5)),
        st.tuples(st.just("look"), st.just(0)),
    ),
    max_size=25,
)


def present_generations(newest, session_of):
    return PresentGenerations(newest, session_of, lambda _service: Removals())


@given(steps)
def test_what_this_machine_does_itself_is_never_refused_and_no_number_is_given_twice(tmp_path_factory, steps):
    path = str(tmp_path_factory.mktemp("seen") / "seen")
    there: set[int] = set()
    given_numbers: list[int] = []
    for step, which in steps:
        seen = FreshnessGuard(path, "here")
        if step == "take":
            number = max([*there, seen.last("s")], default=0) + 1
            assert number not in given_numbers
            given_numbers.append(number)
            there.add(number)
            seen.remember_commit(generation("s", number))
        elif step == "forget":
            gone = set(sorted(there)[-which:] if which else [])
            rest = generation("s", max(there - gone)) if there - gone else None
            seen.forget("s", gone, rest)
            there -= gone
        present = {"s": generation("s", max(there))} if there else {}
        state = present_generations(present, lambda _, n, there=there: generation("s", n).session.hex() if n in there else None)
        seen.compare(seen.memory(), state, accept=False)
    if there:
        newest = max(there)
        rest = {"s": generation("s", max(there - {newest}))} if there - {newest} else {}
        def session(_, n):
            return generation("s", n).session.hex() if n in there - {newest} else None
        with pytest.raises(StaleStoreError):
            (again := FreshnessGuard(path, "here")).compare(again.memory(), present_generations(rest, session), accept=False)


def test_the_memory_holds_what_it_says():
    memory = FreshnessState(3, {"web": ServiceHighWater(5, 4, "ab", (5,))})
    assert msgspec.json.decode(msgspec.json.encode(memory), type=FreshnessState) == memory
