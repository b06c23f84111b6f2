"""Numbers of generations: one that is far above all others uses none up."""

from __future__ import annotations

import pytest

from castore.model.removals import Removals
from castore.model.spans import Spans
from castore.store.format.generation import MAX_JUMP, last_in_sequence


def removed(by_maintainers=(), **by_hosts):
    return Removals(Spans(tuple(by_maintainers)), {host: Spans((span,)) for host, span in by_hosts.items()})


@pytest.mark.parametrize(
    ("numbers", "removals", "last"),
    [
        ([], removed(), 0),
        ([3, 1, 2], removed(), 3),
        ([MAX_JUMP], removed(), MAX_JUMP),
        ([MAX_JUMP + 1], removed(), 0),
        ([5, MAX_JUMP + 5], removed(), MAX_JUMP + 5),
        ([5, MAX_JUMP + 6], removed(), 5),
        ([5], removed([(6, MAX_JUMP)]), MAX_JUMP),
        ([5, 2 * MAX_JUMP], removed([(6, MAX_JUMP)]), 2 * MAX_JUMP),
        ([5], removed(host=(6, MAX_JUMP + 5)), MAX_JUMP + 5),
        ([5], removed(host=(6, MAX_JUMP + 6)), 5),
        ([5], removed(a=(6, 9), b=(6, 8)), 9),
        ([5], removed(a=(MAX_JUMP, MAX_JUMP), b=(2 * MAX_JUMP, 2 * MAX_JUMP)), MAX_JUMP),
    ],
)
def test_the_last_number_is_one_that_others_lead_to(numbers, removals, last):
    assert last_in_sequence(numbers, removals) == last
