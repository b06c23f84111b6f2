"""A real store in a temporary folder, with its identity."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import castore
from castore.sealing import Identity
from castore.storage import LocalStorage
from castore.store import Places, Store


@dataclass
class Lab:
    """A store, and the machine that uses it."""

    folder: Path
    average: int = 65536
    identity: Identity = field(default_factory=Identity.generate)

    def __post_init__(self) -> None:
        storage = LocalStorage(str(self.store), create=True)
        Store.create(storage, self.places, [(self.identity.recipient, "test")], average=self.average).close()

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def places(self) -> Places:
        return Places(str(self.folder / "state"), str(self.folder / "cache"))

    def open(self, *, identity: bool = True) -> Store:
        return castore.open_store(str(self.store), self.places, (lambda: self.identity) if identity else None)

    def snapshot(self, service: str, sources: dict, **options):
        with self.open(identity=False) as store:
            return castore.snapshot(store, service, sources, **options)

    def restore(self, what: str, into: Path, *, numeric: bool = True):
        with self.open() as store:
            selection = castore.select(store, what)
            ownership = castore.Ownership(change=True, numeric=numeric)
            return castore.restore(store, selection, str(into), ownership, castore.Tally())
