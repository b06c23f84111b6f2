"""Histories of a store on a disk of tests.support.power_loss_disk: what is done to it, and what must be left of it.

A history is a list of named steps. A step is a function of a `SimulatedHost`, found by its name in `STEPS`; it
does something to the store, and marks in the disk's log what is guaranteed, at the moment at which it is:

    host.guarantee(maybe={key: content})     before a generation is written: it may be found now
    host.guarantee(whole={key: content})     it was acknowledged: it must be found from here on
    host.guarantee(gone={key})               it is no longer guaranteed; it may be found
    host.guarantee(absent={key})             its removal was acknowledged: it must not be found
    host.guarantee(readers={identity, ...})  these must be able to read all of it

To have another thing tested (pruning, compaction, repair, a key that is rotated), write one function:

    @step
    def prune(host):
        gone = set of keys that the policy removes
        host.guarantee(gone=gone)
        with host.open() as store:
            castore.prune(store, ...)
        host.guarantee(absent=gone)

and name it in the weights of `history`, or in a list of your own; in `UNLUCKY` too, so that it is killed
and refused, and in KILLED of test_power_loss.py and BEFORE of test_disk_errors.py, so that it is at every
operation. What removes or replaces calls `storage.settle` in between (castore/storage/base.py), and
does not depend on a listing that is not durable. What changes the store without
changing what is guaranteed (compaction, repair) promises nothing at all. tests/crash/test_power_loss.py
takes the power away after every operation of the file system in it, and checks what was guaranteed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import castore
from castore.content.pipeline import Pipeline
from castore.content.restore.metadata import Ownership
from castore.content.streams import StreamReader
from castore.crypto import Identity
from castore.errors import StorageError
from castore.maintenance.compact import compact as run_compact
from castore.model.generation import Generation
from castore.model.refs import RefKind
from castore.services.reading import read
from castore.services.restore import restore as restore_parts
from castore.services.selectors import select
from castore.services.sources import Tree, file_source
from castore.storage import LocalStorage
from castore.store import MachinePaths, NewStore, Store, StoreOptions
from castore.store.format.generation import open_generation
from castore.store.format.names import pack_name, session_name
from castore.store.format.pack import CHUNK, NODE
from castore.store.format.session_key import session_numbers
from castore.store.generation_log import GenerationLog
from castore.store.index.generations import GenerationTable
from castore.store.index.pack_tables import PackTable
from castore.store.index_updater import IndexUpdater
from tests.support.power_loss_disk import AFTER, ON, ONCE, Disk, DiskFiles, Fault, Killed
from tests.support.stores import admins, take_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    import pytest

    from castore.services.sources import Source
    from castore.store.index.pack_tables import PackContent
    from castore.store.index.transactions import Tables

ROOT = "/srv/backups/store"
SERVICES = ("web", "mail", "forge")
AVERAGE = 1024
"""Of chunks: the least there is."""
PACK_BYTES = 24 << 10
"""So that a session has several packs."""
LARGEST_DUMP = 30_000
LARGEST_FILE = 4_000

Key = tuple[str, int]
"""A generation: service and number."""


@dataclass(frozen=True)
class Content:
    """What a generation was made of: plain copies."""

    revision: str
    tree: dict[bytes, bytes]
    dump: bytes


@dataclass(frozen=True)
class Guarantee:
    """What must hold if the power is lost now."""

    begun: bool = False
    whole: dict[Key, Content] = field(default_factory=dict)
    maybe: dict[Key, tuple[Content, ...]] = field(default_factory=dict)
    """These may be found: what was begun, or is no longer guaranteed. A number may be taken twice."""
    readers: frozenset[str] = frozenset()
    """Who must be able to read: names of identities."""


class SimulatedHost:
    """A disk with a store on it, a machine that uses it, and what was guaranteed so far."""

    def __init__(self, folder: Path, seed: object, files: type[DiskFiles] = DiskFiles, storage: type[LocalStorage] = LocalStorage) -> None:
        self.folder = folder
        self.seed = seed
        self.chance = random.Random(f"history {seed}")
        self.disk = Disk()
        self.files = files(self.disk)
        self.storage = storage
        self.identities: dict[str, Identity] = {}
        self.guaranteed = Guarantee()
        self.wanted: frozenset[str] | None = None
        """Whom the store is being sealed to, from when this is begun until it is done."""
        self.trees: dict[str, dict[bytes, bytes]] = {service: {} for service in SERVICES}
        self.dumps: dict[str, bytes] = dict.fromkeys(SERVICES, b"")
        self.last = SERVICES[0]
        self.old: list[Content] = []
        self.done: list[str] = []
        self._guaranteeing = threading.Lock()
        for name in ("state", "cache", "live"):
            (folder / name).mkdir(parents=True)

    @property
    def places(self) -> MachinePaths:
        return MachinePaths(str(self.folder / "state"), str(self.folder / "cache"))

    def open(self, reader: str | None = None, *, create: bool = False) -> Store:
        """Open the store; `reader`: the name of the identity."""
        storage = self.storage(ROOT, create=create, files=self.files)
        identity = (lambda: self.identities[reader]) if reader else None
        return Store.open(storage, self.places, identity)

    def guarantee(
        self,
        *,
        begun: bool = False,
        maybe: dict[Key, Content] | None = None,
        whole: dict[Key, Content] | None = None,
        gone: set[Key] | None = None,
        absent: set[Key] | None = None,
        readers: frozenset[str] | None = None,
    ) -> None:
        """Say what is guaranteed from here on, in addition to what was."""
        with self._guaranteeing, self.files.mutex:
            now = self.guaranteed
            now = replace(now, begun=now.begun or begun)
            if maybe:
                now = replace(now, maybe=_joined(now.maybe, maybe))
            if whole:
                now = replace(
                    now,
                    whole=now.whole | whole,
                    maybe={key: content for key, content in now.maybe.items() if key not in whole},
                )
            if gone:
                now = replace(
                    now,
                    whole={key: content for key, content in now.whole.items() if key not in gone},
                    maybe=_joined(now.maybe, {key: now.whole[key] for key in gone}),
                )
            if absent:
                now = replace(now, maybe={key: content for key, content in now.maybe.items() if key not in absent})
            if readers is not None:
                now = replace(now, readers=readers)
            self.guaranteed = now
            self.disk.mark(now)

    # What is taken

    def edit(self, service: str, chance: random.Random) -> Content:
        """Change a service's state; return it."""
        tree = dict(self.trees[service])
        for _ in range(chance.randint(1, 3)):
            path = b"/".join([*chance.choice([[], [b"a"], [b"a", b"\xff b"]]), b"f%d" % chance.randint(0, 4)])
            if path in tree and chance.random() < 0.3:
                del tree[path]
            else:
                tree[path] = chance.randbytes(chance.choice([0, 5, chance.randint(100, LARGEST_FILE)]))
        dump = self.dumps[service]
        if not dump or chance.random() < 0.3:
            dump = chance.randbytes(chance.choice([0, 100, chance.randint(1000, LARGEST_DUMP)]))
        elif self.old and chance.random() < 0.3:
            dump = chance.choice(self.old).dump  # as another's, or as once
        else:
            at = chance.randint(0, len(dump))
            dump = (dump[:at] + chance.randbytes(chance.randint(1, 800)) + dump[at + chance.randint(0, 800) :])[:LARGEST_DUMP]
        self.trees[service], self.dumps[service], self.last = tree, dump, service
        content = Content(chance.choice(["", "r1", "r2"]), tree, dump)
        self.old.append(content)
        return content

    def write_content(self, service: str, content: Content) -> dict[str, Source]:
        """Put a service's state where it can be taken from; return the sources."""
        return write_content(content, self.folder / "live" / service)


