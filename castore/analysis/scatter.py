"""How widely the content of one night is scattered over packs: what a restore would read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from castore.analysis.results import Scatter
from castore.content.streams import runs_of
from castore.model.refs import Ref, RefKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from castore.model.refs import RecordId
    from castore.store import Store

_WINDOW: Final = 64 << 20
_MOST_WINDOWS: Final = 64
_GAP: Final = 1 << 16
"""Bytes: a restore reads records that are closer to each other with one request."""


def measure_scatter(store: Store, roots: Sequence[Ref]) -> Scatter:
    """Return how a restore of these roots would read packs, from up to 64 windows of 64 MiB."""
    size = sum(root.size for root in roots)
    if not size:
        return Scatter(0.0, 0.0)
    count = min(-(-size // _WINDOW), _MOST_WINDOWS)
    step = size / count
    reads = packs = measured = 0
    for number in range(count):
        start = int(number * step)
        chunks = list(_chunks(store, roots, start, min(start + _WINDOW, size)))
        measured += sum(chunk.size for chunk in chunks)
        more_reads, more_packs = _requests(store, chunks)
        reads += more_reads
        packs += more_packs
    per_window = _WINDOW / max(measured, 1)
    return Scatter(round(reads * per_window, 1), round(packs * per_window, 1))


def _requests(store: Store, chunks: list[Ref]) -> tuple[int, int]:
    """Return the numbers of requests and of packs that reading these chunks, and their bases, takes.

    As `RecordReader.read_chunks`: the records of a run of 2 MiB are sorted, and neighbours are read together.
    """
    requests = 0
    packs = set()
    kept: set[RecordId] = set()
    for run in runs_of(enumerate(chunks)):
        wanted = [chunk.id for _, chunk in run]
        places = store.index.locations.locate_chunks(wanted, kept)
        kept = places.keys() - set(wanted)
        last_pack, last_end = None, 0
        for pack, offset, length in sorted({place[:3] for place in places.values()}):
            if pack != last_pack or offset > last_end + _GAP:
                requests += 1
            packs.add(pack)
            last_pack, last_end = pack, offset + length
    return requests, len(packs)


def _chunks(store: Store, roots: Sequence[Ref], start: int, end: int) -> Iterator[Ref]:
    """Yield the chunks whose content begins in [start, end), in the order of the content."""
    stack = list(_offsets(roots, 0))[::-1]
    while stack:
        offset, ref = stack.pop()
        if offset >= end or offset + ref.size <= start:
            continue
        if ref.kind is RefKind.CHUNK:
            if offset >= start:
                yield ref
            continue
        stack += list(_offsets(store.reader.read_node(ref.id), offset))[::-1]


def _offsets(refs: Sequence[Ref], offset: int) -> Iterator[tuple[int, Ref]]:
    for ref in refs:
        yield offset, ref
        offset += ref.size
