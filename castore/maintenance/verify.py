"""Verify that everything that the generations need exists, and is what was stored.

There are three depths.

- The index: every generation's record opens and every node opens. Every chunk has a place in an existing
  pack, which is as long as its footer says, and belongs to a session whose key exists.
- The packs: their bytes hash to their name.
- The data: every chunk opens, decompresses and has the id it is stored under, and every directory decodes as
  in a restore.

The first two need only the writer key, the last needs an identity.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from castore.content.scan.cache import scan_path
from castore.content.streams import StreamReader
from castore.errors import (
    BusyError,
    DamageError,
    FormatError,
    IdentityError,
    ObjectMissingError,
    StorageError,
)
from castore.maintenance.impact import Affected, Reasons, affected
from castore.maintenance.trees import Trees
from castore.model.refs import RecordId
from castore.store.format.generation import NAME, open_generation
from castore.store.format.pack import CHUNK, pack_name
from castore.store.format.removal import damaged_removals
from castore.store.format.session_key import read_session, session_numbers
from castore.store.keys import replicas

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.model.refs import PackId
    from castore.progress import Progress
    from castore.store import Store

_PIECE: Final = 1 << 22
_WORKERS: Final = max(2, min(os.cpu_count() or 2, 8))
_LOOKS: Final = 5
_NOTED_SECONDS: Final = 5
"""How often progress is recorded, so that an interrupted run does not repeat more than this much work."""

PACKS: Final = 1
DATA: Final = 2


@dataclass
class Verification:
    """What was examined, and what is wrong."""

    generations: int = 0
    nodes: int = 0
    chunks: int = 0
    """Number of references to chunks."""
    packs: int = 0
    read: int = 0
    """Number of packs whose bytes were read in this run."""
    resumed: int = 0
    """When the interrupted run began that this run continues: ns since 1970; 0 if it continues none."""
    damage: list[str] = field(default_factory=list)
    """What is wrong, one line for each object of the store or chunk."""
    damaged_packs: list[PackId] = field(default_factory=list)
    """Packs whose footer, length or bytes are wrong, or that hold a record that does not open."""
    affected: list[Affected] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damage and not self.affected


def verify(
    store: Store,
    tally: Progress,
    *,
    packs: bool = False,
    read_data: bool = False,
    sample: float | None = None,
    restart: bool = True,
) -> Verification:
    """Verify the whole store. `read_data` includes `packs`.

    sample: read this share of the bytes of all packs (0 to 1), starting with those not verified for longest,
    so that repeated runs cover everything. restart: read all packs; otherwise, if the last run of this depth
    was interrupted, only the packs that it did not reach. tally: counts the bytes of packs read, and in
    total. Raises IdentityError, StorageError, BusyError if the store changes too fast.
    """
    store.keys.refresh()
    if read_data:
        store.keys.identity()
    store.sync()
    found = Verification()
    found.damage += [f"{name}: {reason}" for name, reason in sorted(store.damaged.items())]
    found.damage += [f"{name}: {reason}" for name, reason in damaged_of_two(store).items()]
    _verify_generations(store, found)
    _verify_sessions(store, found)
    found.damage += damaged_removals(store.storage, store.keys.writer_key).values()
    bad: dict[bytes, str] = {}
    whole = []
    for pack, size in store.index.packs.lengths():
        if _verify_length(store, pack, size, found):
            found.packs += 1
            whole.append((pack, size))
    if packs or read_data:
        depth = DATA if read_data else PACKS
        chosen = _chosen(store, whole, depth, sample, found, restart=restart)
        tally.total = tally.read + sum(size for _, size in chosen)
        _look_into(store, chosen, depth, tally, found, bad)
        if sample is None:
            store.index.verification.set_begun(depth, 0)
    # The next snapshot then references nothing in the damaged packs, and stores their content again.
    with contextlib.suppress(StorageError):
        store.index.verification.set_damaged(found.damaged_packs)
        store.updater.record_verified()
    lost = _without_copies(store, bad)
    for _ in range(_LOOKS):
        store.sync()
        epoch = store.index.epoch()
        _walk(store, lost, found, decode=read_data)
        if not found.affected and found.generations >= store.index.count("generations"):
            return found
        # Missing content proves nothing if a prune or a reindex ran during the walk: walk again.
        store.sync()
        if store.index.epoch() == epoch:
            _forget_scans(store, found)
            return found
    raise BusyError("the store changes faster than it can be verified: try again later")


def damaged_of_two(store: Store) -> dict[str, str]:
    """Return what is wrong with the objects that are stored twice, and with their copies, by name."""
    while True:
        found: dict[str, str] = {}
        looked = [(folder, number) for folder, number, _ in store.keys.replicated()]
        for folder, number, read in store.keys.replicated():
            try:
                found |= replicas.check(store.storage, folder, number, read())
            except (DamageError, FormatError, StorageError) as error:
                found[f"{folder}/{number}"] = str(error)
        store.keys.refresh()
        # Look again if another castore replaced the objects meanwhile.
        if looked == [(folder, number) for folder, number, _ in store.keys.replicated()]:
            return found


def _walk(store: Store, lost: dict[bytes, str], found: Verification, *, decode: bool) -> None:
    """Walk the graph of all generations, each node once; decode: also decode each directory."""
    found.generations, found.affected = 0, []
    reasons = Reasons(store, lost)
    with StreamReader(store) as reader:
        trees = Trees(reader, reasons)
        for generation in store.generations.iterate():
            found.generations += 1
            hits = list(affected(generation, reasons, trees, reader, decode=decode))
            # The generation may have been forgotten meanwhile.
            if hits and store.generations.objects(generation.service, [generation.number]):
                found.affected += hits
    found.nodes, found.chunks = reasons.nodes, reasons.chunks


def _forget_scans(store: Store, found: Verification) -> None:
    """Make the next snapshots read the affected trees: a scan cache would reuse the stored directories."""
    for hit in found.affected:
        with contextlib.suppress(OSError):
            os.unlink(scan_path(store, hit.service, hit.part))


def _verify_generations(store: Store, found: Verification) -> None:
    """Open the records of indexed generations again: they may have been damaged or replaced since."""
    others = False
    for short in sorted(store.storage.list("generations")):
        name = f"generations/{short}"
        if name in store.damaged or not NAME.fullmatch(short):
            continue
        try:
            one, plain = open_generation(name, store.storage.get(name), store.keys.writer_key)
            others |= store.index.generations.get(one.service, one.number) != plain
        except ObjectMissingError:
            continue
        except (DamageError, FormatError, StorageError) as error:
            found.damage.append(str(error))
    if others:
        store.sync(reread=True)


def _verify_sessions(store: Store, found: Verification) -> None:
    """Open the key objects of sessions: without its key, nothing that a session sealed can be read.

    If an identity is at hand, also check the seal for it in each object.
    """
    identity = store.keys.known_identity()
    numbers = session_numbers(store.storage)
    for session, several in sorted(numbers.items()):
        try:
            number, record = read_session(store.storage, session, several, store.keys.writer_key)
            if identity is not None:
                store.keys.check_seal(session, number, record)
        except ObjectMissingError:
            continue
        except (DamageError, FormatError, StorageError) as error:
            found.damage.append(str(error))
    for session in sorted(store.index.packs.sessions() - numbers.keys()):
        found.damage.append(f"sessions/{session.hex()}.* is missing, and with it the key to what it sealed")


def _verify_length(store: Store, pack: PackId, size: int, found: Verification) -> bool:
    """Compare a pack's length with the length that the index recorded."""
    name = pack_name(pack)
    try:
        now = store.storage.size(name)
    except ObjectMissingError:
        # A prune removed it after it was listed. If a generation needs it, walking the graph finds that.
        return False
    except StorageError as error:
        found.damage.append(str(error))
        return False
    if now != size:
        found.damage.append(f"{name} is damaged: it has {now} bytes instead of {size}")
        found.damaged_packs.append(pack)
    return now == size


