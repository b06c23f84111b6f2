"""What stats counts, compared with sets of all ids."""

from __future__ import annotations

import os
import random

import pytest

import castore
from castore.maintenance.stats import stats
from castore.model.refs import RefKind
from castore.store.format.pack import CHUNK, NODE
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


def needed_by(store, generation) -> set[bytes]:
    """Everything that a generation needs, bases included, found with sets of all ids."""
    bases = {record: below for _, record, _, below in store.index.locations.records()}
    found: set[bytes] = set()
    todo = list(roots_of(generation))
    while todo:
        ref = todo.pop()
        if ref.id in found:
            continue
        found.add(ref.id)
        if ref.kind is not RefKind.CHUNK:
            todo += store.reader.read_node(ref.id)
    below = list(found)
    while below:
        for base in bases.get(below.pop(), ()):
            if base not in found:
                found.add(base)
                below.append(base)
    return found


def test_unique_bytes_are_those_that_no_other_generation_needs(tmp_path) -> None:
    from castore.services.sources import Tree, file_source

    sandbox = Sandbox(tmp_path / "sandbox", average=4096)
    data = random.Random(1).randbytes(400_000)
    (tmp_path / "tree").mkdir()
    for generation in range(4):
        data = edited(data, generation)
        (tmp_path / "dump").write_bytes(data)
        (tmp_path / "tree" / f"{generation % 2}").write_bytes(random.Random(generation).randbytes(70_000))
        sources = {"d": file_source(str(tmp_path / "dump")), "t": Tree(str(tmp_path / "tree"))}
        sandbox.snapshot("s" if generation % 2 else "other", sources)
    with sandbox.open() as store:
        found = {(one.service, one.number): one.unique for one in stats(store).generations}
        weights = {record: weight for kind in (CHUNK, NODE) for record, weight in store.index.liveness.weights(kind)}
        needed = {(one.service, one.number): needed_by(store, one) for one in store.generations.all()}
        assert len(found) == 4
        for name, unique in found.items():
            others = set().union(*(ids for other, ids in needed.items() if other != name))
            # Shares of a record are fractions, whose sum depends on their order.
            assert unique == pytest.approx(sum(weights[record] for record in needed[name] - others), abs=1)
            assert unique > 0


def test_forgetting_a_generation_frees_about_its_unique_bytes(tmp_path) -> None:
    from castore.maintenance.compact import compact
    from castore.services.sources import file_source

    sandbox = Sandbox(tmp_path / "sandbox", average=4096)
    for generation in range(3):
        (tmp_path / "dump").write_bytes(random.Random(generation).randbytes(1_000_000))
        sandbox.snapshot("s", {"d": file_source(str(tmp_path / "dump"))})
    with sandbox.open() as store:
        before = stats(store)
        unique = before.generations[1].unique
        store.generations.forget("s", [2])
        compact(store, castore.Progress(), grace_seconds=0, max_unused=0, unfinished_seconds=0)
        freed = before.pack_bytes - stats(store).pack_bytes
    assert abs(freed - unique) < unique // 20
