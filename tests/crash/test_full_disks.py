"""Disks that fill up, vanish, or turn read-only under castore: it says so, loses nothing, and goes on later."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MB = 1_000_000
SIZE = 64

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems")


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    point = tmp_path / "disk"
    point.mkdir()
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "castore-test", str(point)]
    else:
        image = tmp_path / "image"
        with open(image, "wb") as file:
            file.truncate(SIZE << 20)
        # Nothing is set aside for root, and no journal takes from the little there is.
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image], check=True, capture_output=True)
        command = ["mount", "-t", "ext4", "-o", "loop", str(image), str(point)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{request.param} cannot be mounted here: {done.stderr.strip()}")
    try:
        yield point
    finally:
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def numbers(castore: Callable) -> list[int]:
    return [one["number"] for one in json.loads(castore("log", "--json").stdout)]


def is_whole(castore: Callable, kept: dict[int, bytes]) -> None:
    """What was acknowledged is listed, nothing else is, and all of it restores."""
    assert numbers(castore) == sorted(kept, reverse=True)
    castore("verify", "--read-data")
    for number, data in kept.items():
        assert castore("cat", f"web@#{number}:d", binary=True).stdout == data


def check_message(done: subprocess.CompletedProcess, *words: str) -> None:
    lines = done.stderr.strip().splitlines()
    assert lines
    assert lines[-1].startswith("castore: ")
    assert "Traceback" not in done.stderr
    assert "mistake in castore" not in done.stderr
    for word in words:
        assert word in lines[-1], lines


def fill(disk: Path, leave: int = 0) -> Path:
    """Take all that is free of a disk, but for some bytes."""
    path = disk / "ballast"
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                free = os.statvfs(disk)
                room = free.f_bavail * free.f_frsize - leave
                if room <= 0:
                    break
                file.write(bytes(min(room, MB)))
        except OSError:
            pass
        os.fsync(file.fileno())
    return path


@pytest.fixture
def kept(castore: Callable, home: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, bytes]:
    """Two generations in a store on the disk."""
    monkeypatch.setenv("CASTORE_STORE", str(disk / "store"))
    castore("init", disk / "store")
    found = {}
    for number in (1, 2):
        found[number] = noise(number, 12 * MB)
        (home / "dump").write_bytes(found[number])
        castore("snapshot", "web", "--dump", "d=dump")
    return found


def test_a_store_that_fills_up_loses_nothing_and_can_be_cleared(
    castore: Callable, home: Path, disk: Path, kept: dict[int, bytes]
) -> None:
    (home / "dump").write_bytes(noise(3, 60 * MB))
    done = castore("snapshot", "web", "--dump", "d=dump", expect=1)
    check_message(done, str(disk / "store"), "No space left on device", "free some space")
    assert os.listdir(disk / "store" / "tmp") == []
    is_whole(castore, kept)
    # With no space left at all, generations can still be forgotten, which makes room.
    ballast = fill(disk)
    before = os.statvfs(disk).f_bavail
    castore("forget", "--yes", "web@#1")
    del kept[1]
    castore("compact")
    assert os.statvfs(disk).f_bavail > before + (8 * MB) // os.statvfs(disk).f_frsize
    is_whole(castore, kept)
    kept[3] = noise(4, 5 * MB)
    (home / "dump").write_bytes(kept[3])
    castore("snapshot", "web", "--dump", "d=dump")
    is_whole(castore, kept)
    ballast.unlink()


def test_prune_on_a_full_disk_frees_what_it_can(castore: Callable, home: Path, disk: Path, kept: dict[int, bytes]) -> None:
    (home / "castore.toml").write_text("[service.web.keep]\nlast = 1\nper-revision = 0\n")
    ballast = fill(disk)
    before = os.statvfs(disk).f_bavail
    castore("prune")
    assert os.statvfs(disk).f_bavail > before + (8 * MB) // os.statvfs(disk).f_frsize
    del kept[1]
    is_whole(castore, kept)
    ballast.unlink()


def test_compaction_that_has_no_room_to_move_says_so(castore: Callable, home: Path, disk: Path, kept: dict[int, bytes]) -> None:
    """Rewriting packs before any are deleted needs space: nothing is lost without it."""
    (home / "dump").write_bytes(kept[1][: 8 * MB])
    castore("snapshot", "web", "--dump", "d=dump")
    castore("forget", "--yes", "web@#1")
    kept[3] = kept.pop(1)[: 8 * MB]
    ballast = fill(disk)
    done = castore("compact", expect=1)
    check_message(done, str(disk / "store"), "No space left")
    is_whole(castore, kept)
    ballast.unlink()
    castore("compact")
    is_whole(castore, kept)


@pytest.mark.parametrize("what", ["CACHE", "STATE"])
def test_a_full_disk_of_the_machine_s_own_state_is_reported(
    castore: Callable, home: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv(f"XDG_{what}_HOME", str(disk / "own"))
    monkeypatch.setenv("CASTORE_STORE", str(home / "store"))
    castore("init", home / "store")
    kept = {1: noise(1, 5 * MB)}
    (home / "dump").write_bytes(kept[1])
    castore("snapshot", "web", "--dump", "d=dump")
    ballast = fill(disk)
    (home / "dump").write_bytes(noise(2, 9 * MB))
    done = castore("snapshot", "web", "--dump", "d=dump", expect=None)
    if done.returncode in {0, 3}:
        kept[2] = noise(2, 9 * MB)
    if done.returncode:
        check_message(done, str(disk / "own"))
    ballast.unlink()
    is_whole(castore, kept)
    number = max(kept) + 1
    kept[number] = noise(3, 4 * MB)
    (home / "dump").write_bytes(kept[number])
    castore("snapshot", "web", "--dump", "d=dump")
    is_whole(castore, kept)


def test_a_full_tmp_does_not_matter(castore: Callable, home: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(disk))
    monkeypatch.setenv("CASTORE_STORE", str(home / "store"))
    castore("init", home / "store")
    ballast = fill(disk)
    kept = {1: noise(1, 5 * MB)}
    (home / "dump").write_bytes(kept[1])
    castore("snapshot", "web", "--dump", "d=dump")
    is_whole(castore, kept)
    castore("restore", "web@1", home / "out")
    castore("compact")
    ballast.unlink()


def slow_snapshot(home: Path, store: Path) -> subprocess.Popen[bytes]:
    """Begin a snapshot of a program that writes, waits until it may go on, and writes more."""
    import sys

    script = home / "slow.py"
    script.write_text(
        "import os, random, sys, time\n"
        "out = sys.stdout.buffer\n"
        "out.write(random.Random(8).randbytes(6_000_000)); out.flush()\n"
        "open('begun', 'w').close()\n"
        "while not os.path.exists('go'):\n    time.sleep(0.01)\n"
        "out.write(random.Random(9).randbytes(6_000_000)); out.flush()\n"
    )
    command = [sys.executable, "-m", "castore", "snapshot", "web", "--exec", f"d={sys.executable} {script}"]
    process = subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (home / "begun").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def ended(process: subprocess.Popen[bytes]) -> subprocess.CompletedProcess[str]:
    try:
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
    return subprocess.CompletedProcess((), process.returncode, out.decode(), err.decode())


def test_a_vanished_disk_is_reported_and_nothing_is_written_at_its_mount_point(
    castore: Callable, home: Path, disk: Path, kept: dict[int, bytes]
) -> None:
    process = slow_snapshot(home, disk)

    other = home / "elsewhere"
    other.mkdir()
    subprocess.run(["mount", "--bind", disk, other], check=True)
    subprocess.run(["umount", "--lazy", disk], check=True)
    try:
        (home / "go").touch()
        done = ended(process)
        assert done.returncode == 1, done
        check_message(done, str(disk / "store"))
        # Where it was mounted, nothing is created.
        assert os.listdir(disk) == []
        check_message(castore("log", expect=6), f"no store at {disk / 'store'}")
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["mount", "--move", other, disk], check=False)
        if not (disk / "store").exists():
            subprocess.run(["mount", "--bind", other, disk], check=True)
            subprocess.run(["umount", "--lazy", other], check=True)

    is_whole(castore, kept)
    kept[3] = noise(3, MB)
    (home / "dump").write_bytes(kept[3])
    castore("snapshot", "web", "--dump", "d=dump")
    is_whole(castore, kept)


def test_a_disk_that_turns_read_only_is_reported(castore: Callable, home: Path, disk: Path, kept: dict[int, bytes]) -> None:
    process = slow_snapshot(home, disk)
    # What is open for writing keeps a file system from turning read-only, but not a bind mount of it.
    subprocess.run(["mount", "--bind", disk, disk], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", disk], check=True)
    try:
        (home / "go").touch()
        done = ended(process)
        assert done.returncode == 1, done
        check_message(done, str(disk / "store"), "Read-only file system", "mounted read-only")
        is_whole(castore, kept)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
    is_whole(castore, kept)
    kept[3] = noise(3, MB)
    (home / "dump").write_bytes(kept[3])
    castore("snapshot", "web", "--dump", "d=dump")
    is_whole(castore, kept)


def test_a_store_that_is_read_only_can_be_read(castore: Callable, home: Path, disk: Path, kept: dict[int, bytes]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    is_whole(castore, kept)
    shutil.rmtree(home / ".cache")
    is_whole(castore, kept)
    castore("stats")
    castore("ls", "web@1:d", expect=None)
    castore("restore", "web@2", home / "out")
    assert (home / "out" / "d").read_bytes() == kept[2]
    castore("reindex")
    castore("prune", "--dry-run")
    for words in (("snapshot", "web", "--dump", "d=dump"), ("forget", "--yes", "web@1"), ("pin", "web@1")):
        (home / "dump").write_bytes(noise(5, MB))
        check_message(castore(*words, expect=1), str(disk / "store"), "Read-only file system", "mounted read-only")
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    is_whole(castore, kept)