def _chosen(
    store: Store,
    packs: list[tuple[PackId, int]],
    depth: int,
    sample: float | None,
    found: Verification,
    *,
    restart: bool,
) -> list[tuple[PackId, int]]:
    """Return the packs to read: all, or the rest of an interrupted run, or those not read for longest."""
    when = store.index.verification.verified(depth)
    if sample is not None:
        room = sample * sum(size for _, size in packs)
        chosen = []
        for pack, size in sorted(packs, key=lambda one: (when.get(one[0], 0), one[0])):
            if room <= 0:
                break
            chosen.append((pack, size))
            room -= size
        return chosen
    began = 0 if restart else store.index.verification.begun(depth)
    if not began:
        store.index.verification.set_begun(depth, time.time_ns())
        store.updater.record_verified()
        return packs
    found.resumed = began
    return [(pack, size) for pack, size in packs if when.get(pack, 0) < began]


def _look_into(
    store: Store,
    packs: list[tuple[PackId, int]],
    depth: int,
    tally: Progress,
    found: Verification,
    bad: dict[bytes, str],
) -> None:
    """Read packs, on all cores; record which are intact."""
    counting = threading.Lock()
    sound: list[PackId] = []
    noted = time.monotonic()

    def look(pack: PackId, size: int) -> tuple[PackId, list[str], dict[bytes, str]]:
        def count(read: int) -> None:
            with counting:
                tally.read += read

        return pack, *_look(store, pack, size, depth, count)

    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="castore-verify") as pool:
        try:
            for future in as_completed([pool.submit(look, *one) for one in packs]):
                pack, damage, lost = future.result()
                found.read += 1
                found.damage += damage
                bad |= lost
                if damage:
                    found.damaged_packs.append(pack)
                elif _is_there(store, pack_name(pack)):
                    sound.append(pack)
                tally.files += 1
                if time.monotonic() - noted > _NOTED_SECONDS:
                    store.index.verification.set_verified(sound, depth, time.time_ns())
                    store.updater.record_verified()
                    sound, noted = [], time.monotonic()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            with contextlib.suppress(StorageError):
                store.index.verification.set_verified(sound, depth, time.time_ns())
                store.updater.record_verified()


