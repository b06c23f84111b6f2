"""What a newcomer meets in the first week: summaries, questions, tables on a terminal."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.fixture
def stored(castore, home):
    (home / "d" / "sub").mkdir(parents=True)
    (home / "d" / "sub" / "f").write_text("one")
    for release in ("r1", "r10", "r2"):
        (home / "d" / "sub" / "f").write_text(release)
        castore("snapshot", "a", "--tree", f"t={home}/d", "--revision", f"/srv/releases/{release}")
    return home


def test_a_sound_store_is_said_to_be_sound(castore, stored):
    assert castore("verify").stdout.rstrip().endswith("; no damage found")
    assert castore("repair", "--dry-run").stdout == castore("repair").stdout == "nothing to repair\n"


def test_a_question_that_nobody_can_answer_ends_its_line_and_names_the_option(castore, stored):
    run = castore("forget", "a@1", expect=2)
    question, error = run.stderr.splitlines()
    assert question == "Delete a@1 permanently? [y/N]: "
    assert "nothing was done" in error
    assert "--yes" in error


def test_a_directory_has_no_size_of_its_own(castore, stored):
    rows = castore("history", "a:t/sub").stdout.splitlines()
    assert all("  -  " in row for row in rows[1:])
    assert "  d            -  " in castore("find", "sub").stdout


def test_a_revision_that_is_a_path_is_selected_by_its_base_name(castore, stored):
    def number(selector):
        return json.loads(castore("show", f"a@{selector}", "--json").stdout)["number"]

    assert [number(one) for one in ("r1", "=r10", "r2", "/srv/releases/r2")] == [1, 2, 3, 3]


@pytest.mark.parametrize(
    ("columns", "header", "missing"),
    [(120, "total new stored", ""), (80, "total stored", "new"), (62, "", "new, stored, total")],
)
def test_the_log_fits_the_terminal_and_names_what_does_not(castore, stored, columns, header, missing):
    words = ["script", "-qec", f"stty cols {columns}; unset COLUMNS; exec {sys.executable} -m castore log", "/dev/null"]
    run = subprocess.run(words, cwd=stored, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert " ".join(lines[0].split()) == f"service number time revision parts {header}".strip()
    noted = f"castore: note: no room for {missing}: use --json or a wider terminal"
    assert (lines.pop() if missing else "") == (noted if missing else "")
    assert max(map(len, lines)) <= columns
    assert "new" in castore("log").stdout.splitlines()[0]
