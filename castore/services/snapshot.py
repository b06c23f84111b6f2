"""One generation: every part is stored, then the record is written, all or nothing."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from castore.content.exclude import Exclude
from castore.content.ingest import Ingest
from castore.content.lists import iter_runs_of_chunks
from castore.content.parent import Parent
from castore.content.scan import ScanRules, store_tree
from castore.content.scancache import NewScan, OldScan
from castore.content.streams import store_stream
from castore.errors import StorageError, UsageError
from castore.model.generation import Details, Generation, Origin, Part, StoredRef, encode
from castore.model.names import check_name, check_revision
from castore.model.tally import Tally
from castore.services.config import Service, TreePart
from castore.services.programs import enlarge_pipe, run_dump

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from castore.model.refs import Ref
    from castore.store import Session, Store


@dataclass(frozen=True)
class TreeSource:
    """A directory to take as a part."""

    path: str
    exclude: tuple[str, ...] = ()
    one_file_system: bool = False
    exclude_caches: bool = False


@dataclass(frozen=True)
class ProgramSource:
    """A program whose standard output is taken as a part."""

    dump: tuple[str, ...]
    restore: tuple[str, ...] = ()
    """What a roll-back feeds it to."""


@dataclass(frozen=True)
class FileSource:
    """A file whose bytes are taken as a part."""

    path: str


@dataclass(frozen=True)
class StreamSource:
    """An open file, standard input mostly, that is read to its end."""

    descriptor: int


Source = TreeSource | ProgramSource | FileSource | StreamSource


def snapshot(
    store: Store,
    service: str,
    sources: dict[str, Source],
    *,
    revision: str = "",
    safety: bool = False,
    leave_out: Sequence[str] = (),
    progress: Callable[[str, Tally], None] = lambda _name, _tally: None,
) -> Generation:
    """Store one generation of `service` and return it; `progress` is told of each part begun.

    leave_out: directories that trees keep empty: where castore keeps its own things.
    The caller holds the service's lock. Raises UsageError, ProgramError, StorageError; then nothing
    was committed, and what was stored is found again by the next try.
    """
    check_name("service", service)
    check_revision(revision)
    if not sources:
        raise UsageError(
            f"nothing to take of {service!r}: name at least one tree, dump or program"
        )
    started = time.time_ns()
    clock = time.monotonic_ns()
    store.sync()
    skip = left_out(store, leave_out)
    parts = []
    origins = {}
    before = _last(store, service)
    warnings: list[tuple[str, bytes, str]] = []
    with ExitStack() as stack, store.session() as session:
        scans: list[NewScan] = []
        for name, source in sources.items():
            tally = Tally()
            progress(check_name("part", name), tally)
            if isinstance(source, TreeSource):
                scans.append(NewScan(scan_path(store, service, name), store.index.epoch()))
                stack.callback(scans[-1].discard)
                rules = rules_of(source, skip)
                root = _store_tree(
                    store, session, service, name, source.path, rules, scans[-1], tally
                )
            else:
                parent = before.part(name) if before is not None else None
                root = _store_dump(store, session, source, parent, tally)
            parts.append(_part(name, source, root, tally))
            origins[name] = origin(source)
            warnings += [(name, path, reason) for path, reason in tally.warnings]
        details = _store_bytes(store, session, encode(Details(origins, tuple(warnings))))
        session.finish()
        number = store.next_number(service)
        generation = Generation(
            service=service,
            number=number,
            time=started,
            revision=revision,
            host=os.uname().nodename,
            parts=tuple(parts),
            details=details,
            session=session.id,
            parent=number - 1,
            safety=safety,
            duration=time.monotonic_ns() - clock,
        )
        store.commit(generation)
        # It is committed: what fails from here on costs space or time at most.
        for scan in scans:
            scan.keep()
        with contextlib.suppress(StorageError):
            # Of what trees kept it is not known which packs that is in: what was used still is.
            used = session.used | store.index.uses(service) if scans else session.used
            store.index.set_uses(service, used)
            store.references.evict(store.index.used_packs())
    return generation


def _store_tree(
    store: Store,
    session: Session,
    service: str,
    name: str,
    path: str,
    rules: ScanRules,
    new: NewScan,
    tally: Tally,
) -> Ref | None:
    roots: list[Ref | None] = []
    with (
        last_scan(store, service, name, path, rules) as old,
        Ingest(session, store.cutter, tally) as ingest,
    ):
        store_tree(ingest, path, rules, roots.append, new, old)
    return roots[0]


def _part(name: str, source: Source, root: Ref | None, tally: Tally) -> Part:
    return Part(
        name=name,
        kind="tree" if isinstance(source, TreeSource) else "dump",
        root=StoredRef.of(root),
        size=tally.read,
        files=tally.files,
        chunks=tally.chunks,
        new_chunks=tally.new_chunks,
        new_bytes=tally.new_bytes,
        stored_bytes=tally.stored,
        after_delta=tally.after_delta,
        after_compression=tally.after_compression,
        missed=len(tally.warnings),
    )


@contextlib.contextmanager
def last_scan(
    store: Store, service: str, part: str, path: str, rules: ScanRules
) -> Iterator[OldScan | None]:
    """Give what the last snapshot of a service saw of the tree at `path`, by these rules.

    None, if this machine did not take it so.
    """
    last = _last(store, service)
    found = last.part(part) if last is not None else None
    root = found.content if found is not None and found.kind == "tree" else None
    old = None
    with contextlib.suppress(OSError):
        old = OldScan.open(store, scan_path(store, service, part), root, rules.digest(os.stat(path)))
    with old if old is not None else contextlib.nullcontext():
        yield old


def scan_path(store: Store, service: str, part: str) -> str:
    """Return where this machine keeps what it saw of a tree."""
    return os.path.join(store.places.scans_of(store.store_id), f"{service}:{part}")


def _last(store: Store, service: str) -> Generation | None:
    """Return the newest generation of a service: what the next is compared with."""
    return store.generation(service, store.next_number(service) - 1)


def _store_dump(
    store: Store, session: Session, source: Source, parent: Part | None, tally: Tally
) -> Ref | None:
    roots: list[Ref | None] = []
    with Ingest(session, store.cutter, tally) as ingest, ExitStack() as stack:
        if parent is not None and parent.kind == "dump":
            ingest.compare_with(Parent(iter_runs_of_chunks(store, parent.content)))
        if isinstance(source, ProgramSource):
            readinto = stack.enter_context(run_dump(source.dump))
        else:
            descriptor = _open_dump(source, stack)
            enlarge_pipe(descriptor)

            def readinto(view: memoryview) -> int:
                return os.readv(descriptor, [view])

        store_stream(ingest, readinto, roots.append)
    return roots[0]


def _open_dump(source: Source, stack: ExitStack) -> int:
    if isinstance(source, StreamSource):
        return source.descriptor
    if not isinstance(source, FileSource):
        raise TypeError(source)
    try:
        descriptor = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise UsageError(f"{source.path} is a directory: take it with --tree")
    except OSError as error:
        raise UsageError(f"cannot read the dump {source.path}: {error.strerror}") from None
    return descriptor


def _store_bytes(store: Store, session: Session, data: bytes) -> StoredRef:
    found: list[Ref | None] = []
    with Ingest(session, store.cutter, Tally()) as ingest:
        ingest.write(data)
        ingest.end_stream(found.append)
    stored = StoredRef.of(found[0])
    if stored is None:
        raise AssertionError("details are never empty")
    return stored


def left_out(store: Store, folders: Sequence[str]) -> frozenset[tuple[int, int]]:
    """Return (device, inode) of the directories that trees keep empty: the store's and these."""
    return frozenset(_directory_ids([store.location, *folders]))


