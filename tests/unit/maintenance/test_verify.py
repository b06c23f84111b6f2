"""Verification at its depths, in samples and in pieces; and repair."""

from __future__ import annotations

import os
import random
import shutil

import msgspec
import pytest

from castore.content.streams import StreamReader
from castore.errors import DamageError, IdentityError
from castore.kernel.id_set import IdSet
from castore.maintenance import verify_packs
from castore.maintenance.compact import compact
from castore.maintenance.verify import verify
from castore.model.generation import encode
from castore.progress import Progress
from castore.services.prune import forget
from castore.services.reading import read
from castore.services.selectors import select
from castore.services.sources import Tree, file_source
from castore.store.format.envelope import seal_object
from castore.store.format.header import DELETION, GENERATION, PACK, REMOVAL, SESSION
from castore.store.format.names import generation_name
from castore.store.format.pack import CHUNK
from tests.support.repairs import repair_store
from tests.support.stores import Sandbox


def noise(seed, length):
    return random.Random(seed).randbytes(length)


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path, average=4096)


@pytest.fixture
def tree(tmp_path):
    """Three directories with small files, and large ones."""
    top = tmp_path / "tree"
    for name in ("a", "b", "c"):
        (top / name).mkdir(parents=True)
        for number in range(4):
            # Together they are shorter than any chunk is cut: one chunk is their small-file stream, whatever the key.
            (top / name / f"small{number}").write_bytes(noise(f"{name}{number}", 250))
        (top / name / "large").write_bytes(noise(name, 3_000_000))
    return top


def take(sandbox, tree, service="web"):
    return sandbox.snapshot(service, {"t": Tree(str(tree))})


def look(sandbox, *, identity=True, **options):
    with sandbox.open(identity=identity) as store:
        return verify(store, Progress(), **options)


def run_repair(sandbox, *, identity=True):
    with sandbox.open(identity=identity) as store:
        return repair_store(store)


def place_of(sandbox, service, path):
    """The pack file, offset and length of the first chunk of a stored file."""
    with sandbox.open() as store, StreamReader(store) as reader:
        store.sync()
        selection = select(store, f"{service}@1:t/{path}")
        content = b"".join(read(reader, selection))
        place = store.index.locations.locate(CHUNK, first_chunk(store, reader, selection))
    return sandbox.store / "packs" / place.pack.hex(), place, content


def first_chunk(store, reader, selection):
    from castore.content.ref_tree import iter_chunks
    from castore.content.stored_dirs import look_up

    child = look_up(reader, selection.part.content, os.fsencode(selection.path))
    return next(one.id for _, one in iter_chunks(store, child.ref))


def flip(path, at):
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_damaged_paths_are_named(sandbox, tree):
    take(sandbox, tree)
    pack, place, _ = place_of(sandbox, "web", "b/large")
    flip(pack, place.offset + 5)
    found = look(sandbox, read_data=True)
    assert not found.sound
    (hit,) = found.affected
    assert (hit.service, hit.number, hit.part, hit.paths, hit.more) == ("web", 1, "t", ("b/large",), 0)
    assert found.damaged_packs == [place.pack]


def test_a_damaged_bundle_names_the_files_in_it(sandbox, tree):
    take(sandbox, tree)
    pack, place, _ = place_of(sandbox, "web", "a/small1")
    flip(pack, place.offset + 5)
    (hit,) = look(sandbox, read_data=True).affected
    assert set(hit.paths) == {f"a/small{number}" for number in range(4)}


def test_without_an_identity_parts_are_named_and_no_paths(sandbox, tree):
    take(sandbox, tree)
    pack, place, _ = place_of(sandbox, "web", "b/large")
    flip(pack, place.offset + 5)
    assert look(sandbox, identity=False).sound
    found = look(sandbox, identity=False, packs=True)
    assert [(hit.part, hit.paths) for hit in found.affected if hit.part == "t"] == [("t", ())]
    assert "--read-data checks" in found.affected[0].reason


