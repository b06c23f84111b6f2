"""A cutter with the limits that another program publishes."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from castore.kernel import CutLimits, Cutter

_GEAR = random.Random(1).randbytes(2048)
_DATA = bytearray(random.Random(2).randbytes(4_000_000))


def lengths(cutter: Cutter) -> list[int]:
    ends = cutter.scan(_DATA, 0, len(_DATA), final=True)
    borders = cutter.find(_DATA, 0, 0, len(_DATA))
    assert borders is not None
    assert borders.choose(0, len(_DATA), final=True) == ends
    return [end - start for start, end in pairwise([0, *ends])]


def test_chunks_keep_to_the_limits_and_have_the_expected_mean() -> None:
    limits = CutLimits(minimum=2048, maximum=16384, period=8192)
    found = lengths(Cutter(_GEAR, 8192, limits))
    assert all(limits.minimum <= length <= limits.maximum for length in found[:-1])
    # Geometrically distributed after the minimum, up to the maximum.
    share = 1 - (1 - 1 / limits.period) ** (limits.maximum - limits.minimum)
    assert sum(found) / len(found) == pytest.approx(limits.minimum + limits.period * share, rel=0.1)
    assert found.count(limits.maximum) / len(found) == pytest.approx(1 - share, abs=0.06)


@pytest.mark.parametrize("limits", [CutLimits(10, 1000, 100), CutLimits(1000, 1000, 100), CutLimits(1000, 1 << 30, 100)])
def test_limits_that_the_kernel_does_not_take_are_refused(limits: CutLimits) -> None:
    with pytest.raises(ValueError, match="limits"):
        Cutter(_GEAR, 8192, limits)
