"""A staged database that differs from the recorded inventory is refused, with the objects' names."""

from __future__ import annotations

import pytest

from castore.engines.inventory import differences, refuse_difference
from castore.errors import CastoreError


def test_each_difference_is_named():
    expected = {"table a": "1", "view v": "1", "rows of a": "3"}
    found = {"table a": "2", "rows of a": "4", "trigger t": "1"}
    assert differences(expected, found) == [
        "the view v is missing",
        "the trigger t should not exist",
        "the rows of a: 4 instead of 3",
        "the table a has another definition",
    ]


def test_equal_inventories_are_accepted_and_long_lists_are_cut():
    refuse_difference("app", {"table a": "1"}, {"table a": "1"})
    with pytest.raises(CastoreError, match="and 12 more; nothing was replaced"):
        refuse_difference("app", {f"table {n}": "1" for n in range(20)}, {})
