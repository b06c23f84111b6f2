"""castore drill."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from castore.cli import formatting
from castore.cli.options import LocalPath, common, host_option, json_option, print_json, trust_option
from castore.cli.quiet import summarize

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
    from castore.cli.progress import watching
    from castore.content.restore.metadata import Ownership
    from castore.services.config import Service
    from castore.services.drill import drill as run_drill
    from castore.services.selectors import find

    service, _, selector = what.partition("@")
    settings = context.service_settings(service) or Service()
    with context.open_store() as store:
        store.sync_generations()
        generation = find(store, service, selector or "latest")

        def say(line: str) -> None:
            if not as_json:
                summarize(line)

        with watching() as progress:
            done = run_drill(
                store,
                generation,
                context.configured_origins(service),
                settings,
                Ownership(change=os.geteuid() == 0),
                scratch=scratch,
                consent=trust_recorded,
                say=say,
                warn=lambda line: click.echo(f"castore: {formatting.one_line(line)}", err=True),
                progress=progress,
            )
    if as_json:
        print_json({
            "service": service, "number": generation.number, "seconds": done.seconds, "parts": done.parts
        })
    else:
        summarize(f"{service}@{generation.number} is sound, {done.seconds:.1f} s")
