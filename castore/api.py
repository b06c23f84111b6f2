"""The Python API: stores, services, generations and parts as objects that lock and synchronise by themselves.

The names here are those of the package: `castore.open`, `castore.create`, `castore.Store` and so on.
"""

from __future__ import annotations

import datetime as dt
import io
import os
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import msgspec

from castore.content.restore.metadata import Ownership
from castore.content.streams import StreamReader
from castore.crypto import identity as keys
from castore.crypto.identity import Recipient
from castore.engines import name_of
from castore.engines.base import Engine
from castore.errors import UsageError
from castore.maintenance.verify import Verification
from castore.maintenance.verify import verify as verify_store
from castore.progress import Progress
from castore.services import prune as pruning
from castore.services import snapshot as snapshots
from castore.services.config import Keep as Retention
from castore.services.config import Service as ServiceSettings
from castore.services.config import Settings, load
from castore.services.operations import ServiceOperations
from castore.services.restore import read, restore
from castore.services.rollback.execute import RolledBack, check_plan
from castore.services.rollback.plan import RollbackPlan
from castore.services.rollback.plan import plan_rollback as plan
from castore.services.rollback.recover import recover
from castore.services.selectors import Selection, find, part_of
from castore.services.snapshot import EngineSource, Stream, Tree
from castore.state.directories import absolute, home, machine_paths
from castore.state.identity_file import parse_identity, read_identity, read_text, write_identity
from castore.storage import LocalStorage
from castore.store.format.config import DEFAULT_AVERAGE
from castore.store.store import Store as OpenStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from castore.model.generation import Generation as StoredGeneration
    from castore.model.generation import Origin
    from castore.model.generation import Part as StoredPart
    from castore.services.snapshot import Source
    from castore.state.paths import MachinePaths

    AnySource = Tree | Stream | Engine[Any]
    AnyIdentity = str | os.PathLike[str] | keys.Identity | Callable[[], keys.Identity]
    Watch = Callable[[str, Progress], None]


def _no_progress(_name: str, _progress: Progress) -> None:
    return None


def open(  # noqa: A001 - castore.open is what a caller looks for
    path: str | os.PathLike[str],
    *,
    identity: AnyIdentity | None = None,
    passphrase: str | None = None,
    config: str | os.PathLike[str] | None = None,
    paths: MachinePaths | None = None,
    accept_older: bool = False,
) -> Store:
    """Open the store in the directory `path`.

    identity: the file of an identity, an identity, or a function that returns one and is called when content
    is first read. Snapshots, pruning and verifying need none on a machine that has a writer key. passphrase:
    of the file. config: a castore.toml that describes services. paths: where this machine keeps its keys,
    index and caches; None: as the command line does. accept_older: accept a store that is older than this
    machine has seen it.
    Raises NotFoundError, StaleStoreError, UntrustedError, IdentityError, ConfigError.
    """
    settings = None
    if config is not None:
        settings = load(absolute(os.fspath(config)), home=home(), programs=False)
    store = OpenStore.open(
        LocalStorage(absolute(os.fspath(path))),
        paths or machine_paths(),
        _provider(identity, passphrase),
        accept_older=accept_older,
    )
    return Store(store, settings, _files(identity))


def create(
    path: str | os.PathLike[str],
    *,
    identity: AnyIdentity | None = None,
    passphrase: str | None = None,
    recipients: Iterable[Recipient | str] = (),
    average_chunk_size: int = DEFAULT_AVERAGE,
    paths: MachinePaths | None = None,
) -> Store:
    """Create a store in the directory `path`, which must be new or empty, and open it.

    identity: as of `open`; its holder can read the store and administer it. recipients: who else can read
    it. average_chunk_size: in bytes. Raises UsageError where there is no recipient at all; StorageError.
    """
    provider = _provider(identity, passphrase)
    known = [Recipient.parse(one) if isinstance(one, str) else one for one in recipients]
    if provider is not None:
        known.insert(0, provider().recipient)
    if not known:
        raise UsageError("nobody could read the store: give an identity, or recipients")
    storage = LocalStorage(absolute(os.fspath(path)), create=True)
    sealed_to = [(recipient, "") for recipient in dict.fromkeys(known)]
    store = OpenStore.create(
        storage, paths or machine_paths(), sealed_to, average=average_chunk_size, identity=provider
    )
    return Store(store, None, _files(identity))


