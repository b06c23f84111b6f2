"""What differs between two trees or two streams, against brute force."""

from __future__ import annotations

import os
import random
import shutil

import pytest

from castore.content.diff import Difference, diff_streams, diff_trees
from castore.content.streams import StreamReader
from castore.services.sources import Tree, file_source
from tests.support.stores import Sandbox
from tests.support.tree_walker import walk

LARGE = 400_000
"""Longer than what goes into small-file streams: a stream of its own."""


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path, average=4096)


class Live:
    """A directory that is snapshotted again and again."""

    def __init__(self, sandbox, path):
        self.sandbox, self.path = sandbox, path
        path.mkdir()

    def take(self):
        """Return the tree's root, and what the walker sees of it."""
        taken = self.sandbox.snapshot("s", {"t": Tree(str(self.path))})
        return taken.parts[0].content, walk(self.path)

    def diff(self, old, new):
        with self.sandbox.open() as store, StreamReader(store) as reader:
            return [tuple(found) for found in diff_trees(reader, old, new)]

    def write(self, name, data=b"x"):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path


@pytest.fixture
def live(sandbox, tmp_path):
    return Live(sandbox, tmp_path / "live")


def settle(live):
    """Give all directories a fixed time, so that what is done below them does not show in them."""
    for folder, _, _ in os.walk(live.path):
        os.utime(folder, (1, 1))


def changes(live, change):
    """Return what differs after `change`, both ways; the times of directories do not count."""
    settle(live)
    old, _ = live.take()
    change()
    settle(live)
    new, _ = live.take()
    return live.diff(old, new), live.diff(new, old)


def test_nothing_differs_from_itself(live):
    live.write("a/b")
    assert changes(live, lambda: None) == ([], [])


@pytest.mark.parametrize("size", [0, 1, 5000, LARGE])
def test_a_file_added_or_removed(live, size):
    live.write("a/other")
    found = changes(live, lambda: live.write("a/new", os.urandom(size)))
    assert found == ([("added", b"a/new")], [("removed", b"a/new")])


@pytest.mark.parametrize("size", [1, 5000, LARGE])
def test_one_changed_byte_is_content(live, size):
    data = bytearray(os.urandom(size))
    path = live.write("a/f", data)
    live.write("a/g", os.urandom(100))

    def change():
        data[size // 2] ^= 1
        path.write_bytes(data)
        os.utime(path, (1, 1))

    os.utime(path, (1, 1))
    assert changes(live, change) == ([("content", b"a/f")],) * 2


@pytest.mark.parametrize(("before", "after"), [(0, 1), (10, 11), (10, LARGE), (LARGE, LARGE + 1), (LARGE, 0)])
def test_another_length_is_content(live, before, after):
    path = live.write("f", bytes(before))
    assert changes(live, lambda: path.write_bytes(bytes(after)))[0] == [("content", b"f")]


@pytest.mark.parametrize("size", [0, 10, LARGE])
@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.utime(path, (5, 5)),
        lambda path: os.chmod(path, 0o4711),
        lambda path: os.chown(path, 12345, -1),
        lambda path: os.chown(path, -1, 12345),
    ],
    ids=["time", "mode", "uid", "gid"],
)
def test_metadata_of_a_file(live, size, change):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    path = live.write("d/f", bytes(size))
    os.utime(path, (1, 1))
    assert changes(live, lambda: change(path)) == ([("metadata", b"d/f")],) * 2


def test_metadata_of_directories_and_of_the_top(live):
    live.write("d/e/f")
    old, _ = live.take()
    os.chmod(live.path / "d/e", 0o700)
    os.chmod(live.path, 0o711)
    new, _ = live.take()
    assert live.diff(old, new) == [("metadata", b"."), ("metadata", b"d/e")]


def test_content_that_moves_in_its_bundle_has_not_changed(live):
    live.write("m", b"middle" * 20)
    live.write("z", b"last" * 20)
    assert changes(live, lambda: live.write("a", b"first"))[0] == [("added", b"a")]


def test_targets_of_links_are_content(live):
    os.symlink("one", live.path / "l")

    def change():
        os.unlink(live.path / "l")
        os.symlink("two", live.path / "l")

    assert changes(live, change)[0] == [("content", b"l")]


def test_nested_directories_added_whole(live):
    live.write("keep")

    def change():
        live.write("d/e/f")
        live.write("d/g")
        os.mkdir(live.path / "d/empty")

    below = [b"d", b"d/e", b"d/e/f", b"d/empty", b"d/g"]
    assert changes(live, change) == (
        [("added", path) for path in below],
        [("removed", path) for path in below],
    )


