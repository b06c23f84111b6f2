"""The README, and the stories of the documentation that need a server, line by line as a newcomer types them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import forked_cli
from tests.support.documents import README, Machine, block, blocks
from tests.support.mariadb import MariaDBServer
from tests.support.postgres import Postgres

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def database(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[Postgres]:
    """A database named drupal that the programs of the example find."""
    monkeypatch.setenv("PGHOST", postgres.socket_folder)
    monkeypatch.setenv("PGUSER", "postgres")
    postgres.createdb("drupal")
    postgres.psql("CREATE TABLE node (id int PRIMARY KEY, title text); INSERT INTO node VALUES (1, 'first')", "drupal")
    yield postgres
    postgres.dropdb("drupal")


@pytest.fixture
def machine(home: Path, tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    sites = tmp_path / "var/lib/drupal/sites"
    sites.mkdir(parents=True)
    (sites / "settings.php").write_text("first")
    with forked_cli.program() as line:
        made.castore_is(line)
        yield made


def settings_php(machine: Machine) -> Path:
    return machine.root / "var/lib/drupal/sites/settings.php"


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_the_first_lines_make_a_store_and_a_snapshot(home: Path, machine: Machine) -> None:
    first, second = block("README", "castore").splitlines()
    assert second.split()[0] == "tools/test", "it runs these tests"
    (machine.root / "etc/passwd").write_text("root")
    # tests/cli/test_tools_castore.py runs tools/castore itself.
    machine.run(first.replace("tools/castore", "castore"))
    assert (home / ".local/share/castore").is_dir()
    assert machine.run("castore cat etc@latest:etc/passwd").stdout == "root"


def test_the_quick_start_prints_what_it_says(machine: Machine) -> None:
    wiki = machine.root / "srv/wiki"
    wiki.mkdir()
    (wiki / "settings.conf").write_text("mode = 1\n")
    (wiki / "photo.jpg").write_bytes(os.urandom(300 << 10))
    talks = [one for one in blocks(README) if one.language == "console"]
    assert [one.heading for one in talks] == ["Quick start", "Quick start"]
    for talk in talks:
        machine.converse(talk.text)


def test_a_service_without_castore_toml_works_line_by_line(machine: Machine, database: Postgres) -> None:
    taken, way_back = block("howto", "Roll back without castore.toml").split("castore log drupal\n")
    machine.run(taken)
    settings_php(machine).write_text("second, longer")
    database.psql("ALTER TABLE node ADD body text; INSERT INTO node VALUES (2, 'second', 'x')", "drupal")
    machine.run(f"castore log drupal\n{way_back}")
    assert settings_php(machine).read_text() == "first"
    assert database.psql("SELECT * FROM node", "drupal") == "1|first"


def configure(machine: Machine, text: str) -> None:
    """Make a castore.toml of the documentation the machine's, with what it names; the identity is in /root."""
    machine.notes("drush", "systemctl", "curl", "guix", "check-drupal")
    (machine.root / "etc/castore/db-password").write_text("secret\n")
    (machine.root / "run").mkdir(exist_ok=True)
    (machine.root / "run/current-system").symlink_to("r1")
    (machine.root / "etc/castore/castore.toml").write_text(machine.here(text))


def switch_to(machine: Machine, revision: str) -> None:
    link = machine.root / "run/current-system"
    link.unlink()
    link.symlink_to(revision)


def test_the_castore_toml_of_the_documentation_works_as_written(machine: Machine) -> None:
    with MariaDBServer() as server:
        server.sql("CREATE USER backup@localhost IDENTIFIED BY 'secret'; GRANT ALL ON *.* TO backup@localhost WITH GRANT OPTION")
        server.sql("CREATE DATABASE drupal; CREATE TABLE drupal.node (id INT PRIMARY KEY, title TEXT); INSERT INTO drupal.node VALUES (1, 'first')")
        machine.replacements['user = "backup"'] = f'user = "backup"\nsocket = "{server.socket}"'
        configure(machine, block("configuration", "castore.toml", language="toml"))
        machine.run("castore init\ncastore config check\ncastore config show\ncastore snapshot drupal")
        assert "drush state:set" in machine.calls.read_text()
        settings_php(machine).write_text("second, longer")
        server.sql("ALTER TABLE drupal.node ADD body TEXT; CREATE TABLE drupal.other (x INT)")
        switch_to(machine, "r2")
        machine.run("castore snapshot drupal")
        machine.run("castore rollback drupal --to r1 --dry-run\ncastore rollback drupal --to r1")
        assert settings_php(machine).read_text() == "first"
        assert server.sql("SHOW TABLES", "drupal") == "node"
        assert [line.split()[0] for line in machine.calls.read_text().splitlines()[-3:]] == ["systemctl", "systemctl", "curl"]
        machine.run("castore rollback --undo drupal")
        assert server.sql("SHOW TABLES", "drupal") == "node\nother"
        switch_to(machine, "r1")
        machine.run("castore follow drupal")
        assert settings_php(machine).read_text() == "first"
        machine.run("castore guard drupal -- true")
        machine.run("castore guard drupal -- false", expect=9)
        assert "guix system roll-back" in machine.calls.read_text()
        machine.run("castore drill drupal")
        assert "check-drupal" in machine.calls.read_text()


