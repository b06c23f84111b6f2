"""Large files: written in parallel, and from what the live file still has."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from castore.content.restore import large_files, live_file
from castore.errors import CastoreError
from castore.services.sources import Tree
from castore.store import Store
from tests.support.stores import Sandbox
from tests.support.tree_walker import compare, walk

MIB = 1 << 20


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path / "sandbox", average=16384)


@pytest.fixture
def live(tmp_path: Path) -> Path:
    top = tmp_path / "live"
    top.mkdir()
    (top / "database").write_bytes(random.Random(1).randbytes(4 * MIB + 1234))
    with open(top / "holes", "wb") as file:
        for offset in (0, 5 * MIB, 9 * MIB):
            file.seek(offset)
            file.write(random.Random(offset).randbytes(MIB))
        file.truncate(12 * MIB)
    return top


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes of chunks are read from the store, a number for each call."""
    found: list[int] = []
    real = Store.read_chunks

    def read_chunks(self, chunks):
        data = real(self, chunks)
        found.append(sum(map(len, data)))
        return data

    monkeypatch.setattr(Store, "read_chunks", read_chunks)
    return found


def test_a_tree_of_large_files_is_restored(sandbox: Sandbox, live: Path, tmp_path: Path):
    taken = sandbox.snapshot("s", {"t": Tree(str(live))})
    assert taken.skipped_files == 0
    sandbox.restore("s@1:t", tmp_path / "out")
    assert compare(walk(live), walk(tmp_path / "out")) == []
    assert os.stat(tmp_path / "out" / "holes").st_blocks * 512 < 4 * MIB


def change_in_the_middle(data: bytearray) -> None:
    data[2 * MIB : 2 * MIB + 5] = b"other"


def insert(data: bytearray) -> None:
    data[MIB:MIB] = b"inserted"


def cut(data: bytearray) -> None:
    del data[3 * MIB :]


def append(data: bytearray) -> None:
    data += b"more" * 1000


@pytest.mark.parametrize("change", [change_in_the_middle, insert, cut, append])
@pytest.mark.parametrize("shared", [True, False])
def test_what_the_live_file_still_has_is_not_read_from_the_store(
    sandbox: Sandbox, live: Path, tmp_path: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch, change, shared
):
    monkeypatch.setattr(large_files, "is_remote", lambda _store: True)
    if not shared:

        def refuse(*_: object) -> int:
            raise OSError(errno.EXDEV, "not here")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    sandbox.snapshot("s", {"t": Tree(str(live))})
    before = walk(live)
    data = bytearray((live / "database").read_bytes())
    change(data)
    (live / "database").write_bytes(data)
    opened.clear()
    sandbox.in_place("s@1:t", live)
    assert compare(before, walk(live)) == []
    most = 1.4 * MIB if change is cut else 0.4 * MIB
    assert 0 < sum(opened) < most


def test_a_file_with_holes_keeps_them(
    sandbox: Sandbox, live: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(large_files, "is_remote", lambda _store: True)
    sandbox.snapshot("s", {"t": Tree(str(live))})
    before = walk(live)
    with open(live / "holes", "r+b") as file:
        file.seek(5 * MIB + 100)
        file.write(b"other")
    opened.clear()
    sandbox.in_place("s@1:t", live)
    assert compare(before, walk(live)) == []
    assert os.stat(live / "holes").st_blocks * 512 < 4 * MIB
    # A stream is cut again after a hole, so here chunks at its edges are read, too.
    assert 0 < sum(opened) < 2 * MIB


def test_a_live_file_that_shrinks_meanwhile_is_restored(
    sandbox: Sandbox, live: Path, monkeypatch: pytest.MonkeyPatch
):
    sandbox.snapshot("s", {"t": Tree(str(live))})
    (live / "database").write_bytes((live / "database").read_bytes() + b"more")
    monkeypatch.setattr(large_files, "is_remote", lambda _store: True)
    real = large_files.find_chunks

    def find_chunks(store, fd, wanted):
        found = real(store, fd, wanted)
        path = os.readlink(f"/proc/self/fd/{fd}")
        os.truncate(path, MIB)
        return found

    monkeypatch.setattr(large_files, "find_chunks", find_chunks)
    with pytest.raises(CastoreError, match="became shorter"):
        sandbox.in_place("s@1:t", live)
    assert (live / "database").stat().st_size == MIB
    assert not [name for name in os.listdir(live) if name.startswith(".castore")]


def test_a_small_file_is_read_from_the_store(sandbox: Sandbox, live: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(large_files, "find_chunks", lambda *_: pytest.fail("it is not large"))
    (live / "database").write_bytes(b"x" * (live_file.LARGE - 1))
    sandbox.snapshot("s", {"t": Tree(str(live))})
    before = walk(live)
    (live / "database").write_bytes(b"y" * live_file.LARGE)
    sandbox.in_place("s@1:t", live)
    assert compare(before, walk(live)) == []


def test_chunks_are_found_wherever_they_are(sandbox: Sandbox, tmp_path: Path):
    rng = random.Random(7)
    data = rng.randbytes(3 * MIB)
    (tmp_path / "file").write_bytes(data)
    with sandbox.open() as store:
        buffer = bytearray(data)
        ends = store.keys.cutter.scan(buffer, 0, len(buffer), final=True)
        chunks = [store.reader.chunk_id(data[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]
        fd = os.open(tmp_path / "file", os.O_RDONLY)
        try:
            assert large_files.find_chunks(store, fd, set(chunks[5:9])) == dict(
                zip(chunks[5:9], ends[4:8], strict=True)
            )
            assert large_files.find_chunks(store, fd, set()) == {}
        finally:
            os.close(fd)
