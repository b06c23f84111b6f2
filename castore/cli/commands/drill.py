"""The command `drill`: options and output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castore.cli.messages import summarize
from castore.cli.options import LocalPath, common, host_option, json_option, print_json, trust_option

if TYPE_CHECKING:
    from castore.cli.context import CliContext


@click.command(epilog="Example: castore drill drupal")
@click.argument("what", metavar="SERVICE[@SEL]")
@click.option(
    "--scratch",
    metavar="DIR",
    type=LocalPath(),
    help="Where to restore to. Default: the system's temporary folder.",
)
@trust_option
@json_option
@common
@host_option
def drill(
    context: CliContext, what: str, scratch: str | None, trust_recorded: bool, as_json: bool
) -> None:
    """Restore a generation of SERVICE, the newest by default, into a scratch directory, and check it.

    Databases are loaded into servers of their own, on private sockets. Then `drill-check` of castore.toml
    runs. The result is stored, and `castore log` shows it.
    """
    from castore.cli.progress import show_progress

    service, _, selector = what.partition("@")
    context.service_settings(service)  # mistakes in its description are reported first
    with context.open_store() as store, show_progress() as progress:
        generation = store.service(service).generation(selector or "latest")
        done = generation.drill(
            scratch=scratch,
            trust_recorded=trust_recorded,
            note=None if as_json else summarize,
            progress=progress,
        )
    if as_json:
        result = {"seconds": done.seconds, "parts": done.parts}
        print_json({"service": service, "number": generation.number, **result})
    else:
        summarize(f"{service}@{generation.number} is sound, {done.seconds:.1f} s")
