"""Trees of file systems that misbehave: names listed twice, attributes that cannot be read, mounts of others."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fault_sweep import Machine, compiled, plain_tree


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = compiled(tmp_path_factory.mktemp("faults"))
    if found is None:
        pytest.skip("no C compiler")
    return found


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "machine")
    made.begin()
    made.make_store()
    return made


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in a tmpfs, which stores any time of 64 bits of seconds and any count of attributes."""
    if not os.path.isdir("/dev/shm"):
        pytest.skip("there is no tmpfs at /dev/shm")
    folder = tempfile.mkdtemp(prefix="castore-test-", dir="/dev/shm")
    yield Path(folder)
    shutil.rmtree(folder)


def plant(live: Path) -> None:
    """Make a file of each kind, each with an attribute, and neighbours without."""
    (live / "folder").mkdir()
    (live / "empty").mkdir()
    for name, size in {"a": 300, "b": 300, "folder/large": 500_000, "folder/z": 100}.items():
        (live / name).write_bytes(os.urandom(size))
    os.symlink("a", live / "link")
    for name in ("b", "folder", "folder/large", "empty", ""):
        os.setxattr(live / name, "user.kept", b"kept")
        os.setxattr(live / name, "user.lost", b"lost")


@pytest.mark.parametrize("name", ["b", "folder", "link", "large"])
def test_a_name_that_is_listed_twice_is_stored_once_and_reported(library: Path, machine: Machine, name: str) -> None:
    live = machine.live
    plant(live)
    before = plain_tree(live)
    faults = {"LD_PRELOAD": str(library), "FAULTS_UNDER": str(live), "FAULTS_TWICE": name}
    for _ in range(2):
        taken = machine.run("snapshot", "s", "--tree", f"t={live}", faults=faults)
        assert taken.returncode == 3, taken.stderr
        assert f"{name}: is listed more than once by its file system; it is stored once" in taken.stderr
    machine.must("verify", "--read-data")
    machine.must("restore", "s@latest:t", str(machine.folder / "new"))
    assert plain_tree(machine.folder / "new") == before
    # In place, as well: what is to be removed is removed once.
    (live / "more").mkdir()
    for found in (live / "more" / name, live / "more" / "other"):
        found.touch()
    done = machine.run("restore", "--in-place", "s@2:t", str(live), faults=faults)
    assert done.returncode == 0, done.stderr
    assert plain_tree(live) == before


@pytest.mark.parametrize("lost", ["user.lost", "list"])
def test_unreadable_attributes_are_reported_and_the_content_is_kept(
    library: Path, machine: Machine, lost: str
) -> None:
    live = machine.live
    plant(live)
    before = plain_tree(live)
    faults = {"LD_PRELOAD": str(library), "FAULTS_UNDER": str(live), "FAULTS_XATTR": lost}
    message = "attributes cannot be listed" if lost == "list" else "attribute user.lost cannot be read"
    for _ in range(2):
        taken = machine.run("snapshot", "s", "--tree", f"t={live}", faults=faults)
        assert taken.returncode == 3, taken.stderr
        for name in ("b", "folder", "folder/large", "empty", "."):
            assert f"{name}: {message}: Input/output error" in taken.stderr, (name, taken.stderr)
    machine.must("restore", "s@2:t", str(machine.folder / "new"))
    assert plain_tree(machine.folder / "new") == before
    kept = [] if lost == "list" else ["user.kept"]
    for name in ("b", "folder", "folder/large", "empty", ""):
        assert os.listxattr(machine.folder / "new" / name) == kept
    # What the snapshot could not read is not removed from the live tree.
    (live / "empty" / "new").touch()
    (live / "folder" / "z").write_text("other")
    os.chmod(live / "b", 0o600)
    machine.must("restore", "--in-place", "s@2:t", str(live))
    assert plain_tree(live) == before
    for name in ("b", "folder", "folder/large", "empty", ""):
        assert sorted(os.listxattr(live / name)) == ["user.kept", "user.lost"]
    # The next snapshot reads them again.
    machine.must("snapshot", "s", "--tree", f"t={live}")
    machine.must("restore", "s@3:t", str(machine.folder / "later"))
    assert sorted(os.listxattr(machine.folder / "later" / "folder" / "large")) == ["user.kept", "user.lost"]


