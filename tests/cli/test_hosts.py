"""Several hosts that use one service name in one store, and one host that changes its name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import forked_cli


@dataclass
class Machine:
    """One machine: its own castore.toml, state, cache and directory of the service."""

    home: Path
    store: Path
    identity: Path

    def describe(
        self, host: str, *, top: Path | None = None, more: str = "", former: tuple[str, ...] = ()
    ) -> None:
        name = f'host = "{host}"\n' if host else ""
        name += f"former-hosts = {json.dumps(former)}\n" if former else ""
        (self.home / "castore.toml").write_text(
            f'store = "{self.store}"\n{name}[service.web]\nrevision = {{ link = "{self.home}/revision" }}\n{more}'
            f'[service.web.parts.www]\nengine = "tree"\npath = "{top or self.top}"\n'
        )

    @property
    def top(self) -> Path:
        return self.home / "www"

    def run(self, *arguments: str, expect: int = 0, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "HOME": str(self.home),
            **{f"XDG_{kind}_HOME": str(self.home / kind.lower()) for kind in ("STATE", "CACHE", "CONFIG", "DATA")},
            "CASTORE_IDENTITY": str(self.identity),
        }
        if before:
            ended = subprocess.run(
                [*before, sys.executable, "-m", "castore", *arguments],
                env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=self.home, check=False,
            )
        else:
            ended = forked_cli.text(arguments, env=environment, cwd=self.home)
        assert ended.returncode == expect, (arguments, ended.returncode, ended.stdout, ended.stderr)
        return ended

    def take(self, content: str, revision: str = "r1", **options) -> str:
        self.top.mkdir(exist_ok=True)
        (self.top / "file").write_text(content)
        self.configure(revision)
        return self.run("snapshot", "web", **options).stderr

    def configure(self, revision: str) -> None:
        (self.home / "revision").unlink(missing_ok=True)
        (self.home / "revision").symlink_to(revision)

    def read(self, selector: str, *more: str) -> str:
        return self.run("cat", f"web@{selector}:www/file", *more).stdout

    def log(self, *more: str) -> list[dict]:
        return json.loads(self.run("log", "web", "--json", *more).stdout)


def machine(tmp_path: Path, name: str, host: str, *, first: bool = False) -> Machine:
    made = Machine(tmp_path / name, tmp_path / "store", tmp_path / "identity")
    made.home.mkdir()
    made.describe(host)
    made.configure("r1")
    if first:
        made.run("init", str(made.store), "--identity", str(made.identity))
    else:
        made.run("key", "adopt", "--replace", "--maintain")
    return made


@pytest.fixture
def two(tmp_path: Path) -> tuple[Machine, Machine]:
    """Two live machines; b wrote last."""
    a, b = machine(tmp_path, "one", "a", first=True), machine(tmp_path, "two", "b")
    a.take("a1")
    b.take("b2")
    a.take("a3", "r2")
    b.take("b4")
    return a, b


def test_a_selection_means_the_generations_of_this_host(two: tuple[Machine, Machine]) -> None:
    a, b = two
    assert [a.read(sel) for sel in ("latest", "r1", "=r1", "latest~1", "today")] == ["a3", "a1", "a1", "a1", "a3"]
    assert [b.read(sel) for sel in ("latest", "r1", "latest~1", "today")] == ["b4", "b4", "b2", "b4"]
    assert "other hosts have it: a" in b.run("cat", "web@r2:www/file", expect=6).stderr
    assert b.read("3") == a.read("#3") == "a3", "a number is of any host"
    assert b.read("latest", "--host", "a") == b.read("r2", "--host", "*") == "a3"
    assert b.read("3~1") == "a1"
    assert "its hosts: a, b" in b.run("cat", "web@latest:www/file", "--host", "c", expect=6).stderr


def test_log_shows_hosts_where_there_are_several(two: tuple[Machine, Machine]) -> None:
    a, _ = two
    lines = a.run("log", "web").stdout.splitlines()
    assert lines[0].split()[4] == "host"
    assert [one["host"] for one in a.log()] == ["b", "a", "b", "a"]
    assert [one["number"] for one in a.log("--host", "b")] == [4, 2]
    assert [one["parent"] for one in a.log()] == [2, 1, 0, 0]
    assert "host" not in a.run("log", "web", "--host", "a").stdout.splitlines()[0]
    assert "host      b  (not this one)" in a.run("show", "web@4").stdout


def test_prune_counts_and_removes_generations_of_this_host(two: tuple[Machine, Machine]) -> None:
    a, b = two
    a.describe("a", more="keep = { last = 1, per-revision = 0 }\n")
    a.run("prune")
    assert [one["number"] for one in b.log()] == [4, 3, 2]
    a.run("prune", "--host", "b")
    assert [one["number"] for one in b.log()] == [4, 3]


def test_forget_all_removes_generations_of_this_host(two: tuple[Machine, Machine]) -> None:
    a, b = two
    a.run("forget", "--all", "--yes", "web")
    assert [one["number"] for one in b.log()] == [4, 2]


def test_a_rollback_to_another_host_asks(two: tuple[Machine, Machine]) -> None:
    a, b = two
    b.describe("b", top=b.top)
    refused = b.run("rollback", "web", "--to", "3", expect=2)
    assert "web@3 was taken on host a, and this is b" in refused.stderr
    assert "www was taken from" in refused.stderr
    assert (b.top / "file").read_text() == "b4"
    assert "was taken on host a" in b.run("rollback", "web", "--to", "3", "--dry-run").stderr
    b.run("rollback", "web", "--to", "3", "--yes")
    assert (b.top / "file").read_text() == "a3"
    assert b.read("latest") == "b4", "the other host's generations do not become this one's"
    assert a.read("latest") == "a3"


def test_a_rollback_to_another_place_asks(two: tuple[Machine, Machine]) -> None:
    a, _ = two
    elsewhere = a.home / "elsewhere"
    a.describe("a", top=elsewhere)
    elsewhere.mkdir()
    a.run("rollback", "web", "--to", "1", "--dry-run")
    (elsewhere / "precious").write_text("x")
    refused = a.run("rollback", "web", "--to", "1", expect=2)
    assert f"would be restored to path '{elsewhere}'" in refused.stderr
    assert "--yes" in refused.stderr
    assert (elsewhere / "precious").exists()
    a.run("rollback", "web", "--to", "1", "--yes")
    assert (elsewhere / "file").read_text() == "a1"


def test_follow_and_drill_use_generations_of_this_host(two: tuple[Machine, Machine]) -> None:
    a, b = two
    assert "web@4 is sound" in b.run("drill", "web").stdout
    assert "web@3 is sound" in a.run("drill", "web").stdout
    b.configure("r2")
    assert "is new" in b.run("follow", "web").stdout, "r2 was on the other host only"


def test_a_machine_that_takes_over_uses_and_continues_what_there_is(tmp_path: Path) -> None:
    lost = machine(tmp_path, "lost", "old", first=True)
    lost.take("r1 of old")
    lost.take("r2 of old", "r2")
    top = lost.top
    shutil.rmtree(lost.home)
    fresh = machine(tmp_path, "fresh", "new")
    fresh.describe("new", top=top)
    fresh.configure("r2")
    top.parent.mkdir()
    printed = fresh.run("rollback", "web", "--to", "latest").stderr
    assert "this host, new, has no complete generation of 'web': old's are used" in printed
    assert (top / "file").read_text() == "r2 of old"
    fresh.run("snapshot", "web")
    assert fresh.read("r1") == "r1 of old"
    fresh.configure("r1")
    assert "state still belongs to revision r2" in fresh.run("snapshot", "web").stderr
    assert "web@1" in fresh.run("follow", "web").stdout


def test_a_machine_without_generations_chooses_between_several_hosts(two: tuple[Machine, Machine], tmp_path: Path) -> None:
    new = machine(tmp_path, "three", "c")
    refused = new.run("cat", "web@latest:www/file", expect=6).stderr
    assert "several others have (a, b)" in refused
    assert "--host" in refused
    assert new.read("4") == "b4"
    assert new.read("latest", "--host", "a") == "a3"
    new.take("c5")
    assert new.read("latest") == "c5"


@pytest.mark.skipif(os.geteuid() != 0, reason="unshare needs root")
def test_a_machine_whose_host_name_changes_is_one_host(tmp_path: Path) -> None:
    cloud = machine(tmp_path, "cloud", "", first=True)
    cloud.describe("", more="keep = { last = 2, per-revision = 0 }\n")
    for n in range(6):
        cloud.take(f"{n}", before=("unshare", "--uts", "sh", "-c", f'hostname node-{n}; exec "$@"', "-"))
    assert {one["host"] for one in cloud.log()} == {os.uname().nodename}, "the certified name"
    assert len({one["host_id"] for one in cloud.log()}) == 1
    assert "host" not in cloud.run("log", "web").stdout.splitlines()[0]
    assert cloud.read("latest~5") == "0"
    cloud.run("key", "adopt", "--host", "rainy")
    cloud.take("6")
    assert [one["host"] for one in cloud.log()][:2] == ["rainy", os.uname().nodename]
    assert "host" not in cloud.run("log", "web").stdout.splitlines()[0]
    assert len(cloud.log("--host", "rainy")) == len(cloud.log("--host", os.uname().nodename)) == 7
    cloud.run("prune")
    assert [one["number"] for one in cloud.log()] == [7, 6]


def test_find_and_history_search_generations_of_this_host(two: tuple[Machine, Machine]) -> None:
    a, b = two
    (found,) = json.loads(b.run("find", "file", "web", "--json").stdout)
    assert (found["host"], [one["first"] for one in found["versions"]]) == ("b", [2, 4])
    (found,) = json.loads(b.run("history", "web:www/file", "--host", "a", "--json").stdout)
    assert (found["host"], [one["first"] for one in found["versions"]]) == ("a", [3, 1])
    assert {one["host"] for one in json.loads(a.run("find", "file", "--host", "*", "--json").stdout)} == {"a", "b"}
    assert "  a     web:www/file" in a.run("find", "file").stdout
    a.run("find", "file", "web", "--host", "c", expect=6)
    a.run("find", "file", "--host", "c", expect=6)


def test_a_machine_without_generations_finds_those_of_every_host(two: tuple[Machine, Machine], tmp_path: Path) -> None:
    new = machine(tmp_path, "three", "c")
    assert {one["host"] for one in json.loads(new.run("find", "file", "--json").stdout)} == {"a", "b"}


def test_a_range_of_numbers_means_generations_of_this_host(two: tuple[Machine, Machine]) -> None:
    a, b = two
    printed = a.run("forget", "web@1-3", "--yes")
    assert "forgotten: web@1, 3" in printed.stdout
    assert "of 3 generations, 1 of other hosts left out (hosts: a, b" in printed.stderr
    assert [one["number"] for one in b.log()] == [4, 2]
    b.run("forget", "web@1-9", "--host", "*", "--yes")
    b.run("log", "web", expect=6)


def test_log_shows_hosts_where_a_limit_leaves_those_of_one(two: tuple[Machine, Machine]) -> None:
    a, _ = two
    assert a.run("log", "web", "--limit", "1").stdout.splitlines()[0].split()[4] == "host"
    assert a.run("log", "--limit", "1", "--revision", "r2").stdout.splitlines()[0].split()[4] == "host"


def test_an_in_place_restore_from_another_host_asks(two: tuple[Machine, Machine]) -> None:
    a, b = two
    refused = a.run("restore", "--in-place", "web@4:www", str(b.top), expect=0)
    assert "0 steps" in refused.stdout, "there is nothing to change, nor to ask"
    refused = a.run("restore", "--in-place", "web@2:www", str(b.top), expect=2)
    assert "on another host" in refused.stderr
    b.run("restore", "--in-place", "web@2:www", str(b.top))
    assert (b.top / "file").read_text() == "b2"


def test_a_host_that_was_renamed_on_purpose_names_its_former_name(two: tuple[Machine, Machine]) -> None:
    a, b = two
    a.describe("alpha")
    printed = a.run("snapshot", "web", expect=2).stderr
    assert "castore key adopt --host alpha" in printed
    a.run("key", "adopt", "--host", "alpha")
    assert (a.read("latest"), a.read("latest~1"), a.read("r1")) == ("a3", "a1", "a1")
    a.take("a5", "r2")
    assert a.log()[0]["parent"] == 3
    assert "  a  " not in a.run("log", "web", "--host", "alpha").stdout
    assert [one["number"] for one in a.log("--host", "alpha")] == [5, 3, 1]
    a.run("rollback", "web", "--to", "1")  # it does not ask
    assert (a.top / "file").read_text() == "a1"
    a.describe("alpha", more="keep = { last = 1, per-revision = 0 }\n")
    a.run("forget", "web@6", "--yes")
    a.run("prune")
    assert [one["number"] for one in b.log()] == [5, 4, 2, 1], "1 is of the live revision"
    a.describe("alpha", former=(b.log()[1]["host_id"][:8],))
    assert a.read("latest~1") == "b4", "or an id"


def node(name: str) -> tuple[str, ...]:
    return ("unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "-")


def test_a_clone_with_the_same_key_is_reported_and_gets_its_own(tmp_path: Path) -> None:
    image = machine(tmp_path, "image", "", first=True)
    image.take("image 1")
    clone = Machine(tmp_path / "clone", image.store, image.identity)
    shutil.copytree(image.home, clone.home, symlinks=True)
    clone.describe("")
    clone.configure("r1")
    assert clone.take("clone 2") == ""
    assert "castore key adopt --new-key" in image.take("image 3")
    assert image.take("image 4") == ""
    clone.run("key", "adopt", "--new-key", "--host", "second")
    clone.take("clone 5")
    assert clone.read("latest") == "clone 5"
    assert image.read("latest") == "image 4"


def test_two_hosts_share_a_store_for_several_nights(tmp_path: Path) -> None:
    """Each deploys, rolls back, prunes and drills by its own generations; one forgets; one is lost and replaced."""
    keep = "keep = { last = 2, per-revision = 1 }\n"
    a, b = machine(tmp_path, "one", "a", first=True), machine(tmp_path, "two", "b")
    for one, name in ((a, "a"), (b, "b")):
        one.describe(name, more=keep)

    def check(one: Machine, name: str) -> None:
        assert one.read("latest").startswith(name)
        assert "is sound" in one.run("drill", "web").stdout
        one.run("verify", "--read-data")
        one.run("prune")

    for night in range(1, 4):
        a.take(f"a, night {night}")
        b.take(f"b night {night}")
    check(a, "a")
    check(b, "b")
    a.take("a after the upgrade", "r2")
    a.run("rollback", "web", "--to", "r1")
    assert (a.top / "file").read_text() == "a, night 3"
    assert (b.top / "file").read_text() == "b night 3"
    b.take("b after the upgrade", "r2")
    a.run("rollback", "web", "--undo")
    assert (a.top / "file").read_text() == "a after the upgrade"
    b.configure("r1")
    assert "web@" in b.run("follow", "web").stdout
    b.run("rollback", "web", "--to", "r1")
    assert (b.top / "file").read_text() == "b night 3"

    before = [one["number"] for one in b.log("--host", "b")]
    newest = a.log("--host", "a")[0]["number"]
    a.run("forget", f"web@{newest}", "--yes")
    assert "warning" not in b.run("snapshot", "web").stderr, "another host's forget is intended"
    assert [one["number"] for one in b.log("--host", "b")][1:] == before
    for one, name in ((a, "a"), (b, "b")):
        check(one, name)
        hosts = [found["host"] for found in one.log()]
        assert hosts.count("a") >= 2
        assert hosts.count("b") >= 2

    state = b.log("--host", "b")[0]["number"]
    shutil.rmtree(b.home)
    again = machine(tmp_path, "two", "b")
    again.describe("b", more=keep)
    assert "is sound" in again.run("drill", "web").stdout
    again.run("rollback", "web", "--to", "latest")
    assert (again.top / "file").read_text() == "b night 3"
    again.run("snapshot", "web")
    assert state in {one["parent"] for one in again.log("--host", "b")}
    assert a.read("latest").startswith("a")


def test_no_generation_of_another_host_is_removed_unless_the_host_is_named(two: tuple[Machine, Machine], tmp_path: Path) -> None:
    a, _ = two
    a.run("forget", "web@2", "web@4", "--yes", "--host", "b")
    before = a.log("--host", "*")
    assert {one["host"] for one in before} == {"a"}
    new = machine(tmp_path, "three", "c")
    new.describe("", more="keep = { last = 1 }\n")
    assert "has no generation of 'web'" in new.run("prune", "--dry-run").stderr
    new.run("prune")
    new.run("prune", "web", "--keep-last", "1")
    new.run("forget", "web", "--all", "--yes", expect=6)
    assert "--host a" in new.run("forget", "web@latest", "--yes", expect=2).stderr
    assert "--host a" in new.run("forget", "web@1-3", "--yes", expect=2).stderr
    assert a.log("--host", "*") == before
    new.run("forget", "web@latest", "--yes", "--host", "a")
    assert len(a.log("--host", "*")) == len(before) - 1
