"""castore verify, repair, reindex."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from castore.cli import formatting
from castore.cli.document import times
from castore.cli.options import Percent, agreed, common, json_option, print_json
from castore.cli.quiet import summarize

if TYPE_CHECKING:
    from castore.cli.context import CliContext
    from castore.maintenance.repair import Repair
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
    from castore.cli.progress import watching
    from castore.errors import DamageError, UsageError
    from castore.maintenance.verify import verify as check
    from castore.progress import Progress

    if index and (packs or read_data or sample is not None):
        raise UsageError("--index is no more than what is always done: leave it out, or the others")
    with context.open_store(confined=()) as store:
        if read_data or context.identity_file:
            store.identity()  # the seals for it are opened, too
        tally = Progress()
        with watching() as progress:
            progress("verifying", tally)
            found = check(
                store,
                tally,
                packs=packs or sample is not None,
                read_data=read_data,
                sample=sample,
                restart=restart,
            )
    if as_json:
        print_json(_plain(found))
    else:
        _print_findings(found)
        depth = "chunks opened" if read_data else "bytes compared"
        looked = ""
        if packs or read_data or sample is not None:
            looked = f"; {formatting.count(found.read, 'pack')} read, {depth}"
        resumed = f"; gone on with what began {formatting.local_time(found.resumed)}" if found.resumed else ""
        summarize(
            f"{formatting.count(found.generations, 'generation')}, {formatting.count(found.packs, 'pack')}, "
            f"{formatting.count(found.nodes, 'node')}, "
            f"{formatting.count(found.chunks, 'reference')} to chunks"
            f"{looked}{resumed}{'; no damage found' if found.sound else ''}"
        )
    if not found.sound:
        raise DamageError(_summary(found))


def _plain(found: Verification) -> dict[str, Any]:
    import msgspec

    fields = msgspec.to_builtins(found)
    del fields["damaged_packs"]
    resumed = times("resumed", found.resumed or None)
    affected = [
        {**one, "paths": [formatting.printable(path) for path in one["paths"]]} for one in fields["affected"]
    ]
    return {**fields, **resumed, "affected": affected, "sound": found.sound}


def _summary(found: Verification) -> str:
    counts = (
        f"{formatting.count(len(found.damage), 'object or chunk is', 'objects or chunks are')} damaged, "
        f"{formatting.count(len(found.affected), 'part')} of generations cannot be restored completely; "
    )
    if found.damage:
        return counts + "'castore repair' drops what cannot be read"
    return counts + "what the next snapshots still find heals them, 'castore forget' lets go of them"


def _print_findings(found: Verification) -> None:
    for line in found.damage:
        print(f"damaged: {line}")
    for hit in found.affected:
        print(f"affected: {hit.service}@{hit.number}:{hit.part}: {hit.reason}")
        for path in hit.paths:
            print(f"    {formatting.printable(path)}")
        if hit.more:
            print(f"    and {hit.more} more")


@click.command(epilog="Example: castore repair --identity /media/usb/identity")
@click.option("--dry-run", is_flag=True, help="Say what would be dropped, and drop nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@common
def repair(context: CliContext, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Drop what cannot be read, and report what is lost; everything else stays restorable.

    The next snapshot that still finds lost content stores it again. Configurations that are
    not accepted are dropped with the identity of an admin. Exit code 5 if anything is lost.
    """
    from castore.cli.progress import hushed, watching
    from castore.errors import DamageError
    from castore.maintenance.repair import repair as mend
    from castore.progress import Progress

    def agree(found: Verification, planned: Repair) -> bool:
        with hushed():
            if not as_json:
                _print_findings(found)
                for name in planned.mend:
                    print(f"to be written anew from its copy: {name}")
                for name in planned.drop:
                    more = " (a machine whose index knows what is in it saves more)"
                    print(f"to be dropped: {name}{more if name.startswith('packs/') else ''}")
                for pack in planned.rewrite:
                    print(f"to be written anew: packs/{pack.hex()}")
            if dry_run or not (planned.mend or planned.drop or planned.rewrite):
                return False
            if not (planned.drop or planned.rewrite):
                return True
            return yes or agreed("Drop what cannot be read, for good?")

    with context.open_store() as store:
        tally = Progress()
        with watching() as progress:
            progress("looking at everything", tally)
            done, after = mend(store, tally, agree=agree)
    if as_json:
        rewritten = [pack.hex() for pack in done.rewrite]
        print_json({
            "done": done.done,
            "mended": done.mend,
            "dropped": done.drop,
            "rewritten": rewritten,
            "kept_records": done.kept_records,
            "lost_records": done.lost_records,
            "left": _plain(after),
        })
    elif done.done:
        summarize(
            f"{formatting.count(len(done.mend), 'object')} repaired, {len(done.drop)} dropped, "
            f"{formatting.count(len(done.rewrite), 'pack')} rewritten: "
            f"{formatting.count(done.kept_records, 'record')} kept, {done.lost_records} lost"
        )
        _print_findings(after)
    elif after.sound:
        summarize("nothing to repair")
    if not after.sound:
        raise DamageError(_summary(after))


@click.command(epilog="Example: castore reindex")
@json_option
@common
def reindex(context: CliContext, as_json: bool) -> None:
    """Delete the index and rebuild it from the store; needs no identity."""
    from castore.cli.progress import watching
    from castore.progress import Progress

    with context.open_store() as store:
        tally = Progress()
        with watching() as progress:
            progress("reading packs", tally)
            store.reindex(tally)
        count = store.count_chunks()
        context.warn_damaged(store)
    if as_json:
        print_json({"chunks": count})
    else:
        summarize(f"the index holds {formatting.count(count, 'chunk')}")
