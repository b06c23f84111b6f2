"""A generation names programs, servers and paths: only what this machine or its user vouches for is used."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from castore.model.generation import Details, Generation, Origin, Part, StoredRef
from castore.model.refs import RefKind
from castore.services.recorded import remember, trusted_origins
from castore.services.sources import Tree
from castore.store import MachinePaths, open_store
from tests.support.forged_generations import forge

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
    for options in (["--dry-run"], [], ["--no-pre-rollback"], ["--yes"]):
        refused = castore("rollback", "shop", "--to", "1", *options, expect=2).stderr
        assert "db: the generation names a program, but neither castore.toml nor" in refused
        assert f"touch {home}/restored" in refused
        assert "--restore db=" in refused
    restore = f"--restore=db=tee {home}/state"
    assert "--no-pre-rollback" in castore("rollback", "shop", "--to", "1", restore, expect=2).stderr
    castore("drill", "shop")
    assert ran(home) == set()
    castore("rollback", "shop", "--to", "1", restore, "--no-pre-rollback")
    assert (home / "state").read_text() == "1"
    assert ran(home) == set()
    castore("rollback", "shop", "--to", "1", "--config", home / "described.toml")
    assert ran(home) == {"dumped"}  # equal already


EVIL = {
    "tree": ({"path": b"/tmp/evil"}, "a path"),
    "postgresql": ({"engine": "postgresql", "settings": {"database": "a", "program-path": "/tmp/evil"}}, "settings of the engine postgresql"),
    "mariadb": ({"engine": "mariadb", "settings": {"database": "a", "host": "evil"}}, "settings of the engine mariadb"),
    "password": ({"engine": "redis", "settings": {"password": {"command": ["/tmp/evil"]}}}, "settings of the engine redis"),
    "sqlite": ({"engine": "sqlite", "settings": {"path": "/tmp/evil/name"}}, "settings of the engine sqlite"),
    "file": ({"engine": "file", "path": b"/tmp/evil/name", "settings": {"path": "/tmp/evil/name"}}, "a path"),
    "ldap": ({"engine": "ldap", "settings": {"suffix": "dc=a", "config": "/tmp/evil"}}, "settings of the engine ldap"),
    "command": ({"engine": "command", "dump": ("/tmp/evil",), "settings": {"dump": ["/tmp/evil"]}}, "a program"),
    "run-as": ({"engine": "file", "settings": {"path": "/tmp/evil/name", "run-as": "root"}}, "a path"),
}


class Machine:
    """What of a store is asked for where parts belong."""

    def __init__(self, known: str | None = None) -> None:
        self.known = known
        self.state = self

    def known_origins(self, service: str) -> str | None:
        return self.known

    def set_known_origins(self, service: str, origins: str) -> None:
        self.known = origins


def generation(*parts: str) -> Generation:
    zeros = dict.fromkeys(("size", "files", "chunks", "new_chunks", "new_bytes", "stored_bytes"), 0)
    made = tuple(Part(name, "dump", None, **zeros) for name in parts)
    return Generation("shop", 1, 1, "", "", made, StoredRef(RefKind.LIST, bytes(32), 1), bytes(16))


@pytest.mark.parametrize("kind", EVIL)
def test_nothing_of_a_part_that_nobody_vouches_for_is_used(kind: str) -> None:
    fields, named = EVIL[kind]
    one = Origin(**fields)
    said: list[str] = []
    machine = Machine()
    found = trusted_origins(machine, generation("p"), {"p": one}, {}, said.append)
    assert found == {"p": Origin()}
    assert named in said[0]
    assert "evil" in said[0]
    assert "--trust-recorded" in said[0]
    drilled = trusted_origins(machine, generation("p"), {"p": one}, {}, drill=True)["p"]
    assert "evil" not in json.dumps(msgspec.to_builtins(drilled))
    # With the consent of a user it is shown and used, but what did not exist then is never removed.
    assert trusted_origins(machine, generation("p"), {"p": one}, {}, said.append, consent=True) == {"p": one}
    assert trusted_origins(machine, generation("q"), {"p": one}, {}, consent=True) == {"p": Origin()}
    # This machine has taken it from there: not another part, and not with another setting.
    remember(machine, "shop", {"p": one})
    assert trusted_origins(machine, generation("p"), {"p": one}, {}) == {"p": one}
    assert trusted_origins(machine, generation("q"), {"q": one}, {}) == {"q": Origin()}
    other = msgspec.structs.replace(one, exclude=("x",))
    assert trusted_origins(machine, generation("p"), {"p": other}, {}) == {"p": Origin()}
    # As castore.toml says.
    mine = Origin(path=b"/mine")
    assert trusted_origins(Machine(), generation("p"), {"p": one}, {"p": mine}) == {"p": mine}


def test_a_machine_remembers_a_bounded_number_of_places() -> None:
    machine = Machine()
    for number in range(1100):
        remember(machine, "shop", {"p": Origin(path=b"/%d" % number), "q": Origin(path=b"/q")})
    assert len(machine.known or "") < 60_000
    for known in (None, "", "[]", "3", '{"p": 3}', "damaged"):
        assert trusted_origins(Machine(known), generation("p"), {"p": Origin(path=b"/q")}, {}) == {"p": Origin()}
    assert trusted_origins(machine, generation("q"), {"q": Origin(path=b"/q")}, {}) == {"q": Origin(path=b"/q")}


@pytest.fixture
def elsewhere(castore: Run, home: Path, tmp_path: Path) -> Path:
    """A generation of a tree that was taken on a machine that is lost; castore.toml does not describe it."""
    live = tmp_path / "live"
    (live / "folder").mkdir(parents=True)
    (live / "file").write_text("1")
    (home / "castore.toml").write_text(f'store = "{home}/store"\n')
    castore("init", home / "store")
    castore("snapshot", "web", "--tree", f"t={live}")
    for found in home.rglob("programs/*"):
        found.unlink()
    (live / "file").write_text("2")
    (live / "more").write_text("3")
    return live


def test_a_recorded_path_is_used_only_with_consent(castore: Run, home: Path, elsewhere: Path) -> None:
    for options in (["--dry-run"], [], ["--yes"], ["--no-pre-rollback"], ["--no-pre-rollback", "--yes"]):
        refused = castore("rollback", "web", "--to", "1", *options, expect=2).stderr
        assert f"t: the generation names a path, but neither castore.toml nor a snapshot on this machine does, and it is not used: {elsewhere}" in refused
        assert "--trust-recorded" in refused
    assert (elsewhere / "file").read_text() == "2"
    (home / "castore.toml").write_text(f'store = "{home}/store"\n[service.web]\nfollow = "restore"\nrevision = {{ value = "r" }}\n')
    castore("follow", "web", expect=None)
    castore("drill", "web")
    assert (elsewhere / "file").read_text() == "2"
    # The same place is not known to be the one that the tree came from.
    refused = castore("restore", "--in-place", "web@1:t", elsewhere, expect=2).stderr
    assert "this machine does not know its directory" in refused
    shown = castore("rollback", "web", "--to", "1", "--trust-recorded", "--dry-run")
    assert f"t: used as the generation records it, by --trust-recorded: {elsewhere}" in shown.stderr
    castore("rollback", "web", "--to", "1", "--trust-recorded")
    assert (elsewhere / "file").read_text() == "1"
    assert not (elsewhere / "more").exists()
    for command in ("guard", "follow"):
        assert "No such option" in castore(command, "--trust-recorded", "web", expect=2).stderr


def test_a_restore_in_place_trusts_a_recorded_place_with_consent(castore: Run, elsewhere: Path) -> None:
    castore("restore", "--in-place", "--trust-recorded", "web@1:t", elsewhere)
    assert (elsewhere / "file").read_text() == "1"
    assert "for --in-place only" in castore("restore", "--trust-recorded", "web@1:t", elsewhere / "x", expect=2).stderr


def test_a_recorded_path_is_never_removed(castore: Run, home: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generation says that something did not exist when it was taken, somewhere."""
    precious = home / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")

    def details(one: Details) -> Details:
        origins = {**one.origins, "u": Origin(path=str(precious).encode()), "v": Origin(engine="file", path=str(precious / "file").encode(), settings={"path": str(precious / "file")})}
        return msgspec.structs.replace(one, origins=origins, absent_parts={"u": "tree", "v": "dump"})

    state = MachinePaths(str(home / ".local/state/castore"), str(home / ".cache/castore"))
    with open_store(str(home / "store"), state) as store:
        forge(store, "web", {"t": Tree(str(elsewhere))}, details=details)
    assert "u: not in the generation, and left as it is" in castore("rollback", "web", "--to", "2", "--dry-run", "--trust-recorded").stderr
    castore("rollback", "web", "--to", "2", "--trust-recorded", "--yes")
    castore("rollback", "web", "--to", "2", "--trust-recorded", "--yes", "--no-pre-rollback")
    assert (precious / "file").read_text() == "kept"
