#!/usr/bin/env python3
"""Two runs of a benchmark next to each other: ratios of their medians, and what became worse.

    python bench/compare.py BEFORE.json AFTER.json [--tolerance 10]

Prints a line for each row and tool that both files have: seconds, CPU seconds, peak memory and stored bytes
as AFTER divided by BEFORE. A ratio over 1 + tolerance is marked with `!`. Exits with 1 if one of castore's
is: but not for seconds alone where the other tools of that row slowed down as much, which says that the
machine did.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bench.tools import Castore

FIGURES = ("seconds", "cpu_seconds", "peak_kib", "stored_bytes")
Row = dict[str, dict[str, list[float]]]


def ratio(before: list[float], after: list[float]) -> float | None:
    """Return the ratio of the medians; None where there is nothing to divide by."""
    divisor = statistics.median(before) if before else 0
    return statistics.median(after) / divisor if after and divisor else None


def machine_factor(before: Row, after: Row) -> float:
    """Return how much slower the other tools of a row became: at least 1."""
    others = [tool for tool in before if tool in after and tool != Castore.name]
    ratios = [ratio(before[tool]["seconds"], after[tool]["seconds"]) for tool in others]
    known = [value for value in ratios if value is not None]
    return max(1.0, statistics.median(known)) if known else 1.0


def compare(before: dict[str, Any], after: dict[str, Any], tolerance: float) -> tuple[list[str], list[str]]:
    """Return the lines of the table, and what became worse for castore."""
    lines, regressions = [], []
    for row in [row for row in before["rows"] if row in after["rows"]]:
        then, now = before["rows"][row], after["rows"][row]
        factor = machine_factor(then, now)
        for tool in [tool for tool in then if tool in now]:
            cells = []
            for name in FIGURES:
                value = ratio(then[tool][name], now[tool][name])
                allowed = tolerance * (factor if name == "seconds" else 1)
                worse = value is not None and value > allowed
                cells.append(f"{'-' if value is None else f'{value:.2f}':>11}{'!' if worse else ' '}")
                if worse and tool == Castore.name:
                    regressions.append(f"{row}: {name} x {value:.2f}")
            lines.append(f"{row:44}{tool:16}" + "".join(cells))
    return lines, regressions


def main() -> int:
    """Compare the two files of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--tolerance", type=float, default=10, help="per cent (default: 10)")
    options = parser.parse_args()
    recordings = []
    for path in (options.before, options.after):
        with open(path, encoding="utf-8") as file:
            recordings.append(json.load(file))
    before, after = recordings
    for key in ("machine", "versions", "settings"):
        if before[key] != after[key]:
            print(f"{key} differs: {before[key]}; {after[key]}")
    lines, regressions = compare(before, after, 1 + options.tolerance / 100)
    print(f"{'':60}" + "".join(f"{name:>11} " for name in FIGURES))
    print("\n".join(lines))
    for regression in regressions:
        print(f"worse by more than {options.tolerance:g} %: {regression}")
    return 1 if regressions else 0


if __name__ == "__main__":
    sys.exit(main())
