"""What --json prints: one document, errors included, with the fields that castore/docs/json.md names."""

from __future__ import annotations

import json
import os
import re

import click
import pytest

from castore import errors
from castore.cli import main as entry
from castore.cli.document import as_text, kind_of, rfc3339, times
from castore.cli.topics import read_topic
from tests.support import forked_cli

RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")


def documented(*, own=False):
    """Return the names of fields by command; own: without those of other commands."""
    page = read_topic("json")
    found = {}
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        cells = re.findall(r"^\| (.*?) \|", body, re.MULTILINE)
        found[title] = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
        for other in [] if own else re.findall(r"(?i:the) fields of `([a-z ]+)`", body):
            found[title] |= found[f"castore {other}"]
    return found


def flat(value, prefix=""):
    """Yield the dotted names of all leaves, and of what is empty."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list):
        if not value and prefix:
            yield f"{prefix}[]"
        for inner in value:
            yield from flat(inner, f"{prefix}[]" if prefix else "")
    elif prefix:
        yield prefix


def known(name, fields):
    patterns = [re.escape(field).replace(r"\*", r"[^.\[]+") for field in fields]
    # A field that is null or an empty object represents those below it.
    return any(re.fullmatch(f"{one}(\\[\\])*", name) or one.startswith(re.escape(name)) for one in patterns) or any(
        field.endswith(".*") and name.startswith(field[:-1]) for field in fields
    )


class Machine:
    def __init__(self, folder):
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CASTORE_")},
            "HOME": str(folder),
            **{f"XDG_{kind}_HOME": str(folder / kind) for kind in ("STATE", "CACHE", "CONFIG", "DATA")},
            "CASTORE_STORE": str(folder / "store"),
            "CASTORE_CONFIG": str(folder / "castore.toml"),
        }
        (folder / "castore.toml").write_text(
            f'store = "{folder}/store"\n[service.s]\nfollow = "restore"\nrevision.command = ["cat", "{folder}/rev"]\n'
            f'before = ["echo", "printed by a hook"]\nkeep = {{ last = 3 }}\n'
            f'[service.s.parts.t]\nengine = "tree"\npath = "{folder}/tree"\n'
            f'[service.s.parts.f]\nengine = "file"\npath = "{folder}/file"\n'
        )
        (folder / "tree").mkdir()
        (folder / "tree" / "a").write_text("a")
        (folder / "tree" / "link").symlink_to("a")
        os.mkdir(os.fsencode(folder) + b"/tree/\xff\\")
        (folder / "file").write_text("f" * 1000)
        (folder / "rev").write_text("r1\n")

    def run(self, *arguments, code=0, **options):
        done = forked_cli.text(list(map(str, arguments)), env=self.environment, **options)
        assert done.returncode == code, done.stderr
        return done

    def json(self, *arguments, code=0, **options):
        words = list(map(str, arguments))
        at = words.index("--") if "--" in words else len(words)
        if words[0] == "guard":
            at = 1
        return json.loads(self.run(*words[:at], "--json", *words[at:], code=code, **options).stdout)


@pytest.fixture
def machine(tmp_path):
    (tmp_path / "m").mkdir()
    return Machine(tmp_path / "m")


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """Return a machine with one generation, which no test changes."""
    made = Machine(tmp_path_factory.mktemp("used"))
    made.run("init")
    made.run("snapshot", "s")
    return made


def commands():
    def walk(command, context):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            below = click.Context(inner, parent=context, info_name=name)
            if isinstance(inner, click.Group):
                yield from walk(inner, below)
            else:
                yield below.command_path, inner

    yield from walk(entry.cli, click.Context(entry.cli, info_name="castore"))


def test_every_command_with_data_has_json_and_a_section():
    """The others print what is itself the data: a file, a page, a sheet to print, a castore.toml, a protocol."""
    without = {"castore cat", "castore help", "castore key paper", "castore config init", "castore serve"}
    sections = set(documented())
    for path, command in commands():
        has = any("--json" in parameter.opts for parameter in command.params)
        assert has == (path not in without), path
        assert not has or path in sections, path


def test_the_fields_of_every_command_are_documented(machine):
    fields = documented()
    seen = set()
    occurred = {}

    def check(name, *arguments, **options):
        value = machine.json(*name.split(), *arguments, **options)
        seen.add(f"castore {name}")
        for one in flat(value):
            assert known(one, fields[f"castore {name}"] | fields["error"]), (name, one)
            occurred.setdefault(f"castore {name}", set()).add(one)
        assert not re.search(r"(?<=[\[ ])-?\d{16,}", json.dumps(value)), name
        return value

    check("init")
    check("store probe", machine.folder / "store")
    check("snapshot", "--dry-run", "s")
    first = check("snapshot", "s")
    assert first["number"] == 1
    (machine.folder / "tree" / "a").write_text("changed")
    (machine.folder / "file").write_text("g" * 2000)
    assert [one["number"] for one in check("snapshot", "--all")] == [2]
    check("drill", "s")
    assert check("log")[0]["drilled"]["ok"]
    check("show", "s@1")
    check("show", "s@1:t/a")
    listed = check("ls", "-R", "s@1")
    assert any(one["path"] == r"t/\xff\\" for one in listed)
    check("find", "a")
    check("history", "s:t/a")
    assert check("diff", "s@1", "s@2")
    check("restore", "s@1", machine.folder / "out")
    check("restore", "s@1:t", machine.folder / "tree", "--in-place", "--dry-run")
    check("rollback", "s", "--to", "1", "--dry-run")
    check("rollback", "s", "--to", "1")
    check("recover", machine.folder / "tree")
    check("recover")
    guarded = check("guard", "s", "--", "echo", "printed by the deployment")
    assert not guarded["services"][0]["reverted"]
    check("guard", "s", "--", "false", code=9)
    check("follow", "s")
    check("revision", "s")
    check("pin", "s@1")
    check("unpin", "s@1")
    check("prune", "--dry-run")
    check("prune")
    check("forget", "s@2", "--dry-run")
    check("forget", "s@2", "--yes")
    check("compact")
    check("compact", "--dry-run")
    check("events")
    check("config check")
    value = machine.json("config", "show")
    assert value["service"]["s"]
    seen.add("castore config show")
    new = check("key new", machine.folder / "id2")
    check("key show")
    check("key list")
    check("key add", new["recipient"], "--label", "x")
    check("key add", new["recipient"], "--admin", new["admin"])
    check("key remove", new["admin"])
    check("key remove", new["recipient"])
    typed = "".join((machine.folder / "id2").read_text().splitlines(keepends=True)[-1:])
    check("key enter", machine.folder / "id3", given=typed)
    check("key passphrase", machine.folder / "id3", "--remove")
    check("key rotate-writer")
    check("key adopt")
    check("key sign")
    host = check("key adopt", "--host", "other", "--new-key")["host"]
    check("key revoke-writer", host)
    check("key audit")
    check("key adopt", "--host", "again")
    assert check("verify")["sound"]
    check("repair", "--yes")
    check("reindex")
    check("stats")
    check("analyze", "--nights", machine.folder / "file", machine.folder / "file", "--average", "4K", "--price", "5/TB-month")
    assert {path for path, one in commands() if any("--json" in p.opts for p in one.params)} == seen
    missing = {
        (name, field)
        for name, found in occurred.items()
        for field in documented(own=True)[name]
        if not field.startswith("error.")
        if not any(known(one, {field}) or one.startswith(field.split(".")[0].rstrip("[]*")) for one in found)
    }
    assert not missing


def test_every_time_is_rfc3339_in_utc_with_its_nanoseconds(machine):
    machine.run("init")
    taken = machine.json("snapshot", "s")
    assert RFC3339.fullmatch(taken["time"])
    assert rfc3339(int(taken["time_ns"])) == taken["time"]
    for value in (machine.json("log"), machine.json("ls", "-R", "s@1"), machine.json("events"), machine.json("find", "a")):
        for name in set(flat(value)):
            if name.endswith("_ns"):
                assert name.removesuffix("_ns") in set(flat(value))
        numbers = re.findall(r"(?<=[\[ ])-?\d{16,}", json.dumps(value))
        assert not numbers


@pytest.mark.parametrize("ns", [-(1 << 63), -1, 0, 1, (1 << 63) - 1])
def test_every_time_that_a_tree_may_have_is_encoded(ns):
    assert RFC3339.fullmatch(times("t", ns)["t"])
    assert times("t", ns)["t_ns"] == str(ns)
    assert times("t", None) == {"t": None, "t_ns": None}


def test_long_numbers_and_bytes_that_are_no_text_are_readable_everywhere():
    value = {"a": [1 << 53, (1 << 53) + 1, -(1 << 60)], "\udcff": "x\udcfe\ud800", "b": b"\xff\\"}
    expected = {"a": [1 << 53, str((1 << 53) + 1), str(-(1 << 60))], "\\xff": "x\\xfe\\ud800", "b": "\\xff\\\\"}
    assert json.loads(as_text(value)) == expected


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["log", "--nothing"], 2, "usage"),
        (["nothing"], 2, "usage"),
        (["log", "--store", "/nowhere/store"], 6, "not-found"),
        (["log", "missing"], 6, "not-found"),
        (["show", "s@99"], 6, "not-found"),
        (["rollback", "s"], 2, "usage"),
        (["guard", "s"], 2, "usage"),
        (["cat", "s@1:f"], 2, "usage"),
        (["forget", "s@1"], 2, "usage"),
        (["key", "add", "no-key"], 2, "usage"),
        (["log", "--config", "/nowhere/castore.toml"], 2, "config"),
    ],
)
def test_an_error_is_the_document_and_a_line(used, arguments, code, kind):
    done = used.run(*arguments, "--json", code=code)
    error = json.loads(done.stdout)["error"]
    assert error["code"] == code
    assert error["kind"] == kind, error
    assert error["message"]
    assert "castore: " in done.stderr


def test_an_incomplete_result_has_its_data_and_the_error(machine):
    machine.run("init")
    config = machine.folder / "castore.toml"
    config.write_text(config.read_text().replace("keep =", 'after = ["false"]\nkeep ='))
    value = machine.json("snapshot", "s", code=3)
    assert value["number"] == 1
    assert value["error"]["kind"] == "incomplete"
    value = machine.json("snapshot", "--all", code=3)
    assert [one["error"]["code"] for one in value] == [3]


def test_nothing_else_gets_into_the_document(machine):
    """Output of hooks and of a deployment is shown on standard error."""
    machine.run("init")
    done = machine.run("guard", "--json", "s", "--", "echo", "printed by the deployment")
    json.loads(done.stdout)
    assert "printed by the deployment" in done.stderr
    assert "printed by a hook" in done.stderr


def test_every_kind_of_error_is_documented():
    def subclasses(kind):
        yield kind
        for inner in kind.__subclasses__():
            yield from subclasses(inner)

    kinds = documented()["error"]
    for one in subclasses(errors.CastoreError):
        assert kind_of(one("x")) in kinds, one


def test_help_shows_the_page(machine):
    assert machine.run("help", "json").stdout.startswith("# castore --json\n")
    assert machine.run("log", "--json", "--help").stdout.startswith("Usage: castore log")