def _joined(maybe: dict[Key, tuple[Content, ...]], more: dict[Key, Content]) -> dict[Key, tuple[Content, ...]]:
    return maybe | {key: (*maybe.get(key, ()), content) for key, content in more.items()}


def write_content(content: Content, folder: Path) -> dict[str, Source]:
    """Make a folder hold a state, touching only what differs; return the sources."""
    top = os.fsencode(folder / "tree")
    os.makedirs(top, exist_ok=True)
    there = read_files(os.fsdecode(top))
    for path in there.keys() - content.tree.keys():
        os.unlink(os.path.join(top, path))
    for path, data in content.tree.items():
        whole = os.path.join(top, path)
        os.makedirs(os.path.dirname(whole), exist_ok=True)
        if there.get(path) != data:
            with open(whole, "wb") as file:
                file.write(data)
    (folder / "dump").write_bytes(content.dump)
    return {"tree": Tree(os.fsdecode(top)), "dump": file_source(str(folder / "dump"))}


def read_files(top: str) -> dict[bytes, bytes]:
    """Return the files below a directory."""
    found = {}
    for folder, _, names in os.walk(os.fsencode(top)):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, os.fsencode(top))] = file.read()
    return found


def restored(store: Store, key: Key, into: str) -> Content:
    """Return what a generation restores to, by way of the directory `into`, which is made."""
    service, number = key
    generation = store.generations.get(service, number)
    assert generation is not None, f"{service} {number} is not there"
    selection = select(store, f"{service}@#{number}:tree")
    done = restore_parts(store, selection, into, Ownership(change=False), castore.Progress())
    assert done.report.damaged == []
    tree = read_files(into)
    shutil.rmtree(into)
    with StreamReader(store) as reader:
        dump = b"".join(read(reader, select(store, f"{service}@#{number}:dump")))
    return Content(generation.revision, tree, dump)