def test_a_list_of_attributes_that_is_too_long_does_not_leave_out_the_file(machine: Machine, memory: Path) -> None:
    live = memory
    (live / "a").write_text("content")
    try:
        for number in range(400):
            os.setxattr(live / "a", f"user.{number:0>250}", b"")
    except OSError:
        pass
    with open(live / "a", "rb") as file:
        try:
            os.listxattr(file.fileno())
        except OSError:
            pass
        else:
            pytest.skip("this file system allows no list of more than 64 KiB")
    taken = machine.run("snapshot", "s", "--tree", f"t={live}")
    assert taken.returncode == 3, taken.stderr
    assert "a: attributes cannot be listed" in taken.stderr
    machine.must("restore", "s@1:t", str(machine.folder / "new"))
    assert (machine.folder / "new" / "a").read_text() == "content"


def test_patterns_are_asked_before_an_entry_is_looked_at(library: Path, machine: Machine) -> None:
    live = machine.live
    (live / "mount").mkdir()
    (live / "file").write_text("x")
    faults = {
        "LD_PRELOAD": str(library), "FAULTS_UNDER": str(live / "mount"), "FAULTS_CALLS": "read",
        "FAULTS_ONLY": ",stat,", "FAULTS_AT": "1", "FAULTS_ON": "1", "FAULTS_DO": "13",
    }
    for pattern in ("mount/", "mount", "/mou*", "*\n!file"):
        taken = machine.run("snapshot", "s", "--tree", f"t={live}", *excludes(pattern), faults=faults)
        assert (taken.returncode, taken.stderr.count("mount:")) == (0, 0), (pattern, taken.stderr)
    taken = machine.run("snapshot", "s", "--tree", f"t={live}", "--exclude", "other/", faults=faults)
    assert taken.returncode == 3, taken.stderr
    assert "mount: cannot be read: Permission denied" in taken.stderr
    # A rollback leaves what cannot be looked at alone, and says so.
    machine.must("snapshot", "s", "--tree", f"t={live}")
    done = machine.run("restore", "--in-place", "s@latest:t", str(live), faults=faults)
    assert done.returncode == 3, done.stderr
    assert "mount: is left alone: cannot be read: Permission denied" in done.stderr
    assert (live / "mount").is_dir()


def excludes(patterns: str) -> list[str]:
    return [word for pattern in patterns.split("\n") for word in ("--exclude", pattern)]


def test_a_time_out_of_range_is_clamped_and_reported(machine: Machine, memory: Path) -> None:
    live = memory / "live"
    second = 10**9
    early, late = -(1 << 63), (1 << 64) - 1
    times = {"folder": 18_600_000_000, "a": 20_000_000_000, "folder/large": -60_000_000_000}
    times |= {"link": -(1 << 40), "": 1 << 40}
    (live / "folder").mkdir(parents=True)
    (live / "a").write_text("small")
    (live / "folder" / "large").write_bytes(os.urandom(300_000))
    os.link(live / "folder" / "large", live / "folder" / "other")
    (live / "b").write_text("as usual")
    os.symlink("a", live / "link")
    for name, time in times.items():
        os.utime(live / name, ns=(0, time * second), follow_symlinks=False)
    assert os.stat(live).st_mtime_ns == second << 40
    for _ in range(2):
        taken = machine.run("snapshot", "s", "--tree", f"t={live}")
        assert taken.returncode == 3, taken.stderr
        for name in times:
            assert f"t:{name or '.'}: modification time out of range" in taken.stderr, taken.stderr
    machine.must("restore", "s@2:t", str(memory / "new"))
    for name, time in times.items():
        wanted = min(max(time * second, early), late)
        assert os.lstat(memory / "new" / name).st_mtime_ns == wanted, name
    assert "2554" in machine.must("ls", "s@2:t")
    # The live times count as the stored ones.
    assert ": 0 steps" in machine.must("restore", "--in-place", "--dry-run", "s@2:t", str(live))
    (live / "a").write_text("changed")
    os.chmod(live / "folder", 0o711)
    machine.must("restore", "--in-place", "s@2:t", str(live))
    assert (live / "a").read_text() == "small"
    assert os.stat(live / "a").st_mtime_ns == late


def test_a_dump_of_a_file_with_such_a_time_comes_back(machine: Machine, memory: Path) -> None:
    live = memory / "file"
    live.write_text("content")
    os.utime(live, ns=(0, 10**9 << 40))
    machine.must("snapshot", "s", "--dump", f"d={live}")
    live.write_text("other")
    os.utime(live, ns=(0, 10**9 << 40))
    machine.must("rollback", "s", "--to", "1")
    assert live.read_text() == "content"
