"""How much a store holds, and how much of it was saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.model.generation import Generation
    from castore.store import Store


class Totals(msgspec.Struct):
    """Sums over generations."""

    generations: int = 0
    plain: int = 0
    """Bytes of content, as if each generation were kept whole."""
    new: int = 0
    """Bytes of chunks that were new when they were taken: what deduplication left."""
    stored: int = 0
    """What those chunks, and nodes, took compressed and sealed."""

    @property
    def ratio(self) -> float:
        """How many bytes of content a stored byte stands for."""
        return self.plain / self.stored if self.stored else 0.0

    def add(self, generation: Generation) -> None:
        """Count one more generation."""
        self.generations += 1
        self.plain += generation.size
        self.new += sum(part.new_bytes for part in generation.parts)
        self.stored += sum(part.stored_bytes for part in generation.parts)


class Stats(msgspec.Struct):
    """What `stats` tells."""

    services: dict[str, Totals]
    total: Totals
    packs: int
    pack_bytes: int
    """Length of all packs: stored bytes, footers, padding, and what no generation counts."""
    chunks: int
    """Entries of the index: distinct chunks."""


def stats(store: Store) -> Stats:
    """Count everything. Raises StorageError."""
    store.sync()
    services, total = _totals(store.generations())
    sizes = [size for _, size in store.packs()]
    return Stats(services, total, len(sizes), sum(sizes), store.count_chunks())


def _totals(generations: Iterable[Generation]) -> tuple[dict[str, Totals], Totals]:
    services: dict[str, Totals] = {}
    total = Totals()
    for generation in generations:
        services.setdefault(generation.service, Totals()).add(generation)
        total.add(generation)
    return dict(sorted(services.items())), total
