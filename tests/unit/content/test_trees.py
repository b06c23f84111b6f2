"""Trees are restored as they were, compared by a walker that shares no code with castore."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

import pytest

import castore
from castore.content.restore.metadata import Ownership
from castore.content.scan import small_files
from castore.errors import UsageError
from castore.services.details import read_details
from castore.services.restore import restore as restore_parts
from castore.services.selectors import select
from castore.services.sources import Tree
from tests.support.feature_tree import FeatureTree, make_feature_tree
from tests.support.stores import Sandbox
from tests.support.tree_walker import compare, walk


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def test_a_tree_with_every_feature_comes_back_the_same(sandbox: Sandbox, tmp_path: Path, feature_tree: FeatureTree) -> None:
    live = feature_tree.path
    taken = sandbox.snapshot("s", {"t": Tree(str(live))})
    assert taken.skipped_files == 0
    done = sandbox.restore("s@1:t", tmp_path / "out")
    assert done.report.damaged == []
    assert done.report.warnings == []
    assert compare(walk(live), walk(tmp_path / "out")) == []


def test_the_second_snapshot_of_an_unchanged_tree_stores_nothing_new(sandbox: Sandbox, tmp_path: Path) -> None:
    live = tmp_path / "live"
    make_feature_tree(live)
    sandbox.snapshot("s", {"t": Tree(str(live))})
    again = sandbox.snapshot("s", {"t": Tree(str(live))})
    assert [(part.new_chunks, part.stored_bytes) for part in again.parts] == [(0, 0)]


def test_a_subdirectory_and_a_single_file_restore_alone(sandbox: Sandbox, tmp_path: Path) -> None:
    live = tmp_path / "live"
    (live / "a" / "b").mkdir(parents=True)
    (live / "a" / "b" / "file").write_bytes(b"x" * 1000)
    (live / "a" / "big").write_bytes(os.urandom(300_000))
    sandbox.snapshot("s", {"t": Tree(str(live))})
    sandbox.restore("s@1:t/a", tmp_path / "sub")
    assert compare(walk(live / "a"), walk(tmp_path / "sub")) == []
    sandbox.restore("s@latest:t/a/b/file", tmp_path / "one")
    assert (tmp_path / "one" / "file").read_bytes() == b"x" * 1000


def test_excluded_files_are_left_out_as_gitignore_would(sandbox: Sandbox, tmp_path: Path) -> None:
    live = tmp_path / "live"
    for name in ("keep.txt", "drop.log", "cache/x", "sub/cache/y", "sub/keep.log", "logs/z.txt"):
        (live / name).parent.mkdir(parents=True, exist_ok=True)
        (live / name).write_text(name)
    sandbox.snapshot(
        "s", {"t": Tree(str(live), exclude=("*.log", "!keep.log", "/cache/", "logs"))}
    )
    sandbox.restore("s@1:t", tmp_path / "out")
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*"))
    assert found == ["keep.txt", "sub", "sub/cache", "sub/cache/y", "sub/keep.log"]


def test_a_tagged_cache_keeps_only_its_tag_when_asked(sandbox: Sandbox, tmp_path: Path) -> None:
    live = tmp_path / "live"
    (live / "c").mkdir(parents=True)
    (live / "c" / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# x")
    (live / "c" / "data").write_text("x")
    (live / "false").mkdir()
    (live / "false" / "CACHEDIR.TAG").write_text("no signature")
    (live / "false" / "data").write_text("x")
    sandbox.snapshot("s", {"t": Tree(str(live), exclude_caches=True)})
    sandbox.restore("s@1:t", tmp_path / "out")
    assert os.listdir(tmp_path / "out" / "c") == ["CACHEDIR.TAG"]
    assert sorted(os.listdir(tmp_path / "out" / "false")) == ["CACHEDIR.TAG", "data"]


def test_the_store_itself_is_not_taken_in(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path / "all")
    (tmp_path / "all" / "data").write_text("x")
    sandbox.snapshot(
        "s", {"t": Tree(str(tmp_path / "all"))}, leave_out=[sandbox.places.cache, sandbox.places.state]
    )
    sandbox.restore("s@1:t", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["cache", "data", "state", "store"]
    assert os.listdir(tmp_path / "out" / "store") == []


def test_a_file_that_vanishes_or_cannot_be_read_is_reported_and_the_rest_is_kept(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = tmp_path / "live"
    live.mkdir()
    for name in ("a", "b", "c", "d"):
        (live / name).write_text(name)
    real = os.open

    def failing(path, flags, *args, **kwargs):
        if path == b"b":
            raise FileNotFoundError(2, "No such file or directory")
        if path == b"c":
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(small_files, "read_files", lambda *_: (0, b"", 0))  # as if none were as listed
    monkeypatch.setattr(os, "open", failing)
    taken = sandbox.snapshot("s", {"t": Tree(str(live))})
    monkeypatch.undo()
    assert taken.skipped_files == 2
    with sandbox.open() as store:
        warnings = read_details(store, taken).warnings
    assert {(path, reason.split()[0]) for _, path, reason in warnings} == {(b"b", "vanished"), (b"c", "cannot")}
    sandbox.restore("s@1:t", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "d"]


def test_a_file_that_changes_during_the_scan_is_reported(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = tmp_path / "live"
    live.mkdir()
    (live / "small").write_text("one")
    (live / "large").write_bytes(os.urandom(3_000_000))
    real = os.readv

    def growing(fd, buffers):
        count = real(fd, buffers)
        with open(live / "small", "a") as file:
            file.write("more")
        return count

    real_pread = os.preadv

    def shrinking(fd, buffers, offset):
        os.truncate(live / "large", 1_000_000)
        return real_pread(fd, buffers, offset)

    monkeypatch.setattr(small_files, "read_files", lambda *_: (0, b"", 0))
    monkeypatch.setattr(os, "readv", growing)
    monkeypatch.setattr(os, "preadv", shrinking)
    taken = sandbox.snapshot("s", {"t": Tree(str(live))})
    monkeypatch.undo()
    assert taken.skipped_files == 2
    done = sandbox.restore("s@1:t", tmp_path / "out")
    assert done.report.damaged == []
    assert (tmp_path / "out" / "small").read_text().startswith("one")
    assert (tmp_path / "out" / "large").stat().st_size == 1_000_000


def test_what_is_no_longer_as_listed_is_read_as_it_is_now(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = tmp_path / "live"
    live.mkdir()
    for name in "abcdefgh":
        (live / name).write_text(name * 100)
    real = small_files.read_files

    def racing(*arguments):
        for name, change in {
            "b": lambda path: path.unlink(missing_ok=True),
            "c": lambda path: path.write_text("longer " * 30_000),
            "d": lambda path: path.write_text("other"),
            "e": lambda path: (path.unlink(missing_ok=True), os.mkfifo(path)),
            "f": lambda path: (path.unlink(missing_ok=True), path.symlink_to("/etc/passwd")),
        }.items():
            change(live / name)
        monkeypatch.setattr(small_files, "read_files", real)
        return real(*arguments)

    monkeypatch.setattr(small_files, "read_files", racing)
    taken = sandbox.snapshot("s", {"t": Tree(str(live))})
    with sandbox.open() as store:
        warnings = {path: reason for _, path, reason in read_details(store, taken).warnings}
    assert sorted(warnings) == [b"b", b"e", b"f"]
    assert "vanished" in warnings[b"b"]
    assert "replaced" in warnings[b"e"]
    sandbox.restore("s@1:t", tmp_path / "out")
    found = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert found == {**{name: name * 100 for name in "agh"}, "c": "longer " * 30_000, "d": "other"}


def test_a_missing_tree_is_refused_by_name(sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no-such-dir"):
        sandbox.snapshot("s", {"t": Tree(str(tmp_path / "no-such-dir"))})


def test_restore_refuses_a_directory_that_is_not_empty(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    sandbox.snapshot("s", {"t": Tree(str(tmp_path / "live"))})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UsageError, match="not empty"):
        sandbox.restore("s@1:t", tmp_path / "out")


def test_without_root_devices_and_set_id_bits_are_not_restored(sandbox: Sandbox, tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    os.mknod(live / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (live / "suid").write_text("x")
    os.chmod(live / "suid", 0o4755)
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(live):
        listener.bind("socket")
    sandbox.snapshot("s", {"t": Tree(str(live))})
    with sandbox.open() as store:
        selection = select(store, "s@1:t")
        done = restore_parts(
            store, selection, str(tmp_path / "out"), Ownership(change=False), castore.Progress()
        )
    assert [path for path, _ in done.report.warnings] == [b"null"]
    assert stat.S_IMODE((tmp_path / "out" / "suid").stat().st_mode) == 0o755
    assert stat.S_ISSOCK((tmp_path / "out" / "socket").lstat().st_mode)


def test_a_link_put_in_place_of_what_was_just_made_is_not_followed(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, outside = tmp_path / "live", tmp_path / "outside"
    (live / "folder" / "below").mkdir(parents=True)
    (live / "folder" / "file").write_bytes(b"x" * 100)
    (live / "large").write_bytes(os.urandom(200_000))
    os.setxattr(live / "large", "user.test", b"x")
    os.chmod(live / "large", 0o4777)
    sandbox.snapshot("s", {"t": Tree(str(live))})
    outside.mkdir()
    (outside / "victim").write_bytes(b"victim")
    before = walk(outside)
    real_mkdir, real_close = os.mkdir, os.close

    def swap(fd: int, name: bytes, target: Path) -> None:
        os.rename(name, b"moved-" + name, src_dir_fd=fd, dst_dir_fd=fd)
        os.symlink(target, name, dir_fd=fd)

    def mkdir(path, *args, dir_fd=None, **options):
        real_mkdir(path, *args, dir_fd=dir_fd, **options)
        if path == b"folder":
            swap(dir_fd, path, outside)

    def close(fd: int) -> None:
        made = os.readlink(f"/proc/self/fd/{fd}")
        real_close(fd)
        if made == str(tmp_path / "out" / "large") and not os.path.islink(made):
            top = os.open(tmp_path / "out", os.O_RDONLY)
            swap(top, b"large", outside / "victim")
            real_close(top)

    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(os, "close", close)
    restored = sandbox.restore("s@1:t", tmp_path / "out")
    monkeypatch.undo()
    assert compare(before, walk(outside)) == []
    assert b"folder" in dict(restored.report.warnings)
    assert os.listdir(tmp_path / "out" / "moved-folder") == []
