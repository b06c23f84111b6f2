"""Damaged or lost chunks of a directory's small-file streams: exactly the files in them are reported, all others restored."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import castore
from castore.content.ref_tree import iter_chunks
from castore.content.scan import cache
from castore.content.stored_dirs import open_directory, open_top, references
from castore.content.streams import StreamReader
from castore.maintenance.verify import verify
from castore.model.refs import RecordId, Ref
from castore.services.sources import Tree
from castore.store import Store
from castore.store.format.pack import CHUNK, NODE
from tests.support.stored_streams import streams_of
from tests.support.stores import Sandbox
from tests.support.tree_walker import compare, walk

RESCUE = Path(__file__).parents[2] / "tools" / "rescue.py"
GENERATIONS = 6
Record = tuple[str, int, int]
"""A record: the name of its pack, its offset, its length."""


@dataclass
class Layout:
    """A store whose last generation has small files in several streams."""

    sandbox: Sandbox
    tree: dict[bytes, Any]
    needs: dict[bytes, set[Record]]
    """The records that each file needs, and the directory `d` for its list and entries."""
    top: set[Record]
    """Those that the top directory needs."""

    @property
    def records(self) -> list[Record]:
        """The records of small files whose damage leaves the top directory intact."""
        needed = {record for path, records in self.needs.items() if path != b"d" for record in records}
        return sorted(needed - self.top)

    def lost(self, records: set[Record]) -> set[bytes]:
        """Return what is reported if these records are damaged."""
        # Deltas share records in groups: one of them may have the entries of the directory, too.
        if self.needs[b"d"] & records:
            return {b"d"}
        return {path for path, needed in self.needs.items() if needed & records}


def records_of(store: Store, chunk: RecordId, kind: int = CHUNK) -> Iterator[Record]:
    """Yield the record of a chunk or node, and those of the chunks that it is a delta of."""
    location = store.index.locations.locate(kind, chunk)
    assert location is not None
    yield location.pack.hex(), location.offset, location.sealed_length
    for base in location.bases:
        yield from records_of(store, base)


def needs_of(reader: StreamReader, folder: Ref) -> set[Record]:
    """Return the records of a directory's list, and of its entries."""
    entries, *_ = references(reader, folder)
    store = reader.store
    chunks = [chunk.id for _, chunk in iter_chunks(store, entries)]
    return {*records_of(store, folder.id, NODE), *(one for chunk in chunks for one in records_of(store, chunk))}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    folder, rng = tmp_path_factory.mktemp("streams"), random.Random(4)
    sandbox, live = Sandbox(folder / "sandbox", average=4096), folder / "live"
    (live / "d").mkdir(parents=True)
    files = [live / "d" / f"f{number:02}" for number in range(40)]
    for path in files:
        path.write_bytes(rng.randbytes(rng.randrange(1, 6000)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cache, "_RACY_NS", 10_000_000)
        for number in range(GENERATIONS):
            for path in rng.sample(files, 3) if number else ():
                data = path.read_bytes()
                # Some become deltas of their earlier versions.
                path.write_bytes(data[:-10] + b"x" * 10 if rng.random() < 0.5 else rng.randbytes(len(data)))
            for folder in (live / "d", live):
                os.utime(folder, ns=(number, number))  # no list of entries is in two generations
            time.sleep(0.012)
            taken = sandbox.snapshot("s", {"t": Tree(str(live))})
    assert streams_of(sandbox, taken)[b"d"] >= 4
    with sandbox.open() as store, StreamReader(store) as reader:
        top = open_top(reader, taken.parts[0].root.ref).ref
        assert top is not None
        (d,) = open_directory(reader, top)
        assert d.ref is not None
        needs = {b"d": needs_of(reader, d.ref)}
        for child in open_directory(reader, d.ref):
            end = child.offset + child.entry.size
            chunks = [
                chunk.id
                for offset, chunk in iter_chunks(store, child.ref)
                if offset < end and child.offset < offset + chunk.size
            ]
            assert chunks
            needs[b"d/" + child.entry.name] = {record for chunk in chunks for record in records_of(store, chunk)}
        top_needs = {*needs_of(reader, top), *records_of(store, taken.parts[0].root.ref.id, NODE)}
    assert len(needs) == 1 + len(files)
    return Layout(sandbox, walk(live), needs, top_needs)


@pytest.fixture
def copied(pristine: Layout, tmp_path: Path) -> Layout:
    """The same in a copy, which may be damaged."""
    sandbox = object.__new__(Sandbox)
    sandbox.folder, sandbox.identity = tmp_path / "sandbox", pristine.sandbox.identity
    shutil.copytree(pristine.sandbox.folder, sandbox.folder)
    with sandbox.open() as store:
        store.sync()
    return Layout(sandbox, pristine.tree, pristine.needs, pristine.top)


def check(layout: Layout, lost: set[bytes], out: Path) -> None:
    """Restore the last generation: these files are reported, and all others are restored."""
    with layout.sandbox.open() as store:
        store.sync()
    report = layout.sandbox.restore(f"s@{GENERATIONS}:t", out).report
    assert {path for path, _ in report.damaged} == lost, report.damaged
    assert compare(without(layout.tree, lost), without(walk(out), lost)) == []
    shutil.rmtree(out)


def without(tree: dict[bytes, Any], lost: set[bytes]) -> dict[bytes, Any]:
    return {path: node for path, node in tree.items() if path not in lost and path.partition(b"/")[0] not in lost}


def flip(layout: Layout, record: Record) -> None:
    pack, offset, length = record
    path = layout.sandbox.store / "packs" / pack
    path.chmod(0o600)
    with open(path, "r+b") as file:
        file.seek(offset + length // 2)
        byte = file.read(1)[0]
        file.seek(offset + length // 2)
        file.write(bytes([byte ^ 1]))


def test_a_damaged_chunk_affects_exactly_the_files_in_it(copied: Layout, tmp_path: Path) -> None:
    records = copied.records
    assert len({pack for pack, _, _ in records}) > 3
    seen: set[int] = set()
    for record in records[::3]:
        flip(copied, record)
        lost = copied.lost({record})
        assert lost
        seen.add(len(lost))
        check(copied, lost, tmp_path / "out")
        flip(copied, record)
    check(copied, set(), tmp_path / "out")
    assert 1 < max(seen) < len(copied.needs) - 1


def test_a_lost_pack_affects_exactly_the_files_in_its_streams(copied: Layout, tmp_path: Path) -> None:
    packs = {pack for pack, _, _ in copied.records}
    needed = {pack for pack, _, _ in copied.top}
    assert len(packs - needed) > 2
    for pack in packs - needed:
        path = copied.sandbox.store / "packs" / pack
        path.rename(tmp_path / "pack")
        records = {record for needed in copied.needs.values() for record in needed if record[0] == pack}
        lost = copied.lost(records)
        check(copied, lost, tmp_path / "out")
        with copied.sandbox.open() as store:
            found = verify(store, castore.Progress(), read_data=True)
        assert GENERATIONS in {hit.number for hit in found.affected}
        (tmp_path / "pack").rename(path)
    check(copied, set(), tmp_path / "out")


def test_rescue_restores_the_files_of_undamaged_streams(copied: Layout, tmp_path: Path) -> None:
    (tmp_path / "identity").write_text(copied.sandbox.identity.text())
    records = [record for record in copied.records if record not in copied.needs[b"d"]]
    damaged = {*records[:: len(records) // 3]}
    for record in damaged:
        flip(copied, record)
    out = tmp_path / "out"
    store, identity = copied.sandbox.store, tmp_path / "identity"
    command = [sys.executable, RESCUE, store, "--identity", identity, "s", str(GENERATIONS), out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    lost = copied.lost(damaged)
    # What it could read of a damaged file remains.
    assert compare(without(copied.tree, lost), without(walk(out / "t"), lost)) == []
    assert all(os.fsdecode(path) in done.stderr for path in lost), done.stderr


def test_an_in_place_restore_of_files_in_damaged_streams_changes_no_file(copied: Layout, tmp_path: Path) -> None:
    live = tmp_path / "live"
    copied.sandbox.restore(f"s@{GENERATIONS}:t", live)
    record = next(record for record in copied.records if record not in copied.needs[b"d"])
    lost = sorted(copied.lost({record}))
    intact = min(copied.needs.keys() - {b"d", *lost})
    for name in (lost[0], intact):
        (live / os.fsdecode(name)).write_bytes(b"changed")
    before = walk(live)
    flip(copied, record)
    with pytest.raises(castore.DamageError):
        copied.sandbox.in_place(f"s@{GENERATIONS}:t", live)
    assert compare(before, walk(live)) == []
    flip(copied, record)
    copied.sandbox.in_place(f"s@{GENERATIONS}:t", live)
    assert compare(copied.tree, walk(live)) == []