def _provider(identity: AnyIdentity | None, passphrase: str | None) -> Callable[[], keys.Identity] | None:
    if identity is None:
        return None
    if isinstance(identity, keys.Identity):
        return lambda: identity
    if callable(identity):
        return identity
    path = os.fspath(identity)
    return lambda: read_identity(path, None if passphrase is None else lambda: passphrase)


def _files(identity: AnyIdentity | None) -> tuple[str, ...]:
    """Return the file of an identity, which a restore never removes."""
    return (absolute(os.fspath(identity)),) if isinstance(identity, str | os.PathLike) else ()


class Identity(keys.Identity):
    """A secret key that can read what is sealed to it, and administer the stores that name it."""

    @classmethod
    def load(cls, path: str | os.PathLike[str], passphrase: str | None = None) -> Self:
        """Return the identity in a file. Raises IdentityError, also for a wrong or missing passphrase."""
        name = os.fspath(path)
        found = parse_identity(read_text(name), name, None if passphrase is None else lambda: passphrase)
        return cls.parse(found.text(), None)

    def save(self, path: str | os.PathLike[str], passphrase: str | None = None) -> None:
        """Write a new file that only this user can read, durably. Raises UsageError if the path exists."""
        write_identity(os.fspath(path), self, passphrase)


class Store:
    """An open store. It is a context manager: leaving it closes the store and wipes its keys.

    The methods of a store, and of what it returns, may be called from one thread at a time.
    """

    def __init__(self, opened: OpenStore, settings: Settings | None, leave_out: Sequence[str]) -> None:
        self._store = opened
        self._settings = settings
        self._leave_out = (*leave_out, opened.places.state, opened.places.cache)

    def __repr__(self) -> str:
        return f"<castore.Store {self._store.location}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the store, and wipe the keys that it holds."""
        self._store.close()

    @property
    def location(self) -> str:
        """The directory of the store."""
        return self._store.location

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the caller should know: the store is older than expected, or objects are damaged."""
        older = (self._store.older,) if self._store.older else ()
        return (*older, *(f"{name}: {reason}" for name, reason in sorted(self._store.damaged.items())))

    def service(self, name: str) -> Service:
        """Return a service by its name. It need not have generations yet."""
        return Service(self, name)

    def services(self) -> list[str]:
        """Return the names of the services that have generations."""
        self._store.sync_generations()
        return self._store.services()

    def prune(
        self,
        keep: Retention | None = None,
        *,
        services: Iterable[str] | None = None,
        dry_run: bool = False,
        grace_seconds: float = 0.0,
        progress: Progress | None = None,
    ) -> PruneReport:
        """Delete the generations that no rule keeps, and reclaim the space that only they needed.

        keep: the rules; None: those of castore.toml, and services without rules keep all. services: None:
        all. grace_seconds: how long space is kept that other machines may have begun to use. Raises
        StorageError, UsageError.
        """
        store = self._store
        store.sync()
        names = list(services) if services is not None else store.services()
        settings = {name: self._with_rules(name, keep) for name in names}
        if dry_run:
            now = time.time_ns()
            decided = [one for name in names for one in pruning.judged(store, name, settings[name], now)]
            return PruneReport([Generation(self, one.generation) for one in decided if not one.rules])
        removed, left_out, done = pruning.prune(
            store, settings, progress if progress is not None else Progress(), grace=grace_seconds
        )
        return PruneReport(
            [Generation(self, one) for one in removed],
            [str(one) for one in left_out],
            done.removed_bytes - done.written_bytes,
        )

    def verify(
        self, *, read_data: bool = False, sample: float | None = None, progress: Progress | None = None
    ) -> Verification:
        """Verify that what the generations need exists and is what was stored.

        read_data: read and decode all content; needs an identity. sample: read this share of the packs, such
        as 0.05, those first that were not read for longest. Raises StorageError, IdentityError.
        """
        return verify_store(
            self._store,
            progress if progress is not None else Progress(),
            packs=sample is not None,
            read_data=read_data,
            sample=sample,
        )

    def _with_rules(self, service: str, keep: Retention | None) -> ServiceSettings | None:
        settings = self._described(service)
        return settings if keep is None else ServiceSettings(keep=keep)

    def _described(self, service: str) -> ServiceSettings | None:
        return self._settings.of(service) if self._settings is not None else None

    def _operations(
        self, service: str, progress: Watch, ownership: Ownership, say: list[str]
    ) -> ServiceOperations:
        settings = self._described(service)
        return ServiceOperations(
            self._store,
            {} if settings is None else {service: settings},
            ownership,
            leave_out=self._leave_out,
            progress=progress,
            say=say.append,
        )


@dataclass
class PruneReport:
    """What `prune` deleted, or would delete."""

    deleted: list[Generation]
    left_out: list[str] = field(default_factory=list)
    """Why services were left out: another castore is at work on them, or a rollback has not ended."""
    reclaimed: int = 0
    """Bytes."""


class Service:
    """A service of a store."""

    def __init__(self, store: Store, name: str) -> None:
        self._owner = store
        self._store = store._store
        self.name = name

    def __repr__(self) -> str:
        return f"<castore.Service {self.name!r} of {self._store.location}>"

    @property
    def live_revision(self) -> str | None:
        """The revision that the live state belongs to, as this machine has recorded it; None: unknown."""
        return self._store.live_revision(self.name)

    def snapshot(
        self,
        parts: Mapping[str, AnySource] | None = None,
        *,
        revision: str | None = None,
        progress: Watch = _no_progress,
    ) -> Generation:
        """Take a generation, and return it.

        parts: by name: a `castore.Tree`, an engine such as `castore.PostgreSQL`, `castore.File` or
        `castore.Command`, or a `castore.Stream`; None: those of castore.toml, with its hooks. revision: the
        name of the configuration that the state belongs to; None: as castore.toml says. progress: is called
        with the name of each part and the progress of its work.
        Raises ProgramError, StorageError, BusyError, NotIntactError; then nothing was committed.
        """
        sources = None if parts is None else {name: _source(one) for name, one in parts.items()}
        said: list[str] = []
        operations = self._owner._operations(self.name, progress, _ownership(None), said)
        done = operations.snapshot(self.name, sources, revision=revision)
        return Generation(self._owner, done.generation, (*said, *done.failures), tuple(done.skipped_files))

    def generations(self, *, revision: str | None = None) -> Iterator[Generation]:
        """Yield the generations, newest first. revision: only those of exactly this one."""
        self._store.sync_generations()
        for one in self._store.newest_first(self.name):
            if revision is None or one.revision == revision:
                yield Generation(self._owner, one)

    def generation(self, selector: str | int) -> Generation:
        """Return the generation that a selector means: a number, a revision, a date, "latest".

        Raises NotFoundError, UsageError, DamageError.
        """
        self._store.sync_generations()
        return Generation(self._owner, find(self._store, self.name, str(selector)))

    def plan_rollback(
        self,
        to: str | int | Generation,
        *,
        parts: Mapping[str, AnySource] | None = None,
        change_owner: bool | None = None,
    ) -> RollbackPlan:
        """Compare the live state with a generation, and return what a rollback to it would do.

        to: a generation, or a selector. parts: where its parts belong on this machine; None: as castore.toml
        says, or where this machine took them from. change_owner: restore owners and groups; None: if this
        process is root. Raises UsageError for a part that belongs nowhere; NotFoundError, IdentityError.
        """
        target = (to if isinstance(to, Generation) else self.generation(to))._generation
        operations = self._owner._operations(self.name, _no_progress, _ownership(change_owner), [])
        origins = operations.origins_of(target, _origins(parts))
        found = plan(
            self._store,
            target,
            origins,
            operations.ownership,
            leave_out=operations.leave_out,
            settings=self._owner._described(self.name),
        )
        check_plan(found, origins, take_pre_rollback=True)
        return found

    def rollback(
        self,
        to: str | int | Generation | RollbackPlan,
        *,
        parts: Mapping[str, AnySource] | None = None,
        pre_rollback: bool = True,
        change_owner: bool | None = None,
        progress: Watch = _no_progress,
    ) -> RollbackResult:
        """Restore a generation in one transaction: all parts, or none.

        to: a generation, a selector, or the plan of a rollback, which is made again when the service has
        stopped. parts, change_owner: as of `plan_rollback`. pre_rollback: take a generation of the present
        state first. Raises CastoreError; then the present state is restored, or the message says what is not.
        """
        if isinstance(to, RollbackPlan):
            target = to.target
        else:
            target = (to if isinstance(to, Generation) else self.generation(to))._generation
        said: list[str] = []
        operations = self._owner._operations(self.name, progress, _ownership(change_owner), said)
        written = Progress()
        done = operations.rollback(
            target, operations.origins_of(target, _origins(parts)), take_pre_rollback=pre_rollback,
            progress=written
        )
        return RollbackResult._of(self._owner, done, said, written)

    def recover(self) -> str:
        """Complete or undo a rollback that was interrupted; return what was done. Raises NotFoundError."""
        with self._store.lock(self.name):
            return recover(self._store, self.name)


@dataclass
class RollbackResult:
    """What a rollback did."""

    generation: Generation
    """The one that was restored."""
    pre_rollback: Generation | None
    """What it replaced; None: nothing was to be done, or none was wanted."""
    parts: tuple[str, ...]
    """The parts that changed."""
    problems: list[tuple[str, bytes, str]]
    """(part, path, reason) of what could not be restored as it was."""
    notes: list[str]
    """What the caller should know."""
    written: int
    """Bytes of files."""

    @classmethod
    def _of(cls, store: Store, done: RolledBack, notes: list[str], written: Progress) -> RollbackResult:
        replaced = None if done.pre_rollback is None else Generation(store, done.pre_rollback)
        target = Generation(store, done.target)
        return cls(target, replaced, done.parts, done.problems, notes, written.read)


class Generation:
    """One snapshot of a service."""

    def __init__(
        self,
        store: Store,
        generation: StoredGeneration,
        warnings: Sequence[str] = (),
        missed: Sequence[tuple[str, bytes, str]] = (),
    ) -> None:
        self._owner = store
        self._generation = generation
        self.warnings = tuple(warnings)
        """Of the snapshot that just took it: what did not go as it should, such as a hook that failed."""
        self.skipped_files = tuple(missed)
        """Of the snapshot that just took it: (part, path, reason) of files that are missing or doubtful."""

    def __repr__(self) -> str:
        revision = f" of {self.revision!r}" if self.revision else ""
        return f"<castore.Generation {self.service}@{self.number}{revision}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Generation) and self._generation == other._generation

    def __hash__(self) -> int:
        return hash((self.service, self.number))

    @property
    def service(self) -> str:
        """The name of the service."""
        return self._generation.service

    @property
    def number(self) -> int:
        """The number, which ascends within the service."""
        return self._generation.number

    @property
    def revision(self) -> str:
        """The name of the configuration that the state belongs to; empty: none was given."""
        return self._generation.revision

    @property
    def time(self) -> dt.datetime:
        """When it was taken, in UTC, by the clock of the machine that took it."""
        return dt.datetime.fromtimestamp(self._generation.time / 10**9, dt.UTC)

    @property
    def host(self) -> str:
        """The certified name of the machine that took it."""
        return self._generation.host

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self._generation.size

    @property
    def is_pre_rollback(self) -> bool:
        """Whether a rollback took it, of the state that it replaced."""
        return self._generation.pre_rollback

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts, in the order in which they were taken."""
        return tuple(Part(self, one) for one in self._generation.parts)

    def part(self, name: str) -> Part:
        """Return a part by its name. Raises NotFoundError."""
        return Part(self, part_of(self._generation, name))

    def restore(
        self,
        destination: str | os.PathLike[str],
        *,
        parts: Iterable[str] | None = None,
        change_owner: bool | None = None,
        progress: Progress | None = None,
    ) -> RestoreReport:
        """Restore into a directory that is new or empty: each part under its name.

        parts: the names of those that are wanted; None: all. change_owner: restore owners and groups; None:
        if this process is root. Raises UsageError, IdentityError, StorageError; what is damaged in the store
        is left out and reported.
        """
        top = absolute(os.fspath(destination))
        counted = progress if progress is not None else Progress()
        store = self._owner._store
        report = RestoreReport()
        generation = self._generation
        selections = {top: Selection(generation)}
        if parts is not None:
            # Looked up before anything is created: with a wrong name, nothing is.
            chosen = {name: part_of(generation, name) for name in parts}
            selections = {os.path.join(top, name): Selection(generation, one) for name, one in chosen.items()}
            os.makedirs(top, exist_ok=True)
        for where, selection in selections.items():
            done = restore(store, selection, where, _ownership(change_owner), counted)
            report.placed += done.placed or [where]
            report.warnings += done.report.warnings
            report.damaged += done.report.damaged
        report.files, report.size = counted.files, counted.read
        return report


