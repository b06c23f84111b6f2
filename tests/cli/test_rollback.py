"""A rollback makes the live state equal to a generation, or leaves it exactly as it was."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.feature_tree import make_feature_tree
from tests.support.tree_walker import compare, walk

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def store(castore: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line, with a store made."""
    monkeypatch.setenv("CASTORE_STORE", str(tmp_path / "store"))
    castore("init", tmp_path / "store")
    return castore


def leftovers(*tops: Path) -> list[str]:
    """Names that castore makes for itself while it works, and should have removed."""
    return [
        os.fsdecode(name)
        for top in tops
        for _, folders, files in os.walk(os.fsencode(top))
        for name in [*folders, *files]
        if b".castore-" in name
    ]


class TreeMutator:
    """Changes a tree in many ways, the same ones for the same seed."""

    def __init__(self, top: Path, seed: int) -> None:
        self.top = os.fsencode(top)
        self.beside = self.top + b"~"
        self.chance = random.Random(seed)
        self.serial = 0
        self.done: list[str] = []
        self.ways = sorted(name for name in dir(self) if name.startswith("do_"))

    def mutate(self, count: int) -> list[str]:
        """Try each way once at least, `count` ways in all; return what was done."""
        ways = [*self.ways, *self.chance.choices(self.ways, k=max(0, count - len(self.ways)))]
        self.chance.shuffle(ways)
        for way in ways:
            for _ in range(20):
                try:
                    shown = getattr(self, way)()
                except (OSError, IndexError):  # this file does not take it, or none is left: another one
                    continue
                self.done.append(f"{way[3:]} {shown!r}")
                break
        assert len(self.done) > len(ways) * 0.8, self.done
        return self.done

    def paths(self, *kinds: int) -> list[bytes]:
        found = []
        for folder, folders, files in os.walk(self.top):
            for name in [*folders, *files]:
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):
                    if not kinds or stat.S_IFMT(os.lstat(path).st_mode) in kinds:
                        found.append(path)
        return sorted(found)

    def any(self, *kinds: int) -> bytes:
        return self.chance.choice(self.paths(*kinds))

    def file(self) -> bytes:
        return self.any(stat.S_IFREG)

    def folder(self) -> bytes:
        return self.any(stat.S_IFDIR)

    def fresh(self) -> bytes:
        self.serial += 1
        return os.path.join(self.folder(), b"new-%d" % self.serial)

    @staticmethod
    def remove(path: bytes) -> None:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)

    def write(self, path: bytes, size: int = 5000) -> bytes:
        with open(path, "xb") as file:
            file.write(self.chance.randbytes(size))
        return path

    def do_content_with_the_same_size_and_time(self) -> bytes:
        path = self.chance.choice([p for p in self.paths(stat.S_IFREG) if os.path.getsize(p)])
        info = os.stat(path)
        with open(path, "r+b") as file:
            first = file.read(1)[0]
            file.seek(0)
            file.write(bytes([first ^ 0xFF]))
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
        return path

    do_content_with_the_same_size_and_time_again = do_content_with_the_same_size_and_time

    def do_append(self) -> bytes:
        path = self.file()
        with open(path, "ab") as file:
            file.write(b"more")
        return path

    def do_truncate(self) -> bytes:
        path = self.file()
        os.truncate(path, self.chance.randrange(100))
        return path

    def do_file_to_directory(self) -> bytes:
        path = self.file()
        os.unlink(path)
        os.mkdir(path)
        self.write(os.path.join(path, b"inside"))
        return path

    def do_file_to_link(self) -> bytes:
        path = self.file()
        os.unlink(path)
        os.symlink(b"elsewhere", path)
        return path

    def do_directory_to_file(self) -> bytes:
        path = self.folder()
        shutil.rmtree(path)
        return self.write(path)

    def do_directory_to_link(self) -> bytes:
        path = self.folder()
        shutil.rmtree(path)
        os.symlink(b"..", path)  # to a directory: nothing may follow it
        return path

    def do_link_to_file(self) -> bytes:
        path = self.any(stat.S_IFLNK)
        os.unlink(path)
        return self.write(path)

    def do_link_to_directory(self) -> bytes:
        path = self.any(stat.S_IFLNK)
        os.unlink(path)
        os.mkdir(path)
        return path

    def do_link_elsewhere(self) -> bytes:
        path = self.any(stat.S_IFLNK)
        info = os.lstat(path)
        os.unlink(path)
        os.symlink(b"changed", path)
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)
        return path

    def do_special_to_file(self) -> bytes:
        path = self.any(stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK)
        os.unlink(path)
        return self.write(path)

    def do_mode(self) -> bytes:
        path = self.any(stat.S_IFREG, stat.S_IFDIR)
        os.chmod(path, self.chance.randrange(0o10000))
        return path

    def do_owner(self) -> bytes:
        path = self.any()
        os.chown(path, 4242, 4243, follow_symlinks=False)  # takes capabilities and set-id bits away
        return path

    def do_time(self) -> bytes:
        path = self.any()
        os.utime(path, ns=(0, self.chance.randrange(10**18)), follow_symlinks=False)
        return path

    def do_attribute_added(self) -> bytes:
        path = self.any(stat.S_IFREG, stat.S_IFDIR)
        os.setxattr(path, "user.new", b"1")
        return path

    def do_attribute_changed(self) -> bytes:
        path = self.file()
        (name, *_) = [*os.listxattr(path), None]
        if name is None:
            raise OSError
        os.setxattr(path, name, b"changed")
        return path

    def do_attribute_removed(self) -> bytes:
        path = self.any(stat.S_IFREG, stat.S_IFDIR)
        names = os.listxattr(path)
        if not names:
            raise OSError
        os.removexattr(path, self.chance.choice(names))
        return path

    def do_hard_link_added(self) -> bytes:
        path = self.fresh()
        os.link(self.file(), path)
        return path

    def do_hard_link_instead_of_a_file(self) -> bytes:
        path, other = self.file(), self.file()
        os.unlink(path)
        if path == other:
            raise OSError
        os.link(other, path)
        return path

    def do_twins_linked(self) -> bytes:
        """Two files that are equal in all, times included, become one."""
        folder = os.path.join(self.top, b"files")
        path, other = os.path.join(folder, b"twin-a"), os.path.join(folder, b"twin-b")
        os.unlink(path)
        os.link(other, path)
        return path

    def do_hard_link_broken(self) -> bytes:
        linked = [p for p in self.paths(stat.S_IFREG) if os.lstat(p).st_nlink > 1]
        path = self.chance.choice(linked)
        subprocess.run([b"cp", b"-a", b"--", path, self.beside], check=True, capture_output=True)
        os.rename(self.beside, path)
        return path

    do_hard_link_broken_too = do_hard_link_broken

    def do_remove(self) -> bytes:
        path = self.any()
        self.remove(path)
        return path

    do_remove_another = do_remove

    def do_add_file(self) -> bytes:
        return self.write(self.fresh())

    def do_add_directory(self) -> bytes:
        path = self.fresh()
        os.makedirs(os.path.join(path, b"a", b"b"))
        self.write(os.path.join(path, b"a", b"file"))
        return path

    def do_add_special(self) -> bytes:
        path = self.fresh()
        os.mkfifo(path)
        return path

    def do_rename(self) -> bytes:
        path, to = self.any(), self.fresh()
        os.rename(path, to)
        return path

    def do_swap(self) -> bytes:
        path, other = self.any(), self.any()
        os.rename(path, self.beside)
        try:
            os.rename(other, path)
        except OSError:
            os.rename(self.beside, path)
            raise
        os.rename(self.beside, other)
        return path

    def do_replaced_by_its_equal(self) -> bytes:
        path = self.file()
        subprocess.run([b"cp", b"-a", b"--", path, self.beside], check=True, capture_output=True)
        os.rename(self.beside, path)
        return path


