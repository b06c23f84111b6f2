"""Options and results of `castore prune` and `castore compact`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from castore.cli import formatting
from castore.cli.document import times
from castore.cli.messages import is_quiet, summarize
from castore.cli.options import Percent, Seconds, print_json
from castore.maintenance.limits import GRACE_SECONDS, MAX_UNUSED, UNFINISHED_SECONDS, Limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.api.prune import PrunePlan, PruneReport
    from castore.api.store import Store
    from castore.maintenance.compact import Compacted
    from castore.maintenance.compaction_plan import Plan
    from castore.services.retention import RetentionDecision


def compaction_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --max-unused, --grace, --unfinished and --dry-run."""
    for option in (
        click.option(
            "--unfinished",
            "delete_unfinished",
            is_flag=True,
            help="Also delete packs of interrupted snapshots. Use only if no snapshot is running.",
        ),
        click.option(
            "--grace",
            "grace_seconds",
            type=Seconds(),
            default=float(GRACE_SECONDS),
            show_default=True,
            metavar="SECONDS",
            help="Seconds between marking a pack and deleting it, if the store's users do not share a file "
            "lock.",
        ),
        click.option(
            "--max-unused",
            type=Percent(zero=True),
            default=f"{MAX_UNUSED:.0%}",
            show_default=True,
            metavar="PERCENT",
            help="Rewrite a pack only if more than PERCENT of it is unused.",
        ),
        click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing."),
    ):
        command = option(command)
    return command


def limits_of(max_unused: float, grace_seconds: float, *, delete_unfinished: bool) -> Limits:
    """Return the thresholds by the options of a command."""
    kept = 0 if delete_unfinished else UNFINISHED_SECONDS
    return Limits(max_unused=max_unused, grace_seconds=grace_seconds, unfinished_seconds=kept)


def print_plan(store: Store, plan: PrunePlan, *, as_json: bool) -> None:
    """Print what a prune or compaction would do."""
    planned = plan.space
    if as_json:
        generations = [_plain_decision(decision) for decision in plan.decisions]
        print_json({"generations": generations, "space": _plan_json(planned)})
        return
    if plan.decisions:
        print(_decisions_table(store, plan.decisions))
    print(
        f"would free {formatting.size(planned.freed)} of {formatting.size(planned.stored)}: "
        f"{_packs(len(planned.dead))} to delete, {len(planned.rewrites)} to rewrite "
        f"({formatting.size(planned.written)})"
    )
    _print_kept(planned)


def _plain_decision(decision: RetentionDecision) -> dict[str, Any]:
    generation = decision.generation
    return {
        "service": generation.service,
        "number": generation.number,
        **times("time", generation.time),
        "revision": generation.revision,
        "kept_by": list(decision.rules),
    }


def _decisions_table(store: Store, decisions: list[RetentionDecision]) -> str:
    from castore.model.names import short_revision

    services = {decision.generation.service for decision in decisions}
    notes = {service: store.service(service).pins() for service in services}
    rows = []
    for decision in decisions:
        generation = decision.generation
        why = ", ".join(decision.rules) or "(to be deleted)"
        note = notes[generation.service].get(generation.number, "")
        rows.append([
            *(generation.service, str(generation.number), formatting.local_time(generation.time)),
            short_revision(generation.revision) or "-",
            why + (f" ({formatting.one_line(note)})" if note else ""),
        ])
    header = ["service", "number", "time", "revision", "kept by"]
    return formatting.table(rows, header=header, right={1})


def print_done(done: Compacted) -> None:
    """Print what a compaction did."""
    freed = done.removed_bytes - done.written_bytes
    summarize(
        f"freed {formatting.size(max(freed, 0))}: {_packs(done.removed)} deleted, "
        f"{formatting.size(done.written_bytes)} rewritten"
    )
    if done.pending_deletion:
        marked = _packs(done.pending_deletion)
        summarize(f"{marked} marked for deletion; a later run deletes them if they are still unreferenced")
    if not is_quiet():
        _print_kept(done.plan)


def _print_kept(planned: Plan) -> None:
    if planned.unfinished_packs:
        size = formatting.size(sum(planned.unfinished_packs.values()))
        print(
            f"{_packs(len(planned.unfinished_packs))} ({size}) of interrupted snapshots kept for "
            f"{UNFINISHED_SECONDS // 86400} days; delete them now with --unfinished if no snapshot is running"
        )
    if planned.lost:
        missing = formatting.count(planned.lost, "referenced node is", "referenced nodes are")
        print(f"damage: {missing} missing from every pack; run 'castore verify'")


def _packs(count: int) -> str:
    return formatting.count(count, "pack")


def _plan_json(planned: Plan) -> dict[str, Any]:
    return {
        "stored_bytes": planned.stored,
        "packs": planned.packs,
        "dead_packs": len(planned.dead),
        "rewrites": len(planned.rewrites),
        "written_bytes": planned.written,
        "freed_bytes": planned.freed,
        "unfinished": sum(planned.unfinished_packs.values()),
        "missing_nodes": planned.lost,
    }


def plain_compaction(done: Compacted) -> dict[str, Any]:
    """Return what a compaction did for JSON."""
    return {
        "removed": done.removed,
        "removed_bytes": done.removed_bytes,
        "written_bytes": done.written_bytes,
        "pending_deletion": done.pending_deletion,
        "sessions": done.sessions,
        "damaged": done.damaged,
        "plan": _plan_json(done.plan),
    }


def refuse_damaged(done: PruneReport) -> None:
    """Raise DamageError if the compaction found damaged packs."""
    from castore.errors import DamageError

    if done.damaged:
        damaged_packs = "; ".join(done.damaged)
        raise DamageError(f"{damaged_packs}: not changed; repair the store with: castore repair")
