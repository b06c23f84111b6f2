"""The base cache holds what the last generation of each service needs, and nothing that was forgotten."""

from __future__ import annotations

import os
import random
from pathlib import Path

import castore
from castore.kernel.id_set import IdSet
from castore.maintenance.limits import Limits
from castore.services.prune import compact_and_record, forget
from castore.services.sources import file_source
from castore.store.format.pack import CHUNK
from castore.store.reachability import Walk, roots_of
from tests.support.stores import Sandbox


def size(sandbox: Sandbox) -> int:
    return sum(path.stat().st_blocks * 512 for path in Path(sandbox.places.cache).glob("*/*/base-cache/*"))


def take(sandbox: Sandbox, data: bytes, service: str = "web"):
    (sandbox.folder / "dump").write_bytes(data)
    return sandbox.snapshot(service, {"d": file_source(str(sandbox.folder / "dump"))})


def needed(store, service: str) -> int:
    """Return the bytes of the records that the last generation needs, bases included."""
    marks = IdSet()
    Walk(store).mark(roots_of(store.generations.newest(service)), marks)
    store.index.liveness.mark_bases(marks)
    entries = (entry for pack, _ in store.index.packs.lengths() for entry in store.reader.pack_entries(pack))
    return sum({entry.id: entry.sealed_length for entry in entries if entry.kind == CHUNK and entry.id in marks}.values())


def test_forty_nights_with_forget_and_compact_leave_a_small_cache(tmp_path):
    sandbox = Sandbox(tmp_path)
    random_bytes = random.Random(1)
    data = bytearray(random_bytes.randbytes(2_000_000))
    take(sandbox, bytes(data))
    stored = []
    for night in range(2, 45):
        for _ in range(20):
            at = random_bytes.randrange(len(data) - 2000)
            data[at : at + 2000] = random_bytes.randbytes(2000)
        stored.append(take(sandbox, bytes(data)).parts[0].stored_bytes)
        if night % 4 == 0:
            with sandbox.open(identity=False) as store:
                store.sync()
                with store.state.lock("web"):
                    forget(store, "web", [one for one in store.generations.all("web") if one.number <= night - 3])
                compact_and_record(store, castore.Progress(), Limits(grace_seconds=0, unfinished_seconds=0))
                assert store.base_cache.size() <= 1.5 * needed(store, "web")
    assert max(stored[-8:]) < 500_000, "the bases of deltas stay"


def test_what_was_forgotten_is_not_readable_in_the_cache(tmp_path):
    sandbox = Sandbox(tmp_path)
    secret = os.urandom(3000)
    take(sandbox, secret + b"a" * 3000, "mail")
    kept = os.urandom(300_000)
    take(sandbox, kept + os.urandom(300_000))
    take(sandbox, kept)
    with sandbox.open(identity=False) as store:
        store.sync()
        with store.state.lock("mail"):
            forget(store, "mail", store.generations.all("mail"))
    files = [path.read_bytes() for path in Path(sandbox.places.cache).glob("*/*/base-cache/*")]
    assert files
    assert not any(secret[100:200] in one for one in files)
    before = size(sandbox)
    assert before < 450_000
    with sandbox.open(identity=False) as store:
        assert store.base_cache.size() == before
    assert take(sandbox, kept + b"x").parts[0].stored_bytes < 100_000


def test_a_snapshot_under_way_keeps_its_files(tmp_path):
    sandbox = Sandbox(tmp_path)
    take(sandbox, os.urandom(100_000))
    take(sandbox, os.urandom(100_000), "mail")
    with sandbox.open(identity=False) as other, other.session():
        writer = other.base_cache.create(16)
        before = size(sandbox)
        with sandbox.open(identity=False) as store:
            store.sync()
            with store.state.lock("mail"):
                forget(store, "mail", store.generations.all("mail"))
        assert size(sandbox) == before
        assert writer is not None
        writer.abort()