def test_a_storm_of_changes_is_rolled_back_whole(store: Run, tmp_path: Path) -> None:
    live = tmp_path / "live"
    make_feature_tree(live, many=200)
    store("snapshot", "s", "--tree", f"t={live}")
    night = walk(live)
    for seed in range(6):
        done = TreeMutator(live, seed).mutate(60)
        assert compare(night, walk(live)) != []
        store("rollback", "s", "--to", "1", "--numeric-ids")
        assert compare(night, walk(live)) == [], f"seed {seed}: {done}"
        assert leftovers(live) == []


def test_the_pre_rollback_generation_restores_all_changes(store: Run, tmp_path: Path) -> None:
    live = tmp_path / "live"
    make_feature_tree(live, many=50)
    store("snapshot", "s", "--tree", f"t={live}")
    TreeMutator(live, 77).mutate(60)
    mutator = walk(live)
    done = json.loads(store("rollback", "s", "--to", "1", "--numeric-ids", "--json").stdout)
    wanted = {"service": "s", "number": 1, "pre_rollback": 2, "parts": ["t"]}
    assert done.items() >= wanted.items()
    logged = json.loads(store("log", "s", "--json").stdout)
    assert [(g["number"], g["pre_rollback"]) for g in logged] == [(2, True), (1, False)]
    store("rollback", "s", "--to", "2", "--numeric-ids")
    assert compare(mutator, walk(live)) == []
    assert leftovers(live) == []


