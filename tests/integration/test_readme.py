"""The README, line by line as a newcomer types it, with real servers.

Every block of the README is in BLOCKS: with the test that runs it, or the reason why it is not run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from castore.cli.main import cli
from castore.errors import EXIT_CODES
from castore.services.dates import parse_date
from tests.support.mariadb import MariaDBServer
from tests.support.postgres import Postgres

Run = Callable[..., subprocess.CompletedProcess]

README = Path(__file__).parents[2] / "README.md"
ROOT = README.parent
BLOCKS = {
    ("castore", 0): "test_the_first_lines_make_a_store_and_a_snapshot",
    ("castore", 1): "it installs packages from a registry: only its syntax is checked",
    ("A service", 0): "test_the_first_example_of_the_readme_works_line_by_line",
    ("castore.toml", 0): "test_the_castore_toml_of_the_readme_works_as_written",
    ("castore.toml", 1): "test_run_as.py runs it as root, with a server of its own: test_a_cluster_with_peer_authentication",
    ("Nightly dumps", 0): "test_the_castore_toml_of_the_readme_works_as_written",
    ("Keeping a store well", 0): "test_the_castore_toml_of_the_readme_works_as_written",
    ("A new machine", 0): "test_a_new_machine_comes_back_by_the_readme",
    ("When castore is gone", 0): "test_the_castore_toml_of_the_readme_works_as_written",
}
"""By heading, and place below it."""


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


def blocks() -> dict[tuple[str, int], str]:
    """Return the blocks of code of the README, by heading and place below it."""
    found: dict[tuple[str, int], str] = {}
    heading, inside, place = "", False, 0
    for line in README.read_text().splitlines(keepends=True):
        if line.startswith("```"):
            inside, place = not inside, place + inside
        elif inside:
            found[heading, place] = found.get((heading, place), "") + line
        elif line.startswith("#"):
            heading, place = line.lstrip("# ").rstrip(), 0
    return found


def block(heading: str, place: int = 0) -> str:
    """Return a block of code of the README."""
    return blocks()[heading, place]


class Machine:
    """A newcomer's machine: the paths of the README are below a scratch directory, `castore` is in PATH."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.programs = root / "bin"
        self.programs.mkdir()
        self.calls = root / "calls"
        self.calls.touch()
        self.program("castore", f'exec {sys.executable} -m castore "$@"')

    def program(self, name: str, text: str) -> None:
        """Make a program; without a text, one that only notes that it was run."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def notes(self, *names: str) -> None:
        """Make programs of the system that only note that they were run."""
        for name in names:
            self.program(name, f'echo "{name} $*" >> {self.calls}')

    def here(self, text: str) -> str:
        """Return a text with its absolute paths below the scratch directory."""
        return re.sub(r"(?<![\w.])/(?=(?:var|etc|run|usr/local|opt|root)\b)", f"{self.root}/", text)

    def run(self, text: str, *, expect: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run lines of shell that stop at the first that fails."""
        path = f"{self.programs}:{os.environ['PATH']}"
        done = subprocess.run(
            ["/bin/sh", "-ec", self.here(text)],
            capture_output=True, text=True, check=False, cwd=os.environ["HOME"], stdin=subprocess.DEVNULL,
            env={**os.environ, "PATH": path, **env},
        )
        assert done.returncode == expect, (text, done.stdout, done.stderr)
        return done


@pytest.fixture
def machine(home: Path, tmp_path: Path) -> Machine:
    (tmp_path / "var/backups").mkdir(parents=True)
    sites = tmp_path / "var/lib/drupal/sites"
    sites.mkdir(parents=True)
    (sites / "settings.php").write_text("first")
    return Machine(tmp_path)


def settings_php(machine: Machine) -> Path:
    return machine.root / "var/lib/drupal/sites/settings.php"


def test_every_block_of_the_readme_is_run_or_listed_with_a_reason() -> None:
    assert blocks().keys() == BLOCKS.keys()
    for value in BLOCKS.values():
        assert " " in value or callable(globals()[value])


def test_the_shell_blocks_have_no_mistake_of_syntax() -> None:
    for key, text in blocks().items():
        if "castore = " not in text and not key[0].startswith(("castore.toml", "Nightly")):
            subprocess.run(["/bin/sh", "-nc", text], check=True)


