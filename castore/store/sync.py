"""Bring the index up to date with the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from castore.errors import (
    DamageError,
    FormatError,
    ObjectMissingError,
    RevokedKeyError,
    SignerError,
    StorageError,
)
from castore.store.format.envelope import Refusal
from castore.store.format.generation import open_generation
from castore.store.format.names import GENERATIONS, PACKS, full_name, is_generation, is_in, pack_name, pack_of
from castore.store.format.pack import entries_of, open_footer
from castore.store.index.pack_tables import PackContent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.crypto import WriterKey
    from castore.model.generation import Generation
    from castore.model.refs import PackId
    from castore.progress import Progress
    from castore.storage import Storage
    from castore.store.format.pack import Footer
    from castore.store.index import Index
    from castore.store.keys.key_manager import KeyManager

_BATCH: Final = 50_000
"""Records put in one transaction: one sync of the index's file per batch, in bounded memory."""
_RECORDS: Final = 5_000
"""Generations put in one transaction."""
_MANY: Final = 32
"""From this many packs on, rebuilding the index is faster than adding to it."""


def sync_packs(index: Index, keys: KeyManager, progress: Progress) -> dict[str, str]:
    """Index new packs, and drop missing ones; return the damaged ones by name, with the reasons.

    progress: counts the packs.
    """
    storage = keys.storage
    # Read the index before the listing: a pack that another process adds meanwhile is then new
    # here, and is never taken for a missing one.
    indexed = index.packs.ids()
    listed = {pack for name in storage.list(PACKS) if (pack := pack_of(name)) is not None}
    damaged: dict[str, str] = {}
    if not indexed and len(listed) >= _MANY:
        _index_all(index, keys, listed, damaged, progress)
        return damaged
    batch: list[PackContent] = []
    records = 0
    for pack in _counted(sorted(listed - indexed), progress):
        name = pack_name(pack)
        try:
            footer = open_footer(storage, name, keys.writer_key)
            _check_sessions(name, footer, keys)
            entries = entries_of(name, footer)
        except ObjectMissingError:
            continue
        except (DamageError, FormatError, StorageError) as error:
            # A bad sector under one object does not make the others unreadable.
            damaged[name] = _reason(name, error)
            continue
        batch.append(PackContent(pack, footer.size, entries, footer.signer))
        records += len(entries)
        if records >= _BATCH:
            index.packs.put(batch)
            batch, records = [], 0
    if batch:
        index.packs.put(batch)
    if removed := indexed - listed:
        index.packs.remove(removed)
    return damaged


def _index_all(
    index: Index,
    keys: KeyManager,
    listed: set[PackId],
    damaged: dict[str, str],
    progress: Progress,
) -> None:
    """Add all packs to an empty index; record in `damaged` those that cannot be read."""
    from castore.store.index.bulk_load import read_footers  # noqa: PLC0415 - most commands do not need it

    def failed(pack: PackId, error: Exception) -> None:
        if not isinstance(error, ObjectMissingError):
            damaged[pack_name(pack)] = _reason(pack_name(pack), error)

    def checked() -> Iterator[tuple[PackId, Footer | Exception]]:
        packs = _counted(sorted(listed), progress)
        for pack, found in read_footers(keys.storage, keys.writer_key, packs):
            try:
                if not isinstance(found, Exception):
                    _check_sessions(pack_name(pack), found, keys)
            except (DamageError, StorageError) as error:
                yield pack, error
            else:
                yield pack, found

    index.rebuild(checked(), failed)


def _check_sessions(name: str, footer: Footer, keys: KeyManager) -> None:
    """Refuse a pack with records of another machine's session, unless its signer may move them.

    Otherwise a machine that is revoked later could have put records where they are still trusted.
    """
    if keys.writer_key.signers.may_maintain(footer.signer):
        return
    for session in footer.sessions:
        if keys.ring.writer_of(session) not in {None, footer.signer}:
            raise SignerError(f"{name} is damaged: it holds records of another machine's session")


def _counted(packs: list[PackId], progress: Progress) -> Iterator[PackId]:
    """Yield packs, and count each after it is processed."""
    progress.unit, progress.read, progress.total = "pack", 0, len(packs)
    for pack in packs:
        yield pack
        progress.read += 1


def sync_generations(
    storage: Storage, index: Index, writer: WriterKey, *, reread: bool = False
) -> dict[str, str]:
    """Add new generations, and remove missing ones; return the damaged ones by name, with the reasons.

    reread: also read indexed generations again: the store may have another one under the same name.
    """
    names = list(storage.list(GENERATIONS))
    fresh, removed = index.generations.compare(names)
    if reread:
        fresh = sorted(names)
    damaged = {}
    generations: list[tuple[str, Generation, bytes]] = []
    for short in fresh:
        if not is_generation(short):
            continue
        name = full_name(GENERATIONS, short)
        try:
            generation, plain = open_generation(name, storage.get(name), writer)
        except ObjectMissingError:
            continue
        except (DamageError, FormatError, StorageError) as error:
            if reread and isinstance(error, StorageError):
                raise
            damaged[name] = _reason(name, error)
            continue
        if reread and (before := index.generations.get(generation.service, generation.number)) != plain:
            if before is not None:
                index.generations.remove([short])
        elif reread:
            continue
        generations.append((short, generation, plain))
        if len(generations) >= _RECORDS:
            index.generations.put(generations)
            generations = []
    if generations:
        index.generations.put(generations)
    if removed:
        # A generation that another process committed and indexed since the listing is not missing.
        present = set(storage.list(GENERATIONS))
        index.generations.remove(name for name in removed if name not in present)
    return damaged


def _reason(name: str, error: Exception) -> str:
    """Return the reason without the object's name, which the caller adds."""
    reason = str(error).removeprefix(name).removeprefix(" is damaged").lstrip(": ")
    return Refusal(reason) if isinstance(error, RevokedKeyError) else reason


def replace_damaged(before: dict[str, str], folder: str, damaged: dict[str, str]) -> dict[str, str]:
    """Return damaged objects, by name with reasons, after a folder was listed again."""
    return {name: reason for name, reason in before.items() if not is_in(folder, name)} | damaged
