"""Snapshots of only some of the parts that castore.toml describes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def top(home: Path, castore: Run, tmp_path: Path) -> Path:
    """A service of two trees, snapshotted whole as of revision r1."""
    top = tmp_path / "srv"
    for name in ("one", "two"):
        (top / name).mkdir(parents=True)
        (top / name / "file").write_text("first")
    (top / "revision").symlink_to("r1")
    parts = "".join(f'[service.pp.parts.{name}]\nengine = "tree"\npath = "{top / name}"\n' for name in ("one", "two"))
    (home / "castore.toml").write_text(
        f'store = "{tmp_path}/store"\n[service.pp]\nrevision = {{ link = "{top}/revision" }}\n'
        f'keep = {{ last = 1 }}\n{parts}'
    )
    castore("init", tmp_path / "store")
    castore("snapshot", "pp")
    return top


def take_one(castore: Run, top: Path, content: str, *more: str) -> str:
    (top / "one" / "file").write_text(content)
    done = castore("snapshot", "pp", "--tree", f"one={top / 'one'}", *more)
    assert "partial" in done.stderr
    assert "two" in done.stderr
    return done.stdout


def test_a_partial_generation_is_selected_by_its_number_only(castore: Run, top: Path) -> None:
    assert "partial: without two" in take_one(castore, top, "partial")
    for selector in ("latest", "r1", "=r1", "today"):
        assert castore("cat", f"pp@{selector}:two/file").stdout == "first", selector
    assert castore("cat", "pp@2:one/file").stdout == "partial"
    assert castore("cat", "pp@2~1:one/file").stdout == "first"
    castore("snapshot", "pp")
    assert castore("cat", "pp@latest~1:one/file").stdout == "first"
    take_one(castore, top, "x", "--revision", "r9")
    assert "4 (partial)" in castore("cat", "pp@r9:one/file", expect=6).stderr


def test_a_partial_generation_is_marked_where_it_is_listed(castore: Run, top: Path) -> None:
    take_one(castore, top, "partial")
    log = castore("log", "pp").stdout.splitlines()
    assert "one (partial)" in log[1]
    assert "partial" not in log[2]
    assert "partial   without two" in castore("show", "pp@2").stdout
    found = json.loads(castore("log", "pp", "--json").stdout)
    assert [(one["partial"], one["missing_parts"]) for one in found] == [(True, ["two"]), (False, [])]


def test_prune_keeps_the_complete_generation(castore: Run, top: Path) -> None:
    for content in ("a", "b", "c"):
        take_one(castore, top, content)
    castore("prune", "pp")
    assert [one["number"] for one in json.loads(castore("log", "pp", "--json").stdout)] == [4, 1]


def test_a_rollback_says_which_parts_it_does_not_touch(castore: Run, top: Path) -> None:
    take_one(castore, top, "partial")
    for name in ("one", "two"):
        (top / name / "file").write_text("live")
    plan = castore("rollback", "pp", "--to", "2", "--dry-run")
    assert "two: not in generation 2: it is not changed" in plan.stdout
    assert json.loads(castore("rollback", "pp", "--to", "2", "--dry-run", "--json").stdout)["untouched"] == ["two"]
    assert "left as they are: two" in castore("rollback", "pp", "--to", "2").stderr
    assert (top / "one" / "file").read_text() == "partial"
    assert (top / "two" / "file").read_text() == "live"
    pre_rollback = json.loads(castore("log", "pp", "--json").stdout)[0]
    assert pre_rollback["pre_rollback"]
    assert pre_rollback["missing_parts"] == ["two"]
    castore("rollback", "pp", "--undo")
    assert (top / "one" / "file").read_text() == "live"


def test_the_state_keeps_its_revision_when_some_parts_are_restored(castore: Run, top: Path) -> None:
    take_one(castore, top, "partial of r1")
    (top / "revision").unlink()
    (top / "revision").symlink_to("r2")
    (top / "one" / "file").write_text("of r2")
    castore("snapshot", "pp")
    castore("rollback", "pp", "--to", "2")
    assert castore("snapshot", "pp").stderr == ""
    assert json.loads(castore("log", "pp", "--json").stdout)[0]["revision"] == "r2"
    assert "as before" in castore("follow", "pp").stdout
    castore("rollback", "pp", "--undo")
    assert "as before" in castore("follow", "pp").stdout


def test_a_partial_generation_is_not_what_follow_restores(castore: Run, top: Path) -> None:
    (top / "revision").unlink()
    (top / "revision").symlink_to("r2")
    take_one(castore, top, "partial of r2")
    castore("rollback", "pp", "--to", "r1")
    assert (top / "one" / "file").read_text() == "first"
    followed = castore("follow", "pp")
    assert "pp@2" not in followed.stdout


def test_what_castore_toml_does_not_describe_is_complete(castore: Run, top: Path) -> None:
    assert castore("snapshot", "other", "--tree", f"one={top / 'one'}").stderr == ""
    assert castore("snapshot", "pp", "--tree", f"one={top / 'one'}", "--tree", f"two={top / 'two'}").stderr == ""
    assert castore("cat", "pp@latest:two/file").stdout == "first"
