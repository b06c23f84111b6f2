"""The command `recover`: choice of services and directories, and output."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from castore.cli.messages import summarize
from castore.cli.options import LocalPath, common, json_option, print_json

if TYPE_CHECKING:
    from castore.cli.context import CliContext


@click.command(epilog="Example: castore recover drupal")
@click.argument("what", metavar="[SERVICE|DIR]...", nargs=-1, type=LocalPath())
@click.option(
    "--forget",
    is_flag=True,
    help="Of a SERVICE: only delete the journal of the rollback: you have repaired the state. Of a DIR: "
    "revert it alone, although it is part of a rollback of a service.",
)
@json_option
@common
def recover(context: CliContext, what: tuple[str, ...], forget: bool, as_json: bool) -> None:
    """Complete or undo what was interrupted: a rollback of a SERVICE, or a restore in place of a DIR.

    An incomplete rollback is reverted to the previous state. If it only had to remove what it replaced, it
    is completed. Without arguments: everything that was interrupted on this machine. A DIR has a / in it;
    for it neither the store nor an identity is needed.
    """
    from castore.content.restore.undo_journal import interrupted
    from castore.state.directories import machine_paths

    if forget and not what:
        raise click.UsageError("--forget needs the SERVICE of the interrupted rollback, or the DIR")
    run = _Recovery(forget, as_json)
    if as_json:
        print_json({"recovered": run.recovered})  # also printed if a later one fails
    folders = [one for one in what if "/" in one or one in {".", ".."}]
    services = [one for one in what if one not in folders]
    for path in folders:
        run.directory(path)
    if what and not services:
        return
    with context.open_store() as store:
        if not services:
            services = [one for one in store.services() if store.service(one).has_interrupted_rollback]
        for service in services:
            run.report("service", service, store.service(service).recover(forget=forget))
    if not what:
        for path in interrupted(machine_paths().journals):
            run.directory(path)
    if not run.recovered and not as_json:
        summarize("no rollback or restore in place was interrupted")


class _Recovery:
    """One run of the command."""

    def __init__(self, forget: bool, as_json: bool) -> None:
        self.recovered: list[dict[str, str | None]] = []
        self._forget = forget
        self._as_json = as_json

    def report(self, kind: str, name: str, line: str) -> None:
        """Print what was done about a service or a directory."""
        self.recovered.append({"service": None, "path": None, kind: name, "text": line})
        if not self._as_json:
            summarize(line)

    def directory(self, path: str) -> None:
        """Revert or complete a restore in place."""
        from castore.content.restore.recover import recover as recover_directory
        from castore.state.directories import machine_paths

        top = os.path.abspath(path)
        own = machine_paths().journals
        done = recover_directory(own, top, owned=self._forget, forget=self._forget)
        self.report("path", top, "\n".join(done) or f"{top}: there is nothing to recover")
