#!/usr/bin/env python3
"""`castore find` and `castore history` over many generations of a large tree.

    python bench/find.py [--generations N] [--files N] [--spread | --clustered] [--folder DIR]

Each generation changes 1 % of the files: of a few directories (clustered) or of all of them (spread, where
about 630 of 1,000 directories change each time). Times are those of whole commands, start-up included; the
page cache is warm. --folder keeps the stores, and a second run uses them again.

Seconds of user CPU, of 71 generations of 100,000 files on a machine that other work kept busy (wall time says
little there: three to four times as much):

    spread     find, any name                1.1
    spread     find, one directory of ten    0.7
    spread     find, '*7.txt' everywhere     5.1
    spread     history of a file             0.3
    spread     history of a directory        0.3

The third matches names in every directory, so it reads every version of every directory, 44,000. It took
13.5 s while names were compared in Python.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from castore.crypto import Identity
from castore.services.sources import Tree
from castore.storage import LocalStorage
from castore.store import MachinePaths, Store, open_store
from tests.support.stores import take_snapshot

A_DIRECTORY = 100


def path_of(tree: str, number: int) -> str:
    """Return the path of a file: 100 in a directory, 10,000 in a directory of directories."""
    return os.path.join(tree, f"{number // 10000:03}", f"{number // A_DIRECTORY:05}", f"{number:07}.txt")


def make_tree(tree: str, files: int) -> None:
    for number in range(files):
        path = path_of(tree, number)
        if number % A_DIRECTORY == 0:
            os.makedirs(os.path.dirname(path))
        with open(path, "w") as file:
            file.write(f"{number}\n")


def change(tree: str, files: int, number: int, *, clustered: bool) -> None:
    """Change 1 % of the files, and create one."""
    rng = random.Random(number)
    count = files // 100
    if clustered:
        folders = rng.sample(range(files // A_DIRECTORY), max(count // A_DIRECTORY, 1))
        numbers = [folder * A_DIRECTORY + one for folder in folders for one in range(A_DIRECTORY)]
    else:
        numbers = rng.sample(range(files), count)
    for one in numbers:
        with open(path_of(tree, one), "a") as file:
            file.write(f"change {one}\n")
    with open(os.path.join(tree, "000", "00000", f"report-{number:03}.log"), "w") as file:
        file.write(f"{number}\n")


def make(folder: str, files: int, generations: int, *, clustered: bool) -> None:
    """Make a store with its identity, and take the generations."""
    tree = os.path.join(folder, "tree")
    make_tree(tree, files)
    identity = Identity.generate()
    identity_file = os.path.join(folder, "identity")
    with open(identity_file, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(identity.text() + "\n")
    places = MachinePaths(os.path.join(folder, "state", "castore"), os.path.join(folder, "cache", "castore"))
    storage = LocalStorage(os.path.join(folder, "store"), create=True)
    Store.create(storage, places, [(identity.recipient, "")], lambda: identity).close()
    for number in range(generations):
        if number:
            change(tree, files, number, clustered=clustered)
        with open_store(os.path.join(folder, "store"), places) as store:
            take_snapshot(store, "s", {"t": Tree(tree)})


def run(folder: str, *arguments: str) -> tuple[float, float, int]:
    """Return the seconds and those of the CPU that a command takes, the best of three, and its lines."""
    environment = {
        **os.environ,
        "XDG_STATE_HOME": os.path.join(folder, "state"),
        "XDG_CACHE_HOME": os.path.join(folder, "cache"),
        "CASTORE_STORE": os.path.join(folder, "store"),
        "CASTORE_IDENTITY": os.path.join(folder, "identity"),
    }
    times = []
    used = []
    for _ in range(3):
        began = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        argv = [sys.executable, "-m", "castore", *arguments]
        done = subprocess.run(argv, env=environment, capture_output=True, check=False)
        if done.returncode not in {0, 6}:  # 6: nothing matches
            raise SystemExit(done.stderr.decode())
        times.append(time.perf_counter() - began)
        used.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    return min(times), min(used), done.stdout.count(b"\n")


def measure(folder: str, files: int, kind: str) -> None:
    some = os.path.relpath(path_of("", files // 2), "")
    commands = [
        ("find", "*.log", "s"),
        ("find", f"{files // 2:07}.txt"),
        ("find", f"/{some[:3]}/*/*7.txt"),
        ("find", "*7.txt"),
        ("find", "no-such-name"),
        ("history", f"s:t/{some}"),
        ("history", f"s:t/{os.path.dirname(some)}"),
    ]
    for command in commands:
        seconds, used, lines = run(folder, *command)
        shown = f"{kind:10} {' '.join(command):40} {seconds:6.2f} s {used:6.2f} s of CPU  {lines:6} lines"
        print(shown, flush=True)


def main() -> None:
    """Build what is missing, and measure."""
    parser = argparse.ArgumentParser(description="Time find and history.")
    parser.add_argument("--generations", type=int, default=100)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--folder")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--spread", action="store_true")
    which.add_argument("--clustered", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="castore-bench-") as temporary:
        for kind in ("clustered", "spread"):
            if (kind == "clustered" and options.spread) or (kind == "spread" and options.clustered):
                continue
            folder = os.path.join(options.folder or temporary, kind)
            if not os.path.isdir(folder):
                os.makedirs(folder)
                make(folder, options.files, options.generations, clustered=kind == "clustered")
            measure(folder, options.files, kind)


if __name__ == "__main__":
    main()
