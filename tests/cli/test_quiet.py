"""--quiet: data, warnings and errors, and nothing else."""

from __future__ import annotations

import json

import pytest

from castore.cli import main as entry
from tests.cli.test_json import Machine, commands


@pytest.fixture
def machine(tmp_path):
    (tmp_path / "m").mkdir()
    made = Machine(tmp_path / "m")
    config = made.folder / "castore.toml"
    config.write_text(config.read_text().replace('before = ["echo", "printed by a hook"]\n', ""))
    made.run("init")
    made.run("snapshot", "s")
    return made


def test_every_command_has_it():
    found = dict(commands())
    for path, command in found.items():
        assert any("--quiet" in parameter.opts for parameter in command.params), path


def test_commands_that_work_print_nothing(machine):
    m = machine.folder
    before = False

    def quiet(*words, **options):
        nonlocal before
        before = not before  # each second time, the option follows the command's name
        at = 0 if before else words.index("--") if "--" in words else len(words)
        at = 1 if words[0] == "guard" and not before else at
        done = machine.run(*words[:at], "--quiet", *words[at:], **options)
        assert (done.stdout, done.stderr) == ("", ""), words
        return done

    quiet("snapshot", "s")
    (m / "tree" / "a").write_text("changed")
    (m / "file").write_text("g")
    quiet("snapshot", "--all")
    quiet("restore", "s@1", m / "out")
    quiet("restore", "s@1:t", m / "tree", "--in-place", "--yes")
    quiet("rollback", "s", "--to", "1")
    quiet("recover")
    quiet("guard", "s", "--", "true")
    quiet("follow", "s")
    quiet("drill", "s")
    quiet("pin", "s@1")
    quiet("unpin", "s@1")
    quiet("forget", "s@2", "--yes")
    quiet("prune")
    quiet("compact")
    quiet("config", "check")
    quiet("verify", "--read-data")
    quiet("repair", "--yes")
    quiet("reindex")
    quiet("key", "adopt")


def test_data_and_errors_are_printed(machine):
    assert machine.run("log", "--quiet").stdout == machine.run("log").stdout
    assert machine.run("--quiet", "cat", "s@1:f").stdout == "f" * 1000
    assert json.loads(machine.run("--quiet", "snapshot", "s", "--json").stdout)["number"] == 2
    done = machine.run("-q", "rollback", "s", "--to", "99", code=6)
    assert done.stdout == ""
    assert "99" in done.stderr
    config = machine.folder / "castore.toml"
    config.write_text(config.read_text().replace("keep =", 'after = ["false"]\nkeep ='))
    done = machine.run("snapshot", "s", "--quiet", code=3)
    assert done.stdout == ""
    assert "is committed, but" in done.stderr


def test_it_is_no_option_of_the_deployment(machine):
    done = machine.run("guard", "s", "--", "echo", "--quiet")
    assert "--quiet" in done.stdout + done.stderr
    assert "kept s@2" in done.stderr


def test_a_state_that_does_not_follow_is_reported(machine):
    config = machine.folder / "castore.toml"
    config.write_text(config.read_text().replace('follow = "restore"\n', ""))
    (machine.folder / "rev").write_text("r2\n")
    (machine.folder / "file").write_text("g")
    machine.run("guard", "-q", "s", "--", "true")
    machine.run("snapshot", "-q", "s")
    (machine.folder / "rev").write_text("r1\n")
    done = machine.run("follow", "--quiet", "s")
    assert done.stdout == ""
    assert "castore rollback s --to" in done.stderr


def test_help_names_it():
    assert "--quiet" in entry.cli.get_help(entry.cli.make_context("castore", [], resilient_parsing=True))
