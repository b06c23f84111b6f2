"""Whom a store is sealed to, and the writer key that it is written with."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from castore.errors import DamageError, FormatError, ObjectMissingError
from castore.kernel import Cutter
from castore.sealing import WriterKey
from castore.store import twice
from castore.store.config import CONFIGS, SealedConfig, config_numbers
from castore.store.eras import ERAS, decode_era, open_config, with_past
from castore.store.keyring import IdentitySource, Keyring
from castore.store.locks import named_lock
from castore.store.remembered import Remembered
from castore.store.writers import drop_next, keep_writer_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from castore.sealing import Identity, Recipient
    from castore.store.config import StoreConfig
    from castore.store.index import Index
    from castore.store.seen import Seen


class Keyed(Remembered):
    """A store's keys and recipients, as they were when the configuration was last looked at."""

    config: StoreConfig
    cutter: Cutter
    index: Index
    _sealed: SealedConfig
    _seen: Seen
    _identity: IdentitySource
    _keyring: Keyring

    @property
    def location(self) -> str:
        """How a person names the place that holds the store."""
        return self.storage.location

    @property
    def recipients(self) -> list[tuple[Recipient, str]]:
        """Whom the store is sealed to, with what they are called."""
        return [(entry.recipient, entry.label) for entry in self.config.recipients]

    def identity(self) -> Identity:
        """Return the identity that contents are opened with. Raises IdentityError."""
        return self._identity.get()

    def adopt(self) -> None:
        """Keep the writer key on this machine, which can then add without an identity."""
        path = self.places.writer_key_of(self.store_id)
        keep_writer_key(path, self.writer_key, self.storage)
        drop_next(path)

    def _hold(self, writer: WriterKey, config: StoreConfig, sealed: SealedConfig) -> None:
        """Use this writer key, and the configuration under it, from now on."""
        self.config = config
        self._sealed = sealed
        self.writer_key = with_past(writer, config, self.storage)
        self.cutter = Cutter(self.writer_key.gear, config.average)
        self._keyring = Keyring(self.storage, self.writer_key, self._identity, config)
        self.__dict__.pop("_records", None)
        if self.index.era() != config.era:
            self._enter_era()

    def _enter_era(self) -> None:
        """Forget what the index took in under a former writer key after that was replaced."""
        try:
            listed = self.writer_key.listed()
        except (DamageError, FormatError):
            # Without the list nothing under a former key counts: synchronising says so of each object.
            self.index.clear()
            return
        # What is under the present key comes back when it is looked for.
        self.index.remove_packs(self.index.pack_ids().difference(listed.values()))
        short = {name.removeprefix("generations/") for name in listed}
        self.index.remove_generations(self.index.compare_records(short)[1])
        self.index.enter_era(self.config.era, new_ids=not self.config.ids)

    def refresh_config(self) -> None:
        """Take in what another process has said since: who the recipients are. Raises RotatedError."""
        if max(config_numbers(self.storage), default=0) != self._sealed.number:
            sealed = SealedConfig.read(self.storage)
            if sealed.store_id != self.store_id:
                raise DamageError(f"{sealed.name} is damaged: it is of another store")
            config = open_config(sealed, self.writer_key, self.storage)
            if config.era != self.config.era:
                # Of the same keys another list counts now.
                self._hold(WriterKey(self.store_id, self.writer_key.secret), config, sealed)
            self.config, self._sealed = config, sealed
            self._keyring.config = config
            self._seen.config(sealed.number, accept=False)

    def kept_twice(self) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
        """Yield folder and number of each object that all else rests on, and what reads its bytes, authentic.

        That raises DamageError, FormatError, StorageError.
        """
        yield CONFIGS, self._sealed.number, lambda: self._sealed.data
        if self.config.era:
            yield ERAS, self.config.era, self._read_era

    def _read_era(self) -> bytes:
        data = twice.read(self.storage, ERAS, self.config.era)
        decode_era(self.config.era, data, self.writer_key)
        return data

    def _keep_copies(self) -> None:
        """Write the copies that are not there yet: of an older castore, or of one that was killed."""
        for folder, number, read in self.kept_twice():
            with contextlib.suppress(DamageError, FormatError, ObjectMissingError):
                twice.keep_copy(self.storage, folder, number, read)

    def mend_copies(self) -> None:
        """Write what is kept twice, and is not as it was written, anew from the other one.

        Raises DamageError, FormatError, StorageError, BusyError.
        """
        with self._writer_key_lock():
            self.refresh_config()
            for folder, number, read in self.kept_twice():
                twice.mend(self.storage, folder, number, read())

    def _writer_key_lock(self) -> AbstractContextManager[None]:
        path = os.path.join(self.places.state_of(self.store_id), "locks", "writer-key")
        return named_lock(path, f"the keys of {self.location}")
