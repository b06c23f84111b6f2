"""The command `guard`: options and output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from castore.cli.messages import summarize
from castore.cli.operations import operations_of
from castore.cli.options import common, json_option, print_json

if TYPE_CHECKING:
    from castore.cli.context import CliContext
    from castore.model.generation import Generation
    from castore.services.guard import Guarded


@click.command(
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
    epilog="Example: castore guard drupal -- guix system reconfigure config.scm",
)
@click.option("--restore", "restoring", is_flag=True, help="Restore an earlier state without asking.")
@json_option
@common
@click.argument("words", metavar="SERVICE... -- COMMAND", nargs=-1, required=True, type=click.UNPROCESSED)
def guard(context: CliContext, restoring: bool, words: tuple[str, ...], as_json: bool) -> None:
    """Run a deployment COMMAND between a snapshot of each SERVICE and its health check.

    If the revision is one that was configured before (COMMAND was a rollback of the system), its newest
    generation is offered to be restored, before the health check. If the command or a check fails, castore
    runs `undo` of castore.toml, restores the state, and exits with 9.
    """
    import sys

    from castore.cli.progress import progress_paused, show_progress
    from castore.errors import DeploymentRevertedError
    from castore.model.names import short_revision
    from castore.services.guard import guard as run_guarded

    services, command = _split_command(words)
    with context.open_store() as store, show_progress() as progress:
        store.refresh()
        context.required_settings()
        work = operations_of(store, progress)

        def wanted(service: str, generation: Generation) -> bool:
            short = short_revision(generation.revision)
            newest = f"{service}@{generation.number}"
            known = f"revision {short} was configured before: its newest generation is {newest}"
            with progress_paused():
                if restoring or (
                    sys.stdin.isatty() and click.confirm(f"{known}. Restore its state?", err=True)
                ):
                    return True
                click.echo(f"{known}; not restored; restore it with: castore follow {service}", err=True)
                return False

        done = run_guarded(work, services, command, wanted)
        if as_json:
            print_json({"services": [_guarded(service, done) for service in done.taken]})
        if done.failure:
            outcome = "; ".join(f"{service}: {said}" for service, said in done.outcome.items())
            raise DeploymentRevertedError(f"{done.failure}; the deployment was reverted: {outcome}")
        for service, said in done.outcome.items():
            summarize(f"{service}: {said}", err=as_json)


def _guarded(service: str, done: Guarded) -> dict[str, Any]:
    known = done.known.get(service)
    return {
        "service": service,
        "number": done.taken[service].number,
        "reverted": bool(done.failure),
        "known": known.number if known is not None else None,
        "restored": service in done.restored,
    }


def _split_command(words: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Split SERVICE... -- COMMAND. click removes a -- before the first word."""
    if "--" in words:
        at = words.index("--")
        return list(words[:at]), list(words[at + 1 :])
    raise click.UsageError("write -- before the command: castore guard SERVICE... -- COMMAND")
