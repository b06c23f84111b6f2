"""Guard, follow, drill, hooks, events and rules, by the command, on a service of a tree and a database."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess]

TOML = """
[service.app]
revision = {{ link = "{top}/current" }}
follow = "{follow}"
stop = ["sh", "-c", "echo stop >> {top}/hooks"]
start = ["sh", "-c", "echo start >> {top}/hooks"]
health = ["test", "!", "-e", "{top}/broken"]
health-timeout = 0.2
undo = ["sh", "-c", "rm -f {top}/broken; ln -sfn one {top}/current; echo undo >> {top}/hooks"]
before = ["sh", "-c", "echo before >> {top}/hooks"]
after = {after}
drill-check = ["sh", "-c", "test -f $CASTORE_DRILL_DB_PATH && test -f $CASTORE_DRILL_UP_PATH/file"]
{more}

[service.app.parts.db]
engine = "sqlite"
path = "{top}/app.db"
before = ["sh", "-c", "echo part-before >> {top}/hooks"]
after = ["sh", "-c", "echo part-after >> {top}/hooks"]

[service.app.parts.up]
engine = "tree"
path = "{top}/up"
"""


@dataclass
class App:
    """A service whose configuration is a link to `one` or `two`."""

    top: Path
    castore: Run

    def configure(self, *, follow: str = "restore", after: str = '["sh", "-c", "echo after >> {top}/hooks"]', more: str = "") -> None:
        text = TOML.format(top=self.top, follow=follow, after=after.format(top=self.top), more=more)
        (self.top / "castore.toml").write_text(text)

    def run(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        command, *rest = arguments
        where = ["--config", str(self.top / "castore.toml")]
        if command == "config":
            return self.castore(command, rest[0], *where, *rest[1:], expect=expect)
        return self.castore(command, *where, *rest, expect=expect)

    @property
    def state(self) -> tuple[str, list]:
        with contextlib.closing(sqlite3.connect(self.top / "app.db")) as database:
            return (self.top / "up" / "file").read_text(), database.execute("SELECT * FROM t").fetchall()

    @contextlib.contextmanager
    def start(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Start a command in a process group of its own, as a shell does; kill the group if the test fails."""
        command, *rest = arguments
        with subprocess.Popen(
            [sys.executable, "-m", "castore", command, "--config", str(self.top / "castore.toml"), *rest],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        ) as process:
            try:
                yield process
            except BaseException:
                (self.top / "slow").unlink(missing_ok=True)
                os.killpg(process.pid, signal.SIGKILL)
                raise

    def wait_for(self, name: str) -> None:
        end = time.monotonic() + 60
        while not (self.top / name).exists():
            assert time.monotonic() < end, name
            time.sleep(0.02)

    def hooks(self) -> list[str]:
        path = self.top / "hooks"
        found = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return found

    def events(self) -> list[tuple[str, bool]]:
        return [(one["kind"], one["ok"]) for one in json.loads(self.run("events", "--json").stdout)]

    deploy = "ln -sfn two {0}/current; echo two > {0}/up/file; python3 -c \"import sqlite3; d = sqlite3.connect('{0}/app.db'); d.execute('ALTER TABLE t ADD COLUMN y'); d.commit()\""


