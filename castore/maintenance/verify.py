"""Verify that everything that the generations need exists, and is what was stored.

There are three depths.

- The index: every generation's record opens and every node opens. Every chunk has a location in an existing
  pack, which is as long as its footer says, and belongs to a session whose key exists.
- The packs: their bytes hash to their name.
- The data: every chunk opens, decompresses and has the id it is stored under, and every directory decodes as
  in a restore.

The first two need only the writer key, the last needs an identity.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

import msgspec

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
from castore.maintenance.verify_packs import DATA, PACKS, PackVerifier
from castore.model.refs import PackId, RecordId
from castore.store.format.generation import open_generation
from castore.store.format.names import GENERATIONS, any_session_name, full_name, is_generation, pack_name
from castore.store.format.removal import damaged_removals
from castore.store.format.session_key import read_session, session_numbers
from castore.store.keys import replicas

if TYPE_CHECKING:
    from castore.progress import Progress
    from castore.store import Store

_WALKS: Final = 5
"""How often the graph is walked if the store changes meanwhile."""


class Verification(msgspec.Struct):
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
    damage: list[str] = []
    """What is wrong, one line for each object of the store or chunk."""
    damaged_packs: list[PackId] = []
    """Packs whose footer, length or bytes are wrong, or that hold a record that does not open."""
    affected: list[Affected] = []

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damage and not self.affected


def verify(
    store: Store,
    progress: Progress,
    *,
    packs: bool = False,
    read_data: bool = False,
    sample: float | None = None,
    restart: bool = True,
) -> Verification:
    """Verify the whole store. `read_data` includes `packs`.

    sample: read this share of the bytes of all packs (0 to 1), starting with those not verified for longest,
    so that repeated runs cover everything. restart: read all packs; otherwise, if the last run of this depth
    was interrupted, only the packs that it did not reach. progress: counts the bytes of packs read, and in
    total. Raises IdentityError, StorageError, BusyError if the store changes too fast.
    """
    store.keys.refresh()
    if read_data:
        store.keys.identity()
    store.sync()
    result = Verification()
    _verify_small_objects(store, result)
    present = []
    for pack, size in store.index.packs.lengths():
        if _verify_length(store, pack, size, result):
            result.packs += 1
            present.append((pack, size))
    lost: dict[bytes, str] = {}
    if packs or read_data:
        verifier = PackVerifier(store, DATA if read_data else PACKS, progress)
        verifier.run(present, sample, restart=restart)
        result.read, result.resumed = verifier.read, verifier.resumed
        result.damage += verifier.damage
        result.damaged_packs += verifier.damaged_packs
        lost = verifier.lost
    # The next snapshot then references nothing in the damaged packs, and stores their content again.
    with contextlib.suppress(StorageError):
        store.index.verification.set_damaged(result.damaged_packs)
        store.updater.record_verified()
    lost = _without_copies(store, lost)
    _verify_contents(store, lost, result, decode=read_data)
    return result


def _verify_small_objects(store: Store, result: Verification) -> None:
    """Open all objects except packs."""
    result.damage += [f"{name}: {reason}" for name, reason in sorted(store.damaged.items())]
    result.damage += [f"{name}: {reason}" for name, reason in damaged_of_two(store).items()]
    _verify_generations(store, result)
    _verify_sessions(store, result)
    result.damage += damaged_removals(store.storage, store.keys.writer_key).values()


def _verify_contents(store: Store, lost: dict[bytes, str], result: Verification, *, decode: bool) -> None:
    """Walk the graph until no prune changed it meanwhile. Raises BusyError.

    lost: chunks that do not open, with the reasons. decode: also decode each directory.
    """
    for _ in range(_WALKS):
        store.sync()
        epoch = store.index.epoch()
        _walk(store, lost, result, decode=decode)
        if not result.affected and result.generations >= store.index.count("generations"):
            return
        # Missing content proves nothing if a prune or a reindex ran during the walk: walk again.
        store.sync()
        if store.index.epoch() == epoch:
            _forget_scans(store, result)
            return
    raise BusyError("the store changes faster than it can be verified: try again later")


def damaged_of_two(store: Store) -> dict[str, str]:
    """Return what is wrong with the objects that are stored twice, and with their copies, by name."""
    while True:
        reasons: dict[str, str] = {}
        looked = [(folder, number) for folder, number, _ in store.keys.replicated()]
        for folder, number, read in store.keys.replicated():
            try:
                reasons |= replicas.check(store.storage, folder, number, read())
            except (DamageError, FormatError, StorageError) as error:
                reasons[f"{folder}/{number}"] = str(error)
        store.keys.refresh()
        # Look again if another castore replaced the objects meanwhile.
        if looked == [(folder, number) for folder, number, _ in store.keys.replicated()]:
            return reasons


def _walk(store: Store, lost: dict[bytes, str], result: Verification, *, decode: bool) -> None:
    """Walk the graph of all generations, each node once; decode: also decode each directory."""
    result.generations, result.affected = 0, []
    reasons = Reasons(store, lost)
    with StreamReader(store) as reader:
        trees = Trees(reader, reasons)
        for generation in store.generations.iterate():
            result.generations += 1
            hits = list(affected(generation, reasons, trees, reader, decode=decode))
            # The generation may have been forgotten meanwhile.
            if hits and store.generations.objects(generation.service, [generation.number]):
                result.affected += hits
    result.nodes, result.chunks = reasons.nodes, reasons.chunks


def _forget_scans(store: Store, result: Verification) -> None:
    """Make the next snapshots read the affected trees: a scan cache would reuse the stored directories."""
    for hit in result.affected:
        with contextlib.suppress(OSError):
            os.unlink(scan_path(store, hit.service, hit.part))


def _verify_generations(store: Store, result: Verification) -> None:
    """Open the records of indexed generations again: they may have been damaged or replaced since."""
    others = False
    for short in sorted(store.storage.list(GENERATIONS)):
        name = full_name(GENERATIONS, short)
        if name in store.damaged or not is_generation(short):
            continue
        try:
            one, plain = open_generation(name, store.storage.get(name), store.keys.writer_key)
            others |= store.index.generations.get(one.service, one.number) != plain
        except ObjectMissingError:
            continue
        except (DamageError, FormatError, StorageError) as error:
            result.damage.append(str(error))
    if others:
        store.sync(reread=True)


def _verify_sessions(store: Store, result: Verification) -> None:
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
            result.damage.append(str(error))
    for session in sorted(store.index.packs.sessions() - numbers.keys()):
        result.damage.append(f"{any_session_name(session)} is missing, and with it the key to what it sealed")


def _verify_length(store: Store, pack: PackId, size: int, result: Verification) -> bool:
    """Compare a pack's length with the length that the index recorded."""
    name = pack_name(pack)
    try:
        now = store.storage.size(name)
    except ObjectMissingError:
        # A prune removed it after it was listed. If a generation needs it, walking the graph finds that.
        return False
    except StorageError as error:
        result.damage.append(str(error))
        return False
    if now != size:
        result.damage.append(f"{name} is damaged: it has {now} bytes instead of {size}")
        result.damaged_packs.append(pack)
    return now == size


def _without_copies(store: Store, damaged: dict[bytes, str]) -> dict[bytes, str]:
    """Return damaged chunks without those of which the store has another, intact copy."""
    lost = {}
    for chunk, reason in damaged.items():
        try:
            store.read_chunk(RecordId(chunk))
        except (DamageError, IdentityError):
            lost[chunk] = reason
    return lost
