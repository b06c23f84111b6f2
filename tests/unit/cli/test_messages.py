"""The messages of commands."""

import pytest

from castore.cli.context import CliContext
from castore.errors import DamageError, IncompleteError


def test_a_list_of_problems_is_cut_and_counted(capsys):
    problems = [(b"file%d" % number, "vanished") for number in range(23)]
    with pytest.raises(IncompleteError, match="completely: 23 problems"):
        CliContext.report_restored(problems, [])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "castore: file0: vanished"
    assert lines[-2:] == ["castore: file19: vanished", "castore: and 3 more"]
    assert len(lines) == 21


def test_damaged_files_are_all_named(capsys):
    with pytest.raises(DamageError, match="22 files"):
        CliContext.report_restored([], [(b"file%d" % number, "damaged") for number in range(22)])
    assert len(capsys.readouterr().err.splitlines()) == 22
