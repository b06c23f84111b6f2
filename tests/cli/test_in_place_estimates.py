"""A dry run says how much a restore in place would read and write, and how long that took lately."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def store(castore: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line, with a store that has one generation of the tree `live`."""
    monkeypatch.setenv("CASTORE_STORE", str(tmp_path / "store"))
    castore("init", tmp_path / "store")
    live = tmp_path / "live"
    (live / "sub").mkdir(parents=True)
    (live / "small").write_bytes(b"s" * 1000)
    (live / "sub" / "large").write_bytes(os.urandom(300_000))
    castore("snapshot", "s", "--tree", f"t={live}")
    return castore


def test_a_dry_run_counts_what_would_be_read_and_written(store: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", tmp_path / "live", copy], check=True)
    dry = ("restore", "--in-place", "--dry-run", "s@1:t", copy)
    plan = json.loads(store(*dry, "--json").stdout)
    # The copy has never been scanned, so that all its content is compared.
    assert (plan["read_bytes"], plan["written_bytes"]) == (301_000, 0)
    (copy / "small").write_bytes(b"changed")
    plan = json.loads(store(*dry, "--json").stdout)
    assert (plan["read_bytes"], plan["written_bytes"]) == (301_000, 1000)
    trusted = json.loads(store(*dry, "--trust-times", "--json").stdout)
    assert (trusted["read_bytes"], trusted["written_bytes"]) == (1000, 1000)


def test_a_dry_run_estimates_the_time_from_the_last_runs(store: Run, tmp_path: Path) -> None:
    live = tmp_path / "live"
    dry = ("restore", "--in-place", "--dry-run", "s@1:t", live)
    (live / "small").write_bytes(b"changed")
    assert "and write 1.0 KiB\n" in store(*dry).stdout
    plan = json.loads(store(*dry, "--json").stdout)
    assert (plan["estimated_seconds"], plan["estimated_from_runs"]) == (None, 0)
    store("restore", "--in-place", "s@1:t", live)
    (live / "small").write_bytes(b"changed")
    assert "(from the last 1 run)" in store(*dry).stdout
    plan = json.loads(store(*dry, "--json").stdout)
    assert plan["estimated_from_runs"] == 1
    assert plan["estimated_seconds"] > 0
    assert (live / "small").read_bytes() == b"changed"


def test_a_dry_run_of_a_rollback_says_the_same_of_each_tree(store: Run, tmp_path: Path) -> None:
    (tmp_path / "live" / "small").write_bytes(b"changed")
    assert "and write 1.0 KiB\n" in store("rollback", "s", "--to", "1", "--dry-run").stdout
    plan = json.loads(store("rollback", "s", "--to", "1", "--dry-run", "--json").stdout)
    tree = plan["trees"]["t"]
    assert (tree["written_bytes"], tree["estimated_seconds"]) == (1000, None)
    store("rollback", "s", "--to", "1")
    plan = json.loads(store("rollback", "s", "--to", "1", "--dry-run", "--json").stdout)
    assert plan["trees"]["t"]["estimated_from_runs"] == 1
