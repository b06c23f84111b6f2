"""What castore refuses on the command line: the exit code, and a message that says what is wrong."""

from __future__ import annotations

import json
import os
import select
import shutil
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.stores import remove_copies

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def store(castore: Callable, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that CASTORE_STORE names, with a generation of one tree and one dump."""
    path = home / "store"
    monkeypatch.setenv("CASTORE_STORE", str(path))
    castore("init", path)
    (home / "live").mkdir()
    (home / "live" / "file").write_text("hello")
    (home / "dump").write_text("a dump")
    take(castore, "r1")
    return path


def take(castore: Callable, revision: str) -> int:
    done = castore("snapshot", "web", "--revision", revision, "--tree", "t=live", "--dump", "d=dump", "--json")
    return json.loads(done.stdout)["number"]


def identity_of(home: Path) -> Path:
    (path,) = (home / ".config" / "castore").glob("*.identity")
    return path


def refused(done: subprocess.CompletedProcess, *words: str) -> None:
    """The message is one line, holds the words, and no traceback."""
    line = done.stderr.strip()
    assert line.startswith("castore: ")
    assert "\n" not in line
    assert "Traceback" not in line
    assert "mistake in castore" not in line
    for word in words:
        assert word in line, line


READS = [
    ("cat", "web@1:t/file"),
    ("cat", "web@1:d"),
    ("ls", "web@1:t"),
    ("restore", "web@1", "out"),
    ("verify", "--read-data"),
]


def test_a_wrong_identity_opens_nothing(castore: Callable, store: Path, home: Path) -> None:
    public = castore("key", "new", "other").stdout.strip()
    for words in READS:
        done = castore(*words, "--identity", "other", expect=7)
        refused(done, "opens nothing in the store", public)
        assert done.stdout == ""
    assert not any(path.is_file() for path in (home / "out").rglob("*"))


def test_reading_without_an_identity_is_refused(castore: Callable, store: Path, home: Path) -> None:
    os.rename(identity_of(home), home / "elsewhere")
    for words in READS:
        refused(castore(*words, expect=7), "identity is needed", "--identity")
    assert castore("cat", "web@1:d", "--identity", "elsewhere").stdout == "a dump"


def test_a_machine_with_the_writer_key_only_adds_and_checks(castore: Callable, store: Path, home: Path) -> None:
    os.rename(identity_of(home), home / "elsewhere")
    assert take(castore, "r2") == 2
    assert [g["number"] for g in json.loads(castore("log", "--json").stdout)] == [2, 1]
    castore("reindex")
    castore("verify")
    castore("verify", "--packs")
    castore("stats")
    castore("show", "web@2")
    shutil.rmtree(home / ".cache")
    castore("verify", "--packs")
    (home / "live" / "file").write_text("changed")
    assert take(castore, "r3") == 3
    castore("verify", "--read-data", "--identity", "elsewhere")


def test_a_machine_with_neither_key_is_referred_to_key_adopt(castore: Callable, store: Path, home: Path) -> None:
    os.rename(identity_of(home), home / "elsewhere")
    shutil.rmtree(home / ".local" / "state")
    shutil.rmtree(home / ".cache")
    for words in (("log",), ("snapshot", "web", "--tree", "t=live"), ("verify",)):
        refused(castore(*words, expect=7), "no writer key", "castore key adopt")
    castore("key", "adopt", "--replace", "--identity", "elsewhere")
    castore("log")


def test_a_file_that_is_no_identity_is_reported(castore: Callable, store: Path, home: Path) -> None:
    (home / "bad").write_text(identity_of(home).read_text()[:-5])
    refused(castore("cat", "web@1:d", "--identity", "bad", expect=7), "bad")
    refused(castore("cat", "web@1:d", "--identity", "nowhere", expect=7), "nowhere", "No such file")


def patch_version(path: Path) -> None:
    data = bytearray(path.read_bytes())
    assert struct.unpack_from("<H", data, 8) == (1,)
    struct.pack_into("<H", data, 8, 7)
    path.write_bytes(data)


def test_a_store_of_another_version_is_refused(castore: Callable, store: Path) -> None:
    remove_copies(store)
    patch_version(store / "config" / "1")
    for words in (("log",), ("snapshot", "web", "--tree", "t=live"), ("verify",), ("cat", "web@1:d")):
        refused(castore(*words, expect=1), "config/1", "format 7", "knows 1", "update")


def test_a_generation_of_another_version_is_reported_and_not_passed_over(
    castore: Callable, store: Path, home: Path
) -> None:
    take(castore, "r2")
    (newest,) = (store / "generations").glob("*-0000000002")
    patch_version(newest)
    shutil.rmtree(home / ".cache")
    for words in (("log",), ("stats",), ("reindex",)):
        done = castore(*words)
        assert f"generations/{newest.name}" in done.stderr
        assert "format 7" in done.stderr
    done = castore("verify", expect=5)
    assert "format 7" in done.stdout
    castore("cat", "web@1:d")
    for words in (("cat", "web@2:d"), ("restore", "web@latest", "out"), ("cat", "web@r2:d"), ("show", "web@r1")):
        refused(castore(*words, expect=5), f"generations/{newest.name}", "format 7")
    assert not (home / "out").exists()
    # Its number is not given to another.
    assert take(castore, "r3") == 3


def test_a_directory_that_is_no_store_is_refused(castore: Callable, home: Path) -> None:
    (home / "empty").mkdir()
    (home / "full").mkdir()
    (home / "full" / "file").write_text("x")
    (home / "file").write_text("x")
    for where in ("empty", "full", "nowhere", "file"):
        for words in (("log",), ("snapshot", "web", "--dump", "d=file")):
            refused(castore(*words, "--store", where, expect=6), f"no store at {home / where}")
    assert os.listdir(home / "empty") == []
    assert os.listdir(home / "full") == ["file"]
    assert not (home / "nowhere").exists()


ABSENT = [
    ("mail@1:d", ("no service 'mail'", "it holds: web")),
    ("web@2:d", ("no generation 2", "newest is 1")),
    ("web@#0:d", ("no generation 0",)),
    ("web@zz:d", ("no generation of 'web' has revision 'zz'", "nearest: r1")),
    ("web@=r:d", ("has revision 'r'", "nearest: r1")),
    ("web@1999-12-31:d", ("as old as 1999-12-31",)),
    ("web@1:x", ("no part 'x'", "it has t, d")),
    ("web@1:t/no/such", ("no 'no'", "castore ls")),
]
BAD = ["", "web", "web@", "@1", "@", "web/x@1", "we b@1:d", ".web@1", "web@1:d/path", "web@1", "web@1:t/file/below"]


def test_what_is_not_stored_is_reported(castore: Callable, store: Path, home: Path) -> None:
    for what, words in ABSENT:
        refused(castore("cat", what, expect=6), *words)
    what, words = ABSENT[-1]
    refused(castore("restore", what, "out", expect=6), *words)
    assert not (home / "out").exists()


def test_a_bad_selector_is_wrong_usage(castore: Callable, store: Path) -> None:
    for what in BAD:
        refused(castore("cat", what, expect=2))


def test_a_beginning_of_several_revisions_is_wrong_usage(castore: Callable, store: Path) -> None:
    for revision in ("abc1", "abc2", "abc"):
        take(castore, revision)
    refused(castore("cat", "web@ab:d", expect=2), "'ab' begins several", "abc, abc1, abc2")
    assert castore("cat", "web@abc1:d").stdout == "a dump"
    # A whole revision is meant though others begin with it.
    assert "web@4" in castore("show", "web@abc").stdout


def test_a_number_that_is_also_a_revision_is_wrong_usage(castore: Callable, store: Path) -> None:
    take(castore, "r2")
    assert take(castore, "2") == 3
    refused(castore("show", "web@2", expect=2), "#2", "=2", "newest generation is 3")
    assert "web@2" in castore("show", "web@#2").stdout
    assert "web@3" in castore("show", "web@=2").stdout
    assert castore("cat", "web@=2:d").stdout == "a dump"
    refused(castore("rollback", "web", "--to", "2", expect=2), "#2", "=2")


_HOLD = """
import sys
from castore.store import MachinePaths, open_store
store = open_store(sys.argv[1], MachinePaths(sys.argv[2], sys.argv[3]))
with store, store.state.lock("web"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_service_that_another_works_on_is_busy(castore: Callable, store: Path, home: Path) -> None:
    places = [str(home / ".local/state/castore"), str(home / ".cache/castore")]
    if os.geteuid() == 0:
        # The fixture sets the XDG folders, which go before root's own.
        assert os.path.isdir(places[0])
    command = [sys.executable, "-c", _HOLD, str(store), *places]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert select.select([holder.stdout], [], [], 30)[0]
            assert holder.stdout.readline() == b"held\n"
            words = ("snapshot", "web", "--tree", "t=live")
            refused(castore(*words, expect=8), "at work on 'web'", f"pid {holder.pid}", "try again")
            refused(castore("rollback", "web", "--to", "1", expect=8), "at work on 'web'")
            # Others are free, and so is reading.
            castore("snapshot", "mail", "--dump", "d=dump")
            castore("cat", "web@1:d")
        finally:
            holder.communicate()
    castore("snapshot", "web", "--tree", "t=live")


# What was interrupted, and nobody to ask


def test_a_directory_that_was_planted_does_not_block_a_snapshot(castore: Callable, store: Path, home: Path) -> None:
    (home / "live" / ".castore-aside-0123456789abcdef").mkdir()
    done = castore("snapshot", "web", "--tree", "t=live")
    assert "live/.castore-aside-0123456789abcdef belongs to no restore" in done.stderr
    assert ".castore-aside-0123456789abcdef" in castore("ls", "web@latest:t").stdout


@pytest.mark.parametrize("words", [("forget", "web@1"), ("repair",)])
def test_without_a_terminal_the_way_out_is_named(castore: Callable, store: Path, words: tuple[str, ...]) -> None:
    if words == ("repair",):
        (pack,) = (store / "packs").iterdir()
        data = pack.read_bytes()
        pack.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    done = castore(*words, expect=2)
    assert done.stderr.splitlines()[-1].endswith("give --yes to agree")
    assert len(json.loads(castore("log", "--json").stdout)) == 1


def test_a_restore_that_failed_does_not_stand_in_the_way_of_the_next(castore: Callable, store: Path, home: Path) -> None:
    (home / "other").write_text(identity_of(home).read_text())
    castore("init", home / "second")
    wrong = [path for path in (home / ".config" / "castore").glob("*.identity") if path.read_text() != (home / "other").read_text()]
    refused(castore("restore", "web@1:d", "out", "--identity", wrong[0], expect=7), "identity")
    assert not (home / "out").exists()
    (pack,) = (store / "packs").iterdir()
    data = pack.read_bytes()
    pack.write_bytes(data[:40] + bytes(len(data) - 40))
    done = castore("restore", "web@1:d", "out", "--identity", "other", expect=5)
    assert not (home / "out").exists(), done.stderr
    pack.write_bytes(data)
    castore("restore", "web@1:d", "out", "--identity", "other")
    assert (home / "out" / "d").read_text() == "a dump"


def test_a_missing_store_is_not_recreated_by_a_snapshot(castore: Callable, home: Path) -> None:
    (home / "dump").write_text("a dump")
    castore("snapshot", "web", "--dump", "d=dump")
    place = home / ".local" / "share" / "castore"
    place.rename(home / "elsewhere")
    done = castore("snapshot", "web", "--dump", "d=dump", expect=2)
    refused(done, str(place), "mount its file system")
    assert "castore init" not in done.stderr


def test_no_message_suggests_to_create_a_store_where_one_may_have_been(castore: Callable, home: Path) -> None:
    (home / "dump").write_text("a dump")
    disk = home / "disk"
    disk.mkdir()
    store = disk / "store"
    castore("init", store)
    takes = ("snapshot", "web", "--dump", "d=dump", "--store")
    castore(*takes, store)
    disk.rename(home / "elsewhere")
    (home / "link").symlink_to(store)
    places = [store, disk, home / "link", home / "no" / "such" / "place"]
    disk.mkdir()
    (home / "empty").mkdir()
    for place in [*places, home / "empty", home / "empty" / "store"]:
        for command in (("log", "--store", place), (*takes, place), ("verify", "--store", place)):
            done = castore(*command, expect=6)
            refused(done, str(place), "mount")
            assert "init" not in done.stderr
    store.mkdir()
    done = castore("log", "--store", store, expect=6)
    assert "init" not in done.stderr
    refused(done, str(store), "this machine has used a store there")
    done = castore("log", "--store", home / "new", expect=6)
    refused(done, "castore init")


def test_a_store_is_created_where_one_was_only_on_request(castore: Callable, home: Path) -> None:
    (home / "dump").write_text("a dump")
    castore("snapshot", "web", "--dump", "d=dump")
    place = home / ".local" / "share" / "castore"
    place.rename(home / "elsewhere")
    refused(castore("init", expect=2), str(place), "--replace-lost")
    castore("init", "--replace-lost", place)
    castore("snapshot", "web", "--dump", "d=dump")


def test_a_store_is_not_made_among_other_things(castore: Callable, home: Path) -> None:
    place = home / "place"
    (place / "lost+found").mkdir(parents=True)
    castore("init", place)
    (home / "mine").mkdir()
    (home / "mine" / "letter").write_text("dear")
    refused(castore("init", home / "mine", expect=2), "letter", "a directory of its own")
    assert os.listdir(home / "mine") == ["letter"]


def test_an_unknown_service_is_reported_with_the_known_ones(castore: Callable, store: Path) -> None:
    refused(castore("prune", "wbe", expect=6), "wbe", "it holds: web")