def make(path, kind):
    if kind == "dir":
        path.mkdir()
        (path / "in").write_text("x")
        (path / "sub").mkdir()
        (path / "sub" / "deep").write_text("y")
    elif kind == "link":
        os.symlink("target", path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "large":
        path.write_bytes(bytes(range(256)) * (LARGE // 256))
    else:
        path.write_text("file")


@pytest.mark.parametrize("before", ["file", "large", "dir", "link", "fifo"])
@pytest.mark.parametrize("after", ["file", "large", "dir", "link", "fifo"])
def test_another_type_is_content_and_what_was_below_is_listed(live, before, after):
    path = live.path / "x"
    make(path, before)

    def change():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        make(path, after)

    forth, back = changes(live, change)
    if before == after:
        assert {change for change, _ in forth} <= {"metadata"}
        return
    below = [b"x/in", b"x/sub", b"x/sub/deep"]
    expected = [("content", b"x")]
    expected += [("removed", path) for path in below if before == "dir"]
    expected += [("added", path) for path in below if after == "dir"]
    assert forth == expected
    swapped = {"added": "removed", "removed": "added", "content": "content"}
    assert back == [(swapped[change], path) for change, path in forth]


def brute(old, new):
    """What differs between two walks of trees."""
    content = ("type", "size", "hash", "target", "rdev", "extents")
    metadata = ("mode", "uid", "gid", "mtime", "xattrs")
    found = set()
    for path in old.keys() | new.keys():
        if path not in new:
            found.add(("removed", path))
        elif path not in old:
            found.add(("added", path))
        elif any(old[path].get(key) != new[path].get(key) for key in content):
            found.add(("content", path))
        elif any(old[path][key] != new[path][key] for key in metadata):
            found.add(("metadata", path))
    return found


def mutate(rng, top):
    """Do a few random things below `top`."""
    for _ in range(rng.randint(1, 6)):
        paths = [os.path.join(folder, name) for folder, dirs, names in os.walk(top) for name in dirs + names]
        folders = [top, *(path for path in paths if os.path.isdir(path) and not os.path.islink(path))]
        files = [path for path in paths if os.path.isfile(path) and not os.path.islink(path)]
        action = rng.choice(["file", "file", "dir", "link", "remove", "edit", "edit", "chmod", "touch", "swap"])
        new = os.path.join(rng.choice(folders), f"n{rng.randint(0, 15)}")
        if action in {"file", "dir", "link"} and os.path.lexists(new):
            continue
        if action == "file":
            with open(new, "wb") as file:
                file.write(rng.randbytes(rng.choice([0, 10, 3000, 60_000, LARGE])))
        elif action == "dir":
            os.mkdir(new)
        elif action == "link":
            os.symlink(str(rng.random()), new)
        elif action == "edit" and files:
            with open(rng.choice(files), "r+b") as file:
                file.seek(rng.randint(0, 100))
                file.write(rng.randbytes(rng.randint(0, 20)))
        elif action == "chmod" and paths:
            path = rng.choice(paths)
            if not os.path.islink(path):
                os.chmod(path, rng.choice([0o700, 0o755, 0o644]))
        elif action == "touch" and paths:
            time = rng.randint(0, 10**18)
            os.utime(rng.choice(paths), ns=(time, time), follow_symlinks=False)
        elif action in {"remove", "swap"} and paths:
            path = rng.choice(paths)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
            if action == "swap":
                rng.choice([os.mkdir, lambda path: os.symlink("x", path)])(path)


@pytest.mark.parametrize("seed", range(6))
def test_random_trees_differ_as_brute_force_says(live, seed):
    rng = random.Random(seed)
    states = []
    for _ in range(7):
        mutate(rng, str(live.path))
        states.append(live.take())
    for old, before in states:
        for new, after in states:
            found = live.diff(old, new)
            assert set(found) == brute(before, after)
            assert len(found) == len(set(found))
            paths = [path.split(b"/") for _, path in found if path != b"."]
            top_level = [path for path in paths if len(path) == 1]
            assert top_level == sorted(top_level)


def test_differences_come_in_the_order_of_a_walk(live):
    settle(live)
    old, _ = live.take()
    for name in ("b", "a/z", "a.x", "a/b/c", "a-", "c/1"):
        live.write(name)
    settle(live)
    new, _ = live.take()
    found = [os.fsdecode(path) for _, path in live.diff(old, new)]
    assert found == ["a", "a/b", "a/b/c", "a/z", "a-", "a.x", "b", "c", "c/1"]


def test_a_difference_has_a_name_for_each_field(live):
    old, _ = live.take()
    live.write("f")
    new, _ = live.take()
    with live.sandbox.open() as store, StreamReader(store) as reader:
        assert Difference("added", b"f") in list(diff_trees(reader, old, new))


# Streams


def chunks(cutter, data):
    """Cut bytes with nothing but the cutter."""
    ends = cutter.scan(bytearray(data), 0, len(data), final=True) if data else []
    return {data[start:end] for start, end in zip([0, *ends], ends, strict=False)}


def put(sandbox, path, data):
    path.write_bytes(data)
    return sandbox.snapshot("s", {"d": file_source(str(path))}).parts[0].content


def test_streams_differ_in_the_chunks_that_they_do_not_share(sandbox, tmp_path):
    rng = random.Random(0)
    data = rng.randbytes(300_000)
    versions = [
        b"",
        b"short",
        data,
        data[:150_000] + b"inserted" + data[150_000:],
        data[:100_000] + data[140_000:],
        rng.randbytes(50_000) + data,
        data + data,
        bytes(100_000),
        bytes(200_000),
        rng.randbytes(200_000),
    ]
    refs = [put(sandbox, tmp_path / "dump", version) for version in versions]
    with sandbox.open() as store:
        cut = [chunks(store.keys.cutter, version) for version in versions]
        for old, before in zip(refs, cut, strict=True):
            for new, after in zip(refs, cut, strict=True):
                found = diff_streams(store, old, new)
                assert found.removed == sum(map(len, before - after))
                assert found.added == sum(map(len, after - before))
        edited = diff_streams(store, refs[2], refs[3])
        assert 0 < edited.added < 100_000
    with sandbox.open(identity=False) as store:
        assert diff_streams(store, refs[2], refs[3]) == edited, "it takes no identity"
