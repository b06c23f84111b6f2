"""A rollback is one transaction: with nested parts, with parts that did not exist, and when killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from blake3 import blake3

from castore.engines.base import Contents, Engine
from castore.engines.file import File
from castore.engines.ldap import LDAP
from castore.engines.sqlite import SQLite
from castore.errors import CastoreError

Run = Callable[..., subprocess.CompletedProcess]


@dataclass
class Machine:
    """A service `app`, as castore.toml describes it."""

    top: Path
    castore: Run

    def toml(self, text: str) -> None:
        (self.top / "castore.toml").write_text(text.replace("TOP", str(self.top)))

    def run(self, *arguments: str, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        count = 2 if arguments[0] == "config" else 1
        where = ["--config", str(self.top / "castore.toml")]
        return self.castore(*arguments[:count], *where, *arguments[count:], expect=expect)

    def killed(self, patch: str, *arguments: str) -> None:
        """Run a command in which `die` is put in some place, and see that it was killed there."""
        script = f"""
import os, signal, sys
def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
{patch}
from castore.cli.main import main
sys.argv = ["castore", {arguments[0]!r}, "--config", {str(self.top / "castore.toml")!r}, *{list(arguments[1:])!r}]
main()
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr

    def write(self, path: str, text: str) -> None:
        (self.top / path).parent.mkdir(parents=True, exist_ok=True)
        (self.top / path).write_text(text)

    def read(self, path: str) -> str:
        return (self.top / path).read_text()

    def sql(self, path: str, *statements: str) -> list:
        with contextlib.closing(sqlite3.connect(self.top / path)) as database:
            found = [database.execute(one).fetchall() for one in statements]
            database.commit()
        return found[-1]

    def litter(self) -> list[str]:
        return [
            name
            for _, folders, files in os.walk(self.top)
            for name in [*folders, *files]
            if ".castore-" in name
        ]


