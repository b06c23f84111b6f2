"""Options that take NAME=VALUE say what the value is."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

Run = Callable[..., subprocess.CompletedProcess]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("snapshot", "s", "--tree", "/etc"), "--tree takes NAME=DIR"),
        (("snapshot", "s", "--dump", "-"), "--dump takes NAME=FILE"),
        (("snapshot", "s", "--exec", "pg_dump"), "--exec takes NAME='ARGV'"),
        (("snapshot", "s", "--tree", "=/etc"), "--tree takes NAME=DIR"),
        (("rollback", "s", "--to", "1", "--restore", "psql"), "--restore takes NAME='ARGV'"),
    ],
)
def test_a_value_without_a_name_is_refused_with_the_form_that_is_wanted(castore: Run, words: tuple[str, ...], wanted: str) -> None:
    castore("init")
    castore("snapshot", "s", "--exec", "d=echo")
    assert wanted in castore(*words, expect=2).stderr
