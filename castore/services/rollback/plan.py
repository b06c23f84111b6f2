"""The plan of a rollback, as data: where each part belongs, and how it differs from the live state."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import msgspec

from castore.content.streams import StreamReader
from castore.errors import UsageError
from castore.model.generation import Origin
from castore.services.details import read_details
from castore.services.nested_parts import below, configured_path, with_endings
from castore.services.rollback.steps import refuse_without_folder
from castore.services.rollback.trees import TreePlanner
from castore.services.sources import (
    Absent,
    EngineSource,
    Source,
    Tree,
    engine_of,
    lacking,
    origin,
    taker_of,
)

if TYPE_CHECKING:
    from castore.content.restore.plan import TreePlan
    from castore.model.generation import Generation, Part
    from castore.services.rollback.request import RollbackContext, RollbackRequest
    from castore.store import Store


class DumpPlan(msgspec.Struct, frozen=True):
    """How a dump is restored."""

    part: Part
    source: EngineSource
    warning: str = ""
    """Why restoring it may fail or lose something, for people; empty: no reason."""

    @property
    def live_paths(self) -> list[str]:
        """The path of the live file that the dump replaces, if the engine has one."""
        path = configured_path(self.source.engine)
        return [] if path is None else [path]

    @property
    def into(self) -> str:
        """The target of the restore, for people: a path, a program or a database."""
        settings = origin(self.source)
        if settings.restore:
            return " ".join(settings.restore)
        if settings.path:
            return os.fsdecode(settings.path)
        return f"{settings.engine} {self.source.engine.label()}".strip()


class AddedPart(msgspec.Struct, frozen=True):
    """A live part that did not exist in the target generation, and is removed."""

    name: str
    path: str
    """The path of the part, which may no longer exist."""
    source: EngineSource | None
    """The engine of a dump; None for a tree."""

    @property
    def exists(self) -> bool:
        """Whether the part exists, so that there is something to remove."""
        return os.path.lexists(self.path) if self.source is None else self.source.engine.exists()


class RollbackPlan(msgspec.Struct, frozen=True):
    """The changes that a rollback would make."""

    target: Generation
    trees: dict[str, TreePlan] = {}
    dumps: tuple[DumpPlan, ...] = ()
    added_parts: tuple[AddedPart, ...] = ()
    untouched: tuple[str, ...] = ()
    """Live parts of the service that `target` does not have."""


def plan_rollback(store: Store, request: RollbackRequest, context: RollbackContext) -> RollbackPlan:
    """Compare the live state with the target and return what has to be done; nothing is changed.

    Raises UsageError for a part without a destination.
    """
    target, origins = request.target, request.origins
    dumps = [
        _plan_dump(part, origins.get(part.name, Origin())) for part in target.parts if part.kind == "dump"
    ]
    added_parts = _added_parts(store, target, origins)
    paths_of = {
        dump.part.name: with_endings(dump.live_paths, dump.source.engine.sidecar_suffixes) for dump in dumps
    }
    paths_of |= {added.name: [added.path] for added in added_parts}
    with StreamReader(store) as reader:
        trees = _plan_trees(tree_planner(store, reader, request, context), paths_of)
    covered = {part.name for part in target.parts} | {added.name for added in added_parts}
    untouched = list(lacking(context.service, covered))
    untouched += [name for name in target.missing_parts if name not in covered]
    return RollbackPlan(target, trees, tuple(dumps), added_parts, tuple(dict.fromkeys(untouched)))


def tree_planner(
    store: Store, reader: StreamReader, request: RollbackRequest, context: RollbackContext
) -> TreePlanner:
    """Return what plans the trees of a rollback."""
    return TreePlanner(
        store=store,
        reader=reader,
        target=request.target,
        origins=request.origins,
        ownership=request.ownership,
        leave_out=context.leave_out,
        trust_times=request.trust_times,
        range_writes=request.range_writes,
    )


def _plan_trees(planner: TreePlanner, paths_of: dict[str, list[str]]) -> dict[str, TreePlan]:
    """Return the plans of the trees. paths_of: the paths of all other parts, by name."""
    parts = [part for part in planner.target.parts if part.kind == "tree"]
    tops = {part.name: os.fsdecode(planner.origins.get(part.name, Origin()).path) for part in parts}
    paths_of = paths_of | {name: [top] for name, top in tops.items()}
    trees = {}
    for part in parts:
        origin = planner.origins.get(part.name, Origin())
        top = tops[part.name]
        inside = any(below(path, [top]) for name, path in tops.items() if name != part.name)
        if origin.path and not origin.above and not inside:
            refuse_without_folder(top)
        others = [path for name, paths in paths_of.items() if name != part.name for path in paths]
        trees[part.name] = planner.plan(part, below(top, others))
    return trees


def _added_parts(store: Store, target: Generation, origins: dict[str, Origin]) -> tuple[AddedPart, ...]:
    """Return the parts that `target` records as absent and whose present path is known."""
    added = []
    for name, kind in read_details(store, target).absent_parts.items():
        at = origins.get(name, Origin())
        source = engine_of(at) if kind == "dump" else None
        path = os.fsdecode(at.path) or (configured_path(source.engine) if source else None) or ""
        if path and target.part(name) is None:
            added.append(AddedPart(name, path, source))
    return tuple(added)


def _plan_dump(part: Part, origin: Origin) -> DumpPlan:
    source = taker_of(origin)
    if source is None or source.engine.refusal():
        raise UsageError(
            f"cannot restore the dump {part.name!r}: no program is known that does; name one with "
            f"--restore {part.name}='PROGRAM ...', or as 'restore' of the part in castore.toml"
        )
    doubt = source.engine.compatibility_warning(origin.producer) if origin.producer else ""
    return DumpPlan(part, source, doubt)


def present_sources(plan: RollbackPlan, origins: dict[str, Origin]) -> tuple[dict[str, Source], Absent]:
    """Return how to snapshot the live state that a plan changes, and which of its parts do not exist.

    Raises UsageError if no program is known that dumps a part.
    """
    sources: dict[str, Source] = {}
    absent = Absent()
    kinds: dict[str, Literal["tree", "dump"]] = {part.name: part.kind for part in plan.target.parts}
    kinds |= {added.name: "dump" if added.source else "tree" for added in plan.added_parts}
    for name, kind in kinds.items():
        found = origins.get(name, Origin())
        source: Source | None
        if kind == "tree":
            where = os.fsdecode(found.path)
            source = Tree(where, found.exclude, found.one_file_system, found.exclude_caches)
            exists = os.path.lexists(where)
        else:
            source = engine_of(found)
            if source is None:
                raise UsageError(
                    f"cannot dump the present state of {name!r}: no program is known that does; name it as "
                    "'dump' of the part in castore.toml, or do without a pre-rollback "
                    "generation: --no-pre-rollback"
                )
            exists = source.engine.exists()
        if exists:
            sources[name] = source
        else:
            absent.kinds[name] = kind
            absent.origins[name] = found
    return sources, absent
