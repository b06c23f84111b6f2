"""A path that castore.toml names and that does not exist: one exit code, whatever the engine."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from castore.engines.file import File
from castore.engines.sqlite import SQLite
from castore.errors import UsageError
from castore.services.rollback.steps import refuse_without_folder

Run = Callable[..., subprocess.CompletedProcess]

PARTS = {
    "tree": 'engine = "tree"\npath = "{}"\n',
    "file": 'engine = "file"\npath = "{}"\n',
    "sqlite": 'engine = "sqlite"\npath = "{}"\n',
    "ldap": 'engine = "ldap"\nsuffix = "dc=example,dc=org"\nconfig = "{}"\n',
    "password": 'engine = "redis"\nsocket = "/nonexistent"\npassword = {{ file = "{}" }}\n',
}


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("where", ["absent", "absent/below"])
def test_a_missing_path_has_one_exit_code(castore: Run, home: Path, kind: str, where: str) -> None:
    path = home / where
    config = home / "castore.toml"
    config.write_text(f'store = "{home}/store"\n[service.app.parts.p]\n{PARTS[kind].format(path)}')
    config.chmod(0o600)
    castore("init", home / "store")
    for command in (["snapshot", "app"], ["config", "check"]):
        done = castore(*command, expect=2)
        assert str(path) in done.stderr + done.stdout


def test_a_rollback_without_the_folder_of_a_part_has_the_same_exit_code(tmp_path: Path) -> None:
    path = str(tmp_path / "absent" / "state")
    for ready in (File(path=path).preflight, SQLite(path=path).preflight, lambda: refuse_without_folder(path)):
        with pytest.raises(UsageError, match=f"the directory {tmp_path}/absent does not exist; make it"):
            ready()
