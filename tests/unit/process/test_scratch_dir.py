"""Scratch folders: they go when they are left, and what a killed castore left goes the next time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from castore.process.scratch_dir import scratch_folder

PREFIX = ".castore-test-"


def test_a_folder_is_there_and_gone(tmp_path: Path):
    with scratch_folder(PREFIX, str(tmp_path), mode=0o711) as folder:
        assert os.stat(folder).st_mode & 0o777 == 0o711
        Path(folder, "x").mkdir()
        Path(folder, "x", "y").touch()
    assert os.listdir(tmp_path) == []


def test_leftovers_of_a_killed_castore_are_removed_and_nothing_else(tmp_path: Path):
    script = (
        "import os; from castore.process.scratch_dir import scratch_folder\n"
        f"with scratch_folder({PREFIX!r}, {str(tmp_path)!r}) as folder:\n"
        "    open(folder + '/large', 'w').close(); print(folder, flush=True); os.kill(os.getpid(), 9)"
    )
    left = Path(subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=False, text=True).stdout.strip())
    assert left.parent == tmp_path
    assert left.exists()
    other, link, plain, foreign = (tmp_path / name for name in ("x", f"{PREFIX}abcdefgh", f"{PREFIX}12345678", f"{PREFIX}87654321"))
    other.mkdir()
    link.symlink_to(other)
    plain.touch()
    foreign.mkdir()
    (other / "kept").touch()
    if os.geteuid() == 0:
        os.chown(foreign, 12345, 12345)
    with scratch_folder(PREFIX, str(tmp_path)) as held, scratch_folder(PREFIX, str(tmp_path)):
        assert Path(held).exists()
    assert not left.exists()
    assert foreign.exists() == (os.geteuid() == 0)
    assert (other / "kept").exists()
    assert link.is_symlink()
    assert plain.exists()
