"""An identity file that another user could have written is not read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a" / "b" / "secret"
    path.parent.mkdir(parents=True, mode=0o755)
    path.write_text("word\n")
    return path


def test_an_identity_that_another_could_have_written_is_not_read(file: Path, castore, home: Path):
    identity = file.parent / "identity"
    castore("key", "new", identity)
    pipe = file.parent / "pipe"
    os.mkfifo(pipe)
    failed = castore("key", "show", "--identity", pipe, expect=7)
    assert "it is a pipe, not a regular file" in failed.stderr
    identity.chmod(0o666)
    failed = castore("key", "show", "--identity", identity, expect=7)
    assert f"chmod go-w {identity}" in failed.stderr
    assert castore("key", "show", "--identity", "/dev/stdin", input=identity.read_bytes()).stdout.startswith("castore-pub-")
