"""A live directory is compared with ids of chunks; chunks are read only for what differs."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from castore.services.sources import Tree
from castore.store.read.content_reader import ContentReader
from tests.support.stores import Sandbox


@pytest.fixture
def copy(tmp_path: Path) -> tuple[Sandbox, Path]:
    """A store with a directory of files that fill several chunks, and a copy that was never scanned."""
    sandbox, live = Sandbox(tmp_path / "sandbox", average=4096), tmp_path / "live"
    live.mkdir()
    for number in range(60):
        (live / f"{number:02}").write_bytes(os.urandom(500 + 37 * number))
    (live / "empty").write_bytes(b"")
    sandbox.snapshot("s", {"t": Tree(str(live))})
    copied = tmp_path / "copy"
    shutil.copytree(live, copied)
    return sandbox, copied


@pytest.fixture
def single_reads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The ids of the chunks that were read one by one."""
    read: list[bytes] = []
    original = ContentReader.read_chunk

    def reading(self: ContentReader, chunk: bytes) -> bytes:
        read.append(chunk)
        return original(self, chunk)

    monkeypatch.setattr(ContentReader, "read_chunk", reading)
    return read


def change(path: Path, *, keep_time: bool) -> None:
    """Change a byte of a file."""
    before = path.stat()
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def same(copied: Path) -> bool:
    live = copied.parent / "live"
    return all((copied / name).read_bytes() == (live / name).read_bytes() for name in os.listdir(live))


def test_equal_files_are_compared_without_reading_their_chunks(copy: tuple[Sandbox, Path], single_reads: list[bytes]):
    sandbox, copied = copy
    assert sandbox.in_place("s@1:t", copied) == 0
    assert single_reads == []


def test_a_changed_file_of_the_same_size_and_time_is_replaced(copy: tuple[Sandbox, Path]):
    sandbox, copied = copy
    change(copied / "31", keep_time=True)
    assert sandbox.in_place("s@1:t", copied, trust_times=True) == 0
    assert sandbox.in_place("s@1:t", copied) == 2  # the file, and the time of the directory
    assert same(copied)


def test_a_chunk_of_several_changed_files_is_read_once_to_write_them(
    copy: tuple[Sandbox, Path], single_reads: list[bytes]
):
    sandbox, copied = copy
    for name in ("10", "11", "12", "13", "14"):
        change(copied / name, keep_time=False)
    assert sandbox.in_place("s@1:t", copied) == 6
    assert same(copied)
    # Once for the other files that it holds, once for the changed ones.
    assert max(Counter(single_reads).values()) <= 2


def test_a_file_that_vanishes_or_appears_is_created_or_removed(copy: tuple[Sandbox, Path]):
    sandbox, copied = copy
    (copied / "empty").unlink()
    (copied / "59").unlink()
    (copied / "more").write_bytes(b"more")
    assert sandbox.in_place("s@1:t", copied) == 4
    assert same(copied)
    assert not (copied / "more").exists()


def test_a_large_file_is_compared_by_its_chunks(tmp_path: Path, single_reads: list[bytes]):
    sandbox, live = Sandbox(tmp_path / "sandbox", average=4096), tmp_path / "live"
    live.mkdir()
    (live / "large").write_bytes(os.urandom(300_000))
    sandbox.snapshot("s", {"t": Tree(str(live))})
    copied = tmp_path / "copy"
    shutil.copytree(live, copied)
    assert sandbox.in_place("s@1:t", copied) == 0
    assert single_reads == []
    change(copied / "large", keep_time=True)
    assert sandbox.in_place("s@1:t", copied) == 2
    assert same(copied)