def test_the_first_lines_make_a_store_and_a_snapshot(home: Path, machine: Machine) -> None:
    first, second = block("castore").splitlines()
    assert second.split()[0] == "tools/test", "it runs these tests"
    (machine.root / "etc").mkdir()
    (machine.root / "etc/passwd").write_text("root")
    # tests/integration/test_tools_castore.py runs tools/castore itself.
    machine.run(first.replace("tools/castore", "castore"))
    assert (home / ".local/share/castore").is_dir()
    assert machine.run("castore cat etc@latest:etc/passwd").stdout == "root"


def test_the_first_example_of_the_readme_works_line_by_line(machine: Machine, database: Postgres) -> None:
    taken, way_back = block("A service").split("castore log drupal\n")
    machine.run(taken)
    settings_php(machine).write_text("second, longer")
    database.psql("ALTER TABLE node ADD body text; INSERT INTO node VALUES (2, 'second', 'x')", "drupal")
    machine.run(f"export CASTORE_STORE=/var/backups/castore\ncastore log drupal\n{way_back}")
    assert settings_php(machine).read_text() == "first"
    assert database.psql("SELECT * FROM node", "drupal") == "1|first"


def configure(machine: Machine, text: str) -> None:
    """Make the castore.toml of the README the machine's, with what it names."""
    recipient = machine.run("castore key new /root/castore.identity").stdout.split()[-1]
    for folder in ("etc/castore", "run", "usr/local/bin"):
        (machine.root / folder).mkdir(parents=True, exist_ok=True)
    machine.notes("drush", "systemctl", "curl", "guix", "../usr/local/bin/look-at-it")
    (machine.root / "etc/castore/db-password").write_text("secret\n")
    (machine.root / "run/current-system").symlink_to("r1")
    config = machine.here(text).replace('"castore-pub-..."', f'"{recipient}"')
    assert recipient in config
    (Path(os.environ["XDG_CONFIG_HOME"]) / "castore").mkdir(parents=True, exist_ok=True)
    (Path(os.environ["XDG_CONFIG_HOME"]) / "castore/castore.toml").write_text(config)


