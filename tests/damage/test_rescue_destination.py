"""tools/rescue.py as root, with a destination that another user owns."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from castore.services.sources import Tree
from tests.support.stores import Sandbox

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights that a user may want")

USER = 60123
RESCUE = Path(__file__).parents[2] / "tools" / "rescue.py"
ATTACKED = """
import os, runpy, subprocess, sys
def attacked(call, moment):
    def wrapper(name, *arguments, **options):
        if moment == "before":
            attack()
        call(name, *arguments, **options)
        if moment == "after":
            attack()
    return wrapper
def attack():
    script = f"mv {dest}/t {dest}/moved && ln -s {victim} {dest}/t"
    subprocess.run(["sh", "-c", script], user=user, group=user, extra_groups=[], stderr=subprocess.DEVNULL)
dest, victim, user, step = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
# The moments at which the user gains most: when a directory exists, and when it is complete.
setattr(os, step, attacked(getattr(os, step), {"mkdir": "after", "chmod": "before"}[step]))
sys.argv = sys.argv[5:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory that the user can reach; that of pytest is for root only."""
    with tempfile.TemporaryDirectory(prefix="castore-test-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path / "sandbox", average=4096)


@pytest.mark.parametrize("step", ["mkdir", "chmod"])
def test_the_owner_of_the_destination_leads_rescue_nowhere(sandbox: Sandbox, tmp_path: Path, step: str) -> None:
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/file").write_text("content")
    (tmp_path / "tree").chmod(0o755)
    sandbox.snapshot("s", {"t": Tree(str(tmp_path / "tree"))})
    (tmp_path / "identity").write_text(sandbox.identity.text())
    victim, dest = tmp_path / "victim", tmp_path / "dest"
    for folder in (victim, dest):
        folder.mkdir()
    victim.chmod(0o700)
    os.chown(dest, USER, USER)
    subprocess.run(["setfacl", "-d", "-m", f"u:{USER}:rwx", dest], check=True)
    arguments = [RESCUE, sandbox.store, "--identity", tmp_path / "identity", "s", "1", dest]
    command = [sys.executable, "-c", ATTACKED, dest, victim, str(USER), step, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert (os.listdir(victim), stat.S_IMODE(victim.stat().st_mode)) == ([], 0o700)
    assert (dest / "t/sub/file").read_text() == "content"
    assert not [name for name in os.listxattr(dest / "t/sub/file") if "acl" in name]
    assert (dest.stat().st_uid, stat.S_IMODE(dest.stat().st_mode)) == (0, 0o700)


def test_a_link_is_no_destination_for_rescue(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    sandbox.snapshot("s", {"t": Tree(str(tmp_path / "tree"))})
    (tmp_path / "identity").write_text(sandbox.identity.text())
    (tmp_path / "victim").mkdir()
    (tmp_path / "dest").symlink_to(tmp_path / "victim")
    command = [sys.executable, RESCUE, sandbox.store, "--identity", tmp_path / "identity", "s", "1", tmp_path / "dest"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, os.listdir(tmp_path / "victim")) == (2, [])
    assert "cannot restore into" in done.stderr
