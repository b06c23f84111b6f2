"""Two machines on one store, and copies of a store at other places."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import forked_cli


@dataclass
class Machine:
    """One machine: its own state, cache and configuration directories."""

    home: Path
    identity: Path
    store: Path

    def run(self, *arguments: str, store: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "HOME": str(self.home),
            "XDG_STATE_HOME": str(self.home / "state"),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "XDG_DATA_HOME": str(self.home / "data"),
            "CASTORE_STORE": str(store or self.store),
            "CASTORE_IDENTITY": str(self.identity),
        }
        return forked_cli.text(arguments, env=environment, cwd=self.home)

    def done(self, *arguments: str, store: Path | None = None) -> str:
        ended = self.run(*arguments, store=store)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def refused(self, code: int, *arguments: str, store: Path | None = None) -> str:
        ended = self.run(*arguments, store=store)
        assert ended.returncode == code, (ended.returncode, ended.stdout, ended.stderr)
        return ended.stderr

    def take(self, content: str, service: str = "web", store: Path | None = None) -> subprocess.CompletedProcess[str]:
        (self.home / "dump").write_text(content)
        ended = self.run("snapshot", service, "--dump", f"d={self.home / 'dump'}", store=store)
        assert ended.returncode == 0, ended.stderr
        return ended


@pytest.fixture
def machines(tmp_path):
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append(Machine(tmp_path / name, tmp_path / "identity", tmp_path / "store"))
    made[0].done("init", str(tmp_path / "store"), "--identity", str(tmp_path / "identity"))
    made[1].done("key", "adopt", "--host", "two")
    return made


def test_a_removal_by_one_machine_is_known_to_be_intended_on_the_other(machines):
    one, two = machines
    for content in ("1", "2", "3"):
        one.take(content)
    assert "web" in two.done("log", "web")
    one.done("forget", "--yes", "web@3")
    assert two.done("cat", "web@latest:d") == "2"
    assert not two.take("4").stderr.strip().startswith("castore: warning")
    assert two.done("cat", "web@4:d") == "4", "the number 3 is not given again"
    one.done("forget", "--yes", "--all", "web", "--host", "*")
    assert two.done("log").strip() == "" or "web" not in two.done("log")
    assert "web@5" in two.take("5").stdout


def test_a_removal_is_known_to_a_machine_that_looks_much_later(machines):
    one, two = machines
    for content in ("1", "2", "3"):
        one.take(content)
    two.done("log", "web")
    one.take("4")
    one.done("forget", "--yes", "web@3")
    one.done("forget", "--yes", "web@4")
    one.done("key", "rotate-writer")
    assert two.done("cat", "web@latest:d") == "2"


def test_an_unexplained_disappearance_is_refused_and_a_snapshot_warns(machines):
    one, two = machines
    for content in ("1", "2"):
        one.take(content)
    two.done("log", "web")
    for path in (one.store / "generations").glob("*-0000000002"):
        path.unlink()
    assert "web@2" in two.refused(10, "log", "web")
    for night in (3, 4):
        taken = two.take(str(night))
        assert f"web@{night}" in taken.stdout
        assert "castore: warning: the store" in taken.stderr
        assert "web@2" in taken.stderr
        assert "--accept-older" in taken.stderr
    assert "web@2" in two.refused(10, "cat", "web@latest:d")
    two.done("log", "web", "--accept-older")
    assert two.done("cat", "web@latest:d") == "4"
    assert "warning" not in two.take("5").stderr


@pytest.mark.parametrize("how", ["by hand", "configured"])
def test_a_snapshot_of_a_new_revision_warns_after_a_disappearance_too(machines, how):
    one, _ = machines
    revision = ["--revision", "r1"] if how == "by hand" else []
    tree, config = one.home / "tree", one.home / "config" / "castore" / "castore.toml"
    tree.mkdir()

    def configured(name):
        config.parent.mkdir(parents=True, exist_ok=True)
        value = f'[service.web]\nrevision = {{ value = "{name}" }}\n' if how == "configured" else ""
        config.write_text(f'{value}[service.web.parts.t]\nengine = "tree"\npath = "{tree}"\n')

    configured("r1")
    for _ in range(2):
        one.done("snapshot", "web", *revision)
    newest = max(one.store.glob("generations/*"), key=lambda path: path.name)
    newest.unlink()
    configured("r2")
    for _ in range(2):
        ended = one.run("snapshot", "web", *(["--revision", "r2"] if revision else []))
        assert (ended.returncode, "is older than" in ended.stderr) == (0, True), ended.stderr
    one.refused(10, "log", "web")


def test_a_copy_in_the_place_of_a_store_is_read_as_itself(machines, tmp_path):
    one, _ = machines
    one.take("first")
    shutil.copytree(one.store, tmp_path / "copy")
    one.take("of the original")
    one.take("three")
    other = Machine(tmp_path / "third", one.identity, tmp_path / "copy")
    other.home.mkdir()
    other.done("key", "adopt", "--host", "third")
    other.take("of the copy")
    other.take("three of the copy")
    os.rename(one.store, tmp_path / "away")
    os.rename(tmp_path / "copy", one.store)
    one.refused(10, "cat", "web@2:d")
    one.done("log", "web", "--accept-older")
    assert one.done("cat", "web@2:d") == "of the copy"
    one.done("restore", "web@2:d", str(tmp_path / "out"))
    assert (tmp_path / "out" / "d").read_text() == "of the copy"
    assert one.done("cat", "web@3:d") == "three of the copy"


def test_an_older_generation_of_a_copy_is_read_as_itself(machines, tmp_path):
    """The newest generations are the same, and one before them is not."""
    one, two = machines
    for content in ("1", "2"):
        one.take(content)
    two.take("x", "mail")
    (name,) = (path.name for path in (one.store / "generations").glob("*-0000000001") if
               (path.parent / path.name.replace("-0000000001", "-0000000002")).exists())
    one.done("log")
    shutil.copytree(one.store, tmp_path / "copy")
    (tmp_path / "copy" / "generations" / name).unlink()
    other = Machine(tmp_path / "third", one.identity, tmp_path / "copy")
    other.home.mkdir()
    other.done("key", "adopt", "--host", "third")
    (tmp_path / "copy" / "generations" / name.replace("-0000000001", "-0000000002")).rename(tmp_path / "second")
    assert "web@1" in other.take("one of the copy").stdout
    (tmp_path / "second").rename(tmp_path / "copy" / "generations" / name.replace("-0000000001", "-0000000002"))
    shutil.rmtree(one.store)
    os.rename(tmp_path / "copy", one.store)
    assert one.done("cat", "web@1:d") == "one of the copy"
    assert one.done("cat", "web@2:d") == "2"


def test_a_look_at_an_offsite_copy_leaves_the_original_alone(machines, tmp_path):
    one, _ = machines
    one.take("1")
    shutil.copytree(one.store, tmp_path / "copy")
    one.take("2")
    for _round in range(2):
        assert len(one.done("log", "web", store=tmp_path / "copy").splitlines()) < len(one.done("log", "web").splitlines())
    assert one.done("cat", "web@latest:d", store=tmp_path / "copy") == "1"
    assert one.done("cat", "web@latest:d") == "2"
    link = tmp_path / "link"
    link.symlink_to(one.store)
    assert one.done("cat", "web@latest:d", store=link) == "2"
    folders = list((one.home / "cache" / "castore").glob("*/*/index"))
    assert len(folders) == 2, "the original by two names, and the copy"


def test_the_note_on_a_configuration_that_is_not_accepted_names_a_way_out(machines):
    one = machines[0]
    (one.store / "config" / "99").write_bytes(os.urandom(300))
    assert "config/99 is not accepted" in (ended := one.run("log")).stderr
    assert "'castore repair' with the identity of an admin" in ended.stderr
    one.done("repair", "--yes")
    assert "config/99" not in one.run("log").stderr


def test_what_stops_compact_and_prune_names_a_command_that_works(machines):
    one = machines[0]
    one.take("content")
    (record,) = (one.store / "generations").iterdir()
    tag, starts = record.name[:16], (b"", b"castoreg\2" + bytes(7), b"castoreg\1" + bytes(7))
    for name, start in zip((f"{tag}-0000000007", f"{tag}-4294967295", f"{'0' * 16}-0000000001"), starts, strict=True):
        (one.store / "generations" / name).write_bytes(start + os.urandom(300))
    for command in (["compact"], ["prune", "--keep-last", "3"]):
        assert "'castore repair' deletes" in one.refused(5, *command)
    one.done("repair", "--yes")
    one.done("compact")
    one.done("prune", "--keep-last", "3")
    assert one.done("cat", "web@latest:d") == "content"
