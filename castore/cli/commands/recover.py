"""castore recover."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from castore.cli.options import LocalPath, common, json_option, print_json
from castore.cli.quiet import summarize

if TYPE_CHECKING:
    from castore.cli.context import CliContext


@click.command(epilog="Example: castore recover drupal")
@click.argument("what", metavar="[SERVICE|DIR]...", nargs=-1, type=LocalPath())
@click.option(
    "--forget",
    is_flag=True,
    help="Of a SERVICE: change nothing, you have repaired it. Of a DIR: revert it alone, although it "
    "is part of a rollback of a service.",
)
@json_option
@common
def recover(context: CliContext, what: tuple[str, ...], forget: bool, as_json: bool) -> None:
    """Complete or undo what was interrupted: a rollback of a SERVICE, or a restore in place of a DIR.

    An incomplete rollback is reverted to the previous state. If it only had to remove what it replaced, it
    is completed. Without arguments: everything that was interrupted on this machine. A DIR has a / in it;
    for it neither the store nor an identity is needed.
    """
    from castore.content.restore.recover import recover as recover_directory
    from castore.content.restore.undo_journal import interrupted
    from castore.services.rollback.recover import forget as forget_rollback
    from castore.services.rollback.recover import recover as recover_service
    from castore.state.directories import machine_paths

    if forget and not what:
        raise click.UsageError("--forget needs the SERVICE of the interrupted rollback, or the DIR")
    recovered: list[dict[str, str | None]] = []
    if as_json:
        print_json({"recovered": recovered})  # also printed if a later one fails

    def report(kind: str, name: str, line: str) -> None:
        recovered.append({"service": None, "path": None, kind: name, "text": line})
        if not as_json:
            summarize(line)

    def end_directory(path: str) -> None:
        top = os.path.abspath(path)
        done = recover_directory(machine_paths().journals, top, owned=forget, forget=forget)
        report("path", top, "\n".join(done) or f"{top}: there is nothing to recover")

    folders = [one for one in what if "/" in one or one in {".", ".."}]
    for path in what:
        if path in folders:
            end_directory(path)
    services = [one for one in what if one not in folders]
    if what and not services:
        return
    with context.open_store() as store:
        store.sync_generations()
        if not services:
            services = [one for one in store.services() if store.has_begun_rollback(one)]
        for service in services:
            with store.lock(service):
                end = forget_rollback if forget else recover_service
                report("service", service, end(store, service))
    if not what:
        for path in interrupted(machine_paths().journals):
            end_directory(path)
    if not recovered and not as_json:
        summarize("no rollback or restore in place was interrupted")
