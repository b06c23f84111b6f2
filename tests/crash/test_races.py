"""A service's user changes their directories while root's castore works in them, before any of its calls.

See tests/support/user_attacks.py: castore is paused before a system call that names something of the user's, and one attack is
made. Then nothing of root's may have changed or been read, no program of theirs may be root's, and castore must have
ended. A sample in the normal run; with -m slow every attack before every call.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.syscall_pauses import is_supported
from tests.support.user_attacks import SCENARIOS

pytestmark = pytest.mark.skipif(bool(is_supported()), reason=is_supported())

SAMPLES = {"snapshot": 6, "restore": 6, "rollback": 6, "recover": 3, "snapshot-sqlite": 2}
"""How many attacks of the normal run: some seconds in all."""


def races(tmp_path: Path, *words: str) -> None:
    """Run attacks in a process that has no threads, since each run of castore is forked from it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.user_attacks", *words],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, errors="replace", check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    print(done.stdout)


@pytest.fixture
def open_to_all(tmp_path: Path) -> Path:
    """A folder that the hostile user can reach; that of pytest is for its user only."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    return tmp_path


@pytest.mark.parametrize("scenario", SAMPLES)
def test_some_attacks_at_some_calls_achieve_nothing(open_to_all, scenario) -> None:
    races(open_to_all, scenario, "--sample", str(SAMPLES[scenario]), "--seed", os.environ.get("CASTORE_TEST_RACE_SEED", "1"))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_attack_at_any_call_achieves_anything(open_to_all, scenario) -> None:
    races(open_to_all, scenario)


HOOK = """
import os, sys
from pathlib import Path
from tests.support.syscall_pauses import run_paused
folder, swap = Path(sys.argv[1]), sys.argv[2] == "swap"
(folder / "mine").write_text("mine")
(folder / "secret").write_text("secret")
seen = []

def check_then_open():
    if (folder / "mine").is_symlink():
        sys.exit(3)
    sys.exit({"mine": 0, "secret": 4}[(folder / "mine").read_text()])

def before(call):
    seen.append(str(call))
    if swap and len(seen) == 2:
        (folder / "mine").unlink()
        (folder / "mine").symlink_to("secret")
    return True

print(run_paused(check_then_open, before, 10, os.fsencode(folder / "mine")))
print(*seen, sep="\\n")
"""


@pytest.mark.parametrize(("kind", "code"), [("stay", 0), ("swap", 4)])
def test_a_process_is_paused_between_a_check_and_its_use(tmp_path, kind, code) -> None:
    """The hook finds the oldest of races."""
    done = subprocess.run(
        [sys.executable, "-c", HOOK, str(tmp_path), kind], cwd=ROOT, capture_output=True, text=True, check=True
    )
    ended, *calls = done.stdout.splitlines()
    assert ended == f"Ended(code={code}, calls={len(calls)})"
    assert [call.split()[0] for call in calls][:2] == ["newfstatat", "openat"]


def test_a_process_that_does_not_end_is_killed(tmp_path) -> None:
    script = HOOK.replace("def check_then_open():", "def check_then_open():\n    import time\n    time.sleep(60)").replace("before, 10,", "before, 0.2,")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), "stay"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == "Ended(code=None, calls=0)"
