"""A generation names programs: only those that this machine has run for the service are run again."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from castore.model.generation import Origin
from castore.services.recorded import _named, _without

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def service(castore: Run, home: Path) -> Path:
    """A service that castore.toml does not describe any more; return its file of known programs."""
    described = (
        f'store = "{home}/store"\n[service.shop.parts.db]\nengine = "command"\n'
        f'dump = ["sh", "-c", "touch {home}/dumped; cat {home}/state"]\n'
        f'restore = ["sh", "-c", "touch {home}/restored; cat >{home}/state"]\n'
    )
    (home / "described.toml").write_text(described)
    (home / "castore.toml").write_text(described)
    castore("init", home / "store")
    (home / "state").write_text("1")
    castore("snapshot", "shop")
    (home / "state").write_text("2")
    (home / "dumped").unlink()
    (home / "castore.toml").write_text(f'store = "{home}/store"\n')
    (found,) = home.rglob("programs/*")
    return found


def ran(home: Path) -> set[str]:
    return {name for name in ("dumped", "restored") if (home / name).exists()}


def test_this_machine_knows_what_it_has_run(castore: Run, home: Path, service: Path) -> None:
    castore("rollback", "shop", "--to", "1")
    assert (home / "state").read_text() == "1"
    castore("rollback", "shop", "--undo")
    assert (home / "state").read_text() == "2"
    assert service.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("state", [None, "[]", "damaged"])
def test_what_another_machine_named_is_shown_and_not_run(castore: Run, home: Path, service: Path, state: str | None) -> None:
    service.unlink()
    if state is not None:
        service.write_text(state)
    for options in (["--dry-run"], [], ["--no-safety"], ["--yes"]):
        refused = castore("rollback", "shop", "--to", "1", *options, expect=2).stderr
        assert "db: the generation names a program, but neither castore.toml nor" in refused
        assert f"touch {home}/restored" in refused
        assert "--restore db=" in refused
    restore = f"--restore=db=tee {home}/state"
    assert "--no-safety" in castore("rollback", "shop", "--to", "1", restore, expect=2).stderr
    castore("drill", "shop")
    assert ran(home) == set()
    castore("rollback", "shop", "--to", "1", restore, "--no-safety")
    assert (home / "state").read_text() == "1"
    assert ran(home) == set()
    castore("rollback", "shop", "--to", "1", "--config", home / "described.toml")
    assert ran(home) == {"dumped"}  # equal already


@pytest.mark.parametrize(
    ("engine", "settings"),
    [
        ("postgresql", {"database": "a", "program-path": "/tmp/evil"}),
        ("mariadb", {"database": "a", "password": {"command": ["/tmp/evil"]}}),
        ("command", {"dump": ["/tmp/evil"], "restore": ["/tmp/evil"]}),
    ],
)
def test_all_keys_that_name_programs_are_left_out(engine: str, settings: dict) -> None:
    one = Origin(engine=engine, settings=settings, dump=tuple(settings.get("dump", ())))
    named = _named(one)
    assert set(named.values()) == {("/tmp/evil",)}
    assert "evil" not in json.dumps(_without(one, named).settings)
    assert _named(_without(one, named)) == {}