def _look(
    store: Store, pack: PackId, size: int, depth: int, count: Callable[[int], None]
) -> tuple[list[str], dict[bytes, str]]:
    """Return what is wrong with a pack, and the records in it that do not open, or may not."""
    name = pack_name(pack)
    damage: list[str] = []
    hasher = blake3()
    try:
        for offset in range(0, size, _PIECE):
            piece = store.storage.get(name, offset, _PIECE)
            hasher.update(piece)
            count(len(piece))
    except ObjectMissingError:
        return [], {}
    except StorageError as error:
        damage.append(str(error))
    if not damage and hasher.digest() != pack:
        damage.append(f"{name} is damaged: its bytes are not those that were written")
    if not damage and depth < DATA:
        return damage, {}
    try:
        entries = store.reader.pack_entries(pack)
    except ObjectMissingError:
        return damage, {}
    except (DamageError, StorageError) as error:
        return [*damage, str(error)], {}
    if depth < DATA:
        # Nodes are opened by the walk. Which chunks are damaged is not known without decrypting them.
        reason = f"it is in {name}, which is damaged: --read-data checks whether the chunk itself is"
        return damage, {one.id: f"chunk {one.id.hex()}: {reason}" for one in entries if one.kind == CHUNK}
    lost = {}
    for entry, failure in list(store.reader.broken_entries(pack, entries)):
        if not _is_there(store, name):
            return damage, {}
        lost[bytes(entry.id)] = str(failure)
        # A chunk that no generation needs may lack its bases; for a needed chunk, the walk reports that.
        if all(store.index.locations.contains(list(entry.bases))):
            damage.append(str(failure))
    return damage, lost


def _is_there(store: Store, name: str) -> bool:
    try:
        store.storage.size(name)
    except ObjectMissingError:
        return False
    return True


def _without_copies(store: Store, bad: dict[bytes, str]) -> dict[bytes, str]:
    """Return `bad` without the chunks of which the store has another, intact copy."""
    lost = {}
    for one, reason in bad.items():
        try:
            store.read_chunk(RecordId(one))
        except (DamageError, IdentityError):
            lost[one] = reason
    return lost