def needs(store: Store, generation: Generation) -> set[str]:
    """Return the names of all objects that a generation needs, by the index."""
    names: set[str] = set()
    sessions = session_numbers(store.storage)
    seen: set[tuple[int, bytes]] = set()
    roots = [part.content for part in generation.parts] + [generation.details.ref]
    todo = [
        (CHUNK if root.kind is RefKind.CHUNK else NODE, root.id) for root in roots if root is not None
    ]
    while todo:
        kind, record = todo.pop()
        if (kind, record) in seen:
            continue
        seen.add((kind, record))
        place = store.index.locations.locate(kind, record)
        assert place is not None, f"the index has no place of {record.hex()}"
        names |= {pack_name(place.pack), session_name(place.session, sessions[place.session][-1])}
        todo += [(CHUNK, base) for base in place.bases]
        if kind == NODE:
            todo += [(CHUNK if ref.kind is RefKind.CHUNK else NODE, ref.id) for ref in store.reader.read_node(record)]
    return names


# Steps

STEPS: dict[str, Callable[[SimulatedHost], None]] = {}


def step(function: Callable[[SimulatedHost], None]) -> Callable[[SimulatedHost], None]:
    """Let a function be a step, by its name."""
    STEPS[function.__name__] = function
    return function


@step
def init(host: SimulatedHost) -> None:
    """Make the store."""
    identity = host.identities.setdefault("first", Identity.generate())
    storage = host.storage(ROOT, create=True, files=host.files)
    to = [(identity.recipient, "first")]
    Store.create(storage, host.places, to, lambda: identity, NewStore(average_chunk_size=AVERAGE)).close()
    host.guarantee(begun=True, readers=frozenset({"first"}))


def _take(host: SimulatedHost, service: str, content: Content, sources: dict[str, Source]) -> None:
    with host.open() as store, store.state.lock(service):
        store.generations.sync()
        key = service, store.generations.next_number(service)
        host.guarantee(maybe={key: content})
        taken = take_snapshot(store, service, sources, revision=content.revision)
        assert (taken.service, taken.number) == key
        host.guarantee(whole={key: content})


@step
def snapshot(host: SimulatedHost) -> None:
    """Take a generation of a service."""
    service = host.chance.choice(SERVICES)
    content = host.edit(service, host.chance)
    _take(host, service, content, host.write_content(service, content))


@step
def same_again(host: SimulatedHost) -> None:
    """Take a generation of what was taken last: all of it is known, unless that was broken off."""
    service = host.last
    content = Content("", host.trees[service], host.dumps[service])
    _take(host, service, content, host.write_content(service, content))


@step
def two_at_once(host: SimulatedHost) -> None:
    """Two snapshots of two services at the same time, of which much is the same."""
    services = host.chance.sample(SERVICES, 2)
    contents = [host.edit(service, host.chance) for service in services]
    contents[1] = replace(contents[1], dump=contents[0].dump + contents[1].dump[:2000])
    host.dumps[services[1]] = contents[1].dump
    sources = [host.write_content(*pair) for pair in zip(services, contents, strict=False)]
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            _take(host, services[number], contents[number], sources[number])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        raise failure


class InterruptedSessionError(Exception):
    """What ends a session midway."""


@step
def aborted(host: SimulatedHost) -> None:
    """Add some packs, and give up; what is added is found again by a later step."""
    service = host.chance.choice(SERVICES)
    content = host.edit(service, host.chance)
    try:
        with host.open() as store, store.session() as session, Pipeline(session, store.keys.cutter, castore.Progress()) as ingest:
            store.sync()
            ingest.write(content.dump)
            ingest.end_stream(lambda _root: None)
            for data in content.tree.values():
                ingest.write(data)
            raise InterruptedSessionError  # noqa: TRY301 - the session has to be left by it
    except InterruptedSessionError:
        pass


