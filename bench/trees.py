#!/usr/bin/env python3
"""Directory trees, stored and restored by castore, borg and restic, next to the floors.

    python bench/trees.py [--data linux|small|large] [--runs N] [--files N] [--folder DIR] [--alone]
    python bench/trees.py --curve [--folder DIR]

linux: the kernel's source, out of the system's package (linux-source); small: files of 0 to 4 KiB, 100 in
a directory; large: files of 50 KiB to 3 MiB that do not compress. The tools take turns, the page cache
warm; figures are medians of the runs. The floors: `find -printf` of what a scan reads, `tar | zstd -3 -T2`,
`cp -a`. borg and restic are left out where they are not installed, or with --alone. What is restored of
small files is removed at the end only: ext4 makes files slowly for minutes after many were removed.

--curve: castore on 100,000, 300,000 and 1,000,000 small files, next to find.
"""

from __future__ import annotations

import argparse
import glob
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bench.peers import Borg, Castore, Figure, Restic, Tool, warm

Figures = dict[str, dict[str, Figure]]

FLOORS = {
    "unchanged": ("find", "find {tree} -printf '%s %T@ %C@ %i %m %U %G\\n' >/dev/null"),
    "first": ("tar | zstd", "tar c -C {tree} . | zstd -q -3 -T2 >{out}"),
    "restore": ("cp -a", "cp -a {tree} {out}"),
}


def linux(path: str, _files: int) -> None:
    """Unpack the kernel's source."""
    found = sorted(glob.glob("/usr/src/linux-source-*.tar.xz"))
    if not found:
        raise SystemExit("install the system's package linux-source, or choose other --data")
    subprocess.run(["tar", "-C", path, "-xf", found[-1]], check=True)


def small(path: str, files: int) -> None:
    """Make small files of text."""
    rng = random.Random(1)
    words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 10))) for _ in range(3000)]
    text = b" ".join(rng.choices(words, k=1 << 20))
    for number in range(files):
        folder = os.path.join(path, f"{number // 10000:03}", f"{number // 100:05}")
        if number % 100 == 0:
            os.makedirs(folder)
        at = rng.randrange(len(text) - 4096)
        with open(os.path.join(folder, f"{number:07}.txt"), "wb") as file:
            file.write(text[at : at + rng.randrange(4097)])


def large(path: str, files: int) -> None:
    """Make files that do not compress."""
    rng = random.Random(2)
    for number in range(files // 100):
        folder = os.path.join(path, f"{number // 50:03}")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, f"{number:05}.bin"), "wb") as file:
            file.write(rng.randbytes(rng.randrange(50 << 10, 3 << 20)))


def change(path: str) -> None:
    """Write a line into one of 100 files, at random."""
    rng = random.Random(3)
    paths = sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    for one in rng.sample(paths, len(paths) // 100):
        if os.path.isfile(one) and not os.path.islink(one):
            with open(one, "r+b") as file:
                data = file.read()
                at = rng.randrange(len(data) + 1)
                file.seek(at)
                file.write(b"changed\n" + data[at:])


def run(tool: Tool, tree: str, figures: Figures) -> None:
    """Take one run of every step with one tool."""
    path = os.path.join(tool.home, "live")

    def step(name: str, argv: list[str]) -> None:
        before = tool.stored()
        seconds, memory = tool.run(argv)
        figure = figures.setdefault(name, {}).setdefault(tool.name, Figure())
        figure.seconds.append(seconds)
        figure.memory.append(memory)
        figure.stored.append(tool.stored() - before)

    tool.init()
    subprocess.run(["cp", "-a", tree, path], check=True)
    time.sleep(3)  # what was changed just now is read again, by any of them
    step("first", tool.tree(path))
    step("unchanged", tool.tree(path))
    step("restore", tool.restore(os.path.join(tool.home, "out")))
    change(path)
    time.sleep(3)
    step("1 % changed", tool.tree(path))
    if isinstance(tool, Castore):
        time.sleep(3)
        step("in place", tool.command("restore", "--in-place", "t@2:t", path))


def floors(tree: str, folder: str, number: int, figures: Figures) -> None:
    """Take one run of each floor."""
    for step, (name, command) in FLOORS.items():
        out = os.path.join(folder, f"floor-{step}-{number}")
        started = time.perf_counter()
        subprocess.run(["sh", "-c", command.format(tree=tree, out=out)], check=True)
        figure = figures.setdefault(step, {}).setdefault(name, Figure())
        figure.seconds.append(time.perf_counter() - started)
        figure.memory.append(0)
        figure.stored.append(os.path.getsize(out) if os.path.isfile(out) else 0)


def curve(folder: str) -> None:
    """Print how time and memory grow with the number of files."""
    for files in (100_000, 300_000, 1_000_000):
        tree = os.path.join(folder, f"tree-{files}")
        os.mkdir(tree)
        small(tree, files)
        warm(tree)
        time.sleep(3)
        tool = Castore(os.path.join(folder, f"castore-{files}"))
        tool.init()
        find = FLOORS["unchanged"][1].format(tree=tree, out="")
        taken = [tool.run(tool.tree(tree)) for _ in range(4)]
        floor = statistics.median(tool.run(["sh", "-c", find])[0] for _ in range(3))
        again = statistics.median(seconds for seconds, _ in taken[1:])
        memory = [max(peak for _, peak in some) / 1000 for some in (taken[:1], taken[1:])]
        print(
            f"{files:9} files: first {taken[0][0]:6.2f} s {memory[0]:4.0f} MB, "
            f"unchanged {again:5.2f} s {memory[1]:4.0f} MB, find {floor:5.2f} s",
            flush=True,
        )




def main() -> None:
    """Make the data, take the runs, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=["linux", "small", "large"], default="linux")
    parser.add_argument("--files", type=int, default=300_000, help="of small; of large 1/100 of them")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--curve", action="store_true", help="castore on more and more files")
    parser.add_argument("--alone", action="store_true", help="castore and the floors only")
    options = parser.parse_args()
    peers = [] if options.alone else [tool for tool in (Borg, Restic) if shutil.which(tool.name)]
    figures: Figures = {}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="castore-bench-") as folder:
        if options.curve:
            curve(folder)
            return
        tree = os.path.join(folder, "tree")
        os.mkdir(tree)
        {"linux": linux, "small": small, "large": large}[options.data](tree, options.files)
        warm(tree)
        for number in range(options.runs):
            floors(tree, folder, number, figures)
            for tool in (Castore, *peers):
                home = os.path.join(folder, f"{tool.name}-{number}")
                run(tool(home), tree, figures)
                if options.data == "large":
                    floor = os.path.join(folder, f"floor-restore-{number}")
                    subprocess.run(["rm", "-rf", home, floor], check=True)
    for step in ("first", "unchanged", "1 % changed", "restore", "in place"):
        for name, figure in figures[step].items():
            seconds = statistics.median(figure.seconds)
            stored = statistics.median(figure.stored) / 1e6
            memory = statistics.median(figure.memory) / 1000
            print(f"{step:12} {name:12}{seconds:8.2f} s{stored:9.2f} MB{memory:7.0f} MB peak")


if __name__ == "__main__":
    main()
