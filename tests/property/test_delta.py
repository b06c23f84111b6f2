"""Deltas and sketches of the kernel, over chunks that Hypothesis makes, against slow twins."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castore.kernel import MAX_GROUP, Sketcher, apply_delta, encode_delta, join_deltas, part_deltas
from tests.support import reference_delta
from tests.support.chunking import GEAR

KEY = random.Random("sketch").randbytes(192)
seeds = st.integers(0, 1 << 32)


@st.composite
def chunks(draw):
    sort = draw(st.sampled_from(["noise", "text", "zeros", "drawn"]))
    size = draw(st.integers(0, 20_000))
    rng = random.Random(draw(seeds))
    if sort == "noise":
        return rng.randbytes(size)
    if sort == "text":
        return b"".join(b"%d\t%d\tsome words\n" % (n, rng.randrange(1000)) for n in range(size // 20))
    return bytes(size) if sort == "zeros" else draw(st.binary(max_size=400))


@st.composite
def pairs(draw):
    """A base, and something made of it: bytes replaced, removed, inserted, pieces moved about."""
    base = draw(chunks())
    target = bytearray(base)
    rng = random.Random(draw(seeds))
    for _ in range(draw(st.integers(0, 12))):
        at = rng.randrange(len(target) + 1)
        how = draw(st.integers(0, 3))
        if how == 0:
            target[at : at + rng.randrange(40)] = rng.randbytes(rng.randrange(40))
        elif how == 1:
            del target[at : at + rng.randrange(300)]
        elif how == 2:
            target[at:at] = rng.randbytes(rng.randrange(300))
        else:
            piece = target[at : at + rng.randrange(2000)]
            target[0:0] = piece
    return base, bytes(target)


@settings(max_examples=300)
@given(pairs())
def test_a_delta_makes_the_target_of_its_base(pair):
    base, target = pair
    delta = encode_delta(base, bytearray(target), 0, len(target), 2 * len(target) + 100)
    assert delta is not None
    assert apply_delta(base, delta, len(target)) == target
    assert reference_delta.apply(base, delta, len(target)) == target


@given(pairs(), st.integers(1, 3000))
def test_a_delta_fits_its_room_or_is_none(pair, room):
    base, target = pair
    delta = encode_delta(base, bytearray(b"before" + target + b"after"), 6, 6 + len(target), room)
    assert delta is None or len(delta) <= room
    if delta is not None:
        assert apply_delta(base, delta, len(target)) == target


@given(chunks(), st.integers(0, 1 << 20))
def test_what_was_only_moved_and_cut_costs_few_bytes(base, at):
    at = at % (len(base) + 1)
    target = base[at:] + b"between" + base[:at]
    delta = encode_delta(base, bytearray(target), 0, len(target), len(target) + 100)
    assert delta is not None
    assert len(delta) <= 60


@settings(max_examples=500)
@given(pairs(), st.lists(st.tuples(seeds, st.integers(0, 255)), min_size=1, max_size=4), st.integers(-3, 3))
def test_a_damaged_delta_is_read_as_the_reference_reads_it(pair, flips, longer):
    base, target = pair
    delta = bytearray(encode_delta(base, bytearray(target), 0, len(target), 2 * len(target) + 100) or b"")
    for at, value in flips:
        delta[at % len(delta)] = value
    length = max(len(target) + longer, 0)
    assert apply_delta(base, bytes(delta), length) == reference_delta.apply(base, bytes(delta), length)


@given(st.binary(max_size=200), st.binary(max_size=60), st.integers(0, 300))
def test_any_bytes_as_a_delta_are_read_as_its_twin_reads_them(base, delta, length):
    assert apply_delta(base, delta, length) == reference_delta.apply(base, delta, length)


def deltas_of(some):
    return [encode_delta(base, bytearray(target), 0, len(target), 2 * len(target) + 100) for base, target in some]


@given(st.lists(pairs(), max_size=5))
def test_deltas_are_parted_and_joined_again(some):
    deltas = deltas_of(some)
    streams = part_deltas(deltas)
    assert join_deltas(streams) == reference_delta.join(streams, MAX_GROUP) == deltas
    # The first three hold numbers; one more a delta, which ends it.
    assert sum(map(len, streams)) <= 2 * sum(map(len, deltas)) + len(deltas)


@settings(max_examples=500)
@given(st.lists(pairs(), min_size=1, max_size=4), st.lists(st.tuples(st.integers(0, 3), seeds, st.binary(max_size=3))))
def test_a_damaged_group_is_read_as_the_reference_reads_it(some, damages):
    streams = [bytearray(stream) for stream in part_deltas(deltas_of(some))]
    for stream, place, data in damages:
        at = place % (len(streams[stream]) + 1)
        streams[stream][at : at + 1] = data
    found = [bytes(stream) for stream in streams]
    assert join_deltas(found) == reference_delta.join(found, MAX_GROUP)


@pytest.mark.parametrize("length", [(1 << 19) - 1, 1 << 19, 1 << 20])
def test_a_longer_base_is_searched_as_closely(length):
    """The table of samples grows with the base, from 512 KiB on."""
    base = random.Random(length).randbytes(length)
    target = bytearray(base[length // 2 :] + b"inserted" + base[: length // 2])
    for at in range(1000, length, length // 20):
        target[at : at + 4] = b"here"
    delta = encode_delta(base, target, 0, len(target), length)
    assert delta is not None
    assert len(delta) < 1000
    assert apply_delta(base, delta, len(target)) == target


def test_a_group_is_bounded_and_of_deltas_only():
    delta = encode_delta(b"base" * 100, bytearray(b"base" * 100), 0, 400, 100)
    assert join_deltas(part_deltas([delta] * MAX_GROUP)) == [delta] * MAX_GROUP
    assert join_deltas(part_deltas([delta] * (MAX_GROUP + 1))) is None
    for wrong in (b"", b"\x05abc", delta + b"\x00\x00\x00", b"\x80" * 6):
        with pytest.raises(ValueError, match="not deltas"):
            part_deltas([delta, wrong])


@settings(max_examples=30)
@given(chunks())
def test_sketches_are_those_of_the_twin(data):
    sketcher = Sketcher(GEAR, KEY)
    buffer = bytearray(b"ahead" + data + b"after")
    found = sketcher.sketch(buffer, [(5, 5 + len(data)), (0, 0)])
    assert found == [reference_delta.sketch(GEAR, KEY, data), ()]


def test_similar_chunks_share_features_and_others_do_not():
    sketcher = Sketcher(GEAR, KEY)
    rng = random.Random(4)
    shared = 0
    seen = set()
    for _ in range(100):
        base = rng.randbytes(65536)
        at = rng.randrange(65000)
        changed = base[:at] + b"a changed row" + base[at + 20 :]
        one, other = (sketcher.sketch(bytearray(data), [(0, len(data))])[0] for data in (base, changed))
        shared += bool(set(one) & set(other))
        assert not seen & set(one)
        seen |= set(one)
    assert shared >= 95


def test_the_key_changes_every_feature():
    data = bytearray(random.Random(5).randbytes(65536))
    (one,), (other,) = (Sketcher(GEAR, key).sketch(data, [(0, len(data))]) for key in (KEY, KEY[::-1]))
    assert len(one) == len(other) == 3
    assert not set(one) & set(other)
