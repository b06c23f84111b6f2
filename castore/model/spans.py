"""Sets of numbers as spans, whose size in memory does not depend on how many numbers they hold."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

Span = tuple[int, int]
"""The first and the last number of a run."""


class Spans:
    """An immutable set of numbers: sorted spans that neither overlap nor touch."""

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        joined: list[Span] = []
        for first, last in sorted(spans):
            if joined and first <= joined[-1][1] + 1:
                joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
            else:
                joined.append((first, last))
        self.spans = tuple(joined)

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Spans:
        """Return the spans of single numbers."""
        return cls((number, number) for number in numbers)

    def __contains__(self, number: object) -> bool:
        if not isinstance(number, int):
            return False
        at = bisect_right(self.spans, number, key=lambda span: span[0]) - 1
        return at >= 0 and number <= self.spans[at][1]

    def __bool__(self) -> bool:
        return bool(self.spans)

    def union(self, *others: Spans) -> Spans:
        """Return the numbers of this set and of others."""
        return Spans(span for spans in (self, *others) for span in spans.spans)
