"""A dump that is a file is read again unless its inode, size and times prove that it did not change."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from castore.content.streams import StreamReader
from castore.engines import file as file_engine
from castore.maintenance.compact import compact
from castore.maintenance.verify import verify
from castore.model.generation import Generation
from castore.progress import Progress
from castore.services.prune import forget
from castore.services.reading import read
from castore.services.selectors import select
from castore.services.sources import Tree, file_source
from tests.support.feature_tree import file_system
from tests.support.stores import Sandbox


class Machine(Sandbox):
    """A store, and a dump that is one file."""

    reads: list[int]

    @property
    def dump(self) -> Path:
        return self.folder / "dump.sql"

    def take(self, service: str = "s") -> tuple[Generation, bool]:
        """Take a generation of the dump, check it; return it, and whether the file was read."""
        self.reads.clear()
        taken = self.snapshot(service, {"d": file_source(str(self.dump))})
        with self.open() as store:
            stored = b"".join(read(StreamReader(store), select(store, f"{service}@{taken.number}:d")))
        assert stored == self.dump.read_bytes()
        assert taken.parts[0].size == len(stored)
        return taken, bool(self.reads)

    def remove(self, number: int) -> None:
        """Delete a generation, and all that only it needs."""
        with self.open() as store:
            store.sync()
            forget(store, "s", [store.generations.get("s", number)])
            compact(store, Progress(), grace_seconds=0, unfinished_seconds=0)


def noise(seed: int, size: int = 500_000) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    made.reads = []
    original = file_engine._FileStream._read

    def counted(stream, view):
        made.reads.append(1)
        return original(stream, view)

    monkeypatch.setattr(file_engine._FileStream, "_read", counted)
    made.dump.write_bytes(noise(1))
    return made


@pytest.fixture
def settled(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The machine a while after the file was written; no test here changes it within one tick of a clock."""
    monkeypatch.setattr("castore.content.scan.cache._RACY_NS", -5_000_000)
    assert machine.take()[1]
    return machine


def test_an_unchanged_file_is_not_read_again(settled):
    first = settled.take()
    second = settled.take()
    assert (first[1], second[1]) == (False, False)
    assert second[0].parts[0].root == first[0].parts[0].root
    assert second[0].parts[0].chunks == first[0].parts[0].chunks > 1
    assert second[0].parts[0].new_chunks == 0


def test_a_file_that_was_just_written_is_read_again(machine):
    assert machine.take()[1]
    assert machine.take()[1]


def test_a_change_within_the_tick_of_the_first_reading_is_noticed(machine):
    for seed in range(2):
        before = os.stat(machine.dump)
        machine.take()
        machine.dump.write_bytes(noise(seed))
        os.utime(machine.dump, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert machine.take()[1]


def test_a_file_that_is_older_than_two_seconds_is_kept(machine):
    time.sleep(2.1)
    assert machine.take()[1]
    assert not machine.take()[1]


def test_a_change_in_place_with_its_old_time_is_noticed(settled):
    before = os.stat(settled.dump)
    with settled.dump.open("r+b") as file:
        file.write(b"changed")
    os.utime(settled.dump, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert settled.take()[1]


def test_a_change_through_a_memory_map_is_noticed(settled):
    """Until a page is written to the disk, only the first change of it through a map changes the times."""
    with settled.dump.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] ^= 1
        time.sleep(0.02)
        assert settled.take()[1]
        before = os.stat(settled.dump)
        mapped[0] ^= 2
        if file_system(settled.dump) != "tmpfs":
            assert os.stat(settled.dump).st_ctime_ns != before.st_ctime_ns
            assert settled.take()[1]


def test_a_replaced_file_is_read(settled):
    before = os.stat(settled.dump)
    other = settled.folder / "other"
    other.write_bytes(noise(2))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(settled.dump)
    assert settled.take()[1]
    settled.dump.unlink()
    settled.dump.write_bytes(noise(1)[:1000])
    assert settled.take()[1]


def test_a_copy_with_the_same_content_is_read_once(settled):
    shutil.copy2(settled.dump, settled.folder / "copy")
    (settled.folder / "copy").replace(settled.dump)
    taken, was_read = settled.take()
    assert was_read
    assert taken.parts[0].new_chunks == 0
    assert not settled.take()[1]


def test_a_file_that_changes_while_it_is_read_is_read_again(settled, monkeypatch):
    original = file_engine._FileStream._read
    done = []

    def changing(stream, view):
        count = original(stream, view)
        if count and not done:
            done.append(1)
            with settled.dump.open("ab") as file:
                file.write(b"more")
        return count

    settled.dump.write_bytes(noise(3))
    monkeypatch.setattr(file_engine._FileStream, "_read", changing)
    settled.snapshot("s", {"d": file_source(str(settled.dump))})
    assert settled.take()[1]


def test_each_service_and_part_has_its_own_record(settled):
    assert settled.take("other")[1]
    assert not settled.take()[1]
    assert not settled.take("other")[1]


@pytest.mark.parametrize("harm", ["delete", "truncate", "flip"])
def test_a_missing_or_damaged_record_means_reading(settled, harm):
    (record,) = (path for path in (settled.folder / "cache").rglob("s:d") if path.is_file())
    data = bytearray(record.read_bytes())
    if harm == "delete":
        record.unlink()
    elif harm == "truncate":
        record.write_bytes(data[:-1])
    else:
        data[40] ^= 1
        record.write_bytes(data)
    assert settled.take()[1]
    assert not settled.take()[1]


def test_nothing_is_kept_of_a_generation_that_was_deleted(settled):
    settled.remove(1)
    _, was_read = settled.take()
    assert was_read
    with settled.open() as store:
        assert verify(store, Progress(), read_data=True).sound


def test_a_generation_that_was_deleted_leaves_what_a_later_one_shares(settled):
    settled.take()
    settled.remove(1)
    assert not settled.take()[1]
    with settled.open() as store:
        assert verify(store, Progress(), read_data=True).sound


def test_a_record_is_not_used_in_an_exchanged_store(settled):
    older = settled.folder / "older"
    shutil.copytree(settled.store, older)
    settled.dump.write_bytes(noise(4))
    settled.take()
    shutil.rmtree(settled.store)
    older.rename(settled.store)
    assert settled.take()[1]


def test_a_store_that_lost_the_content_gets_it_again(settled):
    shutil.rmtree(settled.folder / "cache")
    for pack in (settled.store / "packs").rglob("*"):
        if pack.is_file():
            pack.unlink()
    assert settled.take()[1]


def test_the_record_outlives_an_index_that_is_rebuilt(settled):
    for path in (settled.folder / "cache").rglob("data.mdb"):
        path.unlink()
    assert not settled.take()[1]


def test_a_part_may_become_a_tree_and_a_dump_again(settled):
    tree = settled.folder / "tree"
    tree.mkdir()
    (tree / "f").write_text("x")
    settled.snapshot("s", {"d": Tree(str(tree))})
    assert settled.take()[1]
    assert not settled.take()[1]


def test_a_kept_file_keeps_its_packs_in_use(settled):
    settled.take()
    with settled.open() as store:
        assert store.index.usage.of("s")


def test_an_empty_file_is_taken_each_time(settled):
    settled.dump.write_bytes(b"")
    assert settled.take()[1]
    assert settled.take()[1]
