"""The sources of parts: trees, engines and open files; and how a generation records them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from castore.engines import find
from castore.engines.base import settings_of
from castore.errors import UsageError
from castore.model.generation import Origin
from castore.services.config import Service, TreePart, load
from castore.services.folders import above, owner_of, path_of
from castore.state.directories import home

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from castore.content.scan.rules import ScanRules
    from castore.engines.base import Engine
    from castore.services.config import Settings
    from castore.store import Store


class Tree(msgspec.Struct, frozen=True):
    """A directory to take as a part."""

    path: str
    exclude: tuple[str, ...] = ()
    one_file_system: bool = False
    exclude_caches: bool = False
    own: frozenset[bytes] = frozenset()
    """Paths below it that castore created temporarily, and which are not taken."""
    any_top: bool = False
    """Whether the last scan that it is compared with may be of another directory."""


class Absent(msgspec.Struct, frozen=True):
    """Parts that do not exist, which a pre-rollback generation records as absent."""

    kinds: dict[str, Literal["tree", "dump"]] = {}
    """Kind of each absent part, by name."""
    origins: dict[str, Origin] = {}
    """The path that each absent part would have, by name."""


NONE_ABSENT: Final = Absent()


class EngineSource(msgspec.Struct, frozen=True):
    """A part that an engine dumps."""

    name: str
    """Name of the engine."""
    engine: Engine[Any]


def program_source(dump: tuple[str, ...], restore: tuple[str, ...] = ()) -> EngineSource:
    """Return a part that is the standard output of a program.

    restore: the program that a rollback passes the dump to, on its standard input.
    """
    from castore.engines.command import Command

    return EngineSource("command", Command(program=tuple(dump), restore=tuple(restore)))


def file_source(path: str) -> EngineSource:
    """Return a part that is the content of one file."""
    from castore.engines.file import File

    return EngineSource("file", File(path=os.path.abspath(path)))


class Stream(msgspec.Struct, frozen=True):
    """A part that is read from an open file, such as standard input, to its end."""

    descriptor: int
    allow_empty: bool = False
    """Whether to accept an empty stream, which a pipeline also yields if its first program failed."""


Source = Tree | EngineSource | Stream


def left_out(store: Store, folders: Sequence[str]) -> frozenset[tuple[int, int]]:
    """Return (device, inode) of the directories that trees store empty: that of the store, and `folders`."""
    return frozenset(directory_ids([store.location, *folders]))


def rules_of(source: Tree | Origin, skip: frozenset[tuple[int, int]]) -> ScanRules:
    """Return the rules that say what of a tree is taken. skip: as `left_out` returns it."""
    from castore.content.scan.exclude import Exclude
    from castore.content.scan.rules import ScanRules

    top = os.path.abspath(os.fsdecode(source.path))
    exclude = Exclude(source.exclude, top) if source.exclude else None
    own, any_top = (source.own, source.any_top) if isinstance(source, Tree) else (frozenset(), False)
    return ScanRules(exclude, source.one_file_system, source.exclude_caches, skip, own, any_top)


def described_sources(settings: Settings | None, service: str) -> dict[str, Source]:
    """Return the parts of a service as castore.toml describes them, whose programs exist.

    Raises UsageError if there are none; ConfigError if their description has mistakes.
    """
    described = settings.of(service) if settings is not None else None
    if settings is None or described is None or not described.parts:
        where = settings.path if settings is not None else "no castore.toml"
        raise UsageError(
            f"{service!r} has no parts to take: give --tree, --dump or --exec, or describe it in "
            f"castore.toml ({where} was read)"
        )
    # Load again with its programs: the programs of other services may be missing.
    load(settings.path, home=home(), programs={service}, tolerant=True).of(service)
    return sources_of(described)


def sources_of(settings: Service) -> dict[str, Source]:
    """Return the sources of the parts that castore.toml describes for a service."""
    sources: dict[str, Source] = {}
    for name, part in settings.parts.items():
        own = part.source
        if isinstance(own, TreePart):
            sources[name] = Tree(own.path, own.exclude, own.one_file_system, own.exclude_caches)
        else:
            sources[name] = EngineSource(part.engine, own)
    return sources


def present_parts(sources: Mapping[str, Source]) -> dict[str, Source]:
    """Return the parts that exist now: one for all databases becomes one for each. Raises ProgramError."""
    present: dict[str, Source] = {}
    for name, source in sources.items():
        expanded = source.engine.expand(name) if isinstance(source, EngineSource) else {}
        if not expanded:
            present[name] = source
        for part, (engine, own) in expanded.items():
            present[part] = EngineSource(engine, own)
    return present


def origin(source: Source) -> Origin:
    """Return the origin of a part that a generation records."""
    if isinstance(source, Tree):
        return Origin(
            path=os.fsencode(os.path.abspath(source.path)),
            exclude=source.exclude,
            one_file_system=source.one_file_system,
            exclude_caches=source.exclude_caches,
        )
    if not isinstance(source, EngineSource):
        return Origin()
    engine = source.engine
    # Also record these as castore versions without engines did, which read them.
    old = Origin()
    if source.name == "command":
        from castore.engines.command import Command

        if isinstance(engine, Command):
            old = Origin(dump=engine.program, restore=engine.restore)
    elif source.name == "file":
        old = Origin(path=os.fsencode(engine.file_path() or ""))
    return msgspec.structs.replace(old, engine=source.name, settings=settings_of(engine))


def dated(origin: Origin, source: Source) -> Origin:
    """Return an origin with the version of the program, and the owners of the file and its directories."""
    version = source.engine.version() if isinstance(source, EngineSource) else ""
    path = path_of(origin)
    file = owner_of(path) if path and not isinstance(source, Tree) else None
    return msgspec.structs.replace(origin, producer=version, above=above(path), file=file)


def unrestorable(sources: dict[str, Source]) -> list[str]:
    """Return the names of the parts that no known program can restore in a rollback."""
    return [
        name
        for name, source in sources.items()
        if isinstance(source, Stream) or (isinstance(source, EngineSource) and source.engine.refusal())
    ]


def lacking(settings: Service | None, parts: Collection[str]) -> tuple[str, ...]:
    """Return the names of the parts that castore.toml describes and that are not among `parts`.

    A part that represents several, such as all databases of a server, has one of the same name among them.
    """
    return tuple(name for name in (settings.parts if settings is not None else ()) if name not in parts)


def configured_origins(settings: Service) -> dict[str, Origin]:
    """Return where the parts of a service belong, according to castore.toml."""
    return {name: origin(source) for name, source in sources_of(settings).items()}


def merged_origins(recorded: dict[str, Origin], configured: dict[str, Origin]) -> dict[str, Origin]:
    """Return where parts belong: as configured, else as recorded. `producer` is always as recorded."""
    merged = dict(recorded)
    for name, one in _of_generation(recorded, configured).items():
        before = recorded.get(name, Origin())
        merged[name] = msgspec.structs.replace(one, producer=before.producer)
        if path_of(before) == path_of(one):
            merged[name] = msgspec.structs.replace(merged[name], above=before.above, file=before.file)
    return merged


def _of_generation(recorded: dict[str, Origin], configured: dict[str, Origin]) -> dict[str, Origin]:
    """Return the configured parts; one that represents several becomes those of the generation."""
    merged = dict(configured)
    settings = {name: one.settings for name, one in recorded.items()}
    for name, one in configured.items():
        source = engine_of(one) if one.engine else None
        parts = source.engine.recorded(name, settings) if source is not None else {}
        merged |= {part: origin(EngineSource(kind, engine)) for part, (kind, engine) in parts.items()}
    return merged


def taker_of(origin: Origin) -> EngineSource | None:
    """Return the engine that restores a part, or None. Raises UsageError."""
    if origin.restore:
        from castore.engines.command import Command

        # This program restores the dump, whatever engine took it.
        timeout = origin.settings.get("timeout")
        run_as = origin.settings.get("run-as")
        command = Command(program=origin.dump, restore=origin.restore, timeout=timeout, run_as=run_as)
        return EngineSource("command", command)
    return engine_of(origin)


def engine_of(origin: Origin) -> EngineSource | None:
    """Return the engine that took a part, or None if it came from an open file. Raises UsageError."""
    if origin.engine:
        return recorded_engine(origin.engine, origin.settings)
    if origin.dump:
        return program_source(origin.dump, origin.restore)
    if origin.path:
        return file_source(os.fsdecode(origin.path))
    return None


def recorded_engine(name: str, settings: Mapping[str, Any]) -> EngineSource:
    """Return an engine with the settings that were recorded of it. Raises UsageError."""
    try:
        return EngineSource(name, msgspec.convert(settings, find(name)))
    except msgspec.ValidationError as error:
        raise UsageError(f"the recorded settings of the engine {name!r} are wrong: {error}") from None


def directory_ids(paths: Sequence[str]) -> list[tuple[int, int]]:
    """Return (device, inode) of the absolute paths that exist; the URL of a store is no path."""
    ids = []
    for path in filter(os.path.isabs, paths):
        try:
            info = os.stat(path)
        except OSError:
            continue
        ids.append((info.st_dev, info.st_ino))
    return ids
