"""Restore in place: change a live directory until it equals a stored tree."""

from __future__ import annotations

import os
from types import MappingProxyType
from typing import TYPE_CHECKING

from castore.content.restore import one_file
from castore.content.restore.in_place import InPlace
from castore.content.restore.plan import Comparison
from castore.content.restore.planner import plan_entry, plan_tree
from castore.content.restore.range_writes import with_range_plans
from castore.content.streams import StreamReader
from castore.errors import RevertInterruptedError, UsageError
from castore.model.counting import count as counted
from castore.model.generation import MAX_DETAILS, Origin, decode_details
from castore.model.odd_text import printable
from castore.process.signal_shield import DeferInterrupts
from castore.services.last_scan import last_scan
from castore.services.reading import child_of
from castore.services.recorded import trusted_origins
from castore.services.sources import directory_ids, left_out, rules_of
from castore.services.underway import refuse_unfinished, report_foreign
from castore.services.unread import unread_paths
from castore.state.restore_runs import estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from castore.content.restore.metadata import Ownership
    from castore.content.restore.plan import TreePlan
    from castore.model.generation import Part
    from castore.progress import Progress
    from castore.services.selectors import Selection
    from castore.state.restore_runs import Estimate
    from castore.store import Store


def estimate_of(store: Store, plan: TreePlan) -> Estimate | None:
    """Return how long a planned restore probably takes, by this machine's last runs with the store."""
    return estimate(store.paths.restores_of(store.store_id, store.storage.location), plan.work)


def plan_in_place(
    store: Store,
    selection: Selection,
    top: str,
    ownership: Ownership,
    *,
    checksum: bool = False,
    trust_times: bool = False,
    range_writes: bool = True,
    leave_out: Sequence[str] = (),
    configured: Mapping[str, Origin] = MappingProxyType({}),
) -> TreePlan:
    """Compare the directory `top` with a selected directory of a tree, or the file `top` with a file.

    Files that snapshots of it leave out are not touched, nor are castore's own directories, `leave_out`.
    Files of the same size and time are compared by content, unless the scan cache shows that they are as the
    last snapshot read them. checksum: compare those, too. trust_times: compare no content. range_writes:
    large files may be overwritten in ranges. configured: the parts in castore.toml. Raises UsageError,
    IdentityError, DamageError, CastoreError.
    """
    part, generation = _selected_tree(selection), selection.generation
    _refuse_own(top, left_out(store, leave_out))
    with StreamReader(store) as reader:
        child = child_of(reader, part, selection.path)
        assert child is not None, "it is a tree"
        if not child.entry.is_dir:
            return plan_entry(reader, child, top, ownership, checksum=not trust_times)
        refuse_unfinished(store.paths.journals, top)
        report_foreign(store, top)
        details = decode_details(reader.read_all(generation.details.ref, MAX_DETAILS))
        origin = configured.get(part.name) or details.origins.get(part.name, Origin())
        rules = rules_of(origin, left_out(store, leave_out))
        below = os.fsencode(selection.path).strip(b"/")
        with last_scan(store, generation.service, part.name, top, rules) as scan:
            seen = None if below or checksum else scan
            unread = unread_paths(reader, generation, part.name, selection.path)
            comparison = Comparison(
                checksum=not trust_times,
                rules=rules,
                unread=unread.paths,
                unread_attributes=unread.attributes,
                below=below,
                scan=seen,
                range_writes=range_writes,
            )
            plan = plan_tree(reader, child, top, ownership, comparison)
        return with_range_plans(reader, plan, ownership)


def _selected_tree(selection: Selection) -> Part:
    """Return the part that a selection names. Raises UsageError if it is not a tree."""
    part, generation = selection.part, selection.generation
    if part is None:
        raise UsageError("name the tree to restore in place: SERVICE@SELECTOR:PART[/PATH]")
    if part.kind == "dump":
        what = f"{generation.service}@{generation.number}:{part.name}"
        raise UsageError(
            f"{what} is a dump, and --in-place restores a tree: to write it to a file, castore cat {what} "
            f">FILE; to restore the database, castore rollback {generation.service} "
            f"--to {generation.number}"
        )
    return part


