"""The command `repair`: options, confirmation and output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from castore.cli import formatting
from castore.cli.damage import damage_summary, plain_findings, print_findings
from castore.cli.messages import summarize
from castore.cli.options import common, confirm, json_option, print_json

if TYPE_CHECKING:
    from castore.cli.context import CliContext
    from castore.maintenance.repair import RepairPlan, RepairResult
    from castore.maintenance.verify import Verification


@click.command(epilog="Example: castore repair --identity /media/usb/identity")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
@common
def repair(context: CliContext, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete damaged objects, salvage the intact records of damaged packs, and list the data that is lost.

    If the lost content still exists on disk, the next snapshot stores it again. With an admin's identity,
    also delete configurations that no admin signed. The exit code is 5 if anything is lost.
    """
    from castore.cli.progress import show_progress
    from castore.errors import DamageError

    def confirm_plan(plan: RepairPlan) -> bool:
        return _is_wanted(plan, dry_run=dry_run, yes=yes, as_json=as_json)

    with context.open_store() as store, show_progress() as progress:
        report = store.repair(confirm=confirm_plan, progress=progress)
    plan, done, after = report.plan, report.result, report.after
    if as_json:
        print_json(_plain(plan, done, after))
    elif done is not None:
        summarize(
            f"{formatting.count(len(plan.repaired), 'object')} repaired, {len(plan.drop)} deleted, "
            f"{formatting.count(len(plan.rewrite), 'pack')} rewritten: "
            f"{formatting.count(done.kept_records, 'record')} kept, {done.lost_records} lost"
        )
        print_findings(after)
    elif after.sound:
        summarize("nothing to repair")
    if not after.sound:
        raise DamageError(damage_summary(after))


def _is_wanted(plan: RepairPlan, *, dry_run: bool, yes: bool, as_json: bool) -> bool:
    """Show what a repair would do, and return whether the user wants it."""
    from castore.cli.progress import progress_paused

    with progress_paused():
        if not as_json:
            print_findings(plan.found)
            _print_planned(plan)
        if dry_run or plan.is_empty:
            return False
        if not (plan.drop or plan.rewrite):
            return True
        return yes or confirm("Permanently delete the objects listed above?")


def _print_planned(planned: RepairPlan) -> None:
    for name in planned.repaired:
        print(f"to be rewritten from its copy: {name}")
    for name in planned.drop:
        more = (
            " (its list of records is damaged; to salvage intact records, first run 'castore repair' on the "
            "machine that wrote it: its index may still have the list)"
        )
        print(f"to be deleted: {name}{more if name.startswith('packs/') else ''}")
    for pack in planned.rewrite:
        print(f"to be rewritten: packs/{pack.hex()}")


def _plain(plan: RepairPlan, done: RepairResult | None, after: Verification) -> dict[str, Any]:
    return {
        "done": done is not None,
        "repaired": plan.repaired,
        "dropped": plan.drop,
        "rewritten": [pack.hex() for pack in plan.rewrite],
        "kept_records": done.kept_records if done is not None else 0,
        "lost_records": done.lost_records if done is not None else 0,
        "left": plain_findings(after),
    }
