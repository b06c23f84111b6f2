"""How things are written for people."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import castore
from castore.cli import formatting


def test_a_table_aligns_its_columns():
    rows = [["drupal", "1"], ["db", "12345"]]
    assert formatting.table(rows, header=["part", "size"], right={1}) == (
        "part     size\ndrupal      1\ndb      12345"
    )
    assert formatting.table([["a", ""], ["b", "c"]]) == "a\nb  c"
    assert formatting.table([]) == ""
    assert formatting.table([], header=["part", "size"]) == "part  size"


def test_a_table_aligns_wide_and_combining_letters():
    assert formatting.table([["東京", "x"], ["e\u0301", "x"], ["abcd", "x"]]).splitlines() == [
        "東京  x",
        "e\u0301     x",
        "abcd  x",
    ]


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (1024, "1.0 KiB"),
        (1258291, "1.2 MiB"),
        (10 * 1024, "10 KiB"),
        (10 * 1024 - 1, "10 KiB"),
        (120 << 20, "120 MiB"),
        ((1 << 30) - 1, "1.0 GiB"),
        (5 << 60, "5.0 EiB"),
        (5000 << 60, "5000 EiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_sizes_are_binary_and_short(count, shown):
    assert formatting.size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.00 s"),
        (0.417, "0.42 s"),
        (9.999, "10 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7620, "2 h 07 min"),
    ],
)
def test_durations_are_short(seconds, shown):
    assert formatting.duration(round(seconds * 1e9)) == shown


def test_times_are_local_and_any_number_has_one(monkeypatch):
    monkeypatch.setenv("TZ", "UTC-1")
    time.tzset()
    try:
        assert formatting.local_time(1_000_000_000 * 10**9) == "2001-09-09 02:46:40"
        assert formatting.local_time(-(10**9)) == "1970-01-01 00:59:59"
        assert formatting.local_time(10**30) == f"@{10**21}"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain name.txt", "plain name.txt"),
        ("Grüße 東京".encode(), "Grüße 東京"),
        (b"\x1b[2Jboo", r"\x1b[2Jboo"),
        (b"a\nb\tc\x7f", r"a\nb\tc\x7f"),
        (b"\xff\xfe", r"\xff\xfe"),
        ("\x9b31m".encode(), r"\u009b31m"),
        (b"\x9b31m", r"\x9b31m"),
        ("a\u202eb".encode(), r"a\u202eb"),
        (b"back\\slash", r"back\\slash"),
        ("text\x00", r"text\x00"),
    ],
)
def test_names_cannot_drive_the_terminal(name, shown):
    assert formatting.printable(name) == shown


@given(st.binary(), st.binary())
def test_any_name_is_printable_and_two_names_are_shown_differently(one, other):
    assert formatting.printable(one).isprintable()
    formatting.printable(one).encode()
    assert (formatting.printable(one) == formatting.printable(other)) == (one == other)


@given(st.binary())
def test_a_message_is_one_line(data):
    assert formatting.one_line(os.fsdecode(data)).isprintable()


def test_a_message_keeps_its_words():
    assert formatting.one_line("one\n  two \\ \x1b three\n") == r"one two \ \x1b three"


def test_modes_are_those_of_ls():
    assert formatting.mode_text(0o104755) == "-rwsr-xr-x"
    assert formatting.mode_text(0o41777) == "drwxrwxrwt"


@pytest.mark.parametrize(
    ("number", "words", "expected"),
    [
        (0, ("pack",), "0 packs"),
        (1, ("pack",), "1 pack"),
        (2, ("pack",), "2 packs"),
        (12000, ("pack",), "12,000 packs"),
        (1, ("entry", "entries"), "1 entry"),
        (2, ("file is", "files are"), "2 files are"),
    ],
)
def test_count_has_a_singular_and_a_plural(number, words, expected):
    assert formatting.count(number, *words) == expected


def test_no_message_counts_things_without_a_singular():
    """A number before a plural noun in a message goes through `count`."""
    nouns = "files|steps|objects|parts|chunks|generations|packs|things|entries|rows|directories|problems|records"
    counted = re.compile(r"(?<!\{)\{[^{}\"]*\} (" + nouns + r")\b")
    root = Path(castore.__file__).parent
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in sorted(root.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if 'f"' in line and counted.search(line)
    ]
    assert found == []
