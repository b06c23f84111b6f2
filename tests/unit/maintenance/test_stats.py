"""What stats counts, compared with sets of all ids."""

from __future__ import annotations

import os
import random

from castore.maintenance.stats import stats
from castore.model.refs import RefKind
from castore.store.format.pack import CHUNK
from castore.store.reachability import roots_of
from tests.support.stores import Sandbox


def edited(data: bytes, seed: int) -> bytes:
    rng = random.Random(seed)
    out = bytearray(data)
    for _ in range(60):
        out[rng.randrange(len(out))] ^= 1
    return bytes(out)


def bases_only(store) -> tuple[int, float]:
    """Chunks that only deltas need, found with sets of all ids; and their share of the records' bytes."""
    referenced, seen, records = set(), set(), {}
    found = store.index.locations.records()
    bases = {record: below for kind, record, _, below in found if kind == CHUNK and below}
    for generation in store.generations.all():
        stack = list(roots_of(generation))
        while stack:
            ref = stack.pop()
            if ref.kind is RefKind.CHUNK:
                referenced.add(ref.id)
            elif ref.id not in seen:
                seen.add(ref.id)
                stack += store.reader.read_node(ref.id)
    needed, todo = set(), [base for chunk in referenced for base in bases.get(chunk, ())]
    while todo:
        if (base := todo.pop()) not in needed:
            needed.add(base)
            todo += bases.get(base, ())
    for kind, record, _, _ in store.index.locations.records():
        if kind == CHUNK:
            place = store.index.locations.locate(CHUNK, record)
            records.setdefault((place.pack, place.offset), []).append((record, place.sealed_length))
    total = 0.0
    for members in records.values():
        total += sum(sealed / len(members) for record, sealed in members if record in needed - referenced)
    return len(needed - referenced), total


def test_chunks_that_only_deltas_need_are_those_that_sets_of_ids_find(tmp_path) -> None:
    from castore.services.sources import file_source

    sandbox = Sandbox(tmp_path / "sandbox", average=4096)
    data = random.Random(1).randbytes(600_000)
    for generation in range(4):
        data = edited(data, generation)
        (tmp_path / "dump").write_bytes(data)
        sandbox.snapshot("s", {"d": file_source(str(tmp_path / "dump"))})
    for name in sorted(os.listdir(sandbox.store / "generations"))[:2]:
        (sandbox.store / "generations" / name).unlink()
    with sandbox.open() as store:
        records = stats(store).records
        count, size = bases_only(store)
    assert count > 0
    assert records.bases_only == count
    assert abs(records.bases_only_bytes - size) <= 1