def rules_of(source: TreeSource | Origin, skip: frozenset[tuple[int, int]]) -> ScanRules:
    """Return what of a tree is taken; skip: as `left_out` says."""
    exclude = Exclude(source.exclude) if source.exclude else None
    return ScanRules(exclude, source.one_file_system, source.exclude_caches, skip)


def sources_of(settings: Service) -> dict[str, Source]:
    """Return how to take the parts of a service that castore.toml describes."""
    sources: dict[str, Source] = {}
    for name, part in settings.parts.items():
        if isinstance(part, TreePart):
            sources[name] = TreeSource(
                part.path, part.exclude, part.one_file_system, part.exclude_caches
            )
        else:
            sources[name] = ProgramSource(part.dump, part.restore)
    return sources


def origin(source: Source) -> Origin:
    """Return what a generation records of where a part came from."""
    if isinstance(source, TreeSource):
        return Origin(
            path=os.fsencode(os.path.abspath(source.path)),
            exclude=source.exclude,
            one_file_system=source.one_file_system,
            exclude_caches=source.exclude_caches,
        )
    if isinstance(source, ProgramSource):
        return Origin(dump=source.dump, restore=source.restore)
    if isinstance(source, FileSource):
        return Origin(path=os.fsencode(os.path.abspath(source.path)))
    return Origin()


def _directory_ids(paths: Sequence[str]) -> list[tuple[int, int]]:
    found = []
    for path in paths:
        try:
            info = os.stat(path)
        except OSError:
            continue
        found.append((info.st_dev, info.st_ino))
    return found
