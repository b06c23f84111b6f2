"""After a rollback that failed: what is refused names a command that works in that very state."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess]

REFUSED = (
    ("guard", "shop", "--", "true"),
    ("forget", "shop@1", "--yes"),
    ("prune", "shop"),
    ("rollback", "shop", "--to", "2"),
    ("rollback", "shop", "--undo"),
)
FORGET = re.compile("castore (recover --forget shop)")


@pytest.fixture
def journal(castore: Run, home: Path) -> Path:
    """A service whose rollback failed, and could not be undone; return where its journal is."""
    restore = f"cat >{home}/state; test -e {home}/works"
    (home / "castore.toml").write_text(
        f'store = "{home}/store"\n[service.shop]\nkeep = {{ last = 9 }}\n[service.shop.parts.db]\nengine = "command"\n'
        f'dump = ["cat", "{home}/state"]\nrestore = ["sh", "-c", "{restore}"]\n'
    )
    castore("init", home / "store")
    for number in "123":
        (home / "state").write_text(number)
        castore("snapshot", "shop", "--revision", f"r{number}")
    (home / "works").touch()
    castore("rollback", "shop", "--to", "3")
    castore("rollback", "shop", "--to", "2")
    (home / "works").unlink()
    assert "castore recover --forget shop" in castore("rollback", "shop", "--to", "1", expect=11).stderr
    (found,) = home.rglob("rollbacks/*")
    return found


def test_what_is_refused_names_a_command_that_works(castore: Run, home: Path, journal: Path) -> None:
    begun = journal.read_bytes()
    for command in REFUSED:
        journal.write_bytes(begun)
        (home / "works").unlink(missing_ok=True)
        refused = castore(*command, expect=11).stderr
        assert "castore recover shop" in refused
        named = FORGET.search(refused)
        assert named, command
        if command == REFUSED[0]:
            # The cause of the failure is not fixed: the first way out cannot succeed, and names the second.
            assert FORGET.search(castore("recover", "shop", expect=11).stderr)
        castore(*shlex.split(named[1]))
        (home / "works").touch()
        castore(*command)


def test_a_recovery_works_when_the_cause_is_fixed(castore: Run, home: Path, journal: Path) -> None:
    (home / "works").touch()
    castore("recover", "shop")
    assert (home / "state").read_text() == "2"
    assert not journal.exists()
    castore("rollback", "shop", "--to", "1")


def damaged(data: bytes) -> list[bytes]:
    """Return what may become of a journal: lost, cut, or some of its bytes are others."""
    at = data.index(b"command")
    return [b"", data[:-3], data.replace(b"state", b"stale"), data[:at] + b"commanD" + data[at + 7 :]]


def test_a_damaged_journal_is_reported_and_can_be_forgotten(castore: Run, home: Path, journal: Path) -> None:
    (home / "works").touch()
    for data in damaged(journal.read_bytes()):
        journal.write_bytes(data)
        refused = castore("recover", "shop", expect=11).stderr
        assert "the journal of a rollback of 'shop' is damaged" in refused
        assert FORGET.search(refused)
    castore("snapshot", "shop", expect=3)
    for command in REFUSED:
        journal.write_bytes(b"garbage")
        assert FORGET.search(castore(*command, expect=11).stderr)
        assert "is not known" in castore("recover", "--forget", "shop").stdout
        castore(*command)


def test_a_journal_that_cannot_be_read_blocks_no_snapshot(castore: Run, home: Path, journal: Path) -> None:
    journal.unlink()
    journal.symlink_to(journal.name)  # each attempt to open it fails, also for root
    castore("snapshot", "shop", expect=3)
    for command in (("recover", "shop"), REFUSED[0]):
        assert FORGET.search(castore(*command, expect=11).stderr)
    castore("recover", "--forget", "shop")
    castore("snapshot", "shop")
