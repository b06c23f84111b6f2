"""The command `help`: show pages of the documentation."""

from __future__ import annotations

import click


@click.command("help")
@click.argument("topic", nargs=-1, metavar="[COMMAND... | TOPIC]")
@click.pass_context
def help(ctx: click.Context, topic: tuple[str, ...]) -> None:  # noqa: A001 - the command's name
    """Explain a command, or show a page of the documentation; without an argument, list both.

    Example: castore help tutorial
    """
    from castore.cli.topics import read_topic, show, topics

    assert ctx.parent is not None
    if not topic:
        click.echo(f"{ctx.parent.get_help()}\n\n{_list_of_topics(topics())}")
        return
    page = read_topic(topic[0]) if len(topic) == 1 else None
    options = _command_help(ctx.parent, topic)
    if options is None and page is None:
        known = ", ".join(topics())
        raise click.UsageError(f"there is no command or topic '{' '.join(topic)}'; topics are {known}", ctx)
    if options is not None:
        click.echo(options + ("\n" if page else ""))
    if page is not None:
        show(page)


def _command_help(context: click.Context, names: tuple[str, ...]) -> str | None:
    """Return the help of the command that these names lead to; None if there is none."""
    command = context.command
    for name in names:
        inner = command.get_command(context, name) if isinstance(command, click.Group) else None
        if inner is None:
            return None
        context, command = click.Context(inner, parent=context, info_name=name), inner
    return command.get_help(context)


def _list_of_topics(titles: dict[str, str]) -> str:
    formatter = click.HelpFormatter()
    with formatter.section("Topics (castore help TOPIC)"):
        formatter.write_dl(list(titles.items()))
    return formatter.getvalue().rstrip("\n")
