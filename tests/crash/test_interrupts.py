"""Ctrl-C at many moments of every command: it ends with 130 or 0, and the next command works."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import forked_cli
from tests.support.tree_walker import compare, walk

MOMENTS = 3
MANY = 60
CASTORE = [sys.executable, "-m", "castore"]


@dataclass
class CopiedMachine:
    """A machine whose state can be had again as it was."""

    folder: Path
    environment: dict[str, str]

    @property
    def live(self) -> Path:
        return self.folder / "copied" / "live"

    def keep(self, name: str = "base") -> None:
        """Remember the present state."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        subprocess.run(["cp", "-a", self.folder / "copied", self.folder / name], check=True)

    def again(self, name: str = "base") -> None:
        """Restore the remembered state."""
        shutil.rmtree(self.folder / "copied")
        subprocess.run(["cp", "-a", self.folder / name, self.folder / "copied"], check=True)

    def run(self, *words: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
        ended = forked_cli.run([*map(str, words)], env=self.environment, cwd=self.folder)
        texts = (one.decode(errors="replace") for one in (ended.stdout, ended.stderr))
        done = subprocess.CompletedProcess(ended.args, ended.returncode, *texts)
        assert done.returncode == expect, (words, done.stdout, done.stderr)
        return done

    def interrupt(self, after: float, words: tuple[object, ...]) -> tuple[int, str]:
        """Run castore and send Ctrl-C to it and its children, as a terminal does; return code and errors."""
        running = subprocess.Popen(
            [*CASTORE, *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            start_new_session=True,
        )
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGINT)
        _, errors = running.communicate(timeout=120)
        return running.returncode, errors


@pytest.fixture
def copied(used_machine: CopiedMachine) -> CopiedMachine:
    """A machine with two snapshots, in the same state for each test."""
    used_machine.again("pristine")
    return used_machine


@pytest.fixture(scope="module")
def used_machine(tmp_path_factory: pytest.TempPathFactory) -> CopiedMachine:
    top = tmp_path_factory.mktemp("machine")
    folder = top / "copied"
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CASTORE_", "XDG_"))}
    environment |= {"HOME": str(folder), "CASTORE_STORE": str(folder / "store"), "LC_ALL": "C.UTF-8"}
    environment |= {f"XDG_{kind}_HOME": str(folder / kind) for kind in ("DATA", "STATE", "CACHE", "CONFIG")}
    made = CopiedMachine(top, environment)
    made.run("init", folder / "store")
    rng = random.Random(1)
    for number in range(150):
        (made.live / f"d{number % 10}").mkdir(parents=True, exist_ok=True)
        (made.live / f"d{number % 10}" / f"f{number}").write_bytes(rng.randbytes(rng.randrange(40_000)))
    (made.live / "large").write_bytes(rng.randbytes(12 << 20))
    (folder / "dump").write_bytes(rng.randbytes(3 << 20))
    (folder / "castore.toml").write_text(f"""
[service.s]
stop = ["true"]
start = ["true"]
[service.s.keep]
last = 1
[service.s.parts.t]
engine = "tree"
path = "{made.live}"
[service.s.parts.d]
engine = "file"
path = "{folder}/dump"
[service.s.parts.e]
engine = "command"
dump = ["cat", "{folder}/dump"]
restore = ["sh", "-c", "cat > {folder}/restored"]
""")
    environment["CASTORE_CONFIG"] = str(folder / "castore.toml")
    made.run("snapshot", "s", "--revision", "r1")
    for number in range(0, 150, 3):
        (made.live / f"d{number % 10}" / f"f{number}").write_bytes(rng.randbytes(20_000))
    shutil.rmtree(made.live / "d4")
    (made.live / "new").mkdir()
    with (made.live / "large").open("r+b") as file:
        file.write(rng.randbytes(2 << 20))
    (folder / "dump").write_bytes(rng.randbytes(3 << 20))
    made.run("snapshot", "s", "--revision", "r2")
    made.keep("pristine")
    return made


def interrupted_rollback(copied: CopiedMachine) -> None:
    """Leave a rollback that was killed."""
    config = copied.folder / "copied" / "killing.toml"
    text = (copied.folder / "copied" / "castore.toml").read_text()
    config.write_text(text.replace('start = ["true"]', 'start = ["true"]\nhealth = ["sh", "-c", "kill -9 $PPID"]'))
    copied.run("rollback", "--config", config, "s", "--to", "r1", expect=-9)


NAMES = ["snapshot", "restore", "in place", "rollback", "recover", "prune", "compact", "verify", "diff", "cat", "ls", "reindex"]


def commands(copied: CopiedMachine, name: str) -> tuple[tuple[object, ...], list[tuple[object, ...]]]:
    """Return a command, and what has to work after it, whenever it was interrupted."""
    again = ("snapshot", "s", "--revision", "r2")
    out = copied.folder / "copied" / "out"
    return {
        "snapshot": (("snapshot", "s"), [again]),
        "restore": (("restore", "s@r1", out), [again]),
        "in place": (
            ("restore", "--in-place", "s@r1:t", copied.live),
            [("restore", "--in-place", "s@r1:t", copied.live), again],
        ),
        "rollback": (("rollback", "s", "--to", "r1"), [again, ("rollback", "s", "--to", "r1")]),
        "recover": (("recover",), [("recover",), again]),
        "prune": (("prune",), [("prune",), again]),
        "compact": (("compact",), [("compact",), again]),
        "verify": (("verify", "--read-data"), [("verify", "--read-data"), again]),
        "diff": (("diff", "s@r1", "s@r2"), [again]),
        "cat": (("cat", "s@r1:t/d1/f1"), [again]),
        "ls": (("ls", "-R", "s@r1:t"), [again]),
        "reindex": (("reindex",), [again]),
    }[name]


def sweep(copied: CopiedMachine, name: str, moments: int) -> None:
    copied.keep()
    command, following = commands(copied, name)
    if name == "recover":
        interrupted_rollback(copied)
    began = time.monotonic()
    copied.run(*command)
    took = time.monotonic() - began
    rng = random.Random(name)
    outcomes = set()
    for number in range(moments):
        copied.again()
        if name == "recover":
            # Not part of the copy: the undo directory is known by its inode.
            interrupted_rollback(copied)
        after = took * (number + rng.random()) / moments
        code, errors = copied.interrupt(after, command)
        shown = f"{name} after {after:.3f} s of {took:.3f}: {code}, {errors}"
        if "Traceback" in errors and not re.search("/castore/(cli|content|services|store|kernel)/", errors):
            continue  # the interpreter itself had not started
        if code == -signal.SIGINT and not errors:
            continue  # even earlier
        assert code in {0, 130}, shown
        assert "Traceback" not in errors, shown
        assert "mistake" not in errors, shown
        assert "ignored" not in errors, shown
        outcomes.add(code)
        if name == "restore":
            restored(copied, code)
        for one in following:
            done = copied.run(*one)
            assert "interrupted" not in done.stderr, (shown, one, done.stderr)
        if name in {"in place", "rollback"}:
            copied.run("restore", "--numeric-ids", "s@r1:t", copied.folder / "copied" / "compare")
            left = ["blocks", "extents", "inode"]
            assert compare(walk(copied.folder / "copied" / "compare"), walk(copied.live), ignore=left) == [], shown
        copied.run("verify")
    assert 130 in outcomes or moments < MANY


def restored(copied: CopiedMachine, code: int) -> None:
    """Check that an interrupted restore can be continued, unless it was complete."""
    out = copied.folder / "copied" / "out"
    marked = out.is_dir() and any(one.startswith(".castore-restore-") for one in os.listdir(out))
    assert code == 130 or not marked
    if code == 130 and (marked or not out.is_dir() or not os.listdir(out)):
        copied.run("restore", "--resume", "s@r1", out)
    assert sorted(os.listdir(out)) == ["d", "e", "t"]
    copied.run("restore", "s@r1:t", copied.folder / "copied" / "compare")
    left = ["blocks", "extents", "inode"]
    assert compare(walk(copied.folder / "copied" / "compare"), walk(out / "t"), ignore=left) == []
    shutil.rmtree(out)


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupt_leaves_a_state_in_which_the_next_command_works(copied: CopiedMachine, name: str) -> None:
    sweep(copied, name, MOMENTS)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", NAMES)
def test_an_interrupt_at_many_moments(copied: CopiedMachine, name: str) -> None:
    sweep(copied, name, MANY)
