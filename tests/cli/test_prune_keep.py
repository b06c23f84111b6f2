"""`prune --keep-*` replaces castore.toml's rules for one run."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def stored(castore, home):
    """Five generations of each of two services, whose rules in castore.toml keep all."""
    (home / "d").mkdir()
    text = "".join(
        f'[service.{name}]\nkeep = {{ last = 99 }}\n[service.{name}.parts.t]\nengine = "tree"\npath = "{home}/d"\n'
        for name in ("a", "b")
    )
    (home / "castore.toml").write_text(text)
    for number in range(5):
        castore("snapshot", "--all", "--revision", f"r{number % 2}")
    return home


def numbers(castore, service):
    return sorted(one["number"] for one in json.loads(castore("log", service, "--json").stdout))


def test_rules_of_the_command_replace_those_of_castore_toml(castore, stored):
    assert "would free" in castore("prune", "--keep-last", "2", "--dry-run", "a").stdout
    assert numbers(castore, "a") == [1, 2, 3, 4, 5]
    castore("prune", "--keep-last", "2", "--keep-per-revision", "0", "a")
    assert numbers(castore, "a") == [4, 5]
    assert numbers(castore, "b") == [1, 2, 3, 4, 5]
    castore("prune")
    assert numbers(castore, "b") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        (["--keep-daily", "7", "--keep-per-revision", "0"], [5]),
        (["--keep-hourly", "1", "--keep-per-revision", "2"], [2, 3, 4, 5]),
        (["--keep-within", "1d"], [1, 2, 3, 4, 5]),
        (["--keep-last", "1"], [4, 5]),
    ],
)
def test_each_rule_counts_as_in_castore_toml(castore, stored, rules, left):
    castore("prune", *rules)
    # At the turn of an hour or a day there may be one more.
    assert set(left) <= set(numbers(castore, "a"))
    assert len(numbers(castore, "a")) <= len(left) + 1
    assert numbers(castore, "a") == numbers(castore, "b")


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (["--keep-within", "soon"], "--keep-within: a span like"),
        (["--keep-last", "0"], "no --keep rule keeps anything"),
        (["--keep-last", "-1"], "-1 is not in the range"),
        (["--keep-last", "x"], "is not a number"),
    ],
)
def test_rules_that_mean_nothing_are_wrong_usage(castore, stored, rules, said):
    assert said in castore("prune", *rules, expect=2).stderr
    assert numbers(castore, "a") == [1, 2, 3, 4, 5]


def test_a_service_whose_rules_cannot_be_read_keeps_all_and_the_others_are_pruned(castore, stored):
    text = (stored / "castore.toml").read_text()
    (stored / "castore.toml").write_text(
        text.replace("last = 99", "lsat = 1", 1).replace("last = 99", "last = 1, per-revision = 0")
    )
    said = castore("prune", expect=2).stderr
    assert "a: nothing was deleted" in said
    assert "lsat" in said
    assert numbers(castore, "a") == [1, 2, 3, 4, 5]
    assert numbers(castore, "b") == [5]
    assert "lsat" in castore("prune", "a", expect=2).stderr
    castore("prune", "a", "--keep-last", "3")
