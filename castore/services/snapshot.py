"""Take a generation: store every part, then commit the record of the generation, all or nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from castore.content.pipeline import Pipeline
from castore.content.previous_stream import PreviousStream
from castore.content.ref_tree import iter_runs_of_chunks
from castore.content.scan.cache import scan_path
from castore.content.scan.cache_reader import ScanCacheReader
from castore.content.scan.cache_writer import ScanCacheWriter
from castore.content.scan.exclude import Exclude
from castore.content.scan.rules import ScanRules
from castore.content.scan.walker import store_tree
from castore.content.streams import store_stream
from castore.engines import find
from castore.engines.base import settings_of
from castore.engines.command import Command
from castore.engines.dump_stream import DumpStream
from castore.engines.file import File
from castore.errors import BusyError, DamageError, ProgramError, StorageError, UsageError
from castore.model.counting import count as counted
from castore.model.generation import Details, Generation, Origin, Part, StoredRef, encode
from castore.model.names import check_name, check_revision
from castore.process.program import enlarge_pipe
from castore.progress import Progress
from castore.services.config import Service, TreePart
from castore.services.events import event
from castore.services.folders import above, owner_of, path_of
from castore.services.hosts import note_taken
from castore.services.underway import refuse_unfinished, report_foreign
from castore.store.format.deletion import FOLDER as DELETIONS
from castore.store.format.envelope import Refusal
from castore.store.reachability import is_whole, roots_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from castore.engines.base import Engine
    from castore.model.refs import Ref
    from castore.services.hooks import Hooks
    from castore.store import Session, Store


class _OvertakenError(BusyError):
    """A prune removed something from the store that this snapshot depends on, while it was taken."""


@dataclass(frozen=True)
class Tree:
    """A directory to take as a part."""

    path: str
    exclude: tuple[str, ...] = ()
    one_file_system: bool = False
    exclude_caches: bool = False
    own: frozenset[bytes] = frozenset()
    """Paths below it that castore created temporarily, and which are not taken."""


@dataclass(frozen=True)
class Absent:
    """Parts that do not exist, which a pre-rollback generation records as absent."""

    kinds: dict[str, Literal["tree", "dump"]] = field(default_factory=dict)
    """Kind of each absent part, by name."""
    origins: dict[str, Origin] = field(default_factory=dict)
    """Where each absent part would be, by name."""


@dataclass(frozen=True)
class EngineSource:
    """A part that an engine dumps."""

    name: str
    """Name of the engine."""
    engine: Engine[Any]


def program_source(dump: tuple[str, ...], restore: tuple[str, ...] = ()) -> EngineSource:
    """Return a part that is the standard output of a program.

    restore: the program that a rollback passes the dump to, on its standard input.
    """
    return EngineSource("command", Command(program=tuple(dump), restore=tuple(restore)))


def file_source(path: str) -> EngineSource:
    """Return a part that is the content of one file."""
    return EngineSource("file", File(path=os.path.abspath(path)))


@dataclass(frozen=True)
class Stream:
    """A part that is read from an open file, such as standard input, to its end."""

    descriptor: int
    allow_empty: bool = False
    """Whether to accept an empty stream, which a pipeline also yields if its first program failed."""


Source = Tree | EngineSource | Stream
_NONE_ABSENT: Final = Absent()
_LOOKED_AT: Final = 100
"""How many generations are searched for the last state of a part: partial ones may lack it."""


def snapshot(
    store: Store,
    service: str,
    sources: dict[str, Source],
    *,
    revision: str = "",
    pre_rollback: bool = False,
    interrupted: bool = False,
    missing_parts: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    around: Hooks | None = None,
    absent: Absent = _NONE_ABSENT,
    progress: Callable[[str, Progress], None] = lambda _name, _tally: None,
) -> Generation:
    """Take one generation of `service` and return it. The caller holds the service's lock.

    revision: what the generation is filed under. pre_rollback: it is a pre-rollback generation. interrupted:
    an earlier rollback of the service is unfinished, and the generation is marked so. missing_parts: parts of
    the service that are not taken: the generation is partial. leave_out: castore's own directories, which
    trees store empty. around: programs to run before and after the parts are taken; `around.failures` then
    has the failures of the latter. absent: parts that a pre-rollback generation records as absent. progress:
    called at the start of each part.

    Raises UsageError, ProgramError, StorageError, DamageError; then nothing was committed, and the next try
    finds the chunks that were stored already.
    """
    from castore.services.recorded import remember  # noqa: PLC0415 - it imports this module

    with event(store, "snapshot", service) as note:
        # An open file cannot be read a second time.
        repeats = not any(isinstance(source, Stream) for source in sources.values())
        for tries_left in (2, 1, 0):
            try:
                taken, origins = _snapshot(
                    *(store, service, sources, revision, pre_rollback, interrupted, tuple(missing_parts)),
                    *(leave_out, around, absent, progress),
                )
                break
            except _OvertakenError:
                if not (repeats and tries_left):
                    raise
        note.of(taken)
        stored = sum(part.stored_bytes for part in taken.parts)
        marks = ", pre-rollback" if pre_rollback else ""
        marks += ", after an unfinished rollback" if interrupted else ""
        marks += f", partial: without {', '.join(missing_parts)}" if missing_parts else ""
        note.text = f"{counted(taken.size, 'byte')}, {stored:,} stored{marks}"
    remember(store, service, origins)
    return taken


def _snapshot(
    store: Store,
    service: str,
    sources: dict[str, Source],
    revision: str,
    pre_rollback: bool,
    interrupted: bool,
    missing_parts: tuple[str, ...],
    leave_out: Sequence[str],
    around: Hooks | None,
    absent: Absent,
    progress: Callable[[str, Progress], None],
) -> tuple[Generation, dict[str, Origin]]:
    check_name("service", service)
    check_revision(revision)
    if not sources and not absent.kinds:
        raise UsageError(
            f"nothing to take of {service!r}: name at least one tree, dump or program"
        )
    started = time.time_ns()
    clock = time.monotonic_ns()
    store.sync(report_older=not pre_rollback)
    older = store.older
    epoch = store.index.epoch()
    skip = left_out(store, leave_out)
    parts = []
    origins = dict(absent.origins)
    warnings: list[tuple[str, bytes, str]] = []
    with ExitStack() as stack, store.session() as session:
        scans: list[ScanCacheWriter] = []
        with around if around is not None else contextlib.nullcontext():
            for name, source in present_parts(sources).items():
                tally = Progress(total=_expected_size(store, service, name))
                progress(check_name("part", name), tally)
                if isinstance(source, Tree):
                    if not interrupted:
                        refuse_unfinished(store.places.journals, source.path)
                    report_foreign(store, source.path)
                    scans.append(ScanCacheWriter(scan_path(store, service, name), store.index.epoch()))
                    stack.callback(scans[-1].discard)
                    rules = rules_of(source, skip)
                    root = _store_tree(
                        store, session, service, name, source.path, rules, scans[-1], tally
                    )
                else:
                    parent = _last_part(store, service, name)
                    secret = store.writer_key.dump_key(service, name)
                    root = _store_dump(store, session, source, secret, parent, tally)
                parts.append(_part(name, source, root, tally))
                origins[name] = _dated(origin(source), source)
                warnings += [(name, path, reason) for path, reason in tally.warnings]
        hooks = around.programs if around is not None else ()
        details = _store_bytes(store, session, encode(Details(origins, tuple(warnings), hooks, absent.kinds)))
        session.finish()
        generation = Generation(
            service=service,
            number=0,
            time=started,
            revision=revision,
            host=store.host.name,
            host_id=store.host.id,
            parts=tuple(parts),
            details=details,
            session=session.id,
            pre_rollback=pre_rollback or interrupted,
            interrupted=interrupted,
            missing_parts=missing_parts,
            duration=time.monotonic_ns() - clock,
        )
        generation = _commit(store, generation, epoch)
        store.older = store.older or older
        # The generation is committed: failures from here on cost space or time at most.
        for scan in scans:
            scan.keep()
        with contextlib.suppress(StorageError):
            # The packs of unchanged trees are not known here: those used so far count as used still.
            used = session.pack_usage | store.index.usage.of(service) if scans else session.pack_usage
            store.index.usage.set(service, used)
            store.references.evict(store.index.usage.total())
    return generation, origins


def _commit(store: Store, generation: Generation, epoch: bytes) -> Generation:
    """Assign a generation's number and commit it, unless chunks it needs were removed since `epoch`."""
    with store.storage.lock():
        # A concurrent prune sees this generation, or this process sees what the prune removes.
        store.sync(report_older=not generation.pre_rollback)
        unread = [name for name, reason in store.damaged.items() if not isinstance(reason, Refusal)]
        if lacking := [name for name in unread if name.startswith(DELETIONS)]:
            raise DamageError(
                f"{lacking[0]} is damaged: it is not known which packs are about to be removed; nothing was "
                "committed; run castore repair, then try again"
            )
        if store.index.epoch() != epoch and not is_whole(store, roots_of(generation)):
            raise _OvertakenError(
                f"chunks that this snapshot of {generation.service!r} shares with older ones were removed "
                "from the store while it was taken; nothing was committed, try again"
            )
        newest = next(filter(store.is_own, store.newest_first(generation.service)), None)
        generation = msgspec.structs.replace(
            generation,
            number=store.next_number(generation.service),
            parent=newest.number if newest is not None else 0,
        )
        with contextlib.suppress(StorageError):
            note_taken(store, generation.service, generation.number)
        store.commit(generation)
    return generation


