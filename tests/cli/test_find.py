"""`castore find` and `castore history`: paths over all generations."""

from __future__ import annotations

import fnmatch
import json
import os
import random
import time

import click
import pytest

from castore.cli.main import cli
from castore.content.find import find
from castore.content.patterns import PathPattern
from castore.content.streams import StreamReader
from castore.content.versions import Found
from castore.errors import DamageError, IdentityError, NotFoundError, UsageError
from castore.services.sources import Tree, file_source


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


def write(path, data="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data)
    return path


def take(sandbox, tree, service="s", part="t"):
    return sandbox.snapshot(service, {part: Tree(str(tree))}).number


def run(capsys, *arguments):
    cli.main([*arguments], prog_name="castore", standalone_mode=False)
    return capsys.readouterr().out


def found(capsys, *arguments):
    return json.loads(run(capsys, "find", "--json", *arguments))


def spans(row):
    return [(one["first"], one["last"]) for one in row["versions"]]


def test_a_deleted_file_is_found_with_the_generations_that_have_it(sandbox, tree, capsys):
    write(tree / "a" / "keep")
    take(sandbox, tree)
    lost = write(tree / "a" / "b" / "lost.txt")
    take(sandbox, tree)
    take(sandbox, tree)
    lost.unlink()
    take(sandbox, tree)
    (row,) = found(capsys, "lost.*")
    assert (row["service"], row["part"], row["path"], spans(row)) == ("s", "t", "a/b/lost.txt", [(2, 3)])
    assert "2-3" in run(capsys, "find", "lost.*", "s")


def test_the_table_has_a_header_and_names_the_columns_that_do_not_fit(sandbox, tree, capsys, monkeypatch):
    write(tree / "f.conf")
    take(sandbox, tree)
    header, line = run(capsys, "find", "f.conf").splitlines()
    assert header.split() == ["generations", "first", "last", "type", "size", "modified", "versions", "path"]
    assert line.index("s:t/f.conf") == header.index("path")
    for width, left_out in ((140, []), (80, ["modified", "versions"]), (60, ["modified", "versions", "type", "first"])):
        monkeypatch.setattr("castore.cli.formatting.terminal_width", lambda width=width: width)
        cli.main(["find", "f.conf"], prog_name="castore", standalone_mode=False)
        printed = capsys.readouterr()
        assert max(map(len, printed.out.splitlines())) <= width
        assert not set(left_out) & set(printed.out.split())
        noted = f"castore: note: no room for {', '.join(left_out)}: use --json or a wider terminal\n"
        assert printed.err == (noted if left_out else "")


def test_versions_of_a_path_are_apart(sandbox, tree, capsys):
    write(tree / "f", "1")
    take(sandbox, tree)
    write(tree / "f", "22")
    take(sandbox, tree)
    (row,) = found(capsys, "f")
    assert spans(row) == [(1, 1), (2, 2)]
    assert [one["size"] for one in row["versions"]] == [1, 2]


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("x.c", ["a/b/x.c", "a/x.c", "x.c"]),
        ("/x.c", ["x.c"]),
        ("a/x.c", ["a/x.c"]),
        ("/a/*/x.c", ["a/b/x.c"]),
        ("/a/**/x.c", ["a/b/x.c", "a/x.c"]),
        ("b/", ["a/b"]),
        ("b/**", ["a/b/x.c"]),
        ("[xy].?", ["a/b/x.c", "a/x.c", "x.c"]),
        ("X.C", []),
        ("é*", ["a/é.txt"]),
        ("?.txt", ["a/é.txt"]),
    ],
)
def test_patterns(sandbox, tree, capsys, pattern, paths):
    for name in ("x.c", "a/x.c", "a/b/x.c", "a/é.txt"):
        write(tree / name)
    take(sandbox, tree)
    rows = found(capsys, pattern)
    assert sorted(row["path"] for row in rows) == paths


