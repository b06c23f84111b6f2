"""Restores in place that are killed at every point, and reverted or completed by `castore recover`."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import traceback
from pathlib import Path

import pytest

from castore.content.restore import recover as recovering
from castore.content.restore import undo_area
from castore.errors import CastoreError, UsageError
from castore.services.sources import Tree
from tests.support.stores import Sandbox
from tests.support.tree_walker import compare, walk


def restore_until(sandbox: Sandbox, live: Path, point: int) -> int:
    """Restore in a process that is killed at the `point`th step; return its exit code, negative for a signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = point

    def here() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def watched(function):
        def wrapped(*arguments, **options):
            here()
            found = function(*arguments, **options)
            here()
            return found

        return wrapped

    try:
        for name in ("begin", "save", "_clear", "discard"):
            setattr(undo_area.UndoArea, name, watched(getattr(undo_area.UndoArea, name)))
        for name in ("mkdir", "fsync", "unlink", "rmdir"):
            setattr(os, name, watched(getattr(os, name)))
        sandbox.in_place("s@1:t", live)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def recover(top: str) -> list[str]:
    return recovering.recover(os.path.join(os.path.dirname(top), "sandbox", "state", "in-place"), top)


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path / "sandbox", average=4096)


def grow(top: Path) -> None:
    rng = random.Random(1)
    for name in ("a", "b", "a/deep", "gone"):
        (top / name).mkdir(parents=True)
        for number in range(3):
            (top / name / f"file{number}").write_bytes(rng.randbytes(3000))
    (top / "a" / "large").write_bytes(rng.randbytes(200_000))
    os.link(top / "a" / "file0", top / "b" / "link")
    os.setxattr(top / "b" / "file1", "user.x", b"1")
    (top / "b" / "points").symlink_to("nowhere")


def change(top: Path) -> None:
    (top / "a" / "large").write_bytes(b"changed" * 9000)
    (top / "a" / "deep" / "file1").unlink()
    shutil.rmtree(top / "gone")
    (top / "gone").write_text("a file now")
    (top / "b" / "points").unlink()
    (top / "b" / "points").mkdir()
    (top / "b" / "points" / "extra").write_text("extra")
    os.chmod(top / "b" / "file2", 0o640)
    os.removexattr(top / "b" / "file1", "user.x")
    (top / "new").mkdir()
    (top / "new" / "file").write_text("new")


def test_a_restore_killed_at_any_moment_is_reverted_or_completed(sandbox: Sandbox, tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    grow(live)
    sandbox.snapshot("s", {"t": Tree(str(live))})
    stored = walk(live)
    change(live)
    changed = walk(live)
    undone = finished = 0
    for point in range(200):
        work = tmp_path / f"work-{point}"
        subprocess.run(["cp", "-a", str(live), str(work)], check=True)
        code = restore_until(sandbox, work, point)
        if code == 0:
            assert compare(stored, walk(work)) == []
            break
        assert code == -signal.SIGKILL
        shown = "".join(recover(str(work)))
        found = walk(work)
        # Where the directory of what was moved aside was just made, or is just gone, no journal says
        # which time the top is to have.
        if not shown or "nothing had been touched" in shown:
            found[b"."]["mtime"] = changed[b"."]["mtime"] if (work / "new").exists() else stored[b"."]["mtime"]
        empty = not shown or "only an empty directory" in shown
        if "removed" in shown or (empty and not (work / "new").exists()):
            finished += 1
            assert compare(stored, found) == []
        else:
            undone += 1
            assert compare(changed, found) == [], (point, shown)
        assert recover(str(work)) == []
        shutil.rmtree(work)
    assert undone > 20
    assert finished > 20


def test_what_was_moved_aside_is_restored_although_the_progress_was_lost(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    live = tmp_path / "live"
    live.mkdir()
    grow(live)
    sandbox.snapshot("s", {"t": Tree(str(live))})
    for folder in ("a", "b", "gone"):
        for number in range(3):
            (live / folder / f"file{number}").unlink(missing_ok=True)
            (live / folder / f"file{number}").write_text("changed")
    changed = walk(live)
    assert restore_until(sandbox, live, 40) == -signal.SIGKILL
    (aside,) = live.glob(".castore-aside-*")
    assert {"0", "1"} <= set(os.listdir(aside))
    # After a loss of power, the file may be as it was when it was last synced.
    os.truncate(aside / "progress", undo_area.TOKEN)
    recover(str(live))
    assert compare(changed, walk(live)) == []


def test_a_restore_that_cannot_be_made_durable_is_reverted(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = tmp_path / "live"
    live.mkdir()
    grow(live)
    sandbox.snapshot("s", {"t": Tree(str(live))})
    change(live)
    changed = walk(live)

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(undo_area, "sync_file_system", fail)
    with pytest.raises(CastoreError, match="could not be made durable: Input/output error"):
        sandbox.in_place("s@1:t", live)
    assert compare(changed, walk(live)) == []


def test_what_no_journal_names_is_reported_and_left(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no-such"):
        recover(str(tmp_path / "no-such"))
    aside = tmp_path / ".castore-aside-0123456789abcdef"
    aside.mkdir(mode=0o700)
    (aside / "0").write_text("somebody's")
    (shown,) = recover(str(tmp_path))
    assert f"{aside} belongs to no restore" in shown
    assert (aside / "0").read_text() == "somebody's"
    (aside / "0").unlink()
    (aside / "progress").write_bytes(b"")
    assert "nothing had been touched" in recover(str(tmp_path))[0]
    assert os.listdir(tmp_path) == []
