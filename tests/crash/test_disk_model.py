"""The disk that loses its power: while it has power it is a file system like others; and what it may lose."""

from __future__ import annotations

import errno
import random

import pytest

from castore.storage import LocalStorage
from castore.storage.os_files import Files
from tests.conformance.storage import StorageContract
from tests.support.power_loss_disk import AFTER, ON, ONCE, Disk, DiskFiles, Fault, State, cuts


@pytest.fixture
def storage():
    return LocalStorage("/srv/store", create=True, files=DiskFiles(Disk()))


class TestLocalStorageOnAModel(StorageContract):
    """The contract of storage, on the disk of these tests."""


# As other file systems are


def _step(files: Files, top: str, chance: random.Random):
    """Do something; return what came of it."""
    paths = [f"{top}/{name}" for name in ("a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "x/y")]
    operation = chance.choice(
        ["create", "open", "link", "rename", "unlink", "mkdir", "listdir", "stat", "exists", "is_directory", "sync"]
    )
    path, other = chance.choice(paths), chance.choice(paths)
    data, offset, length = chance.randbytes(chance.randint(0, 50)), chance.randint(0, 60), chance.randint(1, 60)
    try:
        match operation:
            case "create":
                descriptor = files.create(path)
                found = files.write(descriptor, data)
                files.fsync(descriptor)
                files.close(descriptor)
            case "open":
                descriptor = files.open(path)
                try:
                    found = files.length(descriptor), files.pread(descriptor, length, offset)
                finally:
                    files.close(descriptor)
            case "link":
                found = files.link(path, other)
            case "rename":
                if files.exists(other) or files.is_directory(path):
                    return operation, None  # never asked for
                found = files.rename(path, other)
            case "listdir":
                found = sorted(files.listdir(path))
            case "stat":
                found = None if files.is_directory(path) else files.stat(path)[0]
            case "sync":
                found = files.sync_directory(path)
            case _:
                found = getattr(files, operation)(path)
    except OSError as error:
        # Which of two reasons a system gives first is its own business.
        reported = operation != "rename" and error.errno in {errno.ENOENT, errno.EEXIST}
        return operation, type(error) if reported else OSError
    return operation, found


@pytest.mark.parametrize("seed", range(20))
def test_with_power_it_does_what_a_real_one_does(tmp_path, seed: int) -> None:
    model = DiskFiles(Disk())
    model.mkdir("/top")
    for number in range(400):
        real, own = (
            _step(files, top, random.Random(f"{seed} {number}"))
            for files, top in ((Files(), str(tmp_path)), (model, "/top"))
        )
        assert own == real, f"operation {number}"


# What is lost


@pytest.fixture
def files() -> DiskFiles:
    files = DiskFiles(Disk())
    files.mkdir("/d")
    files.sync_directory("/")
    return files


def write(files: DiskFiles, path: str, *pieces: bytes, sync: bool = False) -> None:
    descriptor = files.create(path)
    for piece in pieces:
        files.write(descriptor, piece)
    if sync:
        files.fsync(descriptor)
    files.close(descriptor)


def all_losses(files: DiskFiles, draws: int = 300) -> list[State]:
    return [state for _, state in files.disk.losses(random.Random(1), draws)]


def test_a_synced_file_has_no_durable_name(files: DiskFiles) -> None:
    write(files, "/d/a", b"x", sync=True)
    assert files.disk.worst().files == {}
    assert files.disk.live().files == {"/d/a": b"x"}
    files.sync_directory("/d")
    assert files.disk.worst().files == {"/d/a": b"x"}


def test_a_durable_name_has_no_durable_bytes(files: DiskFiles) -> None:
    write(files, "/d/a", b"abc", b"def")
    files.sync_directory("/d")
    found = {state.files["/d/a"] for state in all_losses(files)}
    torn = {b"abcdef"[:length] for length in range(7)}
    assert torn < found
    assert {b"\0\0\0\0\0\0", b"abc\0\0\0", b"\0\0\0def"} < found


def test_entries_are_kept_or_lost_apart_and_in_any_order(files: DiskFiles) -> None:
    for name in "abc":
        write(files, f"/d/{name}", name.encode(), sync=True)
    found = {frozenset(state.files) for state in all_losses(files)}
    assert len(found) == 8


def test_a_directory_of_which_the_name_is_lost_is_lost_with_all_in_it(files: DiskFiles) -> None:
    files.mkdir("/d/e")
    write(files, "/d/e/a", b"x", sync=True)
    files.sync_directory("/d/e")
    assert files.disk.worst() == State({}, frozenset({"/d"}))
    files.sync_directory("/d")
    assert files.disk.worst() == State({"/d/e/a": b"x"}, frozenset({"/d", "/d/e"}))


def test_a_removal_may_be_undone(files: DiskFiles) -> None:
    write(files, "/d/a", b"x", sync=True)
    files.sync_directory("/d")
    files.unlink("/d/a")
    assert {frozenset(state.files) for state in all_losses(files)} == {frozenset(), frozenset({"/d/a"})}
    files.sync_directory("/d")
    assert {frozenset(state.files) for state in all_losses(files)} == {frozenset()}


def test_an_entry_is_what_it_was_at_some_moment(files: DiskFiles) -> None:
    for content in (b"first", b"second"):
        write(files, "/d/a", content, sync=True)
        files.unlink("/d/a")
    assert {state.files.get("/d/a") for state in all_losses(files)} == {None, b"first", b"second"}


def test_a_rename_may_leave_both_names_or_neither(files: DiskFiles) -> None:
    write(files, "/d/a", b"x", sync=True)
    files.sync_directory("/d")
    files.rename("/d/a", "/d/b")
    assert {frozenset(state.files) for state in all_losses(files)} == {
        frozenset(names) for names in ({}, {"/d/a"}, {"/d/b"}, {"/d/a", "/d/b"})
    }


def test_what_a_failed_sync_did_not_write_is_never_written(files: DiskFiles) -> None:
    descriptor = files.create("/d/a")
    files.write(descriptor, b"x")
    files.fault = Fault(0, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        files.fsync(descriptor)
    files.fsync(descriptor)
    files.sync_directory("/d")
    assert files.disk.worst().files == {"/d/a": b""}


def test_a_log_gives_every_moment_again(files: DiskFiles) -> None:
    write(files, "/d/a", b"x", sync=True)
    files.disk.mark("written")
    files.sync_directory("/d")
    found = list(cuts(files.disk.log, random.Random(1), 2))
    assert [cut.known for cut in found] == [None] * (len(found) - 2) + ["written"] * 2
    assert dict(found[-1].losses)["nothing that was not synced"].files == {"/d/a": b"x"}
    assert dict(found[-2].losses)["nothing that was not synced"].files == {}
    assert Disk(files.disk.live()).worst() == files.disk.live()


@pytest.mark.parametrize(("mode", "done", "refused"), [(ONCE, [2], [1]), (ON, [], [1, 2]), (AFTER, [1, 2], [1])])
def test_faults_are_once_or_from_then_on_or_a_lie(files: DiskFiles, mode: str, done: list, refused: list) -> None:
    files.fault = Fault(0, errno.EIO, mode)
    reported = []
    for number in (1, 2):
        try:
            files.mkdir(f"/d/{number}")
        except OSError as error:
            assert error.errno == errno.EIO
            reported.append(number)
    assert reported == refused
    assert [number for number in (1, 2) if files.exists(f"/d/{number}")] == done
