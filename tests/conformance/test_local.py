"""A local directory keeps the contract of storage, and says so when the file system does not."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

from castore.errors import (
    NotFoundError,
    ObjectExistsError,
    ObjectMissingError,
    StorageError,
)
from castore.storage import LocalStorage
from castore.storage.os_files import Files
from tests.conformance.storage import MEBI, StorageContract, contents, machine


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / "store")


@pytest.fixture
def storage(root):
    return LocalStorage(root, create=True)


class TestLocalStorage(StorageContract):
    """The suite, on a directory."""


@pytest.fixture(scope="module")
def shelf():
    """A directory for the many stores of the state machine."""
    with tempfile.TemporaryDirectory() as path:
        _shelves.append(path)
        yield path
        _shelves.remove(path)


_shelves: list[str] = []


def _fresh() -> LocalStorage:
    return LocalStorage(tempfile.mkdtemp(dir=_shelves[-1]), create=True)


@pytest.mark.usefixtures("shelf")
class TestLocalStorageAgainstADict(machine(_fresh)):
    """The state machine, on a directory."""


def temporary(root):
    return os.listdir(os.path.join(root, "tmp"))


# Leftovers


def test_nothing_is_left_in_tmp(root, storage):
    storage.put("packs/ab", b"x")
    with storage.create() as writer:
        writer.write(b"y")
    storage.create().abort()
    assert temporary(root) == []


def test_a_lost_race_leaves_nothing_in_tmp(root, storage):
    storage.put("packs/ab", b"x")
    with pytest.raises(ObjectExistsError):
        storage.put("packs/ab", b"y" * MEBI)
    assert temporary(root) == []


def test_objects_are_for_their_owner_only(root, storage):
    storage.put("packs/ab", b"x")
    assert os.stat(os.path.join(root, "packs/ab")).st_mode & 0o077 == 0


def test_files_of_killed_writers_are_swept_when_they_are_old(root, storage):
    for name, age in (("old", 100), ("young", 10)):
        path = os.path.join(root, "tmp", name)
        with open(path, "x"):
            pass
        when = time.time() - age
        os.utime(path, (when, when))
    LocalStorage(root)
    assert temporary(root) == ["young"]


def test_what_a_killed_writer_left_goes_and_what_another_is_writing_stays(root, storage):
    script = (
        "import sys, signal; from castore.storage import LocalStorage; "
        "writer = LocalStorage(sys.argv[1]).create(); writer.write(b'x'); print('ready', flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", script, root], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        (name,) = temporary(root)
        when = time.time() - 100
        os.utime(os.path.join(root, "tmp", name), (when, when))
        LocalStorage(root)
        assert temporary(root) == [name]
        process.kill()
        process.wait()
    # Where other machines write, too, nobody here knows whether they still do.
    os.mkdir(os.path.join(root, "flags"))
    with open(os.path.join(root, "flags", "shared"), "x"):
        pass
    LocalStorage(root)
    assert temporary(root) == [name]
    shutil.rmtree(os.path.join(root, "flags"))
    LocalStorage(root)
    assert temporary(root) == []


def test_descriptors_are_closed(storage):
    before = len(os.listdir("/proc/self/fd"))
    storage.put("packs/ab", b"x")
    for _ in range(50):
        storage.create().abort()
        storage.get("packs/ab")
        with pytest.raises(ObjectExistsError):
            storage.put("packs/ab", b"x")
        with pytest.raises(ObjectMissingError):
            storage.get("packs/cd")
    assert len(os.listdir("/proc/self/fd")) == before


# A place that is none


def test_a_directory_that_is_not_there_is_no_store(root):
    with pytest.raises(NotFoundError, match=f"{root}.*no such directory"):
        LocalStorage(root)



def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotFoundError, match=f"{tmp_path}/file.*not a directory"):
        LocalStorage(str(tmp_path / "file"))


def test_a_relative_path_is_kept_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = LocalStorage("store", create=True)
    monkeypatch.chdir("/")
    storage.put("packs/ab", b"x")
    assert storage.location == str(tmp_path / "store")


# File systems that refuse


@contextlib.contextmanager
def mounted(path, options):
    """A tmpfs at `path`."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    os.makedirs(path)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "castore-test", path], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"mount is refused: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def test_a_full_disk_is_reported_and_committed_objects_stay(root):
    with mounted(root, "size=256k"):
        storage = LocalStorage(root, create=True)
        storage.put("packs/ab", b"before")
        with storage.create() as writer:
            with pytest.raises(StorageError, match=f"{root}.*No space left.*free some") as first:
                writer.write(random.Random(1).randbytes(MEBI))
            for again in (lambda: writer.write(b"x"), lambda: writer.commit("packs/cd")):
                with pytest.raises(StorageError) as error:
                    again()
                assert error.value is first.value
        assert contents(storage) == {"packs/ab": b"before"}
        assert temporary(root) == []
        storage.put("packs/cd", b"x" * 100_000)
        assert storage.size("packs/cd") == 100_000


