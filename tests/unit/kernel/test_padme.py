"""The Padmé rule: Nikitin et al., "Reducing Metadata Leakage from Encrypted Files", PETS 2019."""

from __future__ import annotations

from math import floor, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castore.kernel import padme

lengths = st.one_of(st.integers(0, 1 << 16), st.integers(0, 1 << 62))


@pytest.mark.parametrize(
    ("length", "padded"),
    [(0, 0), (1, 1), (2, 2), (3, 3), (8, 8), (9, 10), (255, 256), (256, 256), (257, 272), (1 << 26, 1 << 26)],
)
def test_known_lengths(length, padded):
    assert padme(length) == padded


@given(st.integers(2, 1 << 45))
def test_it_is_the_paper_s_rule(length):
    exponent = floor(log2(length))
    zeros = exponent - (floor(log2(exponent)) + 1 if exponent else 0)
    unit = 1 << max(zeros, 0)
    assert padme(length) == -(-length // unit) * unit


@given(lengths)
def test_it_pads_and_by_no_more_than_an_eighth(length):
    assert length <= padme(length) <= length * 1.12


@given(lengths)
def test_a_padded_length_stays_as_it_is(length):
    assert padme(padme(length)) == padme(length)


@given(lengths, lengths)
def test_a_longer_one_is_not_padded_to_less(one, two):
    assert padme(min(one, two)) <= padme(max(one, two))


def test_few_lengths_are_distinguishable():
    # O(log log) bits of a length: 2^20 lengths leave about 20 * 16 / 2 classes.
    assert len({padme(length) for length in range(1 << 20)}) < 400
