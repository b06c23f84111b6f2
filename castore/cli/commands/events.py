"""The command `events`: print what castore did on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castore.cli import formatting
from castore.cli.document import times
from castore.cli.options import Count, common, json_option, print_json

if TYPE_CHECKING:
    from castore.cli.context import CliContext


@click.command(epilog="Example: castore events drupal")
@click.argument("service", required=False)
@click.option("--limit", type=Count(1), default=50, show_default=True, help="Show the newest N.")
@json_option
@common
def events(context: CliContext, service: str | None, limit: int, as_json: bool) -> None:
    """List what castore did on this machine, newest first, and what failed and why."""
    import msgspec

    with context.open_store() as store:
        found = store.events(service, limit=limit)
    if as_json:
        print_json([{**msgspec.to_builtins(event), **times("time", event.time)} for event in found])
        return
    for event in found:
        number = f"@{event.number}" if event.number is not None else ""
        how = "" if event.ok else "FAILED: "
        time, took = formatting.local_time(event.time), formatting.duration(event.duration)
        print(f"{time}  {event.kind} {event.service}{number}  {took}  {how}{event.text}")