def test_a_chunk_that_is_whole_elsewhere_is_no_loss(sandbox, tree, tmp_path):
    take(sandbox, tree)
    pack, place, _ = place_of(sandbox, "web", "b/large")
    with sandbox.open() as store:
        store.index.clear()
        (packs := sandbox.store / "packs").rename(tmp_path / "aside")
        packs.mkdir()
    take(sandbox, tree, "mail")
    for one in (tmp_path / "aside").iterdir():
        shutil.copy(one, packs / one.name)
    flip(pack, place.offset + 5)
    found = look(sandbox, read_data=True)
    assert found.damage
    assert not found.affected


def test_samples_come_to_everything(sandbox):
    for number in range(9):
        path = sandbox.folder / f"d{number}"
        path.write_bytes(noise(number, 50_000))
        sandbox.snapshot("web", {"d": file_source(str(path))})
    with sandbox.open() as store:
        store.sync()
        packs = {pack for pack, _ in store.index.packs.lengths()}
        seen = []
        for _ in range(10):
            assert verify(store, Progress(), read_data=True, sample=0.1).read in {1, 2}
            seen.append(set(store.index.verification.verified(2)))
        assert seen[0] < packs
        assert seen[-1] == packs
        # What was not looked at for longest is the next.
        before = store.index.verification.verified(1)
        verify(store, Progress(), packs=True, sample=0.01)
        after = store.index.verification.verified(1)
        (again,) = [pack for pack in packs if after[pack] != before[pack]]
        assert before[again] == min(before.values())


