"""Names in a store that somebody made for harm: none becomes a path, and castore says which object is not valid."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from castore.errors import DamageError, UsageError
from castore.model.generation import (
    Details,
    FileOwner,
    Generation,
    Origin,
    decode_details,
    decode_generation,
    encode,
)
from castore.model.names import check_host, check_name, check_path, host_name
from castore.services import folders
from castore.services.sources import Tree
from castore.store import MachinePaths, open_store
from castore.store.format import generation
from castore.store.format.names import generation_name
from tests.support.checkout import ROOT
from tests.support.forged_generations import forge
from tests.support.stores import Sandbox

Run = Callable[..., subprocess.CompletedProcess]

NAMES = ["../../x", "/nonexistent/x", "a\0b", "a\nb", ".", "..", "", "a/b", "-a", "a" * 101, "ü", "\x1b[2J"]


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path / "sandbox", average=4096)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "live"
    top.mkdir()
    (top / "file").write_text("content")
    return top


def named(name: str) -> Callable[[Generation], Generation]:
    """Give a generation's parts another name."""
    return lambda one: msgspec.structs.replace(one, parts=tuple(msgspec.structs.replace(part, name=name) for part in one.parts))


def fill(sandbox: Sandbox, tree: Path) -> None:
    """Put a generation that is valid into a store, and one for each hostile name of a part."""
    sandbox.snapshot("web", {"t": Tree(str(tree))})
    with sandbox.open(identity=False) as store:
        for number, name in enumerate(NAMES, 2):
            forge(store, "web", {"t": Tree(str(tree))}, lambda one, name=name: named(name)(one))
            store.index.generations.remove(g.partition("/")[2] for g in store.generations.objects("web", [number]))
            store.keys.freshness.forget("web", {number}, store.generations.get("web", 1))


def machine(sandbox: Sandbox, home: Path, castore: Run) -> None:
    """Make `home` a machine that uses a sandbox's store."""
    (home / "identity").write_text(sandbox.identity.text())
    os.environ["CASTORE_STORE"], os.environ["CASTORE_IDENTITY"] = str(sandbox.store), str(home / "identity")
    castore("key", "adopt", "--host", "victim")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CASTORE_STORE", "CASTORE_IDENTITY"):
        monkeypatch.setenv(name, "")


