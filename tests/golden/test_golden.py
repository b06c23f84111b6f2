"""Stores that earlier castores wrote: every later one reads them, and rescue.py does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import castore
from castore.content.restore.metadata import Ownership
from castore.content.stored_dirs import look_up, open_directory
from castore.content.streams import StreamReader
from castore.crypto import Identity, WriterKey
from castore.maintenance.verify import verify as verify_store
from castore.model.refs import RecordId
from castore.services.details import read_details
from castore.services.restore import restore as restore_parts
from castore.services.selectors import select
from castore.services.sources import Tree, file_source
from castore.storage import LocalStorage
from castore.store import MachinePaths, Store, StoreOptions
from castore.store.format.pack import BASES, RAW
from castore.store.write.base_provider import MAX_DEPTH
from tests.golden.make import files, night, plain
from tests.support.stores import take_snapshot
from tests.support.tree_walker import walk

GOLDEN = Path(__file__).parent / "format-1"
DELTAS = Path(__file__).parent / "deltas"
ROTATED = Path(__file__).parent / "rotated"
STREAMS = Path(__file__).parent / "streams"
RESCUE = Path(__file__).parents[2] / "tools" / "rescue.py"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


class Copy:
    """A copy of the golden store, on a machine of its own."""

    def __init__(self, folder: Path, golden: Path = GOLDEN) -> None:
        self.path = folder / "store"
        self.places = MachinePaths(str(folder / "state"), str(folder / "cache"))
        shutil.copytree(golden / "store", self.path)
        assert not (self.path / "tmp").exists()  # git does not keep it
        self.golden = golden
        self.identity = Identity.parse((golden / "identity").read_text(), lambda: "")

    def keep_writer_key(self, text: str | None = None) -> None:
        path = Path(self.places.writer_key_of(Store.read_id(LocalStorage(str(self.path)))))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text or (self.golden / "writer.key").read_text())

    def open(self, *, identity: bool = True, trust: Sequence[bytes] = ()) -> Store:
        provider = (lambda: self.identity) if identity else None
        return Store.open(LocalStorage(str(self.path)), self.places, provider, StoreOptions(trust=trust))


@pytest.fixture
def golden(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def the_same(revision: str, out: Path) -> None:
    """Hold what was restored against what is expected of it."""
    found = plain(walk(out))
    del found["."], found["dump"]["mtime"]
    expected = EXPECTED[revision]
    assert sorted(found) == sorted(expected)
    assert found == expected


def test_it_is_listed_with_the_writer_key_only(golden: Copy) -> None:
    golden.keep_writer_key()
    with golden.open(identity=False) as store:
        store.sync()
        assert store.damaged == {}
        listed = [(g.service, g.number, g.revision, g.parent, g.pre_rollback) for g in store.generations.all()]
        assert listed == [("golden", 2, "r2", 1, False), ("golden", 1, "r1", 0, False)]
        for generation in store.generations.all():
            assert [(part.name, part.kind, part.skipped_files) for part in generation.parts] == [
                ("tree", "tree", 0),
                ("dump", "dump", 0),
            ]
        assert verify_store(store, castore.Progress(), packs=True).sound


@pytest.mark.parametrize("revision", ["r1", "r2"])
def test_it_is_restored(golden: Copy, tmp_path: Path, revision: str) -> None:
    with golden.open() as store:
        store.sync()
        selection = select(store, f"golden@{revision}")
        ownership = Ownership(change=False)
        done = restore_parts(store, selection, str(tmp_path / "out"), ownership, castore.Progress())
    assert (done.report.damaged, done.report.warnings) == ([], [])
    the_same(revision, tmp_path / "out")


def test_all_of_it_opens_and_details_too(golden: Copy) -> None:
    with golden.open() as store:
        assert verify_store(store, castore.Progress(), read_data=True).sound
        details = read_details(store, select(store, "golden@latest").generation)
    assert set(details.origins) == {"tree", "dump"}
    assert details.origins["tree"].path.endswith(b"/live/tree")


def test_it_takes_another_generation_and_finds_its_chunks_again(golden: Copy, tmp_path: Path) -> None:
    golden.keep_writer_key()
    with golden.open() as store:
        selection = select(_synced(store), "golden@r2")
        ownership = Ownership(change=False)
        restore_parts(store, selection, str(tmp_path / "out"), ownership, castore.Progress())
        sources = {
            "tree": Tree(str(tmp_path / "out" / "tree")),
            "dump": file_source(str(tmp_path / "out" / "dump")),
        }
        taken = take_snapshot(store, "golden", sources, revision="r3")
        assert taken.number == 3
        # Only entries are new, whose owners may be others: cut and named as ever, content is not.
        assert taken.part("dump").new_chunks == 0
        assert taken.part("tree").new_bytes < 10_000
    assert os.listdir(golden.path / "tmp") == []


def _synced(store: Store) -> Store:
    store.sync()
    return store


@pytest.mark.parametrize("revision", ["r1", "r2"])
def test_it_is_restored_without_castore(golden: Copy, tmp_path: Path, revision: str) -> None:
    command = [sys.executable, str(RESCUE), str(golden.path), "--identity", str(GOLDEN / "identity")]
    # Far from the repository, so that nothing of castore is imported by chance.
    options = {"cwd": tmp_path, "capture_output": True, "text": True}
    listed = subprocess.run(command, check=False, **options)
    assert listed.returncode == 0, listed.stderr
    assert "golden 1" in listed.stdout
    assert "golden 2" in listed.stdout
    done = subprocess.run([*command, "golden", revision[1:], str(tmp_path / "out")], check=False, **options)
    assert done.returncode == 0, done.stderr
    the_same(revision, tmp_path / "out")


def test_the_independent_reader_has_less_than_400_lines_of_at_most_110_characters() -> None:
    lines = RESCUE.read_text().splitlines()
    assert len(lines) < 400
    assert max(map(len, lines)) <= 110


def test_deltas_of_one_to_four_bases_in_groups_and_chains_are_read(tmp_path: Path) -> None:
    with Copy(tmp_path, DELTAS).open() as store:
        assert verify_store(_synced(store), castore.Progress(), read_data=True).sound
        entries = [entry for pack, _ in store.index.packs.lengths() for entry in store.reader.pack_entries(pack)]
        assert {entry.codec for entry in entries} == set(range(len(BASES))) - {RAW}
        assert max(entry.group_index for entry in entries) > 10
        bases = {entry.id: entry.bases for entry in entries}
        assert max(_depth(bases, chunk) for chunk in bases) == MAX_DEPTH
        for number in range(5):
            out = tmp_path / str(number)
            selection = select(store, f"nights@{number + 1}")
            restore_parts(store, selection, str(out), Ownership(change=False), castore.Progress())
            assert (out / "dump").read_bytes() == night(number)
    command = [sys.executable, str(RESCUE), str(tmp_path / "store"), "--identity", str(DELTAS / "identity")]
    options = {"cwd": tmp_path, "capture_output": True, "text": True}
    for number in range(5):
        out = tmp_path / f"rescued {number}"
        done = subprocess.run([*command, "nights", str(number + 1), str(out)], check=False, **options)
        assert done.returncode == 0, done.stderr
        assert (out / "dump").read_bytes() == night(number)


def _depth(bases: dict[RecordId, tuple[RecordId, ...]], chunk: RecordId) -> int:
    return max((1 + _depth(bases, base) for base in bases[chunk]), default=0)


@pytest.mark.parametrize("identity", ["identity", "second"])
def test_what_former_writer_keys_sealed_is_read_and_rescued(tmp_path: Path, identity: str) -> None:
    copy = Copy(tmp_path, ROTATED)
    copy.identity = Identity.parse((ROTATED / identity).read_text(), None)
    names = sorted(str(path.relative_to(copy.path)) for path in copy.path.rglob("*") if path.is_file())
    assert {name.split(".")[0] for name in names if name.startswith(("config", "rotations"))} == {"config/4", "rotations/4"}
    first = Identity.parse((ROTATED / "identity").read_text(), None)
    with copy.open(trust=[first.admin.public]) as store:
        assert len(store.keys.writer_key.previous_keys) == 2
        assert verify_store(_synced(store), castore.Progress(), read_data=True).sound
        for number in range(5):
            out = tmp_path / str(number)
            selection = select(store, f"nights@{number + 1}")
            restore_parts(store, selection, str(out), Ownership(change=False), castore.Progress())
            _is_night(out, number)
    command = [sys.executable, str(RESCUE), str(copy.path), "--identity", str(ROTATED / identity)]
    options = {"cwd": tmp_path, "capture_output": True, "text": True}
    assert len(subprocess.run(command, check=False, **options).stdout.splitlines()) == 5
    for number in range(5):
        out = tmp_path / f"rescued {number}"
        done = subprocess.run([*command, "nights", str(number + 1), str(out)], check=False, **options)
        assert done.returncode == 0, done.stderr
        _is_night(out, number)


def _is_night(out: Path, number: int) -> None:
    assert (out / "dump").read_bytes() == night(number)
    found = {path.name: path.read_text() for path in (out / "tree").iterdir()}
    assert found == {f"night {one}": f"it is night {one}\n" for one in range(number + 1)}


def test_a_rotated_store_goes_on_with_the_present_writer_key(tmp_path: Path) -> None:
    copy = Copy(tmp_path, ROTATED)
    for text in (ROTATED / "former.keys").read_text().split():
        copy.keep_writer_key(text)
        copy.open(identity=False).close()  # the present one is sealed to the machine
        path = Path(copy.places.writer_key_of(Store.read_id(LocalStorage(str(copy.path)))))
        assert WriterKey.parse(path.read_text()) == WriterKey.parse((ROTATED / "writer.key").read_text())
    copy.keep_writer_key()
    (tmp_path / "dump").write_bytes(night(4))
    with copy.open(identity=False) as store:
        sources = {"dump": file_source(str(tmp_path / "dump"))}
        taken = take_snapshot(store, "nights", sources)
        assert (taken.number, taken.parent, taken.part("dump").new_chunks) == (6, 5, 0)
        assert verify_store(store, castore.Progress(), packs=True).sound


@pytest.mark.parametrize("number", range(4))
def test_small_files_in_several_streams_are_restored(tmp_path: Path, number: int) -> None:
    golden = Copy(tmp_path, STREAMS)
    with golden.open() as store:
        store.sync()
        selection = select(store, f"streams@{number + 1}")
        done = restore_parts(store, selection, str(tmp_path / "out"), Ownership(change=False), castore.Progress())
        if number == 3:
            with StreamReader(store) as reader:
                top = look_up(reader, selection.generation.parts[0].root.ref, b"sub")
                assert len({child.ref for child in open_directory(reader, top.ref)}) == 4
            assert verify_store(store, castore.Progress(), read_data=True).sound
    assert done.report.damaged == []
    command = [sys.executable, str(RESCUE), str(golden.path), "--identity", str(STREAMS / "identity")]
    rescued = subprocess.run([*command, "streams", str(number + 1), str(tmp_path / "rescued")], check=False)
    assert rescued.returncode == 0
    for out in ("out", "rescued"):
        found = {path.name: path.read_bytes() for path in (tmp_path / out / "tree" / "sub").iterdir()}
        assert found == files(number)
