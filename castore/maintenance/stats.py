"""Count what a store holds, and how much space each step of storing saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from castore.kernel.id_set import IdSet
from castore.maintenance.unique import unique_bytes
from castore.store.format.pack import NODE
from castore.store.reachability import Walk, roots_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.model.generation import Generation
    from castore.store import Store


class Totals(msgspec.Struct):
    """Sums over generations. Each number from `new` on is what one more step left of the previous number."""

    generations: int = 0
    plain: int = 0
    """Bytes of content, as if each generation were stored in full."""
    new: int = 0
    """Bytes of chunks that were new when they were stored: what deduplication left."""
    after_delta: int = 0
    """What is left of `new` where chunks are stored as deltas of similar chunks."""
    after_compression: int = 0
    """What is left of `after_delta` after compression."""
    stored: int = 0
    """Bytes in the store: the compressed chunks, sealed, and the nodes that reference them."""

    @property
    def ratio(self) -> float:
        """Bytes of content per stored byte."""
        return self.plain / self.stored if self.stored else 0.0

    def add(self, generation: Generation) -> None:
        """Add one generation to the sums."""
        self.generations += 1
        self.plain += generation.size
        for part in generation.parts:
            self.new += part.new_bytes
            # Records of generations written by castore 0.1 lack these two numbers.
            self.after_delta += part.after_delta or part.new_bytes
            self.after_compression += part.after_compression or part.stored_bytes
            self.stored += part.stored_bytes


class Records(msgspec.Struct):
    """Sums over all records of the store, whichever generation they belong to."""

    chunks: int = 0
    deltas: int = 0
    """Number of chunks that are stored as deltas."""
    chunk_bytes: int = 0
    """Bytes of all chunks, sealed."""
    delta_bytes: int = 0
    """Bytes of the deltas among them."""
    node_bytes: int = 0
    bases_only: int = 0
    """Chunks that no generation references, but that are bases of deltas that one needs."""
    bases_only_bytes: int = 0


class GenerationSize(msgspec.Struct):
    """One generation, and what only it needs."""

    service: str
    number: int
    time: int
    """When it was taken: nanoseconds since 1970."""
    plain: int
    """Bytes of content."""
    unique: int
    """Bytes of packs that no other generation needs: they are reclaimed if it is forgotten."""


class Stats(msgspec.Struct):
    """What `castore stats` reports."""

    services: dict[str, Totals]
    total: Totals
    records: Records
    packs: int
    pack_bytes: int
    """Length of all packs: records, footers, padding."""
    index_bytes: int
    """Bytes of the index on this machine."""
    base_cache_bytes: int
    """Bytes of the base cache on this machine."""
    generations: list[GenerationSize]
    """All generations, in the order of services and numbers."""

    @property
    def chunks(self) -> int:
        """Number of distinct chunks."""
        return self.records.chunks

    @property
    def overhead(self) -> int:
        """Bytes of packs that are neither chunks nor nodes: footers and padding."""
        return self.pack_bytes - self.records.chunk_bytes - self.records.node_bytes


def stats(store: Store) -> Stats:
    """Count everything. This walks every generation. Raises StorageError, DamageError.

    Memory grows by 20 bytes per chunk, and by about 100 bytes per node, which has about 100 chunks; and by
    about 1 KB per generation.
    """
    store.sync()
    services, total = _totals(store.generations.iterate())
    packs, pack_bytes = 0, 0
    for _, size in store.index.packs.lengths():
        packs, pack_bytes = packs + 1, pack_bytes + size
    return Stats(
        services,
        total,
        _records(store),
        packs,
        pack_bytes,
        store.index.size(),
        store.base_cache.size(),
        _generation_sizes(store),
    )


def _generation_sizes(store: Store) -> list[GenerationSize]:
    generations = sorted(store.generations.iterate(), key=lambda one: (one.service, one.number))
    unique = unique_bytes(store, generations)
    return [
        GenerationSize(one.service, one.number, one.time, one.size, size)
        for one, size in zip(generations, unique, strict=True)
    ]


def _records(store: Store) -> Records:
    records = Records()
    for kind, _, sealed_length, bases in store.index.locations.records():
        if kind == NODE:
            records.node_bytes += sealed_length
            continue
        records.chunk_bytes += sealed_length
        records.chunks += 1
        if bases:
            records.deltas += 1
            records.delta_bytes += sealed_length
    if records.deltas:
        marks = IdSet(records.chunks)
        walk = Walk(store)
        for generation in store.generations.iterate():
            walk.mark(roots_of(generation), marks)
        walk.check_complete()
        referenced, referenced_bytes = store.index.liveness.weigh_chunks(marks)
        store.index.liveness.mark_bases(marks)
        needed, needed_bytes = store.index.liveness.weigh_chunks(marks)
        records.bases_only = needed - referenced
        records.bases_only_bytes = needed_bytes - referenced_bytes
    return records


def _totals(generations: Iterable[Generation]) -> tuple[dict[str, Totals], Totals]:
    services: dict[str, Totals] = {}
    total = Totals()
    for generation in generations:
        services.setdefault(generation.service, Totals()).add(generation)
        total.add(generation)
    return dict(sorted(services.items())), total
