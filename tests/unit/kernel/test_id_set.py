"""Sets of ids, and the weight of marked records in packs."""

from __future__ import annotations

import random
from array import array

import pytest

from castore.kernel.id_set import IdSet
from castore.kernel.index_rows import weigh
from castore.store.index.schema import LOCATION

IDS = [random.Random(number).randbytes(32) for number in range(20_000)]


@pytest.mark.parametrize("expected", [0, 100, len(IDS)])
def test_ids_stay_marked_while_the_set_grows(expected):
    marks = IdSet(expected)
    before = marks.memory
    half = len(IDS) // 2
    for at in range(0, half, 100):
        assert marks.add(b"".join(IDS[at : at + 100])) == b"\1" * 100
    assert len(marks) == half
    assert marks.find(b"".join(IDS)) == b"\1" * half + bytes(half)
    assert (marks.memory > before) == (expected < half)
    assert marks.add(b"".join(IDS)) == bytes(half) + b"\1" * half
    assert len(marks) == len(IDS)
    assert marks.find(b"".join(IDS)) == b"\1" * len(IDS)


def test_ids_are_found_one_every_stride_and_marked_once():
    marks = IdSet()
    rows = b"".join(one + bytes(8) for one in [*IDS[:3], IDS[0]])
    assert marks.add(rows, 40) == b"\1\1\1\0"
    assert len(marks) == 3
    assert [one in marks for one in IDS[:4]] == [True, True, True, False]
    assert marks.find(b"") == b""


@pytest.mark.parametrize("method", ["add", "find"])
def test_shorter_ids_are_refused(method):
    with pytest.raises(ValueError, match="an id has 32 bytes, and not 8"):
        getattr(IdSet(), method)(bytes(32), 8)


def test_the_weight_of_marked_records_is_that_of_their_packs():
    locations = [(0, 100, 0), (1, 90, 3), (1, 90, 3), (0, 7, 1), (2, 1000, 1)]
    values = b"".join(LOCATION.pack(pack, 0, sealed, 0, 0, 0, 0, 0, members) for pack, sealed, members in locations)
    live = array("Q", [5, 0])
    weigh(values, b"\1\1\1\0\1", live)
    assert list(live) == [105, 60], "a shared record counts by shares; a pack beyond the table does not"