def test_an_interrupted_run_is_continued(sandbox, monkeypatch):
    for number in range(6):
        path = sandbox.folder / f"d{number}"
        path.write_bytes(noise(number, 50_000))
        sandbox.snapshot("web", {"d": file_source(str(path))})
    looked = verify_packs.examine_pack
    done = []

    def interrupted(*arguments):
        if len(done) >= 3:
            raise KeyboardInterrupt
        done.append(arguments)
        return looked(*arguments)

    monkeypatch.setattr(verify_packs, "examine_pack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        look(sandbox, packs=True, restart=False)
    monkeypatch.undo()
    found = look(sandbox, packs=True, restart=False)
    assert found.resumed
    assert 0 < found.read < 6
    found = look(sandbox, packs=True, restart=False)
    assert (found.resumed, found.read) == (0, 6)


def test_repair_keeps_all_but_damaged_records_and_the_next_snapshot_stores_them_again(sandbox, tree):
    take(sandbox, tree)
    pack, place, content = place_of(sandbox, "web", "b/large")
    flip(pack, place.offset + 5)
    done, result = run_repair(sandbox)
    assert done.rewrite == [place.pack]
    assert result.lost_records == 1
    assert result.kept_records > 100
    assert not result.after.damage
    assert [(hit.part, hit.paths) for hit in result.after.affected] == [("t", ("b/large",))]
    assert not pack.exists()
    out = sandbox.folder / "out"
    damaged = sandbox.restore("web@1", out).report.damaged
    assert [path for path, _ in damaged] == [b"t/b/large"]
    assert (out / "t" / "a" / "large").read_bytes() == (tree / "a" / "large").read_bytes()
    assert (out / "t" / "b" / "small1").read_bytes() == (tree / "b" / "small1").read_bytes()
    # Nothing of the tree has changed: it is read again all the same, and both generations are whole.
    take(sandbox, tree)
    assert look(sandbox, read_data=True).sound
    assert place_of(sandbox, "web", "b/large")[2] == content


def test_repair_saves_by_the_index_what_a_broken_footer_no_longer_lists(sandbox, tree):
    take(sandbox, tree)
    pack, place, _ = place_of(sandbox, "web", "b/large")
    flip(pack, pack.stat().st_size - 3)
    done, result = run_repair(sandbox)
    assert done.rewrite == [place.pack]
    assert result.lost_records == 0
    assert result.after.sound


def test_what_nobody_can_read_is_dropped_and_stored_again(sandbox, tree):
    take(sandbox, tree)
    pack, _, _ = place_of(sandbox, "web", "b/large")
    flip(pack, pack.stat().st_size - 3)
    shutil.rmtree(sandbox.places.cache)
    done, result = run_repair(sandbox)
    assert done.drop == [f"packs/{pack.name}"]
    assert not result.after.damage
    assert result.after.affected
    take(sandbox, tree)
    assert look(sandbox, read_data=True).sound


def test_rewriting_a_pack_needs_an_identity(sandbox, tree):
    take(sandbox, tree)
    pack, place, _ = place_of(sandbox, "web", "b/large")
    flip(pack, place.offset + 5)
    with pytest.raises(IdentityError, match="only an identity can say"):
        run_repair(sandbox, identity=False)
    assert pack.exists()


@pytest.mark.parametrize("kind", ["generations", "sessions"])
def test_records_that_do_not_open_are_dropped(sandbox, tree, kind):
    take(sandbox, tree)
    (tree / "a" / "large").write_bytes(noise("new", 3_000_000))
    take(sandbox, tree)
    newest = max((sandbox.store / kind).iterdir(), key=lambda path: path.stat().st_mtime_ns)
    flip(newest, newest.stat().st_size - 3)
    done, result = run_repair(sandbox)
    assert f"{kind}/{newest.name}" in done.drop
    assert not result.after.damage
    with sandbox.open() as store:
        store.sync()
        assert [one.number for one in store.generations.all("web")] == ([1] if kind == "generations" else [2, 1])
    take(sandbox, tree)
    assert look(sandbox, read_data=True).sound


def test_a_signed_record_of_a_newer_format_is_not_dropped(sandbox, tree):
    taken = take(sandbox, tree)
    with sandbox.open() as store:
        name = generation_name(store.keys.writer_key.tag("web"), 2)
        plain = encode(msgspec.structs.replace(taken, number=2, version=taken.version + 1))
        store.storage.put(name, seal_object(GENERATION, name, plain, store.keys.writer_key))
    done, _ = run_repair(sandbox)
    assert done.drop == []
    assert (sandbox.store / name).exists()


def test_what_a_header_says_to_be_of_a_newer_format_stops_compact_until_repair(sandbox, tree):
    take(sandbox, tree)
    some, tag = os.urandom(32).hex(), sandbox.open().keys.writer_key.tag("web").hex()
    names = {
        f"packs/{some}": PACK, f"generations/{tag}-0000000002": GENERATION, f"sessions/{some[:32]}.0": SESSION,
        f"deletions/{some[:32]}": DELETION, f"removals/{tag}-{some[:32]}": REMOVAL,
    }  # fmt: skip
    for name, kind in names.items():
        (sandbox.store / name).parent.mkdir(exist_ok=True)
        (sandbox.store / name).write_bytes(kind + b"\2" + bytes(7) + os.urandom(600))
    with sandbox.open() as store, pytest.raises(DamageError, match="castore repair"):
        compact(store, Progress())
    done, result = run_repair(sandbox)
    assert done.drop == sorted(names)
    assert result.after.sound
    with sandbox.open() as store:
        compact(store, Progress())
    assert look(sandbox, read_data=True).sound


def test_a_sound_store_needs_no_repair(sandbox, tree):
    take(sandbox, tree)
    done, result = run_repair(sandbox)
    assert (done.drop, done.rewrite) == ([], [])
    assert result.after.sound


def test_marks_hold_what_was_added_and_little_else():
    ids = [os.urandom(32) for _ in range(5000)]
    marks = IdSet(10)
    assert marks.add(b"".join(ids)) == b"\1" * 5000
    assert marks.add(b"".join(ids)) == bytes(5000)
    assert len(marks) == 5000
    assert all(one in marks for one in ids)
    assert not any(os.urandom(32) in marks for _ in range(5000))
    assert marks.memory <= 32 * 5000
    assert IdSet(1 << 20).memory <= 12 * (1 << 20)


@pytest.mark.parametrize("mode", ["index kept", "index deleted"])
def test_what_nobody_has_the_key_to_is_stored_again(sandbox, tree, mode):
    take(sandbox, tree)
    (session,) = (sandbox.store / "sessions").iterdir()
    session.rename(sandbox.folder / "aside")
    if mode == "index deleted":
        shutil.rmtree(sandbox.places.cache)
    assert any("the key" in line for line in look(sandbox, identity=False).damage)
    number = take(sandbox, tree).number
    out = sandbox.folder / "out"
    assert sandbox.restore(f"web@{number}", out).report.damaged == []
    assert (out / "t" / "b" / "large").read_bytes() == (tree / "b" / "large").read_bytes()
    # Its key back, all is as it was; without it, what it opened goes.
    (sandbox.folder / "aside").rename(session)
    assert look(sandbox, read_data=True).sound
    session.unlink()
    done, result = run_repair(sandbox)
    assert done.rewrite
    assert result.after.sound


@pytest.mark.parametrize("depth", ["packs", "read_data"])
def test_what_verify_found_damaged_is_stored_again_by_the_next_snapshot(sandbox, tree, depth):
    take(sandbox, tree)
    pack, place, content = place_of(sandbox, "web", "b/large")
    flip(pack, place.offset + 5)
    assert not look(sandbox, **{depth: True}).sound
    # Nothing of the tree has changed: it is read again all the same.
    taken = take(sandbox, tree)
    assert sum(part.new_bytes for part in taken.parts) > 6_000_000
    found = look(sandbox, read_data=True)
    assert (found.damaged_packs, found.affected) == ([place.pack], [])
    for number in (1, 2):
        out = sandbox.folder / f"out{number}"
        assert sandbox.restore(f"web@{number}", out).report.damaged == []
        assert (out / "t" / "b" / "large").read_bytes() == content
    # Nothing is stored again and again, and what was damaged is in nobody's way.
    assert sum(part.new_bytes for part in take(sandbox, tree).parts) == 0
    done, result = run_repair(sandbox)
    assert done.rewrite == [place.pack]
    assert result.after.sound
    assert sum(part.new_bytes for part in take(sandbox, tree).parts) == 0


def test_what_was_found_damaged_and_is_sound_again_is_counted_on(sandbox, tree):
    take(sandbox, tree)
    pack, place, _ = place_of(sandbox, "web", "b/large")
    flip(pack, place.offset + 5)
    assert not look(sandbox, packs=True).sound
    flip(pack, place.offset + 5)
    with sandbox.open() as store:
        assert store.index.verification.damaged() == {place.pack}
    assert look(sandbox, packs=True).sound
    with sandbox.open() as store:
        assert store.index.verification.damaged() == set()
    assert sum(part.new_bytes for part in take(sandbox, tree).parts) == 0


def test_a_prune_of_a_store_with_known_damage_loses_nothing(sandbox, tree):
    take(sandbox, tree)
    pack, place, content = place_of(sandbox, "web", "b/large")
    flip(pack, place.offset + 5)
    assert not look(sandbox, packs=True).sound
    take(sandbox, tree, "mail")
    with sandbox.open() as store:
        compact(store, Progress(), max_unused=0, grace_seconds=0, unfinished_seconds=0)
    assert pack.exists()
    assert not look(sandbox, read_data=True).affected
    out = sandbox.folder / "out"
    assert sandbox.restore("web@1", out).report.damaged == []
    assert (out / "t" / "b" / "large").read_bytes() == content


def test_a_damaged_record_of_removals_is_reported_and_dropped(sandbox, tree):
    for _ in range(2):
        take(sandbox, tree)
    with sandbox.open() as store:
        store.generations.sync()
        forget(store, "web", [store.generations.get("web", 1)])
    (record,) = (sandbox.store / "removals").iterdir()
    assert look(sandbox, identity=False).sound
    flip(record, record.stat().st_size - 1)
    found = look(sandbox, identity=False)
    assert any(f"removals/{record.name}" in line for line in found.damage)
    planned, result = run_repair(sandbox)
    assert planned.drop == [f"removals/{record.name}"]
    assert result.after.sound
    assert not record.exists()
    with sandbox.open() as store:
        store.generations.sync()
        assert [one.number for one in store.generations.all("web")] == [2]
