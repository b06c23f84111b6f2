"""The order of tests in a run of several processes."""

from __future__ import annotations

import pytest

from tests.support.checkout import ROOT
from tests.support.long_files import LONG_FILES, long_files_first


class Item:
    """A test, of which only the name matters."""

    def __init__(self, nodeid: str) -> None:
        self.nodeid = nodeid


def test_the_long_files_exist() -> None:
    assert [name for name in LONG_FILES if not (ROOT / "tests" / name).exists()] == []


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_each_process_begins_with_its_share_of_the_long_files(workers: int) -> None:
    others = [f"tests/unit/test_other.py::test_{number}" for number in range(200)]
    long = [f"tests/{name}::test_{number}" for name in LONG_FILES for number in range(3)]
    items = [Item(name) for name in sorted([*others, *long])]
    long_files_first(items, workers)  # type: ignore[arg-type]
    assert sorted(item.nodeid for item in items) == sorted([*others, *long])
    begin = 0
    for worker in range(workers):
        share = (len(items) - begin) // (workers - worker)
        are_long = ["test_other" not in item.nodeid for item in items[begin : begin + share]]
        assert are_long == sorted(are_long, reverse=True)
        assert abs(sum(are_long) - len(long) / workers) <= 3
        begin += share


def test_a_selection_of_few_tests_loses_none() -> None:
    items = [Item(f"tests/{LONG_FILES[number % 2]}::test_{number}") for number in range(9)]
    long_files_first(items, 3)  # type: ignore[arg-type]
    assert len({item.nodeid for item in items}) == 9
