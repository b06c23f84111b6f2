"""The command `follow`: options and output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castore.cli.messages import is_quiet, report, summarize
from castore.cli.operations import operations_of
from castore.cli.options import common, json_option, print_json

if TYPE_CHECKING:
    from castore.cli.context import CliContext
    from castore.services.follow import Followed


@click.command(epilog="Example: castore follow drupal")
@click.argument("services", metavar="SERVICE...", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@json_option
@common
def follow(context: CliContext, services: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Make the state of each SERVICE match its configured revision.

    Run it at boot or from an activation script. If the state already belongs to that revision, do nothing.
    If the revision has no generation yet, record it. Otherwise, restore its newest generation if castore.toml
    sets follow = "restore"; else print the command that would.
    """
    from castore.cli.progress import show_progress
    from castore.cli.service_results import ServiceResults
    from castore.services.follow import follow as run_follow

    results = ServiceResults(services, collect_errors=len(services) > 1)
    with context.open_store() as store, show_progress() as progress:
        store.refresh()
        for service in services:
            with results.service(service):
                context.required_settings()
                work = operations_of(store, progress)
                (followed,) = run_follow(work, (service,), dry_run=dry_run)
                results.entries.append({
                    "service": followed.service,
                    "revision": followed.revision,
                    "before": followed.before,
                    "number": followed.generation.number if followed.generation is not None else None,
                    "restored": followed.restored,
                })
                if not as_json:
                    _print_followed(followed, dry_run=dry_run)
    if as_json:
        print_json(results.entries)
    results.finish()


def _print_followed(followed: Followed, *, dry_run: bool) -> None:
    from castore.cli.progress import progress_paused

    if dry_run:
        with progress_paused():
            print(followed.text, flush=True)
    elif followed.generation is not None and not followed.restored and is_quiet():
        report(followed.text)  # something is left to do
    else:
        summarize(followed.text)