def everything(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def test_no_name_of_a_part_becomes_a_path(sandbox: Sandbox, tree: Path, home: Path, castore: Run, tmp_path: Path) -> None:
    fill(sandbox, tree)
    machine(sandbox, home, castore)
    scratch = tmp_path / "deep/er/scratch"
    scratch.mkdir(parents=True)
    listed = castore("log", "web")
    assert listed.stderr.count("is not one that castore writes") >= len(NAMES)
    castore("restore", "web@1", scratch / "good")
    assert (scratch / "good/t/file").read_text() == "content"
    before = everything(tmp_path / "deep")
    for number in range(2, 2 + len(NAMES)):
        assert castore("restore", f"web@{number}", scratch / "out", expect=None).returncode in {5, 6}
        assert castore("drill", f"web@{number}", "--scratch", scratch, expect=None).returncode in {5, 6}
    assert castore("rollback", "web", "--to", "2", "--dry-run", expect=None).returncode in {5, 6}
    assert castore("diff", "web@1", "web@2", expect=None).returncode in {5, 6}
    for command in (["events"], ["find", "*"], ["history", "web:t"], ["ls", "web@1:t"]):
        castore(*command)
    assert castore("verify", expect=None).returncode == 5
    assert everything(tmp_path / "deep") <= before
    rescue = ROOT / "tools/rescue.py"
    for number in range(2, 2 + len(NAMES)):
        command = [sys.executable, rescue, sandbox.store, "--identity", home / "identity", "web", str(number), scratch / f"r{number}"]
        subprocess.run(command, capture_output=True, check=False, timeout=60)
        made = everything(tmp_path / "deep") - before
        assert all(path.startswith(f"{scratch}/r") for path in made)
    done = subprocess.run([sys.executable, rescue, sandbox.store, "--identity", home / "identity"], capture_output=True, check=False, timeout=60)
    assert b"\x1b" not in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_no_record_has_a_name_that_could_be_a_path(sandbox: Sandbox, tree: Path, name: str) -> None:
    taken = sandbox.snapshot("web", {"t": Tree(str(tree))})
    replace = msgspec.structs.replace
    changed = [named(name)(taken), replace(taken, service=name), replace(taken, missing_parts=(name,))]
    if not name.isprintable() or "/" in name:
        changed += [replace(taken, host=name)]
    if not name.isprintable():
        changed += [replace(taken, revision=name)]
    for one in changed:
        with pytest.raises(UsageError):
            encode(one)
        with pytest.raises(DamageError, match="not one that castore writes"):
            decode_generation(msgspec.msgpack.encode(one))
    for details in (Details({name: Origin()}), Details({}, absent_parts={name: "tree"})):
        with pytest.raises(UsageError):
            encode(details)
        with pytest.raises(DamageError, match="not what castore writes"):
            decode_details(msgspec.msgpack.encode(details))


@pytest.mark.parametrize(
    "change",
    [
        {"session": b""}, {"session": bytes(17)}, {"time": 1 << 63}, {"time": -1}, {"duration": -1}, {"host_id": "../x"}, {"revision": "latest"},
        {"revision": "x" * 256}, {"parent": 1 << 40}, {"host": "x" * 256}, {"host": "*"},
    ],
)
def test_no_record_has_an_impossible_value(sandbox: Sandbox, tree: Path, change: dict) -> None:
    taken = sandbox.snapshot("web", {"t": Tree(str(tree))})
    with pytest.raises(DamageError):
        decode_generation(msgspec.msgpack.encode(msgspec.structs.replace(taken, **change)))


@pytest.mark.parametrize("change", [{"files": (1 << 32) + 1}, {"files": -1}, {"size": -1}, {"size": 1 << 63}, {"skipped_files": -1}, {"name": "t"}])
def test_no_part_has_an_impossible_value(sandbox: Sandbox, tree: Path, change: dict) -> None:
    taken = sandbox.snapshot("web", {"t": Tree(str(tree))})
    part = msgspec.structs.replace(taken.parts[0], name="other") if change != {"name": "t"} else taken.parts[0]
    parts = (taken.parts[0], msgspec.structs.replace(part, **change))
    with pytest.raises(DamageError):
        decode_generation(msgspec.msgpack.encode(msgspec.structs.replace(taken, parts=parts)))


@pytest.mark.parametrize(
    "origin",
    [
        Origin(path=b"relative"), Origin(path=b"/a/../b"), Origin(path=b"/a\0b"), Origin(path=b"/" + b"a" * (1 << 17)), Origin(engine="../x"),
        Origin(engine="file", settings={"path": "relative"}), Origin(engine="sqlite", settings={"path": "/a/../../etc/passwd"}),
        Origin(dump=("a\0b",)), Origin(settings={"a": ["x\0y"]}), Origin(raw={"dump": (b"a\0",)}), Origin(above=(FileOwner(b"../x", 0o755, 0, 0),)),
        Origin(above=(FileOwner(b"/x", 0o100755, 0, 0),)), Origin(settings={"a": "x" * (2 << 20)}),
    ],
    ids=repr,
)
def test_no_recorded_place_is_anything_but_an_absolute_path(origin: Origin) -> None:
    with pytest.raises(DamageError):
        decode_details(msgspec.msgpack.encode(Details({"t": origin})))


def test_details_that_are_nested_without_end_are_refused() -> None:
    for depth in (40, 300, 5000):
        nested: bytes = b"\x90"
        for _ in range(depth):
            nested = b"\x91" + nested
        plain = b"\x81\xa7origins\x81\xa1t\x81\xa8settings\x81\xa1a" + nested
        with pytest.raises(DamageError):
            decode_details(plain)


def test_only_directories_above_a_part_are_made(tmp_path: Path) -> None:
    above = tuple(FileOwner(os.fsencode(path), 0o777, 0, 0) for path in (tmp_path / "srv", tmp_path / "elsewhere", tmp_path / "srv/app", tmp_path / "sr"))
    origin = Origin(path=os.fsencode(tmp_path / "srv/app/files"), above=above)
    found = [os.fsdecode(one.path) for one in folders.missing([origin])]
    assert found == [str(tmp_path / "srv"), str(tmp_path / "srv/app")]


def test_one_validator_serves_what_is_written_and_what_is_read() -> None:
    assert check_name("part", "a-b_c.d1") == "a-b_c.d1"
    assert check_host("Ümläut host") == "Ümläut host"
    assert check_host("") == ""
    assert check_path(b"/srv/x") == b"/srv/x"
    for odd in ("a/b", "*", "a\nb", " a ", "x" * 300, "a\udc80"):
        assert check_host(host_name(odd)) == host_name(odd)


def test_a_name_in_the_store_is_checked_where_it_is_opened(sandbox: Sandbox, tree: Path) -> None:
    with sandbox.open(identity=False) as store:
        forged = forge(store, "web", {"t": Tree(str(tree))}, named("../x"))
        name = generation_name(store.keys.writer_key.tag("web"), forged.number)
        with pytest.raises(DamageError, match=name):
            generation.open_generation(name, store.storage.get(name), store.keys.writer_key)
    fresh = MachinePaths(str(sandbox.folder / "state2"), str(sandbox.folder / "cache2"))
    with open_store(str(sandbox.store), fresh, lambda: sandbox.identity) as store:
        store.sync()
        assert list(store.damaged) == [name]
        assert store.generations.services() == []
