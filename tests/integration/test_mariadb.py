"""MariaDB: views that are broken, character sets, large rows, and values of rows, which are never shown."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator

import msgspec
import pytest

from castore.content.restore.metadata import Ownership
from castore.content.streams import StreamReader
from castore.engines.dump_stream import DumpStream
from castore.engines.mariadb import reports
from castore.engines.mariadb.engine import MariaDB
from castore.engines.mariadb.swap import Swap
from castore.errors import CastoreError, ProgramError
from castore.model.generation import Generation
from castore.services import drill
from castore.services.config import Service
from castore.services.details import read_details
from castore.services.rollback.steps import contents_of
from castore.services.sources import EngineSource
from tests.support.mariadb import MariaDBServer
from tests.support.mariadb_fixtures import sandbox, server
from tests.support.stores import Sandbox

__all__ = ["sandbox", "server"]


@pytest.fixture
def app(server: MariaDBServer) -> Iterator[str]:
    name = f"app{random.randrange(10**9)}"
    server.sql(f"CREATE DATABASE {name} CHARACTER SET latin1")
    yield name
    for one in server.databases():
        server.sql(f"DROP DATABASE `{one}`")


def engine(server: MariaDBServer, name: str) -> MariaDB:
    return MariaDB(database=name, socket=server.socket, user="root")


def take(sandbox: Sandbox, server: MariaDBServer, name: str) -> Generation:
    return sandbox.snapshot("s", {"db": EngineSource("mariadb", engine(server, name))})


def drilled(sandbox: Sandbox, number: int) -> str:
    with sandbox.open() as store:
        target = store.generations.get("s", number)
        assert target is not None
        return drill.drill(store, drill.DrillRequest(target, {}, Service(), Ownership(change=os.geteuid() == 0))).parts["db"]


def warnings(sandbox: Sandbox, number: int) -> list[tuple[str, bytes, str]]:
    with sandbox.open() as store:
        target = store.generations.get("s", number)
        assert target is not None
        return list(read_details(store, target).warnings)


VIEWS = """
CREATE TABLE a (x INT, y INT); CREATE TABLE b (x INT); INSERT INTO a VALUES (1, 2);
CREATE VIEW v AS SELECT x, 'it''s' AS s FROM a; CREATE VIEW over_v AS SELECT x FROM v; CREATE VIEW fine AS SELECT * FROM b;
CREATE FUNCTION f(z INT) RETURNS INT DETERMINISTIC RETURN z + 1; CREATE VIEW uses_f AS SELECT f(x) AS fx FROM a;
CREATE DEFINER=gone@nowhere VIEW foreign_v AS SELECT x FROM b;
"""


def state(server: MariaDBServer, name: str) -> str:
    tables = server.sql("SHOW FULL TABLES", name)
    kinds = server.sql(f"SELECT TABLE_NAME, VIEW_DEFINITION, DEFINER FROM information_schema.VIEWS WHERE TABLE_SCHEMA = '{name}' ORDER BY 1")
    routines = server.sql(f"SELECT ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = '{name}' ORDER BY 1")
    return "\n".join([tables, kinds, routines, server.sql(f"SELECT * FROM {name}.b")])


BREAKING = {
    "a table less": "DROP TABLE a",
    "a column less": "ALTER TABLE a DROP COLUMN x",
    "a function less": "DROP FUNCTION f",
    "all replaced": "DROP TABLE a; DROP FUNCTION f; DROP TABLE b; CREATE TABLE b (z INT)",
    "a table has a view's name": "DROP TABLE a; DROP VIEW fine; CREATE TABLE fine (z INT)",
}


@pytest.mark.parametrize("what", BREAKING)
def test_a_view_that_a_deployment_broke_keeps_nobody_from_going_back(sandbox: Sandbox, server: MariaDBServer, app: str, what: str):
    server.sql(VIEWS, app)
    first = state(server, app)
    assert take(sandbox, server, app).skipped_files == 0
    server.sql(BREAKING[what], app)
    second = state(server, app)
    with pytest.raises(ProgramError, match="health"):
        sandbox.rollback(1, settings=Service(health=("false",), health_timeout=0))
    assert state(server, app) == second  # the broken views are there, as they were
    done = sandbox.rollback(1)
    assert done.problems == []
    assert state(server, app) == first
    assert server.sql("SELECT * FROM over_v", app) == "1"
    assert server.sql("SELECT * FROM uses_f", app) == "2"
    assert server.databases() == [app]
    assert drilled(sandbox, 1).startswith("1 row in 2 tables")
    assert done.pre_rollback is not None
    assert done.pre_rollback.skipped_files > 0
    assert {reason for _, _, reason in warnings(sandbox, done.pre_rollback.number)} == {reports.LACKING}
    # What is broken cannot be made; all else is as it was, and the store says what is missing.
    broken = {name.decode() for _, name, _ in warnings(sandbox, done.pre_rollback.number)}
    sandbox.rollback(done.pre_rollback.number)
    left = [line for line in second.splitlines() if line and line.split("\t")[0] not in broken]
    assert [line for line in state(server, app).splitlines() if line] == left


def test_an_undone_roll_back_that_was_killed_puts_broken_views_back(sandbox: Sandbox, server: MariaDBServer, app: str):
    server.sql(VIEWS, app)
    take(sandbox, server, app)
    server.sql("DROP TABLE a", app)
    second = state(server, app)
    own = engine(server, app)
    swapping = own.prepare()
    with sandbox.open() as store:
        target = store.generations.get("s", 1)
        assert target is not None
        with StreamReader(store) as reader:
            contents = contents_of(reader, target.parts[0], lambda: None)
            own.stage(swapping, contents)
            Swap(own._client, swapping).keep_live()  # noqa: SLF001 - what the engine asks its server
            assert state(server, app) != second
            own.revert(swapping, contents, swapped=True)
            assert state(server, app) == second
    assert server.databases() == [app]


OLD_CODE = """
CREATE TABLE a (x INT, s VARCHAR(9)); INSERT INTO a VALUES (1, 'x');
DELIMITER //
CREATE FUNCTION f(z VARCHAR(10)) RETURNS VARCHAR(10) DETERMINISTIC BEGIN RETURN z; END//
CREATE TRIGGER tr BEFORE INSERT ON a FOR EACH ROW BEGIN SET NEW.x = 1; END//
CREATE EVENT ev ON SCHEDULE EVERY 1 YEAR STARTS '2037-01-01' DISABLE DO SELECT 1//
DELIMITER ;
"""


def charsets(server: MariaDBServer, name: str) -> str:
    return server.sql(
        "SELECT SCHEMA_NAME, DEFAULT_COLLATION_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME LIKE 'app%';"
        f"SELECT ROUTINE_NAME, DATABASE_COLLATION FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = '{name}';"
        f"SELECT EVENT_NAME, DATABASE_COLLATION FROM information_schema.EVENTS WHERE EVENT_SCHEMA = '{name}';"
        f"SELECT TRIGGER_NAME, DATABASE_COLLATION FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = '{name}'"
    )


def test_code_that_is_older_than_the_character_set_of_its_database_comes_back(sandbox: Sandbox, server: MariaDBServer, app: str):
    server.sql(OLD_CODE, app)
    server.sql(f"ALTER DATABASE {app} CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci")
    first = charsets(server, app)
    assert "latin1_swedish_ci" in first
    take(sandbox, server, app)
    assert drilled(sandbox, 1).startswith("1 row in 1 table")
    server.sql(f"INSERT INTO a VALUES (2, 'y'); ALTER DATABASE {app} COLLATE utf8mb4_bin", app)
    second = charsets(server, app)
    for number in (0, 1):
        with pytest.raises(ProgramError):
            sandbox.rollback(1, settings=Service(**({"stop": ("false",)} if number else {"health": ("false",)}), health_timeout=0))
        assert charsets(server, app) == second
    done = sandbox.rollback(1)
    assert charsets(server, app) == first
    assert done.pre_rollback is not None
    sandbox.rollback(done.pre_rollback.number)
    assert charsets(server, app) == second
    server.sql(f"DROP DATABASE {app}")
    sandbox.rollback(1, take_pre_rollback=False)
    assert charsets(server, app) == first
    assert server.databases() == [app]


def test_a_row_that_no_packet_holds_is_reported_and_still_drilled(sandbox: Sandbox, server: MariaDBServer, app: str):
    server.sql("CREATE TABLE a (id INT PRIMARY KEY, x LONGBLOB); INSERT INTO a VALUES (1, repeat('a', 7 * 1024 * 1024))", app)
    assert take(sandbox, server, app).skipped_files == 0
    server.sql("DELETE FROM a", app)
    sandbox.rollback(1)
    assert server.sql("SELECT length(x) FROM a", app) == str(7 << 20)
    server.sql("UPDATE a SET x = repeat('a', 10 * 1024 * 1024)", app)
    taken = take(sandbox, server, app)
    assert taken.skipped_files == 1
    ((_, _, reason),) = warnings(sandbox, taken.number)
    assert "raise max_allowed_packet" in reason
    assert drilled(sandbox, taken.number).startswith("1 row in 1 table")
    server.sql("DELETE FROM a", app)
    with pytest.raises(ProgramError, match=r"packet|gone away"):
        sandbox.rollback(taken.number)
    assert server.sql("SELECT count(*) FROM a", app) == "0"
    assert server.databases() == [app]
    before = server.sql("SELECT @@GLOBAL.max_allowed_packet")
    try:
        server.sql("SET GLOBAL max_allowed_packet = 64 * 1024 * 1024")
        sandbox.rollback(taken.number)
        assert server.sql("SELECT length(x) FROM a", app) == str(10 << 20)
    finally:
        server.sql(f"SET GLOBAL max_allowed_packet = {before}")


def test_a_row_that_violates_a_constraint_comes_back(sandbox: Sandbox, server: MariaDBServer, app: str):
    server.sql("CREATE TABLE k (x INT CHECK (x < 5)); SET check_constraint_checks = 0; INSERT INTO k VALUES (777666)", app)
    take(sandbox, server, app)
    server.sql("DELETE FROM k", app)
    sandbox.rollback(1)
    assert server.sql("SELECT x FROM k", app) == "777666"
    with pytest.raises(AssertionError, match="CONSTRAINT"):
        server.sql("INSERT INTO k VALUES (8)", app)


def test_no_value_of_a_row_is_shown_when_a_dump_does_not_load(sandbox: Sandbox, server: MariaDBServer, app: str, capfd):
    server.sql("CREATE TABLE u (pw VARCHAR(99)); INSERT INTO u VALUES ('row-secret'), ('ROW-SECRET')", app)
    take_dump = MariaDB.stable_dump

    @contextlib.contextmanager
    def damaged(self, secret):
        with take_dump(self, secret) as stream:

            def read(view: memoryview) -> int:
                count = stream.readinto(view)
                view[:count] = bytes(view[:count]).replace(b"'ROW-SECRET'", b"!ROW-SECRET!")
                return count

            yield DumpStream(read)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MariaDB, "stable_dump", damaged)
        take(sandbox, server, app)
    server.sql("DELETE FROM u", app)
    with pytest.raises(ProgramError, match=r"ERROR 1064 .* near '\.\.\.'") as caught:
        sandbox.rollback(1)
    with sandbox.open() as store:
        shown = [str(caught.value), capfd.readouterr().err, *(str(one) for one in store.state.event_log.read())]
    assert not [one for one in shown if "secret" in one.lower()]


def test_a_name_with_a_tab_is_reported_clearly(sandbox: Sandbox, server: MariaDBServer, app: str):
    server.sql("CREATE TABLE z (x INT)", app)
    server.sql("CREATE TABLE `a\tb` (x INT)", app)
    taken = take(sandbox, server, app)
    assert [(path, reason) for _, path, reason in warnings(sandbox, taken.number)] == [(b"a\tb", reports.STRANGE)]
    server.sql("INSERT INTO z VALUES (1)", app)
    with pytest.raises(CastoreError, match=r"'a\\tb': this name contains a tab.*rename it; nothing was changed"):
        sandbox.rollback(1)
    server.sql("RENAME TABLE `a\tb` TO ab", app)
    assert take(sandbox, server, app).skipped_files == 0
    server.sql("DELETE FROM z", app)
    sandbox.rollback(2)
    assert server.sql("SELECT * FROM z", app) == "1"


@pytest.mark.parametrize("option", ["-B", "--databases", "--all-databases"])
def test_a_dump_that_says_itself_where_it_goes_is_refused(server: MariaDBServer, app: str, option: str):
    with pytest.raises(CastoreError, match="into the live database"):
        msgspec.structs.replace(engine(server, app), options=(option,)).preflight()
