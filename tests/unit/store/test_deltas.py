"""Deltas in a store: what they save, what they depend on, and what their loss costs."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import castore
from castore.content.ref_tree import iter_chunks
from castore.errors import DamageError
from castore.kernel import MAX_GROUP, encode_delta
from castore.maintenance.stats import stats
from castore.maintenance.verify import verify as verify_store
from castore.model.generation import Generation
from castore.model.refs import PackId, RecordId, RefKind, SessionId
from castore.services.sources import Tree, file_source
from castore.store import NewChunk
from castore.store.format.codecs import Codecs, Groups, member_of
from castore.store.format.pack import BASES, CHUNK, DELTA, PackEntry, _decode_footer
from castore.store.index.pack_tables import PackContent
from castore.store.read.delta_resolver import StoredForm, assemble
from castore.store.write.base_provider import MAX_DEPTH
from tests.support.checkout import ROOT
from tests.support.stores import Sandbox, take_snapshot

RESCUE = ROOT / "tools" / "rescue.py"


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path)


def table(rows: int, night: int, *, seed: int = 0) -> bytes:
    """A dump of rows, of which each night changes one in 300, removes some and adds some."""
    rng = random.Random(seed)
    lines = [f"{n}\t{rng.getrandbits(60)}\t{rng.randrange(1000)}\tsome words\n" for n in range(rows)]
    for one in range(1, night + 1):
        change = random.Random(f"{one} {seed}")
        for _ in range(rows // 300):
            at = change.randrange(len(lines))
            lines[at] = f"{at}\t{change.getrandbits(60)}\tnew in night {one}\n"
        del lines[change.randrange(len(lines)) :][:5]
        lines += [f"added\t{change.getrandbits(60)}\n" for _ in range(20)]
    return "".join(lines).encode()


def take(sandbox: Sandbox, data: bytes, *, service: str = "s", limit: int | None = None) -> Generation:
    """Take a dump on a machine that holds no identity."""
    file = sandbox.folder / f"{service}.dump"
    file.write_bytes(data)
    with sandbox.open(identity=False) as store:
        store.base_cache.limit = limit
        return take_snapshot(store, service, {"d": file_source(str(file))})


def content(sandbox: Sandbox, number: int, service: str = "s") -> bytes:
    into = sandbox.folder / "out" / f"{service}-{number}-{os.urandom(4).hex()}"
    sandbox.restore(f"{service}@{number}:d", into)
    return (into / "d").read_bytes()


def cache_files(sandbox: Sandbox) -> list[Path]:
    return sorted(path for path in Path(sandbox.places.cache).glob("*/*/base-cache/*"))


def depths(sandbox: Sandbox) -> list[int]:
    """How many chunks lie below each chunk of the store; fails on a circle."""
    with sandbox.open(identity=False) as store:
        store.sync()
        bases = {record: below for kind, record, _, below in store.index.locations.records() if kind == CHUNK}

    def depth(chunk: bytes, above: tuple[bytes, ...] = ()) -> int:
        assert chunk not in above, "a chain closes a circle"
        return max((1 + depth(base, (*above, chunk)) for base in bases[chunk]), default=0)

    return [depth(chunk) for chunk in bases]


def test_nights_of_a_dump_take_little_and_come_back(sandbox):
    nights = [table(40_000, night) for night in range(9)]
    taken = [take(sandbox, data).parts[0] for data in nights]
    for part in taken[1:4]:
        assert part.new_bytes > part.size // 2
        assert part.stored_bytes < taken[0].stored_bytes // 12
        assert part.after_compression <= part.after_delta <= part.new_bytes // 4
    assert sum(part.stored_bytes for part in taken[1:]) < taken[0].stored_bytes
    for number, data in enumerate(nights, 1):
        assert content(sandbox, number) == data
    assert max(depths(sandbox)) == MAX_DEPTH
    with sandbox.open() as store:
        assert verify_store(store, castore.Progress(), read_data=True).sound
        store.updater.rebuild()
    assert content(sandbox, 9) == nights[-1]
    assert max(depths(sandbox)) == MAX_DEPTH


def test_the_same_again_stores_nothing(sandbox):
    data = table(20_000, 3)
    take(sandbox, table(20_000, 2))
    take(sandbox, data)
    with sandbox.open() as store:
        packs = sorted(store.index.packs.lengths())
    part = take(sandbox, data).parts[0]
    assert (part.new_chunks, part.stored_bytes) == (0, 0)
    with sandbox.open() as store:
        assert sorted(store.index.packs.lengths()) == packs


@pytest.mark.parametrize("loss", ["cache", "index", "both", "off", "garbage", "cut", "old", "swapped"])
def test_what_is_lost_on_this_machine_costs_space_and_never_content(sandbox, loss):
    nights = [table(20_000, night) for night in range(4)]
    sizes = [take(sandbox, nights[0]).parts[0].stored_bytes, take(sandbox, nights[1]).parts[0].stored_bytes]
    files = cache_files(sandbox)
    assert files
    if loss in {"cache", "both"}:
        for path in files:
            path.unlink()
    if loss in {"index", "both"}:
        (folder,) = Path(sandbox.places.cache).glob("*/*/index")
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    for path in files:
        if loss == "garbage":
            path.write_bytes(path.read_bytes()[:24] + os.urandom(path.stat().st_size))
        elif loss == "cut":
            os.truncate(path, path.stat().st_size // 2)
        elif loss == "old":
            data = bytearray(path.read_bytes())
            data[16:24] = (1_000_000_000).to_bytes(8, "little")
            path.write_bytes(data)
            os.utime(path, (1_000_000_000, 1_000_000_000))
    if loss == "swapped":
        files[0].rename(files[0].with_name("x"))
        files[1].rename(files[0])
        files[0].with_name("x").rename(files[1])
    limit = 0 if loss == "off" else None
    sizes += [take(sandbox, data, limit=limit).parts[0].stored_bytes for data in nights[2:]]
    assert [content(sandbox, number) for number in range(1, 5)] == nights
    if loss == "old":
        assert not set(files) & set(cache_files(sandbox))
    # Where the bases are missing, the next dump is stored in full; then there are bases again. Without
    # the index, their places in the parent are known all the same.
    whole = {"cache": True, "both": True, "off": True, "garbage": True, "old": True, "swapped": True}.get(loss)
    if whole:
        assert sizes[2] > 5 * sizes[1]
    if loss == "off":
        assert sizes[3] > 5 * sizes[1]
        assert cache_files(sandbox) == []
    else:
        assert sizes[3] < sizes[0] // 6


def test_shifted_content_finds_bases_without_a_parent(sandbox):
    first, second = table(30_000, 0), b"-- in front\n" * 3000 + table(30_000, 1)
    whole = take(sandbox, first).parts[0].stored_bytes
    assert take(sandbox, second, service="other").parts[0].stored_bytes < whole // 2
    assert content(sandbox, 1, "other") == second


def test_similar_files_in_a_first_snapshot_are_deltas_of_each_other(sandbox, tmp_path):
    tree = tmp_path / "tree"
    for number in range(4):
        folder = tree / f"site-{number}"
        folder.mkdir(parents=True)
        (folder / "database").write_bytes(table(20_000, number))
    taken = sandbox.snapshot("s", {"t": Tree(str(tree))})
    assert taken.skipped_files == 0
    part = taken.parts[0]
    assert part.new_bytes > 3 * (tree / "site-0" / "database").stat().st_size
    assert part.after_delta < part.new_bytes // 2
    sandbox.restore("s@1:t", tmp_path / "out-tree")
    for number in range(4):
        assert (tmp_path / "out-tree" / f"site-{number}" / "database").read_bytes() == table(20_000, number)


def test_incompressible_chunks_are_stored_as_they_are(sandbox):
    data = random.Random(1).randbytes(3_000_000)
    part = take(sandbox, data).parts[0]
    assert part.new_bytes == part.after_delta == part.after_compression == len(data)
    assert content(sandbox, 1) == data


def test_damage_to_a_base_is_damage_of_every_generation_that_needs_it(sandbox):
    nights = [table(20_000, night) for night in range(3)]
    for data in nights:
        take(sandbox, data)
    with sandbox.open() as store:
        store.sync()
        bases: dict[bytes, int] = {}
        for kind, _, _, below in store.index.locations.records():
            for base in below if kind == CHUNK else ():
                bases[base] = bases.get(base, 0) + 1
        at_root = next(base for base in bases if not store.index.locations.locate(CHUNK, base).bases)
        place = store.index.locations.locate(CHUNK, at_root)
    path = sandbox.store / "packs" / place.pack.hex()
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        file.seek(place.offset + 5)
        byte = file.read(1)
        file.seek(place.offset + 5)
        file.write(bytes([byte[0] ^ 1]))
    with sandbox.open() as store:
        found = verify_store(store, castore.Progress(), read_data=True)
        needing = set()
        for generation in store.generations.all():
            for _, ref in chunks_of(store, generation):
                if at_root in closure(store, ref):
                    needing.add(generation.number)
    assert len(needing) >= 2
    assert {hit.number for hit in found.affected} == needing
    for number in (1, 2, 3):
        if number in needing:
            with pytest.raises(DamageError):
                content(sandbox, number)
        else:
            assert content(sandbox, number) == nights[number - 1]


def test_deltas_share_records_and_a_lost_record_is_reported_for_all_in_it(sandbox):
    for night in range(2):
        take(sandbox, table(40_000, night))
    with sandbox.open() as store:
        shown = stats(store)
        packs = [(pack, store.reader.pack_entries(pack)) for pack, _ in store.index.packs.lengths()]
        groups: dict[tuple[bytes, int], list[PackEntry]] = {}
        lengths: dict[tuple[bytes, int], int] = {}
        for pack, entries in packs:
            for entry in entries:
                lengths[pack, entry.offset] = entry.sealed_length
                if entry.codec >= DELTA:
                    groups.setdefault((pack, entry.offset), []).append(entry)
        assert shown.records.chunk_bytes + shown.records.node_bytes == sum(lengths.values())
        assert shown.overhead > 0
    (pack, offset), members = max(groups.items(), key=lambda item: len(item[1]))
    assert len(members) > 10
    assert [entry.group_index for entry in members] == list(range(len(members)))
    assert len({entry.counter for entry in members}) == 1
    path = sandbox.store / "packs" / pack.hex()
    data = bytearray(path.read_bytes())
    data[offset + members[0].sealed_length // 2] ^= 1
    os.chmod(path, 0o600)
    path.write_bytes(data)
    with sandbox.open() as store:
        found = verify_store(store, castore.Progress(), read_data=True)
    assert {(hit.number, hit.part) for hit in found.affected} == {(2, "d")}
    for entry in members:
        assert any(entry.id.hex() in text for text in found.damage)
    assert content(sandbox, 1) == table(40_000, 0)


def test_a_footer_whose_groups_are_none_is_refused():
    session, other, base = SessionId(b"s" * 16), SessionId(b"o" * 16), RecordId(b"b" * 32)

    def entry(number, codec=DELTA, counter=7, session=session, **more):
        bases = (base,) * BASES[codec]
        record = RecordId(bytes([number]) * 32)
        return PackEntry(record, CHUNK, codec, 10, 100, counter, session, 48, bases, **more)

    def footer(*entries):
        sessions = b"".join([session, other])
        shown = b"".join(
            struct.pack("<32sIIIHBB", *(e.id, 0 if e.group_index else 100, 10, e.counter, e.session == other, 0, e.codec))
            for e in entries
        )
        return b"\x02\0" + sessions + shown + b"".join(one for e in entries for one in e.bases)

    right = [entry(1), entry(2, DELTA + 1, group_index=1), entry(3, group_index=2)]
    found = _decode_footer(footer(*right), 3, 1000)
    assert [one.group_index for one in found] == [0, 1, 2]
    assert {one.offset for one in found} == {found[0].offset}
    assert {one.sealed_length for one in found} == {100}
    for wrong in (
        [entry(1, group_index=1)],
        [entry(1, codec=1), entry(2, group_index=1)],
        [entry(1), entry(2, codec=1, group_index=1)],
        [entry(1), entry(2, counter=8, group_index=1)],
        [entry(1), entry(2, session=other, group_index=1)],
        [entry(1), *(entry(number % 250, group_index=1) for number in range(MAX_GROUP))],
    ):
        with pytest.raises(DamageError, match="has no record"):
            _decode_footer(footer(*wrong), len(wrong), 1000)


def test_a_group_without_the_delta_that_is_asked_of_it_is_damaged():
    groups = Groups(Codecs())
    delta = encode_delta(b"base" * 100, bytearray(b"base" * 100), 0, 400, 100)
    data = Codecs().compress_group([delta] * 3)
    deltas = groups.open("key", lambda: data)
    assert groups.get("key") == deltas == [delta] * 3
    assert groups.get("other") is None
    with pytest.raises(DamageError, match="3 deltas"):
        member_of(deltas, 3)
    for wrong in (b"", data[:11], data[:40], data[:12] + b"x" + data[13:], b"\xff" * 4 + data[4:]):
        with pytest.raises(DamageError):
            groups.open("wrong", lambda wrong=wrong: wrong)


def test_a_missing_base_is_reported_for_every_generation_that_needs_it(sandbox):
    for night in range(3):
        take(sandbox, table(20_000, night))
    with sandbox.open(identity=False) as store:
        store.sync()
        first = store.generations.get("s", 1)
        (_, ref), *_ = chunks_of(store, first)
        pack = store.index.locations.locate(CHUNK, ref.id).pack
    (sandbox.store / "packs" / pack.hex()).unlink()
    with sandbox.open(identity=False) as store:
        found = verify_store(store, castore.Progress())
    assert {hit.number for hit in found.affected if hit.part == "d"} == {1, 2, 3}
    assert any("is a delta of" in hit.reason for hit in found.affected)


def chunks_of(store, generation):
    return iter_chunks(store, generation.parts[0].content)


def closure(store, ref) -> set[bytes]:
    assert ref.kind is RefKind.CHUNK
    todo, found = [ref.id], set()
    while todo:
        chunk = todo.pop()
        found.add(chunk)
        todo += store.index.locations.locate(CHUNK, chunk).bases
    return found


def test_two_services_that_store_the_same_at_once_are_safe(sandbox):
    inputs = [table(20_000, 1), table(20_000, 2)]
    take(sandbox, table(20_000, 0), service="a")
    errors: list[BaseException] = []
    together = threading.Barrier(2)

    def work(number: int) -> None:
        try:
            together.wait(20)
            for data in (inputs[number], inputs[1 - number]):
                take(sandbox, data, service=f"x{number}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for number in (0, 1):
        assert content(sandbox, 1, f"x{number}") == inputs[number]
        assert content(sandbox, 2, f"x{number}") == inputs[1 - number]
    assert max(depths(sandbox)) <= MAX_DEPTH


def test_the_cache_keeps_what_the_last_generation_is_in_and_its_bound(sandbox):
    take(sandbox, table(20_000, 0))
    take(sandbox, random.Random(1).randbytes(2_000_000), service="other")
    kept = set(cache_files(sandbox))
    assert len(kept) == 2
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in kept)
    assert all(path.parent.stat().st_mode & 0o777 == 0o700 for path in kept)
    for path in kept:
        os.utime(path, (path.stat().st_mtime - 100_000,) * 2)
    take(sandbox, random.Random(2).randbytes(2_000_000), service="other")
    # Of what "other" was, only the chunk that records where it came from is used again.
    assert len(kept - set(cache_files(sandbox))) == 1
    take(sandbox, random.Random(3).randbytes(2_000_000), service="other", limit=1_000_000)
    assert sum(path.stat().st_size for path in cache_files(sandbox)) <= 1_000_000
    assert content(sandbox, 3, "other") == random.Random(3).randbytes(2_000_000)


def test_a_cache_that_cannot_be_written_is_done_without(sandbox):
    with sandbox.open() as store:
        folder = sandbox.places.base_cache_of(store.store_id, store.storage.canonical_location)
    os.makedirs(folder, mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "castore-test", folder]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting takes root")
    try:
        data = random.Random(1).randbytes(4_000_000)
        take(sandbox, data, limit=1 << 30)
        assert cache_files(sandbox) == []
        assert content(sandbox, 1) == data
    finally:
        subprocess.run(["umount", folder], check=True)


def test_stats_show_what_each_step_left(sandbox):
    for night in range(3):
        take(sandbox, table(20_000, night))
    with sandbox.open(identity=False) as store:
        found = stats(store)
    total = found.total
    assert total.plain >= total.new > total.after_delta > total.after_compression
    assert total.stored >= total.after_compression
    records = found.records
    assert 0 < records.deltas < records.chunks
    assert records.chunk_bytes + records.node_bytes + found.overhead == found.pack_bytes
    assert records.bases_only == 0
    # The records of a dropped generation stay where deltas of others depend on them.
    (name, *_) = sorted(os.listdir(sandbox.store / "generations"))
    (sandbox.store / "generations" / name).unlink()
    with sandbox.open(identity=False) as store:
        dropped = stats(store).records
    assert dropped.bases_only > 0
    assert dropped.bases_only_bytes > 0


def test_deltas_are_restored_without_castore(sandbox, tmp_path):
    nights = [table(20_000, night) for night in range(4)]
    for data in nights:
        take(sandbox, data)
    identity = tmp_path / "identity"
    identity.write_text(sandbox.identity.text() + "\n")
    for number in (2, 4):
        out = tmp_path / f"rescued-{number}"
        command = [sys.executable, str(RESCUE), str(sandbox.store), "--identity", str(identity)]
        done = subprocess.run(
            [*command, "s", str(number), str(out)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert (out / "d").read_bytes() == nights[number - 1]


def test_a_store_that_lost_packs_is_given_again_what_was_in_them(sandbox):
    """A parent may have lost chunks: expected content is stored again all the same."""
    data = table(40_000, 0)
    take(sandbox, data)
    for path in (sandbox.store / "packs").iterdir():
        path.unlink()
    taken = take(sandbox, data)
    assert taken.parts[0].new_bytes == len(data)
    assert content(sandbox, 2) == data


def test_a_chunk_that_another_process_stored_meanwhile_is_not_its_own_base(sandbox):
    first = random.Random(1).randbytes(60_000)
    other = first[:30_000] + b"changed" + first[30_000:]
    with sandbox.open(identity=False) as store, store.session() as session:

        def add(data: bytes, *similar: bytes) -> list[RecordId]:
            chunk = NewChunk(session.chunk_id(data), 0, len(data), (), similar, similar)
            (sealed,) = session.seal(bytearray(data), [chunk])
            session.append(sealed)
            return list(sealed.members[0].bases)

        ids = [session.chunk_id(first), session.chunk_id(other)]
        assert add(first) == []
        assert add(other, ids[0]) == [ids[0]]
        # What `known` and `add` keep from happening in one process: it is sealed once more.
        assert add(first, ids[0]) == []
        assert add(first, ids[1]) == []
        assert session.was_added(ids[0])


def test_of_a_chunk_that_a_pack_has_twice_the_first_place_is_taken(sandbox):
    chunk, below = RecordId(b"c" * 32), RecordId(b"b" * 32)
    session = SessionId(b"s" * 16)
    later = PackEntry(chunk, CHUNK, DELTA, 10, 50, 2, session, 500, (chunk,))
    front = PackEntry(chunk, CHUNK, DELTA + 1, 10, 90, 1, session, 100, (below, below), 3)
    with sandbox.open(identity=False) as store:
        store.index.packs.put([PackContent(PackId(b"p" * 32), 1000, [later, front])])
        place = store.index.locations.locate(CHUNK, chunk)
        assert (place.offset, place.bases, place.group_index) == (100, (below, below), 3)
        assert store.index.locations.copies(chunk) == []
        assert store.index.locations.missing_base(chunk) == below


def test_a_circle_is_reported_unless_a_copy_breaks_it(sandbox):
    one, two = RecordId(b"1" * 32), RecordId(b"2" * 32)
    session = SessionId(b"s" * 16)

    def entry(chunk, bases, offset):
        return PackEntry(chunk, CHUNK, DELTA if bases else 0, 10, 50, offset, session, offset, bases)

    with sandbox.open(identity=False) as store:
        store.index.packs.put([PackContent(PackId(b"p" * 32), 1000, [entry(one, (two,), 100), entry(two, (one,), 200)])])
        assert store.index.locations.missing_base(one) in {one, two}
        assert store.index.locations.missing_base(two) in {one, two}
        store.index.packs.put([PackContent(PackId(b"q" * 32), 1000, [entry(one, (), 100)])])
        assert store.index.locations.missing_base(one) is None
        assert store.index.locations.missing_base(two) is None


def test_a_chunk_too_large_to_be_kept_is_put_together_all_the_same():
    class Nothing(dict):
        def __setitem__(self, chunk, base):
            pass

    base, target = b"base" * 100, b"base" * 60 + b"new" + b"base" * 60
    delta = encode_delta(base, bytearray(target), 0, len(target), 1000)
    layers = {b"t": StoredForm(delta, len(target), (b"b",)), b"b": StoredForm(base, len(base))}
    found = assemble(b"t", layers.__getitem__, Nothing())
    assert (found.data, found.depth, found.bases, found.ancestors) == (target, 1, (b"b",), {b"b"})
    layers[b"u"] = StoredForm(encode_delta(target * 2, bytearray(base), 0, len(base), 1000), len(base), (b"t", b"t"))
    found = assemble(b"u", layers.__getitem__, {})
    assert (found.data, found.depth, found.ancestors) == (base, 2, {b"t", b"b"})
    layers[b"b"] = StoredForm(delta, len(base), (b"t",))
    with pytest.raises(KeyError):
        assemble(b"t", layers.__getitem__, {})


@pytest.mark.parametrize("seed", range(3))
def test_what_comes_again_before_it_is_stored_is_stored_once(sandbox, seed):
    rng = random.Random(seed)
    nights = []
    block = bytearray(rng.randbytes(5 << 20))
    for _ in range(3):
        nights.append(bytes(block) + rng.randbytes(1 << 19) + bytes(block) + bytes(block[: 1 << 20]))
        for at in range(0, len(block), 1 << 15):
            block[at : at + 30] = rng.randbytes(30)
    for data in nights:
        take(sandbox, data)
    with sandbox.open(identity=False) as store:
        for pack, _ in store.index.packs.lengths():
            ids = [entry.id for entry in store.reader.pack_entries(pack)]
            assert len(ids) == len(set(ids))
    for number, data in enumerate(nights, 1):
        assert content(sandbox, number) == data


def test_threads_with_a_small_stack_are_enough(sandbox):
    script = (
        "import sys, threading; threading.stack_size(256 << 10)\n"
        "from castore.kernel import encode_delta\n"
        "data = bytearray(range(256)) * 20000\n"
        "done = []\n"
        "work = threading.Thread(target=lambda: done.append(encode_delta(bytes(data), data, 0, len(data), 1000)))\n"
        "work.start(); work.join(); assert done[0]\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_chunk_whose_base_is_lost_is_stored_again_and_restored(sandbox):
    nights = [table(20_000, night) for night in range(3)]
    for data in nights[:2]:
        take(sandbox, data)
    with sandbox.open(identity=False) as store:
        store.sync()
        (_, ref), *_ = chunks_of(store, store.generations.get("s", 1))
        pack = store.index.locations.locate(CHUNK, ref.id).pack
    (sandbox.store / "packs" / pack.hex()).unlink()
    # The base of the second dump is missing: that dump is lost, but not a similar one.
    take(sandbox, nights[1])
    assert content(sandbox, 3) == nights[1]
    take(sandbox, nights[2])
    assert content(sandbox, 4) == nights[2]
    with sandbox.open(identity=False) as store:
        assert {hit.number for hit in verify_store(store, castore.Progress()).affected} == {1}
