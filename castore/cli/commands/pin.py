"""The command `pin, unpin`: pin and unpin generations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castore.cli.messages import summarize
from castore.cli.options import common, host_option, json_option, print_json

if TYPE_CHECKING:
    from castore.cli.context import CliContext


@click.command(epilog="Example: castore pin drupal@12 --note 'before the move to PHP 9'")
@click.argument("what", metavar="SERVICE@SELECTOR")
@click.option("--note", default="", metavar="TEXT", help="Why; 'castore prune --dry-run' shows it.")
@json_option
@common
@host_option
def pin(context: CliContext, what: str, note: str, as_json: bool) -> None:
    """Keep a generation, whatever the retention rules say, until it is unpinned."""
    service, _, selector = what.partition("@")
    with context.open_store() as store:
        chosen = store.service(service).generation(selector or "latest")
        number, fresh = chosen.number, chosen.pin(note)
    if as_json:
        print_json({"service": service, "number": number, "pinned": True, "changed": bool(fresh)})
    else:
        summarize(f"{service}@{number} is {'' if fresh else 'already '}pinned")


@click.command(epilog="Example: castore unpin drupal@12")
@click.argument("what", metavar="SERVICE@SELECTOR")
@json_option
@common
@host_option
def unpin(context: CliContext, what: str, as_json: bool) -> None:
    """Remove the pin of a generation: the retention rules apply to it again."""
    from castore.errors import NotFoundError

    service, _, selector = what.partition("@")
    with context.open_store() as store:
        chosen = store.service(service).generation(selector or "latest")
        number = chosen.number
        if not chosen.unpin():
            pinned = ", ".join(map(str, sorted(store.service(service).pins()))) or "none"
            raise NotFoundError(f"{service}@{number} is not pinned; pins of {service!r}: {pinned}")
    if as_json:
        print_json({"service": service, "number": number, "pinned": False, "changed": True})
    else:
        summarize(f"{service}@{number} is no longer pinned")