def _store_tree(
    store: Store,
    session: Session,
    service: str,
    name: str,
    path: str,
    rules: ScanRules,
    new: ScanCacheWriter,
    tally: Progress,
) -> Ref | None:
    roots: list[Ref | None] = []
    with (
        last_scan(store, service, name, path, rules) as old,
        Pipeline(session, store.cutter, tally) as ingest,
    ):
        store_tree(ingest, path, rules, roots.append, new, old)
    return roots[0]


def _part(name: str, source: Source, root: Ref | None, tally: Progress) -> Part:
    return Part(
        name=name,
        kind="tree" if isinstance(source, Tree) else "dump",
        root=StoredRef.of(root),
        size=tally.read,
        files=tally.files,
        chunks=tally.chunks,
        new_chunks=tally.new_chunks,
        new_bytes=tally.new_bytes,
        stored_bytes=tally.stored,
        after_delta=tally.after_delta,
        after_compression=tally.after_compression,
        skipped_files=len(tally.warnings),
    )


@contextlib.contextmanager
def last_scan(
    store: Store, service: str, part: str, path: str, rules: ScanRules
) -> Iterator[ScanCacheReader | None]:
    """Open the scan cache that the last snapshot of a service made of the tree at `path` with these rules.

    Yield None if this machine has none.
    """
    found = _last_part(store, service, part)
    root = found.content if found is not None and found.kind == "tree" else None
    old = None
    with contextlib.suppress(OSError):
        old = ScanCacheReader.open(store, scan_path(store, service, part), root, rules.digest(os.stat(path)))
    with old if old is not None else contextlib.nullcontext():
        yield old