def use_postgres(machine: Machine, server: Postgres) -> None:
    machine.replacements['engine = "postgresql"'] = (
        f'engine = "postgresql"\nhost = "{server.socket_folder}"\nuser = "postgres"'
    )


def test_the_readme_guards_a_deployment(machine: Machine, database: Postgres) -> None:
    use_postgres(machine, database)
    configure(machine, block("README", "castore.toml and guard", language="toml"))
    machine.run("castore init\ncastore config check")
    machine.run(block("README", "castore.toml and guard", language="sh"))
    calls = machine.calls.read_text()
    assert "guix system reconfigure config.scm\ncurl -fsS http://localhost/\n" in calls
    assert "guix system roll-back" not in calls
    database.psql("DELETE FROM node", "drupal")
    settings_php(machine).write_text("second, longer")
    machine.run("castore snapshot drupal")
    machine.program("guix", f"echo guix $* >>{machine.calls}; rm {machine.root}/var/lib/drupal/sites/*; [ $2 = roll-back ]")
    machine.run("castore guard drupal -- guix system reconfigure config.scm", expect=9)
    assert machine.calls.read_text().count("guix system roll-back") == 1
    assert settings_php(machine).read_text() == "second, longer"


def test_a_new_machine_comes_back_by_the_documentation(home: Path, machine: Machine, database: Postgres) -> None:
    use_postgres(machine, database)
    database.psql("CREATE ROLE drupal LOGIN")
    database.psql("ALTER TABLE node OWNER TO drupal", "drupal")
    configure(machine, block("README", "castore.toml and guard", language="toml"))
    machine.run("castore init --identity /root/castore.identity\ncastore snapshot drupal")
    database.dropdb("drupal")
    database.psql("DROP ROLE drupal")
    for path in (machine.root / "var/lib/drupal", home / ".local/state", home / ".cache"):
        subprocess.run(["rm", "-r", str(path)], check=True)
    machine.run(block("howto", "A new machine"))
    assert settings_php(machine).read_text() == "first"
    assert database.psql("SELECT * FROM node", "drupal") == "1|first"
    assert database.psql("SELECT tableowner FROM pg_tables WHERE tablename = 'node'", "drupal") == "drupal"
    machine.run("castore snapshot drupal\ncastore drill drupal")
    database.psql("DROP OWNED BY drupal", "drupal")
    database.psql("DROP ROLE drupal")


def test_a_plain_dump_is_refused_where_psql_would_meet_its_tables(
    home: Path, castore: Run, database: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASTORE_STORE", str(tmp_path / "store"))
    castore("init", tmp_path / "store")
    taken = castore("snapshot", "drupal", "--revision", "r1", "--exec", "db=pg_dump --format=plain drupal")
    assert "no program is known that restores the part 'db'" in taken.stderr
    castore("rollback", "drupal", "--to", "r1", "--dry-run", expect=2)
    back = ("rollback", "drupal", "--to", "r1", "--restore", "db=psql --quiet --set ON_ERROR_STOP=1 drupal")
    for dry in (["--dry-run"], []):
        refused = castore(*back, *dry, expect=2)
        assert "without --clean" in refused.stderr
    database.dropdb("drupal")
    database.createdb("drupal")
    castore(*back)
    assert database.psql("SELECT * FROM node", "drupal") == "1|first"


def test_a_failed_restore_leaves_nobody_stuck(home: Path, castore: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASTORE_STORE", str(tmp_path / "store"))
    castore("init", tmp_path / "store")
    state = tmp_path / "state"
    state.write_text("first")
    take = ("snapshot", "s", "--exec", f"d=cat {state}", "--revision")
    castore(*take, "r1")
    state.write_text("second")
    failed = castore("rollback", "s", "--to", "r1", "--restore", "d=false", expect=11)
    assert "castore recover --forget s" in failed.stderr
    assert "--to 2" in failed.stderr
    assert "castore recover --forget s" in castore("recover", "s", expect=11).stderr
    assert "castore recover --forget s" in castore("rollback", "s", "--to", "r1", "--restore", f"d=tee {state}", expect=11).stderr

    state.write_text("doubtful")
    warned = castore(*take, "r2", expect=3)
    assert "castore recover --forget s" in warned.stderr
    log = json.loads(castore("log", "s", "--json").stdout)
    assert [one["interrupted"] for one in log] == [True, False, False]
    assert castore("cat", "s@latest:d").stdout == "first"
    castore("cat", "s@r2:d", expect=6)
    assert castore("cat", "s@3:d").stdout == "doubtful"

    castore("recover", "--forget", "s")
    castore("rollback", "s", "--to", "2", "--restore", f"d=tee {state}")
    assert state.read_text() == "second"
    castore(*take, "r2")
    assert castore("cat", "s@latest:d").stdout == "second"
