"""Trees that nobody made for a test: what is installed on this machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tree_walker import compare, walk

Run = Callable[..., subprocess.CompletedProcess]


def there_and_back(castore: Run, tmp_path: Path, live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take `live` twice and restore both; the second stores next to nothing."""
    monkeypatch.setenv("CASTORE_STORE", str(tmp_path / "store"))
    castore("init", tmp_path / "store")
    night = walk(live)
    for number in (1, 2):
        done = castore("snapshot", "s", "--json", "--tree", f"t={live}", expect=None, timeout=900)
        assert done.returncode == 0, done.stderr
        (part,) = json.loads(done.stdout)["parts"]
        assert part["files"] == len(night) - 1  # the top is not counted
        if number == 1:
            assert part["new_bytes"] > 0
        else:
            assert part["new_bytes"] <= part["size"] // 1000
            assert part["stored_bytes"] <= part["size"] // 1000
    assert castore("diff", "s@1", "s@2").stdout == ""
    for number in (1, 2):
        out = tmp_path / f"out-{number}"
        castore("restore", f"s@{number}:t", out, "--numeric-ids", timeout=900)
        # As it was when the snapshots were taken; blocks are allocated in other ways at other times.
        assert compare(night, walk(out), ignore={"extents", "blocks"}) == []
        shutil.rmtree(out)
    castore("verify", timeout=900)


@pytest.fixture
def standard_library(tmp_path: Path) -> Path:
    """A copy of Python's standard library, which other programs do not change while it is read."""
    live = tmp_path / "library"
    shutil.copytree(
        sysconfig.get_path("stdlib"), live, symlinks=True, ignore=shutil.ignore_patterns("site-packages")
    )
    return live


def test_the_standard_library_of_python(
    castore: Run, tmp_path: Path, standard_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there_and_back(castore, tmp_path, standard_library, monkeypatch)


@pytest.mark.parametrize("name", ["doc", "zoneinfo"])
def test_a_part_of_usr_share(castore: Run, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    live = Path("/usr/share", name)
    if not live.is_dir():
        pytest.skip(f"there is no {live}")
    there_and_back(castore, tmp_path, live, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_of_usr_share(castore: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there_and_back(castore, tmp_path, Path("/usr/share"), monkeypatch)
