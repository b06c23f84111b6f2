"""A bad sector in one file of a tree: that file is reported, and every other file restores."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.support.fault_sweep import Machine, compiled, plain_tree


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = compiled(tmp_path_factory.mktemp("faults"))
    if found is None:
        pytest.skip("no C compiler")
    return found


@pytest.mark.parametrize("size", [5_000, 300_000, 9_000_000])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_an_unreadable_file_damages_no_other_file(library: Path, tmp_path: Path, size: int, share: float) -> None:
    machine = Machine(tmp_path / "machine")
    machine.begin()
    machine.make_store()
    live = machine.folder / "live"
    chance = random.Random(size)
    for name, length in {"a": 40_000, "b": size, "c": size, "d": 300_000, "e": 900}.items():
        (live / name).write_bytes(chance.randbytes(length))
    (live / "folder").mkdir()
    (live / "folder" / "f").write_bytes(chance.randbytes(200_000))
    wanted = {path: found for path, found in plain_tree(live).items() if path != b"b"}
    faults = {"LD_PRELOAD": str(library), "FAULTS_UNDER": str(live / "b"), "FAULTS_FROM": str(int(size * share))}
    taken = machine.run("snapshot", "s", "--tree", f"t={live}", faults=faults)
    assert taken.returncode == 3, taken.stderr
    assert "b: cannot be read: Input/output error" in taken.stderr
    machine.must("verify", "--read-data")
    machine.must("restore", "s@1:t", str(machine.folder / "new"))
    assert plain_tree(machine.folder / "new") == wanted
    # The next snapshot reads the file again.
    assert machine.run("snapshot", "s", "--tree", f"t={live}").returncode == 0
    machine.must("restore", "s@2:t", str(machine.folder / "later"))
    assert plain_tree(machine.folder / "later") == plain_tree(live)
    assert os.path.exists(machine.folder / "later" / "b")
