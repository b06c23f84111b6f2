"""The command `recover`: choice of services and directories, and output."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from castore.cli.messages import summarize
from castore.cli.options import LocalPath, common, json_option, print_json
from castore.cli.service_results import ServiceResults

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
    folders = [name for name in what if "/" in name or name in {".", ".."}]
    services = [name for name in what if name not in folders]
    results = _results_of([*services, *folders], folders)
    if services or not what:
        with context.open_store() as store:
            if not what:
                services = [name for name in store.services() if store.service(name).has_interrupted_rollback]
                folders = interrupted(machine_paths().journals)
                results = _results_of([*services, *folders], folders)
            for service in services:
                with results.service(service):
                    run.report("service", service, store.service(service).recover(forget=forget))
    # A rollback that was recovered has reverted its trees.
    left = set(interrupted(machine_paths().journals)) if not what else set(folders)
    for path in filter(left.__contains__, folders):
        with results.service(path):
            run.directory(path)
    results.finish()
    if not run.recovered and not as_json:
        summarize("no rollback or restore in place was interrupted")


def _results_of(names: list[str], folders: list[str]) -> ServiceResults:
    """Return what collects the failures of several services and directories: each is recovered anyway."""
    kind = "services and directories" if folders else "services"
    return ServiceResults(names, collect_errors=len(names) > 1, kind=kind)


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
