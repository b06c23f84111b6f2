"""castore repair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from castore.cli import formatting
from castore.cli.damage import damage_summary, plain_findings, print_findings
from castore.cli.options import agreed, common, json_option, print_json
from castore.cli.quiet import summarize

if TYPE_CHECKING:
    from castore.cli.context import CliContext
    from castore.maintenance.repair import Repair
    from castore.maintenance.verify import Verification


@click.command(epilog="Example: castore repair --identity /media/usb/identity")
@click.option("--dry-run", is_flag=True, help="Show what would be dropped, and drop nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@common
def repair(context: CliContext, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Drop what cannot be read, and report what is lost; everything else stays restorable.

    The next snapshot that still finds lost content stores it again. Configurations that are
    not accepted are dropped with the identity of an admin. Exit code 5 if anything is lost.
    """
    from castore.cli.progress import watching
    from castore.errors import DamageError
    from castore.maintenance.repair import repair as run_repair
    from castore.progress import Progress

    def agree(found: Verification, planned: Repair) -> bool:
        return _is_wanted(found, planned, dry_run=dry_run, yes=yes, as_json=as_json)

    with context.open_internal() as store:
        tally = Progress()
        with watching() as progress:
            progress("checking", tally)
            done, after = run_repair(store, tally, agree=agree)
    if as_json:
        print_json(_plain(done, after))
    elif done.done:
        summarize(
            f"{formatting.count(len(done.repaired), 'object')} repaired, {len(done.drop)} dropped, "
            f"{formatting.count(len(done.rewrite), 'pack')} rewritten: "
            f"{formatting.count(done.kept_records, 'record')} kept, {done.lost_records} lost"
        )
        print_findings(after)
    elif after.sound:
        summarize("nothing to repair")
    if not after.sound:
        raise DamageError(damage_summary(after))


def _is_wanted(
    found: Verification, planned: Repair, *, dry_run: bool, yes: bool, as_json: bool
) -> bool:
    """Show what a repair would do, and return whether the user wants it."""
    from castore.cli.progress import hushed

    with hushed():
        if not as_json:
            print_findings(found)
            _print_planned(planned)
        if dry_run or not (planned.repaired or planned.drop or planned.rewrite):
            return False
        if not (planned.drop or planned.rewrite):
            return True
        return yes or agreed("Drop what cannot be read, permanently?")


def _print_planned(planned: Repair) -> None:
    for name in planned.repaired:
        print(f"to be rewritten from its copy: {name}")
    for name in planned.drop:
        more = " (a machine whose index lists its content keeps more of it)"
        print(f"to be dropped: {name}{more if name.startswith('packs/') else ''}")
    for pack in planned.rewrite:
        print(f"to be rewritten: packs/{pack.hex()}")


def _plain(done: Repair, after: Verification) -> dict[str, Any]:
    return {
        "done": done.done,
        "repaired": done.repaired,
        "dropped": done.drop,
        "rewritten": [pack.hex() for pack in done.rewrite],
        "kept_records": done.kept_records,
        "lost_records": done.lost_records,
        "left": plain_findings(after),
    }
