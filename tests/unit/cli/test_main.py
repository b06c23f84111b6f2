"""The entry of the command line, called in this process: each error has its message and its exit code."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest

from castore import errors
from castore.cli import main as entry
from tests.support.checkout import import_all_modules


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


def test_the_list_of_commands_is_that_of_the_files():
    context = click.Context(entry.cli, info_name="castore")
    for name, line in entry._COMMANDS.items():
        command = entry.cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert len(line) <= 60
        assert name in entry.cli.get_help(context)


def walk(command, context):
    yield context, command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            yield from walk(inner, click.Context(inner, parent=context, info_name=name))


def test_every_command_explains_itself_with_an_example():
    for context, command in walk(entry.cli, click.Context(entry.cli, info_name="castore")):
        assert command.help, context.command_path
        if not isinstance(command, click.Group):
            assert "Example: castore" in command.get_help(context), context.command_path


@pytest.fixture
def failing(monkeypatch, capsys):
    """Return a function that runs castore with a command that raises, or returns, something."""

    def failing(outcome):
        @click.command()
        def fail():
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setitem(entry.cli.commands, "fail", fail)
        monkeypatch.setattr(sys, "argv", ["castore", "fail"])
        monkeypatch.setattr(entry, "_own_process", lambda: None)
        with pytest.raises(SystemExit) as caught:
            entry.main()
        return caught.value.code, capsys.readouterr().err

    return failing


def subclasses(kind):
    yield kind
    for inner in kind.__subclasses__():
        yield from subclasses(inner)


def all_errors():
    import_all_modules()
    return subclasses(errors.CastoreError)


@pytest.mark.parametrize("kind", list(all_errors()))
def test_every_error_is_one_line_and_its_exit_code(failing, kind):
    assert kind.exit_code in errors.EXIT_CODES
    assert failing(kind("what\nfailed \x1b[2J")) == (
        kind.exit_code,
        "castore: what failed \\x1b[2J\n",
    )


@pytest.mark.parametrize(
    ("outcome", "code", "message"),
    [
        (None, 0, ""),
        (3, 3, ""),
        (click.exceptions.Exit(5), 5, ""),
        (SystemExit(6), 6, ""),
        (click.Abort(), 130, "castore: interrupted\n"),
        (KeyboardInterrupt(), 130, "\ncastore: interrupted\n"),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
        (MemoryError(), 1, "castore: there is not enough memory\n"),
        (OSError(28, "No space left on device"), 1, "castore: No space left on device\n"),
        (OSError(13, "Denied", "/a\nb"), 1, "castore: /a b: Denied\n"),
        (OSError(13, "Denied", b"/\xff"), 1, "castore: /\\xff: Denied\n"),
        (click.ClickException("odd"), 1, "castore: odd\n"),
        (ImportError("No module named 'lmdb'"), 1, "castore: castore is not completely installed: No module named 'lmdb'\n"),
        (KeyError("x"), 1, "castore: a mistake in castore: KeyError: 'x' (CASTORE_DEBUG=1 shows where)\n"),
    ],
)
def test_every_end_has_its_exit_code(failing, outcome, code, message):
    assert failing(outcome) == (code, message)


def test_the_origin_of_an_error_is_shown_on_request(failing, monkeypatch):
    monkeypatch.setenv("CASTORE_DEBUG", "1")
    code, message = failing(errors.DamageError("broken"))
    assert code == 5
    assert message.startswith("Traceback")
    assert message.endswith("\ncastore: broken\n")


def test_an_interrupt_while_a_module_defines_a_class_is_an_interrupt(failing):
    class Interrupted:
        def __set_name__(self, owner, name):
            raise KeyboardInterrupt

    with pytest.raises(BaseException) as wrapped:  # noqa: PT011 - Python wraps it before 3.12
        type("Imported", (), {"field": Interrupted()})
    code, message = failing(wrapped.value)
    assert (code, message.strip()) == (130, "castore: interrupted")