@pytest.fixture
def app(castore: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setenv("CASTORE_STORE", str(tmp_path / "store"))
    castore("init")
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "file").write_text("one\n")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "current").symlink_to("one")
    with contextlib.closing(sqlite3.connect(tmp_path / "app.db")) as database:
        database.executescript("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
    found = App(tmp_path, castore)
    found.configure()
    return found


FIRST = ("one\n", [(1,)])
SECOND = ("two\n", [(1, None)])


def test_a_snapshot_is_taken_between_its_hooks(app: App):
    app.run("snapshot", "app")
    assert app.hooks() == ["before", "part-before", "part-after", "after"]
    shown = json.loads(app.run("show", "app@1", "--json").stdout)
    assert shown["revision"] == "one"


def test_hooks_after_a_failing_snapshot_are_run(app: App):
    (app.top / "app.db").unlink()
    app.run("snapshot", "app", expect=2)
    assert app.hooks() == ["before", "part-before", "part-after", "after"]
    assert json.loads(app.run("log", "--json").stdout) == []
    assert app.events() == [("snapshot", False)]


def test_a_hook_that_fails_in_front_leaves_nothing_undone(app: App):
    app.configure(more="")
    text = (app.top / "castore.toml").read_text().replace("echo part-before >>", "exit 3; echo >>")
    (app.top / "castore.toml").write_text(text)
    failed = app.run("snapshot", "app", expect=4)
    assert "status 3" in failed.stderr
    assert app.hooks() == ["before", "part-after", "after"]


def test_a_failing_hook_after_the_snapshot_is_reported_and_the_generation_exists(app: App):
    app.configure(after='["false"]')
    printed = app.run("snapshot", "app", expect=3)
    assert "app@1 is committed, but: false failed" in printed.stderr
    assert len(json.loads(app.run("log", "--json").stdout)) == 1


def test_a_deployment_that_goes_well_stays(app: App):
    app.run("guard", "app", "--", "sh", "-c", app.deploy.format(app.top))
    assert app.state == SECOND
    assert os.readlink(app.top / "current") == "two"
    assert [kind for kind, _ in app.events()] == ["guard", "snapshot"]
    assert "stop" not in app.hooks()
    assert "as before" in app.run("follow", "app").stdout  # the new revision was noted


@pytest.mark.parametrize("failing", ["; touch {0}/broken", "; exit 5", "; kill -9 $$"])
def test_a_failed_deployment_is_reverted_with_its_state(app: App, failing: str):
    failed = app.run("guard", "app", "--", "sh", "-c", (app.deploy + failing).format(app.top), expect=9)
    assert "the deployment was reverted: app: the state of generation 1 (revision one) is restored" in failed.stderr
    assert "`undo` was run; revision one is live; nothing is left to do" in failed.stderr
    assert app.state == FIRST
    assert os.readlink(app.top / "current") == "one"
    hooks = app.hooks()
    assert hooks.index("undo") < hooks.index("stop") < hooks.index("start")
    generations = json.loads(app.run("log", "--json").stdout)
    assert [one["pre_rollback"] for one in generations] == [True, False]


def test_a_command_that_does_not_exist_is_reverted_too(app: App):
    app.run("guard", "app", "--", "/no/such/program", expect=9)
    assert app.state == FIRST


def test_a_deployment_that_breaks_the_database_beyond_dumping_is_reverted(app: App):
    broken = f"echo garbage > {app.top}/app.db; exit 1"
    failed = app.run("guard", "app", "--", "sh", "-c", broken, expect=9)
    assert "without a pre-rollback generation" in failed.stderr
    assert app.state == FIRST


def test_a_guard_without_a_snapshot_does_not_deploy(app: App):
    (app.top / "app.db").unlink()
    app.run("guard", "app", "--", "touch", str(app.top / "deployed"), expect=2)
    assert not (app.top / "deployed").exists()
    assert "there is no castore.toml" in app.castore("guard", "app", "--", "true", expect=2).stderr
    assert "does not describe" in app.run("guard", "other", "--", "true", expect=2).stderr
    assert "before the command" in app.run("guard", "app", expect=2).stderr


def test_a_guarded_roll_back_of_the_system_brings_its_state(app: App):
    app.run("snapshot", "app")
    app.run("guard", "app", "--", "sh", "-c", app.deploy.format(app.top))
    app.run("snapshot", "app")
    printed = app.run("guard", "app", "--", "ln", "-sfn", "one", str(app.top / "current"))
    assert "was configured before" in printed.stderr
    assert app.state == SECOND
    warned = app.run("snapshot", "app")
    assert "the state still belongs to revision two" in warned.stderr
    assert json.loads(app.run("show", "app@latest", "--json").stdout)["revision"] == "two"


def test_what_follow_prints_files_the_replaced_state_under_its_own_revision(app: App):
    app.configure(follow="tell")
    app.run("snapshot", "app")
    subprocess.run(["sh", "-c", app.deploy.format(app.top)], check=True)
    app.run("snapshot", "app")
    subprocess.run(["ln", "-sfn", "one", str(app.top / "current")], check=True)
    app.run("snapshot", "app")
    advice = app.run("follow", "app").stdout
    assert "castore rollback app --to '=one'" in advice
    app.run("rollback", "app", "--to", "=one")
    assert app.state == FIRST
    log = json.loads(app.run("log", "app", "--json").stdout)
    assert [(one["revision"], one["pre_rollback"]) for one in reversed(log)] == [
        ("one", False), ("two", False), ("two", False), ("two", True)
    ]
    assert "as before" in app.run("follow", "app").stdout
    app.run("rollback", "app", "--undo")
    assert app.state == SECOND
    found = json.loads(app.run("follow", "app", "--json").stdout)
    assert [(one["revision"], one["before"]) for one in found] == [("one", "two")]


def test_a_state_rolled_back_under_a_revision_without_snapshots_is_not_filed_under_it(app: App):
    app.run("snapshot", "app")
    subprocess.run(["sh", "-c", app.deploy.format(app.top)], check=True)
    app.run("follow", "app")
    app.run("rollback", "app", "--to", "=one")
    app.run("snapshot", "app")
    assert json.loads(app.run("show", "app@latest", "--json").stdout)["revision"] == "one"
    app.run("follow", "app")
    assert app.state == SECOND


def test_undo_of_a_rollback_between_equal_states_restores_the_noted_revision(app: App):
    app.run("snapshot", "app")
    subprocess.run(["ln", "-sfn", "two", str(app.top / "current")], check=True)
    app.run("snapshot", "app")
    app.run("rollback", "app", "--to", "=one")
    assert json.loads(app.run("revision", "app", "--json").stdout)["state"] == "one"
    app.run("rollback", "app", "--undo")
    assert json.loads(app.run("revision", "app", "--json").stdout)["state"] == "two"


def test_a_guarded_roll_back_of_the_system_restores_its_state(app: App):
    app.run("guard", "app", "--", "sh", "-c", app.deploy.format(app.top))
    app.run("guard", "--restore", "app", "--", "ln", "-sfn", "one", str(app.top / "current"))
    assert app.state == FIRST
    assert "as before" in app.run("follow", "app").stdout
    app.run("rollback", "--undo", "app")
    assert app.state == SECOND


OLD_CODE = """health = ["sh", "-c", "test $(readlink {top}/current) = $(cat {top}/up/file)"]"""
"""The programs of a revision work with its own state only."""


def strict(app: App, more: str = "") -> None:
    """Let the service be healthy only with the state of its configured revision."""
    app.configure(more=more)
    path = app.top / "castore.toml"
    text = path.read_text().replace(f'health = ["test", "!", "-e", "{app.top}/broken"]', OLD_CODE.format(top=app.top))
    path.write_text(text)


def test_a_guarded_rollback_of_the_system_restores_before_it_checks_health(app: App):
    strict(app)
    deployed = app.run("guard", "app", "--", "sh", "-c", app.deploy.format(app.top)).stdout
    assert "app: deployed, healthy; revision two is live; before it: generation 1 of one" in deployed
    assert "castore rollback app --to 1" in deployed
    printed = app.run("guard", "--restore", "app", "--", "ln", "-sfn", "one", str(app.top / "current"))
    assert "revision one is live, its state restored from generation 1" in printed.stdout
    assert "castore rollback --undo app" in printed.stdout
    assert app.state == FIRST
    assert app.events()[0] == ("guard", True)


def test_a_guarded_rollback_of_the_system_whose_restored_state_is_not_healthy_is_reverted(app: App):
    strict(app)
    app.run("guard", "app", "--", "sh", "-c", app.deploy.format(app.top))
    text = (app.top / "castore.toml").read_text().replace("ln -sfn one", "ln -sfn two")
    (app.top / "castore.toml").write_text(text.replace("$(cat", "two -a two = $(cat"))
    failed = app.run("guard", "--restore", "app", "--", "ln", "-sfn", "one", str(app.top / "current"), expect=9)
    assert "(revision two) is restored; `undo` was run; revision two is live; nothing is left to do" in failed.stderr
    assert app.state == SECOND


def test_a_guarded_rollback_of_the_system_without_restore_names_the_option(app: App):
    strict(app)
    app.run("guard", "app", "--", "sh", "-c", app.deploy.format(app.top))
    (app.top / "castore.toml").write_text((app.top / "castore.toml").read_text().replace("ln -sfn one", "ln -sfn two"))
    failed = app.run("guard", "app", "--", "ln", "-sfn", "one", str(app.top / "current"), expect=9)
    assert "castore guard --restore does that" in failed.stderr
    assert "revision two is live; nothing is left to do" in failed.stderr
    assert app.state == SECOND


def test_a_reverted_deployment_whose_configuration_was_not_reverted_says_so(app: App):
    text = (app.top / "castore.toml").read_text()
    (app.top / "castore.toml").write_text("\n".join(line for line in text.splitlines() if not line.startswith(("undo", "health"))))
    failed = app.run("guard", "app", "--", "sh", "-c", app.deploy.format(app.top) + "; exit 5", expect=9)
    assert "castore.toml names no `undo`; revision two is live, but the state belongs to another revision; left to do: revert the configuration" in failed.stderr


def test_a_failed_rollback_says_which_state_is_live(app: App):
    app.run("snapshot", "app")
    subprocess.run(["sh", "-c", app.deploy.format(app.top)], check=True)
    app.run("follow", "app")
    (app.top / "broken").touch()
    failed = app.run("rollback", "app", "--to", "1", expect=4)
    assert "the health check failed" in failed.stderr
    assert "the previous state of 'app' (revision two) is restored" in failed.stderr
    assert app.state == SECOND


def test_a_reverted_deployment_that_is_not_healthy_is_restored_once_and_reported_once(app: App):
    before = app.state
    text = (app.top / "castore.toml").read_text().replace(f"rm -f {app.top}/broken; ", "")
    (app.top / "castore.toml").write_text(text)
    failed = app.run("guard", "app", "--", "sh", "-c", f"echo new > {app.top}/up/file; touch {app.top}/broken", expect=1)
    assert failed.stderr.count("the state of generation 1 is restored, but the health check failed") == 1
    assert "without a pre-rollback generation" not in failed.stderr
    assert app.hooks().count("start") == 1
    assert app.state == before


def test_state_follows_the_revision(app: App):
    assert "is noted: it was not known which revision the state belonged to" in app.run("follow", "app").stdout
    app.run("snapshot", "app")
    subprocess.run(["sh", "-c", app.deploy.format(app.top)], check=True)
    assert "is new, and noted" in app.run("follow", "app").stdout
    assert app.state == SECOND
    app.run("snapshot", "app")
    (app.top / "current").unlink()
    (app.top / "current").symlink_to("one")
    assert "would be restored" in app.run("follow", "--dry-run", "app").stdout
    assert app.state == SECOND
    assert "is restored" in app.run("follow", "app").stdout
    assert app.state == FIRST
    for _ in range(2):
        assert "as before" in app.run("follow", "app").stdout
    app.run("rollback", "--undo", "app")
    assert app.state == SECOND
    app.configure(follow="tell")
    found = json.loads(app.run("follow", "app", "--json").stdout)
    assert [(one["revision"], one["before"], one["restored"]) for one in found] == [("one", "two", False)]
    assert app.state == SECOND


def test_a_drill_restores_and_checks_and_is_kept(app: App):
    app.run("snapshot", "app")
    (app.top / "scratch").mkdir()
    printed = app.run("drill", "app", "--scratch", str(app.top / "scratch"))
    assert "integrity_check ok" in printed.stdout
    assert "app@1 is sound" in printed.stdout
    assert os.listdir(app.top / "scratch") == []
    assert "drilled" in app.run("log").stdout
    (app.top / "up" / "file").unlink()
    app.run("snapshot", "app")
    failed = app.run("drill", "app@2", expect=4)
    assert "status 1" in failed.stderr
    log = json.loads(app.run("log", "--json").stdout)
    assert [one["drilled"]["ok"] for one in log] == [False, True]
    assert "FAILED" in app.run("log").stdout
    assert app.events()[0] == ("drill", False)


def test_the_configuration_is_checked_and_shown(app: App):
    assert "app: db: ok" in app.run("config", "check").stdout
    shown = json.loads(app.run("config", "show").stdout)
    assert shown["service"]["app"]["parts"]["db"]["engine"] == "sqlite"
    (app.top / "app.db").unlink()
    (app.top / "up" / "file").unlink()
    (app.top / "up").rmdir()
    failed = app.run("config", "check", expect=2)
    assert "there is no database" in failed.stdout
    assert "cannot read the tree" in failed.stdout
    assert "2 problems" in failed.stderr


def test_the_revision_is_shown_and_may_be_a_hash_over_paths(app: App):
    assert app.run("revision", "app").stdout == f"one  (the target of {app.top}/current)\n"
    text = (app.top / "castore.toml").read_text().replace("link = ", "paths = [").replace('/current" }', '/one"] }')
    (app.top / "castore.toml").write_text(text)
    first = app.run("revision", "app").stdout.split()[0]
    assert len(first) == 32
    assert app.run("revision", "app").stdout.split()[0] == first
    (app.top / "one" / "new").write_text("x")
    assert app.run("revision", "app").stdout.split()[0] != first
    (app.top / "one" / "new").unlink()
    (app.top / "one").rmdir()
    assert "cannot compute a revision from" in app.run("revision", "app", expect=2).stderr


def test_rules_are_shown_and_then_done(app: App):
    app.configure(more="keep = { last = 1 }")
    for number in range(3):
        (app.top / "up" / "file").write_text(str(number))
        app.run("snapshot", "app")
    rows = json.loads(app.run("prune", "--dry-run", "--json").stdout)["generations"]
    assert [(row["number"], bool(row["kept_by"])) for row in rows] == [(3, True), (2, False), (1, False)]
    assert "(to be deleted)" in app.run("prune", "--dry-run").stdout
    assert len(json.loads(app.run("log", "--json").stdout)) == 3
    app.run("pin", "app@1", "--note", "the first")
    assert "pinned (the first)" in app.run("prune", "--dry-run").stdout
    assert "forgotten: app@2" in app.run("prune").stdout
    assert [row["number"] for row in json.loads(app.run("log", "--json").stdout)] == [3, 1]
    assert "app@1 is pinned (the first)" in app.run("forget", "app@1", "--yes", expect=2).stderr
    app.run("unpin", "app@1")
    app.run("unpin", "app@1", expect=6)
    app.run("forget", "app", expect=2)
    app.run("forget", "app@1", "--yes")
    assert json.loads(app.run("compact", "--json").stdout)["damaged"] == []
    assert [row["number"] for row in json.loads(app.run("log", "--json").stdout)] == [3]
    app.run("verify", "--packs")


def test_an_interrupted_rollback_blocks_the_service_until_it_is_recovered(app: App):
    app.run("snapshot", "app")
    (app.top / "up" / "file").write_text("two\n")
    text = (app.top / "castore.toml").read_text()
    (app.top / "castore.toml").write_text(text.replace('stop = ["sh", "-c", "echo', 'stop = ["sh", "-c", "kill -9 $PPID; echo'))
    app.run("rollback", "app", "--to", "1", expect=-9)
    (app.top / "castore.toml").write_text(text)
    # Snapshots go on, and are marked.
    for command, code in ((["snapshot", "app"], 3), (["rollback", "app", "--to", "1"], 11)):
        assert "castore recover app" in app.run(*command, expect=code).stderr
    assert "as it was before" in app.run("recover").stdout
    assert app.state == ("two\n", [(1,)])
    assert "no rollback or restore in place was interrupted" in app.run("recover").stdout
    assert "no rollback of 'app'" in app.run("recover", "app", expect=6).stderr
    app.run("rollback", "app", "--to", "1")
    assert app.state == FIRST
    assert "nothing was changed" in app.run("rollback", "app", "--to", "1").stdout


def test_writes_before_the_stop_are_in_the_pre_rollback_generation(app: App):
    app.run("snapshot", "app")
    late = f"import sqlite3; d = sqlite3.connect('{app.top}/app.db'); d.execute('INSERT INTO t VALUES (99)'); d.commit()"
    text = (app.top / "castore.toml").read_text()
    (app.top / "castore.toml").write_text(text.replace('stop = ["sh", "-c", "', f'stop = ["sh", "-c", "python3 -c \\"{late}\\"; '))
    (app.top / "up" / "file").write_text("two\n")
    app.run("rollback", "app", "--to", "1")
    assert app.state == FIRST
    (app.top / "castore.toml").write_text(text)
    app.run("rollback", "--undo", "app")
    assert app.state == ("two\n", [(1,), (99,)])


def test_a_database_that_somebody_has_open_is_not_exchanged(app: App):
    with contextlib.closing(sqlite3.connect(app.top / "app.db")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        app.run("snapshot", "app")
        database.execute("INSERT INTO t VALUES (2)")
        database.commit()
        failed = app.run("rollback", "app", "--to", "1", expect=1)
        assert "another process has" in failed.stderr
        database.execute("INSERT INTO t VALUES (3)")
        database.commit()
    assert app.state[1] == [(1,), (2,), (3,)]
    app.run("rollback", "app", "--to", "1")
    assert app.state == FIRST
    with contextlib.closing(sqlite3.connect(app.top / "app.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert not [name for name in os.listdir(app.top) if "castore-" in name]


def test_undoing_does_not_remove_what_the_service_made_since(app: App):
    app.run("snapshot", "app")
    (app.top / "app.db").unlink()
    make = f"import sqlite3; d = sqlite3.connect('{app.top}/app.db'); d.execute('CREATE TABLE t (x)'); d.execute('INSERT INTO t VALUES (7)'); d.commit()"
    text = (app.top / "castore.toml").read_text()
    broken = text.replace('start = ["sh", "-c", "', f'start = ["sh", "-c", "test -e {app.top}/app.db || python3 -c \\"{make}\\"; exit 1; ')
    (app.top / "castore.toml").write_text(broken)
    app.run("rollback", "app", "--to", "1", "--no-pre-rollback", expect=11)
    assert app.state[1] == [(7,)]
    for _ in range(2):  # the hook fails again, and what it made stays
        app.run("recover", "app", expect=11)
        assert app.state[1] == [(7,)]
    printed = app.run("recover", "--forget", "app").stdout
    assert "forgotten" in printed
    assert "castore-new" in printed
    assert app.state[1] == [(7,)]


def test_a_tree_of_an_interrupted_roll_back_is_not_recovered_by_itself(app: App):
    app.run("snapshot", "app")
    (app.top / "up" / "file").write_text("two\n")
    text = (app.top / "castore.toml").read_text()
    (app.top / "castore.toml").write_text(text.replace('start = ["sh", "-c", "', f'start = ["sh", "-c", "test -e {app.top}/kill && kill -9 $PPID; '))
    (app.top / "kill").touch()
    app.run("rollback", "app", "--to", "1", expect=-9)
    (app.top / "kill").unlink()
    refused = app.castore("recover", f"{app.top}/up", expect=1)
    assert "castore recover app" in refused.stderr
    (app.top / "castore.toml").write_text(text)
    assert "as it was before" in app.run("recover", "app").stdout
    assert app.state == ("two\n", [(1,)])


def test_a_missing_tree_is_recreated(app: App):
    app.run("snapshot", "app")
    (app.top / "up" / "file").unlink()
    (app.top / "up").rmdir()
    assert "1 step," in app.run("rollback", "app", "--to", "1", "--dry-run").stdout
    app.run("rollback", "app", "--to", "1")
    assert app.state == FIRST
    failed = app.run("guard", "app", "--", "sh", "-c", f"rm -r {app.top}/up; exit 1", expect=9)
    assert "reverted" in failed.stderr
    assert app.state == FIRST


def test_undo_is_of_the_last_roll_back_only(app: App):
    app.run("snapshot", "app")
    (app.top / "up" / "file").write_text("two\n")
    app.run("rollback", "app", "--to", "1")
    (app.top / "up" / "file").write_text("three\n")
    app.run("rollback", "app", "--to", "1", "--no-pre-rollback")
    refused = app.run("rollback", "--undo", "app", expect=6)
    assert "took no pre-rollback generation" in refused.stderr
    assert app.state == FIRST


def test_a_revision_given_by_hand_says_nothing_of_what_is_live(app: App):
    app.run("snapshot", "app")
    app.run("snapshot", "app", "--revision", "tag")
    assert "as before" in app.run("follow", "app").stdout


def test_hooks_that_fail_afterwards_are_reported_by_every_command(app: App):
    app.run("snapshot", "app")
    app.configure(after='["false"]')
    assert "false failed" in app.run("guard", "app", "--", "true").stderr
    text = (app.top / "castore.toml").read_text()
    (app.top / "castore.toml").write_text("\n".join(line for line in text.splitlines() if not line.startswith("stop")))
    (app.top / "up" / "file").write_text("two\n")
    assert "false failed" in app.run("rollback", "app", "--to", "1").stderr


def test_a_deployment_may_take_its_time_to_end(app: App):
    slow = f"sleep 1; trap 'sleep 7; echo ended > {app.top}/ended; exit 1' TERM; kill -TERM $PPID; while :; do sleep 0.1; done"
    app.run("guard", "app", "--", "sh", "-c", slow, expect=None)
    assert (app.top / "ended").read_text() == "ended\n"
    assert app.state == FIRST


def test_one_deployment_of_a_service_is_guarded_at_a_time(app: App):
    slow = f"touch {app.top}/begun; while [ ! -e {app.top}/go ]; do sleep 0.05; done; echo bad > {app.top}/up/file; exit 1"
    with app.start("guard", "app", "--", "sh", "-c", slow) as first:
        try:
            app.wait_for("begun")
            refused = app.run("guard", "app", "--", "touch", str(app.top / "deployed"), expect=8)
            assert "guarding a deployment of 'app'" in refused.stderr
            assert not (app.top / "deployed").exists()
            app.run("snapshot", "app")
        finally:
            (app.top / "go").touch()
        _, printed = first.communicate(timeout=60)
        assert first.returncode == 9, printed
    assert app.state == FIRST
    app.run("guard", "app", "app", "--", "true")


def slow_undo(app: App) -> None:
    """Its `undo` waits for the file `go`, and puts the link back then."""
    text = (app.top / "castore.toml").read_text()
    wait = f"touch {app.top}/undoing; while [ ! -e {app.top}/go ]; do sleep 0.05; done; "
    (app.top / "castore.toml").write_text(text.replace('undo = ["sh", "-c", "', f'undo = ["sh", "-c", "{wait}'))


def test_a_second_interrupt_does_not_stop_the_reversal_of_a_deployment(app: App):
    slow_undo(app)
    deploy = app.deploy.format(app.top) + f"; touch {app.top}/deployed; exec sleep 100"
    with app.start("guard", "app", "--", "sh", "-c", deploy) as guard:
        app.wait_for("deployed")
        os.killpg(guard.pid, signal.SIGINT)
        app.wait_for("undoing")
        os.killpg(guard.pid, signal.SIGINT)
        assert guard.stderr is not None
        while "interrupt it again to stop" not in guard.stderr.readline():
            pass
        (app.top / "go").touch()
        _, printed = guard.communicate(timeout=60)
        assert guard.returncode == 9, printed
    assert app.state == FIRST
    assert os.readlink(app.top / "current") == "one"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_reversal_of_a_deployment_reports_the_state_and_how_to_go_back(app: App, number: int):
    slow_undo(app)
    deploy = app.deploy.format(app.top) + f"; touch {app.top}/deployed; exec sleep 100"
    with app.start("guard", "app", "--", "sh", "-c", deploy) as guard:
        app.wait_for("deployed")
        os.killpg(guard.pid, signal.SIGINT)
        app.wait_for("undoing")
        assert guard.stderr is not None
        os.kill(guard.pid, number)
        while "interrupt it again to stop" not in guard.stderr.readline():
            pass
        os.kill(guard.pid, number)
        _, printed = guard.communicate(timeout=60)
        assert guard.returncode == 130, printed
    assert "was interrupted, or was not run" in printed
    assert "the state of 'app' is that of the deployment" in printed
    assert "castore rollback app --to 1" in printed
    assert app.events()[0] == ("guard", False)
    assert app.state == SECOND
    app.run("rollback", "app", "--to", "1")
    assert app.state == FIRST


def test_a_reversal_that_is_interrupted_once_goes_on_and_twice_is_recovered(app: App):
    app.run("snapshot", "app")
    (app.top / "up" / "file").write_text("two\n")
    text = (app.top / "castore.toml").read_text()
    wait = f"test ! -e {app.top}/slow || touch {app.top}/starting; while [ -e {app.top}/slow ]; do sleep 0.05; done; test ! -e {app.top}/bad; "
    (app.top / "castore.toml").write_text(text.replace('start = ["sh", "-c", "', f'start = ["sh", "-c", "{wait}'))
    for presses in (1, 2):
        (app.top / "slow").touch()
        with app.start("rollback", "app", "--to", "1") as rollback:
            for press in range(presses + 1):
                app.wait_for("starting")
                (app.top / "starting").unlink()
                os.killpg(rollback.pid, signal.SIGINT)
                if press and rollback.stderr is not None:
                    while press == 1 and "interrupt it again to stop" not in rollback.stderr.readline():
                        pass
                    (app.top / "starting").touch()
            if presses == 1:
                (app.top / "slow").unlink()
            _, printed = rollback.communicate(timeout=60)
            assert rollback.returncode == 130, printed
        (app.top / "slow").unlink(missing_ok=True)
        (app.top / "starting").unlink(missing_ok=True)
        if presses == 1:
            app.run("recover", "app", expect=6)
        else:
            assert "castore recover app" in printed
            app.run("recover", "app")
        assert app.state == ("two\n", [(1,)])


def test_what_a_killed_drill_left_is_removed_by_the_next(app: App):
    app.run("snapshot", "app")
    scratch = app.top / "scratch"
    scratch.mkdir()
    text = (app.top / "castore.toml").read_text()
    killing = text.replace('drill-check = ["sh", "-c", "', 'drill-check = ["sh", "-c", "kill -9 $PPID; ')
    (app.top / "castore.toml").write_text(killing)
    app.run("drill", "app", "--scratch", str(scratch), expect=-9)
    (left,) = os.listdir(scratch)
    (app.top / "castore.toml").write_text(text)
    # What is in use, and what is somebody else's, is left alone.
    for name in ("castore-drill-used____", "castore-drill-server__", "castore-drill-others__", "other"):
        (scratch / name).mkdir()
    os.chown(scratch / "castore-drill-others__", 4242, 4242)
    held = os.open(scratch / "castore-drill-used____", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with subprocess.Popen(["sleep", "100"], cwd=scratch / "castore-drill-server__") as server:
        try:
            printed = app.run("drill", "app", "--scratch", str(scratch))
        finally:
            server.kill()
    os.close(held)
    assert f"process {server.pid} works in it" in printed.stdout
    kinds = ("used____", "server__", "others__")
    assert left not in os.listdir(scratch)
    assert set(os.listdir(scratch)) == {*(f"castore-drill-{kind}" for kind in kinds), "other"}
    app.run("drill", "app", "--scratch", str(scratch))
    assert set(os.listdir(scratch)) == {"castore-drill-others__", "other"}


def hide_identity(app: App) -> Path:
    """Move the identity off the machine, and return its path there."""
    found = json.loads(app.castore("config", "check", "--config", str(app.top / "castore.toml"), "--json").stdout)
    assert found["checks"]
    identity = next(Path.home().joinpath(".config/castore").glob("*.identity"))
    return identity.rename(app.top / "usb.identity")


def test_guard_without_an_identity_refuses_before_anything_is_done(app: App):
    hide_identity(app)
    refused = app.run("guard", "app", "--", "touch", str(app.top / "deployed"), expect=7)
    assert "nothing was deployed" in refused.stderr
    assert "CASTORE_IDENTITY=FILE castore guard" in refused.stderr
    assert not (app.top / "deployed").exists()
    assert json.loads(app.run("log", "--json").stdout) == []


def test_guard_refuses_an_identity_to_which_the_store_is_not_encrypted(app: App, monkeypatch: pytest.MonkeyPatch):
    app.castore("key", "new", str(app.top / "other.identity"))
    monkeypatch.setenv("CASTORE_IDENTITY", str(app.top / "other.identity"))
    refused = app.run("guard", "app", "--", "touch", str(app.top / "deployed"), expect=7)
    assert "nothing was deployed" in refused.stderr
    assert "opens nothing in the store" in refused.stderr
    assert not (app.top / "deployed").exists()


def test_guard_reverts_with_an_identity_from_elsewhere(app: App, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CASTORE_IDENTITY", str(hide_identity(app)))
    app.run("guard", "app", "--", "sh", "-c", app.deploy.format(app.top) + "; exit 5", expect=9)
    assert app.state == FIRST


def test_a_revert_that_fails_is_not_called_restored_and_its_state_is_of_no_revision(app: App):
    """`stop` fails after the deployment, so the state cannot be reverted, although `undo` can."""
    text = (app.top / "castore.toml").read_text()
    stop = f"test ! -e {app.top}/stuck &&"
    text = text.replace(f'"echo stop >> {app.top}/hooks"', f'"{stop} echo stop >> {app.top}/hooks"')
    text = text.replace('health = ["test"', f'health = ["test", "!", "-e", "{app.top}/stuck", "-a"').replace("rm -f {app.top}/broken; ", "")
    (app.top / "castore.toml").write_text(text)
    deploy = app.deploy.format(app.top) + f"; touch {app.top}/stuck; exit 5"
    failed = app.run("guard", "app", "--", "sh", "-c", deploy, expect=1)
    assert app.state == SECOND
    assert "the state of generation 1 is not restored" in failed.stderr
    assert "generation 1 is restored" not in failed.stderr
    assert os.readlink(app.top / "current") == "one"
    (app.top / "stuck").unlink()
    assert json.loads(app.run("revision", "app", "--json").stdout)["state"] != "one"
    app.run("snapshot", "app")
    assert json.loads(app.run("show", "app@latest", "--json").stdout)["revision"] == "failed-deployment-after-1"
    app.run("rollback", "app", "--to", "=one")
    assert app.state == FIRST
    assert "as before" in app.run("follow", "app").stdout


def test_a_missing_identity_is_a_failed_check_only_if_follow_restores(app: App):
    hide_identity(app)
    checked = app.run("config", "check", expect=2)
    assert "identity: not available; restore, rollback and guard need it, and castore follow, for which app" in checked.stdout
    app.configure(follow="tell")
    checked = app.run("config", "check")
    assert "identity: not available; restore, rollback and guard need it (" in checked.stdout
