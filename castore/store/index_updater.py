"""Bring the index on this machine up to date with a store: its generations, then its packs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from castore.errors import DamageError, FormatError
from castore.progress import Progress
from castore.store.format.deletion import pending_deletions
from castore.store.format.names import DELETIONS, GENERATIONS, PACKS, short_name
from castore.store.format.session_key import session_numbers
from castore.store.sync import replace_damaged, sync_packs

if TYPE_CHECKING:
    from castore.model.refs import PackId
    from castore.state.service_state import ServiceState
    from castore.storage import Storage
    from castore.store.generation_log import GenerationLog
    from castore.store.index import Index
    from castore.store.keys.key_manager import KeyManager


class IndexUpdater:
    """Keeps an index like the store that it describes. Safe to share between threads."""

    def __init__(
        self,
        index: Index,
        keys: KeyManager,
        generations: GenerationLog,
        state: ServiceState,
        *,
        isolate_writers: bool,
    ) -> None:
        """isolate_writers: new snapshots reference no pack that another machine added."""
        self.index = index
        self.generations = generations
        self.distrusted: frozenset[PackId] = frozenset()
        """Packs that new snapshots here do not reference, because a revoked machine added them."""
        self._storage: Storage = keys.storage
        self._keys = keys
        self._state = state
        self._isolate_writers = isolate_writers
        self._damaged: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def damaged(self) -> dict[str, str]:
        """Objects that were found damaged, by name, with the reasons; they are not indexed."""
        return self.generations.damaged | self._damaged

    def sync(
        self, *, reread: bool = False, report_older: bool = False, progress: Progress | None = None
    ) -> None:
        """Bring the index up to date with the store, and list damaged objects in `damaged`.

        reread: also read indexed generations again: the store may have another one under the same name.
        report_older: as for `GenerationLog.sync`. progress: counts the packs that are read.
        """
        self.index.reset_error()
        self.generations.sync(reread=reread, report_older=report_older)
        with self._lock:
            # Packs are listed after the pending deletions: a pack is off that list only once it is deleted.
            pending, found = pending_deletions(self._storage, self._keys.writer_key)
            self._damaged = replace_damaged(self._damaged, DELETIONS, found)
            found = sync_packs(self.index, self._keys, progress or Progress())
            self._damaged = replace_damaged(self._damaged, PACKS, found)
            if not self.index.verification.is_loaded():
                self.index.verification.load(self._state.verified_packs())
            # Packs without a key, and damaged packs, are not referenced either: snapshots store their
            # content again as long as they have it.
            doubted = self.index.verification.damaged()
            keyless = self.index.packs.without_key(lambda: session_numbers(self._storage).keys())
            removing = {pack for deletion in pending for pack in deletion.packs}
            self.distrusted = frozenset(self._find_distrusted())
            self.index.liveness.set_not_referenced({*keyless, *doubted, *removing, *self.distrusted})

    def rebuild(self, progress: Progress | None = None) -> None:
        """Rebuild the index from the store. Raises BusyError while another castore removes from it.

        progress: counts the packs that are read.
        """
        with self._state.upkeep_lock():
            self.index.clear()
            self.sync(progress=progress)

    def record_verified(self) -> None:
        """Record verified packs in the state, where they outlive the cache. Raises StorageError."""
        self._state.set_verified_packs(self.index.verification.results())

    def drop_revoked(self) -> None:
        """Drop from the index what was added under a former writer key after it was replaced."""
        config = self._keys.config
        if self.index.rotation() == config.rotation:
            return
        try:
            listed = self._keys.writer_key.listed()
        except (DamageError, FormatError):
            # Without the list nothing under a former key is accepted: a sync reports that for each object.
            self.index.clear()
            return
        # Packs under the present key are indexed again by the next sync.
        self.index.packs.remove(self.index.packs.ids().difference(listed.values()))
        short = {short_name(GENERATIONS, name) for name in listed}
        self.index.generations.remove(self.index.generations.compare(short)[1])
        self.index.set_rotation(config.rotation, new_ids=not config.id_secret)

    def _find_distrusted(self) -> set[PackId]:
        """Return the packs that new snapshots here do not reference, neither directly nor as bases.

        Those are the packs of revoked machines; with `isolate_writers`, those of every other machine. A
        maintainer may have moved a machine's records to packs of its own. If a maintainer is revoked, none of
        its packs is referenced: it could have replaced others' records. All these packs are still read and
        kept as before.
        """
        revoked = {
            writer.key for writer in self._keys.config.writers if writer.revoked and not writer.replaced
        }
        if not revoked and not self._isolate_writers:
            return set()
        writer = self._keys.writer_key
        own = writer.signer.public if writer.may_add else b""

        def is_distrusted(key: bytes) -> bool:
            return key in revoked or (self._isolate_writers and key != own)

        writer_of, may_maintain = self._keys.ring.writer_of, writer.signers.may_maintain
        distrusted = set()
        for pack, _, signer, sessions in self.index.packs.owners():
            writers = (
                (writer_of(session) or signer for session in sessions) if may_maintain(signer) else [signer]
            )
            if signer in revoked or any(map(is_distrusted, writers)):
                distrusted.add(pack)
        return distrusted
