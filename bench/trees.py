#!/usr/bin/env python3
"""Directory trees, stored and restored by castore and its peers, next to the floors.

    python bench/trees.py [--data KIND]... [--source DIR] [--scale X] [--runs N] [--folder DIR] [--alone]
        [--json FILE]
    python bench/trees.py --curve [--folder DIR]

Kinds: source (a copy of --source DIR; else the kernel's source, out of the system's package linux-source);
small (300,000 files of 0 to 4 KiB, 100 in a directory); media (3,000 files of 50 KiB to 3 MiB that do not
compress); dump (one SQL dump of 670 MB, of which 1 % of the rows change); random (one file of 2 GiB, which
gets 10 insertions and 100 blocks overwritten); pages (the same without insertions, as in a database). --scale
changes the sizes. In a tree, one in a hundred files changes.

The tools take turns, the page cache is warm; figures are medians of the runs. "In place" makes a changed tree
what the first generation was: of the live tree, which was snapshotted before and after the change, and of a
copy that no tool has seen. The floors are simple tools: `find -printf` of what a scan reads, `tar | zstd -3
-T2`, `cp -a`, and `rsync -a --delete` from a local original. Peers that are not installed are left out, as
with --alone.

Everything that is restored is removed at the end only: ext4 is slow for minutes after many files were
removed.

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
from dataclasses import dataclass
from typing import TYPE_CHECKING

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bench.data import write_dump
from bench.recording import Recording
from bench.tools import Castore, Tool, installed, run, warm

if TYPE_CHECKING:
    from collections.abc import Callable

FLOORS = {
    "first": ("tar | zstd", 'tar c -C "$0" . | zstd -q -3 -T2 >"$1"'),
    "unchanged": ("find", "find \"$0\" -printf '%s %T@ %C@ %i %m %U %G\\n' >/dev/null"),
    "restore": ("cp -a", 'cp -a "$0" "$1"'),
}
RACY = 2.1
"""Seconds after which a change counts as old: every tool reads again what changed just now."""


def source(path: str, folder: str | None) -> None:
    """Copy a directory, or unpack the kernel's source."""
    if folder is not None:
        subprocess.run(["cp", "-a", folder + "/.", path], check=True)
        return
    archives = sorted(glob.glob("/usr/src/linux-source-*.tar.xz"))
    if not archives:
        raise SystemExit("install the system's package linux-source, or give --source DIR")
    subprocess.run(["tar", "-C", path, "--strip-components=1", "-xf", archives[-1]], check=True)


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


def media(path: str, files: int) -> None:
    """Make files that do not compress."""
    rng = random.Random(2)
    for number in range(files):
        folder = os.path.join(path, f"{number // 50:03}")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, f"{number:05}.bin"), "wb") as file:
            file.write(rng.randbytes(rng.randrange(50 << 10, 3 << 20)))


def change_files(path: str) -> None:
    """Write a line into one of 100 files, at random."""
    paths = sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    change_some(paths, random.Random(3))


def change_every_directory(path: str) -> None:
    """Write a line into one of 100 files of each directory, at random."""
    rng = random.Random(3)
    for folder, folders, names in os.walk(path):
        folders.sort()
        change_some([os.path.join(folder, name) for name in sorted(names)], rng)