@step
def add_recipient(host: SimulatedHost) -> None:
    """Let one more identity read the store; or end what was begun of this, or of the removal of one."""
    readers = host.guaranteed.readers
    target = host.wanted
    if target is None:
        name = f"reader {len(host.identities)}"
        host.identities[name] = Identity.generate()
        target = readers | {name}
    _reseal(host, target)


@step
def remove_recipient(host: SimulatedHost) -> None:
    """Let one identity read no more, if there are two; or end what was begun of this."""
    readers = host.guaranteed.readers
    target = host.wanted
    if target is None:
        target = readers - {host.chance.choice(sorted(readers))} if len(readers) > 1 else readers
    _reseal(host, target)


def _reseal(host: SimulatedHost, target: frozenset[str]) -> None:
    host.wanted = target
    host.guarantee(readers=host.guaranteed.readers & target)
    with host.open(min(host.guaranteed.readers)) as store:
        recipients = [(host.identities[name].recipient, name) for name in sorted(target)]
        store.admin.reseal(recipients, admins=admins(*(host.identities[name] for name in sorted(target))))
    host.wanted = None
    host.guarantee(readers=target)


@step
def forget(host: SimulatedHost) -> None:
    """Remove a generation's record."""
    if host.guaranteed.whole:
        _forget(host, {host.chance.choice(sorted(host.guaranteed.whole))})


def _forget(host: SimulatedHost, gone: set[Key]) -> None:
    host.guarantee(gone=gone)
    with host.open() as store:
        store.sync()
        for service, number in sorted(gone):
            store.generations.forget(service, [number])
    host.guarantee(absent=gone)


@step
def compact(host: SimulatedHost) -> None:
    """Reclaim what no generation needs, and rewrite all packs of which a part is not needed."""
    with host.open() as store:
        run_compact(store, castore.Progress(), max_unused=0, grace_seconds=0, unfinished_seconds=0)


@step
def compact_without_lock(host: SimulatedHost) -> None:
    """The same where packs are pending first, and removed by the next run."""
    with host.open() as store:
        vars(store.storage)["lock"] = lambda *, exclusive=False: contextlib.nullcontext(False)
        for _ in range(2):
            run_compact(store, castore.Progress(), max_unused=0, grace_seconds=0, unfinished_seconds=0)


@step
def prune(host: SimulatedHost) -> None:
    """Remove all but the newest of each service, and compact."""
    newest = {service: max(number for name, number in host.guaranteed.whole if name == service)
              for service in {name for name, _ in host.guaranteed.whole}}
    _forget(host, {key for key in host.guaranteed.whole if key[1] != newest[key[0]]})
    compact(host)


MOST_OPERATIONS = 55
"""About what a small step takes."""
UNLUCKY = ("snapshot", "snapshot", "add_recipient", "remove_recipient", "forget", "compact", "compact", "compact_without_lock")


def _unlucky(host: SimulatedHost, how: str, fault: Fault, ends: type[BaseException]) -> None:
    name = host.chance.choice(UNLUCKY)
    host.done.append(f"{how} at operation {fault.number}:")
    host.files.fault = fault
    with contextlib.suppress(ends):
        STEPS[name](host)
        host.done.append("(too late)")
    host.done.append(name)
    host.files.fault = None


@step
def killed(host: SimulatedHost) -> None:
    """Another step, whose process is killed, anywhere; what it did not sync is as the kernel has it."""
    fault = Fault(host.chance.randrange(MOST_OPERATIONS), Killed, ON)
    _unlucky(host, "killed", fault, Killed)
    host.files.forget()


@step
def refused(host: SimulatedHost) -> None:
    """Another step, to which the disk refuses something, once."""
    fault = Fault(host.chance.randrange(MOST_OPERATIONS), errno.EIO, host.chance.choice([ONCE, AFTER]))
    _unlucky(host, "refused", fault, StorageError)


WEIGHTS = {
    "snapshot": 8,
    "same_again": 1,
    "two_at_once": 2,
    "aborted": 2,
    "killed": 6,
    "refused": 3,
    "add_recipient": 2,
    "remove_recipient": 2,
    "forget": 3,
    "compact": 3,
    "compact_without_lock": 1,
    "prune": 1,
}


