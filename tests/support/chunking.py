"""Streams and cutters for the tests of cutting."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from castore.kernel import Cutter
from tests.support import reference_chunker

if TYPE_CHECKING:
    from collections.abc import Iterable

GEAR = random.Random("gear").randbytes(2048)


def cutter(average: int, gear: bytes = GEAR) -> Cutter:
    """Return a cutter that is the same in every run."""
    return Cutter(gear, average)


def reference_ends(rule: Cutter, data: bytes, gear: bytes = GEAR) -> list[int]:
    """Return where the slow reference cuts `data`."""
    return reference_chunker.cut_points(
        reference_chunker.gear_words(gear),
        data,
        low=rule.min,
        normal=rule.normal,
        high=rule.max,
        early=rule.early,
        late=rule.late,
    )


def whole(rule: Cutter, data: bytes) -> list[int]:
    """Return where the kernel cuts `data`, given at once."""
    return rule.scan(bytearray(data), 0, len(data), final=True)


def in_pieces(rule: Cutter, pieces: Iterable[bytes]) -> list[int]:
    """Return where the kernel cuts the stream that comes in `pieces`."""
    ends: list[int] = []
    done = 0
    rest = bytearray()
    for piece in pieces:
        rest += piece
        found = rule.scan(rest, 0, len(rest), final=False)
        ends += [done + end for end in found]
        if found:
            done += found[-1]
            del rest[: found[-1]]
    return ends + [done + end for end in rule.scan(rest, 0, len(rest), final=True)]


def lengths(ends: list[int]) -> list[int]:
    """Return the lengths of the chunks that end there."""
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
