"""The steps and amounts of a restore or rollback, as text and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from castore.cli import formatting

if TYPE_CHECKING:
    from castore.content.restore.plan import TreePlan
    from castore.progress import Progress
    from castore.state.restore_runs import Estimate


def amounts_text(progress: Progress, seconds: float) -> str:
    """Return how much was restored, and how long it took."""
    return f"{formatting.count(progress.files, 'file')}, {formatting.size(progress.read)}, in {seconds:.1f} s"


def plain_amounts(progress: Progress, seconds: float) -> dict[str, Any]:
    """Return how much was restored, and how long it took, for JSON."""
    return {"files": progress.files, "bytes": progress.read, "seconds": round(seconds, 3)}


_SHOWN_STEPS = 40


def tree_steps(tree: TreePlan, expected: Estimate | None) -> dict[str, Any]:
    """Return the plan of a tree for JSON."""
    steps = [
        {"action": step.action, "path": formatting.printable(b"/".join(step.path) or b".")}
        for step in tree.steps
    ]
    skipped = [[formatting.printable(path), reason] for path, reason in tree.skipped]
    work = tree.work
    return {
        "path": tree.top,
        "bytes": tree.size,
        "read_bytes": work.read + work.written,
        "written_bytes": work.written,
        "estimated_seconds": round(expected.seconds, 3) if expected is not None else None,
        "estimated_from_runs": expected.runs if expected is not None else 0,
        "steps": steps,
        "skipped": skipped,
    }


def print_steps(tree: dict[str, Any]) -> None:
    """Print the plan of a tree, which `tree_steps` returned."""
    print(f"{tree['path']}: {formatting.count(len(tree['steps']), 'step')}, {formatting.size(tree['bytes'])}")
    print(f"  {_amounts(tree)}")
    for step in tree["steps"][:_SHOWN_STEPS]:
        print(f"  {step['action']:8} {step['path']}")
    if len(tree["steps"]) > _SHOWN_STEPS:
        print(f"  and {len(tree['steps']) - _SHOWN_STEPS} more (--json lists all)")
    for path, reason in tree["skipped"]:
        print(f"  {path}: {reason}")


def _amounts(tree: dict[str, Any]) -> str:
    """Return how much a restore would read and write, and how long that may take."""
    read, written = (formatting.size(tree[key]) for key in ("read_bytes", "written_bytes"))
    text = f"would read {read} and write {written}"
    seconds = tree["estimated_seconds"]
    if seconds is None:
        return text
    runs = formatting.count(tree["estimated_from_runs"], "run")
    return f"{text}, in about {formatting.duration(round(seconds * 1e9))} (from the last {runs})"
