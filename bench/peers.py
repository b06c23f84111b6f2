#!/usr/bin/env python3
"""castore next to borg and restic, in one run, on the same data: seconds, memory, stored bytes.

    python bench/peers.py [--size MB] [--files N] [--runs N] [--folder DIR]

Each figure is the median of the runs, which take turns; the page cache is warm. borg and restic are
left out where they are not installed. Everything is in a temporary folder, removed at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bench.data import write_dump, write_tree


@dataclass
class Figure:
    """What one command cost."""

    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)


class Tool:
    """A backup program with a store of its own in `home`."""

    name = ""

    def __init__(self, home: str) -> None:
        self.home = home
        self.store = os.path.join(home, "store")
        self.env = {**os.environ, "HOME": home}
        for kind in ("DATA", "STATE", "CACHE", "CONFIG"):
            self.env[f"XDG_{kind}_HOME"] = os.path.join(home, kind.lower())
        os.makedirs(home)

    def run(self, argv: list[str], stdin: str | None = None) -> tuple[float, int]:
        """Run a command; return its seconds, and the peak resident KiB of it or a child of it."""
        source = open(stdin, "rb") if stdin else subprocess.DEVNULL
        started = time.perf_counter()
        process = subprocess.Popen(
            argv, stdin=source, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=self.env
        )
        errors = process.stderr.read() if process.stderr else b""
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{argv}: {process.returncode}: {errors.decode()}")
        return seconds, usage.ru_maxrss

    def stored(self) -> int:
        """Return the bytes of the store."""
        return sum(
            os.path.getsize(os.path.join(folder, name))
            for folder, _, names in os.walk(self.store)
            for name in names
        )


class Castore(Tool):
    """This program."""

    name = "castore"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "castore", *arguments, "--store", self.store]

    def init(self) -> None:
        self.run(self.command("init"))

    def dump(self, path: str) -> list[str]:
        return self.command("snapshot", "s", "--dump", "d=-")

    def tree(self, path: str) -> list[str]:
        return self.command("snapshot", "t", "--tree", f"t={path}")

    def cat(self) -> list[str]:
        return self.command("cat", "s@latest:d")

    def restore(self, into: str) -> list[str]:
        return self.command("restore", "t@latest:t", into)


class Borg(Tool):
    """borg 1, with its own encryption and zstd at level 3."""

    name = "borg"

    def __init__(self, home: str) -> None:
        super().__init__(home)
        self.env |= {"BORG_PASSPHRASE": "x", "BORG_BASE_DIR": home, "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes"}
        self.number = 0

    def init(self) -> None:
        self.run(["borg", "init", "-e", "repokey-blake2", self.store])

    def _create(self, path: str) -> list[str]:
        self.number += 1
        return ["borg", "create", "-C", "zstd,3", f"{self.store}::a{self.number}", path]

    def dump(self, path: str) -> list[str]:
        return self._create("-")

    def tree(self, path: str) -> list[str]:
        return self._create(path)

    def cat(self) -> list[str]:
        return ["borg", "extract", "--stdout", f"{self.store}::a{self.number}"]

    def restore(self, into: str) -> list[str]:
        os.makedirs(into)
        return ["sh", "-c", f"cd {into} && exec borg extract {self.store}::a{self.number}"]


class Restic(Tool):
    """restic, with its default compression."""

    name = "restic"

    def __init__(self, home: str) -> None:
        super().__init__(home)
        self.env |= {"RESTIC_PASSWORD": "x", "RESTIC_REPOSITORY": self.store}

    def init(self) -> None:
        self.run(["restic", "init"])

    def dump(self, path: str) -> list[str]:
        return ["restic", "backup", "--stdin", "--stdin-filename", "d"]

    def tree(self, path: str) -> list[str]:
        return ["restic", "backup", path]

    def cat(self) -> list[str]:
        return ["restic", "dump", "latest", "/d"]

    def restore(self, into: str) -> list[str]:
        return ["restic", "restore", "latest", "--target", into]


def warm(*paths: str) -> None:
    """Read files, so that no run pays for the disk."""
    for path in paths:
        subprocess.run(["sh", "-c", f"find {path} -type f -exec cat {{}} + >/dev/null"], check=True)


def measure(tool: Tool, data: dict[str, str], figures: dict[str, dict[str, Figure]]) -> None:
    """Take one run of every step with one tool."""

    def step(name: str, argv: list[str], stdin: str | None = None) -> None:
        before = tool.stored()
        seconds, memory = tool.run(argv, stdin)
        figure = figures[name].setdefault(tool.name, Figure())
        figure.seconds.append(seconds)
        figure.memory.append(memory)
        figure.stored.append(tool.stored() - before)

    tool.init()
    step("dump, first", tool.dump(data["night 0"]), data["night 0"])
    step("dump, the same again", tool.dump(data["night 0"]), data["night 0"])
    step("dump, 1 % of rows changed", tool.dump(data["night 1"]), data["night 1"])
    step("dump to /dev/null", tool.cat())
    step("tree, first", tool.tree(data["tree"]))
    step("tree, unchanged", tool.tree(data["tree"]))
    step("tree, restore", tool.restore(os.path.join(tool.home, "out")))


STEPS = (
    "dump, first",
    "dump, the same again",
    "dump, 1 % of rows changed",
    "dump to /dev/null",
    "tree, first",
    "tree, unchanged",
    "tree, restore",
)


def main() -> None:
    """Make the data, take the runs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1000, help="of the dump, MB")
    parser.add_argument("--files", type=int, default=50000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", default=None)
    options = parser.parse_args()
    tools = [tool for tool in (Castore, Borg, Restic) if tool is Castore or shutil.which(tool.name)]
    figures: dict[str, dict[str, Figure]] = {step: {} for step in STEPS}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="castore-bench-") as folder:
        data = {name: os.path.join(folder, name.replace(" ", "-")) for name in ("night 0", "night 1", "tree")}
        for night in (0, 1):
            write_dump(data[f"night {night}"], options.size * 10**6, night=night)
        write_tree(data["tree"], options.files)
        for run in range(options.runs):
            for tool in tools:
                warm(*data.values())
                measure(tool(os.path.join(folder, f"{tool.name}-{run}")), data, figures)
        size = os.path.getsize(data["night 0"])
    print(f"dump {size / 1e6:.0f} MB, tree {options.files} files, medians of {options.runs}")
    print(f"{'':28}{'tool':10}{'seconds':>9}{'MB/s':>8}{'peak MB':>9}{'stored MB':>11}")
    for step, by_tool in figures.items():
        for name, figure in by_tool.items():
            seconds = statistics.median(figure.seconds)
            rate = f"{size / 1e6 / seconds:8.0f}" if step.startswith("dump") else f"{'':8}"
            memory = statistics.median(figure.memory) / 1000
            stored = statistics.median(figure.stored) / 1e6
            print(f"{step:28}{name:10}{seconds:9.2f}{rate}{memory:9.0f}{stored:11.1f}")


if __name__ == "__main__":
    main()
