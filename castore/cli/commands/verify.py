"""The command `verify`: options and output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castore.cli import formatting
from castore.cli.damage import damage_summary, plain_findings, print_findings
from castore.cli.messages import summarize
from castore.cli.options import Percent, common, json_option, print_json

if TYPE_CHECKING:
    from castore.cli.context import CliContext
    from castore.maintenance.verify import Verification


@click.command(epilog="Example: castore verify --read-data --sample 5%")
@click.option("--index", is_flag=True, help="Check that everything exists; always done.")
@click.option("--packs", is_flag=True, help="Also compare every pack's bytes with its name.")
@click.option(
    "--read-data",
    is_flag=True,
    help="Also open every chunk and decode every directory, as a restore does; needs an identity.",
)
@click.option(
    "--sample",
    metavar="PERCENT",
    type=Percent(),
    help="Read this share of the packs, those first that were not read for longest. "
    "With --read-data their chunks are opened too.",
)
@click.option("--restart", is_flag=True, help="Do not continue an interrupted run.")
@json_option
@common
def verify(
    context: CliContext,
    index: bool,
    packs: bool,
    read_data: bool,
    sample: float | None,
    restart: bool,
    as_json: bool,
) -> None:
    """Check that everything that generations reference exists and is intact; exit code 5 if it is not.

    The next run of the same depth continues an interrupted one.
    """
    from castore.cli.progress import show_progress
    from castore.errors import DamageError, UsageError

    if index and (packs or read_data or sample is not None):
        raise UsageError("--index is always done: leave it out, or the other options")
    with context.open_store(confined=()) as store, show_progress() as progress:
        if context.identity_file:
            store.load_identity()  # also opens the sealed keys of the identity
        found = store.verify(
            packs=packs, read_data=read_data, sample=sample, restart=restart, progress=progress
        )
    if as_json:
        print_json(plain_findings(found))
    else:
        print_findings(found)
        looked = packs or read_data or sample is not None
        summarize(_summary(found, ("chunks opened" if read_data else "bytes compared") if looked else ""))
    if not found.sound:
        raise DamageError(damage_summary(found))


def _summary(found: Verification, depth: str) -> str:
    """Return the line that reports what was verified. depth: what was done with packs; empty: nothing."""
    looked = f"; {formatting.count(found.read, 'pack')} read, {depth}" if depth else "; no pack was read"
    resumed = f"; continued the run of {formatting.local_time(found.resumed)}" if found.resumed else ""
    return (
        f"{formatting.count(found.generations, 'generation')}, {formatting.count(found.packs, 'pack')}, "
        f"{formatting.count(found.nodes, 'node')}, "
        f"{formatting.count(found.chunks, 'reference')} to chunks"
        f"{looked}{resumed}{'; no damage found' if found.sound else ''}"
    )
