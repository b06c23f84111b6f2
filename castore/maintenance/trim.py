"""Trim the base cache to the chunks of the last generation of each service, and their bases.

Content of forgotten generations must not stay readable in the clear, and replaced packs are of no use.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING

from castore.errors import DamageError, FormatError, ObjectMissingError
from castore.kernel.id_set import IdSet
from castore.store.format.pack import CHUNK
from castore.store.reachability import Walk, roots_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.model.generation import Generation
    from castore.model.refs import PackId
    from castore.store import Store


def trim_base_cache(store: Store) -> None:
    """Drop from the base cache what the last generations do not need.

    If damage makes it unknown what they need, drop only the files of packs that do not exist. Raises
    StorageError.
    """
    cached = store.base_cache.packs()
    if not cached:
        return
    packs = store.index.packs.ids()
    marks = IdSet()
    known = True
    try:
        services = store.generations.services()
        newest = itertools.chain.from_iterable(_last(store, service) for service in services)
        roots = itertools.chain.from_iterable(map(roots_of, newest))
        Walk(store).mark(roots, marks)
        store.index.liveness.mark_bases(marks)
    except (DamageError, FormatError):
        known = False
    with store.base_cache.trimming() as trim:
        for pack in cached:
            if pack not in packs:
                trim(pack, [])
            elif known:
                with contextlib.suppress(DamageError, FormatError, ObjectMissingError):
                    trim(pack, _live(store, pack, marks))


def _last(store: Store, service: str) -> Iterator[Generation]:
    """Yield this host's newest generation of a service; if it is partial, also the newest complete one.

    If this host has none, yield the newest of any host: the next snapshot is compared with it.
    """
    log, is_own = store.generations, store.hosts.is_own
    first = next(filter(is_own, log.newest_first(service)), None)
    mine = filter(is_own, log.newest_first(service)) if first else log.newest_first(service)
    for position, generation in enumerate(mine):
        if position == 0 or not generation.partial:
            yield generation
        if not generation.partial:
            return


def _live(store: Store, pack: PackId, marks: IdSet) -> list[tuple[int, int]]:
    """Return offset and sealed length of each record that generations read from this pack."""
    chunks = [entry for entry in store.reader.pack_entries(pack) if entry.kind == CHUNK]
    needed = list(itertools.compress(chunks, marks.find(b"".join([entry.id for entry in chunks]))))
    chosen = itertools.compress(needed, store.index.liveness.are_chosen(pack, needed))
    # The deltas of a group share a record.
    return sorted({(entry.offset, entry.sealed_length) for entry in chosen})
