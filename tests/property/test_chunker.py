"""Cutting, over streams that Hypothesis makes."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from tests.support.chunking import cutter, in_pieces, lengths, reference_ends, whole

averages = st.sampled_from([256, 300, 512, 1021])
seeds = st.integers(0, 1 << 32)
sizes = st.integers(0, 12_000)


@st.composite
def noise(draw):
    return random.Random(draw(seeds)).randbytes(draw(sizes))


@st.composite
def low_entropy(draw):
    alphabet = draw(st.binary(min_size=1, max_size=4))
    return bytes(random.Random(draw(seeds)).choices(alphabet, k=draw(sizes)))


@st.composite
def repetitive(draw):
    pattern = draw(st.binary(min_size=1, max_size=300))
    return (pattern * (draw(sizes) // len(pattern) + 1))[: draw(sizes)]


@st.composite
def patchwork(draw):
    return b"".join(draw(st.lists(st.one_of(noise(), low_entropy(), repetitive(), st.binary()), max_size=4)))


streams = st.one_of(st.binary(max_size=3000), noise(), low_entropy(), repetitive(), patchwork())


@given(streams, averages, st.one_of(st.none(), seeds))
def test_the_kernel_cuts_where_its_twin_cuts(data, average, gear):
    table = {} if gear is None else {"gear": random.Random(gear).randbytes(2048)}
    rule = cutter(average, **table)
    assert whole(rule, data) == reference_ends(rule, data, **table)


@given(streams, averages, st.lists(st.integers(0, 12_000), max_size=40))
def test_cuts_do_not_depend_on_how_the_input_comes(data, average, splits):
    rule = cutter(average)
    borders = [0, *sorted(min(split, len(data)) for split in splits), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(borders)]
    assert in_pieces(rule, pieces) == whole(rule, data)


@given(noise(), averages, st.integers(1, 50))
def test_cuts_do_not_depend_on_the_size_of_reads(data, average, read):
    rule = cutter(average)
    assert in_pieces(rule, [data[i : i + read] for i in range(0, len(data), read)]) == whole(rule, data)


@given(streams, averages)
def test_chunks_lie_between_min_and_max_and_are_all_of_the_stream(data, average):
    rule = cutter(average)
    found = lengths(whole(rule, data))
    assert sum(found) == len(data)
    assert all(rule.min <= length <= rule.max for length in found[:-1])
    assert all(0 < length <= rule.max for length in found[-1:])


@given(streams, streams, averages)
def test_what_follows_a_border_does_not_depend_on_what_is_before(before, after, average):
    rule = cutter(average)
    border = (whole(rule, before) or [0])[-1]
    head = rule.scan(bytearray(before), 0, border, final=False)
    start = head[-1] if head else 0
    stream = before[:start] + after
    if head:
        # The stream is cut at `start`, whatever comes there: from it on, it is a stream of its own.
        assert whole(rule, stream)[len(head) :] == [start + end for end in whole(rule, after)]


@given(noise(), st.binary(min_size=1, max_size=1), st.data())
def test_chunk_ends_coincide_again_after_an_insertion(data, byte, choices):
    rule = cutter(256)
    at = choices.draw(st.integers(0, len(data)))
    before = whole(rule, data)
    after = whole(rule, data[:at] + byte + data[at:])
    # Nothing that ends before the insertion moves.
    assert [end for end in before if end <= at][:-1] == [end for end in after if end <= at][
        : max(len([end for end in before if end <= at]) - 1, 0)
    ]
    # Once a border is met at the same place again, all that follow are met.
    moved = {end - 1 for end in after if end > at + 1}
    common = sorted(moved & {end for end in before if end > at})
    if common:
        first = common[0]
        assert [end for end in before if end >= first] == [end - 1 for end in after if end - 1 >= first]


@given(streams, averages, st.lists(st.integers(0, 12_000), max_size=8))
def test_searching_first_and_choosing_later_cuts_the_same(data, average, splits):
    rule = cutter(average)
    borders = [0, *sorted(min(split, len(data)) for split in splits), len(data)]
    buffer = bytearray(data)
    ends = []
    start = 0
    for begin, end in itertools.pairwise(borders):
        found = rule.find(buffer, max(begin - 63, 0), begin, end)
        final = end == len(data)
        if found is None:
            chosen = rule.scan(buffer, start, end, final=final)
        else:
            chosen = found.choose(start, end, final=final)
        ends += chosen
        start = ends[-1] if ends else 0
    assert ends == whole(rule, data)
