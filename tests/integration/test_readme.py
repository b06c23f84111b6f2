"""The README's example, as a newcomer types it, with a real PostgreSQL."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.postgres import Postgres

Run = Callable[..., subprocess.CompletedProcess]

README = Path(__file__).parents[2] / "README.md"


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


def example(heading: str) -> str:
    """Return the first shell block after a heading of the README."""
    text = README.read_text().partition(f"\n## {heading}\n")[2]
    found = re.search("```sh\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def script(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run a block, with the system's paths below a scratch directory and `castore` in PATH."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    castore = programs / "castore"
    castore.write_text(f'#!/bin/sh\nexec {sys.executable} -m castore "$@"\n')
    castore.chmod(0o755)
    text = text.replace("/var/", f"{tmp_path}/var/")
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    return subprocess.run(["/bin/sh", "-ec", text], capture_output=True, text=True, env=env, check=False)


def test_the_first_example_of_the_readme_works_line_by_line(
    home: Path, database: Postgres, tmp_path: Path
) -> None:
    sites = tmp_path / "var/lib/drupal/sites"
    sites.mkdir(parents=True)
    (tmp_path / "var/backups").mkdir()
    (sites / "settings.php").write_text("first")
    taken, way_back = example("A service").split("castore log drupal\n")
    done = script(tmp_path, taken)
    assert done.returncode == 0, done.stderr
    (sites / "settings.php").write_text("second, longer")
    database.psql("ALTER TABLE node ADD body text; INSERT INTO node VALUES (2, 'second', 'x')", "drupal")
    done = script(tmp_path, f"export CASTORE_STORE=/var/backups/castore\ncastore log drupal\n{way_back}")
    assert done.returncode == 0, done.stderr
    assert (sites / "settings.php").read_text() == "first"
    assert database.psql("SELECT * FROM node", "drupal") == "1|first"


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