def test_the_castore_toml_of_the_readme_works_as_written(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with MariaDBServer() as server:
        (machine.root / "root").mkdir()
        monkeypatch.setenv("CASTORE_IDENTITY", f"{machine.root}/root/castore.identity")
        server.sql("CREATE USER backup@localhost IDENTIFIED BY 'secret'; GRANT ALL ON *.* TO backup@localhost WITH GRANT OPTION")
        server.sql("CREATE DATABASE drupal; CREATE TABLE drupal.node (id INT PRIMARY KEY, title TEXT); INSERT INTO drupal.node VALUES (1, 'first')")
        text = block("Nightly dumps") + block("castore.toml")
        configure(machine, text.replace('user = "backup"', f'user = "backup"\nsocket = "{server.socket}"'))
        machine.run("castore init\ncastore config check\ncastore config show\ncastore snapshot drupal")
        assert "drush state:set" in machine.calls.read_text()
        settings_php(machine).write_text("second, longer")
        server.sql("ALTER TABLE drupal.node ADD body TEXT; CREATE TABLE drupal.other (x INT)")
        link = machine.root / "run/current-system"
        link.unlink()
        link.symlink_to("r2")
        machine.run("castore snapshot drupal")
        machine.run("castore rollback drupal --to r1 --dry-run\ncastore rollback drupal --to r1")
        assert settings_php(machine).read_text() == "first"
        assert server.sql("SHOW TABLES", "drupal") == "node"
        assert [line.split()[0] for line in machine.calls.read_text().splitlines()[-3:]] == ["systemctl", "systemctl", "curl"]
        machine.run("castore rollback --undo drupal")
        assert server.sql("SHOW TABLES", "drupal") == "node\nother"
        link.unlink()
        link.symlink_to("r1")
        machine.run("castore follow drupal")
        assert settings_php(machine).read_text() == "first"
        machine.run("castore guard drupal -- true")
        machine.run("castore guard drupal -- false", expect=9)
        assert "guix system roll-back" in machine.calls.read_text()
        machine.run("castore drill drupal")
        assert "look-at-it" in machine.calls.read_text()
        machine.run(block("Keeping a store well"))
        store, identity = machine.root / "var/backups/castore", machine.root / "root/castore.identity"
        rescue = block("When castore is gone").replace("python3 tools", f"{sys.executable} {ROOT}/tools")
        words = {"STORE": str(store), "FILE": str(identity), "SERVICE": "drupal", "NUMBER": "1", "DEST": str(machine.root / "rescued")}
        machine.run(re.sub("|".join(words), lambda found: words[found[0]], rescue))
        assert (machine.root / "rescued/sites/settings.php").read_text() == "first"


POSTGRESQL = """[service.drupal.parts.db]
engine = "postgresql"
database = "drupal"
host = "{}"
user = "postgres"
"""


def test_a_new_machine_comes_back_by_the_readme(
    home: Path, machine: Machine, database: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same castore.toml, but for the engine: the README says to prefer this one."""
    part = POSTGRESQL.format(database.socket_folder)
    text, parts = re.subn(r"\[service\.drupal\.parts\.db\].*?(?=\n\[)", part, block("castore.toml"), flags=re.DOTALL)
    assert parts == 1
    (machine.root / "root").mkdir()
    database.psql("CREATE ROLE drupal LOGIN")
    database.psql("ALTER TABLE node OWNER TO drupal", "drupal")
    configure(machine, text)
    machine.run("castore init\ncastore snapshot drupal")
    database.dropdb("drupal")
    database.psql("DROP ROLE drupal")
    for path in (machine.root / "var/lib", home / ".local/state", home / ".cache"):
        subprocess.run(["rm", "-r", str(path)], check=True)
    for writer in (home / ".config/castore").glob("*.writer"):
        writer.unlink()
    machine.run(block("A new machine"))
    assert settings_php(machine).read_text() == "first"
    assert database.psql("SELECT * FROM node", "drupal") == "1|first"
    assert database.psql("SELECT tableowner FROM pg_tables WHERE tablename = 'node'", "drupal") == "drupal"
    identity = f"{machine.root}/root/castore.identity"
    machine.run("castore snapshot drupal\ncastore drill drupal", CASTORE_IDENTITY=identity)
    database.psql("DROP OWNED BY drupal", "drupal")
    database.psql("DROP ROLE drupal")


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that words after `castore` begin with, and the rest of them."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words:
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, f"the README names 'castore {words[0]}', which is no command"
        command, words = found, words[1:]
    return command, words


def options_of(command: click.Command) -> set[str]:
    return {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}


def test_the_commands_and_options_that_the_text_names_exist() -> None:
    text = re.sub(r"^```\w*\n.*?^```", "", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    seen = 0
    for code in re.findall(r"`castore ([^`]+)`", text.replace("\n", " ")):
        words = code.replace("\\|", "|").replace("[", " ").replace("]", " ").split()
        if not re.fullmatch("[a-z]+", words[0].rstrip(",")) or words[0] in {"serve"}:
            continue
        command, rest = command_of(words[:1])
        if isinstance(command, click.Group):
            for name in [one.rstrip(",") for one in words[1:]]:
                if re.fullmatch("[a-z][a-z-]+", name):
                    assert command.get_command(click.Context(command), name), code
                    seen += 1
                else:
                    break
            continue
        own = words[1 : words.index("--")] if "--" in words else words[1:]
        for word in own:
            if re.match(r"--?[a-z]", word):
                assert word.split("=")[0] in options_of(command), f"castore {code}: there is no {word}"
        seen += 1
    assert seen > 40


def test_the_table_of_commands_is_complete_and_its_options_exist() -> None:
    table = README.read_text().partition("\n## Commands\n")[2].partition("\n\n`SEL`")[0]
    named: set[str] = set()
    for row in table.strip().splitlines()[2:]:
        cells = re.split(r"(?<!\\)\|", row)[1:3]
        commands = [code.split()[0] for code in re.findall("`(?:castore )?([a-z]+[^`]*)`", cells[0])]
        named |= set(commands)
        known = {one for name in commands for one in options_of(cli.get_command(click.Context(cli), name))}  # type: ignore[arg-type]
        for name in commands:
            group = cli.get_command(click.Context(cli), name)
            if isinstance(group, click.Group):
                known |= {one for inner in group.commands.values() for one in options_of(inner)}
        for option in re.findall(r"`(--[a-z][a-z-]*)", cells[1]):
            assert option in known, f"{row}: there is no {option}"
    assert named | {"help"} == set(cli.list_commands(click.Context(cli)))


def test_the_exit_codes_and_dates_of_the_text_are_right() -> None:
    text = README.read_text()
    listed = text.partition("\n## Exit codes\n")[2].partition("\nUnknown codes")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", listed, re.MULTILINE)} == set(EXIT_CODES)
    dates = re.search(r"newest at or before it: (.*?)\)", text, re.DOTALL)
    assert dates is not None
    examples = re.findall("`([^`]+)`", dates[1])
    assert len(examples) == 3
    assert all(parse_date(one) is not None for one in examples)


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
