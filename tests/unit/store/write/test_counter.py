"""Numbers of records: no two records share one, whatever threads ask."""

from __future__ import annotations

import threading

import pytest

from castore.errors import StorageError
from castore.store.write.counter import MAX_COUNTER, RecordCounter


def test_threads_never_get_the_same_number():
    counter, taken, together = RecordCounter(), [[] for _ in range(8)], threading.Barrier(8)

    def take(mine: list[int]) -> None:
        together.wait()
        mine += [counter.take() for _ in range(5000)]

    threads = [threading.Thread(target=take, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for mine in taken for number in mine) == list(range(40_000))
    assert all(mine == sorted(mine) for mine in taken)


def test_only_one_thread_gets_the_last_number():
    counter, got, refused = RecordCounter(MAX_COUNTER), [], []

    def take() -> None:
        try:
            got.append(counter.take())
        except StorageError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [MAX_COUNTER]
    assert len(refused) == 7
    with pytest.raises(StorageError, match="session is full"):
        counter.take()