@pytest.fixture
def machine(castore: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("CASTORE_STORE", str(tmp_path / "store"))
    castore("init")
    return Machine(tmp_path, castore)


TREE = '[service.app.parts.t]\nengine = "tree"\npath = "TOP/t"\n'
DATABASE = '[service.app.parts.db]\nengine = "sqlite"\npath = "TOP/t/app.db"\n'


@pytest.mark.parametrize("exclude", ['["app.db"]', '["app.db*"]', "[]"])
@pytest.mark.parametrize("tree_first", [True, False])
@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_database_in_a_tree_is_rolled_back_and_forth(
    machine: Machine, exclude: str, tree_first: bool, mode: str
) -> None:
    tree = f"{TREE}exclude = {exclude}\n"
    machine.toml(tree + DATABASE if tree_first else DATABASE + tree)
    machine.write("t/f", "one")
    machine.sql("t/app.db", f"PRAGMA journal_mode = {mode}", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
    machine.run("snapshot", "app", "--revision", "r1")
    machine.sql("t/app.db", "INSERT INTO t VALUES (2)")
    machine.write("t/f", "two, and longer")
    machine.run("rollback", "app", "--to", "r1")
    assert machine.sql("t/app.db", "SELECT x FROM t") == [(1,)]
    assert machine.read("t/f") == "one"
    assert machine.litter() == []
    machine.run("rollback", "app", "--undo")
    assert machine.sql("t/app.db", "SELECT x FROM t") == [(1,), (2,)]
    assert machine.read("t/f") == "two, and longer"
    assert machine.litter() == []


def test_a_tree_in_a_tree_is_rolled_back_and_forth(machine: Machine) -> None:
    inner = '[service.app.parts.inner]\nengine = "tree"\npath = "TOP/t/in"\n'
    for exclude in ("", 'exclude = ["/in/"]\n'):
        for text in (TREE + exclude + inner, inner + TREE + exclude):
            shutil.rmtree(machine.top / "t", ignore_errors=True)
            machine.toml(text)
            machine.write("t/f", "one")
            machine.write("t/in/f", "one")
            machine.run("snapshot", "app")
            machine.write("t/f", "two, and longer")
            machine.write("t/in/f", "two, and longer")
            machine.run("rollback", "app", "--to", "latest")
            assert (machine.read("t/f"), machine.read("t/in/f")) == ("one", "one")
            machine.run("rollback", "app", "--undo")
            assert (machine.read("t/f"), machine.read("t/in/f")) == ("two, and longer",) * 2
            # All of the outer one is deleted, and the inner one with it.
            shutil.rmtree(machine.top / "t")
            machine.run("rollback", "app", "--to", "latest", expect=None)
            if text.startswith(TREE):
                assert (machine.read("t/f"), machine.read("t/in/f")) == ("one", "one")


def test_nested_parts_are_reported_and_identical_ones_refused(machine: Machine) -> None:
    machine.write("t/f", "one")
    machine.sql("t/app.db", "CREATE TABLE t (x)")
    machine.toml(TREE + DATABASE)
    shown = machine.run("config", "check", expect=2).stdout
    assert "the part 'db' is inside this tree" in shown
    assert "'/app.db*'" in shown
    for pattern in ("/app.db*", "app.db", "*.db"):
        machine.toml(f'{TREE}exclude = ["{pattern}"]\n{DATABASE}')
        assert "t: ok" in machine.run("config", "check").stdout
    machine.toml(TREE + TREE.replace("parts.t", "parts.u"))
    assert "the part 'u' is the same" in machine.run("config", "check", expect=2).stdout
    machine.run("snapshot", "app", "--revision", "r1")
    machine.write("t/f", "two, and longer")
    refused = machine.run("rollback", "app", "--to", "r1", expect=2)
    assert "'t' and 'u' are both" in refused.stderr
    assert machine.read("t/f") == "two, and longer"
    machine.run("recover", "app", expect=6)


def test_a_missing_staged_file_fails_the_rollback(machine: Machine) -> None:
    machine.toml(
        f'[service.app]\nstop = ["sh", "-c", "rm {machine.top}/*.castore-new-*"]\n'
        '[service.app.parts.db]\nengine = "sqlite"\npath = "TOP/app.db"\n'
    )
    machine.sql("app.db", "CREATE TABLE t (x)")
    machine.run("snapshot", "app", "--revision", "r1")
    machine.sql("app.db", "INSERT INTO t VALUES (2)")
    failed = machine.run("rollback", "app", "--to", "r1", expect=1)
    assert "which was to replace it" in failed.stderr
    assert machine.sql("app.db", "SELECT x FROM t") == [(2,)]
    machine.run("recover", "app", expect=6)


@pytest.mark.parametrize("engine", [File(path="/unused"), SQLite(path="/unused"), LDAP(suffix="dc=unused")])
def test_an_exchange_without_what_was_staged_touches_nothing(engine: Engine, tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir() if isinstance(engine, LDAP) else live.write_text("live")
    names = {key: str(tmp_path / key) for key in ("live", "new", "old")}
    swapping = engine.state_type(existed=True, **names)
    with pytest.raises(CastoreError, match="which was to replace it"):
        engine.swap(swapping, Contents(lambda: (), lambda: ()))
    assert os.listdir(tmp_path) == ["live"]


@pytest.mark.parametrize("method", ["set_live_revision", "set_undo_number"])
def test_recovering_what_was_done_says_what_undo_goes_back_to(machine: Machine, method: str) -> None:
    machine.toml(TREE)
    for revision in ("rA", "rB"):
        machine.write("t/f", revision * len(revision))
        machine.run("snapshot", "app", "--revision", revision)
        machine.write("t/f", revision)
    machine.write("t/f", "older")
    machine.run("rollback", "app", "--to", "rA")
    machine.write("t/f", "precious, and live")
    machine.killed(f"import castore.state.service_state as s; s.ServiceState.{method} = die", "rollback", "app", "--to", "rB")
    assert "what it replaced is removed" in machine.run("recover", "app").stdout
    machine.run("rollback", "app", "--undo")
    assert machine.read("t/f") == "precious, and live"


HOOKS = """
[service.app]
stop = ["sh", "-c", "echo stop >> TOP/hooks"]
start = ["sh", "-c", "echo start >> TOP/hooks"]
[service.app.parts.s]
engine = "file"
path = "TOP/s"
"""


def test_recovering_stops_a_service_that_was_started_in_an_inconsistent_state(machine: Machine) -> None:
    machine.toml(HOOKS + TREE)
    machine.write("s", "one")
    machine.write("t/f", "one")
    machine.run("snapshot", "app", "--revision", "r1")
    machine.write("s", "two")
    machine.write("t/f", "two, and longer")
    patch = "import castore.services.rollback.steps as s; s.TreeStep.swap = die"
    machine.killed(patch, "rollback", "app", "--to", "r1")
    assert machine.read("s") == "one"
    (machine.top / "hooks").unlink()
    machine.run("recover", "app")
    assert machine.read("hooks").split() == ["stop", "start"]
    assert (machine.read("s"), machine.read("t/f")) == ("two", "two, and longer")


def test_a_service_of_which_a_part_has_not_gone_back_is_not_started(machine: Machine) -> None:
    text = HOOKS + TREE + '[service.app.parts.c]\nengine = "command"\ndump = ["cat", "TOP/c"]\nrestore = ["sh", "-c", "cat > TOP/c && test ! -e TOP/broken"]\n'
    machine.toml(text)
    for name in ("s", "t/f", "c"):
        machine.write(name, "one")
    machine.run("snapshot", "app", "--revision", "r1")
    for name in ("s", "t/f", "c"):
        machine.write(name, "two, and longer")
    machine.write("broken", "")
    failed = machine.run("rollback", "app", "--to", "r1", expect=11)
    assert "the previous state of 'c' could not be restored" in failed.stderr
    assert "so 'app' is not started" in failed.stderr
    assert machine.read("hooks").split() == ["stop"]
    failed = machine.run("recover", "app", expect=11)
    assert "so 'app' is not started" in failed.stderr
    assert machine.read("hooks").split() == ["stop", "stop"]
    (machine.top / "broken").unlink()
    machine.run("recover", "app")
    assert machine.read("hooks").split() == ["stop", "stop", "stop", "start"]
    assert [machine.read(name) for name in ("s", "t/f", "c")] == ["two, and longer"] * 3


def test_parts_that_did_not_exist_are_removed_by_an_undo(machine: Machine) -> None:
    machine.toml(
        TREE
        + '[service.app.parts.db]\nengine = "sqlite"\npath = "TOP/app.db"\n'
        + '[service.app.parts.s]\nengine = "file"\npath = "TOP/s"\n'
        + '[service.app.parts.u]\nengine = "tree"\npath = "TOP/u"\n'
    )

    def grow() -> None:
        machine.write("t/deep/f", "one")
        machine.write("u/f", "one")
        machine.write("s", "one")
        machine.sql("app.db", "CREATE TABLE t (x)")

    def shrink(*names: str) -> None:
        for name in names:
            path = machine.top / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def there() -> set[str]:
        return {"t", "u", "s", "app.db"} & set(os.listdir(machine.top))

    grow()
    machine.run("snapshot", "app", "--revision", "r1")
    shrink("t", "s", "app.db")
    machine.run("rollback", "app", "--to", "r1")
    assert there() == {"t", "u", "s", "app.db"}
    assert "t: did not exist" in machine.run("rollback", "app", "--undo", "--dry-run").stdout
    planned = json.loads(machine.run("rollback", "app", "--undo", "--dry-run", "--json").stdout)
    assert set(planned["removed"]) == {"t", "s", "db"}
    for _ in range(2):
        machine.run("rollback", "app", "--undo")
        assert there() == {"u"}
        machine.run("rollback", "app", "--undo")
        assert there() == {"t", "u", "s", "app.db"}
        assert machine.read("t/deep/f") == "one"
    # Nothing at all was there.
    shrink("t", "u", "s", "app.db")
    machine.run("rollback", "app", "--to", "r1")
    assert there() == {"t", "u", "s", "app.db"}
    machine.run("rollback", "app", "--undo")
    assert there() == set()
    machine.run("rollback", "app", "--undo")
    assert there() == {"t", "u", "s", "app.db"}
    assert machine.litter() == []
    for command in (("log", "app"), ("show", "app@latest"), ("verify", "--read-data"), ("stats",), ("reindex",)):
        machine.run(*command)


def test_a_removal_that_fails_or_is_killed_is_undone_or_finished(machine: Machine) -> None:
    hooks = '[service.app]\nhealth = ["test", "!", "-e", "TOP/broken"]\nhealth-timeout = 0.1\n'
    machine.toml(hooks + TREE + '[service.app.parts.s]\nengine = "file"\npath = "TOP/s"\n')
    machine.write("t/f", "one")
    machine.write("s", "one")
    machine.run("snapshot", "app", "--revision", "r1")
    shutil.rmtree(machine.top / "t")
    (machine.top / "s").unlink()
    machine.run("rollback", "app", "--to", "r1")
    machine.write("broken", "")
    machine.run("rollback", "app", "--undo", expect=4)
    assert (machine.read("t/f"), machine.read("s")) == ("one", "one")
    (machine.top / "broken").unlink()
    for patch in ("Transaction._start", "record_state", "clean_up_parts"):
        machine.killed(f"import castore.services.rollback.transaction as r; r.{patch} = die", "rollback", "app", "--undo")
        assert not (machine.top / "t").exists()
        machine.run("recover", "app")
        assert machine.litter() == []
        if patch == "Transaction._start":
            assert (machine.read("t/f"), machine.read("s")) == ("one", "one")
            continue
        assert not (machine.top / "t").exists()
        assert not (machine.top / "s").exists()
        machine.run("rollback", "app", "--undo")
        assert (machine.read("t/f"), machine.read("s")) == ("one", "one")


def test_a_tree_that_a_killed_rollback_recreated_is_removed_again(machine: Machine) -> None:
    machine.toml(TREE)
    machine.write("t/f", "one")
    machine.run("snapshot", "app", "--revision", "r1")
    shutil.rmtree(machine.top / "t")
    patch = "import castore.services.rollback.transaction as r; r.Transaction._start = die"
    machine.killed(patch, "rollback", "app", "--to", "r1")
    machine.run("recover", "app")
    assert not (machine.top / "t").exists()


def test_directories_above_parts_are_made_with_their_owners_and_modes(machine: Machine) -> None:
    machine.toml(
        '[service.app]\nstop = ["touch", "TOP/stopped"]\n[service.app.parts.t]\nengine = "tree"\npath = "TOP/p/t"\n'
        '[service.app.parts.s]\nengine = "file"\npath = "TOP/q/s"\n'
    )
    machine.write("p/t/f", "one")
    machine.write("q/s", "one")
    for name, mode in (("p", 0o751), ("q", 0o751), ("q/s", 0o640)):
        if os.geteuid() == 0:
            os.chown(machine.top / name, 12, 12)
        (machine.top / name).chmod(mode)
    machine.run("snapshot", "app", "--revision", "r1")
    shutil.rmtree(machine.top / "p")
    shutil.rmtree(machine.top / "q")
    planned = machine.run("rollback", "app", "--to", "r1", "--dry-run")
    assert f"would create the directory {machine.top}/p" in planned.stderr
    assert not (machine.top / "p").exists()
    done = machine.run("rollback", "app", "--to", "r1")
    for name in ("p", "q"):
        assert f"created the directory {machine.top}/{name}" in done.stderr
        assert (machine.top / name).stat().st_mode & 0o7777 == 0o751
    assert (machine.top / "q/s").stat().st_mode & 0o7777 == 0o640
    if os.geteuid() == 0:
        assert [(machine.top / one).stat().st_uid for one in ("p", "q/s")] == [12, 12]
    assert (machine.read("p/t/f"), machine.read("q/s")) == ("one", "one")


def test_a_journal_of_another_version_is_left_alone(machine: Machine, tmp_path: Path) -> None:
    import msgspec

    machine.toml(TREE)
    machine.write("t/f", "one")
    machine.run("snapshot", "app", "--revision", "r1")
    machine.write("t/f", "two, and longer")
    patch = "import castore.services.rollback.transaction as r; r.Transaction._start = die"
    machine.killed(patch, "rollback", "app", "--to", "r1")
    (journal,) = (tmp_path / "home").rglob("rollbacks/*")
    whole = journal.read_bytes()
    other = msgspec.msgpack.encode({"version": 99, "phase": "unheard of"})
    journal.write_bytes(other + blake3(other).digest(16))
    refused = machine.run("recover", "app", expect=11)
    assert "has version 99" in refused.stderr
    assert "a mistake in castore" not in refused.stderr
    assert machine.read("t/f") == "one"
    for data in (b"", b"\xc1garbage", whole[:-3], msgspec.msgpack.encode(7), b"\x81\xa7version\xa1x"):
        journal.write_bytes(data)
        assert "is damaged" in machine.run("recover", "app", expect=11).stderr
    journal.write_bytes(whole)
    machine.run("recover", "app")
    assert machine.read("t/f") == "two, and longer"
    journal.write_bytes(b"garbage")
    assert "is not known" in machine.run("recover", "--forget", "app").stdout
    machine.run("rollback", "app", "--to", "r1")


def test_recovering_without_the_store_says_so_and_can_be_done_later(machine: Machine) -> None:
    machine.toml(TREE)
    machine.write("t/f", "one")
    machine.run("snapshot", "app", "--revision", "r1")
    machine.write("t/f", "two, and longer")
    patch = "import castore.services.rollback.transaction as r; r.Transaction._start = die"
    machine.killed(patch, "rollback", "app", "--to", "r1")
    (machine.top / "store").rename(machine.top / "elsewhere")
    refused = machine.run("recover", "app", expect=None)
    assert refused.returncode in {1, 6}
    assert str(machine.top / "store") in refused.stderr
    (machine.top / "elsewhere").rename(machine.top / "store")
    machine.run("recover", "app")
    assert machine.read("t/f") == "two, and longer"


def test_a_service_that_cannot_be_recovered_keeps_no_other_from_it(machine: Machine) -> None:
    machine.toml(TREE + TREE.replace("service.app", "service.zoo").replace("TOP/t", "TOP/z"))
    journals = []
    for name, path in (("app", "t/f"), ("zoo", "z/f")):
        machine.write(path, "one")
        machine.run("snapshot", name, "--revision", "r1")
        machine.write(path, "two, and longer")
        patch = "import castore.services.rollback.steps as s; s.TreeStep.swap = die"
        machine.killed(patch, "rollback", name, "--to", "r1")
        journals.append({*machine.top.rglob("rollbacks/*")})
    (first,) = journals[0]
    first.write_bytes(b"damaged")
    done = machine.run("recover", expect=11)
    assert "app: " in done.stderr
    assert "failed: app" in done.stderr
    machine.run("snapshot", "zoo", "--revision", "r1")
    machine.run("recover", "zoo", expect=6)  # it was recovered
