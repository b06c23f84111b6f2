#!/usr/bin/env python3
"""Nightly dumps of real databases, stored by castore and its peers, next to the floor.

    python bench/nights.py [--data postgres|mariadb|sqlite] [--scale N] [--runs N] [--folder DIR]
        [--json FILE]
    python bench/nights.py --sixty [--rows N]

Rows: each night as a dump, read from standard input; the newest night again, through a pipe and as a file;
the first and the newest night written out; the second night as a file in a tree, where it overwrites the
first, or has a name of its own while the first was removed, or was kept.

The tools take turns on the same dumps, the page cache warm; figures are medians of the runs. The floor is
zstd: the first night at level 3, each other as a patch of the night before (`zstd -3 --long=30 --patch-
from`). A table is printed, and a plot is written to nights-DATA.svg. With --sixty: a made-up dump through 60
nights, castore alone. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bench.databases import hash_of, mariadb_nights, postgres_nights, sqlite_nights
from bench.recording import Recording
from bench.tools import Castore, Cost, Tool, installed, warm
from bench.trees import RACY, overwrite
from castore.analysis.whole_file import whole_files

FLOOR = "zstd patch"
IN_A_TREE = ("overwritten", "new name, old removed", "new name, old kept")


def floor(paths: list[str]) -> list[int]:
    """Return what zstd makes of the first night, and of each other as a patch of the one before."""
    return [file.compressed if file.patch is None else file.patch for file in whole_files(paths)]


def run_nights(recording: Recording, tool: Tool, paths: list[str]) -> None:
    """Take one run of all nights, as dumps, with one tool."""
    tool.init()
    for night, path in enumerate(paths):
        recording.step(f"night {night}", tool, tool.dump("-"), path)
        if night == 0:
            recording.step("first night out", tool, tool.cat())
    recording.step("newest night out", tool, tool.cat())
    piped = ["sh", "-c", 'cat "$0" | "$@"', paths[-1]]
    recording.step("the same again, pipe", tool, [*piped, *tool.dump("-")])
    if isinstance(tool, Castore):  # to peers a file by its name is another thing than the dump
        tool.run(tool.dump_file(paths[-1]))
        recording.step("the same again, file", tool, tool.dump_file(paths[-1]))


def run_in_a_tree(recording: Recording, tool: Tool, paths: list[str], how: str) -> None:
    """Take one run of the second night as a file in a tree, after the first."""
    tool.init()
    tree = os.path.join(tool.home, "dumps")
    os.mkdir(tree)
    first = os.path.join(tree, "db-2026-11-01.sql")
    shutil.copy(paths[0], first)
    time.sleep(RACY)
    tool.run(tool.tree(tree))
    if how == "overwritten":
        overwrite(paths[1], first)
    else:
        shutil.copy(paths[1], os.path.join(tree, "db-2026-11-02.sql"))
    if how == "new name, old removed":
        os.unlink(first)
    time.sleep(RACY)
    recording.step(f"night 1 in a tree: {how}", tool, tool.tree(tree))


def print_totals(recording: Recording, paths: list[str], floors: list[int]) -> None:
    """Print how the stored bytes compare with the floor."""
    size = os.path.getsize(paths[-1])
    print(f"{len(paths)} nights of {size / 1e6:.0f} MB; stored bytes, and times the floor:")
    rows = [f"night {night}" for night in range(len(paths))]
    for tool in recording.rows[rows[0]]:
        stored = [statistics.median(recording.rows[row][tool].stored_bytes) for row in rows]
        cells = [f"{size / 1e6:.2f} MB ({size / low:.2f})" for size, low in zip(stored, floors, strict=True)]
        print(f"{tool:12}" + "  ".join(cells) + f"  all: {sum(stored) / sum(floors):.2f}")


def plot_nights(recording: Recording, nights: int, path: str) -> None:
    """Draw stored bytes and seconds per night."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    drawn, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    rows = [recording.rows[f"night {night}"] for night in range(nights)]
    width = 0.8 / len(rows[0])
    for position, tool in enumerate(rows[0]):
        at = [night + (position - (len(rows[0]) - 1) / 2) * width for night in range(nights)]
        stored = [statistics.median(row[tool].stored_bytes) / 1e6 for row in rows]
        color = "0.6" if tool == FLOOR else f"C{position}"
        bars = left.bar(at, stored, width, label=tool, color=color)
        left.bar_label(bars, [f"{mb:.1f}" if mb < 10 else f"{mb:.0f}" for mb in stored], fontsize=6)
        if tool != FLOOR:
            right.bar(
                at, [statistics.median(row[tool].seconds) for row in rows], width, label=tool, color=color
            )
    left.set_yscale("log")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("")
    left.set_ylabel("MB stored (logarithmic)")
    right.set_ylabel("seconds")
    for axes in (left, right):
        axes.set_xticks(list(range(nights)), [f"night {night}" for night in range(nights)])
        axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=5, frameon=False)
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
        seconds = tool.run(tool.dump("-"), path).seconds
        added.append(tool.stored() - stored)
        if night:
            patches.append(floor([before, path])[1])
            printed = f"{added[-1] / 1e6:.2f} MB, patch {patches[-1] / 1e6:.2f} MB"
            print(f"night {night}: {printed}, {seconds:.2f} s", flush=True)
    out = []
    for which in (1, nights + 1):
        cat = tool.command("cat", f"s@{which}:d")
        out.append(statistics.median(tool.run(cat).seconds for _ in range(5)))
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
    parser.add_argument("--json", metavar="FILE", help="save the figures, for bench/compare.py")
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
        recording = Recording(data=options.data, scale=options.scale, runs=options.runs)
        for number in range(options.runs):
            for kind in (Castore, *installed()):
                warm(*paths)
                run_nights(recording, kind(os.path.join(work, f"{kind.name}-{number}")), paths)
                for position, how in enumerate(IN_A_TREE):
                    run_in_a_tree(
                        recording, kind(os.path.join(work, f"{kind.name}-{number}-{position}")), paths, how
                    )
        floors = floor(paths)
        for night, size in enumerate(floors):
            recording.of(f"night {night}", FLOOR).add(Cost(0, 0, 0), size)
        recording.print()
        print_totals(recording, paths, floors)
        plot = os.path.join(options.folder or os.getcwd(), f"nights-{options.data}.svg")
        plot_nights(recording, len(paths), plot)
        print(f"plot: {plot}")
        if options.json:
            recording.save(options.json, work)


if __name__ == "__main__":
    main()