def test_a_roll_back_that_fails_leaves_the_tree_exactly_as_it_was(store: Run, tmp_path: Path) -> None:
    live = tmp_path / "live"
    make_feature_tree(live, many=50)
    dump = tmp_path / "dump"
    dump.write_bytes(b"first\n" * 10_000)
    store("snapshot", "s", "--tree", f"t={live}", "--dump", f"d={dump}")
    for seed in range(100, 104):
        done = TreeMutator(live, seed).mutate(50)
        dump.write_bytes(b"second\n" * 10_000)
        before = walk(live)
        failed = store("rollback", "s", "--to", "1", "--numeric-ids", "--restore", "d=false", expect=11)
        assert "false" in failed.stderr
        assert compare(before, walk(live)) == [], f"seed {seed}: {done}"
        assert leftovers(live, tmp_path) == []
        assert dump.read_bytes() == b"second\n" * 10_000
        # It is not known what `false` did to its service: someone has to look.
        again = store("rollback", "s", "--to", "1", "--numeric-ids", expect=11)
        assert "castore recover s" in again.stderr
        store("recover", "s", expect=11)
        store("recover", "--forget", "s")
    store("rollback", "s", "--to", "1", "--numeric-ids")
    assert dump.read_bytes() == b"first\n" * 10_000


def test_a_roll_back_that_fails_without_a_pre_rollback_generation_leaves_the_tree_as_it_was(store: Run, tmp_path: Path) -> None:
    live = tmp_path / "live"
    make_feature_tree(live, many=20)
    store("snapshot", "s", "--tree", f"t={live}", "--exec", "d=echo hello")
    TreeMutator(live, 5).mutate(40)
    before = walk(live)
    arguments = ["rollback", "s", "--to", "1", "--numeric-ids", "--no-pre-rollback", "--restore", "d=false"]
    store(*arguments, expect=11)
    assert compare(before, walk(live)) == []
    assert leftovers(live) == []
    assert len(json.loads(store("log", "s", "--json").stdout)) == 1


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Path]:
    """A restore program that never ends the first time, and takes all the second time."""
    program = tmp_path / "sleeper"
    program.write_text(
        f"#!{sys.executable}\nimport os, sys, time\n"
        f"flag = {str(tmp_path / 'begun')!r}\n"
        "if os.path.exists(flag):\n"
        f"    open({str(tmp_path / 'taken')!r}, 'wb').write(sys.stdin.buffer.read())\n"
        "else:\n    open(flag, 'w').close()\n    time.sleep(300)\n"
    )
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_roll_back_that_is_interrupted_leaves_the_tree_as_it_was(
    store: Run, home: Path, tmp_path: Path, sleeper: Path, number: int
) -> None:
    live = tmp_path / "live"
    make_feature_tree(live, many=20)
    dump = tmp_path / "dump"
    dump.write_bytes(b"first")
    store("snapshot", "s", "--tree", f"t={live}", "--dump", f"d={dump}")
    TreeMutator(live, 6).mutate(40)
    dump.write_bytes(b"second")
    before = walk(live)
    command = ["rollback", "s", "--to", "1", "--numeric-ids", "--restore", f"d={sleeper}"]
    with subprocess.Popen(
        [sys.executable, "-m", "castore", *command], cwd=home, stderr=subprocess.PIPE, process_group=0
    ) as process:
        end = time.monotonic() + 60
        while not (tmp_path / "begun").exists() and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(process.pid, number)
        _, shown = process.communicate(timeout=60)
        assert process.returncode == 130, shown
    assert compare(before, walk(live)) == []
    assert leftovers(live, tmp_path) == []
    assert (tmp_path / "taken").read_bytes() == b"second"  # the pre-rollback generation's