def _last_part(store: Store, service: str, name: str) -> Part | None:
    """Return a part in this host's newest generation that has it, which the next one is compared with."""
    newest = [one for one in itertools.islice(store.newest_first(service), _LOOKED_AT) if one.part(name)]
    found = next(filter(store.is_own, newest), newest[0] if newest else None)
    return None if found is None else found.part(name)


def _expected_size(store: Store, service: str, name: str) -> int:
    """Return the size of a part in this host's last intact generation that has it; 0 if none has."""
    for one in filter(store.is_own, itertools.islice(store.newest_first(service), _LOOKED_AT)):
        if not one.interrupted and (part := one.part(name)) is not None:
            return part.size
    return 0


def _store_dump(
    store: Store, session: Session, source: Source, secret: str, parent: Part | None, tally: Progress
) -> Ref | None:
    roots: list[Ref | None] = []
    with Pipeline(session, store.cutter, tally) as ingest, ExitStack() as stack:
        if parent is not None and parent.kind == "dump":
            ingest.compare_with(PreviousStream(iter_runs_of_chunks(store, parent.content)))
        if isinstance(source, EngineSource):
            dump = stack.enter_context(source.engine.stable_dump(secret))
        elif isinstance(source, Stream):
            dump = DumpStream(_stream_reader(source))
        else:
            raise TypeError(source)
        store_stream(ingest, dump.readinto, roots.append)
        tally.warnings += dump.warnings
    return roots[0]


