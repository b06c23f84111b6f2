"""Exclude patterns mean what they mean to git, and a pattern that is not valid is a usage error."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from castore.content.scan.exclude import Exclude
from castore.errors import UsageError


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
