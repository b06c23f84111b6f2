"""Fixtures of the tests of commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.stores import Sandbox


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """A store that the environment names, and the machine that uses it."""
    sandbox = Sandbox(tmp_path / "sandbox", average=4096)
    monkeypatch.setenv("CASTORE_STORE", str(sandbox.store))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg-state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg-cache"))
    identity = tmp_path / "identity"
    identity.write_text(sandbox.identity.text() + "\n")
    identity.chmod(0o600)
    monkeypatch.setenv("CASTORE_IDENTITY", str(identity))
    return sandbox