def _refuse_own(top: str, own: frozenset[tuple[int, int]]) -> None:
    """Raise UsageError if a restore in place would change the store, or other files of castore."""
    path = os.path.realpath(top)
    while True:
        if any(directory_id in own for directory_id in directory_ids([path])):
            raise UsageError(f"{top} is in {path}, where castore keeps its own files: nothing was changed")
        if path == os.path.dirname(path):
            return
        path = os.path.dirname(path)


def origin_of(
    store: Store, selection: Selection, configured: dict[str, Origin], *, consent: bool = False
) -> str:
    """Return the path that a selected tree, or path in one, belongs at; empty if that is not known.

    configured: where parts belong according to castore.toml, which overrides what was recorded. consent: use
    the recorded path even if no snapshot on this machine took the tree from there.
    """
    part = selection.part
    if part is None or part.kind != "tree":
        return ""
    with StreamReader(store) as reader:
        details = decode_details(reader.read_all(selection.generation.details.ref, MAX_DETAILS))
    generation = selection.generation
    origins = trusted_origins(store, generation, details.origins, configured, consent=consent)
    origin = origins.get(part.name, Origin())
    return os.path.join(os.fsdecode(origin.path), selection.path.strip("/")) if origin.path else ""


def doubt_of(store: Store, selection: Selection, plan: TreePlan, place: str, origin: str) -> str:
    """Return why a plan may change other files than those of the selected tree; empty: it does not.

    place: the directory, or the file, that is changed. origin: where what is selected belongs, as `origin_of`
    returns it; empty: not known.
    """
    added, changed, removed = plan.summary
    is_own = store.hosts.is_own(selection.generation)
    is_same = bool(origin) and os.path.realpath(origin) == os.path.realpath(place)
    is_emptied = plan.empties and removed
    if not (changed or removed) or (is_own and is_same and not is_emptied):
        return ""
    known = f"it came from {printable(os.fsencode(origin))}"
    source = known if origin else "this machine does not know its directory"
    source += "" if is_own else ", on another host"
    reason = (
        "would become empty, because the stored tree is empty"
        if is_own and is_same
        else f"is not the directory that was taken: {source}"
    )
    return (
        f"{printable(os.fsencode(place))} {reason}; {counted(added, 'entry', 'entries')} would be added, "
        f"{changed} changed, {removed} removed"
    )


def restore_in_place(
    store: Store,
    plan: TreePlan,
    ownership: Ownership,
    progress: Progress,
    say: Callable[[str], None] = lambda _text: None,
) -> list[tuple[bytes, str]]:
    """Carry out a plan, or revert it and raise; return (path, reason) of what could not be restored.

    Replaced and removed files are moved aside, within the directory itself, until the end. Raises
    CastoreError, or RevertInterruptedError with the command that completes or reverts the restore.
    """
    with StreamReader(store) as reader:
        if plan.one_file:
            return one_file.carry_out(reader, plan, ownership, progress)
        return _carry_out(reader, plan, ownership, progress, say)


def _carry_out(
    reader: StreamReader,
    plan: TreePlan,
    ownership: Ownership,
    progress: Progress,
    say: Callable[[str], None],
) -> list[tuple[bytes, str]]:
    tree = InPlace(reader, plan, ownership, progress)
    try:
        tree.apply()
    except BaseException as error:
        _revert(tree, plan.top, error)
        raise
    try:
        with DeferInterrupts(lambda: say("all is restored, and what it replaced is being removed")):
            tree.commit()
    except KeyboardInterrupt:
        raise RevertInterruptedError(
            f"all is restored; removing what it replaced was interrupted: castore recover {plan.top}"
        ) from None
    # Read the problems after the cleanup, which adds what it could not remove.
    return tree.problems


def _revert(tree: InPlace, top: str, cause: BaseException) -> None:
    try:
        with DeferInterrupts(lambda: None):
            tree.revert()
    except KeyboardInterrupt:
        raise RevertInterruptedError(
            f"reverting {top} was interrupted, too: first castore recover {top}"
        ) from cause
