"""--limit-upload and --limit-download, and their keys in castore.toml."""

from __future__ import annotations

import random
import time

import pytest

import castore as api

SIZE = 500_000
RATE = "500KB"
"""So that SIZE takes a second."""


@pytest.fixture
def tree(tmp_path, castore):
    castore("init", tmp_path / "store")
    top = tmp_path / "tree"
    top.mkdir()
    (top / "random").write_bytes(random.Random(1).randbytes(SIZE))
    return top


def _seconds(run):
    started = time.monotonic()
    run()
    return time.monotonic() - started


def test_a_limit_makes_a_snapshot_and_a_restore_take_as_long_as_it_says(castore, tree, tmp_path):
    store = ("--store", tmp_path / "store")
    taken = _seconds(lambda: castore("snapshot", "s", "--tree", f"d={tree}", *store, "--limit-upload", RATE))
    assert 1 <= taken < 20
    restored = tmp_path / "restored"
    took = _seconds(lambda: castore("restore", "s@latest:d", restored, *store, "--limit-download", RATE))
    assert 1 <= took < 20
    assert (restored / "random").read_bytes() == (tree / "random").read_bytes()


def test_castore_toml_limits_unless_the_option_says_otherwise(castore, tree, tmp_path):
    config = tmp_path / "castore.toml"
    config.write_text(f'store = "{tmp_path / "store"}"\nlimit-upload = "{RATE}"\nlimit-download = "1B"\n')
    words = ("snapshot", "s", "--tree", f"d={tree}", "--config", config, "--limit-download", "off")
    assert _seconds(lambda: castore(*words)) >= 1
    assert "500000" in castore("config", "show", "--config", config).stdout.replace(",", "").replace(" ", "")


def test_the_python_api_limits_as_well(home, tmp_path):
    top = tmp_path / "tree"
    top.mkdir()
    (top / "random").write_bytes(random.Random(1).randbytes(SIZE))
    identity = api.Identity.generate()

    def run():
        with api.create(tmp_path / "store", identity=identity, limit_upload=SIZE) as store:
            store.service("s").snapshot({"d": api.Tree(str(top))})

    assert _seconds(run) >= 1
    with pytest.raises(api.UsageError, match="limit_download is 0"):
        api.open(tmp_path / "store", limit_download=0)


@pytest.mark.parametrize("option", ["--limit-upload", "--limit-download"])
@pytest.mark.parametrize("rate", ["0", "-1", "-5M", "0K", "fast", "", "1P", "1e6", "inf", "nan", "0.2"])
def test_a_limit_that_is_not_one_is_refused(castore, option, rate):
    done = castore("log", f"{option}={rate}", expect=2)
    assert "bytes a second like 500K or 10M" in done.stderr
