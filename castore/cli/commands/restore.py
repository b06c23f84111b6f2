"""castore restore."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from castore.cli import formatting
from castore.cli.options import (
    LocalPath,
    common,
    host_option,
    json_option,
    numeric_ids_option,
    ownership_of,
    print_json,
    trust_option,
)
from castore.cli.quiet import summarize
from castore.cli.tree_steps import amounts_text, plain_amounts, print_steps, tree_steps

if TYPE_CHECKING:
    from castore.cli.context import CliContext
    from castore.content.restore.metadata import Ownership
    from castore.content.restore.plan import TreePlan
    from castore.services.selectors import Selection
    from castore.store import Store


@click.command(epilog="Example: castore restore drupal@12:sites /tmp/look")
@click.argument("what", metavar="SERVICE@SEL[:PART[/PATH]]")
@click.argument("destination", metavar="DEST", type=LocalPath())
@click.option(
    "--in-place",
    is_flag=True,
    help="Make the existing directory DEST equal to the tree, or replace the file DEST by the selected "
    "one; only what differs is touched.",
)
@click.option("--dry-run", is_flag=True, help="With --in-place: show what would be done, and do nothing.")
@click.option(
    "--checksum",
    is_flag=True,
    help="With --in-place: also read files that have not changed since the last snapshot read them.",
)
@click.option(
    "--trust-times",
    is_flag=True,
    help="With --in-place: do not compare the content of files of the same size and time.",
)
@click.option(
    "--yes", is_flag=True,
    help="With --in-place: do not ask if DEST or this host is not where the tree came from.",
)
@click.option(
    "--resume", is_flag=True, help="Continue an interrupted restore of the same to DEST."
)
@trust_option
@numeric_ids_option
@json_option
@common
@host_option
def restore(
    context: CliContext,
    what: str,
    destination: str,
    in_place: bool,
    dry_run: bool,
    checksum: bool,
    trust_times: bool,
    yes: bool,
    resume: bool,
    trust_recorded: bool,
    numeric_ids: bool,
    as_json: bool,
) -> None:
    """Restore into the directory DEST, which must be new or empty.

    A generation is restored as one directory per part; a tree, or a directory in it, as its content; a
    dump or a single file as a file of its name.

    With --in-place DEST becomes equal to the selected tree, or directory in one: everything else in DEST is
    removed, but not what snapshots leave out. If anything fails, DEST is restored to its previous
    state. If DEST is not the directory that the tree came from, castore shows what would change and asks.
    """
    import time

    from castore.cli.progress import watching
    from castore.progress import Progress
    from castore.services.restore import restore as put
    from castore.services.selectors import select

    if not in_place and (dry_run or checksum or trust_times or yes or trust_recorded):
        alone = "--dry-run, --checksum, --trust-times, --yes and --trust-recorded"
        raise click.UsageError(f"{alone} are for --in-place only")
    if checksum and trust_times:
        raise click.UsageError("give --checksum or --trust-times, not both")
    if in_place and resume:
        raise click.UsageError("--resume is not for --in-place: an interrupted restore in place is reverted")
    began = time.monotonic()
    # The destination may be a symbolic link. A restore in place is not confined: its undo area may be
    # elsewhere on the file system.
    writable = os.path.dirname(os.path.abspath(destination)), destination
    with context.open_store(confined=None if in_place else writable) as store:
        store.sync_generations()
        selection = select(store, what)
        tally = Progress()
        if in_place:
            ownership = ownership_of(numeric_ids)
            options = (dry_run, checksum, trust_times, yes, as_json, trust_recorded)
            _in_place(context, store, selection, destination, ownership, *options)
            return
        with watching() as progress:
            progress("restoring", tally)
            done = put(store, selection, destination, ownership_of(numeric_ids), tally, resume=resume)
    seconds = time.monotonic() - began
    problems = len(done.report.warnings) + len(done.report.damaged)
    if as_json:
        print_json({
            "placed": done.placed,
            **plain_amounts(tally, seconds),
            "warnings": [[formatting.printable(path), reason] for path, reason in done.report.warnings],
            "damaged": [[formatting.printable(path), reason] for path, reason in done.report.damaged],
        })
    else:
        for path in done.placed:
            summarize(path)
        shown = f"; {formatting.count(problems, 'problem')}" if problems else ""
        summarize(f"restored {amounts_text(tally, seconds)}{shown}")
    context.report_restored(done.report.warnings, done.report.damaged)


def _in_place(
    context: CliContext,
    store: Store,
    selection: Selection,
    top: str,
    ownership: Ownership,
    dry_run: bool,
    checksum: bool,
    trust_times: bool,
    yes: bool,
    as_json: bool,
    trust_recorded: bool,
) -> None:
    import time

    from castore.cli.progress import hushed, watching
    from castore.progress import Progress
    from castore.services.restore import plan_size
    from castore.services.restore_in_place import origin_of, plan_in_place, restore_in_place

    began = time.monotonic()
    tally = Progress()
    configured = context.configured_origins(selection.generation.service)
    with watching() as progress:
        progress("comparing", Progress())
        plan = plan_in_place(
            store,
            selection,
            os.path.abspath(top),
            ownership,
            checksum=checksum,
            trust_times=trust_times,
            leave_out=context.own_paths(),
            configured=configured,
        )
        wanted = not dry_run
        if wanted and not yes:
            with hushed():
                place = os.path.abspath(top)
                own = store.is_own(selection.generation)
                origin = origin_of(store, selection, configured, consent=trust_recorded)
                wanted = _is_wanted(plan, place, origin, own=own)
        if selection.part is not None:
            tally.total = plan_size(selection.part, plan)
            tally.most_files = selection.part.files
        progress("restoring", tally)
        problems = restore_in_place(store, plan, ownership, tally) if wanted else []
    shown = tree_steps(plan)
    if as_json:
        amounts = plain_amounts(tally, time.monotonic() - began) if wanted else {}
        print_json({**shown, **amounts, "done": wanted})
    elif dry_run:
        print_steps(shown)
    elif not wanted:
        summarize("nothing was changed")
    else:
        where = formatting.printable(os.fsencode(os.path.abspath(top)))
        steps = formatting.count(len(plan.steps), "step")
        summarize(f"{where}: {steps}; restored {amounts_text(tally, time.monotonic() - began)}")
    context.report_restored(problems, [])


def _is_wanted(plan: TreePlan, place: str, origin: str, *, own: bool) -> bool:
    """Ask before live files change in a directory that the tree did not come from. Raises UsageError.

    own: whether the tree came from this host.
    """
    import sys

    from castore.errors import UsageError

    added, changed, removed = plan.summary
    same = bool(origin) and os.path.realpath(origin) == os.path.realpath(place)
    emptied = plan.empties and removed
    if not (changed or removed) or (own and same and not emptied):
        return True
    shown = formatting.printable(os.fsencode(place))
    known = f"it came from {formatting.printable(os.fsencode(origin))}"
    source = known if origin else "this machine does not know its directory"
    source += "" if own else ", on another host"
    reason = (
        "would become empty, because the stored tree is empty"
        if own and same
        else f"is not the directory that was taken: {source}"
    )
    summary = (
        f"{shown} {reason}; "
        f"{formatting.count(added, 'entry', 'entries')} would be added, {changed} changed, {removed} removed"
    )
    if not sys.stdin.isatty():
        raise UsageError(
            f"{summary}; nothing was touched: --dry-run lists the steps, --yes carries them out"
        )
    click.echo(f"castore: {summary}", err=True)
    going_on: bool = click.confirm("Go on?", err=True)
    return going_on
