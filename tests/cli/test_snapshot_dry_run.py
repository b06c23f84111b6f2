"""`snapshot --dry-run` shows what would be taken; it stores nothing and runs no dump program."""

from __future__ import annotations

import json
import os

import pytest


@pytest.fixture
def tree(home):
    path = home / "tree"
    (path / "cache").mkdir(parents=True)
    (path / "sub" / "deep").mkdir(parents=True)
    (path / "cache" / "big").write_bytes(b"x" * 1000)
    (path / "sub" / "deep" / "file").write_bytes(b"x" * 200)
    (path / "sub" / "a.tmp").write_bytes(b"x" * 30)
    (path / "link").symlink_to("sub")
    (path / "sparse").touch()
    os.truncate(path / "sparse", 5000)
    tagged = path / "tagged"
    tagged.mkdir()
    (tagged / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    (tagged / "content").write_text("c")
    return path


def part_of(done, name="t"):
    return next(one for one in json.loads(done.stdout)["parts"] if one["name"] == name)


@pytest.mark.parametrize(
    "options", [[], ["--exclude", "/cache/", "--exclude", "*.tmp"], ["--exclude-caches"], ["--one-file-system"]]
)
def test_files_and_sizes_are_those_of_the_snapshot(castore, tree, options):
    arguments = ["snapshot", "s", "--tree", f"t={tree}", *options, "--json"]
    planned = part_of(castore(*arguments, "--dry-run"))
    taken = part_of(castore(*arguments))
    assert (planned["files"], planned["size"]) == (taken["files"], taken["size"])


def test_the_report_names_what_is_excluded(castore, tree):
    done = castore("snapshot", "s", "--tree", f"t={tree}", "--exclude", "cache/", "--exclude", "*.tmp", "--dry-run")
    assert "excluded: cache/\n" in done.stdout
    assert "excluded: sub/a.tmp\n" in done.stdout
    assert "2 excluded" in done.stdout


def test_nothing_is_made_stored_or_run(castore, home, tree):
    (home / "castore.toml").write_text(
        f'[service.s]\nbefore = ["touch", "{home}/before"]\n[service.s.parts.t]\nengine = "tree"\npath = "{tree}"\n'
        f'[service.s.parts.d]\nengine = "command"\ndump = ["touch", "{home}/dumped"]\n'
        '[service.s.parts.p]\nengine = "postgresql"\ndatabase = "shop"\nhost = "/nowhere"\n'
    )
    done = castore("snapshot", "--all", "--dry-run")
    assert f"not run: touch {home}/dumped" in done.stdout
    assert "the dump program of postgresql shop" in done.stdout
    assert sorted(os.listdir(home)) == ["castore.toml", "tree"]
    castore("init")
    castore("snapshot", "s", "--dry-run")
    assert json.loads(castore("log", "--json").stdout) == []
    assert not (home / "before").exists()


def test_parts_that_a_snapshot_cannot_take_are_reported(castore, home, tree):
    (home / "castore.toml").write_text(
        f'[service.bad.parts.t]\nengine = "tree"\npath = "{home}/none"\n'
        f'[service.bad.parts.f]\nengine = "file"\npath = "{home}/missing"\n'
        f'[service.good.parts.t]\nengine = "tree"\npath = "{tree}"\n'
    )
    done = castore("snapshot", "--all", "--dry-run", "--json", expect=2)
    bad, good = json.loads(done.stdout)
    assert (bad["service"], bad["error"]["code"]) == ("bad", 2)
    assert good["parts"][0]["files"] > 0
    for path in ("none", "missing"):
        assert f"{home}/{path}" in bad["error"]["message"]


def test_the_store_and_castores_own_folders_are_left_empty(castore, home):
    castore("init", home / "store")
    castore("snapshot", "s", "--tree", f"t={home}/.local", env={"CASTORE_STORE": str(home / "store")})
    arguments = ["snapshot", "s", "--tree", f"t={home}", "--json", "--store", str(home / "store")]
    planned = part_of(castore(*arguments, "--dry-run"))
    assert "store/*" in planned["excluded_paths"]
    assert ".local/state/castore/*" in planned["excluded_paths"]