def change_some(paths: list[str], rng: random.Random) -> None:
    """Write a line into one of 100 of the regular files among these."""
    regular = [file for file in paths if os.path.isfile(file) and not os.path.islink(file)]
    for chosen in rng.sample(regular, min(max(1, len(regular) // 100), len(regular))):
        with open(chosen, "r+b") as file:
            data = file.read()
            at = rng.randrange(len(data) + 1)
            file.seek(at)
            file.write(b"changed\n" + data[at:])


class Dump:
    """A directory with one SQL dump, in two versions: both are made once, since that takes a minute."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = ""

    def make(self, path: str) -> None:
        """Write the first version."""
        self.changed = path + "-changed.sql"
        write_dump(os.path.join(path, "dump.sql"), self.size)
        write_dump(self.changed, self.size, night=1)

    def change(self, path: str) -> None:
        """Write the second version into the same file."""
        overwrite(self.changed, os.path.join(path, "dump.sql"))


def overwrite(new: str, live: str) -> None:
    """Write the content of one file into another, which stays the same inode."""
    with open(new, "rb") as source, open(live, "r+b") as target:
        shutil.copyfileobj(source, target, 1 << 20)
        target.truncate()


def random_file(path: str, size: int) -> None:
    """Make one file that does not compress."""
    rng = random.Random(4)
    with open(os.path.join(path, "random"), "wb") as file:
        file.writelines(rng.randbytes(1 << 20) for _ in range(size >> 20))


def change_pages(path: str) -> None:
    """Overwrite 100 blocks of 4 KiB, at random."""
    rng = random.Random(6)
    name = os.path.join(path, "random")
    with open(name, "r+b") as file:
        for _ in range(100):
            file.seek(rng.randrange(os.path.getsize(name) >> 12) << 12)
            file.write(rng.randbytes(4096))


def change_random_file(path: str) -> None:
    """Overwrite 100 blocks of 4 KiB and insert 10 times 1,000 bytes, at random."""
    rng = random.Random(5)
    name = os.path.join(path, "random")
    size = os.path.getsize(name)
    places = sorted((rng.randrange(size), kind) for kind in ["insert"] * 10 + ["overwrite"] * 100)
    with open(name, "rb") as old, open(name + ".new", "wb") as new:
        for place, kind in places:
            while (missing := place - old.tell()) > 0:
                new.write(old.read(min(missing, 1 << 20)))
            new.write(rng.randbytes(1000 if kind == "insert" else 4096))
            if kind == "overwrite":
                old.seek(4096, os.SEEK_CUR)
        shutil.copyfileobj(old, new, 1 << 20)
    overwrite(name + ".new", name)
    os.unlink(name + ".new")


@dataclass(frozen=True)
class Data:
    """A tree to measure with."""

    make: Callable[[str], None]
    change: Callable[[str], None]


def kinds(source_folder: str | None, scale: float) -> dict[str, Data]:
    """Return every kind of tree, in the sizes of the documentation times `scale`."""
    dump = Dump(int(670e6 * scale))
    return {
        "source": Data(lambda path: source(path, source_folder), change_files),
        "small": Data(lambda path: small(path, int(300_000 * scale)), change_every_directory),
        "media": Data(lambda path: media(path, int(3000 * scale)), change_files),
        "dump": Data(dump.make, dump.change),
        "random": Data(lambda path: random_file(path, int((2 << 30) * scale)), change_random_file),
        "pages": Data(lambda path: random_file(path, int((2 << 30) * scale)), change_pages),
    }


def measure_tool(recording: Recording, kind: str, data: Data, tree: str, tool: Tool) -> None:
    """Take one run of every row with one tool."""
    live, copy = os.path.join(tool.home, "live"), os.path.join(tool.home, "copy")
    tool.init()
    for path in (live, copy):
        subprocess.run(["cp", "-a", tree, path], check=True)
    data.change(copy)
    time.sleep(RACY)
    recording.step(f"{kind}: first", tool, tool.tree(live))
    recording.step(f"{kind}: unchanged", tool, tool.tree(live))
    recording.step(f"{kind}: restore", tool, tool.restore(os.path.join(tool.home, "out")))
    data.change(live)
    time.sleep(RACY)
    recording.step(f"{kind}: changed", tool, tool.tree(live))
    time.sleep(RACY)
    for row, onto in (("live", live), ("unseen copy", copy)):
        argv = tool.in_place(live, onto)
        if argv is not None:
            recording.step(f"{kind}: in place, {row}", tool, argv)


def measure_floors(recording: Recording, kind: str, data: Data, tree: str, folder: str) -> None:
    """Take one run of each floor."""
    for row, (name, script) in FLOORS.items():
        out = os.path.join(folder, f"floor-{row}")
        recording.floor(f"{kind}: {row}", name, script, tree, out, out=out if row == "first" else "")
    copy = os.path.join(folder, "floor-restore")
    data.change(copy)
    if shutil.which("rsync"):
        row = f"{kind}: in place, unseen copy"
        recording.floor(row, "rsync", 'rsync -a --delete "$0/" "$1/"', tree, copy)


def measure(
    recording: Recording, kind: str, data: Data, folder: str, runs: int, peers: list[type[Tool]]
) -> None:
    """Make one kind of tree, and measure everything with it."""
    tree = os.path.join(folder, kind)
    os.mkdir(tree)
    data.make(tree)
    for number in range(runs):
        for tool in (Castore, *peers):
            warm(tree)
            measure_tool(
                recording, kind, data, tree, tool(os.path.join(folder, f"{kind}-{tool.name}-{number}"))
            )
        floors = os.path.join(folder, f"{kind}-floors-{number}")
        os.mkdir(floors)
        warm(tree)
        measure_floors(recording, kind, data, tree, floors)


def curve(folder: str) -> None:
    """Print how time and memory grow with the number of files."""
    for files in (100_000, 300_000, 1_000_000):
        tree = os.path.join(folder, f"tree-{files}")
        os.mkdir(tree)
        small(tree, files)
        warm(tree)
        time.sleep(RACY)
        tool = Castore(os.path.join(folder, f"castore-{files}"))
        tool.init()
        first, *others = [tool.run(tool.tree(tree)) for _ in range(4)]
        floor = statistics.median(run(["sh", "-c", FLOORS["unchanged"][1], tree]).seconds for _ in range(3))
        again = statistics.median(cost.seconds for cost in others)
        peaks = [first.peak_kib / 1000, max(cost.peak_kib for cost in others) / 1000]
        print(
            f"{files:9} files: first {first.seconds:6.2f} s {peaks[0]:4.0f} MB, "
            f"unchanged {again:5.2f} s {peaks[1]:4.0f} MB, find {floor:5.2f} s",
            flush=True,
        )


def main() -> None:
    """Make the data, take the runs, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=list(kinds(None, 1)), action="append", help="default: all")
    parser.add_argument("--source", help="the directory to copy as `source`")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", help="for temporary files, about 40 GB of them for all kinds")
    parser.add_argument("--curve", action="store_true", help="castore on more and more files")
    parser.add_argument("--alone", action="store_true", help="castore and the floors only")
    parser.add_argument("--json", metavar="FILE", help="save the figures, for bench/compare.py")
    options = parser.parse_args()
    chosen = options.data or list(kinds(None, 1))
    recording = Recording(data=chosen, scale=options.scale, runs=options.runs, source=bool(options.source))
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="castore-bench-") as folder:
        if options.curve:
            curve(folder)
            return
        data = kinds(options.source, options.scale)
        for kind in chosen:
            measure(recording, kind, data[kind], folder, options.runs, [] if options.alone else installed())
        recording.print()
        if options.json:
            recording.save(options.json, folder)


if __name__ == "__main__":
    main()
