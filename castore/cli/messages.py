"""The messages of commands, and the option --quiet.

Messages go to standard error and begin with `castore: `. Summaries go to standard output. Neither is printed
on the line that shows progress. With --quiet, commands print only data, warnings and errors.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHOWN: Final = 20
_KEY: Final = "castore.quiet"


def _remember_quiet(context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        context.meta[_KEY] = True  # shared with the contexts of subcommands


def quiet_option() -> click.Option:
    """Return the option --quiet, which is accepted before and after the name of a command."""
    return click.Option(
        ["-q", "--quiet"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_remember_quiet,
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
        from castore.cli.progress import progress_paused

        with progress_paused():  # not on the line that shows progress
            print(line, flush=True, file=sys.stderr if err else sys.stdout)


def report(line: str) -> None:
    """Print a message for the user."""
    from castore.cli import formatting
    from castore.cli.progress import progress_paused

    with progress_paused():
        click.echo(f"castore: {formatting.one_line(line)}", err=True)


def note(line: str) -> None:
    """Print a remark that asks for no action."""
    report(f"note: {line}")


def note_left_out(columns: Sequence[str]) -> None:
    """Print which columns of a table the terminal has no room for, unless --quiet is given."""
    if columns and not is_quiet():
        note(f"no room for {', '.join(columns)}: use --json or a wider terminal")


def warn(line: str) -> None:
    """Print a warning."""
    report(f"warning: {line}")


def report_first(lines: Sequence[str]) -> None:
    """Print the first 20 messages, and how many more there are."""
    for line in lines[:_SHOWN]:
        report(line)
    if len(lines) > _SHOWN:
        report(f"and {len(lines) - _SHOWN} more")
