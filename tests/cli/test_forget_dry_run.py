"""`castore forget --dry-run` shows what would be deleted, and deletes nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import castore as package

Run = Callable[..., subprocess.CompletedProcess]


def test_a_dry_run_of_forget_lists_the_generations_and_deletes_none(castore: Run, home: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    env = {"CASTORE_STORE": str(store)}
    castore("init", store)
    for content in ("1", "2", "3"):
        (home / "dump").write_text(content)
        castore("snapshot", "web", "--dump", f"d={home}/dump", "--revision", f"r{content}", env=env)
    shown = castore("forget", "web@1-2", "--dry-run", env=env).stdout
    assert [line.split()[:2] for line in shown.splitlines()[1:3]] == [["web", "2"], ["web", "1"]]
    assert "would delete 2 generations; 'castore compact' would then reclaim" in shown
    planned = json.loads(castore("forget", "--all", "web", "--dry-run", "--json", env=env).stdout)
    assert [one["number"] for one in planned["generations"]] == [3, 2, 1]
    assert planned["freed_bytes"] > 0
    castore("pin", "web@2", env=env)
    assert "web@2 is pinned" in castore("forget", "web@1-2", "--dry-run", env=env, expect=2).stderr
    castore("forget", "web@9", "--dry-run", env=env, expect=6)
    with package.open(store) as opened:
        plan = opened.service("web").plan_forget([1])
        assert [generation.number for generation in plan.deleted] == [1]
        assert [generation.number for generation in opened.service("web").generations()] == [3, 2, 1]
