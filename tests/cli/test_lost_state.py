"""A machine that lost its state, its key or its identity: the command that a message names works there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess]

COMMANDS = {
    "log": ("log",),
    "snapshot": ("snapshot", "web", "--tree", "t=live"),
    "forget": ("forget", "--yes", "web@1"),
    "compact": ("compact",),
    "rotate-writer": ("key", "rotate-writer"),
}


@pytest.fixture
def machine(castore: Run, home: Path, tmp_path: Path) -> Run:
    """A machine with a store that holds two generations, whose identity is not on the machine."""
    (home / "live").mkdir()
    (home / "live/f").write_text("1")
    store = tmp_path / "the store"
    castore("init", store, "--identity", tmp_path / "identity")

    def run(*words: object, identity: bool = False, expect: int | None = 0) -> subprocess.CompletedProcess:
        given = {"CASTORE_STORE": str(store), "CASTORE_IDENTITY": str(tmp_path / "identity") if identity else None}
        return castore(*words, env=given, expect=expect)

    for revision in ("r1", "r2"):
        run("snapshot", "web", "--tree", "t=live", "--revision", revision)
    return run


def lose_state(home: Path) -> None:
    shutil.rmtree(home / ".local/state")
    shutil.rmtree(home / ".cache")


def spoil_key(home: Path) -> None:
    next((home / ".local/state/castore").glob("*/writer.key")).write_text("castore-writer-\n")


LOSSES = {"state": lose_state, "key": spoil_key}
CASES = [("state", name) for name in COMMANDS] + [("key", "snapshot")]


def advised(message: str) -> list[list[str]]:
    """Return the commands in quotes, without the name of the program."""
    found = re.findall(r"'(castore key adopt (?:'[^']*'|[^'])*?)'(?= if)", message)
    assert found, message
    return [shlex.split(command.replace("NAME", "other"))[1:] for command in found]


@pytest.mark.parametrize(("loss", "name"), CASES)
def test_the_command_that_is_advised_after_a_loss_works(machine: Run, home: Path, tmp_path: Path, loss: str, name: str) -> None:
    LOSSES[loss](home)
    words = COMMANDS[name]
    refused = machine(*words, expect=None)
    assert refused.returncode in {2, 7}, refused.stderr
    first, second = advised(refused.stderr)
    assert "--replace" in first
    assert second[-2:] == ["--host", "other"]
    for folder in ("home", "the store"):
        shutil.copytree(tmp_path / folder, tmp_path / f"{folder} 2", symlinks=True)
    # What a machine may remove that is new to the store is another question.
    for command, then in ((first, words), (second, ("log", "--host", "*"))):
        machine(*command, identity=True)
        machine(*then, identity=words[0] == "key")
        for folder in ("home", "the store"):
            shutil.rmtree(tmp_path / folder)
            shutil.copytree(tmp_path / f"{folder} 2", tmp_path / folder, symlinks=True)


def test_adoption_does_not_advise_itself(machine: Run, home: Path) -> None:
    lose_state(home)
    refused = machine("key", "adopt", "--replace", expect=7).stderr
    assert "key adopt" not in refused
    assert "--identity FILE" in refused


def test_reading_after_a_loss_needs_the_identity_only(machine: Run, home: Path) -> None:
    lose_state(home)
    message = machine("log", expect=7).stderr
    assert "--identity FILE" in message
    assert "web" in machine("log", identity=True).stdout
    assert "1" in machine("cat", "web@2:t/f", identity=True).stdout


def test_a_replaced_machine_is_advised_how_to_return(machine: Run, home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "kept", symlinks=True)
    lose_state(home)
    machine("key", "adopt", "--replace", identity=True)
    shutil.rmtree(home)
    os.rename(tmp_path / "kept", home)
    refused = machine("snapshot", "web", "--tree", "t=live", expect=7).stderr
    command = advised(refused)[0]
    machine(*command, identity=True)
    machine("snapshot", "web", "--tree", "t=live")


def test_a_lost_cache_needs_no_advice(machine: Run, home: Path) -> None:
    for words in COMMANDS.values():
        shutil.rmtree(home / ".cache")
        machine(*words, identity=words[0] == "key")


def test_a_machine_without_a_role_may_remove_after_the_advised_adoption(machine: Run, home: Path, tmp_path: Path) -> None:
    lose_state(home)
    machine("key", "adopt", "--host", "second", identity=True)
    refused = machine("compact", expect=2).stderr
    found = re.search(r"'castore (key adopt --maintain)'", refused)
    assert found, refused
    machine(*found[1].split(), identity=True)
    machine("compact")
