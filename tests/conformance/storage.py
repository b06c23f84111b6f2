"""The contract of storage as a suite: each backend subclasses StorageContract and gives `storage`.

A state machine holds the backend against a dict; `machine(make)` gives it as a test case.
"""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from castore.errors import ObjectExistsError, ObjectMissingError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.storage import Storage

MEBI = 1 << 20
FOLDERS = ("config", "sessions", "packs", "generations")


def contents(storage: Storage) -> dict[str, bytes]:
    """Return every object of a store."""
    return {
        f"{folder}/{name}": storage.get(f"{folder}/{name}")
        for folder in FOLDERS
        for name in storage.list(folder)
    }


class StorageContract:
    """What every backend promises. A subclass has a fixture `storage`: an empty place."""

    listed = 300
    """Objects in the test of listings."""

    # Writing and reading

    @pytest.mark.parametrize("length", [0, 1, 4096, 3 * MEBI + 1])
    def test_what_is_put_comes_back(self, storage, length):
        data = random.Random(length).randbytes(length)
        storage.put("packs/ab", data)
        assert storage.get("packs/ab") == data
        assert storage.size("packs/ab") == length

    def test_what_comes_back_is_bytes(self, storage):
        storage.put("packs/ab", b"abc")
        for found in (storage.get("packs/ab"), storage.get("packs/ab", 1, 1), storage.get("packs/ab", 9)):
            assert type(found) is bytes

    def test_an_object_is_what_was_written_in_order(self, storage):
        pieces = [random.Random(i).randbytes(i * 997) for i in range(60)]
        with storage.create() as writer:
            for piece in pieces:
                writer.write(piece)
            writer.commit("packs/ab")
        assert storage.get("packs/ab") == b"".join(pieces)

    def test_every_kind_of_buffer_can_be_written(self, storage):
        with storage.create() as writer:
            writer.write(b"bytes,")
            writer.write(bytearray(b"bytearray,"))
            writer.write(memoryview(b"-memoryview-")[1:-1])
            writer.write(b"")
            writer.commit("packs/ab")
        assert storage.get("packs/ab") == b"bytes,bytearray,memoryview"

    def test_a_buffer_may_be_used_again_at_once(self, storage):
        buffer = bytearray(300_000)
        expected = b""
        with storage.create() as writer:
            for value in range(1, 8):
                buffer[:] = bytes([value]) * len(buffer)
                expected += buffer
                writer.write(memoryview(buffer))
                buffer[:] = bytes(len(buffer))
            buffer.clear()  # refused if the writer still held a view of it
            writer.commit("packs/ab")
        assert storage.get("packs/ab") == expected

    def test_an_object_without_a_write_is_empty(self, storage):
        with storage.create() as writer:
            writer.commit("packs/ab")
        assert storage.get("packs/ab") == b""
        assert storage.size("packs/ab") == 0

    @pytest.mark.parametrize(
        ("offset", "length"),
        [(0, None), (0, 0), (0, 1), (1, 3), (9, 1), (9, 5), (10, None), (10, 5), (11, None), (50, 5), (3, None)],
    )
    def test_a_range_is_the_slice(self, storage, offset, length):
        storage.put("packs/ab", b"0123456789")
        end = None if length is None else offset + length
        assert storage.get("packs/ab", offset, length) == b"0123456789"[offset:end]

    def test_ranges_of_a_large_object(self, storage):
        data = random.Random(1).randbytes(5 * MEBI)
        storage.put("packs/ab", data)
        for offset, length in ((0, MEBI), (MEBI - 1, 2), (5 * MEBI - 3, 100), (12345, 4 * MEBI)):
            assert storage.get("packs/ab", offset, length) == data[offset : offset + length]

    # All or nothing

    def test_nothing_is_visible_before_commit(self, storage):
        with storage.create() as writer:
            writer.write(b"x" * MEBI)
            assert contents(storage) == {}
            with pytest.raises(ObjectMissingError):
                storage.get("packs/ab")
            writer.commit("packs/ab")
            assert contents(storage) == {"packs/ab": b"x" * MEBI}

    def test_abort_leaves_nothing(self, storage):
        writer = storage.create()
        writer.write(b"x" * MEBI)
        writer.abort()
        assert contents(storage) == {}

    def test_leaving_the_block_without_commit_leaves_nothing(self, storage):
        with storage.create() as writer:
            writer.write(b"x")
        with pytest.raises(KeyError), storage.create() as writer:
            writer.write(b"x")
            raise KeyError
        assert contents(storage) == {}

    def test_abort_after_commit_does_nothing(self, storage):
        writer = storage.create()
        writer.write(b"x")
        writer.commit("packs/ab")
        writer.abort()
        writer.abort()
        assert storage.get("packs/ab") == b"x"

    def test_abort_twice_does_nothing_more(self, storage):
        writer = storage.create()
        writer.abort()
        writer.abort()
        assert contents(storage) == {}

    # Create-only

    def test_an_object_is_never_replaced(self, storage):
        storage.put("packs/ab", b"first")
        with pytest.raises(ObjectExistsError, match="packs/ab"):
            storage.put("packs/ab", b"second")
        assert contents(storage) == {"packs/ab": b"first"}

    def test_an_equal_object_is_refused_too(self, storage):
        storage.put("packs/ab", b"first")
        with pytest.raises(ObjectExistsError):
            storage.put("packs/ab", b"first")

    def test_of_two_writers_with_one_name_the_first_to_commit_wins(self, storage):
        with storage.create() as early, storage.create() as late:
            early.write(b"early")
            late.write(b"late")
            late.commit("packs/ab")
            with pytest.raises(ObjectExistsError):
                early.commit("packs/ab")
        assert contents(storage) == {"packs/ab": b"late"}

    def test_of_many_threads_with_one_name_exactly_one_wins(self, storage):
        for turn in range(5):
            name = f"generations/{turn}"
            outcomes: list[bytes | Exception] = []
            barrier = threading.Barrier(8)

            def race(data: bytes, name: str = name, barrier: threading.Barrier = barrier, outcomes: list[bytes | Exception] = outcomes) -> None:
                try:
                    with storage.create() as writer:
                        writer.write(data)
                        barrier.wait()
                        writer.commit(name)
                    outcomes.append(data)
                except Exception as error:
                    outcomes.append(error)

            threads = [threading.Thread(target=race, args=(b"%d" % i * 1000,)) for i in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            won = [each for each in outcomes if isinstance(each, bytes)]
            assert [type(each) for each in outcomes if isinstance(each, Exception)] == [ObjectExistsError] * 7
            assert won == [storage.get(name)]

    def test_a_name_is_free_again_after_delete(self, storage):
        storage.put("packs/ab", b"first")
        storage.delete("packs/ab")
        storage.put("packs/ab", b"second")
        assert storage.get("packs/ab") == b"second"

    # A writer that failed

    def test_a_writer_refuses_all_with_its_first_error(self, storage):
        storage.put("packs/ab", b"first")
        with storage.create() as writer:
            writer.write(b"second")
            with pytest.raises(ObjectExistsError) as first:
                writer.commit("packs/ab")
            with pytest.raises(ObjectExistsError) as again:
                writer.commit("packs/other")
            assert again.value is first.value
            with pytest.raises(ObjectExistsError) as again:
                writer.write(b"more")
            assert again.value is first.value
        assert contents(storage) == {"packs/ab": b"first"}

    def test_a_writer_that_was_aborted_refuses(self, storage):
        writer = storage.create()
        writer.abort()
        with pytest.raises(StorageError):
            writer.write(b"x")
        with pytest.raises(StorageError):
            writer.commit("packs/ab")
        assert contents(storage) == {}

    def test_a_writer_that_committed_refuses(self, storage):
        with storage.create() as writer:
            writer.write(b"x")
            writer.commit("packs/ab")
            with pytest.raises(StorageError):
                writer.write(b"y")
            with pytest.raises(StorageError):
                writer.commit("packs/cd")
        assert contents(storage) == {"packs/ab": b"x"}

    # Names

    def test_a_missing_name_is_reported(self, storage):
        storage.put("packs/ab", b"x")
        for name in ("packs/cd", "nowhere/ab", "packs/ab0"):
            for ask in (storage.get, storage.size, storage.delete):
                with pytest.raises(ObjectMissingError, match=name):
                    ask(name)
            with pytest.raises(ObjectMissingError, match=name):
                storage.get(name, 5, 5)

    def test_delete_removes_one(self, storage):
        storage.put("packs/ab", b"x")
        storage.put("packs/abc", b"y")
        storage.delete("packs/ab")
        assert contents(storage) == {"packs/abc": b"y"}
        with pytest.raises(ObjectMissingError):
            storage.delete("packs/ab")

    def test_a_folder_that_nothing_was_put_in_is_empty(self, storage):
        assert list(storage.list("packs")) == []
        storage.put("packs/ab", b"x")
        storage.delete("packs/ab")
        assert list(storage.list("packs")) == []

    def test_list_returns_the_names_of_one_folder_only(self, storage):
        names = {f"{i:04x}" for i in range(self.listed)}
        for name in names:
            storage.put(f"packs/{name}", b"")
        storage.put("sessions/0123.0", b"")
        storage.put("generations/ab-1", b"")
        found = list(storage.list("packs"))
        assert len(found) == len(names)
        assert set(found) == names
        assert list(storage.list("sessions")) == ["0123.0"]

    def test_list_begins_after_a_name(self, storage):
        names = [f"{i:03}" for i in range(0, 40, 2)]
        for name in names:
            storage.put(f"packs/{name}", b"")
        for after in ("", "000", "001", "017", "018", "038", "039", "zz", "-"):
            assert sorted(storage.list("packs", after)) == [name for name in names if name > after]

    def test_delete_all_ignores_missing_objects(self, storage):
        for name in ("a", "b", "c"):
            storage.put(f"packs/{name}", b"")
        storage.delete_all(["packs/a", "packs/x", "packs/c"])
        storage.delete_all([])
        assert contents(storage) == {"packs/b": b""}

    def test_a_folder_whose_name_begins_another_is_distinguished(self, storage):
        storage.put("pack/ab", b"")
        storage.put("packs/cd", b"")
        assert list(storage.list("pack")) == ["ab"]

    def test_a_location_can_be_shown(self, storage):
        assert isinstance(storage.location, str)
        assert storage.location


names = st.builds("{}/{}".format, st.sampled_from(FOLDERS), st.text("ab1.-", min_size=1, max_size=3).filter(lambda name: name.strip(".")))
datas = st.one_of(st.binary(max_size=100), st.integers(0, 200_000).map(lambda n: random.Random(n).randbytes(n)))


class StorageMachine(RuleBasedStateMachine):
    """Puts, gets, deletes and writers in any order, compared with a dict."""

    make: Callable[[], Storage]

    def __init__(self) -> None:
        super().__init__()
        self.storage = type(self).make()
        self.model: dict[str, bytes] = {}

    writers = Bundle("writers")

    @rule(name=names, data=datas)
    def put(self, name, data):
        if name in self.model:
            with pytest.raises(ObjectExistsError):
                self.storage.put(name, data)
        else:
            self.storage.put(name, data)
            self.model[name] = data

    @rule(target=writers, data=datas)
    def begin(self, data):
        writer = self.storage.create()
        writer.write(data)
        return writer, bytearray(data)

    @rule(pair=writers, data=datas)
    def write(self, pair, data):
        writer, written = pair
        writer.write(data)
        written += data

    @rule(pair=consumes(writers), name=names)
    def commit(self, pair, name):
        writer, written = pair
        with writer:
            if name in self.model:
                with pytest.raises(ObjectExistsError):
                    writer.commit(name)
            else:
                writer.commit(name)
                self.model[name] = bytes(written)

    @rule(pair=consumes(writers))
    def abort(self, pair):
        pair[0].abort()

    @rule(name=names, offset=st.integers(0, 300), length=st.none() | st.integers(0, 300))
    def get(self, name, offset, length):
        if name not in self.model:
            with pytest.raises(ObjectMissingError):
                self.storage.get(name, offset, length)
        else:
            end = None if length is None else offset + length
            assert self.storage.get(name, offset, length) == self.model[name][offset:end]

    @rule(name=names)
    def size(self, name):
        if name not in self.model:
            with pytest.raises(ObjectMissingError):
                self.storage.size(name)
        else:
            assert self.storage.size(name) == len(self.model[name])

    @rule(name=names)
    def delete(self, name):
        if self.model.pop(name, None) is None:
            with pytest.raises(ObjectMissingError):
                self.storage.delete(name)
        else:
            self.storage.delete(name)

    @rule(data=st.data())
    def delete_one_that_is_there(self, data):
        if self.model:
            name = data.draw(st.sampled_from(sorted(self.model)))
            self.storage.delete(name)
            del self.model[name]

    @invariant()
    def the_names_are_those_of_the_model(self):
        found = sorted(f"{folder}/{name}" for folder in FOLDERS for name in self.storage.list(folder))
        assert found == sorted(self.model)

    def teardown(self):
        assert contents(self.storage) == self.model


def machine(make: Callable[[], Storage], *, examples: int = 30, steps: int = 25) -> type:
    """Return a test case that runs the state machine; make: gives an empty place each time."""
    made = type("Machine", (StorageMachine,), {"make": staticmethod(make)})
    case = made.TestCase
    case.settings = settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    return case
