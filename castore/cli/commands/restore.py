"""The command `restore`: options, confirmation and output."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import click
import msgspec

from castore.cli import formatting
from castore.cli.messages import report, summarize
from castore.cli.options import (
    LocalPath,
    collected,
    common,
    host_option,
    json_option,
    numeric_ids_option,
    print_json,
    trust_option,
)
from castore.cli.tree_steps import amounts_text, plain_amounts, print_steps, tree_steps
from castore.errors import UsageError

if TYPE_CHECKING:
    from castore.api.selection import Selection
    from castore.cli.context import CliContext


class _Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command."""

    in_place: bool
    dry_run: bool
    checksum: bool
    trust_times: bool
    no_range_writes: bool
    yes: bool
    resume: bool
    trust_recorded: bool
    numeric_ids: bool
    as_json: bool

    def refuse_contradictions(self) -> None:
        """Raise UsageError for options that do not go together."""
        comparing = self.dry_run or self.checksum or self.trust_times or self.no_range_writes
        if (comparing or self.yes or self.trust_recorded) and not self.in_place:
            alone = "--dry-run, --checksum, --trust-times, --no-range-writes, --yes and --trust-recorded"
            raise click.UsageError(f"{alone} are for --in-place only")
        if self.checksum and self.trust_times:
            raise click.UsageError("give --checksum or --trust-times, not both")
        if self.in_place and self.resume:
            raise click.UsageError(
                "--resume is not for --in-place: an interrupted restore in place is reverted"
            )


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
    "--no-range-writes",
    is_flag=True,
    help="With --in-place: replace each large file in one step, instead of overwriting ranges of it.",
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
@collected("chosen", _Chosen)
def restore(context: CliContext, what: str, destination: str, chosen: _Chosen) -> None:
    """Restore into the directory DEST, which must be new or empty.

    A generation is restored as one directory per part; a tree, or a directory in it, as its content; a
    dump or a single file as a file of its name.

    With --in-place DEST becomes equal to the selected tree, or directory in one: everything else in DEST is
    removed, but not what snapshots leave out. If anything fails, DEST is restored to its previous
    state. If DEST is not the directory that the tree came from, castore shows what would change and asks.
    """
    chosen.refuse_contradictions()
    if chosen.in_place:
        with context.open_store() as store:
            _restore_in_place(context, store.select(what), destination, chosen)
    else:
        _restore(context, what, destination, chosen)


def _restore(context: CliContext, what: str, destination: str, chosen: _Chosen) -> None:
    from castore.cli.progress import show_progress

    began = time.monotonic()
    # The destination may be a symbolic link.
    writable = os.path.dirname(os.path.abspath(destination)), destination
    with context.open_store(confined=writable) as store:
        selection = store.select(what)
        with show_progress() as progress:
            done = selection.restore(
                destination, numeric_ids=chosen.numeric_ids, resume=chosen.resume, progress=progress
            )
    seconds = time.monotonic() - began
    if chosen.as_json:
        print_json({
            "placed": done.placed,
            **plain_amounts(done.progress, seconds),
            "warnings": [[formatting.printable(path), reason] for path, reason in done.warnings],
            "damaged": [[formatting.printable(path), reason] for path, reason in done.damaged],
        })
    else:
        for path in done.placed:
            summarize(path)
        problems = len(done.warnings) + len(done.damaged)
        shown = f"; {formatting.count(problems, 'problem')}" if problems else ""
        summarize(f"restored {amounts_text(done.progress, seconds)}{shown}")
    context.report_restored(done.warnings, done.damaged)


def _restore_in_place(
    context: CliContext, selection: Selection, directory: str, chosen: _Chosen
) -> None:
    """Restore in place. The process is not confined: the undo area may be elsewhere on the file system."""
    from castore.cli.progress import progress_paused, show_progress
    from castore.progress import Progress

    began = time.monotonic()
    done = None
    with show_progress() as progress:
        progress("comparing", Progress())
        plan = selection.plan_in_place(
            directory,
            checksum=chosen.checksum,
            trust_times=chosen.trust_times,
            range_writes=not chosen.no_range_writes,
            trust_recorded=chosen.trust_recorded,
            numeric_ids=chosen.numeric_ids,
        )
        wanted = not chosen.dry_run
        if wanted and plan.doubt and not chosen.yes:
            with progress_paused():
                wanted = _is_wanted(plan.doubt)
        if wanted:
            done = selection.restore_in_place(plan, accept_doubts=True, progress=progress)
    seconds = time.monotonic() - began
    shown = tree_steps(plan.tree, plan.estimate)
    if chosen.as_json:
        amounts = plain_amounts(done.progress, seconds) if done is not None else {}
        print_json({**shown, **amounts, "done": done is not None})
    elif chosen.dry_run:
        print_steps(shown)
    elif done is None:
        summarize("nothing was changed")
    else:
        where = formatting.printable(os.fsencode(plan.directory))
        steps = formatting.count(len(plan.tree.steps), "step")
        summarize(f"{where}: {steps}; restored {amounts_text(done.progress, seconds)}")
    context.report_restored(done.warnings if done is not None else [], [])


def _is_wanted(doubt: str) -> bool:
    """Ask before live files change in a directory that the tree did not come from. Raises UsageError."""
    if not sys.stdin.isatty():
        raise UsageError(
            f"{doubt}; nothing was changed: --dry-run lists the steps, --yes carries them out"
        )
    report(doubt)
    confirmed: bool = click.confirm("Continue?", err=True)
    return confirmed
