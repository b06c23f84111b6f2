"""castore rollback."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import click

from castore.cli import formatting
from castore.cli.options import (
    agreed,
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
    from castore.model.generation import Generation, Origin
    from castore.progress import Progress
    from castore.services.config import Service
    from castore.services.rollback.execute import RolledBack
    from castore.services.rollback.plan import RollbackPlan
    from castore.store import Store


@click.command(epilog="Example: castore rollback drupal --to r1 --dry-run")
@click.argument("service")
@click.option("--to", "selector", metavar="SEL", help="Revision, number, date, latest.")
@click.option("--undo", is_flag=True, help="Return to the state that the last rollback replaced.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
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
@numeric_ids_option
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

    from castore.cli.operations import operations_of
    from castore.cli.progress import watching
    from castore.progress import Progress
    from castore.services.doubts import doubts
    from castore.services.rollback.journal import refuse_interrupted
    from castore.services.rollback.plan import read_details
    from castore.services.selectors import find, undo_of

    if (selector is None) == (not undo):
        raise click.UsageError("give --to SEL, or --undo")
    with context.open_store() as store:
        store.sync_generations()
        if undo:
            # The pre-rollback generation of an interrupted rollback may be incomplete.
            refuse_interrupted(store, service)
        target = undo_of(store, service) if selector is None else find(store, service, selector)
        recorded = read_details(store, target).origins
        origins = _origins(context, store, target, recorded, programs, trust_recorded)
        ownership = ownership_of(numeric_ids)
        doubted = doubts(store, target, recorded, origins)
        for line in doubted:
            click.echo(f"castore: {line}", err=True)
        if dry_run:
            _show_plan(
                context,
                store,
                target,
                origins,
                ownership,
                trust_times=trust_times,
                pre_rollback=not no_safety,
                as_json=as_json,
            )
            return
        if doubted and not (yes or agreed(f"Restore {service}@{target.number} anyway?")):
            summarize("nothing was touched")
            return
        with watching() as progress:
            operations = operations_of(context, store, progress, (service,), ownership=ownership)
            tally, began = Progress(), time.monotonic()
            done = operations.rollback(
                target, origins, take_pre_rollback=not no_safety, trust_times=trust_times, progress=tally
            )
            seconds = time.monotonic() - began
        _tell_follow(context, service, target)
    _print_done(target, done, tally, seconds, as_json=as_json)
    context.report_restored(
        [(f"{part}:".encode() + path, reason) for part, path, reason in done.problems], []
    )


def _show_plan(
    context: CliContext,
    store: Store,
    target: Generation,
    origins: dict[str, Origin],
    ownership: Ownership,
    *,
    trust_times: bool,
    pre_rollback: bool,
    as_json: bool,
) -> None:
    """Print what a rollback would do. Raises CastoreError if it would be refused."""
    from castore.services.rollback.execute import check_plan, creations, missing_folders
    from castore.services.rollback.plan import plan_rollback

    settings = context.service_settings(target.service)
    plan = plan_rollback(
        store,
        target,
        origins,
        ownership,
        leave_out=context.own_paths(),
        settings=settings,
        trust_times=trust_times,
    )
    check_plan(plan, origins, take_pre_rollback=pre_rollback)
    for folder in missing_folders(plan, origins):
        shown = formatting.printable(os.fsencode(folder))
        click.echo(f"castore: would create the directory {shown}", err=True)
    for line in creations(store, plan):
        click.echo(f"castore: would create {formatting.one_line(line)}", err=True)
    _print_plan(plan, settings, as_json, pre_rollback=pre_rollback)


def _print_done(
    target: Generation, done: RolledBack, tally: Progress, seconds: float, *, as_json: bool
) -> None:
    """Print what a rollback did."""
    pre_rollback = done.pre_rollback.number if done.pre_rollback else None
    if as_json:
        print_json({
            "service": target.service,
            "number": target.number,
            "safety": pre_rollback,
            "parts": list(done.parts),
            **plain_amounts(tally, seconds),
        })
    elif not done.parts:
        summarize(
            f"{target.service} is at generation {target.number}{_of(target)} already: nothing was touched"
        )
    else:
        kept = f"; what it replaced is generation {pre_rollback}" if pre_rollback else ""
        much = f"{formatting.count(len(done.parts), 'part')}, {amounts_text(tally, seconds)}"
        summarize(f"{target.service} is back at generation {target.number}{_of(target)}: {much}{kept}")


def _tell_follow(context: CliContext, service: str, target: Generation) -> None:
    """Warn if the next `castore follow` would replace the state that was rolled back to."""
    from castore.errors import ProgramError, UsageError
    from castore.model.names import short_revision

    settings = context.service_settings(service)
    now = None
    with contextlib.suppress(ProgramError, UsageError):
        now = context.present_revision(service)
    short = short_revision(now or "")
    if settings is not None and settings.follow == "restore" and now and now != target.revision:
        click.echo(
            f"castore: the configured revision is {short}, and the state is of another now: the next "
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
    """Return the origin of each part: as recorded, overridden by castore.toml, and that by --restore."""
    import msgspec

    from castore.cli.options import split_named, split_program
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


def _print_plan(
    plan: RollbackPlan, settings: Service | None, as_json: bool, *, pre_rollback: bool
) -> None:
    import shlex

    trees: dict[str, Any] = {}
    for name, tree in plan.trees.items():
        trees[name] = tree_steps(tree)
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
            "number": target.number, "safety": pre_rollback, "hooks": hooks, "trees": trees, "dumps": dumps,
            "removed": removed, "untouched": list(plan.untouched),
        })
        return
    print(f"would roll {target.service} back to generation {target.number}{_of(target)}")
    print("first: " + ("a pre-rollback generation" if pre_rollback else "no pre-rollback generation"))
    who = f" (as {settings.run_as})" if settings is not None and settings.run_as is not None else ""
    for name, argv in hooks.items():
        print(f"{name}: {shlex.join(argv)}{who}")
    for name, tree in trees.items():
        print(f"tree {name}: ", end="")
        print_steps(tree)
    for dump in dumps:
        print(f"dump {dump['part']}: {formatting.size(dump['size'])} into {dump['into']}")
        if dump["warning"]:
            print(f"  warning: {dump['warning']}")
    for name, path in removed.items():
        print(f"{name}: did not exist: {path} is removed")
    for name in plan.untouched:
        print(f"{name}: not in generation {target.number}: it is not changed")
