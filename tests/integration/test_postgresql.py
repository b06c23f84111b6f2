"""PostgreSQL: names, locales and properties of databases, and values of their rows, which are never shown."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from castore.content.restore.metadata import Ownership
from castore.engines import dump_stream
from castore.engines.dump_stream import read_preamble
from castore.engines.password import Secret
from castore.engines.postgresql.engine import PostgreSQL
from castore.engines.postgresql.sql import creation, plain
from castore.errors import CastoreError, ProgramError
from castore.services import drill
from castore.services.config import Service
from castore.services.sources import EngineSource
from tests.support.postgres import Postgres, missing
from tests.support.stores import Sandbox


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as started:
        yield started


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path / "sandbox")


def source(server: Postgres, database: str, **options) -> dict[str, EngineSource]:
    engine = PostgreSQL(
        database=database, host=server.socket_folder, user="postgres", program_path=server.programs, **options
    )
    return {"db": EngineSource("postgresql", engine)}


def drilled(sandbox: Sandbox, number: int) -> str:
    with sandbox.open() as store:
        target = store.generations.get("s", number)
        assert target is not None
        return drill.drill(store, drill.DrillRequest(target, {}, Service(), Ownership(change=os.geteuid() == 0))).parts["db"]


@contextlib.contextmanager
def database(server: Postgres, name: str, options: str = "") -> Iterator[str]:
    """Make a database; give its name, quoted."""
    quoted = '"' + name.replace('"', '""') + '"'
    server.psql(f"CREATE DATABASE {quoted} TEMPLATE template0 {options}")
    try:
        yield quoted
    finally:
        server.psql(f"DROP DATABASE IF EXISTS {quoted} WITH (FORCE)")


def test_a_database_named_like_a_connection_string_leads_nobody_elsewhere(server: Postgres, sandbox: Sandbox, tmp_path: Path):
    heard: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as stranger:

        def listen() -> None:
            with contextlib.suppress(OSError):
                heard.append(stranger.accept())

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        (tmp_path / "password").write_text("secret\n")
        engine = PostgreSQL(
            cluster=True,
            host=server.socket_folder,
            user="postgres",
            password=Secret(file=str(tmp_path / "password")),
            program_path=server.programs,
        )
        with database(server, f"host=127.0.0.1 port={stranger.getsockname()[1]}"):
            taken = sandbox.snapshot("s", {"pg": EngineSource("postgresql", engine)})
        assert len(taken.parts) == 3
        stranger.shutdown(socket.SHUT_RDWR)
        listener.join()
    assert heard == []


@pytest.mark.parametrize("name", ["a=b", "postgresql://x", "host=/nowhere dbname=template1", "Q\"u'o te \\ ü", "-c", "UPPER"])
def test_a_database_may_have_any_name(server: Postgres, sandbox: Sandbox, name: str):
    with database(server, name) as quoted:
        (engine,) = (one.engine for one in source(server, name).values())

        def sql(text: str) -> list[str]:
            return engine._client.query(text, database=name)  # noqa: SLF001 - what the engine asks its server

        sql("CREATE TABLE public.t (x int); INSERT INTO public.t VALUES (1);")
        engine.check()
        sandbox.snapshot("s", source(server, name))
        sql("INSERT INTO public.t VALUES (2);")
        sandbox.rollback(1)
        assert sql("SELECT * FROM public.t;") == ["1"]
        assert server.psql(f"SELECT count(*) FROM pg_database WHERE {quoted!r} <> '' AND datname LIKE 'castore%'".replace(repr(quoted), "'x'")) == "0"


PROPERTIES = """
CREATE ROLE boss; CREATE ROLE guest;
ALTER DATABASE own OWNER TO boss; ALTER DATABASE own CONNECTION LIMIT 7;
ALTER DATABASE own SET search_path = '"$user"', 'a b', ''; ALTER DATABASE own SET my.option = 'x=''y\\z';
ALTER DATABASE own SET datestyle = 'ISO, DMY'; ALTER DATABASE own SET session_preload_libraries = 'auto_explain', 'plpgsql';
ALTER ROLE guest IN DATABASE own SET work_mem = '9MB'; COMMENT ON DATABASE own IS E'it''s\nmine';
REVOKE ALL ON DATABASE own FROM PUBLIC; GRANT TEMPORARY ON DATABASE own TO guest WITH GRANT OPTION; GRANT CONNECT ON DATABASE own TO PUBLIC;
"""
SHOWN = """
SELECT datdba::regrole, datconnlimit, (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(datacl) a), datcollate, datctype, datlocprovider,
  encoding, shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'own';
