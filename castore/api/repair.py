"""The public result of `Store.repair`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from castore.maintenance.repair import RepairPlan, RepairResult  # noqa: TC001 - help() evaluates it

if TYPE_CHECKING:
    from castore.maintenance.verify import Verification


class RepairReport(msgspec.Struct, frozen=True):
    """What a repair found and did."""

    plan: RepairPlan
    """The damage, and what was to be done about it."""
    result: RepairResult | None
    """What was done, or None if nothing was to be done or it was not confirmed."""

    @property
    def after(self) -> Verification:
        """What is damaged now."""
        return self.plan.found if self.result is None else self.result.after
