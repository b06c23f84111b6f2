"""`castore recover` without arguments counts directories among what it could not recover."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from castore.cli.main import cli
from castore.errors import CastoreError, SeveralError

Run = Callable[..., subprocess.CompletedProcess]


def test_directories_are_counted_with_the_services(castore: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    castore("init")

    def fail(_run: object, _path: str) -> None:
        raise CastoreError("the disk fails")

    monkeypatch.setattr("castore.content.restore.undo_journal.interrupted", lambda _folder: ["/srv/a", "/srv/b"])
    monkeypatch.setattr("castore.cli.commands.recover._Recovery.directory", fail)
    with pytest.raises(SeveralError, match="of 2 services and directories failed: /srv/a, /srv/b"):
        cli.main(["recover"], standalone_mode=False)
