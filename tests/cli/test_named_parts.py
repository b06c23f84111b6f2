"""`diff` and `show` of a part or path; pins in `log`; ranges in `forget`; `rescue.py --help`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from castore.cli.main import cli
from castore.errors import NotFoundError, UsageError
from castore.services.selectors import find_range
from castore.services.sources import Tree, file_source
from tests.support.checkout import ROOT

RESCUE = ROOT / "tools" / "rescue.py"


@pytest.fixture
def two(sandbox, tmp_path):
    """Two generations of two trees and a dump, all of which changed."""
    for name in ("one", "other"):
        (tmp_path / name / "d").mkdir(parents=True)
    dump = tmp_path / "dump"
    for round_ in ("1", "22"):
        for name in ("one", "other"):
            (tmp_path / name / "d" / "f").write_text(round_)
            (tmp_path / name / "g").write_text(round_)
        (tmp_path / "one" / "d" / f"new{round_}").write_text("")
        dump.write_text(round_)
        trees = {name: Tree(str(tmp_path / name)) for name in ("one", "other")}
        sandbox.snapshot("s", {**trees, "db": file_source(str(dump))})


def run(capsys, *arguments):
    cli.main([*arguments], prog_name="castore", standalone_mode=False)
    return capsys.readouterr().out


def differences(capsys, old, new):
    rows = json.loads(run(capsys, "diff", "--json", old, new))
    return {(row["part"], row["path"]) for row in rows if row["change"] != "metadata"}


@pytest.mark.parametrize(("old", "new"), [("s@1:one", "s@2:one"), ("s@1:one", "s@2"), ("s@1", "s@2:one")])
def test_diff_of_a_part(two, capsys, old, new):
    assert differences(capsys, old, new) == {("one", "d/f"), ("one", "d/new22"), ("one", "g")}


def test_diff_of_a_path(two, capsys):
    assert differences(capsys, "s@1:one/d", "s@2:one/d") == {("one", "d/f"), ("one", "d/new22")}
    assert differences(capsys, "s@1:one/g", "s@2") == {("one", "g")}
    assert differences(capsys, "s@1:one/d/new22", "s@2") == {("one", "d/new22")}
    assert differences(capsys, "s@2:one/d/f", "s@2:other/d/f") == set()


def test_diff_of_a_dump(two, capsys):
    assert differences(capsys, "s@1:db", "s@2:db") == {("db", None)}


def test_diff_of_a_path_that_neither_has(two):
    with pytest.raises(NotFoundError):
        cli.main(["diff", "s@1:one/no", "s@2"], standalone_mode=False)


def test_show_of_a_part_and_a_path(two, capsys):
    shown = json.loads(run(capsys, "show", "--json", "s@2:one"))
    assert [part["name"] for part in shown["parts"]] == ["one"]
    shown = json.loads(run(capsys, "show", "--json", "s@2:one/d/f"))
    assert shown["entry"]["size"] == 2
    text = run(capsys, "show", "s@2:one/d/f")
    assert "d/f" in text
    assert "other" not in text
    with pytest.raises(NotFoundError):
        cli.main(["show", "s@2:one/no"], standalone_mode=False)


def test_log_and_show_say_what_is_pinned(two, sandbox, capsys):
    assert "pinned" not in run(capsys, "log", "s")
    with sandbox.open() as store:
        store.sync()
        store.generations.pin("s", 1, "before the move")
    pinned, free = reversed(run(capsys, "log", "s").splitlines()[1:])
    assert "(pinned: before the move)" in pinned
    assert "pinned" not in free
    assert [one["pinned"] for one in json.loads(run(capsys, "log", "--json"))] == [False, True]
    assert "before the move" in run(capsys, "show", "s@1")


@pytest.fixture
def nine(sandbox, tmp_path):
    (tmp_path / "tree").mkdir()
    for _ in range(9):
        sandbox.snapshot("s", {"t": Tree(str(tmp_path / "tree"))}, revision="r1")
    return sandbox


def numbers(sandbox):
    with sandbox.open() as store:
        store.sync()
        return sorted(one.number for one in store.generations.all("s"))


def test_forget_ranges(nine, capsys):
    run(capsys, "forget", "--yes", "s@2-4", "s@6", "s@8-20")
    assert numbers(nine) == [1, 5, 7]


@pytest.mark.parametrize("what", ["s@12-20", "s@7-3"])
def test_a_range_without_generations_is_refused(nine, what):
    with pytest.raises((NotFoundError, UsageError)):
        cli.main(["forget", "--yes", what], standalone_mode=False)
    assert len(numbers(nine)) == 9


def test_a_revision_goes_before_a_range(nine, tmp_path):
    nine.snapshot("s", {"t": Tree(str(tmp_path / "tree"))}, revision="3-7")
    with nine.open() as store:
        store.sync()
        assert [one.number for one in find_range(store, "s", "3-7")] == [10]


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_rescue_explains_itself(option):
    done = subprocess.run([sys.executable, str(RESCUE), option], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "rescue.py STORE --identity FILE" in done.stdout
    assert done.stderr == ""
