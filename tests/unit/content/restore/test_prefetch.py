"""Directories opened ahead by a process: what is restored does not depend on it, whatever becomes of it."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from castore.content.restore import prefetch, tree_writer
from castore.content.restore.prefetch import Prefetcher
from castore.content.stored_dirs import open_top
from castore.content.streams import StreamReader
from castore.errors import DamageError
from castore.model.generation import Generation
from castore.services.sources import Tree
from tests.support.stores import Sandbox
from tests.support.tree_walker import compare, walk


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path / "sandbox", average=4096)


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """A tree of every shape: deep, wide, empty, uniform, with large and with small files."""
    rng = random.Random(5)
    top = tmp_path / "live"
    for path in ("a/b/c/d/e/f", "a/empty", "wide", "z", "uniform/1", "uniform/2"):
        (top / path).mkdir(parents=True)
    for number in range(40):
        folder = top / "wide" / f"{number:02}"
        folder.mkdir()
        for name in range(rng.randrange(5)):
            (folder / f"file{name}").write_bytes(rng.randbytes(rng.randrange(9000)))
    for folder in ("a/b", "a/b/c/d/e/f", "z"):
        (top / folder / "large").write_bytes(rng.randbytes(90_000))
        (top / folder / "small").write_bytes(b"small")
        (top / folder / "link").symlink_to("small")
    for folder in ("uniform/1", "uniform/2"):
        (top / folder / "same").write_bytes(b"the same")
        os.utime(top / folder / "same", ns=(5, 5))
    return top


@pytest.fixture
def taken(sandbox: Sandbox, live: Path) -> Generation:
    return sandbox.snapshot("s", {"t": Tree(str(live))})


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Those that were forked: also for a small tree, with little room."""
    found = []
    real = os.fork

    def fork() -> int:
        found.append(real())
        return found[-1]

    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(prefetch, "_LEAST", 0)
    return found


def check(sandbox: Sandbox, live: Path, into: Path) -> None:
    sandbox.restore("s@latest:t", into)
    assert compare(walk(live), walk(into)) == []


@pytest.mark.parametrize("ring", [1 << 13, 1 << 15, 1 << 17, 1 << 25])
def test_a_tree_is_restored_from_what_was_opened_ahead(
    sandbox: Sandbox, live: Path, taken: Generation, processes, tmp_path, monkeypatch, ring
):
    monkeypatch.setattr(prefetch, "_RING", ring)
    inline = []
    real = tree_writer.fetch_directory
    monkeypatch.setattr(tree_writer, "fetch_directory", lambda *args: (inline.append(1), real(*args))[1])
    check(sandbox, live, tmp_path / "out")
    assert len(processes) == 1
    if ring == 1 << 25:
        assert inline == []  # all of it came from there
    with pytest.raises(ChildProcessError):
        os.waitpid(processes[0], os.WNOHANG)  # it was waited for


@pytest.mark.parametrize("after", [0, 1, 7, 30])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_killed_or_stopped_is_done_without(
    sandbox: Sandbox, live: Path, taken: Generation, processes, tmp_path, monkeypatch, after, how
):
    monkeypatch.setattr(prefetch, "_PATIENCE_MS", 300)
    monkeypatch.setattr(prefetch, "_RING", 1 << 15)
    count = iter(range(1000))
    real = Prefetcher.take

    def take(self, ref, depth):
        if next(count) == after:
            os.kill(processes[0], how)
        return real(self, ref, depth)

    monkeypatch.setattr(Prefetcher, "take", take)
    check(sandbox, live, tmp_path / "out")


