"""Rollbacks killed at every point, with recoveries that are killed too, end in one consistent state."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from castore.engines.file import File
from castore.engines.sqlite import SQLite
from castore.errors import CastoreError
from castore.services.config import Service
from castore.services.sources import EngineSource, Tree
from tests.support.stores import Sandbox

WATCHED = ("rename", "replace", "unlink", "mkdir", "rmdir", "fsync", "utime", "write")


@dataclass
class LiveService:
    """A service with a tree, a database in it, a file, and a tree that comes and goes."""

    top: Path
    sandbox: Sandbox

    @property
    def live(self) -> Path:
        return self.top / "live"

    @property
    def settings(self) -> Service:
        running = str(self.live / "running")
        return Service(stop=("rm", "-f", running), start=("touch", running))

    def sources(self) -> dict:
        return {
            "t": Tree(str(self.live / "t"), ("/app.db",)),
            "db": EngineSource("sqlite", SQLite(path=str(self.live / "t" / "app.db"))),
            "s": EngineSource("file", File(path=str(self.live / "s"))),
            "u": Tree(str(self.live / "u")),
        }

    def write(self, path: str, text: str) -> None:
        (self.live / path).parent.mkdir(parents=True, exist_ok=True)
        (self.live / path).write_text(text)

    def sql(self, statement: str) -> list:
        with contextlib.closing(sqlite3.connect(self.live / "t" / "app.db")) as database:
            found = database.execute(statement).fetchall()
            database.commit()
        return found

    def state(self) -> dict:
        found: dict = {
            str(path.relative_to(self.live)): path.read_text() if path.is_file() else None
            for path in sorted(self.live.rglob("*"))
            if not path.name.startswith("app.db") or "castore" in path.name
        }
        found["rows"] = self.sql("SELECT x FROM t ORDER BY x")
        return found

    def forked(self, work: Callable[[], object], point: int) -> bool:
        """Do something in a process that is killed at the `point`th change of a file; return whether it was."""
        child = os.fork()
        if not child:
            left = point

            def watched(function):
                def wrapped(*arguments, **options):
                    nonlocal left
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*arguments, **options)

                return wrapped

            for name in WATCHED:
                setattr(os, name, watched(getattr(os, name)))
            try:
                work()
            except BaseException:
                traceback.print_exc(file=sys.stderr)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return True
        assert os.WEXITSTATUS(status) == 0, point
        return False

    def begun(self) -> bool:
        with self.sandbox.open(identity=False) as store:
            return store.state.rollback_journal("s") is not None


@pytest.fixture
def live_service(tmp_path: Path) -> LiveService:
    top = tmp_path / "work"
    top.mkdir()
    found = LiveService(top, Sandbox(top / "sandbox", average=4096))
    for name in ("a", "b", "gone"):
        found.write(f"t/{name}", "one")
    found.write("t/deep/er/file", "one")
    found.write("u/f", "one")
    found.write("s", "one")
    found.write("running", "")
    found.sql("CREATE TABLE t (x)")
    found.sql("INSERT INTO t VALUES (1)")
    found.sandbox.snapshot("s", found.sources())
    found.write("t/a", "two, and longer")
    found.write("t/new/file", "two")
    (found.live / "t" / "gone").unlink()
    shutil.rmtree(found.live / "t" / "deep")
    shutil.rmtree(found.live / "u")
    found.write("s", "two")
    found.sql("INSERT INTO t VALUES (2)")
    return found


def sweep(live_service: LiveService, work: Callable[[], object], step: int) -> None:
    """Kill `work` at every `step`th point, and recover, killed, too."""
    base = live_service.top.with_name("base")
    shutil.copytree(live_service.top, base, symlinks=True)
    before = live_service.state()
    work()
    after = live_service.state()
    assert after != before
    outcomes = [0, 0]
    for point in range(0, 10_000, step):
        shutil.rmtree(live_service.top)
        shutil.copytree(base, live_service.top, symlinks=True)
        chance = random.Random(point)
        if not live_service.forked(work, point):
            break
        for _ in range(chance.randrange(4)):
            if live_service.begun():
                live_service.forked(live_service.sandbox.recover, chance.randrange(25))
        if live_service.begun():
            with pytest.raises(CastoreError, match="interrupted"):
                live_service.sandbox.rollback(1, live_service.settings)
            live_service.sandbox.recover()
        now = live_service.state()
        assert now in (before, after), point
        outcomes[now == after] += 1
        if now == after:
            live_service.sandbox.undo(live_service.settings)
            assert live_service.state() == before, point
    print(outcomes)
    assert min(outcomes) > 3


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_roll_back_ends_in_one_state_and_can_be_undone(live_service: LiveService, step: int) -> None:
    sweep(live_service, lambda: live_service.sandbox.rollback(1, live_service.settings), step)


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_an_undo_ends_in_one_state_and_can_be_undone(live_service: LiveService, step: int) -> None:
    live_service.sandbox.rollback(1, live_service.settings)
    sweep(live_service, lambda: live_service.sandbox.undo(live_service.settings), step)
