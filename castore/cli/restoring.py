"""castore restore, rollback."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from castore.cli import formatting
from castore.cli.options import (
    LocalPath,
    agreed,
    common,
    host_option,
    json_option,
    print_json,
    trust_option,
)
from castore.cli.quiet import summarize

if TYPE_CHECKING:
    from castore.cli.context import CliContext
    from castore.content.restore.metadata import Ownership
    from castore.content.restore.plan import TreePlan
    from castore.model.generation import Generation, Origin
    from castore.progress import Progress
    from castore.services.config import Service
    from castore.services.rollback.plan import RollbackPlan
    from castore.services.selectors import Selection
    from castore.store import Store


def _ownership(numeric_ids: bool) -> Ownership:
    from castore.content.restore.metadata import Ownership

    return Ownership(change=os.geteuid() == 0, numeric=numeric_ids)


_numeric_option = click.option(
    "--numeric-ids", is_flag=True, help="Restore owners by number, not by name."
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
@click.option("--dry-run", is_flag=True, help="With --in-place: say what would be done, and do nothing.")
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
@_numeric_option
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
        raise click.UsageError("--in-place has nothing to resume: it is undone where it is interrupted")
    began = time.monotonic()
    # The destination may be a link. What a restore in place moves aside may be elsewhere on the file system.
    writable = os.path.dirname(os.path.abspath(destination)), destination
    with context.open_store(confined=None if in_place else writable) as store:
        store.sync_generations()
        selection = select(store, what)
        tally = Progress()
        if in_place:
            ownership = _ownership(numeric_ids)
            options = (dry_run, checksum, trust_times, yes, as_json, trust_recorded)
            _in_place(context, store, selection, destination, ownership, *options)
            return
        with watching() as progress:
            progress("restoring", tally)
            done = put(store, selection, destination, _ownership(numeric_ids), tally, resume=resume)
    seconds = time.monotonic() - began
    problems = len(done.report.warnings) + len(done.report.damaged)
    if as_json:
        print_json({
            "placed": done.placed,
            **_plain_amounts(tally, seconds),
            "warnings": [[formatting.printable(path), reason] for path, reason in done.report.warnings],
            "damaged": [[formatting.printable(path), reason] for path, reason in done.report.damaged],
        })
    else:
        for path in done.placed:
            summarize(path)
        shown = f"; {formatting.count(problems, 'problem')}" if problems else ""
        summarize(f"restored {_amounts(tally, seconds)}{shown}")
    context.report_restored(done.report.warnings, done.report.damaged)


def _amounts(tally: Progress, seconds: float) -> str:
    """Return how much was restored, and how long it took."""
    return f"{formatting.count(tally.files, 'file')}, {formatting.size(tally.read)}, in {seconds:.1f} s"


def _plain_amounts(tally: Progress, seconds: float) -> dict[str, Any]:
    return {"files": tally.files, "bytes": tally.read, "seconds": round(seconds, 3)}


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
            leave_out=context.own_places(),
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
    shown = _tree_steps(plan)
    if as_json:
        amounts = _plain_amounts(tally, time.monotonic() - began) if wanted else {}
        print_json({**shown, **amounts, "done": wanted})
    elif dry_run:
        _print_steps(shown)
    elif not wanted:
        summarize("nothing was changed")
    else:
        where = formatting.printable(os.fsencode(os.path.abspath(top)))
        steps = formatting.count(len(plan.steps), "step")
        summarize(f"{where}: {steps}; restored {_amounts(tally, time.monotonic() - began)}")
    context.report_restored(problems, [])


def _is_wanted(plan: TreePlan, place: str, origin: str, *, own: bool) -> bool:
    """Ask before live files change in a place that the tree did not come from. Raises UsageError.

    own: whether it came from this host.
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
    source = known if origin else "its place is not known here"
    source += "" if own else ", on another host"
    reason = (
        "would become empty, because nothing is stored of it"
        if own and same
        else f"is not where this was taken: {source}"
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
    from castore.cli.places import places
    from castore.content.restore.recover import recover as recover_directory
    from castore.content.restore.undo_journal import interrupted
    from castore.services.rollback.recover import forget as forget_rollback
    from castore.services.rollback.recover import recover as recover_service

    if forget and not what:
        raise click.UsageError("name the SERVICE whose interrupted roll-back is to be forgotten")
    recovered: list[dict[str, str | None]] = []
    if as_json:
        print_json({"recovered": recovered})  # also what is done before one of them fails

    def report(kind: str, name: str, line: str) -> None:
        recovered.append({"service": None, "path": None, kind: name, "text": line})
        if not as_json:
            summarize(line)

    def end_directory(path: str) -> None:
        top = os.path.abspath(path)
        done = recover_directory(places().journals, top, owned=forget, forget=forget)
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
        for path in interrupted(places().journals):
            end_directory(path)
    if not recovered and not as_json:
        summarize("no rollback or restore in place was interrupted")


@click.command(epilog="Example: castore rollback drupal --to r1 --dry-run")
@click.argument("service")
@click.option("--to", "selector", metavar="SEL", help="Revision, number, date, latest.")
@click.option("--undo", is_flag=True, help="Return to the state that the last rollback replaced.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--yes", is_flag=True, help="Do not ask if the generation is of another host or place.")
@click.option("--no-safety", is_flag=True, help="Do not take a pre-rollback generation.")
@click.option(
    "--trust-times",
    is_flag=True,
    help="With --no-safety or --dry-run: do not compare the content of files of the same size and time.",
)
@click.option(
    "--restore",
    "programs",
    metavar="NAME='ARGV'",
    multiple=True,
    help="The program that reads the dump NAME on its standard input.",
)
@trust_option
@_numeric_option
@json_option
@common
@host_option
def rollback(
    context: CliContext,
    service: str,
    selector: str | None,
    undo: bool,
    dry_run: bool,
    yes: bool,
    no_safety: bool,
    trust_times: bool,
    programs: tuple[str, ...],
    trust_recorded: bool,
    numeric_ids: bool,
    as_json: bool,
) -> None:
    """Roll SERVICE back: to the newest generation of a revision, or to any one.

    Dumps are restored into staging copies next to the live data. Then castore stops the service, takes a
    pre-rollback generation, swaps all parts, of trees only what differs, starts the service and checks its
    health, with the programs of castore.toml. If anything fails, it reverts all parts.
    """
    import time

    from castore.cli.progress import watching
    from castore.progress import Progress
    from castore.services.doubts import doubts
    from castore.services.rollback.execute import check_plan, creations, missing_folders, roll_back
    from castore.services.rollback.journal import refuse_interrupted
    from castore.services.rollback.plan import plan_rollback, read_details
    from castore.services.selectors import find, undo_of
    from castore.services.state_revision import state_revision

    if (selector is None) == (not undo):
        raise click.UsageError("give --to SEL, or --undo")
    with context.open_store() as store:
        store.sync_generations()
        if undo:
            # What the interrupted one kept is not known to be complete.
            refuse_interrupted(store, service)
        target = undo_of(store, service) if selector is None else find(store, service, selector)
        recorded = read_details(store, target).origins
        origins = _origins(context, store, target, recorded, programs, trust_recorded)
        ownership = _ownership(numeric_ids)
        settings = context.service_settings(service)
        doubted = doubts(store, target, recorded, origins)
        for line in doubted:
            click.echo(f"castore: {line}", err=True)
        if dry_run:
            plan = plan_rollback(
                store,
                target,
                origins,
                ownership,
                leave_out=context.own_places(),
                settings=settings,
                trust_times=trust_times,
            )
            check_plan(plan, origins, with_safety=not no_safety)
            for folder in missing_folders(plan, origins):
                shown = formatting.printable(os.fsencode(folder))
                click.echo(f"castore: would make the directory {shown}", err=True)
            for line in creations(store, plan):
                click.echo(f"castore: would make {formatting.one_line(line)}", err=True)
            _print_plan(plan, settings, as_json, safety=not no_safety)
            return
        if doubted and not (yes or agreed(f"Restore {service}@{target.number} all the same?")):
            summarize("nothing was touched")
            return
        configured = _revision_if_known(context, service)
        with store.lock(service), watching() as progress:
            revision = state_revision(store, service, configured).revision
            tally, began = Progress(), time.monotonic()
            done = roll_back(
                store,
                target,
                origins,
                ownership,
                settings=settings,
                with_safety=not no_safety,
                trust_times=trust_times,
                revision=revision,
                leave_out=context.own_places(),
                progress=progress,
                say=lambda line: click.echo(f"castore: {formatting.one_line(line)}", err=True),
                tally=tally,
            )
            seconds = time.monotonic() - began
        _tell_follow(context, service, target)
    safety = done.safety.number if done.safety else None
    if as_json:
        print_json({
            "service": service,
            "number": target.number,
            "safety": safety,
            "parts": list(done.parts),
            **_plain_amounts(tally, seconds),
        })
    elif not done.parts:
        summarize(f"{service} is at generation {target.number}{_of(target)} already: nothing was touched")
    else:
        kept = f"; what it replaced is generation {safety}" if safety else ""
        much = f"{formatting.count(len(done.parts), 'part')}, {_amounts(tally, seconds)}"
        summarize(f"{service} is back at generation {target.number}{_of(target)}: {much}{kept}")
    context.report_restored(
        [(f"{part}:".encode() + path, reason) for part, path, reason in done.problems], []
    )


def _revision_if_known(context: CliContext, service: str, *, quiet: bool = False) -> str | None:
    """Return the configured revision; None, with a warning, where what names it does not exist (yet)."""
    from castore.errors import ProgramError, UsageError

    try:
        return context.present_revision(service)
    except (ProgramError, UsageError) as error:
        if not quiet:
            click.echo(f"castore: the configured revision of {service} is not known: {error}", err=True)
        return None


def _tell_follow(context: CliContext, service: str, target: Generation) -> None:
    """Say that the next `follow` takes this roll-back for a state that is left behind."""
    from castore.model.names import short_revision

    settings = context.service_settings(service)
    now = _revision_if_known(context, service, quiet=True)
    short = short_revision(now or "")
    if settings is not None and settings.follow == "restore" and now and now != target.revision:
        click.echo(
            f"castore: the present revision is {short}, and the state is of another now: the next "
            f"'castore follow {service}' restores the newest generation of {short}, if any exists",
            err=True,
        )


def _of(generation: Generation) -> str:
    from castore.model.names import short_revision

    return f" of revision {short_revision(generation.revision)}" if generation.revision else ""


def _origins(
    context: CliContext,
    store: Store,
    target: Generation,
    recorded: dict[str, Origin],
    programs: tuple[str, ...],
    trust_recorded: bool,
) -> dict[str, Origin]:
    """Return where each part belongs: as recorded, but castore.toml, and then --restore, know better."""
    import msgspec

    from castore.cli.snapshot import split_named, split_program
    from castore.errors import UsageError
    from castore.model.generation import Origin
    from castore.services.recorded import trusted_origins

    configured = context.configured_origins(target.service)

    def say(line: str) -> None:
        click.echo(f"castore: {formatting.one_line(line)}", err=True)

    origins = trusted_origins(store, target, recorded, configured, say, consent=trust_recorded)
    for text_ in programs:
        name, argv = split_named("--restore", text_)
        if target.part(name) is None:
            raise UsageError(f"generation {target.number} of {target.service!r} has no part {name!r}")
        program = split_program("--restore", argv)
        origins[name] = msgspec.structs.replace(origins.get(name, Origin()), restore=program)
    return origins


_SHOWN_STEPS = 40


def _tree_steps(tree: TreePlan) -> dict[str, Any]:
    steps = [
        {"action": step.action, "path": formatting.printable(b"/".join(step.path) or b".")}
        for step in tree.steps
    ]
    skipped = [[formatting.printable(path), reason] for path, reason in tree.skipped]
    size = sum(step.size for step in tree.steps)
    return {"path": tree.top, "bytes": size, "steps": steps, "skipped": skipped}


def _print_steps(tree: dict[str, Any]) -> None:
    print(f"{tree['path']}: {formatting.count(len(tree['steps']), 'step')}, {formatting.size(tree['bytes'])}")
    for step in tree["steps"][:_SHOWN_STEPS]:
        print(f"  {step['action']:8} {step['path']}")
    if len(tree["steps"]) > _SHOWN_STEPS:
        print(f"  and {len(tree['steps']) - _SHOWN_STEPS} more (--json lists all)")
    for path, reason in tree["skipped"]:
        print(f"  {path}: {reason}")


def _print_plan(
    plan: RollbackPlan, settings: Service | None, as_json: bool, *, safety: bool
) -> None:
    import shlex

    trees: dict[str, Any] = {}
    for name, tree in plan.trees.items():
        trees[name] = _tree_steps(tree)
    dumps: list[dict[str, Any]] = [
        {"part": dump.part.name, "size": dump.part.size, "into": dump.into, "warning": dump.warning}
        for dump in plan.dumps
    ]
    removed = {one.name: one.path for one in plan.removals if one.there}
    hooks = {
        name: list(argv)
        for name in ("stop", "start", "health")
        if settings is not None and (argv := getattr(settings, name))
    }
    target = plan.target
    if as_json:
        print_json({
            "number": target.number, "safety": safety, "hooks": hooks, "trees": trees, "dumps": dumps,
            "removed": removed, "untouched": list(plan.untouched),
        })
        return
    print(f"would put {target.service} back to generation {target.number}{_of(target)}")
    print("first: " + ("a safety generation of the present state" if safety else "no safety generation"))
    who = f" (as {settings.run_as})" if settings is not None and settings.run_as is not None else ""
    for name, argv in hooks.items():
        print(f"{name}: {shlex.join(argv)}{who}")
    for name, tree in trees.items():
        print(f"tree {name}: ", end="")
        _print_steps(tree)
    for dump in dumps:
        print(f"dump {dump['part']}: {formatting.size(dump['size'])} into {dump['into']}")
        if dump["warning"]:
            print(f"  beware: {dump['warning']}")
    for name, path in removed.items():
        print(f"{name}: was not there: {path} is removed")
    for name in plan.untouched:
        print(f"{name}: not in generation {target.number}: it is left as it is")