def test_no_pre_rollback_takes_none(store: Run, tmp_path: Path) -> None:
    live = tmp_path / "live"
    make_feature_tree(live, many=20)
    store("snapshot", "s", "--tree", f"t={live}")
    night = walk(live)
    TreeMutator(live, 3).mutate(0)
    # Nobody looked at the content: what differs in neither size nor time is not seen.
    shown = store("rollback", "s", "--to", "1", "--numeric-ids", "--no-pre-rollback").stdout
    assert shown.startswith("s is back at generation 1: 1 part, ")
    assert "replaced" not in shown
    assert [line for line in compare(night, walk(live)) if ": hash is " not in line and "extents" not in line and "allocated" not in line] == []
    assert len(json.loads(store("log", "s", "--json").stdout)) == 1
    assert leftovers(live) == []


def test_a_dry_run_says_what_would_be_done_and_does_nothing(store: Run, tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    for name in ("kept", "changed", "removed"):
        (live / name).write_text(name)
    store("snapshot", "s", "--tree", f"t={live}")
    (live / "changed").write_text("now it is longer")
    (live / "removed").unlink()
    (live / "added").write_text("x")
    before = walk(live)
    plan = json.loads(store("rollback", "s", "--to", "1", "--dry-run", "--json").stdout)
    steps = {(step["action"], step["path"]) for step in plan["trees"]["t"]["steps"]}
    assert steps == {("replace", "changed"), ("create", "removed"), ("remove", "added"), ("metadata", ".")}
    assert plan["trees"]["t"]["path"] == str(live)
    assert plan["pre_rollback"] is True
    shown = store("rollback", "s", "--to", "1", "--dry-run").stdout
    assert "replace  changed" in shown
    assert compare(before, walk(live)) == []
    assert len(json.loads(store("log", "s", "--json").stdout)) == 1


def changed_at(top: Path) -> dict[bytes, int]:
    """When each file and directory was last touched in any way, in the tree that names can reach."""
    found = {}
    for path in TreeMutator(top, 0).paths():
        with contextlib.suppress(OSError):
            found[path] = os.lstat(path).st_ctime_ns
    return found


def test_nothing_to_do_touches_nothing(store: Run, tmp_path: Path) -> None:
    live = tmp_path / "live"
    make_feature_tree(live, many=20)
    store("snapshot", "s", "--tree", f"t={live}")
    before = changed_at(live)
    store("rollback", "s", "--to", "1", "--numeric-ids")
    assert changed_at(live) == before


def test_only_what_differs_is_touched(store: Run, tmp_path: Path) -> None:
    live = tmp_path / "live"
    make_feature_tree(live, many=200)
    store("snapshot", "s", "--tree", f"t={live}")
    (live / "crowd" / "000005").write_text("changed")
    (live / "crowd" / "000006").unlink()
    before = changed_at(live)
    store("rollback", "s", "--to", "1", "--numeric-ids")
    after = changed_at(live)
    touched = {path for path, when in before.items() if after[path] != when}
    crowd = os.fsencode(live / "crowd")
    assert touched == {crowd, crowd + b"/000005"}
    assert after.keys() - before.keys() == {crowd + b"/000006"}


def test_a_dump_of_a_file_is_rewritten_with_the_owner_and_mode_it_has(store: Run, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    first = os.urandom(300_000)
    dump.write_bytes(first)
    store("snapshot", "s", "--dump", f"d={dump}")
    dump.write_bytes(b"second")
    os.chown(dump, 4242, 4243)
    os.chmod(dump, 0o640)
    store("rollback", "s", "--to", "1")
    info = dump.stat()
    assert dump.read_bytes() == first
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (4242, 4243, 0o640)
    assert leftovers(tmp_path) == []
    assert store("cat", "s@2:d", binary=True).stdout == b"second"
    dump.unlink()
    store("rollback", "s", "--to", "1")
    assert dump.read_bytes() == first


@pytest.mark.parametrize("options", [(), ("--no-pre-rollback",)])
@pytest.mark.parametrize("there", [True, False])
def test_a_file_that_a_failing_rollback_wrote_is_reverted(
    store: Run, tmp_path: Path, options: tuple[str, ...], there: bool
) -> None:
    dump = tmp_path / "dump"
    dump.write_bytes(b"first")
    other = tmp_path / "other"
    other.write_bytes(b"x")
    store("snapshot", "s", "--dump", f"a={dump}", "--dump", f"b={other}")
    dump.write_bytes(b"second")
    os.chmod(dump, 0o604)
    os.utime(dump, ns=(0, 123_456_789))
    other.write_bytes(b"y")
    if not there:
        dump.unlink()
    store("rollback", "s", "--to", "1", *options, "--restore", "b=false", expect=11)
    assert dump.exists() == there
    if there:
        assert dump.read_bytes() == b"second"
        assert stat.S_IMODE(dump.stat().st_mode) == 0o604
        assert dump.stat().st_mtime_ns == 123_456_789
    assert leftovers(tmp_path) == []


def test_a_restore_program_that_is_missing_is_found_before_anything_is_touched(
    store: Run, tmp_path: Path
) -> None:
    live = tmp_path / "live"
    live.mkdir()
    (live / "a").write_text("first")
    store("snapshot", "s", "--tree", f"t={live}", "--exec", "d=echo hello")
    (live / "a").write_text("second state")
    before = walk(live)
    for argv in ("no-such-program-of-castore", str(tmp_path / "none"), str(tmp_path)):
        failed = store("rollback", "s", "--to", "1", "--restore", f"d={argv}", expect=None)
        assert failed.returncode in {2, 4}
        assert argv in failed.stderr
        assert len(json.loads(store("log", "s", "--json").stdout)) == 1
        assert "not intact" not in failed.stderr
        assert compare(before, walk(live)) == []


def test_a_directory_that_looks_like_that_of_a_restore_is_a_directory_like_any_other(
    store: Run, tmp_path: Path
) -> None:
    live = tmp_path / "live"
    live.mkdir()
    (live / "a").write_text("first")
    store("snapshot", "s", "--tree", f"t={live}")
    planted = live / ".castore-aside-0123456789abcdef"
    planted.mkdir()
    (planted / "journal").write_text("castorej")
    done = store("rollback", "s", "--to", "1")
    assert f"{planted} belongs to no restore that this user's castore began" in done.stderr
    assert os.listdir(live) == ["a"]
    store("rollback", "s", "--undo")
    assert (planted / "journal").read_text() == "castorej"


def test_each_refusal_after_a_killed_rollback_names_a_command_that_works(
    store: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = tmp_path / "live"
    live.mkdir()
    (live / "file").write_text("first")
    config = tmp_path / "castore.toml"
    text = f'[service.s]\nstop = ["true"]\nstart = ["true"]\n[service.s.parts.t]\nengine = "tree"\npath = "{live}"\n'
    config.write_text(text)
    monkeypatch.setenv("CASTORE_CONFIG", str(config))
    store("snapshot", "s", "--revision", "r1")
    (live / "file").write_text("the second")
    store("snapshot", "s", "--revision", "r2")
    config.write_text(text.replace("[service.s]\n", '[service.s]\nhealth = ["sh", "-c", "kill -9 $PPID"]\n'))
    store("rollback", "s", "--to", "r1", expect=-9)
    config.write_text(text)
    for command, code in (
        (["rollback", "--undo", "s"], 11),
        (["rollback", "s", "--to", "r2"], 11),
        (["restore", "--in-place", "--yes", "s@1:t", live], 1),
        (["recover", live], 1),
    ):
        refused = store(*command, expect=code)
        assert re.search(r"castore recover s\b", refused.stderr), (command, refused.stderr)
    store("recover", "s")
    assert (live / "file").read_text() == "the second"
    store("restore", "--in-place", "--yes", "s@1:t", live)