def test_case_is_ignored_if_asked(sandbox, tree, capsys):
    write(tree / "ReadMe.TXT")
    take(sandbox, tree)
    assert len(found(capsys, "-i", "readme.txt")) == 1


def test_an_absolute_path_is_taken_from_the_tree_that_it_is_in(sandbox, tree, capsys):
    write(tree / "a" / "f")
    take(sandbox, tree)
    assert [row["path"] for row in found(capsys, f"{tree}/a/f")] == ["a/f"]


@pytest.mark.parametrize("pattern", ["", "/", "a/../b", "a\0b"])
def test_a_pattern_that_matches_no_path_is_refused(sandbox, tree, pattern):
    take(sandbox, tree)
    with pytest.raises((UsageError, click.UsageError)):
        cli.main(["find", pattern], standalone_mode=False)


def test_nothing_found_is_not_found(sandbox, tree):
    take(sandbox, tree)
    with pytest.raises(NotFoundError, match="no path matches"):
        cli.main(["find", "no-such"], standalone_mode=False)


def test_all_services_or_one_and_a_limit(sandbox, tree, capsys):
    write(tree / "f")
    write(tree / "g")
    take(sandbox, tree)
    take(sandbox, tree, "other", "part")
    assert {row["service"] for row in found(capsys, "f")} == {"s", "other"}
    assert {row["service"] for row in found(capsys, "f", "s")} == {"s"}
    assert found(capsys, "f", "--part", "part")[0]["service"] == "other"
    assert len(found(capsys, "*", "--limit", "1")) == 1


def test_an_identity_is_needed(sandbox, tree, monkeypatch):
    write(tree / "f")
    take(sandbox, tree)
    monkeypatch.delenv("CASTORE_IDENTITY")
    for arguments in (["find", "f"], ["history", "s:t/f"]):
        with pytest.raises(IdentityError):
            cli.main(arguments, standalone_mode=False)


def test_a_name_added_with_the_time_of_its_directory_set_back_to_a_whole_second(sandbox, tree, capsys):
    write(tree / "d" / "a")
    os.utime(tree / "d", (1, 1))
    take(sandbox, tree)
    write(tree / "d" / "b")
    os.utime(tree / "d", (1, 1))
    take(sandbox, tree)
    assert spans(found(capsys, "b")[0]) == [(2, 2)]


def test_random_trees_match_what_a_walk_finds(sandbox, tree):
    rng = random.Random(5)
    seen = []
    for _ in range(6):
        for _ in range(rng.randrange(8)):
            path = tree.joinpath(*rng.choices("abc", k=rng.randrange(3)), rng.choice(["f.x", "g.x", "h.y"]))
            if path.exists() and rng.random() < 0.4:
                path.unlink()
            elif rng.random() < 0.8:
                write(path, "x" * rng.randrange(20))
        take(sandbox, tree)
        seen.append({str(p.relative_to(tree)): p.lstat() for p in tree.rglob("*")})
    with sandbox.open() as store, StreamReader(store) as reader:
        generations = sorted(store.generations.all("s"), key=lambda one: one.number)
        roots = [(one.time, one.parts[0].content) for one in generations]
        for pattern in ("*.x", "*", "a", "g.?"):
            actual = {}
            for one in find(reader, roots, PathPattern(pattern)):
                assert isinstance(one, Found)
                states = [None] * len(seen)
                for first, entry in one.versions:
                    states[first:] = [entry and entry.child.entry.mtime] * (len(seen) - first)
                actual[one.path.decode()] = states
            names = {name for one in seen for name in one if fnmatch.fnmatch(os.path.basename(name), pattern)}
            assert actual == {
                name: [one[name].st_mtime_ns if name in one else None for one in seen] for name in names
            }


