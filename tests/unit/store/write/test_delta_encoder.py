"""The encoder of new chunks: how many deltas make a record."""

from __future__ import annotations

import pytest

from castore.kernel import MAX_GROUP, encode_delta
from castore.model.refs import RecordId
from castore.store.format.codecs import Codecs
from castore.store.format.pack import DELTA
from castore.store.write.delta_encoder import _GROUP_BYTES, DeltaMember, _RecordBuilder

BASE = RecordId(bytes(32))


def delta_of(length: int) -> bytes:
    """Return a delta of some bytes that has no copies."""
    found = encode_delta(b"", bytearray(length), 0, length, length + 100)
    assert found is not None
    return found


def sizes(builder: _RecordBuilder) -> list[int]:
    return [len(record.members) for record in builder.finish()]


def builder_with(deltas: list[bytes]) -> _RecordBuilder:
    builder = _RecordBuilder(Codecs())
    for delta in deltas:
        builder.add_delta(delta, DeltaMember(BASE, 1, DELTA, (BASE,), (), len(delta)))
    return builder


def test_a_group_ends_when_it_has_the_most_deltas():
    delta = delta_of(1)
    assert sizes(builder_with([delta] * (MAX_GROUP + 1))) == [MAX_GROUP, 1]
    assert sizes(builder_with([delta] * MAX_GROUP)) == [MAX_GROUP]


def test_a_group_ends_when_its_deltas_are_long_enough_to_be_opened_together():
    half = delta_of(_GROUP_BYTES // 2)
    assert sizes(builder_with([half, half, half])) == [2, 1]
    exact = delta_of(_GROUP_BYTES - (len(delta_of(_GROUP_BYTES)) - _GROUP_BYTES))
    assert len(exact) == _GROUP_BYTES
    assert sizes(builder_with([exact, exact, delta_of(1)])) == [1, 1, 1]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_full_chunks_are_records_of_their_own_and_the_deltas_follow(count):
    builder = builder_with([delta_of(1)] * count)
    builder.add_full(b"content", DeltaMember(BASE, 7, 0, (), (), 7))
    assert sizes(builder) == [1, *([count] if count else [])]
