"""What a trial store is made of: the lengths of its chunks, and a sample of them for other levels of zstd."""

from __future__ import annotations

import heapq
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from mmap import mmap

    from castore.model.refs import RecordId
    from castore.store import NewChunk, SealedRecord

_LEAST_SAMPLED: Final = 16
"""Chunks: fewer do not show how much they differ."""
_STEPS: Final = 2
"""Classes of lengths per factor of two."""


class Class(NamedTuple):
    """The chunks of about one length."""

    least: int
    """Bytes of the shortest chunk that belongs here."""
    chunks: int
    size: int
    """Bytes of all its chunks."""


class Census:
    """Counts the records of a trial store, and keeps a random sample of the chunks that are stored in full.

    A chunk's id is a keyed hash, so the chunks with the smallest ids are a random sample.
    """

    def __init__(self, sample_bytes: int = 0) -> None:
        """sample_bytes: how many bytes of chunks are kept."""
        self.full_chunks = 0
        """Chunks that are stored in full, and not as deltas."""
        self.full_bytes = 0
        """Bytes of their records."""
        self.delta_chunks = 0
        self._lengths: Counter[int] = Counter()
        self._sizes: Counter[int] = Counter()
        self._room = sample_bytes
        self._lock = threading.Lock()
        self._sample: list[tuple[int, bytes]] = []
        """(negated number of the id, chunk): the greatest id is the first to go."""
        self._sampled = 0
        self._bound = 1 << 64

    def offer(
        self, buffer: bytearray | mmap, chunks: Sequence[NewChunk], records: Iterable[SealedRecord]
    ) -> None:
        """Take part of the chunks that were just sealed into the sample. Any thread may call it."""
        if not self._room:
            return
        places = {chunk.id: chunk for chunk in chunks}
        for record in records:
            member = record.members[0]
            if member.bases:
                continue
            rank = _rank(member.id)
            if rank < self._bound:
                chunk = places[member.id]
                with self._lock:
                    self._keep(rank, bytes(buffer[chunk.start : chunk.end]))

    def _keep(self, rank: int, data: bytes) -> None:
        heapq.heappush(self._sample, (-rank, data))
        self._sampled += len(data)
        while self._sampled > self._room and len(self._sample) > _LEAST_SAMPLED:
            removed, old = heapq.heappop(self._sample)
            self._bound = -removed
            self._sampled -= len(old)

    def count(self, record: SealedRecord) -> None:
        """Count a record that was added. One thread calls it."""
        for member in record.members:
            step = _class_of(member.length)
            self._lengths[step] += 1
            self._sizes[step] += member.length
        if record.members[0].bases:
            self.delta_chunks += len(record.members)
        else:
            self.full_chunks += 1
            self.full_bytes += len(record.record)

    @property
    def sample(self) -> list[bytes]:
        """The chunks in the sample."""
        return [data for _, data in self._sample]

    def classes(self) -> list[Class]:
        """Return the chunks by their lengths, the shortest first."""
        return [
            Class(round(2 ** (step / _STEPS)), self._lengths[step], self._sizes[step])
            for step in sorted(self._lengths)
        ]


def _rank(chunk: RecordId) -> int:
    return int.from_bytes(chunk[-8:], "little")


def _class_of(length: int) -> int:
    """Return the class of a length: twice its binary logarithm, rounded down."""
    exponent = length.bit_length() - 1
    return _STEPS * exponent + (length * length >= 1 << (2 * exponent + 1))
