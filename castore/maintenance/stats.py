"""Count what a store holds, and how much space each step of storing saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from castore.model.refs import RefKind
from castore.store.format.pack import CHUNK, NODE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.model.generation import Generation
    from castore.model.refs import RecordId
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
    """Those of the chunks that are stored as deltas."""
    chunk_bytes: int = 0
    """Bytes of all chunks, sealed."""
    delta_bytes: int = 0
    """Bytes of the deltas among them."""
    node_bytes: int = 0
    bases_only: int = 0
    """Chunks that no generation references, but that are bases of deltas that one needs."""
    bases_only_bytes: int = 0


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
    reference_bytes: int
    """Bytes of the base cache on this machine."""

    @property
    def chunks(self) -> int:
        """Number of distinct chunks."""
        return self.records.chunks

    @property
    def overhead(self) -> int:
        """Bytes of packs that are neither chunks nor nodes: footers and padding."""
        return self.pack_bytes - self.records.chunk_bytes - self.records.node_bytes


def stats(store: Store) -> Stats:
    """Count everything. This walks every generation. Raises StorageError, DamageError."""
    store.sync()
    generations = store.generations()
    services, total = _totals(generations)
    sizes = [size for _, size in store.packs()]
    return Stats(
        services,
        total,
        _records(store, generations),
        len(sizes),
        sum(sizes),
        store.index.size(),
        store.references.size(),
    )


def _records(store: Store, generations: Iterable[Generation]) -> Records:
    found = Records()
    bases: dict[RecordId, tuple[RecordId, ...]] = {}
    resting: set[RecordId] = set()
    for kind, record, sealed_length, below in store.index.records():
        if kind == NODE:
            found.node_bytes += sealed_length
            continue
        found.chunk_bytes += sealed_length
        found.chunks += 1
        if below:
            found.deltas += 1
            found.delta_bytes += sealed_length
            bases[record] = below
            resting.update(below)
    if resting:
        _mark(store, generations, bases, resting)
        for base in resting:
            place = store.index.locate(CHUNK, base)
            if place is not None:
                found.bases_only += 1
                found.bases_only_bytes += place.sealed_length
    return found


def _mark(
    store: Store,
    generations: Iterable[Generation],
    bases: dict[RecordId, tuple[RecordId, ...]],
    resting: set[RecordId],
) -> None:
    """Keep in `resting` only bases that no generation references, but that a needed delta needs."""
    referred: set[RecordId] = set()
    seen: set[RecordId] = set()
    for generation in generations:
        roots = [part.content for part in generation.parts] + [generation.details.ref]
        stack = [root for root in roots if root is not None]
        while stack:
            ref = stack.pop()
            if ref.kind is RefKind.CHUNK:
                referred.add(ref.id)
            elif ref.id not in seen:
                seen.add(ref.id)
                stack += store.read_node(ref.id)
    needed: set[RecordId] = set()
    todo = [base for chunk in referred & bases.keys() for base in bases[chunk]]
    while todo:
        base = todo.pop()
        if base not in needed:
            needed.add(base)
            todo += bases.get(base, ())
    resting &= needed - referred


def _totals(generations: Iterable[Generation]) -> tuple[dict[str, Totals], Totals]:
    services: dict[str, Totals] = {}
    total = Totals()
    for generation in generations:
        services.setdefault(generation.service, Totals()).add(generation)
        total.add(generation)
    return dict(sorted(services.items())), total