def _stream_reader(source: Stream) -> Callable[[memoryview], int]:
    """Return a function that reads from an open file; it raises ProgramError if the file is empty."""
    enlarge_pipe(source.descriptor)
    empty = not source.allow_empty

    def readinto(view: memoryview) -> int:
        nonlocal empty
        count = os.readv(source.descriptor, [view])
        if not count and empty:
            raise ProgramError(
                "the dump that was read from standard input or a pipe is empty: the program that writes it "
                "may have failed; nothing was committed (if it is to be empty: --allow-empty)"
            )
        empty = False
        return count

    return readinto


def _store_bytes(store: Store, session: Session, data: bytes) -> StoredRef:
    found: list[Ref | None] = []
    # A delta would save a few bytes only, and keep packs of earlier generations in use.
    with Pipeline(session, store.cutter, Progress(), deltas=False) as ingest:
        ingest.write(data)
        ingest.end_stream(found.append)
    stored = StoredRef.of(found[0])
    if stored is None:
        raise AssertionError("details are never empty")
    return stored


def left_out(store: Store, folders: Sequence[str]) -> frozenset[tuple[int, int]]:
    """Return (device, inode) of the directories that trees store empty: that of the store, and `folders`."""
    return frozenset(directory_ids([store.location, *folders]))


def rules_of(source: Tree | Origin, skip: frozenset[tuple[int, int]]) -> ScanRules:
    """Return the rules that say what of a tree is taken. skip: as `left_out` returns it."""
    top = os.path.abspath(os.fsdecode(source.path))
    exclude = Exclude(source.exclude, top) if source.exclude else None
    own = source.own if isinstance(source, Tree) else frozenset()
    return ScanRules(exclude, source.one_file_system, source.exclude_caches, skip, own)


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


def present_parts(sources: dict[str, Source]) -> dict[str, Source]:
    """Return the parts that exist now: one for all databases becomes one for each. Raises ProgramError."""
    found: dict[str, Source] = {}
    for name, source in sources.items():
        expanded = source.engine.expand(name) if isinstance(source, EngineSource) else {}
        if not expanded:
            found[name] = source
        for part, (engine, own) in expanded.items():
            found[part] = EngineSource(engine, own)
    return found


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
    if isinstance(engine, Command):
        old = Origin(dump=engine.program, restore=engine.restore)
    elif type(engine) is File:
        old = Origin(path=os.fsencode(engine.path))
    return msgspec.structs.replace(old, engine=source.name, settings=settings_of(engine))


def _dated(origin: Origin, source: Source) -> Origin:
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


def merged_origins(
    recorded: dict[str, Origin], configured: dict[str, Origin]
) -> dict[str, Origin]:
    """Return where parts belong: as configured, else as recorded. `made_by` is always as recorded."""
    found = dict(recorded)
    for name, one in _of_generation(recorded, configured).items():
        before = recorded.get(name, Origin())
        found[name] = msgspec.structs.replace(one, producer=before.producer)
        if path_of(before) == path_of(one):
            found[name] = msgspec.structs.replace(found[name], above=before.above, file=before.file)
    return found


def _of_generation(recorded: dict[str, Origin], configured: dict[str, Origin]) -> dict[str, Origin]:
    """Return the configured parts; one that represents several becomes those of the generation."""
    found = dict(configured)
    settings = {name: one.settings for name, one in recorded.items()}
    for name, one in configured.items():
        source = engine_of(one) if one.engine else None
        parts = source.engine.recorded(name, settings) if source is not None else {}
        found |= {part: origin(EngineSource(kind, engine)) for part, (kind, engine) in parts.items()}
    return found


def taker_of(origin: Origin) -> EngineSource | None:
    """Return the engine that restores a part, or None. Raises UsageError."""
    if origin.restore:
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
    """Return (device, inode) of the paths that exist."""
    found = []
    for path in paths:
        try:
            info = os.stat(path)
        except OSError:
            continue
        found.append((info.st_dev, info.st_ino))
    return found
