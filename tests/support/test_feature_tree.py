"""The oracle itself: the features has everything, and the walker sees every change."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess

import pytest

from tests.support.feature_tree import (
    ACL,
    CAPABILITY,
    DEEP_LEVELS,
    DEEP_NAME,
    file_system,
    make_feature_tree,
    must_be_complete,
)
from tests.support.tree_walker import compare, walk

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do this")


def test_a_forest_has_every_feature_on_ext4(tmp_path):
    features = make_feature_tree(tmp_path / "features", many=50)
    if must_be_complete(tmp_path):
        assert features.left_out == []
    tree = walk(features.path)
    assert max(map(len, tree)) > DEEP_LEVELS * DEEP_NAME > 4096
    assert {node["type"] >> 12 for node in tree.values()} >= {1, 2, 4, 6, 8, 10, 12} or features.left_out
    assert len(tree[b"links/small-a"]["links"]) == 3
    assert tree[b"sparse/all-hole"]["extents"] == ()
    assert tree[b"sparse/all-hole"]["blocks"] == 0
    assert tree[b"sparse/hole-in-middle"]["extents"] == ((0, 1 << 20), (2 << 20, 3 << 20))
    assert len(tree[b"sparse/comb"]["extents"]) == 300
    assert tree[b"files/zeros"]["extents"] == ((0, 1 << 20),)
    if must_be_complete(tmp_path):
        assert tree[b"attributes/acl"]["xattrs"][b"system.posix_acl_access"] == ACL
        assert tree[b"attributes/default-acl"]["xattrs"] == {b"system.posix_acl_default": ACL}
        assert tree[b"attributes/default-acl/child"]["xattrs"] == {}
        assert tree[b"attributes/capable"]["xattrs"] == {b"security.capability": CAPABILITY}
        assert tree[b"special/large-numbers"]["rdev"] == (4000, 500_000)


def test_two_walks_of_one_forest_are_equal(tmp_path):
    features = make_feature_tree(tmp_path / "features", many=50)
    assert compare(walk(features.path), walk(features.path)) == []


def test_two_forests_of_one_seed_are_equal(tmp_path):
    one, two = (walk(make_feature_tree(tmp_path / name, many=50).path) for name in ("one", "two"))
    assert compare(one, two) == []


def test_a_file_system_without_some_features_has_them_left_out():
    if os.path.ismount("/dev/shm") and file_system("/dev/shm") == "tmpfs":
        path = f"/dev/shm/castore-features-{os.getpid()}"
        try:
            features = make_feature_tree(path, many=10)
            assert compare(walk(path), walk(path)) == []
            assert all(": " in each for each in features.left_out)
        finally:
            shutil.rmtree(path)
    else:
        pytest.skip("no tmpfs at /dev/shm")


@pytest.mark.slow
def test_a_directory_of_100000_files_is_walked(tmp_path):
    features = make_feature_tree(tmp_path / "features", many=100_000)
    assert sum(path.startswith(b"crowd/") for path in walk(features.path)) == 100_000


def _patch(path, data, offset):
    with open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, offset)


def _punch(path):
    subprocess.run(["fallocate", "--punch-hole", "--offset", "0", "--length", "131072", path], check=True)


def _replace(path, make):
    os.unlink(path)
    make(path)


CHANGES = {
    "one byte": lambda p: _patch(p("files/65536"), b"!!!!", 777),
    "length": lambda p: os.truncate(p("files/65536"), 65535),
    "mode": lambda p: os.chmod(p("files/1"), 0o640),
    "time of a file": lambda p: os.utime(p("files/1"), ns=(0, 1)),
    "time of a directory": lambda p: os.utime(p("files"), ns=(0, 1)),
    "time of a link": lambda p: os.utime(p("links/dangling"), ns=(0, 1), follow_symlinks=False),
    "time of the top": lambda p: os.utime(p("."), ns=(0, 1)),
    "a target": lambda p: _replace(p("links/dangling"), lambda path: os.symlink("elsewhere", path)),
    "a name gone": lambda p: os.unlink(p("files/0")),
    "a name more": lambda p: open(p("files/new"), "x").close(),
    "a name changed": lambda p: os.rename(p("files/0"), p("files/00")),
    "a type": lambda p: _replace(p("files/0"), os.mkfifo),
    "a socket": lambda p: _replace(p("special/fifo-b"), _bind),
    "a hard link cut": lambda p: _replace(p("links/small-b"), lambda path: shutil.copy2(p("links/small-a"), path)),
    "a hard link more": lambda p: _replace(p("files/twin-b"), lambda path: os.link(p("files/twin-a"), path)),
    "a hole more": lambda p: _punch(p("files/zeros")),
    "a hole filled": lambda p: _patch(p("sparse/hole-at-end"), bytes(4096), 1 << 20),
    "an attribute's value": lambda p: os.setxattr(p("attributes/file"), "user.binary", b"other"),
    "an attribute gone": lambda p: os.removexattr(p("attributes/directory"), "user.empty"),
}
ROOT_CHANGES = {
    "owner": lambda p: os.chown(p("files/1"), 54321, -1),
    "group": lambda p: os.chown(p("files/1"), -1, 54321),
    "owner of a link": lambda p: os.lchown(p("links/dangling"), 54321, -1),
    "a device number": lambda p: _replace(p("special/null"), lambda path: os.mknod(path, 0o20640, os.makedev(1, 5))),
    "a list gone": lambda p: os.removexattr(p("attributes/acl"), "system.posix_acl_access"),
    "a default list gone": lambda p: os.removexattr(p("attributes/default-acl"), "system.posix_acl_default"),
    "a capability gone": lambda p: os.removexattr(p("attributes/capable"), "security.capability"),
    "an attribute of a link": lambda p: os.removexattr(p("attributes/link"), "trusted.mark", follow_symlinks=False),
}


def _bind(path):
    folder, name = os.path.split(path)
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(folder):  # a socket's name must be short
        server.bind(name)


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    return make_feature_tree(tmp_path_factory.mktemp("oracle") / "features", many=10)


def _seen(features, tmp_path, name, change):
    copy = tmp_path / "copy"
    # A features of the same seed is the same but for times of change, which nobody compares.
    again = make_feature_tree(copy, many=10)
    before = walk(features.path)
    assert compare(before, walk(again.path)) == []
    change(lambda name: os.path.join(again.path, name))
    # Most changes move a time as well, which must not be all that is seen.
    return compare(before, walk(again.path), ignore=() if "time" in name else {"mtime"})


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(grown, tmp_path, name):
    if grown.left_out and not must_be_complete(tmp_path):
        pytest.skip(f"left out here: {grown.left_out}")
    assert _seen(grown, tmp_path, name, CHANGES[name]) != []


@as_root
@pytest.mark.parametrize("name", ROOT_CHANGES)
def test_a_change_that_needs_root_is_seen(grown, tmp_path, name):
    if grown.left_out and not must_be_complete(tmp_path):
        pytest.skip(f"left out here: {grown.left_out}")
    assert _seen(grown, tmp_path, name, ROOT_CHANGES[name]) != []


def test_what_is_ignored_is_not_reported():
    one = {b"x": {"type": 0o100000, "mode": 0o644, "mtime": 1}}
    two = {b"x": {"type": 0o100000, "mode": 0o644, "mtime": 2}}
    assert compare(one, two) == ["'x': mtime is 2, was 1"]
    assert compare(one, two, ignore={"mtime"}) == []
