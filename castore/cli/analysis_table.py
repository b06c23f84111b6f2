"""The output of `castore analyze` for people: tables with a bar per row, and the recommendation."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from castore.analysis.settings import size_label
from castore.cli import formatting

if TYPE_CHECKING:
    from collections.abc import Collection

    from castore.analysis.results import Advice, Analysis, Room, RoomItem, Row, WholeFile

_BAR: Final = 24
"""Columns of the longest bar."""
_LEAST_BAR: Final = 6
_SHOWN: Final = 6
"""Directories, types and tables that are listed."""
_BLOCKS: Final = " ▏▎▍▌▋▊▉█"


def show_analysis(found: Analysis) -> None:
    """Print the results of an analysis."""
    if not found.rows:
        return
    plain = formatting.size(found.plain)
    files = f" in {formatting.count(found.files, 'file')}" if found.files else ""
    print(f"{plain}{files}; every row is a run of the real pipeline that stored nothing")
    if found.sample is not None:
        read, copied = formatting.size(found.sample.read), formatting.size(found.sample.copied)
        print(f"estimated from a sample of {read} (95 %); copies of large files: {copied}")
    print()
    print(_settings_table(found.rows))
    best = _recommended(found)
    if len(found.nights) > 1:
        print(f"\nper night, with chunks of {_label(best)}:\n")
        print(_nights_table(best, found.whole_files))
    if best.levels:
        print(f"\nother levels of zstd, with chunks of {_label(best)}, estimated from a sample (95 %):\n")
        print(_levels_table(best))
    if largest := _largest(found.room):
        print("\nwhat takes the room:\n")
        print(_room_table(largest))
    print()
    _print_advice(found.advice, best)


def _recommended(found: Analysis) -> Row:
    advice = found.advice
    return next(
        row
        for row in found.rows
        if (row.average, row.deltas) == (advice.average, advice.deltas) and not row.simulates
    )


def _label(row: Row) -> str:
    return f"{size_label(row.average)}, {'deltas' if row.deltas else 'no deltas'}"


def _settings_table(rows: list[Row]) -> str:
    most = max(row.stored for row in rows)
    lines = [
        [
            size_label(row.average),
            row.simulates or ("yes" if row.deltas else "no"),
            formatting.size(row.plain),
            formatting.size(row.unique),
            formatting.size(row.stored),
            f"{row.ratio:.2f}x",
            formatting.size(row.index),
            f"{row.mb_per_s:.0f}",
            f"+- {100 * row.error / row.stored:.1f} %" if row.scatter is None else f"{row.scatter.reads:.0f}",
        ]
        for row in rows
    ]
    last = "error" if rows[0].scatter is None else "reads"
    header = ["chunks", "deltas", "plain", "unique", "stored", "ratio", "index", "MB/s", last]
    shares = [row.stored / most for row in rows]
    return _with_bars(lines, shares, header=header, right={0, 2, 3, 4, 5, 6, 7, 8})


def _nights_table(row: Row, floors: list[WholeFile]) -> str:
    most = max(night.stored for night in row.nights) or 1
    figures: list[WholeFile | None] = [*floors] or [None] * len(row.nights)
    lines = [
        [
            night.name,
            formatting.size(night.plain),
            formatting.size(night.unique),
            formatting.size(night.stored),
            *([formatting.size(floor.compressed), _patch(floor)] if floor is not None else []),
        ]
        for night, floor in zip(row.nights, figures, strict=True)
    ]
    header = ["night", "plain", "unique", "added", *(["zstd -3", "--patch-from"] if floors else [])]
    shares = [night.stored / most for night in row.nights]
    return _with_bars(lines, shares, header=header, right=set(range(1, len(header))))


def _patch(floor: WholeFile) -> str:
    return "" if floor.patch is None else formatting.size(floor.patch)


def _largest(room: Room) -> list[RoomItem]:
    """Return the largest directories, types of files and tables."""
    return [item for items in (room.directories, room.types, room.tables) for item in items[:_SHOWN]]


def _room_table(items: list[RoomItem]) -> str:
    most = max(item.stored for item in items) or 1
    lines = [
        [
            formatting.printable(os.fsencode(item.name)),
            formatting.size(item.plain),
            formatting.size(item.stored),
        ]
        for item in items
    ]
    header = ["directory, type or table", "plain", "stored"]
    return _with_bars(lines, [item.stored / most for item in items], header=header, right={1, 2})


def _levels_table(row: Row) -> str:
    most = max(level.stored for level in row.levels) or 1
    lines = [
        [
            str(level.level),
            formatting.size(level.stored),
            f"{100 * (level.stored / row.stored - 1):+.1f} %",
            f"{100 * level.error / row.stored:.1f} %",
            f"{level.mb_per_s:.0f}",
        ]
        for level in row.levels
    ]
    header = ["level", "stored", "change", "+-", "MB/s"]
    shares = [level.stored / most for level in row.levels]
    return _with_bars(lines, shares, header=header, right={0, 1, 2, 3, 4})


def _with_bars(
    rows: list[list[str]], shares: list[float], *, header: list[str], right: Collection[int]
) -> str:
    """Return a table with a bar for each row, as long as the terminal has columns for.

    shares: of the longest bar.
    """
    lines = formatting.table(rows, header=header, right=right).split("\n")
    width = max(map(len, lines)) + 2
    room = (formatting.terminal_width() or 1000) - width
    longest = min(_BAR, room)
    if longest < _LEAST_BAR:
        return "\n".join(lines)
    bars = ["", *(_bar(share, longest) for share in shares)]
    return "\n".join(f"{line.ljust(width)}{bar}".rstrip() for line, bar in zip(lines, bars, strict=True))


def _bar(share: float, longest: int) -> str:
    """Return a bar for a share of the longest one, which has that many columns."""
    eighths = max(round(share * longest * 8), 1)
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        return "#" * max(round(eighths / 8), 1)
    return _BLOCKS[8] * (eighths // 8) + _BLOCKS[eighths % 8].strip()


def _print_advice(advice: Advice, best: Row) -> None:
    off = "" if advice.deltas else '   (and base-cache = "off" in castore.toml)'
    print(f"recommended: chunks of {_label(best)}: {advice.reason}")
    print(f"  castore init --average {advice.average}{off}")
    cost = "" if advice.cost_per_month is None else f", {_money(advice.cost_per_month)} per month"
    print(f"  now: {formatting.size(advice.stored)}{cost}")
    if (forecast := advice.forecast) is not None:
        growth = formatting.size(forecast.growth)
        line = f"  in a year, with {growth} per night and all nights kept: {formatting.size(forecast.stored)}"
        if advice.cost_per_month is not None:
            line += f", {_money(forecast.cost_per_month)} per month, {_money(forecast.cost)} for the year"
        print(line)
    elif advice.cost_per_month is not None:
        print("  forecast: name the states of two nights or more with --nights")


def _money(amount: float) -> str:
    return f"{amount:.2f}" if amount >= 1 else f"{amount:.2g}"
