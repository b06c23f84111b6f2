"""Repair a store without asking."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.maintenance.repair import plan_repair, repair
from castore.progress import Progress

if TYPE_CHECKING:
    from castore.maintenance.repair import RepairPlan, RepairResult
    from castore.store import Store


def repair_store(store: Store) -> tuple[RepairPlan, RepairResult]:
    """Repair a store; return the plan and the result."""
    progress = Progress()
    with plan_repair(store, progress) as plan:
        return plan, repair(store, plan, progress)