SELECT setrole::regrole, setconfig FROM pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = 'own') ORDER BY 1;
"""


def test_what_a_database_is_comes_back_with_it(server: Postgres, sandbox: Sandbox):
    with database(server, "own", "LOCALE 'C.UTF-8' ENCODING 'UTF8'"):
        server.psql(PROPERTIES)
        first = server.psql(SHOWN)
        assert sandbox.snapshot("s", source(server, "own")).parts[0].skipped_files == 0
        server.psql("ALTER DATABASE own SET work_mem = '1MB'; ALTER DATABASE own OWNER TO postgres; REVOKE CONNECT ON DATABASE own FROM PUBLIC")
        second = server.psql(SHOWN)
        done = sandbox.rollback(1)
        assert server.psql(SHOWN) == first
        assert done.pre_rollback is not None
        sandbox.rollback(done.pre_rollback.number)
        assert server.psql(SHOWN) == second
        server.psql("DROP DATABASE own")
        sandbox.rollback(1, take_pre_rollback=False)
        assert server.psql(SHOWN) == first
        server.psql("DROP DATABASE own; DROP ROLE guest")
        sandbox.rollback(1, take_pre_rollback=False)  # a deleted role has no settings
        assert "guest" not in server.psql(SHOWN)
    server.psql("DROP ROLE boss")


def without_preamble(stream, readinto, _preamble) -> None:
    dump_stream.DumpStream.__init__(stream, readinto)


def test_a_dump_without_recorded_properties_comes_back_as_the_live_database_is(server: Postgres, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch):
    with database(server, "plain"):
        with monkeypatch.context() as patch:
            patch.setattr(dump_stream.DumpWithPreamble, "__init__", without_preamble)
            sandbox.snapshot("s", source(server, "plain"))
        server.psql("ALTER DATABASE plain CONNECTION LIMIT 5; ALTER DATABASE plain SET work_mem = '3MB'")
        server.psql("CREATE TABLE t (x int)", "plain")
        sandbox.rollback(1)
        limit = "SELECT datconnlimit, setconfig FROM pg_database d JOIN pg_db_role_setting ON setdatabase = d.oid WHERE datname = 'plain'"
        assert server.psql(limit) == "5|{work_mem=3MB}"
        assert server.psql("SELECT count(*) FROM pg_tables WHERE tablename = 't'", "plain") == "0"


def test_a_database_keeps_the_provider_of_its_locale(sandbox: Sandbox):
    with Postgres("--locale-provider=icu", "--icu-locale=de") as server:
        for number, options in enumerate(("LOCALE_PROVIDER libc LOCALE 'C'", "LOCALE_PROVIDER icu ICU_LOCALE 'sv'", ""), 1):
            with database(server, "app", options):
                server.psql("CREATE TABLE t (x text); INSERT INTO t VALUES ('a'), ('B'), ('ä'), ('z')", "app")

                def state() -> str:
                    columns = "SELECT datlocprovider, datcollate, datctype, to_json(d)->'daticulocale', to_json(d)->'datlocale' FROM pg_database d"
                    rows = server.psql("SELECT string_agg(x, ',' ORDER BY x) FROM t", "app")
                    return server.psql(f"{columns} WHERE datname = 'app'") + rows

                first = state()
                sandbox.snapshot("s", source(server, "app"))
                server.psql("DELETE FROM t WHERE x = 'a'", "app")
                sandbox.rollback(2 * number - 1)
                assert state() == first
                server.psql("DROP DATABASE app")
                sandbox.rollback(2 * number - 1, take_pre_rollback=False)
                assert state() == first


def test_an_older_server_gets_no_locale_provider_and_a_newer_one_always():
    was = {"owner": "o", "encoding": "UTF8", "datcollate": "C", "datctype": "C", "tablespace": "pg_default"}
    assert "PROVIDER" not in creation("new", was, 140000)
    assert creation("new", was, 150000).endswith("LC_CTYPE 'C' LOCALE_PROVIDER libc")
    icu = was | {"datlocprovider": "i", "locale": "de", "daticurules": "&a < b"}
    assert creation("new", icu, 160000).endswith("LOCALE_PROVIDER icu ICU_LOCALE 'de' ICU_RULES '&a < b'")
    builtin = was | {"datlocprovider": "b", "locale": "C.UTF-8"}
    assert creation("new", builtin, 170000).endswith("LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'")


LEAKS = {
    "key": "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE t (x int REFERENCES p); SET session_replication_role = replica; INSERT INTO t VALUES (777666)",
    "check": "CREATE FUNCTION ok(x int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true'; CREATE TABLE t (x int CHECK (ok(x)), pw text);"
    "INSERT INTO t VALUES (777666, 'row-secret'); CREATE OR REPLACE FUNCTION ok(x int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT x < 5'",
    "syntax": "CREATE TABLE t (pw text); INSERT INTO t VALUES ('row-secret 777666'); CREATE FUNCTION f(x text) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';"
    "CREATE INDEX ON t (f(pw)); CREATE OR REPLACE FUNCTION f(x text) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT x::int'",
}


@pytest.mark.parametrize("kind", LEAKS)
def test_no_value_of_a_row_is_shown_when_a_dump_does_not_load(server: Postgres, sandbox: Sandbox, capfd, kind: str):
    with database(server, "leak"):
        server.psql(LEAKS[kind], "leak")
        sandbox.snapshot("s", source(server, "leak"))
        server.psql("DELETE FROM t", "leak")
        with pytest.raises(ProgramError, match="ERROR:  ") as caught:
            sandbox.rollback(1)
        with sandbox.open() as store:
            shown = [str(caught.value), capfd.readouterr().err, *(str(one) for one in store.state.event_log.read())]
    assert not [one for one in shown if "777666" in one or "row-secret" in one]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ('ERROR:  relation "t" does not exist', "same"),
        ('psql: error: connection to server on socket "/x" failed: FATAL:  role "me" does not exist', "same"),
        ("psql:<stdin>:5: FEHLER:  ungültige Eingabesyntax für Typ integer: »abc«", 'psql:<stdin>:5: FEHLER:  ungültige Eingabesyntax für Typ integer: "..."'),
        ('ERROR:  value "99999999999" is out of range for type integer', 'ERROR:  value "..." is out of range for type integer'),
        ('ERROR:  invalid input syntax for type json: "{secret', 'ERROR:  invalid input syntax for type json: "..."'),
        ('ERROR:  invalid value for parameter "default_tablespace": "fast"', "same"),
        ("DETAIL:  Key (id)=(3) already exists.", None),
        ('CONTEXT:  COPY t, line 1: "secret"', None),
        ("secret:  a row", None),
    ],
)
def test_psql_errors_are_shown_with_the_reason_and_without_values(line: str, shown: str | None):
    found = plain(line.encode())
    assert (found.decode() if found is not None else None) == (line if shown == "same" else shown)


@pytest.mark.parametrize("option", ["-C", "--create"])
def test_a_dump_that_says_itself_where_it_goes_is_refused(server: Postgres, option: str):
    engine = source(server, "postgres")["db"].engine
    with pytest.raises(CastoreError, match="into the live database"):
        msgspec.structs.replace(engine, options=(option,)).preflight()


def test_a_drill_makes_the_roles_that_its_server_lacks_and_prints_no_error(server: Postgres, sandbox: Sandbox, capfd):
    server.psql("CREATE ROLE keeper")
    with database(server, "owned"):
        server.psql("CREATE TABLE t (x int); ALTER TABLE t OWNER TO keeper", "owned")
        sandbox.snapshot("s", source(server, "owned"))
        assert drilled(sandbox, 1).startswith("0 rows in 1 table")
    server.psql("DROP ROLE keeper")
    assert "ERROR" not in capfd.readouterr().err


def test_extensions_and_tablespaces_come_back_and_are_drilled(server: Postgres, sandbox: Sandbox):
    if "pg_trgm" not in server.psql("SELECT name FROM pg_available_extensions"):
        missing("there is no extension pg_trgm")
    with tempfile.TemporaryDirectory(prefix="space-", dir=server.socket_folder) as place:
        info = os.stat(server.socket_folder)
        os.chown(place, info.st_uid, info.st_gid)
        server.psql(f"CREATE TABLESPACE fast LOCATION '{place}'")
        with database(server, "ext"):
            server.psql(
                "CREATE EXTENSION pg_trgm; CREATE TABLE t (x text) TABLESPACE fast; INSERT INTO t VALUES ('hello');"
                "CREATE INDEX i ON t USING gin (x gin_trgm_ops) TABLESPACE fast",
                "ext",
            )
            sandbox.snapshot("s", source(server, "ext"))
            assert drilled(sandbox, 1).startswith("1 row in 1 table")
            server.psql("DROP TABLE t; DROP EXTENSION pg_trgm", "ext")
            sandbox.rollback(1)
            assert server.psql("SELECT tablespace FROM pg_tables WHERE tablename = 't'", "ext") == "fast"
            assert server.psql("SELECT similarity(x, 'hello') FROM t", "ext") == "1"
        with database(server, "space", "TABLESPACE fast"):
            sandbox.snapshot("s", source(server, "space"))
            server.psql("CREATE TABLE t (x int)", "space")
            sandbox.rollback(3)
            asked = "SELECT spcname FROM pg_database d JOIN pg_tablespace t ON t.oid = dattablespace WHERE datname = 'space'"
            assert server.psql(asked) == "fast"
        server.psql("DROP TABLESPACE fast")


def test_the_first_line_of_a_dump_is_read_from_any_pieces():
    line = b'-- castore: {"a": [1, "x"]}\nSELECT 1;\n'
    for size in (1, 3, 11, 12, 13, 1000):
        assert read_preamble(line[at : at + size] for at in range(0, len(line), size)) == {"a": [1, "x"]}
    assert read_preamble([]) == {}
    assert read_preamble([b"--\n-- PostgreSQL", b" database dump"]) == {}


def test_what_keeps_a_database_from_being_renamed_is_named(sandbox: Sandbox):
    with Postgres() as server:
        server.psql("ALTER SYSTEM SET max_prepared_transactions = 2")
        server.restart()
        with database(server, "busy"):
            server.psql("CREATE TABLE t (x int)", "busy")
            sandbox.snapshot("s", source(server, "busy"))
            server.psql("INSERT INTO t VALUES (1); BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION 'left'", "busy")
            with pytest.raises(CastoreError, match=r"COMMIT PREPARED .left.;"):
                sandbox.rollback(1)
            server.psql("COMMIT PREPARED 'left'", "busy")
            assert server.psql("SELECT count(*) FROM t", "busy") == "2"
            sandbox.rollback(1)
            assert server.psql("SELECT count(*) FROM t", "busy") == "0"


def test_questions_are_asked_in_one_session_and_those_that_fail_are_reported(server: Postgres):
    own = PostgreSQL(database="postgres", host=server.socket_folder, user="postgres", program_path=server.programs)
    with own._client.connected() as client:  # noqa: SLF001 - what the engine asks its server
        (number,) = client.ask("SELECT pg_backend_pid();")
        for text in ("plain", "it's", 'back\\slash "quoted"', "two\nlines", ":'text'", "ü日本"):
            assert client.ask("SELECT :'text';", {"text": text}) == [text]
        assert client.ask("SELECT repeat('x', 1000000);") == ["x" * 1000000]
        assert client.ask(f"SELECT '{'y' * 100000}';") == ["y" * 100000]  # too long for the session
        assert client.ask("SELECT 1 WHERE false;") == []
        assert client.ask("SELECT pg_backend_pid();") == [number]
        with pytest.raises(ProgramError, match="does not exist"):
            client.ask("SELECT 1; SELECT * FROM missing;")
        (another,) = client.ask("SELECT pg_backend_pid();")
        assert another != number
        server.psql(f"SELECT pg_terminate_backend({another})")
        assert client.ask("SELECT 3;") == ["3"]


def test_a_client_waits_while_an_earlier_one_still_counts(server: Postgres, capfd: pytest.CaptureFixture[str]):
    server.psql("CREATE ROLE few LOGIN CONNECTION LIMIT 1; CREATE TABLE counted (x int); GRANT ALL ON counted TO few")
    client = PostgreSQL(database="postgres", host=server.socket_folder, user="few", program_path=server.programs)._client  # noqa: SLF001 - what the engine asks its server
    hold = [f"{server.programs}/psql", "-qAt", "-h", server.socket_folder, "-U", "few", "-c", "SELECT 1", "-c", "SELECT pg_sleep(1)", "postgres"]
    ways = [lambda: client.query("SELECT 1;"), lambda: client.load("postgres", iter([b"INSERT INTO public.counted VALUES (1);\n"] * 2))]
    try:
        for way in ways:
            with subprocess.Popen(hold, stdout=subprocess.PIPE) as other:
                assert other.stdout is not None
                other.stdout.readline()
                way()
        assert server.psql("SELECT x FROM counted").split() == ["1", "1"]
        assert capfd.readouterr().err == ""
    finally:
        server.psql("DROP TABLE counted; DROP ROLE few")


@pytest.mark.parametrize(("limit", "is_kept"), [("-1", True), ("2", False), ("9", True)])
def test_a_role_with_few_connections_has_no_session(server: Postgres, limit: str, is_kept: bool):
    server.psql(f"CREATE ROLE few LOGIN CONNECTION LIMIT {limit}")
    try:
        own = PostgreSQL(database="app", host=server.socket_folder, user="few", program_path=server.programs)
        with own._client.connected() as client:  # noqa: SLF001 - what the engine asks its server
            assert (client.ask("SELECT pg_backend_pid();") == client.ask("SELECT pg_backend_pid();")) is is_kept
    finally:
        server.psql("DROP ROLE few")
