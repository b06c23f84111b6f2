"""Trees that change between snapshots: what the scan cache keeps is what a scan without it would find."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from castore.content.diff import diff_trees
from castore.content.restore import file_writer, tree_writer
from castore.content.restore import in_place as inplace
from castore.content.restore.metadata import Ownership
from castore.content.scan import cache
from castore.content.scan import small_files as scanfiles
from castore.content.streams import StreamReader
from castore.errors import CastoreError, DamageError, UsageError
from castore.kernel.dir_listing import entries_of
from castore.model.generation import Generation
from castore.services.restore_in_place import plan_in_place
from castore.services.selectors import select
from castore.services.sources import Tree, program_source
from tests.support.stored_streams import streams_of
from tests.support.stores import Sandbox
from tests.support.tree_walker import compare, walk

STEP = 0.012
"""Longer than a tick of the kernel's clock, which dates files."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust what is 10 ms old, so that tests need not wait for seconds."""
    monkeypatch.setattr(cache, "_RACY_NS", 10_000_000)


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path / "sandbox", average=4096)


def snapshot(sandbox: Sandbox, live: Path, **options) -> Generation:
    time.sleep(STEP)
    return sandbox.snapshot("s", {"t": Tree(str(live), **options)})


def check(sandbox: Sandbox, live: Path, taken: Generation, into: Path) -> None:
    """Hold what was stored against the live tree."""
    assert taken.skipped_files == 0
    sandbox.restore(f"s@{taken.number}:t", into)
    assert compare(walk(live), walk(into)) == []
    part = taken.parts[0]
    assert part.files == sum(len(folders) + len(files) for _, folders, files in os.walk(live))
    shutil.rmtree(into)


def caches(sandbox: Sandbox) -> list[Path]:
    return sorted(Path(sandbox.places.cache).glob("*/*/scan/*"))


class Mutator:
    """Changes a tree at random."""

    def __init__(self, top: Path, seed: int) -> None:
        self.top = top
        self.rng = random.Random(seed)

    def paths(self, *, folders: bool) -> list[Path]:
        found = [
            Path(folder, name) for folder, dirs, files in os.walk(self.top) for name in (dirs if folders else files)
        ]
        return sorted(path for path in found if not path.is_symlink())

    def folder(self) -> Path:
        return self.rng.choice([self.top, *self.paths(folders=True)])

    def name(self) -> str:
        return self.rng.choice("abcdefgh") + str(self.rng.randrange(5))

    def change(self) -> None:
        rng = self.rng
        how = rng.randrange(12)
        files = self.paths(folders=False)
        target = self.folder() / self.name()
        if how <= 2:
            if not target.exists() and not target.is_symlink():
                target.write_bytes(rng.randbytes(rng.choice([0, 10, 5000, 70_000, 200_000])))
        elif how == 3:
            if not target.exists() and not target.is_symlink():
                target.mkdir()
                (target / "in").write_bytes(rng.randbytes(100))
        elif how == 4 and files:
            path = rng.choice(files)
            with open(path, "r+b") as file:
                file.seek(rng.randrange(path.stat().st_size + 1))
                file.write(rng.randbytes(20))
        elif how == 5 and files:
            rng.choice(files).unlink()
        elif how == 6 and self.paths(folders=True):
            shutil.rmtree(rng.choice(self.paths(folders=True)))
        elif how == 7 and self.paths(folders=True):
            moved = rng.choice(self.paths(folders=True))
            if not target.exists() and not target.is_symlink() and moved not in target.parents:
                moved.rename(target)
        elif how == 8 and files:
            os.chmod(rng.choice(files), rng.choice([0o600, 0o644, 0o755]))
        elif how == 9:
            os.setxattr(self.folder() if rng.random() < 0.5 or not files else rng.choice(files), "user.x", b"1")
        elif how == 10 and files:
            # The same size and time, as some programs write.
            path = rng.choice(files)
            info = path.stat()
            path.write_bytes(rng.randbytes(info.st_size))
            os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
        elif how == 11 and files and not target.exists() and not target.is_symlink():
            kind = rng.randrange(3)
            if kind == 0:
                os.link(rng.choice(files), target)
            elif kind == 1:
                target.symlink_to(self.name())
            else:
                with open(target, "wb") as file:
                    file.truncate(300_000)
                    file.seek(100_000)
                    file.write(rng.randbytes(8192))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), steps=st.lists(st.integers(0, 6), min_size=3, max_size=8))