def test_history_of_a_file(sandbox, tree, capsys):
    write(tree / "other")
    take(sandbox, tree)
    path = write(tree / "d" / "f", "one")
    take(sandbox, tree)
    write(tree / "d" / "g", "next to it in the same small-file stream")
    take(sandbox, tree)
    path.chmod(0o600)
    take(sandbox, tree)
    times = path.stat()
    path.write_text("two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    take(sandbox, tree)
    path.unlink()
    take(sandbox, tree)
    (row,) = json.loads(run(capsys, "history", "--json", "s:t/d/f"))
    changes = [(one["first"], one["last"], one["change"], one["exists"]) for one in row["versions"]]
    assert changes == [
        (6, 6, "removed", False),
        (5, 5, "content", True),
        (4, 4, "metadata", True),
        (2, 3, "added", True),
        (1, 1, None, False),
    ]
    assert "metadata" in run(capsys, "history", "s:t/d/f")
    (row,) = json.loads(run(capsys, "history", "--json", "--limit", "2", "s:t/d/f"))
    assert len(row["versions"]) == 2


def test_history_of_a_directory_and_of_a_tree(sandbox, tree, capsys):
    write(tree / "d" / "e" / "f", "one")
    write(tree / "x")
    take(sandbox, tree)
    write(tree / "x", "changed")
    take(sandbox, tree)
    write(tree / "d" / "e" / "f", "other")
    take(sandbox, tree)
    for what, expected in (("s:t/d", [(3, 3), (1, 2)]), ("s:t", [(3, 3), (2, 2), (1, 1)])):
        assert spans(json.loads(run(capsys, "history", "--json", what))[0]) == expected


def test_history_of_a_dump(sandbox, tmp_path, capsys):
    dump = tmp_path / "dump"
    for data in ("one", "one", "two"):
        dump.write_text(data)
        sandbox.snapshot("s", {"db": file_source(str(dump))})
    (row,) = json.loads(run(capsys, "history", "--json", "s:db"))
    assert spans(row) == [(3, 3), (1, 2)]
    assert "content" in run(capsys, "history", "s:db")


@pytest.mark.parametrize("what", ["s:t/none", "s:none", "none:t"])
def test_history_of_what_is_not_stored(sandbox, tree, what):
    take(sandbox, tree)
    with pytest.raises(NotFoundError):
        cli.main(["history", what], standalone_mode=False)


@pytest.mark.parametrize("what", ["s", "s@1:t", ":t", "s:"])
def test_history_without_a_part_is_refused(sandbox, tree, what):
    take(sandbox, tree)
    with pytest.raises((UsageError, NotFoundError)):
        cli.main(["history", what], standalone_mode=False)


def test_a_damaged_pack_is_reported_and_the_rest_is_searched(sandbox, tree, capsys):
    write(tree / "old")
    take(sandbox, tree)
    first = set((sandbox.store / "packs").rglob("*"))
    write(tree / "new")
    take(sandbox, tree)
    for pack in set((sandbox.store / "packs").rglob("*")) - first:
        if pack.is_file():
            data = bytearray(pack.read_bytes())
            data[40:400] = bytes(360)
            pack.chmod(0o600)
            pack.write_bytes(data)
    with pytest.raises(DamageError):
        cli.main(["find", "old"], standalone_mode=False)
    assert "s:t/old" in capsys.readouterr().out


def test_only_directories_that_changed_are_read(sandbox, tree, monkeypatch):
    for number in range(40):
        write(tree / f"{number:02}" / "f")
    time.sleep(1.1)
    for number in range(5):
        write(tree / "00" / "f", "x" * number)
        take(sandbox, tree)
    with sandbox.open() as store, StreamReader(store) as reader:
        store.sync()
        reads = []
        read = store.reader.read_nodes_bytes
        monkeypatch.setattr(store.reader, "read_nodes_bytes", lambda ids: (reads.extend(ids), read(ids))[1])
        roots = [(one.time, one.parts[0].content) for one in reversed(store.generations.all("s"))]
        assert len(list(find(reader, roots, PathPattern("f")))) == 40
    assert len(reads) == 5 + 5 + 39 + 5  # roots, tops, the others once, 00
