"""Commands that list or read much need no more memory for it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., subprocess.CompletedProcess]

_PEAK = """
import os, resource, sys
child = os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-m", "castore", *sys.argv[1:]])
assert child == 0, child
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
"""


def peak(*command: str) -> tuple[int, Any]:
    """Return the most memory, in KiB, that a command took, and its result."""
    done = subprocess.run([sys.executable, "-c", _PEAK, *command], capture_output=True, text=True, check=True)
    return int(done.stderr.split()[-1]), json.loads(done.stdout)


def test_lists_of_many_entries_are_not_held_in_memory(castore: Run, tmp_path: Path) -> None:
    live = tmp_path / "live"
    for folder in range(60):
        (live / f"d{folder:02}").mkdir(parents=True)
        for file in range(500):
            os.close(os.open(live / f"d{folder:02}" / f"f{file:03}", os.O_CREAT | os.O_WRONLY))
    castore("init")
    (tmp_path / "empty").mkdir()
    castore("snapshot", "s", "--tree", f"t={tmp_path / 'empty'}")
    castore("snapshot", "s", "--tree", f"t={live}")
    least, _ = peak("ls", "-R", "--json", "s@1:t")
    for command in (("ls", "-R", "--json", "s@2:t"), ("diff", "--json", "s@1", "s@2")):
        most, entries = peak(*command)
        assert len(entries) >= 30_060
        assert most < least + 25_000, command


def test_long_chunks_need_little_more_memory_than_short_ones(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(random.Random(1).randbytes(120_000_000))
    most, found = peak("analyze", "--json", "--no-peers", "--no-levels", "--average", "1M", str(tmp_path / "noise"))
    assert [row["deltas"] for row in found["rows"]] == [True, False]
    assert most < 290_000
