"""Writes castore/docs/cli.md from the commands' --help: `.venv/bin/python tools/cli_page.py`.

A test fails if the page is not what this prints with `--print`.
"""

import sys
from collections import Counter
from pathlib import Path

import click

from castore.cli.main import cli

PAGE = Path(__file__).parents[1] / "castore/docs/cli.md"
HEADING = "## Options of many commands\n\n"
"""What is above it in the page is written by hand."""
OFTEN = 5
"""An option of more commands, with the same help, is described once."""


def cell(text):
    """Return text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def options(context, command):
    """Return (longest name, row of a table) of each option of a command."""
    records = [
        (option.opts[-1], option.get_help_record(context))
        for option in command.get_params(context)
        if isinstance(option, click.Option)
    ]
    return [(name, f"| `{cell(record[0])}` | {cell(record[1])} |") for name, record in records if record]


def section(context, command, shared):
    """Return the lines of one command; shared: the rows that are elsewhere."""
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"## {context.command_path}\n\n`{usage}`\n"
    yield from (" ".join(text.split()) + "\n" for text in command.help.split("\n\n"))
    own = [row for _, row in options(context, command) if row not in shared]
    if own:
        yield "| option | |\n| --- | --- |"
        yield from own
        yield ""
    others = [name for name, row in options(context, command) if row in shared]
    if named := ", ".join(f"`{name}`" for name in others if name not in {"--help", "--quiet"}):
        yield f"Also {named}.\n"
    if command.epilog:
        one_line = command.epilog.replace("\b", "").replace("\\\n", " ")
        kind, _, example = " ".join(one_line.split()).partition(": ")
        yield f"{kind}: `{example}`\n"


def commands(group, context):
    """Yield every command with its context."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from commands(command, inner)
        else:
            yield inner, command


def page():
    """Return the text of the page."""
    top = click.Context(cli, info_name="castore", terminal_width=10_000, max_content_width=10_000)
    every = list(commands(cli, top))
    counts = Counter(row for context, command in every for _, row in options(context, command))
    shared = [row for row, count in counts.items() if count > OFTEN]
    head = PAGE.read_text(encoding="utf-8").partition(HEADING)[0]
    lines = [head + HEADING + "| option | |\n| --- | --- |", *shared, ""]
    for context, command in every:
        lines += section(context, command, shared)
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    if "--print" in sys.argv:
        sys.stdout.write(page())
    else:
        PAGE.write_text(page(), encoding="utf-8")
