#!/usr/bin/env python3
"""Nightly dumps of real databases, stored by castore, borg and restic, next to the floor.

    python bench/nights.py [--data postgres|mariadb|sqlite] [--scale N] [--runs N] [--folder DIR]
    python bench/nights.py --sixty [--rows N]

The tools take turns on the same dumps, the page cache warm; figures are medians of the runs. The floor
is zstd: the first night at level 3, each other as a patch of the night before (`zstd -3 --long=30
--patch-from`). A table is printed, and a plot is written to nights-DATA.svg. With --sixty: a made-up
dump through 60 nights, castore alone. borg and restic are left out where they are not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bench.databases import hash_of, mariadb_nights, postgres_nights, sqlite_nights
from bench.peers import Borg, Castore, Figure, Restic, Tool, warm

Figures = dict[str, dict[str, Figure]]


def floor(paths: list[str], folder: str) -> list[int]:
    """Return what zstd makes of the first night, and of each other as a patch of the one before."""
    out = os.path.join(folder, "floor.zst")
    sizes = []
    for before, path in zip([None, *paths], paths, strict=False):
        patch = ["--long=30", f"--patch-from={before}"] if before else []
        subprocess.run(["zstd", "-q", "-3", "-f", *patch, path, "-o", out], check=True)
        sizes.append(os.path.getsize(out))
    os.unlink(out)
    return sizes


def by_name(tool: Tool, path: str) -> list[str]:
    """Return the command that takes a file by its name, and reads it though it has not changed."""
    if isinstance(tool, Castore):
        return tool.command("snapshot", "s", "--dump", f"d={path}")
    if isinstance(tool, Borg):
        archive = f"{tool.store}::file-{os.urandom(4).hex()}"
        return ["borg", "create", "-C", "zstd,3", "--files-cache", "disabled", archive, path]
    return ["restic", "backup", "--force", path]


def run_nights(tool: Tool, paths: list[str], figures: Figures) -> None:
    """Take one run of all nights with one tool."""

    def step(name: str, argv: list[str], stdin: str | None = None) -> None:
        before = tool.stored()
        seconds, memory = tool.run(argv, stdin)
        figure = figures.setdefault(name, {}).setdefault(tool.name, Figure())
        figure.seconds.append(seconds)
        figure.memory.append(memory)
        figure.stored.append(tool.stored() - before)

    tool.init()
    for night, path in enumerate(paths):
        step(f"night {night}", tool.dump("-"), path)
        if night == 0:
            step("first night out", tool.cat())
    step("newest night out", tool.cat())
    piped = ["sh", "-c", 'cat "$0" | "$@"', paths[-1]]
    step("the same again, pipe", [*piped, *tool.dump("-")])
    tool.run(by_name(tool, paths[-1]))  # to peers a file by its name is another thing than the dump
    step("the same again, file", by_name(tool, paths[-1]))


def print_nights(figures: Figures, paths: list[str], floors: list[int]) -> None:
    """Print the table."""
    size = os.path.getsize(paths[-1])
    printed = " ".join(f"{one / 1e6:.2f}" for one in floors)
    print(f"{len(paths)} nights of {size / 1e6:.0f} MB, floor {printed} MB")
    print(f"{'':24}{'tool':10}{'seconds':>9}{'MB/s':>8}{'peak MB':>9}{'stored MB':>11}{'x floor':>9}")
    for name, by_tool in figures.items():
        for tool, figure in by_tool.items():
            seconds = statistics.median(figure.seconds)
            stored = statistics.median(figure.stored)
            memory = statistics.median(figure.memory) / 1000
            times = f"{stored / floors[int(name[6:])]:9.2f}" if name.startswith("night") else ""
            rate = size / 1e6 / seconds
            print(f"{name:24}{tool:10}{seconds:9.2f}{rate:8.0f}{memory:9.0f}{stored / 1e6:11.2f}{times}")
    for tool in figures["night 0"]:
        total = sum(statistics.median(figures[f"night {n}"][tool].stored) for n in range(len(paths)))
        print(f"all nights: {tool:10}{total / 1e6:10.1f} MB{total / sum(floors):9.2f} x floor")


def plot_nights(figures: Figures, floors: list[int], path: str) -> None:
    """Draw stored bytes and seconds per night."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    nights = range(len(floors))
    drawn, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    tools = list(figures["night 0"])
    width = 0.8 / (len(tools) + 1)
    for position, tool in enumerate([*tools, "floor (zstd)"]):
        at = [night + (position - len(tools) / 2) * width for night in nights]
        stored = [one / 1e6 for one in floors]
        color = "0.6"
        if tool in tools:
            color = f"C{position}"
            stored = [statistics.median(figures[f"night {n}"][tool].stored) / 1e6 for n in nights]
            seconds = [statistics.median(figures[f"night {n}"][tool].seconds) for n in nights]
            right.bar(at, seconds, width, label=tool, color=color)
        bars = left.bar(at, stored, width, label=tool, color=color)
        left.bar_label(bars, [f"{one:.1f}" if one < 10 else f"{one:.0f}" for one in stored], fontsize=6)
    left.set_yscale("log")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("")
    left.set_ylabel("MB stored (logarithmic)")
    right.set_ylabel("seconds")
    for axes in (left, right):
        axes.set_xticks(list(nights), [f"night {n}" for n in nights])
        axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, frameon=False)
    drawn.savefig(path)


