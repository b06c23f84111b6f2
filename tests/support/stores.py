"""A real store in a temporary folder, with its identity."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

import castore
from castore.content.restore.metadata import Ownership
from castore.crypto import Identity, Signers, WriterKey
from castore.model.generation import Generation
from castore.services.config import Service
from castore.services.details import read_details
from castore.services.restore import Restored
from castore.services.restore import restore as restore_parts
from castore.services.restore_in_place import plan_in_place, restore_in_place
from castore.services.rollback.execute import RolledBack, rollback
from castore.services.rollback.recover import recover
from castore.services.rollback.request import RollbackContext, RollbackRequest
from castore.services.selectors import select
from castore.services.snapshot import SnapshotRequest, snapshot
from castore.services.sources import Source
from castore.storage import LocalStorage
from castore.store import MachinePaths, NewStore, Store, open_store
from castore.store.format.config import LabelledAdmin


def remove_copies(store: Path) -> None:
    """Leave one of what a store keeps twice."""
    for folder in ("config", "rotations"):
        for path in (store / folder).glob("*.*"):
            path.unlink()


def admins(*identities: Identity) -> list[LabelledAdmin]:
    """Return the admin keys of identities, as a configuration names them."""
    return [LabelledAdmin(one.admin.public, recipient=one.recipient.key) for one in identities]


def certified(host: str = "h") -> WriterKey:
    """Return a writer key of a machine that is certified under a name, without a store."""
    key = WriterKey.generate()
    assert key.machine is not None
    signing = key.machine.signing
    signers = Signers(machines={signing.public: frozenset([host])}, maintainers=frozenset([signing.public]))
    return WriterKey(key.store_id, key.secret, machine=key.machine, signer=signing, signers=signers)


def signed(store: Store, generation: Generation) -> Generation:
    """Return a generation as the machine of a store takes it."""
    return replace(generation, host=store.hosts.current.name, host_id=store.hosts.current.id)


def take_snapshot(store: Store, service: str, sources: dict[str, Source], **options: Any) -> Generation:
    """Take a generation; options: fields of a request."""
    return snapshot(store, SnapshotRequest(service=service, sources=sources, **options))


@dataclass
class Sandbox:
    """A store, and the machine that uses it."""

    folder: Path
    average: int = 65536
    identity: Identity = field(default_factory=Identity.generate)

    def __post_init__(self) -> None:
        storage = LocalStorage(str(self.store), create=True)
        recipients = [(self.identity.recipient, "test")]
        Store.create(storage, self.places, recipients, lambda: self.identity, NewStore(average_chunk_size=self.average)).close()

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def places(self) -> MachinePaths:
        return MachinePaths(str(self.folder / "state"), str(self.folder / "cache"))

    def open(self, *, identity: bool = True) -> Store:
        return open_store(str(self.store), self.places, (lambda: self.identity) if identity else None)

    def snapshot(self, service: str, sources: dict[str, Source], **options: Any) -> Generation:
        with self.open(identity=False) as store:
            return take_snapshot(store, service, sources, **options)

    def rollback(self, number: int, settings: Service | None = None, *, service: str = "s", **options: Any) -> RolledBack:
        """Put a generation back to where its parts came from."""
        with self.open() as store:
            target = store.generations.get(service, number)
            assert target is not None
            origins = dict(read_details(store, target).origins)
            asked = {name: options.pop(name) for name in ("take_pre_rollback", "trust_times") if name in options}
            request = RollbackRequest(target=target, origins=origins, ownership=self.ownership, **asked)
            context = RollbackContext(service=settings or Service(), **options)
            return rollback(store, request, context, castore.Progress())

    def undo(self, settings: Service | None = None, *, service: str = "s", **options: Any) -> RolledBack:
        """Go back to what the last rollback replaced."""
        with self.open(identity=False) as store:
            number = store.state.undo_number(service)
        assert number is not None
        return self.rollback(number, settings, service=service, **options)

    def recover(self, service: str = "s") -> str:
        with self.open() as store:
            return recover(store, service)

    def in_place(self, what: str, top: Path, **options: Any) -> int:
        """Make a directory what is stored; return how many steps that took."""
        with self.open() as store:
            store.sync()
            plan = plan_in_place(store, select(store, what), str(top), self.ownership, **options)
            assert restore_in_place(store, plan, self.ownership, castore.Progress()) == []
        return len(plan.steps)

    @property
    def ownership(self) -> Ownership:
        return Ownership(change=os.geteuid() == 0, numeric=True)

    def restore(self, what: str, into: Path, *, numeric: bool = True) -> Restored:
        with self.open() as store:
            selection = select(store, what)
            ownership = Ownership(change=True, numeric=numeric)
            return restore_parts(store, selection, str(into), ownership, castore.Progress())
