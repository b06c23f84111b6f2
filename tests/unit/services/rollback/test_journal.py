"""The journal of a rollback: another process reads what the engines and the rollback recorded."""

from __future__ import annotations

import os
from typing import Any, ClassVar, cast

import pytest

from castore import engines
from castore.engines import find, names
from castore.engines.base import Engine
from castore.engines.mariadb.accounts import Account
from castore.engines.mariadb.swap import MariaDBSwap
from castore.engines.postgresql.swap import PostgreSQLSwap
from castore.engines.redis import RedisSwap
from castore.engines.sqlite import SQLiteSwap
from castore.engines.state import EngineState, FileSwap, NoState, PathSwap
from castore.errors import NotIntactError
from castore.services.rollback.journal import Journal, PartJournal, TreeMove, read_journal, write_journal

ODD = os.fsdecode(b"/srv/\xff/db")
PATHS = {"live": ODD, "new": ODD + ".new", "old": ODD + ".old", "existed": False}
DATABASES = {"live": "app", "new": "castore_new_1", "old": "castore_old_1", "existed": True}
STATES: dict[str, EngineState] = {
    "file": FileSwap(**PATHS, inode=(7, 11)),
    "sqlite": SQLiteSwap(**PATHS, mode="wal"),
    "redis": RedisSwap(**PATHS, save="", saved="1 2 3"),
    "ldap": PathSwap(**PATHS),
    "postgresql": PostgreSQLSwap(**DATABASES, oid="16384", roles=("a", 'b"')),
    "postgresql-roles": NoState(),
    "mariadb": MariaDBSwap(**DATABASES, code="castore_code_1", accounts=(Account("u", "%", roles=("r",)),)),
    "mysql": MariaDBSwap(**DATABASES, code="castore_code_1"),
    "command": NoState(),
}


class Kept:
    """A store as the journal uses it."""

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.state = self

    def write_rollback_journal(self, _service: str, data: bytes) -> None:
        self.data = data

    def rollback_journal(self, _service: str) -> bytes | None:
        return self.data


@pytest.fixture
def store() -> Any:
    return cast("Any", Kept())


def test_every_engine_has_a_state_here() -> None:
    assert {*names(), "postgresql-roles"} == STATES.keys()


@pytest.mark.parametrize("engine", STATES)
def test_another_process_reads_the_state_of_an_engine(store: Any, engine: str) -> None:
    state = STATES[engine]
    assert type(state) is find(engine).state_type
    part = PartJournal("p", engine=engine, settings={"path": ODD}, state=state, swap_begun=True)
    write_journal(store, Journal("s", 3, 4, [part]))
    found = read_journal(store, "s")
    assert found is not None
    assert found.parts == [part]
    assert type(found.parts[0].state) is type(state)


def test_another_process_reads_what_is_recorded_of_trees(store: Any) -> None:
    parts = [
        PartJournal("t", path=os.fsencode(ODD), existed=False, swap_begun=True, reverted=True),
        PartJournal("u", path=b"/u", move=TreeMove(ODD, (1, 2), "boot"), keep_old=True),
    ]
    write_journal(store, Journal("s", 3, None, parts, phase="stopped"))
    found = read_journal(store, "s")
    assert found is not None
    assert found.parts == parts
    assert (found.phase, found.any_difference) == ("stopped", True)


def test_what_a_forgotten_rollback_may_leave_is_named() -> None:
    left = {name: PartJournal("p", engine=name, state=state).left for name, state in STATES.items()}
    assert left["mariadb"] == "castore_code_1, castore_new_1, castore_old_1"
    assert left["postgresql"] == "castore_new_1, castore_old_1"
    assert left["ldap"] == f"{ODD}.new, {ODD}.old"
    assert left["command"] == ""


def test_any_changed_byte_makes_a_journal_damaged(store: Any) -> None:
    write_journal(store, Journal("s", 3, 4, [PartJournal("p", engine="file", state=STATES["file"])]))
    assert store.data is not None
    for at in range(len(store.data)):
        changed = Kept()
        changed.data = store.data[:at] + bytes([store.data[at] ^ 1]) + store.data[at + 1 :]
        with pytest.raises(NotIntactError, match="is damaged"):
            read_journal(cast("Any", changed), "s")


class Pages(EngineState, kw_only=True):
    """The state of an engine of another package."""

    copied: list[int]
    place: dict[str, str]


class Notes(Engine[Pages], frozen=True):
    """An engine of another package."""

    book: str
    state_type: ClassVar[type[EngineState]] = Pages


def test_an_engine_of_another_package_gets_its_own_state_back(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines._OWN, "notes", f"{__name__}:Notes")
    state = Pages(copied=[1, 2], place={"a": ODD})
    write_journal(store, Journal("s", 3, 4, [PartJournal("p", engine="notes", settings={"book": "b"}, state=state)]))
    found = read_journal(store, "s")
    assert found is not None
    assert found.parts[0].state == state


def test_a_state_without_a_field_makes_a_journal_damaged(store: Any) -> None:
    part = PartJournal("p", engine="ldap", state=FileSwap(live="/a", new="/b", old="/c", existed=True))
    part.engine = "redis"
    write_journal(store, Journal("s", 3, 4, [part]))
    with pytest.raises(NotIntactError, match=r"is damaged.*save"):
        read_journal(store, "s")
