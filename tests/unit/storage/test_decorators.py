"""Storages that add a property to another one: retries, limits, counters, refusals."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castore.errors import (
    ObjectExistsError,
    ObjectMissingError,
    StoragePermissionError,
    ThrottledError,
    TransientStorageError,
    UnreachableError,
    UsageError,
)
from castore.storage import LocalStorage, open_storage
from castore.storage.counting import CountingStorage
from castore.storage.limited import LimitedStorage, Limits
from castore.storage.read_only import ReadOnlyStorage
from castore.storage.retrying import RetryingStorage
from tests.conformance.storage import StorageContract, machine
from tests.support.faulty_storage import FaultyStorage, MemoryStorage


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def _unreliable(seed: int = 0) -> RetryingStorage:
    """A storage of whose requests a third fails, half of these after they were done.

    A deletion whose reply was lost cannot be distinguished from that of a missing object.
    """
    source, clock = random.Random(seed), Clock()

    def fails(operation: str, _name: str) -> str | None:
        when = source.choice(["before", "after", None, None, None, None])
        return None if operation == "delete" else when

    return RetryingStorage(FaultyStorage(MemoryStorage(), fails, seed), sleep=clock.sleep, clock=clock)


class TestRetryingStorage(StorageContract):
    @pytest.fixture
    def storage(self):
        return _unreliable()


class TestCountingStorage(StorageContract):
    @pytest.fixture
    def storage(self):
        return CountingStorage(MemoryStorage())


class TestLimitedStorage(StorageContract):
    @pytest.fixture
    def storage(self):
        clock = Clock()
        return LimitedStorage(MemoryStorage(), Limits(upload=1000, download=1000), sleep=clock.sleep, clock=clock)


TestRetryingStorageAgainstADict = machine(_unreliable, examples=10)


def _failing(plan, **more):
    """A storage whose requests fail as the plan says, in turn."""
    turns, clock = iter(plan), Clock()
    inner = MemoryStorage()
    faulty = FaultyStorage(inner, lambda _operation, _name: next(turns, None))
    return inner, RetryingStorage(faulty, sleep=clock.sleep, clock=clock, **more), clock


def test_the_object_of_a_lost_reply_is_ones_own():
    inner, storage, _ = _failing(["after"])
    storage.put("packs/a", b"mine")
    assert inner.objects == {"packs/a": b"mine"}


def test_the_object_of_another_writer_is_not_ones_own():
    inner, storage, _ = _failing(["before"])
    inner.objects["generations/a"] = b"other"
    with pytest.raises(ObjectExistsError):
        storage.put("generations/a", b"mine")
    assert inner.objects == {"generations/a": b"other"}


def test_an_equal_object_that_was_there_before_is_not_ones_own():
    inner, storage, _ = _failing([])
    inner.objects["generations/a"] = b"same"
    with pytest.raises(ObjectExistsError):
        storage.put("generations/a", b"same")


@pytest.mark.parametrize("at", [0, (2 << 20) - 1])
def test_a_long_object_of_the_same_length_is_compared(at):
    mine = random.Random(1).randbytes(2 << 20)
    other = bytearray(mine)
    other[at] ^= 1
    inner, storage, _ = _failing(["before", None])
    inner.objects["packs/a"] = bytes(other)
    if at == 0:
        storage.put("packs/a", mine)  # only the end of a long object is compared: its name is its hash
    else:
        with pytest.raises(ObjectExistsError):
            storage.put("packs/a", mine)


def test_a_deletion_whose_reply_was_lost_is_done():
    inner, storage, _ = _failing(["after"])
    inner.objects["packs/a"] = b""
    storage.delete("packs/a")
    assert inner.objects == {}
    with pytest.raises(ObjectMissingError):
        storage.delete("packs/a")


def test_patience_ends_with_the_failure_of_the_last_try():
    inner, storage, clock = _failing([None, *["before"] * 1000], patience=60)
    inner.objects["packs/a"] = b""
    storage.get("packs/a")
    with pytest.raises(TransientStorageError, match="get packs/a failed"):
        storage.get("packs/a")
    assert 20 < clock.now <= 60
    assert len(clock.pauses) > 4


def test_patience_is_short_before_the_first_success():
    """The URL may be wrong, and somebody waits."""
    _, storage, clock = _failing(["before"] * 1000)
    with pytest.raises(TransientStorageError, match="get packs/a failed"):
        storage.get("packs/a")
    assert 5 < clock.now <= 15


@given(st.integers(0, 1000))
def test_pauses_grow_and_differ_between_clients(seed):
    random.seed(seed)
    _, storage, clock = _failing(["before"] * 6)
    with pytest.raises(ObjectMissingError):
        storage.get("packs/a")
    assert all(0 <= pause <= 0.1 * 2**turn for turn, pause in enumerate(clock.pauses))
    assert len(set(clock.pauses)) == 6


def test_what_does_not_pass_is_not_repeated():
    asked = []

    class Refusing(MemoryStorage):
        def get(self, name, offset=0, length=None):
            asked.append(name)
            raise StoragePermissionError("no")

    with pytest.raises(StoragePermissionError):
        RetryingStorage(Refusing()).get("packs/a")
    assert asked == ["packs/a"]


def test_a_limit_is_kept_over_many_requests():
    clock = Clock()
    storage = LimitedStorage(MemoryStorage(), Limits(upload=1000, download=500), sleep=clock.sleep, clock=clock)
    for number in range(10):
        storage.put(f"packs/{number}", bytes(1000))
    assert 8 <= clock.now <= 10
    started = clock.now
    for number in range(10):
        storage.get(f"packs/{number}")
    assert 17 <= clock.now - started <= 20


def test_a_limit_applies_to_an_object_that_is_written_in_pieces(tmp_path):
    clock = Clock()
    inner = LocalStorage(str(tmp_path / "store"), create=True)
    storage = LimitedStorage(inner, Limits(upload=1000), sleep=clock.sleep, clock=clock)
    with storage.create() as writer:
        for _ in range(10):
            writer.write(bytes(1000))
        writer.commit("packs/a")
    assert 8 <= clock.now <= 10
    started = clock.now
    assert storage.get("packs/a") == bytes(10_000)
    assert clock.now == started


def test_a_repeated_upload_waits_for_its_share_again():
    clock, turns = Clock(), iter(["before"])
    faulty = FaultyStorage(MemoryStorage(), lambda operation, _name: next(turns, None) if operation == "put" else None)
    limited = LimitedStorage(faulty, Limits(upload=1000), sleep=clock.sleep, clock=clock)
    RetryingStorage(limited, sleep=clock.sleep, clock=clock).put("packs/a", bytes(3000))
    assert clock.now >= 5


@pytest.mark.parametrize("limits", [{}, {"upload": 500.0}])
def test_limits_are_below_the_repetition_of_requests(limits, tmp_path):
    local = open_storage(str(tmp_path), limits=Limits(**limits))
    remote = open_storage("ssh://nowhere/srv/store", limits=Limits(**limits))
    assert isinstance(remote, RetryingStorage)
    assert isinstance(remote.inner, LimitedStorage) == isinstance(local, LimitedStorage) == bool(limits)
    # A forked process would have a limit of its own.
    assert local.forks == (not limits)


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
@pytest.mark.parametrize("name", ["upload", "download"])
def test_a_limit_that_lets_nothing_through_is_refused(name, rate):
    with pytest.raises(UsageError, match=f"limit_{name} is {rate}"):
        Limits(**{name: rate})


def test_requests_and_bytes_are_counted():
    storage = CountingStorage(MemoryStorage())
    storage.put("packs/a", bytes(10))
    storage.get("packs/a", 2, 5)
    storage.size("packs/a")
    list(storage.list("packs"))
    list(storage.list("nothing"))
    storage.delete_all(["packs/a"])
    storage.delete_all([])
    with pytest.raises(ObjectMissingError):
        storage.get("packs/a")
    counts = storage.counts
    assert counts.requests == {"put": 1, "get": 2, "size": 1, "list": 2, "delete": 1}
    assert (counts.total, counts.uploaded, counts.downloaded) == (7, 10, 5)


def test_a_storage_that_is_read_only_refuses_every_change():
    inner = MemoryStorage({"packs/a": b"x"})
    storage = ReadOnlyStorage(inner)
    for change in (
        lambda: storage.put("packs/b", b""),
        lambda: storage.delete("packs/a"),
        lambda: storage.delete_all(["packs/a"]),
        lambda: storage.create().commit("packs/b"),
    ):
        with pytest.raises(StoragePermissionError, match="read only"):
            change()
    storage.delete_all([])
    assert storage.get("packs/a") == b"x"
    assert inner.objects == {"packs/a": b"x"}


def test_throttled_writes_do_not_make_an_existing_object_ones_own():
    inner = MemoryStorage()
    turns = iter([ThrottledError("slow down")])

    class Busy(MemoryStorage):
        def put(self, name, data):
            for error in turns:
                inner.objects[name] = bytes(data)
                raise error
            inner.put(name, data)

    clock = Clock()
    with pytest.raises(ObjectExistsError):
        RetryingStorage(Busy(), sleep=clock.sleep, clock=clock).put("generations/a", b"x")


def test_a_failure_in_the_middle_of_a_listing_yields_each_name_once():
    class Broken(MemoryStorage):
        tries = 0

        def list(self, folder, after=""):
            self.tries += 1
            for number, name in enumerate(super().list(folder, after)):
                if self.tries < 3 and number == 2:
                    raise UnreachableError("broke")
                yield name

    clock = Clock()
    inner = Broken({f"packs/{number}": b"" for number in range(5)})
    assert list(RetryingStorage(inner, sleep=clock.sleep, clock=clock).list("packs")) == list("01234")