@dataclass
class RestoreReport:
    """What a restore wrote, and what it could not restore."""

    placed: list[str] = field(default_factory=list)
    """The files and directories that were restored."""
    warnings: list[tuple[bytes, str]] = field(default_factory=list)
    """(path, reason) of what could not be restored as it was, such as an owner."""
    damaged: list[tuple[bytes, str]] = field(default_factory=list)
    """(path, reason) of files that are missing since they are damaged in the store."""
    files: int = 0
    size: int = 0
    """Bytes."""


class Part:
    """A part of a generation: a tree or a dump."""

    def __init__(self, generation: Generation, part: StoredPart) -> None:
        self._generation = generation
        self._part = part

    def __repr__(self) -> str:
        of = self._generation
        return f"<castore.Part {of.service}@{of.number}:{self.name}>"

    @property
    def name(self) -> str:
        """The name."""
        return self._part.name

    @property
    def kind(self) -> str:
        """Either "tree" or "dump"."""
        return self._part.kind

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self._part.size

    def open(self, path: str = "") -> io.BufferedReader:
        """Open the dump, or a file of the tree, for reading from its beginning to its end.

        path: of the file in the tree. Raises NotFoundError, UsageError, IdentityError; reading raises
        DamageError where content is damaged.
        """
        owner = self._generation._owner
        reader = StreamReader(owner._store)
        selection = Selection(self._generation._generation, self._part, path)
        raw = _Raw(reader, read(reader.__enter__(), selection))
        return io.BufferedReader(raw, 1 << 20)


class _Raw(io.RawIOBase):
    """A file that reads what an iterator yields."""

    def __init__(self, reader: StreamReader, pieces: Iterator[bytes]) -> None:
        self._reader = reader
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        memoryview(buffer)[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            self._reader.__exit__(None, None, None)
        super().close()


def _ownership(change: bool | None) -> Ownership:
    return Ownership(change=os.geteuid() == 0 if change is None else change)


def _source(part: AnySource) -> Source:
    if not isinstance(part, Engine):
        return part
    given = {name: value for name in part.paths if isinstance(value := getattr(part, name), str)}
    paths = {name: absolute(value) for name, value in given.items()}
    return EngineSource(name_of(type(part)), msgspec.structs.replace(part, **paths))


def _origins(parts: Mapping[str, AnySource] | None) -> dict[str, Origin] | None:
    return None if parts is None else {name: snapshots.origin(_source(one)) for name, one in parts.items()}
