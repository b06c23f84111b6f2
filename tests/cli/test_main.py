"""The `castore` command: what it says, where, and with which exit code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from castore import errors
from castore.cli import topics
from castore.version import __version__


def castore(*arguments, **options):
    environment = {**os.environ, **options.pop("environment", {})}
    return subprocess.run(
        [sys.executable, "-m", "castore", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        **options,
    )


def test_version_and_help_import_no_command():
    script = (
        "import sys; sys.argv[1:] = [sys.argv[1]]\n"
        "from castore.cli import main\n"
        "try: main.main()\n"
        "except SystemExit: print(sorted(name for name in sys.modules if name.split('.')[0] in "
        "{'castore', 'msgspec', 'blake3', 'nacl', 'lmdb', 'rich', 'zstandard'}))"
    )
    for option in ["--version", "--help"]:
        run = subprocess.run([sys.executable, "-c", script, option], capture_output=True, check=True)
        loaded = run.stdout.decode().splitlines()[-1]
        modules = ["cli", "cli.main", "cli.messages", "process", "process.own_process", "version"]
        assert loaded == str(["castore", *(f"castore.{name}" for name in modules)])


def test_version_takes_little_processor_time():
    def spent(*arguments):
        before = os.times()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        return after.children_user - before.children_user

    assert min(spent("-m", "castore", "--version") for _ in range(5)) < 0.12


def test_the_version_is_shown():
    run = castore("--version")
    assert (run.returncode, run.stdout) == (0, f"castore {__version__}\n")


def test_help_explains_commands_and_exit_codes():
    assert castore("help").stdout.startswith(castore("--help").stdout)
    assert castore("help", "key", "add").stdout == castore("key", "add", "--help").stdout
    codes = castore("help", "exit-codes").stdout
    for code, meaning in errors.EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in codes
    for topic in (["nothing"], ["log", "nothing"]):
        run = castore("help", *topic)
        assert run.returncode == 2
        assert run.stderr.startswith(f"castore: there is no command or topic '{' '.join(topic)}'; topics are ")


def test_help_lists_every_page_and_shows_it():
    listed = castore("help").stdout.partition("Topics (castore help TOPIC):\n")[2]
    pages = [*Path(topics.__file__).parents[1].glob("docs/**/*.md")]
    assert len(pages) > 3
    for page in pages:
        assert re.search(rf"^  {page.stem}  +\S", listed, re.MULTILINE), page
        text = topics.read_topic(page.stem)
        assert text.startswith("# "), page
        assert "<!--" not in text


def test_a_command_and_a_page_of_one_name_are_both_shown():
    shown = castore("help", "rollback").stdout
    assert shown.startswith(castore("rollback", "--help").stdout)
    assert "\n# " in shown


def test_a_page_is_rendered_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    topics.show("# Title\n\nSee [keys](keys.md) and `x`.\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n")
    shown = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert "See keys (castore help keys) and x." in shown
    assert "| --- |" not in shown
    assert max(map(len, shown.splitlines())) <= 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "castore: No such command 'nothing' (see 'castore --help')\n"),
        (["log", "--foo"], "castore: No such option"),
        (["snapshot"], "castore: name a SERVICE, or --all for every service of castore.toml (see 'castore snapshot --help')\n"),
    ],
)
def test_wrong_usage_is_one_line_and_a_hint(arguments, message):
    run = castore(*arguments)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(message)
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["key"]])
def test_a_group_alone_says_how_it_is_used(arguments):
    run = castore(*arguments)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("Usage: castore")


def test_output_that_nobody_wants_is_no_error():
    script = f"{sys.executable} -m castore help exit-codes | true; echo ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert run.stdout in {b"0\n", b"1\n"}
    assert run.stderr == b""


def test_output_that_cannot_be_written_is_an_error():
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "castore", "help", "exit-codes"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (run.returncode, run.stderr) == (1, b"castore: No space left on device\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_interrupt(number):
    script = (
        "import click, time\n"
        "from castore.cli import main\n"
        "@main.cli.command()\n"
        "def wait():\n"
        "    click.echo('ready')\n"
        "    time.sleep(60)\n"
        "main.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.1)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=20)
    assert (process.returncode, complaint.strip()) == (130, b"castore: interrupted")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_standard_files_that_are_closed_are_no_reason_to_fail(closed, tmp_path):
    """Nor do files of the store get their numbers."""
    redirections = " ".join(f"{number}>&-" for number in closed)
    home = {"HOME": str(tmp_path), **{f"XDG_{kind}_HOME": str(tmp_path / kind) for kind in ("STATE", "CACHE", "CONFIG", "DATA")}}
    script = f'"$0" -m castore init "$1" {redirections}; "$0" -m castore verify --store "$1" {redirections}'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, tmp_path / "store"],
        capture_output=True, text=True, check=False, env={**os.environ, **home},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupt_in_a_destructor_is_not_lost():
    script = (
        "import click, os, signal, time\n"
        "from castore.cli import main\n"
        "class Destroyed:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        for _ in range(1000): pass\n"
        "@main.cli.command()\n"
        "def wait():\n"
        "    one = Destroyed()\n"
        "    del one\n"
        "    time.sleep(30)\n"
        "main.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "wait"], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stderr.strip()) == (130, "castore: interrupted")
