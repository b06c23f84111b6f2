"""castore as root in a tree that a service's user owns, and who wants root's rights."""

from __future__ import annotations

import os
import signal
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import castore as package
from castore.content.restore import (
    copying,
    file_writer,
    large_files,
    undo_journal,
)
from castore.content.restore.plan import TreePlan
from castore.content.restore.recover import recover
from castore.content.restore.undo_area import UndoArea
from castore.content.scan import small_files
from castore.errors import BusyError, CastoreError
from castore.services.restore_in_place import plan_in_place, restore_in_place
from castore.services.selectors import select
from castore.storage import LocalStorage
from castore.store import Store, StoreOptions
from tests.support.stores import Sandbox, take_snapshot
from tests.support.tree_walker import compare, walk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights that a user may want")

Run = Callable[..., subprocess.CompletedProcess]
USER = 60123
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
"""security.capability: cap_net_raw, effective."""
KILLED_IN_THE_MIDDLE = (
    "import os, signal, sys\n"
    "from castore.content.restore import undo_area\n"
    "undo_area.UndoArea.discard = lambda self: os.kill(os.getpid(), signal.SIGKILL)\n"
    "from castore.cli.main import main\n"
    "main()\n"
)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory that the user can reach; that of pytest is for root only."""
    with tempfile.TemporaryDirectory(prefix="castore-test-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path / "sandbox", average=4096)


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """A tree of the user's."""
    top = tmp_path / "live"
    (top / "data").mkdir(parents=True)
    for name in ("data/a", "data/b", "c"):
        (top / name).write_text(f"the first {name}")
    give(top)
    return top


