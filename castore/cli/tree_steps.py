"""The steps and amounts of a restore or rollback, as text and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from castore.cli import formatting

if TYPE_CHECKING:
    from castore.content.restore.plan import TreePlan
    from castore.progress import Progress


def amounts_text(progress: Progress, seconds: float) -> str:
    """Return how much was restored, and how long it took."""
    return f"{formatting.count(progress.files, 'file')}, {formatting.size(progress.read)}, in {seconds:.1f} s"


def plain_amounts(progress: Progress, seconds: float) -> dict[str, Any]:
    """Return how much was restored, and how long it took, for JSON."""
    return {"files": progress.files, "bytes": progress.read, "seconds": round(seconds, 3)}


_SHOWN_STEPS = 40


def tree_steps(tree: TreePlan) -> dict[str, Any]:
    """Return the plan of a tree for JSON."""
    steps = [
        {"action": step.action, "path": formatting.printable(b"/".join(step.path) or b".")}
        for step in tree.steps
    ]
    skipped = [[formatting.printable(path), reason] for path, reason in tree.skipped]
    size = sum(step.size for step in tree.steps)
    return {"path": tree.top, "bytes": size, "steps": steps, "skipped": skipped}


def print_steps(tree: dict[str, Any]) -> None:
    """Print the plan of a tree, which `tree_steps` returned."""
    print(f"{tree['path']}: {formatting.count(len(tree['steps']), 'step')}, {formatting.size(tree['bytes'])}")
    for step in tree["steps"][:_SHOWN_STEPS]:
        print(f"  {step['action']:8} {step['path']}")
    if len(tree["steps"]) > _SHOWN_STEPS:
        print(f"  and {len(tree['steps']) - _SHOWN_STEPS} more (--json lists all)")
    for path, reason in tree["skipped"]:
        print(f"  {path}: {reason}")