def test_every_snapshot_of_a_changing_tree_equals_the_tree(
    tmp_path_factory: pytest.TempPathFactory, seed: int, steps: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("scan")
    sandbox, live = Sandbox(folder / "sandbox", average=4096), folder / "live"
    live.mkdir()
    mutator = Mutator(live, seed)
    for _ in range(25):
        mutator.change()
    for changes in steps:
        for _ in range(changes):
            mutator.change()
        check(sandbox, live, snapshot(sandbox, live), folder / "out")
    # Without the cache the same is found, each directory's small files in one stream.
    last = snapshot(sandbox, live)
    for path in caches(sandbox):
        path.unlink()
    taken = snapshot(sandbox, live)
    assert (taken.parts[0].size, taken.parts[0].files) == (last.parts[0].size, last.parts[0].files)
    check(sandbox, live, taken, folder / "out")
    assert {*streams_of(sandbox, taken).values()} <= {0, 1}
    shutil.rmtree(folder)


def in_place(sandbox: Sandbox, number: int, live: Path, **options) -> int:
    """Make a tree what a generation has; return how many steps that took."""
    return sandbox.in_place(f"s@{number}:t", live, **options)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), back=st.lists(st.integers(0, 3), min_size=2, max_size=4))
def test_a_tree_becomes_in_place_what_it_was_in_any_generation(
    tmp_path_factory: pytest.TempPathFactory, seed: int, back: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("in-place")
    sandbox, live = Sandbox(folder / "sandbox", average=4096), folder / "live"
    live.mkdir()
    mutator = Mutator(live, seed)
    seen = []
    for changes in (25, 5, 0, 8):
        for _ in range(changes):
            mutator.change()
        snapshot(sandbox, live)
        seen.append(walk(live))
    for number in back:
        # With and without a change since the last snapshot, with and without its cache.
        for _ in range(mutator.rng.randrange(3)):
            mutator.change()
        if mutator.rng.random() < 0.3:
            for path in caches(sandbox):
                path.unlink()
        in_place(sandbox, number + 1, live, checksum=True)
        assert compare(seen[number], walk(live)) == []
        assert in_place(sandbox, number + 1, live) == 0
    shutil.rmtree(folder)


@pytest.fixture
def live(tmp_path: Path) -> Path:
    top = tmp_path / "live"
    rng = random.Random(1)
    for outer in range(4):
        for inner in range(3):
            folder = top / f"{outer}" / f"{inner}"
            folder.mkdir(parents=True)
            for number in range(5):
                (folder / f"small{number}").write_bytes(rng.randbytes(500))
            (folder / "large").write_bytes(rng.randbytes(100_000))
    os.setxattr(top / "1", "user.x", b"y")
    time.sleep(STEP)
    return top


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read."""
    found: list[str] = []
    real_read, real_open = scanfiles.read_files, os.open

    def reading(fd, listing, offsets, room):
        folder = os.readlink(f"/proc/self/fd/{fd}")
        names = {entry.offset: entry.name.decode() for entry in entries_of(listing)}
        found.extend(f"{folder}/{names[offset]}" for offset in offsets)
        return real_read(fd, listing, offsets, room)

    def opening(path, flags, *args, dir_fd=None, **options):
        fd = real_open(path, flags, *args, dir_fd=dir_fd, **options)
        held = isinstance(path, bytes) and path.startswith(b"/proc/self/fd/")
        if (dir_fd is not None or held) and not flags & (os.O_DIRECTORY | os.O_PATH):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        return fd

    monkeypatch.setattr(scanfiles, "read_files", reading)
    monkeypatch.setattr(os, "open", opening)
    return found


def test_an_unchanged_tree_is_not_read_and_its_root_is_the_same(sandbox, live, reads, tmp_path):
    first = snapshot(sandbox, live)
    assert len(reads) == 72
    reads.clear()
    second = snapshot(sandbox, live)
    assert reads == []
    one, two = first.parts[0], second.parts[0]
    assert (one.root, one.size, one.files, one.chunks) == (two.root, two.size, two.files, two.chunks)
    assert (two.new_chunks, two.stored_bytes) == (0, 0)
    check(sandbox, live, second, tmp_path / "out")


def test_of_a_directory_that_changed_only_changed_files_are_read(sandbox, live, reads, tmp_path):
    snapshot(sandbox, live)
    reads.clear()
    changed = live / "2" / "1" / "small3"
    changed.write_bytes(b"changed")
    taken = snapshot(sandbox, live)
    assert reads == [str(changed)]
    assert streams_of(sandbox, taken)[b"2/1"] == 2
    check(sandbox, live, taken, tmp_path / "out")
    # The next one knows the places, too; a file that is removed leaves a gap.
    (live / "2" / "1" / "small0").unlink()
    (live / "2" / "1" / "added").write_bytes(b"")
    (live / "2" / "1" / "also").write_bytes(b"added")
    reads.clear()
    taken = snapshot(sandbox, live)
    assert sorted(reads) == [str(live / "2" / "1" / name) for name in ("added", "also")]
    assert streams_of(sandbox, taken)[b"2/1"] == 3
    check(sandbox, live, taken, tmp_path / "out")


def test_files_of_all_kinds_keep_their_places(sandbox, live, reads, tmp_path):
    folder = live / "0" / "1"
    (folder / "empty").write_bytes(b"")
    (folder / "empty with attributes").write_bytes(b"")
    os.setxattr(folder / "empty with attributes", "user.x", b"1")
    os.setxattr(folder / "small1", "user.x", b"2")
    os.link(folder / "small2", folder / "other name")
    os.chmod(folder / "small3", 0o751)
    snapshot(sandbox, live)
    for number in range(3):
        reads.clear()
        (folder / "small4").write_bytes(b"%d" % number)
        taken = snapshot(sandbox, live)
        assert {os.path.basename(path) for path in reads} == {"small4"}
        check(sandbox, live, taken, tmp_path / "out")


def test_a_file_that_may_have_changed_unnoticed_is_read_again_and_no_other(sandbox, live, reads, monkeypatch, tmp_path):
    time.sleep(0.2)
    (live / "0" / "1" / "small1").write_bytes(b"just now")
    monkeypatch.setattr(cache, "_RACY_NS", 100_000_000)
    sandbox.snapshot("s", {"t": Tree(str(live))})
    (live / "0" / "1" / "small2").write_bytes(b"later")
    reads.clear()
    taken = snapshot(sandbox, live)
    assert {os.path.basename(path) for path in reads} <= {"small1", "small2"}
    check(sandbox, live, taken, tmp_path / "out")


def test_a_directory_whose_streams_are_many_or_little_used_is_repacked(sandbox, live, tmp_path):
    seen = set()
    for number in range(30):
        (live / "1" / "1" / f"small{number % 5}").write_bytes(b"%d" % number * 200)
        taken = snapshot(sandbox, live)
        seen.add(streams_of(sandbox, taken)[b"1/1"])
    assert 1 in seen
    assert len(seen) > 1
    check(sandbox, live, taken, tmp_path / "out")


def test_a_changed_small_file_is_stored_as_a_delta_of_its_earlier_version(tmp_path, monkeypatch):
    sandbox, live, rng = Sandbox(tmp_path / "sandbox"), tmp_path / "live", random.Random(3)
    live.mkdir()
    for number in range(10):
        (live / f"file{number}").write_bytes(rng.randbytes(20_000))
    snapshot(sandbox, live)
    for number in (2, 7):
        with open(live / f"file{number}", "r+b") as file:
            file.seek(9_000)
            file.write(b"changed")
    taken = snapshot(sandbox, live)
    assert taken.parts[0].new_bytes > 40_000
    assert taken.parts[0].stored_bytes < 4_000
    check(sandbox, live, taken, tmp_path / "out")


def test_a_difference_does_not_read_files_that_kept_their_places(sandbox, live):
    snapshot(sandbox, live)
    (live / "2" / "1" / "small3").write_bytes(b"changed")
    snapshot(sandbox, live)
    with sandbox.open() as store, StreamReader(store) as reader:
        roots = [store.generations.get("s", number).parts[0].root.ref for number in (1, 2)]
        found = [(one.change, one.path) for one in diff_trees(reader, *roots)]
    assert found == [("content", b"2/1/small3")]


def test_a_directory_that_was_moved_is_not_read(sandbox, live, reads, tmp_path):
    snapshot(sandbox, live)
    reads.clear()
    (live / "2").rename(live / "3" / "moved")
    (live / "0").rename(live / "zero")
    taken = snapshot(sandbox, live)
    assert reads == []
    assert taken.parts[0].stored_bytes < 10_000
    check(sandbox, live, taken, tmp_path / "out")


def test_a_directory_that_cannot_be_entered_any_more_stays_as_it_was(sandbox, live, monkeypatch, tmp_path):
    snapshot(sandbox, live)
    (live / "1" / "1" / "small1").write_text("changed")
    real = os.open

    def failing(path, flags, *args, dir_fd=None, **options):
        if path == b"1" and dir_fd is not None and os.readlink(f"/proc/self/fd/{dir_fd}") == str(live / "1"):
            raise OSError(5, "Input/output error")
        return real(path, flags, *args, dir_fd=dir_fd, **options)

    monkeypatch.setattr(os, "open", failing)
    time.sleep(STEP)
    taken = sandbox.snapshot("s", {"t": Tree(str(live))})
    monkeypatch.undo()
    monkeypatch.setattr(cache, "_RACY_NS", 10_000_000)
    assert taken.skipped_files == 1
    sandbox.restore("s@2:t", tmp_path / "out")
    assert (tmp_path / "out" / "1" / "1" / "small1").read_bytes() != b"changed"
    assert (tmp_path / "out" / "1" / "2" / "small1").read_bytes() == (live / "1" / "2" / "small1").read_bytes()
    check(sandbox, live, snapshot(sandbox, live), tmp_path / "again")


def test_what_changed_just_before_it_was_listed_is_read_again(sandbox, live, reads, monkeypatch):
    monkeypatch.setattr(cache, "_RACY_NS", 2_000_000_000)
    os.utime(live / "1" / "1" / "large", ns=(0, 0))
    snapshot(sandbox, live)
    reads.clear()
    snapshot(sandbox, live)
    assert str(live / "1" / "1" / "large") in reads


def test_other_rules_another_root_and_a_lost_store_cause_a_full_scan(sandbox, live, reads, tmp_path):
    snapshot(sandbox, live)
    taken = snapshot(sandbox, live, exclude=("small1",))
    assert taken.parts[0].files == 88 - 12
    reads.clear()
    assert snapshot(sandbox, live, exclude=("small1",)).parts[0].root == taken.parts[0].root
    assert reads == []
    # Another tree of that name came in between.
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("x")
    old = caches(sandbox)[0].read_bytes()
    sandbox.snapshot("s", {"t": Tree(str(other))})
    caches(sandbox)[0].write_bytes(old)
    reads.clear()
    taken = snapshot(sandbox, live)
    assert len(reads) == 72
    assert taken.parts[0].files == 88


def test_a_damaged_cache_is_no_cache(sandbox, live, tmp_path):
    first = snapshot(sandbox, live)
    (path,) = caches(sandbox)
    data = path.read_bytes()
    rng = random.Random(2)
    for _ in range(12):
        broken = bytearray(data)
        at = rng.randrange(len(data))
        broken[at] ^= 1 << rng.randrange(8)
        path.write_bytes(rng.choice([broken, data[:at], b""]))
        taken = snapshot(sandbox, live)
        assert taken.parts[0].root == first.parts[0].root
    check(sandbox, live, taken, tmp_path / "out")


def test_a_snapshot_that_fails_leaves_the_cache_of_the_last_one(sandbox, live, reads):
    snapshot(sandbox, live)
    (path,) = caches(sandbox)
    before = path.read_bytes()
    (live / "1" / "new").write_text("new")
    with pytest.raises(CastoreError):
        sandbox.snapshot("s", {"t": Tree(str(live)), "d": program_source(("false",))})
    assert [path.read_bytes() for path in caches(sandbox)] == [before]
    (path.parent / f"{path.name}:0123456789abcdef.part").write_bytes(b"of one that was killed")
    reads.clear()
    snapshot(sandbox, live)
    assert [one.name for one in caches(sandbox)] == [path.name]
    assert reads == [str(live / "1" / "new")]


def test_what_snapshots_leave_out_is_left_alone(sandbox, live, tmp_path):
    (live / "1" / "cache").mkdir()
    (live / "1" / "cache" / "kept").write_text("excluded")
    (live / "1" / "tagged").mkdir()
    (live / "1" / "tagged" / "CACHEDIR.TAG").write_bytes(b"Signature: 8a477f597d28d172789f06886806bc55")
    (live / "1" / "tagged" / "kept").write_text("of a cache")
    (live / "2" / "own").mkdir()
    (live / "2" / "own" / "kept").write_text("castore's own")
    time.sleep(STEP)

    def take() -> Generation:
        source = Tree(str(live), exclude=("**/cache/*",), exclude_caches=True)
        time.sleep(STEP)
        return sandbox.snapshot("s", {"t": source}, leave_out=(str(live / "2" / "own"),))

    take()
    (live / "1" / "0" / "small1").write_text("changed")
    (live / "1" / "new").write_text("new")
    (live / "1" / "cache" / "more").write_text("excluded, too")
    (live / "2" / "own" / "more").write_text("more")
    take()
    assert in_place(sandbox, 1, live) > 0
    assert not (live / "1" / "new").exists()
    for path in ("1/cache/kept", "1/cache/more", "1/tagged/kept", "2/own/kept", "2/own/more"):
        assert (live / path).exists(), path
    # A directory of the tree alone has the same patterns.
    (live / "1" / "new").write_text("new")
    ownership = Ownership(change=True, numeric=True)
    with sandbox.open() as store:
        plan = plan_in_place(store, select(store, "s@1:t/1"), str(live / "1"), ownership)
    assert [step.path for step in plan.steps if step.action == "remove"] == [(b"new",)]


def test_a_failure_puts_a_directory_back_as_it_was(sandbox, live, monkeypatch):
    snapshot(sandbox, live)
    for number in range(4):
        (live / f"{number}" / "0" / "large").write_bytes(b"changed" * 20_000)
    (live / "3" / "extra").write_text("extra")
    before = walk(live)
    real, calls = inplace.InPlace._do, []  # noqa: SLF001 - the moment of the failure

    def failing(self, aside, step):
        calls.append(step)
        if len(calls) > 7:
            raise KeyboardInterrupt
        real(self, aside, step)

    monkeypatch.setattr(inplace.InPlace, "_do", failing)
    with pytest.raises(KeyboardInterrupt):
        in_place(sandbox, 1, live)
    assert compare(before, walk(live)) == []


@pytest.mark.parametrize("options", [{}, {"checksum": True}])
def test_content_that_its_size_and_time_hide_is_found(sandbox, live, options):
    snapshot(sandbox, live)
    for path in (live / "1" / "1" / "large", live / "1" / "1" / "small2"):
        info = path.stat()
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    before = walk(live)
    assert in_place(sandbox, 1, live, trust_times=True) == 0
    assert walk(live) == before
    assert in_place(sandbox, 1, live, **options) >= 2
    assert compare(walk(live), before) != []
    assert in_place(sandbox, 1, live, checksum=True) == 0


def test_in_place_is_for_a_tree_and_a_directory(sandbox, live, tmp_path):
    snapshot(sandbox, live)
    ownership = Ownership(change=True)
    with sandbox.open() as store:
        store.sync()
        for what, into, message in (
            ("s@1", live, "name the tree"),
            ("s@1:t/1/1/large", live, "is a directory: name the file in it"),
            ("s@1:t", tmp_path / "none", "No such file"),
            ("s@1:t", live / "1" / "1" / "large", "Not a directory"),
        ):
            with pytest.raises(UsageError, match=message):
                plan_in_place(store, select(store, what), str(into), ownership)


def test_patterns_are_asked_again_where_a_directory_was_moved(sandbox, live, tmp_path):
    (live / "1" / "secret").write_text("left out at this place only")
    snapshot(sandbox, live, exclude=("/1/secret", "/4/0/large"))
    (live / "1").rename(live / "4")
    taken = snapshot(sandbox, live, exclude=("/1/secret", "/4/0/large"))
    sandbox.restore(f"s@{taken.number}:t", tmp_path / "out")
    assert (tmp_path / "out" / "4" / "secret").exists()
    assert not (tmp_path / "out" / "4" / "0" / "large").exists()
    # The same part of another top.
    source = Tree(str(live / "4"), exclude=("/secret",))
    time.sleep(STEP)
    taken = sandbox.snapshot("s", {"t": source})
    sandbox.restore(f"s@{taken.number}:t", tmp_path / "below")
    assert (tmp_path / "below" / "0" / "large").exists()
    assert not (tmp_path / "below" / "secret").exists()


def test_what_a_store_has_lost_is_stored_again(sandbox, live, tmp_path):
    snapshot(sandbox, live)
    (live / "1" / "1" / "small1").write_text("changed")
    snapshot(sandbox, live)
    for pack in sorted((sandbox.store / "packs").iterdir()):
        kept = tmp_path / pack.name
        pack.rename(kept)
        taken = snapshot(sandbox, live)
        check(sandbox, live, taken, tmp_path / "out")
        kept.unlink()
    (index,) = Path(sandbox.places.cache).glob("*/*/index")
    shutil.rmtree(index)
    check(sandbox, live, snapshot(sandbox, live), tmp_path / "out")


def test_every_name_of_a_file_counts_with_the_cache_and_without(sandbox, tmp_path):
    live = tmp_path / "many"
    live.mkdir()
    (live / "one").write_bytes(os.urandom(200_000))
    for name in ("two", "three"):
        os.link(live / "one", live / name)
    time.sleep(STEP)
    first, second = snapshot(sandbox, live).parts[0], snapshot(sandbox, live).parts[0]
    assert (first.size, first.chunks) == (second.size, second.chunks)
    assert first.size == 600_000
    (live / "other").write_text("x")
    assert snapshot(sandbox, live).parts[0].size == 600_001


def test_nothing_that_is_left_out_goes_with_its_directory(sandbox, live):
    rules = {"exclude": ("*.key",)}
    snapshot(sandbox, live, **rules)
    (live / "new" / "deep").mkdir(parents=True)
    (live / "new" / "file").write_text("goes")
    (live / "new" / "deep" / "a.key").write_text("stays")
    snapshot(sandbox, live, **rules)
    in_place(sandbox, 1, live)
    assert sorted(os.listdir(live / "new")) == ["deep"]
    assert (live / "new" / "deep" / "a.key").read_text() == "stays"
    # What would have to be replaced is reported instead.
    shutil.rmtree(live / "1" / "0")
    (live / "1" / "0").write_text("a file in the second")
    taken = snapshot(sandbox, live, **rules)
    (live / "1" / "0").unlink()
    (live / "1" / "0").mkdir()
    (live / "1" / "0" / "b.key").write_text("stays")
    before = walk(live)
    with pytest.raises(CastoreError, match="1/0 is to be replaced"):
        in_place(sandbox, taken.number, live)
    assert walk(live) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_other_file_systems_are_left_alone_in_place(sandbox, live):
    snapshot(sandbox, live, one_file_system=True)
    for place in (live / "mounted", live / "new" / "mounted"):
        place.mkdir(parents=True)
    mounted = []
    try:
        for place in (live / "mounted", live / "new" / "mounted"):
            if subprocess.run(["mount", "-t", "tmpfs", "none", place], check=False).returncode:
                pytest.skip("mounting is not allowed here")
            mounted.append(place)
            (place / "precious").write_text("of another file system")
        (live / "new" / "file").write_text("goes")
        in_place(sandbox, 1, live)
        assert [path for path in (place / "precious" for place in mounted) if not path.exists()] == []
        assert not (live / "new" / "file").exists()
    finally:
        for place in mounted:
            subprocess.run(["umount", place], check=True)


def test_what_cannot_be_made_puts_all_back(sandbox, live, monkeypatch):
    snapshot(sandbox, live)
    (live / "2" / "0" / "large").write_text("changed")
    (live / "2" / "1" / "small1").write_text("changed")
    before = walk(live)
    real = os.open

    def failing(path, flags, *args, **options):
        if path == b"large" and flags & os.O_CREAT:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(CastoreError, match="File too large"):
        in_place(sandbox, 1, live)
    monkeypatch.undo()
    assert compare(before, walk(live)) == []


def test_a_damaged_bundle_costs_its_files_and_no_others(sandbox, live, tmp_path, monkeypatch):
    snapshot(sandbox, live)
    real = tree_writer.RangeReader

    def failing(store, ref, known=None):
        if len(broken) < 2:
            broken.append(ref)
        if ref in broken:
            raise DamageError("a node is damaged")
        return real(store, ref, known)

    broken: list[object] = []
    for module in (tree_writer, file_writer):
        monkeypatch.setattr(module, "RangeReader", failing)
    report = sandbox.restore("s@1:t", tmp_path / "out").report
    assert len(report.damaged) in {5, 10}
    assert len(walk(tmp_path / "out")) == 89 - len(report.damaged)


def test_directories_that_nobody_may_write_to_are_removed_and_restored(sandbox, live, tmp_path):
    snapshot(sandbox, live)
    before = walk(live)
    folder = live / "closed"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "file").write_text("x")
    os.chmod(folder / "in", 0o500)
    os.chmod(folder, 0o000)
    in_place(sandbox, 1, live)
    assert compare(before, walk(live)) == []
    deep = live / "deep"
    at = os.open(live, os.O_RDONLY)
    for _ in range(700):
        os.mkdir("deep", dir_fd=at)
        below = os.open("deep", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    assert deep.exists()
    in_place(sandbox, 1, live)
    assert compare(before, walk(live)) == []


@pytest.mark.skipif(shutil.which("setfacl") is None, reason="no setfacl")
def test_nothing_inherits_an_access_control_list(sandbox, live, tmp_path):
    snapshot(sandbox, live)
    (tmp_path / "out").mkdir()
    for folder in (live, live / "1", tmp_path / "out"):
        if subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx", folder], check=False).returncode:
            pytest.skip("no access control lists here")
    sandbox.restore("s@1:t", tmp_path / "out")
    taken = snapshot(sandbox, live)
    before = walk(live)
    (live / "1" / "1" / "small1").write_text("changed")
    (live / "1" / "2" / "large").unlink()
    shutil.rmtree(live / "1" / "0")
    in_place(sandbox, taken.number, live)
    assert compare(before, walk(live)) == []
    assert in_place(sandbox, taken.number, live) == 0
    restored = walk(tmp_path / "out")
    assert [path for path, node in restored.items() if path != b"." and b"system.posix_acl_access" in node["xattrs"]] == []
