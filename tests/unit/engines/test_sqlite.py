"""SQLite databases with what only their application has, and with somebody who has them open."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from castore.engines import sqlite, sqlite_process
from castore.engines.sqlite import SQLite
from castore.engines.sqlite_check import look, uri
from castore.errors import CastoreError, ProgramError
from castore.process import open_files
from castore.services.sources import EngineSource
from tests.support.stores import Sandbox

ANKI = """
CREATE TABLE notes (id INTEGER PRIMARY KEY, sfld TEXT COLLATE unicase, body TEXT CHECK (known(body)));
CREATE UNIQUE INDEX by_sfld ON notes (sfld); CREATE INDEX by_body ON notes (known(body));
CREATE TABLE tags (tag TEXT PRIMARY KEY COLLATE unicase, n INT, m AS (known(n))) WITHOUT ROWID;
CREATE TABLE plain (x INTEGER PRIMARY KEY, y TEXT UNIQUE);
CREATE VIEW v AS SELECT known(sfld) FROM notes ORDER BY sfld COLLATE unicase;
INSERT INTO notes VALUES (1, 'b', 'x'), (2, 'A', 'y'), (3, 'ß', 'z'); INSERT INTO tags (tag, n) VALUES ('T', 1), ('a', 2);
INSERT INTO plain VALUES (1, 'one'), (2, 'two');
"""


@contextlib.contextmanager
def application(path: Path):
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.create_collation("unicase", lambda a, b: (a.lower() > b.lower()) - (a.lower() < b.lower()))
        database.create_function("known", 1, lambda value: 1, deterministic=True)
        yield database


def state(path: Path) -> list:
    with application(path) as database:
        return [database.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in ("notes", "tags", "plain", "v")]


@pytest.fixture
def anki(tmp_path: Path) -> Path:
    (tmp_path / "anki").mkdir()
    path = tmp_path / "anki" / "collection.anki2"
    with application(path) as database:
        database.executescript(ANKI)
    return path


def test_a_database_with_collations_and_functions_of_its_application_goes_back(anki: Path, tmp_path: Path):
    sandbox = Sandbox(tmp_path / "sandbox")
    sandbox.snapshot("s", {"db": EngineSource("sqlite", SQLite(path=str(anki)))})
    first = state(anki)
    with application(anki) as database:
        database.executescript("DELETE FROM notes WHERE id = 1; ALTER TABLE tags ADD COLUMN more")
    second = state(anki)
    said: list[str] = []
    done = sandbox.rollback(1, say=said.append)
    assert state(anki) == first
    assert any("collation unicase of the application were not checked" in line for line in said)
    sandbox.rollback(done.pre_rollback.number)
    assert state(anki) == second


def test_a_drill_checks_what_can_be_checked_without_the_application(anki: Path):
    sound = look(str(anki), "it", thorough=True)
    assert sound.rows == 7
    assert sound.collations == ["unicase"]
    with application(anki) as database:
        database.execute("PRAGMA writable_schema = ON")
        database.execute("UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE name = 'by_sfld') WHERE name = 'sqlite_autoindex_plain_1'")
        database.commit()
    with pytest.raises(CastoreError, match="no sound database"):
        look(str(anki), "it", thorough=True)


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST", "WAL"])
def test_an_idle_connection_is_not_left_with_the_old_file(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sqlite, "_SWITCH_SECONDS", 0.3)
    monkeypatch.setattr(open_files, "_PATIENCE_SECONDS", 0.3)
    sandbox = Sandbox(tmp_path / "sandbox")
    path = tmp_path / "app" / "app.db"
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(f"PRAGMA journal_mode = {mode}; CREATE TABLE t (x); INSERT INTO t VALUES (1)")
    sandbox.snapshot("s", {"db": EngineSource("sqlite", SQLite(path=str(path)))})
    program = f"import sqlite3, sys; d = sqlite3.connect({str(path)!r}, isolation_level=None); d.execute('INSERT INTO t VALUES (2)'); print(); input(); d.execute('INSERT INTO t VALUES (3)')"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as idle:
        idle.stdout.readline()
        holder = "" if mode == "WAL" else f"process {idle.pid} python"
        with pytest.raises(CastoreError, match=f"(?s)another process has.*{holder}"):
            sandbox.rollback(1)
        idle.communicate(b"\n")
        assert idle.returncode == 0
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT x FROM t").fetchall() == [(1,), (2,), (3,)]
    sandbox.rollback(1)
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT x FROM t").fetchall() == [(1,)]
    assert [name for name in os.listdir(path.parent) if "castore" in name] == []


def test_a_process_that_is_stopped_and_continued_in_turns_ends_in_time(anki: Path):
    ended = threading.Event()

    def slow_down() -> None:
        children = Path(f"/proc/{os.getpid()}/task")
        while not ended.wait(0.1):
            for pid in " ".join(one.read_text() for one in children.glob("*/children")).split():
                with contextlib.suppress(OSError):
                    if b"sqlite_worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(int(pid), signal.SIGCONT)
                        time.sleep(0.001)
                        os.kill(int(pid), signal.SIGSTOP)

    thread = threading.Thread(target=slow_down)
    thread.start()
    try:
        # It waits for a lock for longer than it may take in all.
        with contextlib.closing(sqlite3.connect(anki, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(ProgramError, match="took longer than 1 s"):
                sqlite_process.ask("check", str(anki), None, 1, seconds=120)
            with pytest.raises(ProgramError, match="took longer than 1 s"), sqlite_process.copied(str(anki), None, 120, 1) as readinto:
                readinto(memoryview(bytearray(1 << 20)))
    finally:
        ended.set()
        thread.join()


def test_without_a_timeout_the_process_still_ends(anki: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sqlite_process, "_LEAST_SECONDS", -59.99)
    monkeypatch.setattr(sqlite_process, "_LEAST_SPEED", 1 << 40)
    with pytest.raises(ProgramError, match="took longer than"):
        SQLite(path=str(anki)).check()


def test_a_uri_has_any_path_of_a_database():
    path = "/srv/" + "".join(chr(number) for number in range(1, 0x2FF)) + "€\U0001f600//app.db"
    assert uri(path) == f"file:{quote(path)}"
    assert uri(os.fsdecode(b"/srv/\xff")) == "file:/srv/%FF"
