"""The option --quiet: commands print only data, warnings and errors, no progress and no summary."""

from __future__ import annotations

import sys
from typing import Any, Final

import click

_KEY: Final = "castore.quiet"


def _note(context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        context.meta[_KEY] = True  # shared with the contexts of subcommands


def quiet_option() -> click.Option:
    """Return the option --quiet, which is accepted before and after the name of a command."""
    return click.Option(
        ["-q", "--quiet"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_note,
        help="Print no progress and no summary: only data, warnings and errors.",
    )


def add_quiet(command: click.Command) -> click.Command:
    """Add --quiet to a command, or to all commands of a group."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            add_quiet(inner)
    if not any("--quiet" in parameter.opts for parameter in command.params):
        command.params.append(quiet_option())
    return command


def is_quiet() -> bool:
    """Return whether --quiet was given."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_KEY))


def summarize(line: Any, *, err: bool = False) -> None:
    """Print a line that reports what was done, unless --quiet is given. err: print to standard error."""
    if not is_quiet():
        from castore.cli.progress import hushed

        with hushed():  # not on the line that shows progress
            print(line, flush=True, file=sys.stderr if err else sys.stdout)