def history(seed: object, length: int, weights: dict[str, int] = WEIGHTS) -> list[str]:
    """Return the names of the steps of a history drawn from a seed; a store is made first."""
    chance = random.Random(f"steps {seed}")
    names = chance.choices(list(weights), list(weights.values()), k=length)
    return ["init", "snapshot", *names]


def run(host: SimulatedHost, names: list[str]) -> None:
    """Take the steps of a history."""
    for name in names:
        if name not in {"killed", "refused"}:
            host.done.append(name)
        STEPS[name](host)


# Watching a run


class DurabilityMonitor:
    """Checks, while a history runs, that whatever is reported is durable by then; keeps the index as it was.

    Each time a session or a commit adds packs or a generation to the index, these must be found on the
    disk after the worst loss; each time a generation is written, so must all that it needs. (What the
    index has from a listing may be another's, who was killed: it is made durable before it is needed.)
    """

    def __init__(self, host: SimulatedHost, monkeypatch: pytest.MonkeyPatch, *, keep: bool = True) -> None:
        self.host = host
        self.reported = 0
        self.kept: list[tuple[int, Path]] = []
        """Steps of the log, each with a copy of the index and the caches as they were then."""
        monitor = self
        put_packs, put_generations, commit = PackTable.put, GenerationTable.put, GenerationLog.commit
        sync, sync_generations = IndexUpdater.sync, GenerationLog.sync
        listing = threading.local()

        def from_listing(function: Callable[..., None]) -> Callable[..., None]:
            def wrapped(store: Store, **options: Any) -> None:
                before, listing.now = getattr(listing, "now", False), True
                try:
                    function(store, **options)
                finally:
                    listing.now = before

            return wrapped

        def packs(table: PackTable, packs: Iterable[PackContent], sketches: Any = ()) -> None:
            packs = list(packs)
            sessions = {entry.session.hex() for pack in packs for entry in pack.entries}
            if not getattr(listing, "now", False):
                monitor.durable({pack_name(pack.id) for pack in packs}, sessions)
            put_packs(table, packs, sketches)
            monitor.keep_index(table._tables, keep)  # noqa: SLF001 - to copy the index

        def generations(table: GenerationTable, found: Iterable[tuple[str, Any, Any]]) -> None:
            found = list(found)
            if not getattr(listing, "now", False):
                monitor.durable({f"generations/{name}" for name, _, _ in found})
            put_generations(table, found)
            monitor.keep_index(table._tables, keep)  # noqa: SLF001 - to copy the index

        def committing(log: GenerationLog, generation: Generation) -> None:
            store = Store(log._keys, log._index, monitor.host.places, StoreOptions())  # noqa: SLF001 - to check what a commit needs
            before = store.storage.put

            def put(name: str, data: bytes) -> None:
                generation, _ = open_generation(name, data, store.keys.writer_key)
                monitor.durable(needs(store, generation))
                before(name, data)

            vars(store.storage)["put"] = put
            try:
                commit(log, generation)
            finally:
                del vars(store.storage)["put"]

        monkeypatch.setattr(IndexUpdater, "sync", from_listing(sync))
        monkeypatch.setattr(GenerationLog, "sync", from_listing(sync_generations))
        monkeypatch.setattr(PackTable, "put", packs)
        monkeypatch.setattr(GenerationTable, "put", generations)
        monkeypatch.setattr(GenerationLog, "commit", committing)

    def durable(self, names: set[str], sessions: Collection[str] = ()) -> None:
        """Assert that objects survive the worst."""
        with self.host.files.mutex:
            worst, live = self.host.disk.worst().files, self.host.disk.live().files
        for name in names:
            path = f"{ROOT}/{name}"
            assert path in worst, f"{name} is reported, and its name is not durable"
            assert worst[path] == live[path], f"{name} is reported, and its bytes are not durable"
        for session in sessions:
            start = f"{ROOT}/sessions/{session}."
            assert any(path.startswith(start) for path in worst), f"the key of session {session} is not durable"
        self.reported += len(names)

    def keep_index(self, tables: Tables, keep: bool) -> None:
        if not keep:
            return
        with self.host.files.mutex:
            step = len(self.host.disk.log)
            path = self.host.folder / f"kept-{len(self.kept)}"
            self.kept.append((step, path))
            cache = Path(tables.path).parent
            shutil.copytree(cache, path / cache.name, ignore=lambda folder, names: ["index"] if Path(folder) == cache else [])
            (path / cache.name / "index").mkdir(mode=0o700)
            tables.environment.env.copy(str(path / cache.name / "index"))


