"""Call every command with hostile arguments, in one process; print what was not answered properly.

Run as a program in a directory with a store named `store` whose service `s` has a tree `t` and a dump `d`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout

import click

from castore.cli import error_report
from castore.cli import main as command_line

NUL = ("a\0b", "s@1:t/\0")
SURROGATES = ("\udcff", "s\udcff", "s@\udcff", "s@1:\udcff", "s@1:t/\udcff", "d=\udcff", "d\udcff=/x", "/\udcff", "!\udcff")
LONE = ("\ud800", "d=\ud800")
NUMBERS = (
    "9" * 30, "-" + "9" * 30, "9" * 5000, "1e400", "nan", "inf", "nan%", "1_0", "\u0663",
    "s@" + "9" * 30, "s@#" + "9" * 30, "s@latest~" + "9" * 30, "s@latest~" + "9" * 5000, "s@" + "9" * 5000,
    "s@" + "9" * 30 + " days ago", "s@9999-12-31", "s@0000-00-00", "s@9999-12-31T23:59:59+23:59", "9" * 30 + " years ago", "0001-01-01",
    "s@1.." + "9" * 30, "s@" + "9" * 5000 + "..1", "9" * 30 + "d", "9" * 30 + " GB",
)
ODD = ("", " ", "x" * 5000, "\n", "\x1b[2J", "-", "--", "~", "~\udcff/x", "d=" + "x" * 5000, "d='", "s@", "@", ":", "s@1:", "s@1:t/..", "=", "%")
HOSTILE = (*NUL, *SURROGATES, *LONE, *NUMBERS, *ODD)
EVERY = bool(os.environ.get("CASTORE_TEST_ALL_ARGUMENTS"))
"""Whether each value is tried at every option."""
QUICK = {"analyze": ("--average=64K", "--no-peers", "--no-levels")}
"""Options that keep a command from taking seconds; those that are tried come later, and replace them."""
PLAIN = {"what": "s@1:t", "destination": "out", "service": "s", "services": "s", "selector": "1"}


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command with its path."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from commands(found, (*path, name))
        else:
            yield (*path, name), found


def calls(path: tuple[str, ...], command: click.Command) -> Iterator[tuple[str, list[str]]]:
    """Yield (hostile value, argument list): each value at the place of each parameter."""
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    for at, param in enumerate(command.params):
        if isinstance(param, click.Option) and (param.is_flag or param.count):
            continue
        # Each value meets every kind of parameter somewhere, and each argument, but not every option.
        every = 1 if EVERY or isinstance(param, click.Argument) else 5
        for value in HOSTILE[(at + len(path[-1])) % every :: every]:
            given = [value if one is param else PLAIN.get(str(one.name), "x") for one in arguments]
            options = [f"{param.opts[-1]}={value}"] if isinstance(param, click.Option) else []
            # Where two options exclude each other, the command is refused all the same.
            yield value, [*path, *QUICK.get(path[0], ()), *options, "--", *given]


def run(argv: list[str]) -> tuple[str, int]:
    """Call castore with its output thrown away; return its message and exit code."""
    with open(os.devnull, "w+", errors="backslashreplace") as sink, redirect_stdout(sink), redirect_stderr(sink):
        try:
            command_line.cli.main(argv, standalone_mode=False)
        except BaseException as error:  # as castore's own main does
            return error_report._described(error)  # noqa: SLF001 - what the command line would print
    return "", 0


def main() -> None:
    """Print a JSON list of (arguments, code, message) that are wrong."""
    found = []
    before = dict(os.environ)
    only = sys.argv[1:]
    for path, command in commands(command_line.cli):
        if only and path[0] not in only:
            continue
        for value, argv in calls(path, command):
            os.environ.clear()
            os.environ.update(before)
            signal.alarm(20)
            sys.argv = ["castore", *argv]
            message, code = run(argv)
            signal.alarm(0)
            wrong = "mistake in castore" in message or (value in (*NUL, *LONE) and code != 2)
            if wrong or code not in range(12):
                found.append([[ascii(one)[:60] for one in argv], code, message[:200]])
        for made in ("out", "x"):
            shutil.rmtree(made, ignore_errors=True)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
