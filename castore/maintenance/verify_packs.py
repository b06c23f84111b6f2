"""Read packs, and find out which of them, and which records in them, are damaged."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Final, NamedTuple

from blake3 import blake3

from castore.errors import DamageError, ObjectMissingError, StorageError
from castore.store.format.names import pack_name
from castore.store.format.pack import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.model.refs import PackId
    from castore.progress import Progress
    from castore.store import Store

PACKS: Final = 1
"""The depth at which the bytes of packs are verified."""
DATA: Final = 2
"""The depth at which their records are opened, too, which needs an identity."""

_PIECE: Final = 1 << 22
_WORKERS: Final = max(2, min(os.cpu_count() or 2, 8))
_RECORDED_SECONDS: Final = 5
"""How often progress is recorded, so that an interrupted run does not repeat more than this much work."""


class _Findings(NamedTuple):
    """The damage of a pack."""

    damage: list[str]
    lost: dict[bytes, str]
    """The records in it that do not open, or may not, with the reasons."""


class PackVerifier:
    """Verifies packs at one depth, on all cores, and records in the index which are intact."""

    def __init__(self, store: Store, depth: int, progress: Progress) -> None:
        """progress: counts the bytes of packs read, and in total."""
        self.read = 0
        """Number of packs that were read."""
        self.resumed = 0
        """When the interrupted run began that this run continues: ns since 1970; 0 if it continues none."""
        self.damage: list[str] = []
        self.damaged_packs: list[PackId] = []
        self.lost: dict[bytes, str] = {}
        """The records that do not open, or may not, with the reasons."""
        self._store = store
        self._depth = depth
        self._progress = progress
        self._counting = threading.Lock()
        self._intact: list[PackId] = []
        """Packs whose result is not recorded yet."""

    def run(self, packs: list[tuple[PackId, int]], sample: float | None, *, restart: bool) -> None:
        """Read packs, given with their lengths. sample, restart: as for `verify`. Raises StorageError."""
        chosen = self._remaining(packs, restart=restart) if sample is None else self._sample(packs, sample)
        self._progress.total = self._progress.read + sum(size for _, size in chosen)
        self._read_all(chosen)
        if sample is None:
            self._store.index.verification.set_begun(self._depth, 0)

    def _sample(self, packs: list[tuple[PackId, int]], share: float) -> list[tuple[PackId, int]]:
        """Return the packs that were not read for longest, with this share of all bytes."""
        when = self._store.index.verification.verified(self._depth)
        bytes_left = share * sum(size for _, size in packs)
        chosen = []
        for pack, size in sorted(packs, key=lambda one: (when.get(one[0], 0), one[0])):
            if bytes_left <= 0:
                break
            chosen.append((pack, size))
            bytes_left -= size
        return chosen

    def _remaining(self, packs: list[tuple[PackId, int]], *, restart: bool) -> list[tuple[PackId, int]]:
        """Return all packs; or, unless `restart`, those that an interrupted run did not reach."""
        verification = self._store.index.verification
        self.resumed = 0 if restart else verification.begun(self._depth)
        if not self.resumed:
            verification.set_begun(self._depth, time.time_ns())
            self._store.updater.record_verified()
            return packs
        when = verification.verified(self._depth)
        return [(pack, size) for pack, size in packs if when.get(pack, 0) < self.resumed]

    def _read_all(self, packs: list[tuple[PackId, int]]) -> None:
        recorded = time.monotonic()
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="castore-verify") as pool:
            running = {pool.submit(self._examine, *pack): pack[0] for pack in packs}
            try:
                for future in as_completed(running):
                    self._add(running[future], future.result())
                    if time.monotonic() - recorded > _RECORDED_SECONDS:
                        self._record_intact()
                        recorded = time.monotonic()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                with contextlib.suppress(StorageError):
                    self._record_intact()

    def _add(self, pack: PackId, found: _Findings) -> None:
        """Add the findings of a pack to those of the run."""
        self.read += 1
        self.damage += found.damage
        self.lost |= found.lost
        if found.damage:
            self.damaged_packs.append(pack)
        elif _exists(self._store, pack):
            self._intact.append(pack)
        self._progress.files += 1

    def _record_intact(self) -> None:
        self._store.index.verification.set_verified(self._intact, self._depth, time.time_ns())
        self._store.updater.record_verified()
        self._intact = []

    def _examine(self, pack: PackId, size: int) -> _Findings:
        return examine_pack(self._store, pack, size, self._depth, self._count)

    def _count(self, read: int) -> None:
        with self._counting:
            self._progress.read += read


def examine_pack(
    store: Store, pack: PackId, size: int, depth: int, count: Callable[[int], None]
) -> _Findings:
    """Return what is wrong with a pack. count: is called with the number of bytes of each piece read."""
    damage = _examine_bytes(store, pack, size, depth, count)
    if damage is None or (not damage and depth < DATA):
        return _Findings(damage or [], {})
    try:
        entries = store.reader.pack_entries(pack)
    except ObjectMissingError:
        return _Findings(damage, {})
    except (DamageError, StorageError) as error:
        return _Findings([*damage, str(error)], {})
    if depth < DATA:
        # Nodes are opened by the walk. Which chunks are damaged is not known without decrypting them.
        name = pack_name(pack)
        reason = f"it is in {name}, which is damaged: --read-data checks whether the chunk itself is"
        chunks = [entry.id for entry in entries if entry.kind == CHUNK]
        return _Findings(damage, {chunk: f"chunk {chunk.hex()}: {reason}" for chunk in chunks})
    lost = {}
    for entry, failure in list(store.reader.broken_entries(pack, entries)):
        if not _exists(store, pack):
            return _Findings(damage, {})
        lost[bytes(entry.id)] = str(failure)
        # A chunk that no generation needs may lack its bases; for a needed chunk, the walk reports that.
        if all(store.index.locations.contains(list(entry.bases))):
            damage.append(str(failure))
    return _Findings(damage, lost)


def _examine_bytes(
    store: Store, pack: PackId, size: int, depth: int, count: Callable[[int], None]
) -> list[str] | None:
    """Return what is wrong with the bytes of a pack; None if the pack does not exist."""
    name = pack_name(pack)
    hasher = blake3()
    try:
        # A server can state the hash of bytes that it lost; DATA does not trust it.
        if depth < DATA and store.storage.hash(name) == (pack, size):
            count(size)
            return []
        for offset in range(0, size, _PIECE):
            piece = store.storage.get(name, offset, _PIECE)
            hasher.update(piece)
            count(len(piece))
    except ObjectMissingError:
        return None
    except StorageError as error:
        return [str(error)]
    if hasher.digest() != pack:
        return [f"{name} is damaged: its bytes are not those that were written"]
    return []


def _exists(store: Store, pack: PackId) -> bool:
    try:
        store.storage.size(pack_name(pack))
    except ObjectMissingError:
        return False
    return True
