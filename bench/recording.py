"""The figures of one run of a benchmark: collected, printed as a table, and saved as JSON.

A file has `taken` (UTC), `machine`, `versions`, `settings` and `rows`: row -> tool -> lists with one figure
per run: `seconds`, `cpu_seconds`, `peak_kib`, `stored_bytes`. `bench/compare.py` compares two of them.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bench.tools import Castore, installed, run

if TYPE_CHECKING:
    from bench.tools import Cost, Tool


@dataclass
class Figures:
    """What a tool cost in one row, one figure per run."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_kib: list[int] = field(default_factory=list)
    stored_bytes: list[int] = field(default_factory=list)

    def add(self, cost: Cost, stored: int) -> None:
        """Add one run."""
        self.seconds.append(round(cost.seconds, 4))
        self.cpu_seconds.append(round(cost.cpu_seconds, 4))
        self.peak_kib.append(cost.peak_kib)
        self.stored_bytes.append(stored)


class Recording:
    """Figures by row and tool."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.rows: dict[str, dict[str, Figures]] = {}

    def of(self, row: str, tool: str) -> Figures:
        """Return the figures of a tool in a row, to add to."""
        return self.rows.setdefault(row, {}).setdefault(tool, Figures())

    def step(self, row: str, tool: Tool, argv: list[str], stdin: str | None = None) -> None:
        """Run a command of a tool, and record what it cost and what it added to its store."""
        before = tool.stored()
        cost = tool.run(argv, stdin)
        self.of(row, tool.name).add(cost, tool.stored() - before)

    def floor(self, row: str, name: str, script: str, *arguments: str, out: str = "") -> None:
        """Run a shell script that does the same by simple tools; `out` is the file that it writes, if any."""
        cost = run(["sh", "-c", script, *arguments])
        self.of(row, name).add(cost, os.path.getsize(out) if out else 0)

    def print(self) -> None:
        """Print medians, and how castore's time and bytes compare with each other tool's."""
        print(f"{'':44}{'tool':16}{'s':>8}{'cpu s':>8}{'peak MB':>9}{'stored MB':>11}{'x castore':>11}")
        for row, by_tool in self.rows.items():
            own = by_tool.get(Castore.name)
            for position, (tool, figures) in enumerate(by_tool.items()):
                seconds = statistics.median(figures.seconds)
                print(
                    f"{row if position == 0 else '':44}{tool:16}{seconds:8.2f}"
                    f"{statistics.median(figures.cpu_seconds):8.2f}"
                    f"{statistics.median(figures.peak_kib) / 1000:9.0f}"
                    f"{statistics.median(figures.stored_bytes) / 1e6:11.2f}"
                    + (f"{seconds / statistics.median(own.seconds):11.2f}" if own else "")
                )

    def save(self, path: str, folder: str) -> None:
        """Write everything to a JSON file; `folder` is where the data was, for its file system."""
        content = {
            "taken": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(folder),
            "versions": {tool.name: tool.version() for tool in (Castore, *installed())},
            "settings": self.settings,
            "rows": {
                row: {tool: asdict(figures) for tool, figures in by.items()} for row, by in self.rows.items()
            },
        }
        with open(path, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")


def machine(folder: str) -> dict[str, Any]:
    """Describe this machine, without its name."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    stat = ["stat", "--file-system", "--format=%T", folder]
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "file_system": subprocess.run(stat, capture_output=True, text=True, check=True).stdout.strip(),
    }
