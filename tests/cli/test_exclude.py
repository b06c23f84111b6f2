"""Exclude patterns on the command line and in castore.toml."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from castore.content.scan.exclude import why_useless

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
