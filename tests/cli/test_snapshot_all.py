"""One command takes several services: the failure of one does not stop the others."""

from __future__ import annotations

import json

import pytest

TREE = '[service.{0}.parts.t]\nengine = "tree"\npath = "{1}"\n'
DUMP = '[service.{0}.parts.d]\nengine = "command"\ndump = ["sh", "-c", "{1}"]\n'


@pytest.fixture
def configure(home):
    (home / "tree").mkdir()
    (home / "tree" / "file").write_text("x")
    (home / "tree" / "cache").mkdir()
    (home / "tree" / "cache" / "big").write_text("y")
    (home / "castore.toml").write_text("")

    def write(*blocks):
        (home / "castore.toml").write_text("".join(blocks))

    return write


def numbers(castore):
    return {(one["service"], one["number"]) for one in json.loads(castore("log", "--json").stdout)}


def test_all_services_are_taken_and_listed(castore, configure, home):
    configure(TREE.format("a", home / "tree"), DUMP.format("b", "echo b"), "[service.no-parts.keep]\nlast = 1\n")
    taken = json.loads(castore("snapshot", "--all", "--json").stdout)
    assert [(one["service"], one["number"]) for one in taken] == [("a", 1), ("b", 1)]
    assert castore("snapshot", "a", "b", "a").stdout.count("\n") >= 2
    assert numbers(castore) == {("a", 1), ("a", 2), ("b", 1), ("b", 2)}


def test_one_service_in_json_is_an_object(castore, configure, home):
    configure(TREE.format("a", home / "tree"))
    assert json.loads(castore("snapshot", "a", "--json").stdout)["number"] == 1
    assert isinstance(json.loads(castore("snapshot", "--all", "--json").stdout), list)


def test_failures_do_not_stop_the_others_and_the_worst_is_the_exit_code(castore, configure, home):
    configure(
        DUMP.format("fails", "exit 1"), "[service.wrong]\nunknown = 1\n",
        TREE.format("missing", home / "none"), TREE.format("good", home / "tree"),
    )
    done = castore("snapshot", "--all", "--json", expect=4)
    results = {one["service"]: one for one in json.loads(done.stdout)}
    assert results["good"]["number"] == 1
    assert {name: one.get("error", {}).get("code") for name, one in results.items()} == {
        "fails": 4, "wrong": 2, "missing": 2, "good": None,
    }
    assert "unknown key" in results["wrong"]["error"]["message"]
    assert "castore: fails: " in done.stderr
    assert "failed: wrong, fails, missing" in done.stderr
    assert numbers(castore) == {("good", 1)}


def test_an_incomplete_generation_is_less_than_a_failure(castore, configure, home):
    hook = '[service.late]\nafter = ["false"]\n'
    configure(hook, TREE.format("late", home / "tree"), TREE.format("good", home / "tree"))
    done = castore("snapshot", "late", "good", "--json", expect=3)
    late, good = json.loads(done.stdout)
    assert (late["number"], late["error"]["code"], good["number"]) == (1, 3, 1)
    castore("snapshot", "late", "nobody", expect=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a SERVICE, or --all"),
        (["--all", "a"], "leave out 'a'"),
        (["a", "b", "--tree", "t=/etc"], "parts of one SERVICE"),
        (["--all", "--tree", "t=/etc"], "parts of one SERVICE"),
        (["--all"], "describes no service that has parts"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(castore, configure, arguments, said):
    assert said in castore("snapshot", *arguments, expect=2).stderr


def test_all_needs_a_castore_toml(castore):
    assert "there is no castore.toml" in castore("snapshot", "--all", expect=2).stderr


def test_patterns_of_a_file_are_excluded(castore, configure, home):
    patterns = home / "patterns"
    patterns.write_bytes(b"\xef\xbb\xbf# caches\n\n/cache/\n*.tmp\n!keep.tmp\n")
    (home / "tree" / "a.tmp").write_text("")
    (home / "tree" / "keep.tmp").write_text("")
    castore("snapshot", "s", "--tree", f"t={home}/tree", "--exclude-file", "patterns")
    configure(TREE.format("c", home / "tree"))
    castore("snapshot", "c", "--exclude-file", patterns, "--exclude", "/file")
    listed = castore("ls", "s@latest:t").stdout
    assert "keep.tmp" in listed
    assert "a.tmp" not in listed
    assert "cache" not in listed
    assert "file" not in castore("ls", "c@latest:t").stdout
    said = castore("snapshot", "s", "--tree", f"t={home}/tree", "--exclude-file", "none", expect=2).stderr
    assert "cannot read 'none': No such file" in said
