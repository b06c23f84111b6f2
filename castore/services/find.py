"""Find the generations of a service that have a path, and how it changed between them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from castore.content.allowance import Allowance
from castore.content.find import find
from castore.content.patterns import PathPattern
from castore.content.stored_dirs import read_file
from castore.content.versions import Damaged, Found, Version
from castore.errors import NotFoundError
from castore.model.tree import Content
from castore.services.details import read_details

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.content.streams import StreamReader
    from castore.content.versions import Seen
    from castore.model.generation import Generation, Part
    from castore.model.tree import Entry

Change: TypeAlias = Literal["", "added", "content", "metadata", "removed"]


class Span(NamedTuple):
    """Consecutive generations that have the same version of a path."""

    generations: list[Generation]
    """Oldest first."""
    entry: Entry | None
    """None for a dump, or if the path does not exist."""
    size: int
    change: Change = ""
    """The difference from the previous span; empty: not compared."""
    exists: bool = True
    follows: bool = False
    """Whether the path existed in the previous generation, too."""


class Hit(NamedTuple):
    """A path in a part on one host, with its versions."""

    host: str
    part: str
    path: bytes
    spans: list[Span]


class _Series(NamedTuple):
    """The generations of one host, oldest first."""

    host: str
    generations: list[Generation]


def _series(reader: StreamReader, generations: list[Generation]) -> list[_Series]:
    groups = reader.store.hosts.groups(generations)
    hosts: dict[str, list[Generation]] = {}
    for generation in sorted(generations, key=lambda one: one.number):
        hosts.setdefault(groups.key(generation), []).append(generation)
    return [_Series(host, found) for host, found in hosts.items()]


def _tree(generation: Generation, name: str) -> Part | None:
    part = generation.part(name)
    return part if part is not None and part.kind == "tree" else None


def find_paths(
    reader: StreamReader,
    generations: list[Generation],
    pattern: str,
    *,
    part: str = "",
    ignore_case: bool = False,
) -> Iterator[Hit | tuple[str, Damaged]]:
    """Yield the paths of a service that match in any generation, and (part, damage) where reading failed.

    pattern: an absolute pattern that begins with the path of a tree is matched relative to that tree. part:
    search only in this part; empty: in all. Raises UsageError, IdentityError.
    """
    for host, series in _series(reader, generations):
        names = dict.fromkeys(part.name for g in series for part in g.parts if part.kind == "tree")
        for name in names:
            if part in {"", name}:
                compiled = PathPattern(_relative(reader, series, name, pattern), ignore_case=ignore_case)
                for found in _find(reader, series, name, compiled):
                    if isinstance(found, Damaged):
                        yield name, found
                    else:
                        yield Hit(host, name, found.path, list(_spans(series, found.versions)))


def _relative(reader: StreamReader, series: list[Generation], name: str, pattern: str) -> str:
    """Return a pattern relative to the top of a tree, if it begins with the path of the tree."""
    if not pattern.startswith("/"):
        return pattern
    newest = next(sery for sery in reversed(series) if _tree(sery, name))
    origin = read_details(reader.store, newest).origins.get(name)
    top = os.fsdecode(origin.path).rstrip("/") if origin is not None else ""
    return pattern.removeprefix(top) if top and pattern.startswith(top + "/") else pattern


def _find(
    reader: StreamReader, series: list[Generation], name: str, pattern: PathPattern, *, exact: bool = False
) -> Iterator[Found | Damaged]:
    parts = [(sery.time, _tree(sery, name)) for sery in series]
    roots = [(time, part.content if part else None) for time, part in parts]
    allowance = Allowance.of(part for _, part in parts)
    return find(reader, roots, pattern, exact=exact, allowance=allowance)


def _spans(series: list[Generation], versions: list[Version]) -> Iterator[Span]:
    """Yield the generations of each version, but not those in which the path does not exist."""
    ends = [version.first for version in versions[1:]] + [len(series)]
    before = None
    for (first, seen), end in zip(versions, ends, strict=True):
        if seen is not None:
            entry = seen.child.entry
            yield Span(series[first:end], entry, entry.size, follows=before is not None)
        before = seen


def path_history(
    reader: StreamReader, generations: list[Generation], name: str, path: str
) -> Iterator[Hit | tuple[str, Damaged]]:
    """Yield for each host how a part, or a path in it, changed from generation to generation.

    path: empty for the whole part. Contents of small files are compared byte by byte. Raises NotFoundError,
    IdentityError, DamageError.
    """
    if not any(generation.part(name) for generation in generations):
        known = ", ".join(dict.fromkeys(part.name for generation in generations for part in generation.parts))
        raise NotFoundError(f"no generation has a part {name!r}; the parts are: {known}")
    exists = False
    for host, series in _series(reader, generations):
        if any(_tree(sery, name) for sery in series):
            for found in _find(reader, series, name, PathPattern.literal(path), exact=True):
                if isinstance(found, Damaged):
                    yield name, found
                else:
                    exists = True
                    yield Hit(host, name, found.path, list(_changes(reader, series, found.versions)))
        elif not path:
            exists = True
            yield Hit(host, name, b"", list(_dump_changes(series, name)))
    if not exists:
        raise NotFoundError(
            f"no generation has {path!r} in the part {name!r}; search for a name with 'castore find'"
        )


def _changes(reader: StreamReader, series: list[Generation], versions: list[Version]) -> Iterator[Span]:
    """Yield the versions of a path, each with its difference from the previous one."""
    if versions[0].first:
        yield Span(series[: versions[0].first], None, 0, exists=False)
    ends = [version.first for version in versions[1:]] + [len(series)]
    before: Seen | None = None
    span: Span | None = None
    for (first, seen), end in zip(versions, ends, strict=True):
        change: Change = "added" if before is None else "removed"
        if seen is not None and before is not None:
            change = _change(reader, before, seen)
        before = seen
        if not change and span is not None:
            span.generations.extend(series[first:end])
            continue
        if span is not None:
            yield span
        entry = seen.child.entry if seen is not None else None
        span = Span(series[first:end], entry, entry.size if entry else 0, change, exists=entry is not None)
    if span is not None:
        yield span


def _change(reader: StreamReader, before: Seen, after: Seen) -> Change:
    """Return how two versions differ; the content of a directory includes everything below it."""
    old, new = before.child, after.child
    one, other = old.entry, new.entry
    otherwise: Change = "" if before.frame == after.frame else "metadata"
    if (one.type, one.size, one.extra.target) != (other.type, other.size, other.extra.target):
        return "content"
    if (old.ref, old.offset) == (new.ref, new.offset):
        return otherwise
    if not other.is_file or (one.content == other.content == Content.OWN):
        return "content"
    same = b"".join(read_file(reader, old)) == b"".join(read_file(reader, new))
    return otherwise if same else "content"


def _dump_changes(series: list[Generation], name: str) -> Iterator[Span]:
    """Yield the versions of a dump, which are distinguished by their references."""
    run: list[Generation] = []
    before: Part | None = None
    change: Change = ""
    for generation in series:
        part = generation.part(name)
        if run and _is_same_dump(before, part):
            run.append(generation)
            continue
        if run:
            yield Span(run, None, before.size if before else 0, change, exists=before is not None)
        change = "removed" if part is None else "added" if before is None else "content"
        if part is None and not run:
            change = ""
        run, before = [generation], part
    yield Span(run, None, before.size if before else 0, change, exists=before is not None)


def _is_same_dump(one: Part | None, other: Part | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.root == other.root
