"""Exclude patterns mean what they mean to git, and a pattern that is not valid is a usage error."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from castore.content.exclude import Exclude
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
