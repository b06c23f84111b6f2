"""The documentation, as a reader uses it: every block of commands is run, page by page."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from castore.services.config import load
from tests.support import forked_cli
from tests.support.documents import PAGES, Machine, blocks, name_of
from tests.support.postgres import Postgres, missing

MAY_NOT_RUN = 9
"""How many blocks of commands are not run."""


@pytest.fixture
def machine(home: Path, tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    with forked_cli.program() as line:
        made.castore_is(line)
        yield made


@pytest.fixture(scope="module")
def peer() -> Iterator[Postgres]:
    """A server that lets only its own user in."""
    with Postgres() as server:
        server.require_peer()
        yield server


def use_postgres(machine: Machine, server: Postgres) -> None:
    machine.replacements['engine = "postgresql"'] = f'engine = "postgresql"\nhost = "{server.socket_folder}"'
    machine.replacements["runuser -u postgres -- psql"] = f"runuser -u postgres -- psql --host {server.socket_folder}"


def play(machine: Machine, topic: str) -> None:
    """Run the blocks of a page, in order."""
    for block in blocks(next(page for page in PAGES if name_of(page) == topic)):
        if block.path:
            path = Path(machine.here(block.path))
            path.write_text(machine.here(block.text))
        if block.runs:
            (machine.converse if block.language == "console" else machine.run)(block.text)



def test_blocks_that_are_not_run_are_few_and_say_why() -> None:
    found = [block for page in PAGES for block in blocks(page) if block.reason and block.language in {"sh", "console"}]
    assert len(found) <= MAY_NOT_RUN, [(block.page, block.reason) for block in found]
    assert all(len(block.reason.split()) > 1 for block in found)


def test_the_tests_that_run_blocks_exist() -> None:
    text = Path(__file__).with_name("test_readme.py").read_text()
    for page in PAGES:
        for block in blocks(page):
            assert not block.test or f"def {block.test}(" in text, block


def test_blocks_are_of_known_languages_and_written_to_known_places() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block.language in {"sh", "console", "toml", "ini", "text", "test", "sql", "python", "scheme", "nix", "dockerfile", "xml", "c"}, block
            assert not block.path or block.path.startswith("/etc/castore"), block


def test_shell_blocks_have_no_mistake_of_syntax() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language in {"sh", "test"}:
                subprocess.run(["/bin/sh", "-nc", block.text], check=True)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit_files(machine: Machine) -> None:
    units = [block.text for page in PAGES for block in blocks(page) if block.language == "ini"]
    assert len(units) > 1
    for text in units:
        name = "castore.timer" if "[Timer]" in text else "castore.service"
        (machine.root / name).write_text(machine.here(text))
    paths = [str(machine.root / name) for name in ("castore.timer", "castore.service")]
    checked = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True, check=False)
    # Of units of the machine that are not castore's it reports more.
    assert checked.returncode == 0, checked.stderr
    assert "castore" not in checked.stderr


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_castore_toml_is_accepted(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.language == "toml":
            path = tmp_path / "castore.toml"
            path.write_text(block.text.replace('"castore-pub-..."', ""))
            load(str(path), home="/root", programs=False)


PLAYED = [name_of(page) for page in PAGES if any(block.runs for block in blocks(page))]


@pytest.mark.parametrize("topic", [topic for topic in PLAYED if topic not in {"tutorial", "howto", "README"}])
def test_the_commands_of_a_page_work(topic: str, machine: Machine) -> None:
    play(machine, topic)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may run programs as another user")
def test_the_tutorial_works(machine: Machine, peer: Postgres) -> None:
    for program in ("sqlite3", "runuser"):
        if shutil.which(program) is None:
            missing(f"there is no program {program}")
    use_postgres(machine, peer)
    play(machine, "tutorial")


def test_the_tasks_of_the_howto_work(machine: Machine) -> None:
    play(machine, "howto")
