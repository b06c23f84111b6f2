"""What a restore in place and a rollback never delete or empty: own files, what no snapshot could list."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.fault_sweep import compiled

_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def tree(tmp_path):
    tree = tmp_path / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "a" / "one").write_text("1")
    (tree / "two").write_text("2")
    return tree


@pytest.fixture(scope="module")
def unlistable(tmp_path_factory):
    """An environment in which a directory cannot be listed."""
    library = compiled(tmp_path_factory.mktemp("faults"))
    if library is None:
        pytest.skip("no C compiler")

    def of(path: Path) -> dict[str, str]:
        faults = {"UNDER": str(path), "CALLS": "read", "ONLY": ",getdents,", "AT": "1", "ON": "any", "DO": "5"}
        return {"LD_PRELOAD": str(library), **{f"FAULTS_{name}": value for name, value in faults.items()}}

    return of


def test_a_tree_whose_top_cannot_be_listed_is_not_stored_as_empty(castore, home, tree, unlistable):
    castore("init")
    done = castore("snapshot", "app", "--tree", f"t={tree}", env=unlistable(tree), expect=1)
    assert "cannot be listed: Input/output error" in done.stderr
    castore("log", "app", expect=6)


def test_a_directory_that_could_not_be_listed_is_not_emptied(castore, home, tree, unlistable):
    castore("init")
    castore("snapshot", "app", "--tree", f"t={tree}", env=unlistable(tree / "a"), expect=3)
    done = castore("restore", "--in-place", "app@latest:t/a", tree / "a", expect=3)
    assert "left alone" in done.stderr
    assert (tree / "a" / "one").read_text() == "1"


@pytest.mark.parametrize("place", ["store/packs", ".local/state/castore"])
def test_the_place_of_a_restore_is_never_castores_own(castore, home, tree, place):
    castore("init", "store")
    store = ("--store", str(home / "store"))
    castore("snapshot", "app", "--tree", f"t={tree}", *store)
    done = castore("restore", "--in-place", "--yes", "app@latest:t", home / place, *store, expect=2)
    assert "where castore keeps its own files" in done.stderr
    castore("verify", "--read-data", *store)


def test_an_identity_in_the_directory_is_left(castore, home, tree):
    made = castore("init").stdout
    (identity,) = home.rglob("*.identity")
    assert str(identity) in made
    castore("snapshot", "app", "--tree", f"t={tree}")
    castore("restore", "--in-place", "--yes", "app@latest:t", home)
    assert identity.exists()
    castore("cat", "app@latest:t/two")


def test_an_empty_generation_empties_its_place_only_when_asked(castore, home, tree):
    castore("init")
    kept = tree.with_name("kept")
    tree.rename(kept)
    tree.mkdir()  # a file system that was not mounted
    castore("snapshot", "app", "--tree", f"t={tree}")
    tree.rmdir()
    kept.rename(tree)
    done = castore("restore", "--in-place", "app@latest:t", tree, expect=2)
    assert "would become empty" in done.stderr
    assert (tree / "a" / "one").exists()
    castore("restore", "--in-place", "--yes", "app@latest:t", tree)
    assert os.listdir(tree) == []


@_root
def test_what_is_immutable_or_append_only_stops_a_restore_before_it_begins(castore, home, tree):
    if shutil.which("chattr") is None:
        pytest.skip("there is no chattr")
    castore("init")
    castore("snapshot", "app", "--tree", f"t={tree}")
    (tree / "a" / "one").write_text("changed")
    (tree / "two").write_text("changed")
    for flag, place in [("i", "two"), ("a", "a"), ("a", "."), ("i", ".")]:
        if subprocess.run(["chattr", f"+{flag}", tree / place], capture_output=True, check=False).returncode:
            pytest.skip("a file system without such flags")
        try:
            done = castore("restore", "--in-place", "app@latest:t", tree, expect=1)
        finally:
            subprocess.run(["chattr", f"-{flag}", tree / place], check=True)
        assert "nothing was changed" in done.stderr
        assert (tree / "two").read_text() == (tree / "a" / "one").read_text() == "changed"
        assert sorted(os.listdir(tree)) == ["a", "two"]
    castore("restore", "--in-place", "app@latest:t", tree)
    assert (tree / "two").read_text() == "2"


@_root
def test_what_is_mounted_read_only_and_differs_is_left_and_reported(castore, home, tree, tmp_path):
    castore("init")
    other = tmp_path / "other"
    other.mkdir()
    (other / "one").write_text("other")
    (tmp_path / "file").write_text("other")
    castore("snapshot", "app", "--tree", f"t={tree}")
    mounts = [(other, tree / "a"), (tmp_path / "file", tree / "two")]
    made = []
    try:
        for source, point in mounts:
            for command in (["--bind", source, point], ["-o", "remount,ro,bind", point]):
                if subprocess.run(["mount", *command], capture_output=True, check=False).returncode:
                    pytest.skip("mounting is not allowed here")
            made.append(point)
        (tree / "three").write_text("3")
        done = castore("restore", "--in-place", "app@latest:t", tree, expect=3)
    finally:
        for point in made:
            subprocess.run(["umount", point], check=True)
    assert done.stderr.count("mounted read-only") == 2
    assert sorted(os.listdir(tree)) == ["a", "two"]


def test_the_lost_and_found_of_a_tree_is_restored_into_that_of_a_new_file_system(castore, home, tree, tmp_path):
    (tree / "lost+found").mkdir()
    (tree / "lost+found" / "#12").write_text("found")
    castore("init")
    castore("snapshot", "app", "--tree", f"t={tree}")
    fresh = tmp_path / "fresh"
    (fresh / "lost+found").mkdir(parents=True)
    castore("restore", "app@latest:t", fresh)
    assert (fresh / "lost+found" / "#12").read_text() == "found"
    shutil.rmtree(fresh)
    fresh.mkdir()
    (fresh / "lost+found").symlink_to(tree)
    castore("restore", "app@latest:t", fresh, expect=2)


def test_a_file_of_a_file_system_without_sizes_is_stored_with_its_content(castore, home):
    version = Path("/proc/sys/kernel/ostype")
    if not version.exists():
        pytest.skip("there is no /proc")
    castore("init")
    castore("snapshot", "app", "--tree", "t=/proc/sys/kernel", "--exclude", "*", "--exclude", "!ostype")
    assert castore("cat", "app@latest:t/ostype").stdout == version.read_text()
    castore("snapshot", "app", "--tree", "t=/proc/sys/kernel", "--exclude", "*", "--exclude", "!ostype")
    assert castore("cat", "app@latest:t/ostype").stdout == version.read_text()


@_root
def test_a_swap_file_in_use_is_left(castore, home, tree):
    castore("init")
    castore("snapshot", "app", "--tree", f"t={tree}")
    swap = tree / "swap"
    swap.write_bytes(bytes(1 << 20))
    swap.chmod(0o600)
    if shutil.which("mkswap") is None or subprocess.run(["mkswap", "-q", swap], check=False).returncode:
        pytest.skip("there is no mkswap")
    if subprocess.run(["swapon", swap], capture_output=True, check=False).returncode:
        pytest.skip("swap is not allowed here")
    try:
        (tree / "two").write_text("changed")
        done = castore("restore", "--in-place", "app@latest:t", tree, expect=3)
    finally:
        subprocess.run(["swapoff", swap], check=True)
    assert "swap: is in use" in done.stderr
    assert (tree / "two").read_text() == "2"


def test_an_access_control_list_of_an_existing_destination_is_not_that_of_the_tree(castore, home, tree, tmp_path):
    castore("init")
    castore("snapshot", "app", "--tree", f"t={tree}")
    target = tmp_path / "target"
    target.mkdir()
    given = ["setfacl", "-m", "u:1234:rwx,d:u:1234:rwx", target]
    if shutil.which("setfacl") is None or subprocess.run(given, capture_output=True, check=False).returncode:
        pytest.skip("no access control lists here")
    castore("restore", "app@latest:t", target)
    assert [name for name in os.listxattr(target) if "acl" in name] == []


@_root
def test_a_time_that_a_file_system_cannot_hold_is_reported_by_a_restore(castore, home, tree, tmp_path):
    image, old = tmp_path / "image", tmp_path / "old"
    old.mkdir()
    with open(image, "wb") as file:
        file.truncate(8 << 20)
    made = shutil.which("mkfs.ext4") and not subprocess.run(
        ["mkfs.ext4", "-q", "-I", "128", image], capture_output=True, check=False
    ).returncode
    if not made or subprocess.run(["mount", "-o", "loop", image, old], capture_output=True, check=False).returncode:
        pytest.skip("no file system that ends in 2038 can be mounted")
    try:
        (tree / "link").symlink_to("two")
        for path in (tree / "two", tree / "link", tree / "a"):
            os.utime(path, (1 << 32, 1 << 32), follow_symlinks=False)
        castore("init")
        castore("snapshot", "app", "--tree", f"t={tree}")
        done = castore("restore", "app@latest:t", old, expect=3)
        done_in_place = castore("restore", "--in-place", "--yes", "app@latest:t", old, expect=3)
        assert (old / "two").read_text() == "2"
    finally:
        subprocess.run(["umount", old], check=True)
    assert done.stderr.count("time is out of range for this file system") == 3
    assert "time is out of range" in done_in_place.stderr
