"""The estimate of other levels of zstd, from a sample of chunks."""

from __future__ import annotations

import random
from array import array

from castore.analysis.census import Census
from castore.analysis.levels import estimate_levels
from castore.model.refs import RecordId
from castore.store import NewChunk, SealedRecord
from castore.store.format.codecs import Codecs
from castore.store.write.delta_encoder import DeltaMember

_LENGTH = 16384


def taken(room: int, chunks: list[bytes]) -> Census:
    """Return a census of chunks that are stored in full."""
    census, codecs = Census(room), Codecs()
    for number, data in enumerate(chunks):
        chunk = RecordId(random.Random(number).randbytes(32))
        member = DeltaMember(chunk, len(data), 0, (), (), len(data))
        record = SealedRecord(bytes(codecs.compress(data)[1]), 0, [member], b"")
        census.offer(bytearray(data), [NewChunk(chunk, 0, len(data))], [record])
        census.count(record)
    return census


def made_up(count: int) -> list[bytes]:
    """Return chunks of text, of numbers and of noise."""
    rng = random.Random(1)
    words = [f"{rng.getrandbits(32):x} " for _ in range(500)]
    found = []
    for number in range(count):
        text = "".join(rng.choices(words, k=2500)).encode()[:_LENGTH]
        numbers = array("I", (rng.randrange(1000) for _ in range(_LENGTH // 4))).tobytes()
        found.append((text, numbers, rng.randbytes(_LENGTH))[number % 3])
    return found


def test_an_estimate_is_within_its_error_of_the_exact_figure() -> None:
    chunks = made_up(600)
    full = taken(1 << 30, chunks)
    assert len(full.sample) == 600
    stored = full.full_bytes + 5000
    levels = (1, 3, 9)
    exact = estimate_levels(full, stored, levels)
    assert [figure.error for figure in exact] == [0, 0, 0]
    sampled = estimate_levels(taken(100 * _LENGTH, chunks), stored, levels)
    for wanted, found in zip(exact, sampled, strict=True):
        assert 0 < found.error < stored // 5
        assert abs(found.stored - wanted.stored) <= 2 * found.error


def test_the_sample_is_random_and_bounded() -> None:
    census = taken(50 * _LENGTH, made_up(600))
    sample = census.sample
    assert len(sample) == 50
    noise = [data for data in sample if len(set(data[1::4])) > 100]
    assert 8 <= len(noise) <= 26  # a third of all
    assert [one.chunks for one in census.classes()] == [600]


def test_chunks_are_counted_by_length() -> None:
    census = taken(0, [bytes(1000), bytes(1023), bytes(1024), bytes(1448), bytes(1449), bytes(2048)])
    assert [(one.least, one.chunks, one.size) for one in census.classes()] == [
        (724, 2, 2023),
        (1024, 2, 2472),
        (1448, 1, 1449),
        (2048, 1, 2048),
    ]