@pytest.mark.parametrize("number", range(3))
def test_where_no_process_can_be_made_it_is_done_without(
    sandbox: Sandbox, live: Path, taken: Generation, processes, tmp_path, monkeypatch, number
):
    calls = iter(range(1000))
    target, real = [("fork", os.fork), ("pipe", os.pipe), ("pipe", os.pipe)][number]

    def failing():
        if next(calls) == (1 if number == 2 else 0):
            raise OSError(11, "there are too many")
        return real()

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, target, failing)
    check(sandbox, live, tmp_path / "out")
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_passed_over_is_passed_over_there_too(
    sandbox: Sandbox, live: Path, taken: Generation, processes, tmp_path, monkeypatch
):
    real = os.mkdir

    def mkdir(path, *args, **options):
        if path in {b"b", b"07", b"uniform"}:
            raise PermissionError(13, "not allowed")
        return real(path, *args, **options)

    monkeypatch.setattr(os, "mkdir", mkdir)
    inline = []
    fetch = tree_writer.fetch_directory
    monkeypatch.setattr(tree_writer, "fetch_directory", lambda *args: (inline.append(1), fetch(*args))[1])
    sandbox.restore("s@latest:t", tmp_path / "out")
    assert inline == []
    left = {path for path in walk(live) if path.split(b"/")[:2] in ([b"a", b"b"], [b"wide", b"07"])}
    left |= {path for path in walk(live) if path.split(b"/")[0] == b"uniform"}
    assert set(walk(live)) - set(walk(tmp_path / "out")) == left


def test_directories_that_are_not_asked_for_do_not_hold_it_up(
    sandbox: Sandbox, live: Path, taken: Generation, processes, monkeypatch
):
    monkeypatch.setattr(prefetch, "_RING", 1 << 14)
    with sandbox.open() as store, StreamReader(store) as reader:
        root = taken.parts[0].content
        assert root is not None
        top = open_top(reader, root)
        with Prefetcher(store, top.ref) as opened:
            assert top.ref is not None
            found = opened.take(top.ref, 0)
            assert found is not None
            opened.done_with(found, None)
            last = found.fetched.refs[-1]  # z, after all the others
            taken_last = opened.take(last, 1)
            assert taken_last is not None
            assert [ref.kind for ref in taken_last.fetched.refs]
            assert opened.take(last, 1) is None


def test_many_directories_that_cannot_be_opened_ahead_do_not_hold_up(
    sandbox: Sandbox, tmp_path: Path, processes, monkeypatch: pytest.MonkeyPatch
):
    pipe = os.pipe

    def small_pipe() -> tuple[int, int]:
        ends = pipe()
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 4096)
        return ends

    monkeypatch.setattr(os, "pipe", small_pipe)
    top = tmp_path / "many"
    for number in range(900):  # more than either pipe has room for
        (top / f"{number:04}").mkdir(parents=True)
    sandbox.snapshot("s", {"t": Tree(str(top))})
    real = prefetch.fetch_directory
    seen = iter(range(10**6))

    def failing(*arguments):
        if next(seen):
            raise DamageError("not this one")
        return real(*arguments)

    monkeypatch.setattr(prefetch, "fetch_directory", failing)
    check(sandbox, top, tmp_path / "out")


ALONE = """
import os, signal, sys, time
from pathlib import Path
from castore.content.restore import prefetch
from castore.services.sources import Tree
from castore.content.stored_dirs import open_top
from castore.content.streams import StreamReader
from tests.support.stores import Sandbox
prefetch._LEAST, prefetch._RING = 0, 1 << 13
sandbox = Sandbox(Path(sys.argv[1]), average=4096)
taken = sandbox.snapshot("s", {"t": Tree(sys.argv[2])})
with sandbox.open() as store, StreamReader(store) as reader:
    opened = prefetch.Prefetcher(store, open_top(reader, taken.parts[0].content).ref)
    print(opened._child, flush=True)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_process_ends_with_the_one_that_made_it(live: Path, tmp_path: Path):
    arguments = [sys.executable, "-c", ALONE, str(tmp_path / "other"), str(live)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert int(done.stdout) > 0
    for _ in range(100):
        try:
            state = Path(f"/proc/{int(done.stdout)}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return
        if state in {"Z", "X"}:
            return
        time.sleep(0.05)
    pytest.fail("it goes on alone")
