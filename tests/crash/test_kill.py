"""A snapshot that is killed, interrupted, or out of space: what was committed is whole, the rest is reused."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = 200_000_000
POINTS = (0.25, 0.5, 0.75, 0.88, 0.97)
"""When to kill, as parts of the time that a snapshot takes."""


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A large dump that does not compress, and is the same in every run."""
    path = tmp_path_factory.mktemp("big") / "dump"
    rng = random.Random(1)
    with open(path, "wb") as file:
        file.writelines(rng.randbytes(10_000_000) for _ in range(SIZE // 10_000_000))
    yield path
    path.unlink()


@pytest.fixture
def store(castore: Callable, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # In memory where there is room: a killed process, unlike a lost power, leaves what was not synced.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) and _free("/dev/shm") > 3 * SIZE else None
    with tempfile.TemporaryDirectory(prefix="castore-crash-", dir=memory) as folder:
        path = Path(folder, "store")
        monkeypatch.setenv("CASTORE_STORE", str(path))
        castore("init", path)
        yield path


def _free(path: str) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def start(home: Path, *args: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "castore", "snapshot", "s", "--json", *args]
    return subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def objects(store: Path) -> dict[str, set[str]]:
    return {folder.name: set(os.listdir(folder)) for folder in store.iterdir()}


def numbers(castore: Callable) -> list[int]:
    return [generation["number"] for generation in json.loads(castore("log", "--json").stdout)]


def is_whole(castore: Callable, store: Path, acknowledged: list[int]) -> None:
    """Only what was acknowledged is listed, all of it opens, and nothing else lies about."""
    listed = numbers(castore)
    assert listed == acknowledged
    castore("verify", "--read-data")
    found = objects(store)
    assert set(found) <= {"config", "sessions", "packs", "generations", "tmp"}
    assert all(len(name) == 64 for name in found.get("packs", ()))
    assert len(found.get("generations", ())) == len(listed)


def goes_on(castore: Callable, store: Path, big: Path, number: int) -> None:
    """The next snapshot succeeds, and stores again only what was in no finished pack."""
    full = sum(path.stat().st_size for path in (store / "packs").glob("*"))
    taken = json.loads(castore("snapshot", "s", "--dump", f"d={big}", "--json").stdout)
    assert (taken["number"], taken["size"]) == (number, SIZE)
    assert taken["new_bytes"] <= SIZE - full * 0.98 + 1_000_000
    if full:
        assert taken["new_bytes"] < SIZE
    assert numbers(castore)[0] == number


def test_killed_at_any_time_a_snapshot_is_not_there_and_the_next_one_goes_on(
    castore: Callable, store: Path, home: Path, big: Path
) -> None:
    for _ in range(3):
        # How long it takes, on this machine now; other work may make the next one slower or faster.
        began = time.monotonic()
        castore("snapshot", "s", "--dump", f"d={big}")
        whole = time.monotonic() - began
        if any(_goes_on_after_a_kill(castore, store, home, big, whole * point) for point in POINTS):
            return
        _empty(castore, store, home)
    pytest.fail("no round was killed after its first pack")


def _empty(castore: Callable, store: Path, home: Path) -> None:
    """Remove all but the configuration: each round begins with an empty store."""
    for folder in ("sessions", "packs", "generations", "tmp"):
        shutil.rmtree(store / folder, ignore_errors=True)
    for seen in (home / ".local" / "state" / "castore").glob("*/locations/*/seen"):
        seen.unlink()
    castore("reindex")


def _goes_on_after_a_kill(castore: Callable, store: Path, home: Path, big: Path, seconds: float) -> bool:
    """Kill a snapshot after some seconds and take another; return whether the killed one had stored a pack."""
    _empty(castore, store, home)
    process = start(home, "--dump", f"d={big}")
    time.sleep(seconds)
    process.kill()
    out, _ = process.communicate()
    acknowledged = [json.loads(out)["number"]] if out.strip().endswith(b"}") else []
    if process.returncode == 0:
        assert acknowledged == [1]
    listed = numbers(castore)
    # It may have been committed a moment before it could say so; never the other way round.
    assert set(acknowledged) <= set(listed)
    assert listed in ([], [1])
    if listed and not acknowledged:
        acknowledged = listed
    is_whole(castore, store, acknowledged)
    if acknowledged:
        return False
    packs = objects(store).get("packs", set())
    goes_on(castore, store, big, 1)
    return bool(packs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_at_once_and_says_so(
    castore: Callable, store: Path, home: Path, big: Path, number: int
) -> None:
    process = start(home, "--dump", f"d={big}")
    deadline = time.monotonic() + 30
    while not any((store / "packs").glob("*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    began = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate()
    took = time.monotonic() - began
    stated = "castore: interrupted: nothing was committed; the next snapshot reuses the packs that were stored"
    assert (process.returncode, errors.decode().strip()) == (130, stated)
    assert os.listdir(store / "tmp") == []
    is_whole(castore, store, [])
    goes_on(castore, store, big, 1)
    assert took < 1, f"it took {took:.2f} s to end"


_COPY = "import os, sys, shutil; shutil.copyfileobj(open({!r}, 'rb'), sys.stdout.buffer); sys.stdout.flush(); "
PROGRAMS = {"exits": (_COPY + "sys.exit(1)", "status 1"), "killed": (_COPY + "os.kill(os.getpid(), 9)", "SIGKILL")}


@pytest.mark.parametrize("how", PROGRAMS)
def test_a_dump_program_that_fails_commits_nothing(
    castore: Callable, store: Path, home: Path, tmp_path: Path, how: str
) -> None:
    script, word = PROGRAMS[how]
    (home / "data").write_bytes(random.Random(3).randbytes(40_000_000))
    (home / "script").write_text(script.format(str(home / "data")))
    program = f"d={sys.executable} {home / 'script'}"
    done = castore("snapshot", "s", "--exec", program, expect=4)
    assert word in done.stderr
    assert sys.executable in done.stderr
    is_whole(castore, store, [])
    assert os.listdir(store / "tmp") == []
    taken = json.loads(castore("snapshot", "s", "--dump", "d=data", "--json").stdout)
    # What the program wrote is found again, but for the last batches, which were under way.
    assert (taken["number"], taken["size"]) == (1, 40_000_000)
    assert taken["new_bytes"] < 12_000_000


def test_a_dump_program_that_is_not_there_commits_nothing(castore: Callable, store: Path) -> None:
    done = castore("snapshot", "s", "--exec", "d=no-such-program --at all", expect=4)
    assert "no program 'no-such-program'" in done.stderr
    assert objects(store).get("generations", set()) == set()
    assert objects(store).get("packs", set()) == set()


@pytest.fixture
def tiny(home: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    path = home / "tiny"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "castore-test", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting takes root")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_is_reported_and_with_more_space_it_goes_on(
    castore: Callable, home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tiny / "store"
    monkeypatch.setenv("CASTORE_STORE", str(store))
    castore("init", store)
    (home / "small").write_bytes(random.Random(4).randbytes(5_000_000))
    castore("snapshot", "s", "--dump", "d=small")
    (home / "large").write_bytes(random.Random(5).randbytes(40_000_000))
    done = castore("snapshot", "s", "--dump", "d=large", expect=1)
    assert "No space left on device" in done.stderr
    assert str(store) in done.stderr
    assert "free some space" in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(store / "tmp") == []
    is_whole(castore, store, [1])
    subprocess.run(["mount", "-o", "remount,size=80m", str(tiny)], check=True)
    assert json.loads(castore("snapshot", "s", "--dump", "d=large", "--json").stdout)["number"] == 2
    is_whole(castore, store, [2, 1])
    assert castore("cat", "s@1:d", binary=True).stdout == (home / "small").read_bytes()
    assert castore("cat", "s@2:d", binary=True).stdout == (home / "large").read_bytes()
