"""A part that a program dumps: whether it can be rolled back is checked before anything changes."""

from __future__ import annotations

import pytest

from castore.engines.command import Command
from castore.errors import UsageError


@pytest.mark.parametrize(
    ("restore", "message"),
    [
        ((), "cannot restore this dump: no restore program is set"),
        (("no-such-program",), "cannot find the restore program 'no-such-program'.*; nothing was changed"),
    ],
)
def test_a_dump_without_a_restore_program_is_not_ready_for_a_rollback(restore, message):
    with pytest.raises(UsageError, match=message):
        Command(program=("echo",), restore=restore).preflight()
