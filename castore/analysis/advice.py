"""Recommend a setting, and forecast what a year takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from castore.analysis.results import Advice, Forecast
from castore.analysis.settings import size_label
from castore.store.format.config import DEFAULT_AVERAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castore.analysis.results import Row

_NEAR: Final = 1.03
"""A setting that takes up to 3 % more than the smallest is as good: its other advantages count more."""
_NIGHTS: Final = 365
_MONTHS: Final = 12
_GB: Final = 10**9


def recommend(rows: Sequence[Row], price: float | None = None) -> Advice:
    """Return the recommended setting among those that a store can have.

    price: of a gigabyte (10^9 bytes) per month. Of the settings that take about the least space after a
    year, the default is preferred, then larger chunks: they give a smaller index and fewer reads.
    """
    own = [row for row in rows if not row.simulates]
    if len(own[0].nights) == 1:
        # One night does not show what deltas save: most of them are of chunks of earlier nights.
        own = [row for row in own if row.deltas] or own
    least = min(map(_year, own))
    near = [row for row in own if _year(row) <= _NEAR * least]
    best = max(near, key=lambda row: (row.average == DEFAULT_AVERAGE, row.average, row.deltas))
    without = next((row for row in near if row.average == best.average and not row.deltas), None)
    if without is not None and best.deltas and without.mb_per_s >= best.mb_per_s:
        best = without
    forecast = _forecast(best, price)
    return Advice(
        average=best.average,
        deltas=best.deltas,
        reason=_reason(best, own, near),
        stored=best.stored,
        cost_per_month=None if price is None else best.stored / _GB * price,
        forecast=forecast,
    )


def _growth(row: Row) -> int:
    """Return how many bytes are added per night, on average."""
    later = row.nights[1:]
    return sum(night.stored for night in later) // len(later) if later else 0


def _year(row: Row) -> int:
    return row.stored + _NIGHTS * _growth(row)


def _forecast(row: Row, price: float | None) -> Forecast | None:
    if len(row.nights) < 2:
        return None
    end = _year(row)
    per_month = 0.0 if price is None else end / _GB * price
    cost = 0.0 if price is None else (row.stored + end) / 2 / _GB * price * _MONTHS
    return Forecast(growth=_growth(row), stored=end, cost_per_month=per_month, cost=cost)


def _reason(best: Row, own: Sequence[Row], near: Sequence[Row]) -> str:
    smallest = min(own, key=_year)
    what = "after a year" if len(best.nights) > 1 else "for this data"
    if smallest is best:
        first = f"it takes the least space {what}"
    else:
        more = 100 * (_year(best) / _year(smallest) - 1)
        label = f"{size_label(smallest.average)} {'with' if smallest.deltas else 'without'} deltas"
        first = f"it takes {more:.1f} % more space {what} than the smallest setting, {label}"
    reasons = [first]
    if best.average == DEFAULT_AVERAGE:
        reasons.append("it is the default")
    elif any(row.average < best.average for row in near):
        reasons.append("larger chunks give a smaller index and fewer reads")
    if not best.deltas and any(row.average == best.average and row.deltas for row in near):
        reasons.append("deltas save too little here to be worth their time")
    return "; ".join(reasons)
