"""The command `rollback`: options, confirmation, plan and output."""

from __future__ import annotations

import os
import shlex
import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from castore.cli import formatting
from castore.cli.messages import report, summarize
from castore.cli.options import (
    collected,
    common,
    confirm,
    host_option,
    json_option,
    numeric_ids_option,
    print_json,
    split_named,
    split_program,
    trust_option,
)
from castore.cli.tree_steps import amounts_text, plain_amounts, print_steps, tree_steps

if TYPE_CHECKING:
    from castore.api.generation import Generation
    from castore.api.rollback import RollbackPlan, RollbackResult
    from castore.cli.context import CliContext


class _Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command."""

    undo: bool
    dry_run: bool
    yes: bool
    no_pre_rollback: bool
    trust_times: bool
    no_range_writes: bool
    programs: tuple[str, ...]
    trust_recorded: bool
    numeric_ids: bool
    as_json: bool


@click.command(epilog="Example: castore rollback drupal --to r1 --dry-run")
@click.argument("service")
@click.option("--to", "selector", metavar="SEL", help="Revision, number, date, latest.")
@click.option("--undo", is_flag=True, help="Return to the state that the last rollback replaced.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@click.option("--yes", is_flag=True, help="Do not ask if the generation is of another host or place.")
@click.option("--no-pre-rollback", is_flag=True, help="Do not take a pre-rollback generation.")
@click.option(
    "--trust-times",
    is_flag=True,
    help="With --no-pre-rollback or --dry-run: do not compare the content of files with the same size "
    "and time.",
)
@click.option(
    "--no-range-writes",
    is_flag=True,
    help="Replace each large file in one step, instead of overwriting ranges of it.",
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
@collected("chosen", _Chosen)
def rollback(context: CliContext, service: str, selector: str | None, chosen: _Chosen) -> None:
    """Roll SERVICE back: to the newest generation of a revision, or to any one.

    Dumps are restored into staging copies next to the live data. Then castore stops the service, takes a
    pre-rollback generation, swaps all parts, of trees only what differs, starts the service and checks its
    health, with the programs of castore.toml. If anything fails, it reverts all parts.
    """
    from castore.cli.progress import show_progress

    if (selector is None) == (not chosen.undo):
        raise click.UsageError("give --to SEL, or --undo")
    with context.open_store() as store:
        own = store.service(service)
        plan = own.plan_rollback(
            own.replaced_generation() if selector is None else own.generation(selector),
            restore_with=_programs(chosen.programs),
            trust_recorded=chosen.trust_recorded,
            pre_rollback=not chosen.no_pre_rollback,
            trust_times=chosen.trust_times,
            range_writes=not chosen.no_range_writes,
            numeric_ids=chosen.numeric_ids,
            compare=chosen.dry_run,
        )
        for line in plan.doubts:
            report(line)
        if chosen.dry_run:
            _print_plan(plan, as_json=chosen.as_json)
            return
        if plan.doubts and not (chosen.yes or confirm(f"Restore {service}@{plan.target.number} anyway?")):
            summarize("nothing was changed")
            return
        with show_progress() as progress:
            began = time.monotonic()
            done = own.rollback(plan, accept_doubts=True, progress=progress)
            seconds = time.monotonic() - began
    _print_done(done, seconds, as_json=chosen.as_json)
    problems = [(f"{part}:".encode() + path, reason) for part, path, reason in done.problems]
    context.report_restored(problems, [])


def _programs(given: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return the programs of --restore, by part. Raises UsageError."""
    pairs = (split_named("--restore", text, "'ARGV'") for text in given)
    return {name: split_program("--restore", argv) for name, argv in pairs}


def _print_done(done: RollbackResult, seconds: float, *, as_json: bool) -> None:
    """Print what a rollback did."""
    target, counters = done.generation, done.progress
    pre_rollback = done.pre_rollback.number if done.pre_rollback is not None else None
    if as_json:
        print_json({
            "service": target.service,
            "number": target.number,
            "pre_rollback": pre_rollback,
            "parts": list(done.parts),
            "new_directories": [formatting.printable(os.fsencode(path)) for path in done.new_directories],
            "creations": list(done.creations),
            **plain_amounts(counters, seconds),
        })
    elif not done.parts:
        summarize(
            f"{target.service} is at generation {target.number}{_of(target)} already: nothing was changed"
        )
    else:
        kept = f"; what it replaced is generation {pre_rollback}" if pre_rollback else ""
        much = f"{formatting.count(len(done.parts), 'part')}, {amounts_text(counters, seconds)}"
        summarize(f"{target.service} is back at generation {target.number}{_of(target)}: {much}{kept}")


def _of(generation: Generation) -> str:
    from castore.model.names import short_revision

    return f" of revision {short_revision(generation.revision)}" if generation.revision else ""


def _print_plan(plan: RollbackPlan, *, as_json: bool) -> None:
    """Print what a rollback would do."""
    for folder in plan.new_directories:
        shown = formatting.printable(os.fsencode(folder))
        report(f"would create the directory {shown}")
    for line in plan.creations:
        report(f"would create {line}")
    trees = {name: tree_steps(tree, plan.estimates.get(name)) for name, tree in plan.trees.items()}
    dumps: list[dict[str, Any]] = [
        {"part": dump.part.name, "size": dump.part.size, "into": dump.into, "warning": dump.warning}
        for dump in plan.dumps
    ]
    if not as_json:
        _print_steps(plan, trees, dumps)
        return
    print_json({
        "number": plan.target.number,
        "pre_rollback": plan.pre_rollback,
        "hooks": {name: list(argv) for name, argv in plan.hooks.items()},
        "trees": trees,
        "dumps": dumps,
        "removed": {part.name: part.path for part in plan.added_parts},
        "untouched": list(plan.untouched),
        "new_directories": [formatting.printable(os.fsencode(path)) for path in plan.new_directories],
        "creations": list(plan.creations),
    })


def _print_steps(
    plan: RollbackPlan, trees: dict[str, dict[str, Any]], dumps: list[dict[str, Any]]
) -> None:
    target = plan.target
    print(f"would roll {target.service} back to generation {target.number}{_of(target)}")
    print("first: " + ("a pre-rollback generation" if plan.pre_rollback else "no pre-rollback generation"))
    who = f" (as {plan.run_as})" if plan.run_as is not None else ""
    for name, argv in plan.hooks.items():
        print(f"{name}: {shlex.join(argv)}{who}")
    for name, tree in trees.items():
        print(f"tree {name}: ", end="")
        print_steps(tree)
    for dump in dumps:
        print(f"dump {dump['part']}: {formatting.size(dump['size'])} into {dump['into']}")
        if dump["warning"]:
            print(f"  warning: {dump['warning']}")
    for part in plan.added_parts:
        print(f"{part.name}: did not exist: {part.path} is removed")
    for name in plan.untouched:
        print(f"{name}: not in generation {target.number}: it is not changed")
