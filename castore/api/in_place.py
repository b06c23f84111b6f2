"""Restores in place: a live directory is made equal to a stored tree."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypedDict

import msgspec

from castore.api.progress import counters
from castore.api.selection import RestoreReport
from castore.content.restore.metadata import Ownership  # noqa: TC001 - help() evaluates it
from castore.content.restore.plan import TreePlan  # noqa: TC001 - help() evaluates it
from castore.errors import UsageError
from castore.services.ownership import stored_ownership
from castore.services.restore import plan_size
from castore.services.restore_in_place import (
    doubt_of,
    estimate_of,
    origin_of,
    plan_in_place,
    restore_in_place,
)
from castore.services.selectors import Selection  # noqa: TC001 - help() evaluates it
from castore.services.sources import configured_origins
from castore.state.directories import absolute
from castore.state.restore_runs import Estimate  # noqa: TC001 - help() evaluates it

if TYPE_CHECKING:
    from castore.api.store import Store
    from castore.progress import Watch


class InPlacePlan(msgspec.Struct, frozen=True):
    """What a restore in place would do, with all that it needs to do exactly that."""

    directory: str
    """The directory, or the file, that is changed."""
    tree: TreePlan
    doubt: str
    """Why it may change other files than those of the stored tree; empty: it does not."""
    estimate: Estimate | None
    """How long it probably takes; None: no earlier run on this machine is known."""
    selection: Selection
    ownership: Ownership


class InPlaceOptions(TypedDict, total=False):
    """The options of `Selection.plan_in_place`, which describes them."""

    checksum: bool
    trust_times: bool
    range_writes: bool
    trust_recorded: bool
    change_owner: bool | None
    numeric_ids: bool


def make_plan(
    store: Store,
    selection: Selection,
    directory: str | os.PathLike[str],
    options: InPlaceOptions,
) -> InPlacePlan:
    """Compare a directory with a selected tree, and return what has to be done; nothing is changed."""
    internal, place = store.internal, absolute(os.fspath(directory))
    settings = store.settings.of(selection.generation.service) if store.settings is not None else None
    configured = configured_origins(settings) if settings is not None else {}
    ownership = stored_ownership(options.get("change_owner"), numeric=options.get("numeric_ids", False))
    plan = plan_in_place(
        internal,
        selection,
        place,
        ownership,
        checksum=options.get("checksum", False),
        trust_times=options.get("trust_times", False),
        range_writes=options.get("range_writes", True),
        leave_out=store.excluded_paths,
        configured=configured,
    )
    origin = origin_of(internal, selection, configured, consent=options.get("trust_recorded", False))
    doubt = doubt_of(internal, selection, plan, place, origin)
    return InPlacePlan(place, plan, doubt, estimate_of(internal, plan), selection, ownership)


def carry_out(
    store: Store, plan: InPlacePlan, progress: Watch | None, *, accept_doubts: bool
) -> RestoreReport:
    """Do what a plan says, or revert it and raise. Raises UsageError for a doubt that is not accepted."""
    if plan.doubt and not accept_doubts:
        raise UsageError(f"nothing was changed: {plan.doubt}; to continue nevertheless: accept_doubts=True")
    counted = counters("restoring", progress)
    part = plan.selection.part
    if part is not None:
        counted.total, counted.most_files = plan_size(part, plan.tree), part.files
    problems = restore_in_place(store.internal, plan.tree, plan.ownership, counted, store.say)
    return RestoreReport([plan.directory], problems, [], counted)
