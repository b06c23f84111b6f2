"""Exclude patterns mean what they mean to git, and a pattern that is not valid is a usage error."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from castore.content.scan.exclude import Exclude, why_useless
from castore.errors import UsageError

INVALID = ("!", "[z-a]", "a\\", "\udcff")


@pytest.mark.parametrize("pattern", INVALID)
def test_an_invalid_pattern_is_a_usage_error_of_snapshot_and_config_check(castore, home: Path, pattern: str) -> None:
    castore("init")
    (home / "live").mkdir()
    given = os.fsencode(pattern)
    done = castore("snapshot", "s", "--tree", f"t={home / 'live'}", "--exclude", given, expect=2)
    assert "exclude pattern" in done.stderr or "UTF-8" in done.stderr
    if pattern.isascii():
        config = home / "castore.toml"
        config.write_text(f"[service.s.parts.t]\nengine = 'tree'\npath = '{home / 'live'}'\nexclude = ['{pattern}']\n")
        done = castore("config", "check", expect=2, env={"CASTORE_CONFIG": str(config)})
        assert "exclude pattern" in done.stderr + done.stdout
        done = castore("snapshot", "s", expect=2, env={"CASTORE_CONFIG": str(config)})
        assert "exclude pattern" in done.stderr


def test_a_pattern_with_the_absolute_path_of_the_tree_works() -> None:
    exclude = Exclude(("/srv/data/cache/", "!/srv/data/cache/keep", "/other/x"), "/srv/data")
    assert exclude.patterns == ("/cache/", "!/cache/keep", "/other/x")
    assert exclude.matches(b"cache", is_dir=True)
    assert not exclude.matches(b"sub/cache", is_dir=True)
    with pytest.raises(UsageError):
        Exclude(("!/srv/data/[z-a]",), "/srv/data")


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_names_with_newlines_match_as_in_git(tmp_path: Path) -> None:
    words = ("a", "a\n", "\na", "a\nb", "b", "a.log\n", "x\n.log", "\n")
    paths = [*words, *("/".join(pair) for pair in itertools.product(("d", "d\n", "a\nb"), words))]
    patterns = ("a", "*.log", "d/", "/a", "d/*", "**/b", "d/**", "*", "a?b", "a*", "[!a]", "d/**/a")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for pattern in patterns:
        (tmp_path / ".git" / "info" / "exclude").write_text(pattern + "\n")
        done = subprocess.run(
            ["git", "-C", tmp_path, "check-ignore", "--no-index", "-z", "--stdin"],
            input="\0".join(paths),
            capture_output=True,
            text=True,
            check=False,
        )
        ignored = set(done.stdout.split("\0")) - {""}
        exclude = Exclude((pattern,))
        found = {path for path in paths if is_left_out(exclude, path)}
        assert found == ignored, pattern


def is_left_out(exclude: Exclude, path: str) -> bool:
    parts = path.split("/")
    ends = range(1, len(parts) + 1)
    return any(exclude.matches(os.fsencode("/".join(parts[:end])), is_dir=end < len(parts)) for end in ends)


@pytest.mark.filterwarnings("error")
def test_character_classes_match_as_in_git() -> None:
    assert Exclude(("x[[:digit:]]",)).matches(b"x1", is_dir=False)
    assert not Exclude(("x[[:digit:]]",)).matches(b"xd", is_dir=False)
    assert Exclude(("[![:alpha:]]*",)).matches(b"1a", is_dir=False)
    assert Exclude(("[a&&b]",)).matches(b"&", is_dir=False)


def test_all_invalid_patterns_are_named() -> None:
    with pytest.raises(UsageError, match=r"'\[z-a\]'.*; the exclude pattern '!'"):
        Exclude(("[z-a]", "ok", "!"))


def test_a_tree_is_known_by_its_real_path_and_by_that_of_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in ("real", "link"):
        assert Exclude((f"{tmp_path}/{name}/a",), f"{tmp_path}/link").patterns == ("/a",)


def test_a_pattern_that_can_match_nothing_is_reported(castore, home: Path) -> None:
    (home / "live" / "a").mkdir(parents=True)
    (home / "other" / "x").mkdir(parents=True)
    (home / "live" / "a" / "f").write_text("f")
    castore("init")
    useless = (f"{home}/live", "./a", "../x", "a//f", "~/live/a", f"{home}/other")
    useful = (f"{home}/live/b", "/b", "b/", "**/b", "# note", "")
    given = [word for pattern in (*useless, *useful) for word in ("--exclude", pattern)]
    done = castore("snapshot", "s", "--tree", f"t={home / 'live'}", *given)
    for pattern in useless:
        assert f"the exclude pattern {pattern} matches nothing: " in done.stderr
    assert done.stderr.count("matches nothing") == len(useless)
    done = castore("snapshot", "s", "--tree", "t=live", "--tree", "o=other", "--exclude", f"{home}/other/x")
    assert "outside" not in done.stderr
    assert why_useless(f"{home}/live/", str(home / "live"))