class MadeUp:
    """A table of made-up rows, of which 1 % change each night, more often at the front than at the end."""

    def __init__(self, rows: int) -> None:
        self._rng = random.Random(1)
        self._words = [hash_of(n, 0)[: 3 + n % 8] for n in range(4000)]
        self._next = 0
        self._table: list[str] = []
        for _ in range(rows):
            self._append()

    def _append(self) -> None:
        self._table.append(f"{self._next}\t{self._row()}")
        self._next += 1

    def _row(self) -> str:
        rng = self._rng
        words = " ".join(rng.choices(self._words, k=10))
        return f"{rng.randrange(10**6)}\t2026-{rng.randrange(1, 13):02}-01\t{words}\n"

    def change(self) -> None:
        """Pass per night."""
        rng, table = self._rng, self._table
        for _ in range(len(table) // 100):
            at = int(rng.betavariate(1, 2) * len(table))
            table[at] = table[at].partition("\t")[0] + "\t" + self._row()
        for _ in range(len(table) // 2000):
            del table[rng.randrange(len(table))]
            self._append()

    def write(self, path: str) -> None:
        """Write the dump."""
        with open(path, "w", encoding="ascii") as file:
            file.writelines(self._table)


def sixty(folder: str, rows: int, nights: int = 60) -> None:
    """Take a made-up dump through many nights; print what each adds next to its patch."""
    table = MadeUp(rows)
    tool = Castore(os.path.join(folder, "sixty"))
    tool.init()
    path, before = os.path.join(folder, "night.sql"), os.path.join(folder, "before.sql")
    added, patches = [], []
    for night in range(nights + 1):
        if night:
            os.replace(path, before)
            table.change()
        table.write(path)
        stored = tool.stored()
        seconds, _ = tool.run(tool.dump("-"), path)
        added.append(tool.stored() - stored)
        if night:
            patches.append(floor([before, path], folder)[1])
            printed = f"{added[-1] / 1e6:.2f} MB, patch {patches[-1] / 1e6:.2f} MB"
            print(f"night {night}: {printed}, {seconds:.2f} s", flush=True)
    out = []
    for which in (1, nights + 1):
        cat = tool.command("cat", f"s@{which}:d")
        out.append(statistics.median(tool.run(cat)[0] for _ in range(5)))
    mean, times = sum(added[1:]) / nights / 1e6, sum(added[1:]) / sum(patches)
    size = os.path.getsize(path) / 1e6
    print(f"{nights} nights of {size:.0f} MB: {mean:.2f} MB per night, {times:.2f} x patch")
    print(f"out: first {out[0]:.2f} s, newest {out[1]:.2f} s")


def main() -> None:
    """Make the data, take the runs, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=["postgres", "mariadb", "sqlite"], default="postgres")
    parser.add_argument("--scale", type=int, default=30, help="of the PostgreSQL, about 15 MB each")
    parser.add_argument("--rows", type=int, default=400_000, help="of the dump of --sixty")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sixty", action="store_true")
    parser.add_argument("--folder", default=None, help="keeps the dumps for the next run")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(dir=options.folder, prefix="castore-bench-")
        work = stack.enter_context(folder)
        if options.sixty:
            sixty(work, options.rows)
            return
        kept = options.folder or work
        make = {"mariadb": mariadb_nights, "sqlite": sqlite_nights}.get(options.data)
        paths = make(kept) if make is not None else postgres_nights(kept, scale=options.scale)
        floors = floor(paths, work)
        figures: Figures = {}
        kinds = [kind for kind in (Castore, Borg, Restic) if kind is Castore or shutil.which(kind.name)]
        for run in range(options.runs):
            for kind in kinds:
                warm(*paths)
                tool = kind(os.path.join(work, f"{kind.name}-{run}"))
                run_nights(tool, paths, figures)
                shutil.rmtree(tool.home)
        print_nights(figures, paths, floors)
        plot = os.path.join(options.folder or os.getcwd(), f"nights-{options.data}.svg")
        plot_nights(figures, floors, plot)
        print(f"plot: {plot}")


if __name__ == "__main__":
    main()
