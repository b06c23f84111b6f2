"""A live directory is compared with ids of chunks; chunks are read only for what differs."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from castore.content.restore.file_comparison import FileComparison
from castore.services.sources import Tree
from castore.store.read.content_reader import ContentReader
from tests.support.stores import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.content.stored_dirs import Child
    from castore.kernel.dir_listing import Listed


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


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The paths of the entries whose metadata was compared one by one."""
    found: list[bytes] = []
    original = FileComparison.metadata_differs

    def comparing(self: FileComparison, fd: int, path: Path, child: Child, info: Listed, **options: Any) -> bool:
        found.append(b"/".join(path))  # type: ignore[arg-type]
        return original(self, fd, path, child, info, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(FileComparison, "metadata_differs", comparing)
    return found


@pytest.fixture
def forest(tmp_path: Path) -> tuple[Sandbox, Path]:
    """A store with a tree of more directories than one task compares, with links, and a copy of the tree."""
    sandbox, live = Sandbox(tmp_path / "sandbox", average=4096), tmp_path / "live"
    for number in range(60):
        deep = live / f"{number % 5}" / f"{number % 4}" / f"{number:02}"
        deep.mkdir(parents=True)
        (deep / "file").write_bytes(b"%d" % number)
        (deep / "link").symlink_to("file")
        (deep / "other").symlink_to("x" * 300)
    sandbox.snapshot("s", {"t": Tree(str(live))})
    copied = tmp_path / "copy"
    shutil.copytree(live, copied, symlinks=True)
    return sandbox, copied


def test_equal_directories_and_links_are_not_looked_at_one_by_one(
    forest: tuple[Sandbox, Path], looked_at: list[bytes]
):
    sandbox, copied = forest
    assert sandbox.in_place("s@1:t", copied) == 0
    # A target of more than 255 bytes is left to Python. The first is the top directory.
    assert {Path(os.fsdecode(path)).name for path in looked_at} == {"", "other"}


DEEP = Path("3", "3", "03")


def point_elsewhere(path: Path) -> None:
    """Replace a link by one with the same times."""
    before = path.lstat()
    path.unlink()
    path.symlink_to("nowhere")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns), follow_symlinks=False)
    os.utime(path.parent, ns=(before.st_atime_ns, (forest_of(path) / DEEP).stat().st_mtime_ns))


def forest_of(path: Path) -> Path:
    """Return the tree that was snapshotted, of which a tree that has this path is a copy."""
    return next(folder for folder in path.parents if folder.name == "copy").parent / "live"


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        (point_elsewhere, 5),  # and the times of the directories above it
        (lambda path: os.utime(path, ns=(5, 5), follow_symlinks=False), 5),
        (lambda path: path.parent.chmod(0o700), 4),
        (lambda path: os.utime(path.parent, ns=(5, 5)), 4),
        (lambda path: os.setxattr(path.parent, "user.x", b"y"), 4),
        (lambda path: shutil.rmtree(path.parent), 4),
        (lambda path: (path.parent / "more").mkdir(), 5),
        (lambda path: (path.unlink(), path.mkdir()), 5),
    ],
    ids=["target", "time", "mode of its directory", "its time", "its attributes", "removed", "extra", "directory"],
)
def test_one_difference_far_below_is_found_and_nothing_else(
    forest: tuple[Sandbox, Path], change: Callable[[Path], object], steps: int
):
    sandbox, copied = forest
    change(copied / DEEP / "link")
    assert sandbox.in_place("s@1:t", copied) == steps
    assert sandbox.in_place("s@1:t", copied) == 0
    assert os.readlink(copied / DEEP / "link") == "file"
    assert not (copied / DEEP / "more").exists()


def test_no_directory_stays_open_after_a_comparison(forest: tuple[Sandbox, Path]):
    sandbox, copied = forest
    for folder in copied.glob("*/*/*"):
        (folder / "more").touch()
    before = len(os.listdir("/proc/self/fd"))
    assert sandbox.in_place("s@1:t", copied) == 60 * 2 + 20 + 5 + 1  # the times of all directories
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_live_tree_looks_only_at_what_changed_since_its_snapshot(tmp_path: Path, looked_at: list[bytes]):
    sandbox, live = Sandbox(tmp_path / "sandbox"), tmp_path / "live"
    for number in range(20):
        (live / "a" / f"{number}").mkdir(parents=True)
        (live / "a" / f"{number}" / "file").write_bytes(b"%d" % number)
    time.sleep(2.1)  # what changed so recently could have changed again, unnoticed
    sandbox.snapshot("s", {"t": Tree(str(live))})
    (live / "a" / "7" / "file").write_bytes(b"other")
    assert sandbox.in_place("s@1:t", live) == 4  # and the times of the directories above it
    assert (live / "a" / "7" / "file").read_bytes() == b"7"
    assert looked_at == []