def test_a_disk_that_fills_with_many_writes_is_reported(root):
    with mounted(root, "size=256k"):
        storage = LocalStorage(root, create=True)
        with pytest.raises(StorageError, match=root), storage.create() as writer:
            for _ in range(100):
                writer.write(b"x" * 4096)
            pytest.fail("400 kB went into 256 kB")
        assert temporary(root) == []


def test_a_disk_without_room_for_a_folder_leaves_nothing(root):
    with mounted(root, "size=256k,nr_inodes=4"):
        storage = LocalStorage(root, create=True)
        with storage.create() as writer:
            writer.write(b"x")
            with open(os.path.join(root, "last"), "x"), pytest.raises(StorageError, match=f"{root}.*No space"):
                writer.commit("packs/ab")
        os.unlink(os.path.join(root, "last"))
        assert contents(storage) == {}
        assert temporary(root) == []


def test_a_disk_without_room_for_a_file_is_reported(root):
    with mounted(root, "size=256k,nr_inodes=3"):
        storage = LocalStorage(root, create=True)
        with open(os.path.join(root, "last"), "x"), pytest.raises(StorageError, match=f"{root}.*No space"):
            storage.create()


def test_a_read_only_file_system_is_reported_and_can_be_read(root):
    with mounted(root, "size=1m"):
        LocalStorage(root, create=True).put("packs/ab", b"before")
        subprocess.run(["mount", "-o", "remount,ro", root], check=True)
        storage = LocalStorage(root)
        assert storage.get("packs/ab") == b"before"
        with pytest.raises(StorageError, match=f"{root}.*read-only"):
            storage.put("packs/cd", b"x")
        with pytest.raises(StorageError, match=f"{root}/packs/ab.*read-only"):
            storage.delete("packs/ab")
        assert contents(storage) == {"packs/ab": b"before"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_is_no_store_is_reported(root, storage):
    os.chmod(os.path.join(root, "tmp"), 0o500)
    with pytest.raises(StorageError, match=f"{root}.*a user who may"):
        storage.put("packs/ab", b"x")


# A directory that vanishes


@pytest.fixture
def vanished(root, storage):
    """A storage whose directory went away after it was opened."""
    storage.put("packs/ab", b"x")
    shutil.rmtree(root)
    return storage


def test_a_vanished_directory_takes_nothing(root, vanished):
    with pytest.raises(StorageError, match=root):
        vanished.create()
    assert not os.path.exists(root)


def test_a_vanished_directory_gives_nothing(root, vanished):
    for ask in (vanished.get, vanished.size, vanished.delete):
        with pytest.raises(StorageError, match=root):
            ask("packs/ab")


def test_a_vanished_directory_is_not_taken_for_an_empty_store(root, vanished):
    with pytest.raises(StorageError, match=root):
        list(vanished.list("packs"))


def test_a_directory_that_vanishes_under_a_writer_is_reported(root, storage):
    with storage.create() as writer:
        writer.write(b"x")
        shutil.rmtree(root)
        with pytest.raises(StorageError, match=root):
            writer.commit("packs/ab")
    assert not os.path.exists(os.path.join(root, "packs", "ab"))


def test_an_object_that_is_a_directory_is_reported(root, storage):
    os.makedirs(os.path.join(root, "packs", "ab"))
    for ask in (storage.get, storage.delete):
        with pytest.raises(StorageError, match=f"{root}/packs/ab"):
            ask("packs/ab")


class Halving(Files):
    """A file system that takes half of what it is given."""

    def write(self, descriptor, data):
        return os.write(descriptor, data[: (len(data) + 1) // 2])


def test_short_writes_are_continued(root, storage):
    data = os.urandom(100_000)
    LocalStorage(root, files=Halving()).put("packs/a", data)
    assert storage.get("packs/a") == data
