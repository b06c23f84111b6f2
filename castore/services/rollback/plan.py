"""The plan of a rollback, as data: where each part belongs, and how it differs from the live state."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from castore.content.allowance import Allowance
from castore.content.diff import TIMES, diff_trees
from castore.content.restore.plan import Comparison, Step, TreePlan
from castore.content.restore.planner import plan_tree
from castore.content.stored_dirs import open_top
from castore.content.streams import StreamReader
from castore.errors import UsageError
from castore.model.generation import MAX_DETAILS, Details, Origin, decode_details
from castore.services.last_scan import last_scan
from castore.services.nested_parts import below, configured_path, with_endings
from castore.services.rollback.steps import refuse_without_folder
from castore.services.sources import (
    Absent,
    EngineSource,
    Source,
    Tree,
    engine_of,
    lacking,
    left_out,
    origin,
    rules_of,
    taker_of,
)
from castore.services.underway import refuse_unfinished, report_foreign
from castore.services.unread import unread_paths

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from castore.content.restore.metadata import Ownership
    from castore.model.generation import Generation, Part
    from castore.services.config import Service
    from castore.store import Store


@dataclass(frozen=True)
class DumpPlan:
    """How a dump is restored."""

    part: Part
    source: EngineSource
    warning: str = ""
    """Why restoring it may fail or lose something, for people; empty: no reason."""

    @property
    def places(self) -> list[str]:
        """The path of the live file that the dump replaces, if the engine has one."""
        found = configured_path(self.source.engine)
        return [] if found is None else [found]

    @property
    def into(self) -> str:
        """Where the dump is restored to, for people."""
        settings = origin(self.source)
        if settings.restore:
            return " ".join(settings.restore)
        if settings.path:
            return os.fsdecode(settings.path)
        return f"{settings.engine} {self.source.engine.label()}".strip()


@dataclass(frozen=True)
class RemovalPlan:
    """A live part that did not exist in the target generation, and is removed."""

    name: str
    path: str
    """Where the part is, or was."""
    source: EngineSource | None
    """None: it is a tree."""

    @property
    def there(self) -> bool:
        """Whether the part exists, so that there is something to remove."""
        return os.path.lexists(self.path) if self.source is None else self.source.engine.exists()


@dataclass(frozen=True)
class RollbackPlan:
    """What a rollback would do."""

    target: Generation
    trees: dict[str, TreePlan] = field(default_factory=dict)
    dumps: tuple[DumpPlan, ...] = ()
    removals: tuple[RemovalPlan, ...] = ()
    untouched: tuple[str, ...] = ()
    """Live parts of the service that `target` does not have."""


def read_details(store: Store, generation: Generation) -> Details:
    """Return the encrypted details of a generation. Raises IdentityError, DamageError."""
    with StreamReader(store) as reader:
        return decode_details(reader.read_all(generation.details.ref, MAX_DETAILS))


def plan_rollback(
    store: Store,
    target: Generation,
    origins: dict[str, Origin],
    ownership: Ownership,
    *,
    leave_out: Sequence[str] = (),
    settings: Service | None = None,
    trust_times: bool = False,
) -> RollbackPlan:
    """Compare the live state with `target` and return what has to be done; nothing is changed.

    origins: where each part belongs now. leave_out: castore's own directories, which are never changed.
    settings: the service in castore.toml. trust_times: as for `plan_live_tree`. Raises UsageError for a part
    without a destination.
    """
    dumps = [
        _plan_dump(part, origins.get(part.name, Origin())) for part in target.parts if part.kind == "dump"
    ]
    removals = _plan_removals(store, target, origins)
    paths_of = {
        dump.part.name: with_endings(dump.places, dump.source.engine.sidecar_suffixes) for dump in dumps
    }
    paths_of |= {one.name: [one.path] for one in removals}
    tops = {
        part.name: [os.fsdecode(origins.get(part.name, Origin()).path)]
        for part in target.parts
        if part.kind == "tree"
    }
    paths_of |= tops
    trees = {}
    with StreamReader(store) as reader:
        for part in target.parts:
            if part.kind == "tree":
                found = origins.get(part.name, Origin())
                others = [path for name, paths in paths_of.items() if name != part.name for path in paths]
                above = [path for name, (path,) in tops.items() if name != part.name]
                inside = any(below(path, [os.fsdecode(found.path)]) for path in above)
                if found.path and not found.above and not inside:
                    refuse_without_folder(os.fsdecode(found.path))
                given = (store, reader, target, part, found, ownership, None, leave_out)
                apart = below(os.fsdecode(found.path), others)
                trees[part.name] = plan_live_tree(*given, apart, trust_times=trust_times)
    covered = {part.name for part in target.parts} | {one.name for one in removals}
    untouched = [*lacking(settings, covered), *(name for name in target.missing_parts if name not in covered)]
    return RollbackPlan(target, trees, tuple(dumps), removals, tuple(dict.fromkeys(untouched)))


def _plan_removals(
    store: Store, target: Generation, origins: dict[str, Origin]
) -> tuple[RemovalPlan, ...]:
    """Return the parts that `target` records as absent and whose present path is known."""
    found = []
    for name, kind in read_details(store, target).absent_parts.items():
        at = origins.get(name, Origin())
        source = engine_of(at) if kind == "dump" else None
        path = os.fsdecode(at.path) or (configured_path(source.engine) if source else None) or ""
        if path and target.part(name) is None:
            found.append(RemovalPlan(name, path, source))
    return tuple(found)


def _plan_dump(part: Part, found: Origin) -> DumpPlan:
    source = taker_of(found)
    if source is None or source.engine.refusal():
        raise UsageError(
            f"cannot restore the dump {part.name!r}: no program is known that does; name one with "
            f"--restore {part.name}='PROGRAM ...', or as 'restore' of the part in castore.toml"
        )
    doubt = source.engine.compatibility_warning(found.producer) if found.producer else ""
    return DumpPlan(part, source, doubt)


def plan_live_tree(
    store: Store,
    reader: StreamReader,
    target: Generation,
    part: Part,
    found: Origin,
    ownership: Ownership,
    pre_rollback: Generation | None,
    leave_out: Sequence[str],
    apart: AbstractSet[bytes],
    *,
    trust_times: bool = False,
) -> TreePlan:
    """Compare a live tree with the stored one.

    pre_rollback: a pre-rollback generation of the live state: files differ if their content in it does,
    whatever their times are. Without one, files are compared by content; with trust_times, by size and time.
    apart: paths in the tree that belong to other parts. Raises UsageError if it is not known where the tree
    belongs.
    """
    if not found.path or part.content is None:
        raise UsageError(
            f"it is not known where the tree {part.name!r} belongs: describe the part in castore.toml, or "
            f"restore it into a directory: castore restore {target.service}@{target.number}:{part.name} DIR"
        )
    live = os.fsdecode(found.path)
    if not os.path.lexists(live):
        # The rollback makes the directory first; this step is what `--dry-run` shows.
        return TreePlan(live, (Step("create", (), open_top(reader, part.content)),), {})
    refuse_unfinished(store.places.journals, live)
    report_foreign(store, live)
    rules = rules_of(found, left_out(store, leave_out))
    with last_scan(store, target.service, part.name, live, rules) as scan:
        unread = [unread_paths(reader, one, part.name) for one in (target, pre_rollback)]
        comparison = Comparison(
            _changed(reader, pre_rollback, part),
            checksum=pre_rollback is None and not trust_times,
            rules=rules,
            apart=apart,
            unread=unread[0].paths | unread[1].paths,
            unread_attributes=unread[0].attributes | unread[1].attributes,
            scan=scan,
        )
        return plan_tree(reader, open_top(reader, part.content), live, ownership, comparison)


def _changed(reader: StreamReader, pre_rollback: Generation | None, part: Part) -> set[bytes]:
    """Return the paths of a tree whose content differs between the pre-rollback generation and the target."""
    before = pre_rollback.part(part.name) if pre_rollback is not None else None
    if before is None or before.content is None or part.content is None:
        return set()
    allowance = Allowance.of([before, part], TIMES)
    differences = diff_trees(reader, before.content, part.content, allowance)
    return {found.path for found in differences if found.change == "content"}


def present_sources(plan: RollbackPlan, origins: dict[str, Origin]) -> tuple[dict[str, Source], Absent]:
    """Return how to snapshot the live state that a plan changes, and which of its parts do not exist.

    Raises UsageError if no program is known that dumps a part.
    """
    sources: dict[str, Source] = {}
    absent = Absent()
    kinds: dict[str, Literal["tree", "dump"]] = {part.name: part.kind for part in plan.target.parts}
    kinds |= {one.name: "dump" if one.source else "tree" for one in plan.removals}
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
                    "'dump' of the part in castore.toml, or do without a pre-rollback generation: --no-safety"
                )
            exists = source.engine.exists()
        if exists:
            sources[name] = source
        else:
            absent.kinds[name] = kind
            absent.origins[name] = found
    return sources, absent