@pytest.fixture
def store(castore: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("CASTORE_STORE", str(tmp_path / "store"))
    castore("init", tmp_path / "store")
    return castore


def give(top: Path) -> None:
    for path in (top, *top.rglob("*")):
        os.chown(path, USER, USER, follow_symlinks=False)


def as_user(work: Callable[[], object]) -> None:
    """Do something with the user's rights alone; it has to be possible."""
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(USER)
            os.setuid(USER)
            work()
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def planned(sandbox: Sandbox, what: str, top: Path) -> TreePlan:
    with sandbox.open() as opened:
        return plan_in_place(opened, select(opened, what), str(top), sandbox.ownership)


def carry_out(sandbox: Sandbox, plan: TreePlan) -> list[tuple[bytes, str]]:
    with sandbox.open() as opened:
        return restore_in_place(opened, plan, sandbox.ownership, package.Progress())


def interrupted(store: Run, live: Path) -> Path:
    """Kill a restore in place when all its steps are done; return its undo directory."""
    store("snapshot", "s", "--tree", f"t={live}")
    (live / "c").write_text("changed since")
    (live / "new").write_text("new")
    give(live)
    command = [sys.executable, "-c", KILLED_IN_THE_MIDDLE, "restore", "--in-place", "s@1:t", str(live)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (undo,) = live.glob(".castore-aside-*")
    return undo


# Journals and undo directories


def test_a_forged_journal_is_not_carried_out(store: Run, live: Path, tmp_path: Path) -> None:
    undo = interrupted(store, live)
    store("recover", live)
    planted = live / ".castore-aside-0000000000000000"
    as_user(lambda: [os.mkdir(planted), (planted / "0").write_text("x"), (planted / "journal").write_bytes(b"castorej")])
    as_user(lambda: (planted / "progress").write_bytes(b"." * 40))
    assert f"{planted} belongs to no restore" in store("recover", live).stdout
    assert f"{planted} belongs to no restore" in store("snapshot", "s", "--tree", f"t={live}").stderr
    assert sorted(os.listdir(planted)) == ["0", "journal", "progress"]
    assert not undo.exists()


def test_an_undo_directory_that_its_tree_s_owner_renamed_is_found(store: Run, live: Path) -> None:
    before = (live / "c").read_text()
    undo = interrupted(store, live)
    assert (live / "c").read_text() == before
    as_user(lambda: [os.rename(undo, live / "elsewhere"), os.mkdir(undo), (undo / "0").write_text("forged")])
    refused = store("snapshot", "s", "--tree", f"t={live}", expect=1)
    assert f"castore recover {live}" in refused.stderr
    printed = store("recover", live).stdout
    assert "reverted to the previous state" in printed
    assert f"{undo} belongs to no restore" in printed
    assert (live / "c").read_text() == "changed since"
    assert (live / "new").read_text() == "new"
    assert not (live / "elsewhere").exists()


def test_an_undo_directory_that_is_missing_is_reported_and_can_be_forgotten(
    store: Run, live: Path, tmp_path: Path
) -> None:
    undo = interrupted(store, live)
    undo.rename(tmp_path / "moved away")
    refused = store("recover", live, expect=1)
    assert "was moved away, replaced or deleted" in refused.stderr
    assert f"castore recover --forget {live}/" in refused.stderr
    (tmp_path / "moved away").rename(live / "back")
    assert "reverted" in store("recover", live).stdout
    undo = interrupted(store, live)
    undo.rename(tmp_path / "deleted")
    store("snapshot", "s", "--tree", f"t={live}", expect=1)
    store("recover", "--forget", f"{live}/")
    store("snapshot", "s", "--tree", f"t={live}")


def test_without_arguments_recover_ends_restores_in_place(store: Run, live: Path) -> None:
    interrupted(store, live)
    assert f"{live}: reverted" in store("recover").stdout
    assert "no rollback or restore in place was interrupted" in store("recover").stdout


def test_a_restore_at_work_is_neither_recovered_nor_passed_over(
    sandbox: Sandbox, live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.snapshot("s", {"t": package.Tree(str(live))})
    (live / "c").write_text("changed")
    real = UndoArea.begin

    def begin(aside: UndoArea) -> None:
        monkeypatch.setattr(undo_journal, "_AT_WORK", set())  # as another process sees it
        for work in (
            lambda: recover(sandbox.places.journals, str(live)),
            lambda: sandbox.snapshot("other", {"t": package.Tree(str(live / "data"))}),
        ):
            with pytest.raises(BusyError, match="is running"):
                work()
        real(aside)

    monkeypatch.setattr(UndoArea, "begin", begin)
    assert sandbox.in_place("s@1:t", live) > 0


def test_a_user_s_own_restore_is_theirs_to_recover(sandbox: Sandbox, live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (live / "own").mkdir()
    give(live)

    def killed() -> None:
        own = Sandbox(live / "own" / "sandbox", average=4096)
        own.snapshot("s", {"t": package.Tree(str(live / "data"))})
        (live / "data" / "a").write_text("changed")
        monkeypatch.setattr(UndoArea, "discard", lambda _self: os._exit(0))
        own.in_place("s@1:t", live / "data")

    as_user(killed)
    (undo,) = (live / "data").glob(".castore-aside-*")
    printed: list[str] = []
    with Store.open(LocalStorage(str(sandbox.store)), sandbox.places, options=StoreOptions(say=printed.append)) as opened:
        take_snapshot(opened, "s", {"t": package.Tree(str(live))})
        take_snapshot(opened, "d", {"t": package.Tree(str(live / "data"))})
    assert [f"{undo} belongs to no restore" in line for line in printed] == [True]
    assert "was left alone" in recover(sandbox.places.journals, str(live / "data"))[0]

    def recovered() -> None:
        (line,) = recover(str(live / "own" / "sandbox" / "state" / "in-place"), str(live / "data"))
        assert "reverted" in line

    as_user(recovered)
    assert (live / "data" / "a").read_text() == "changed"


def test_a_tree_of_another_user_gets_the_advice_to_run_programs_as_that_user(
    castore: Run, tmp_path: Path, live: Path
) -> None:
    os.chown(live, 65534, 65534)
    config = tmp_path / "castore.toml"
    config.write_text(
        f'store = "{tmp_path / "store"}"\n[service.s]\nstop = ["true"]\n'
        f'[service.s.parts.t]\nengine = "tree"\npath = "{live}"\n'
    )
    castore("init", tmp_path / "store")
    assert 'with run-as = "nobody"' in castore("config", "check", "--config", config).stdout
    config.write_text(config.read_text().replace("stop =", 'run-as = "nobody"\nstop ='))
    assert "run-as" not in castore("config", "check", "--config", config).stdout


# Links


def test_a_top_that_became_a_link_is_refused(store: Run, live: Path, tmp_path: Path) -> None:
    (tmp_path / "root's").mkdir()
    (tmp_path / "root's" / "secret").write_text("secret")
    store("snapshot", "s", "--tree", f"t={live / 'data'}")
    as_user(lambda: [os.rename(live / "data", live / "old"), os.symlink(tmp_path / "root's", live / "data")])
    for command in (
        ["snapshot", "s", "--tree", f"t={live / 'data'}"],
        ["snapshot", "--dry-run", "s", "--tree", f"t={live / 'data'}"],
        ["restore", "--in-place", "--yes", "s@1:t", live / "data"],
        ["restore", "s@1:t", live / "data" / "new"],
        ["rollback", "s", "--to", "1"],
        ["recover", live / "data"],
    ):
        assert "symbolic link that another user could have made" in store(*command, expect=2).stderr
    assert os.listdir(tmp_path / "root's") == ["secret"]


# Files exchanged between the comparison and the change


@pytest.mark.parametrize("name", ["c", "data"])
def test_metadata_is_not_given_to_what_took_a_file_s_place(sandbox: Sandbox, live: Path, name: str) -> None:
    os.chmod(live / "c", 0o604)
    os.chmod(live / "data", 0o705)
    sandbox.snapshot("s", {"t": package.Tree(str(live))})
    as_user(lambda: os.chmod(live / name, 0o700))
    plan = planned(sandbox, "s@1:t", live)
    assert (b"metadata", (name.encode(),)) in [(step.action.encode(), step.path) for step in plan.steps]
    as_user(lambda: os.rename(live / name, live / "old"))
    as_user(lambda: (live / name).write_text("theirs") if name == "c" else os.mkdir(live / name))
    before = walk(live)
    with pytest.raises(CastoreError, match="another file has taken its place"):
        carry_out(sandbox, plan)
    assert compare(before, walk(live)) == []


def test_a_directory_that_took_another_s_place_is_not_removed(sandbox: Sandbox, live: Path) -> None:
    (live / "root's").mkdir(mode=0o700)
    (live / "root's" / "file").write_text("not stored, and left out")
    sandbox.snapshot("s", {"t": package.Tree(str(live), ("/root's",))})
    as_user(lambda: os.mkdir(live / "extra"))
    plan = planned(sandbox, "s@1:t", live)
    as_user(lambda: [os.rename(live / "extra", live / "x"), os.rename(live / "root's", live / "extra")])
    before = walk(live)
    with pytest.raises(CastoreError, match="another directory took its place"):
        carry_out(sandbox, plan)
    assert compare(before, walk(live)) == []


def test_a_top_that_was_exchanged_since_it_was_compared_is_left(sandbox: Sandbox, live: Path, tmp_path: Path) -> None:
    sandbox.snapshot("s", {"t": package.Tree(str(live / "data"))})
    (live / "data" / "a").write_text("changed")
    plan = planned(sandbox, "s@1:t", live / "data")
    as_user(lambda: [os.rename(live / "data", live / "old"), os.mkdir(live / "data")])
    with pytest.raises(CastoreError, match="replaced by another directory"):
        carry_out(sandbox, plan)
    assert os.listdir(live / "data") == []


# Set-id bits and capabilities


def make_privileged(path: Path, kind: str) -> None:
    if kind == "setuid":
        os.chown(path, 0, 0)
        os.chmod(path, 0o4755)
    elif kind == "setgid":
        os.chown(path, USER, 0)
        os.chmod(path, 0o2755)
    else:
        os.chown(path, USER, USER)
        os.chmod(path, 0o755)
        os.setxattr(path, "security.capability", CAPABILITY)


def is_privileged(path: Path) -> bool:
    return bool(os.lstat(path).st_mode & 0o6000) or "security.capability" in os.listxattr(path, follow_symlinks=False)


@pytest.mark.parametrize("kind", ["setuid", "setgid", "capability"])
def test_a_file_that_a_user_may_have_open_does_not_become_privileged(sandbox: Sandbox, live: Path, kind: str) -> None:
    path = live / "c"
    make_privileged(path, kind)
    sandbox.snapshot("s", {"t": package.Tree(str(live))})
    info, content = path.stat(), path.read_bytes()

    def exchange() -> None:
        os.unlink(path)
        path.write_bytes(content)
        os.utime(path, ns=(info.st_mtime_ns, info.st_mtime_ns))

    as_user(exchange)
    theirs = os.open(path, os.O_WRONLY)
    try:
        sandbox.in_place("s@1:t", live)
        os.pwrite(theirs, b"theirs", 0)
    finally:
        os.close(theirs)
    assert is_privileged(path)
    assert path.read_bytes() == content
    assert (path.stat().st_uid, path.stat().st_gid) == (info.st_uid, info.st_gid)


@pytest.mark.parametrize("kind", ["setuid", "setgid", "capability"])
@pytest.mark.parametrize("nameless", [True, False])
def test_nobody_reaches_a_file_before_it_has_its_owner_and_bits(
    sandbox: Sandbox, live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, nameless: bool
) -> None:
    make_privileged(live / "c", kind)
    sandbox.snapshot("s", {"t": package.Tree(str(live))})
    into = tmp_path / "into"
    into.mkdir()
    give(into)
    seen: list[list[str]] = []
    real = file_writer.set_attributes

    def watched(file, entry, *rest, **options):
        seen.extend([os.listdir(into)] if entry.name == b"c" else [])
        real(file, entry, *rest, **options)

    monkeypatch.setattr(file_writer, "set_attributes", watched)
    if not nameless:
        monkeypatch.setattr(file_writer, "_open_nameless", lambda _folder: -1)
    done = sandbox.restore("s@1:t", into)
    assert is_privileged(into / "c") == nameless
    if nameless:
        assert all("c" not in names for names in seen)
        assert compare(walk(live), walk(into)) == []
    else:
        assert "set-id bits and capabilities are left out" in done.report.warnings[0][1]


def test_a_replaced_file_that_its_owner_may_write_to_gives_nothing_to_root_s(
    sandbox: Sandbox, live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(3 << 20)
    path = live / "large"
    path.write_bytes(content)
    path.chmod(0o755)
    sandbox.snapshot("s", {"t": package.Tree(str(live))})
    os.unlink(path)
    as_user(lambda: path.write_bytes(content + b"more"))
    theirs = os.open(path, os.O_WRONLY)
    real = large_files.find_chunks

    def meanwhile(*arguments):
        found = real(*arguments)
        os.pwrite(theirs, b"theirs" * 100_000, 0)
        return found

    monkeypatch.setattr(large_files, "find_chunks", meanwhile)
    monkeypatch.setattr(large_files, "is_remote", lambda _store: True)
    try:
        sandbox.in_place("s@1:t", live)
    finally:
        os.close(theirs)
    assert path.read_bytes() == content
    assert path.stat().st_uid == 0


def test_attributes_of_another_file_are_not_stored(
    sandbox: Sandbox, live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_privileged(live / "data" / "b", "capability")
    os.setxattr(live / "data" / "a", "user.x", b"1")
    real = small_files.read_files
    exchanged: list[bool] = []

    def reading(fd, *rest):
        found = real(fd, *rest)
        if not exchanged and os.readlink(f"/proc/self/fd/{fd}") == str(live / "data"):
            exchanged.append(True)
            as_user(lambda: os.rename(live / "data" / "b", live / "data" / "a"))
        return found

    monkeypatch.setattr(small_files, "read_files", reading)
    sandbox.snapshot("s", {"t": package.Tree(str(live))})
    out = live.parent / "out"
    sandbox.restore("s@1:t", out)
    assert (out / "data" / "a").read_text() == "the first data/a"
    assert not is_privileged(out / "data" / "a")


def test_a_copy_has_the_metadata_of_the_file_that_it_is_a_copy_of(
    live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_privileged(live / "data" / "b", "setuid")
    real = copying._copy_data  # noqa: SLF001 - the moment of the attack

    def copying_data(*arguments):
        real(*arguments)
        as_user(lambda: os.rename(live / "data" / "b", live / "data" / "a"))

    monkeypatch.setattr(copying, "_copy_data", copying_data)
    source, target = (os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (live / "data", tmp_path))
    copying.copy(source, b"a", target, b"copy")
    assert (tmp_path / "copy").read_text() == "the first data/a"
    assert not is_privileged(tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_uid == USER
    os.close(source)
    os.close(target)


# Reading


@pytest.mark.parametrize("size", [20, 200_000])
@pytest.mark.parametrize("kind", ["fifo", "device", "link"])
def test_what_takes_the_place_of_a_file_is_not_read(
    sandbox: Sandbox, live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, size: int
) -> None:
    (live / "data" / "a").write_bytes(b"x" * size)
    (tmp_path / "secret").write_text("secret")
    os.mknod(live / "null", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    real = small_files.SmallFileReader.read

    def meanwhile(self, directory, small, large, kept):
        if directory.path == b"data":
            os.unlink(live / "data" / "a")
            if kind == "fifo":
                as_user(lambda: os.mkfifo(live / "data" / "a"))
            elif kind == "link":
                as_user(lambda: os.symlink(tmp_path / "secret", live / "data" / "a"))
            else:
                as_user(lambda: os.rename(live / "null", live / "data" / "a"))
        return real(self, directory, small, large, kept)

    monkeypatch.setattr(small_files.SmallFileReader, "read", meanwhile)
    opened: list[str] = []
    real_open = os.open

    def watched(path, flags, *rest, **options):
        fd = real_open(path, flags, *rest, **options)
        if not flags & os.O_PATH and stat.S_ISCHR(os.fstat(fd).st_mode):
            opened.append(os.readlink(f"/proc/self/fd/{fd}"))
        return fd

    monkeypatch.setattr(os, "open", watched)
    taken = sandbox.snapshot("s", {"t": package.Tree(str(live))})
    assert taken.parts[0].skipped_files == 1
    assert opened == []


def test_a_tag_of_caches_that_is_a_pipe_does_not_hang(sandbox: Sandbox, live: Path) -> None:
    as_user(lambda: os.mkfifo(live / "data" / "CACHEDIR.TAG"))
    sandbox.snapshot("s", {"t": package.Tree(str(live), exclude_caches=True)})


# Files whose size and time were kept


def test_a_file_that_was_changed_with_its_size_and_time_kept_is_restored(store: Run, live: Path) -> None:
    store("snapshot", "s", "--tree", f"t={live}", "--revision", "r1")

    def tamper() -> None:
        info = (live / "c").stat()
        (live / "c").write_text("THE FIRST c")
        os.utime(live / "c", ns=(info.st_mtime_ns, info.st_mtime_ns))

    for command in (
        ["rollback", "s", "--to", "r1"],
        ["rollback", "s", "--to", "r1", "--no-pre-rollback"],
        ["restore", "--in-place", "s@1:t", live],
        ["restore", "--in-place", "--checksum", "s@1:t/c", live / "c"],
    ):
        as_user(tamper)
        store(*command)
        assert (live / "c").read_text() == "the first c", command
    as_user(tamper)
    store("rollback", "s", "--to", "r1", "--no-pre-rollback", "--trust-times")
    store("restore", "--in-place", "--trust-times", "s@1:t", live)
    assert (live / "c").read_text() == "THE FIRST c"
    assert "replace  c" in store("rollback", "s", "--to", "r1", "--dry-run").stdout
