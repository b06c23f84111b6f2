"""PostgreSQL databases that real installations have: rights, replication, encodings, settings, environments."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from castore.content.restore.metadata import Ownership
from castore.engines.postgresql.engine import PostgreSQL
from castore.errors import CastoreError, ProgramError
from castore.services.details import read_details
from castore.services.sources import EngineSource
from tests.support.postgres import Postgres, missing
from tests.support.stores import Sandbox

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as found:
        found.psql("ALTER SYSTEM SET wal_level = logical")
        found.restart()
        yield found


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path / "sandbox")


@contextlib.contextmanager
def database(server: Postgres, name: str, options: str = "") -> Iterator[dict[str, EngineSource]]:
    server.psql(f'CREATE DATABASE "{name}" TEMPLATE template0 {options}')
    engine = PostgreSQL(database=name, host=server.socket_folder, user="postgres", program_path=server.programs)
    try:
        yield {"db": EngineSource("postgresql", engine)}
    finally:
        server.psql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def left(server: Postgres) -> str:
    return server.psql("SELECT datname FROM pg_database WHERE datname LIKE 'castore%'")


def warnings(sandbox: Sandbox, number: int) -> list[str]:
    with sandbox.open() as store:
        return [reason for _, _, reason in read_details(store, store.generations.get("s", number)).warnings]


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_JIS_2004", "UTF8"])
def test_a_database_of_any_encoding_comes_back_and_is_drilled(server: Postgres, sandbox: Sandbox, encoding: str):
    data = {"SQL_ASCII": "\\xe4ff41", "LATIN1": "\\xe4ff", "EUC_JIS_2004": "\\xa4a2", "UTF8": "\\xc3a4"}[encoding]
    with database(server, "app", f"ENCODING '{encoding}' LOCALE 'C'") as source:
        literal = f"E'{data}'" if encoding == "SQL_ASCII" else f"convert_from('{data}', '{encoding}')"
        if encoding == "SQL_ASCII":
            literal = "E'\\xe4\\xff'"
        named = 'CREATE TABLE "n\udce4me" (x int);' if encoding == "SQL_ASCII" else ""
        text = f"CREATE TABLE t (x text); INSERT INTO t VALUES ({literal}); {named}"
        subprocess.run(
            [f"{server.programs}/psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", server.socket_folder, "-U", "postgres", "-d", "app"],
            input=text.encode("utf-8", "surrogateescape"), check=True,
        )
        asked = "SELECT encode(textsend(x), 'hex') FROM t"
        first = server.psql(asked, "app")
        source["db"].engine.check()
        sandbox.snapshot("s", source)
        server.psql("DELETE FROM t", "app")
        sandbox.rollback(1)
        assert server.psql(asked, "app") == first
        assert server.psql("SHOW server_encoding", "app") == encoding
        from castore.services.config import Service
        from castore.services.drill import DrillRequest, drill

        with sandbox.open() as store:
            target = store.generations.get("s", 1)
            drill(store, DrillRequest(target, dict(read_details(store, target).origins), Service(), Ownership(change=False)))


def test_a_database_with_a_subscription_is_not_rolled_back_until_it_is_dropped(server: Postgres, sandbox: Sandbox):
    with database(server, "app") as source:
        server.psql("CREATE TABLE t (x int)", "app")
        sandbox.snapshot("s", source)
        server.psql("CREATE SUBSCRIPTION sub CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false)", "app")
        sandbox.snapshot("s", source)
        for number in (1, 2):
            with pytest.raises(CastoreError, match=r"ALTER SUBSCRIPTION sub SET .slot_name = NONE.; DROP SUBSCRIPTION sub;"):
                sandbox.rollback(number)
        with pytest.raises(CastoreError, match="DROP SUBSCRIPTION"):
            source["db"].engine.check()
        assert left(server) == ""
        server.psql("ALTER SUBSCRIPTION sub SET (slot_name = NONE)", "app")
        server.psql("DROP SUBSCRIPTION sub; INSERT INTO t VALUES (1)", "app")
        from castore.services.config import Service

        # A failure after the swap, when the database that is dropped has the subscription of the dump.
        with pytest.raises(ProgramError, match="health"):
            sandbox.rollback(2, Service(health=("false",), health_timeout=0.1))
        assert left(server) == ""
        assert server.psql("SELECT count(*) FROM t", "app") == "1"
        said: list[str] = []
        assert sandbox.rollback(2, say=said.append).problems == []
        assert any('ALTER SUBSCRIPTION "sub" ENABLE' in line for line in said)
        assert server.psql("SELECT subname, subenabled FROM pg_subscription") == "sub|f"
        server.psql("ALTER SUBSCRIPTION sub SET (slot_name = NONE)", "app")
        server.psql("DROP SUBSCRIPTION sub", "app")


def test_a_logical_replication_slot_is_reported_and_never_dropped(server: Postgres, sandbox: Sandbox):
    with database(server, "app") as source:
        server.psql("SELECT pg_create_logical_replication_slot('debezium', 'pgoutput')", "app")
        taken = sandbox.snapshot("s", source)
        assert taken.parts[0].skipped_files == 1
        assert "the logical replication slot debezium is not in the dump" in warnings(sandbox, 1)[0]
        with pytest.raises(CastoreError, match=r"pg_drop_replication_slot\('debezium'\)"):
            sandbox.rollback(1)
        assert server.psql("SELECT slot_name FROM pg_replication_slots") == "debezium"
        server.psql("SELECT pg_drop_replication_slot('debezium')")


HOSTILE = {
    "lc_monetary": "en_US.UTF-8", "DateStyle": "'SQL, DMY'", "IntervalStyle": "sql_standard", "TimeZone": "'Asia/Tokyo'",
    "bytea_output": "escape", "array_nulls": "off", "transform_null_equals": "on", "default_transaction_read_only": "on",
    "statement_timeout": "'1ms'", "search_path": "evil", "row_security": "on", "extra_float_digits": "-15", "xmlbinary": "hex",
    "default_transaction_isolation": "serializable", "quote_all_identifiers": "on", "standard_conforming_strings": "off",
    "idle_session_timeout": "'300ms'", "lock_timeout": "'1ms'", "role": "pg_monitor", "session_replication_role": "replica",
}
VALUES = """
CREATE TABLE t (m money, d date, i interval, z timestamptz, b bytea, a text[], f float8, x xml);
INSERT INTO t VALUES ('-1234.56', '2001-02-03', '-1 day +02:03:04', '2001-02-03 04:05:06+07', '\\x005c27ff', '{"NULL",NULL}', 1e-300, '<a>ä</a>');
CREATE VIEW v AS SELECT d = NULL AS never FROM t; CREATE TABLE k (i int PRIMARY KEY CHECK (i <> 3 OR i = NULL));
"""
SEEN = "SET TimeZone = 'UTC'; SELECT t::text FROM t; SELECT pg_get_viewdef('v'); SELECT pg_get_constraintdef(oid) FROM pg_constraint ORDER BY conname"


def test_settings_of_roles_and_databases_change_nothing(server: Postgres, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch):
    with database(server, "app") as source:
        server.psql(VALUES, "app")
        plainly = server.psql(SEEN, "app")
        sandbox.snapshot("s", source)
        known = subprocess.run(["locale", "-a"], capture_output=True, check=True, text=True).stdout
        usable = [name for name in HOSTILE if name != "lc_monetary" or "en_US.utf8" in known]
        server.psql("DROP VIEW v; DROP TABLE k", "app")
        try:
            server.psql("".join(f"ALTER ROLE postgres SET {name} = {HOSTILE[name]};" for name in usable))
            sandbox.rollback(1)
            again = sandbox.snapshot("s", source)
        finally:
            with monkeypatch.context() as calm:
                calm.setenv("PGOPTIONS", "-c default_transaction_read_only=off -c statement_timeout=0 -c role=none")
                server.psql("ALTER ROLE postgres RESET ALL")
        assert server.psql(SEEN, "app") == plainly
        assert again.parts[0].new_bytes == 0


def test_a_role_that_may_not_undo_how_its_sessions_replicate_is_refused(server: Postgres):
    server.psql("CREATE ROLE copier LOGIN CREATEDB; ALTER ROLE copier SET session_replication_role = replica; CREATE DATABASE copied OWNER copier")
    try:
        own = PostgreSQL(database="copied", host=server.socket_folder, user="copier", program_path=server.programs)
        with pytest.raises(CastoreError, match="ALTER ROLE copier RESET session_replication_role"):
            own.preflight()
        server.psql("ALTER ROLE copier RESET session_replication_role")
        own.preflight()
    finally:
        server.psql("DROP DATABASE copied; DROP ROLE copier")


def test_a_server_that_leaves_damaged_rows_out_is_not_dumped(server: Postgres):
    with database(server, "app") as source:
        own = source["db"].engine
        own.check()
        server.psql("ALTER ROLE postgres SET zero_damaged_pages = on")
        try:
            with pytest.raises(CastoreError, match="zero_damaged_pages is on"):
                own.check()
        finally:
            server.psql("ALTER ROLE postgres RESET zero_damaged_pages")


def test_the_environment_and_the_home_directory_change_nothing(
    server: Postgres, tmp_path: Path, home: Path, castore: Run, monkeypatch: pytest.MonkeyPatch
):
    (home / ".psqlrc").write_text("\\echo hello\n\\set ON_ERROR_STOP 0\nSET search_path = evil;\n")
    (home / ".pgpass").write_text("*:*:*:*:wrong\n")
    (home / ".pgpass").chmod(0o600)
    (home / ".pg_service.conf").write_text("[evil]\nhost=127.0.0.1\nport=1\n")
    (home / ".postgresql").mkdir()
    (home / ".postgresql" / "root.crt").write_text("not a certificate\n")
    config = tmp_path / "castore.toml"
    config.write_text(
        f'store = "{tmp_path}/store"\n[service.s.parts.db]\nengine = "postgresql"\ndatabase = "app"\nuser = "postgres"\n'
        f'host = "{server.socket_folder}"\nprogram-path = "{server.programs}"\n'
    )
    monkeypatch.setenv("CASTORE_CONFIG", str(config))
    castore("init", tmp_path / "store")
    hostile = {
        "PGSERVICE": "evil", "PGHOST": "nowhere.invalid", "PGPORT": "1", "PGDATABASE": "other", "PGUSER": "nobody", "PGCLIENTENCODING": "LATIN1",
        "PGDATESTYLE": "SQL, DMY", "PGTZ": "Asia/Tokyo", "PGSSLMODE": "verify-full", "PGOPTIONS": "-c default_transaction_read_only=on",
        "PSQLRC": str(home / ".psqlrc"), "LANG": "de_DE.UTF-8", "LC_ALL": "tr_TR.UTF-8", "LANGUAGE": "de", "PGAPPNAME": "x", "PGCONNECT_TIMEOUT": "1",
    }
    with database(server, "app"):
        server.psql(VALUES.replace("'<a>ä</a>'", "'<a/>'"), "app")
        before = server.psql(SEEN, "app")
        castore("snapshot", "s")
        assert json.loads(castore("snapshot", "s", "--json", env=hostile).stdout)["new_bytes"] == 0
        server.psql("DELETE FROM t; DROP VIEW v", "app")
        castore("config", "check", env=hostile)
        castore("rollback", "s", "--to", "1", env=hostile)
        castore("drill", "s", env=hostile)
        assert server.psql(SEEN, "app") == before


def test_what_the_options_name_is_used(server: Postgres, tmp_path: Path):
    service = tmp_path / "service.conf"
    service.write_text(f"[here]\nhost={server.socket_folder}\nuser=postgres\n")
    engine = PostgreSQL(database="postgres", service="here", service_file=str(service), program_path=server.programs)
    engine.check()
    passwords = tmp_path / "pgpass"
    passwords.touch(0o600)
    env = PostgreSQL(database="x", passfile=str(passwords), sslcert="/c")._client.env()  # noqa: SLF001 - what the engine asks its server
    assert (env["PGPASSFILE"], env["PGSSLCERT"], env["PGSSLKEY"]) == (str(passwords), "/c", "/nonexistent")


def test_missing_rights_are_named_with_statements(server: Postgres, sandbox: Sandbox):
    server.psql("CREATE ROLE backup LOGIN; CREATE ROLE app_owner; CREATE ROLE other_owner")
    with database(server, "app"):
        server.psql(
            "ALTER DATABASE app OWNER TO app_owner; CREATE TABLE t (x int); ALTER TABLE t OWNER TO other_owner; CREATE TABLE s (x int); ALTER TABLE s ENABLE ROW LEVEL SECURITY;"
            "GRANT SELECT ON s TO backup; CREATE EXTENSION file_fdw; SELECT lo_from_bytea(77, 'x'); CREATE FUNCTION et() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';"
            "CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION et()", "app"
        )
        engine = PostgreSQL(database="app", host=server.socket_folder, user="backup", program_path=server.programs)
        with pytest.raises(CastoreError) as caught:
            engine.check()
        assert "GRANT SELECT ON public.t TO backup;" in str(caught.value)
        assert "ALTER ROLE backup BYPASSRLS;" in str(caught.value)
        assert "GRANT SELECT ON LARGE OBJECT 77 TO backup;" in str(caught.value)
        with pytest.raises(CastoreError) as caught:
            engine.preflight()
        for statement in ("ALTER ROLE backup CREATEDB;", "GRANT app_owner TO backup;", "GRANT other_owner TO backup;", "objects of the schema public belong to other_owner", "the extension file_fdw", "the event trigger e"):
            assert statement in str(caught.value)
        # What is named is enough for a database without what only superusers make.
        server.psql("DROP EVENT TRIGGER e; DROP EXTENSION file_fdw; ALTER FUNCTION et() OWNER TO app_owner; ALTER TABLE s OWNER TO app_owner; SELECT lo_unlink(77); CREATE SCHEMA o AUTHORIZATION other_owner; ALTER TABLE t SET SCHEMA o", "app")
        server.psql("ALTER ROLE backup CREATEDB BYPASSRLS; GRANT app_owner TO backup; GRANT other_owner TO backup")
        engine.check()
        sandbox.snapshot("s", {"db": EngineSource("postgresql", engine)})
        server.psql("DROP TABLE o.t", "app")
        sandbox.rollback(1)
        assert server.psql("SELECT tableowner FROM pg_tables WHERE tablename IN ('t', 's') ORDER BY 1", "app") == "app_owner\nother_owner"
    server.psql("DROP ROLE backup; DROP ROLE app_owner; DROP ROLE other_owner")


def test_what_pg_dump_leaves_out_is_reported_by_name(server: Postgres, sandbox: Sandbox):
    with database(server, "app") as source:
        server.psql("CREATE TABLE t (x int); INSERT INTO t VALUES (1), (1)", "app")
        with pytest.raises(AssertionError, match="could not create unique index"):
            server.psql("CREATE UNIQUE INDEX CONCURRENTLY broken ON t (x)", "app")
        server.psql("CREATE EXTENSION hstore; CREATE TABLE member (x int); INSERT INTO member VALUES (1); ALTER EXTENSION hstore ADD TABLE member", "app")
        taken = sandbox.snapshot("s", source)
        assert taken.parts[0].skipped_files == 2
        assert sorted(line.split(" is not in the dump")[0] for line in warnings(sandbox, 1)) == ["the index public.broken", "the rows of public.member"]
        server.psql("DELETE FROM t", "app")
        sandbox.rollback(1)
        assert server.psql("SELECT count(*) FROM t", "app") == "2"


@pytest.mark.parametrize("option", ["--exclude-table-data=x", "--exc=x", "-vTx", "--enable-row-security", "-O", "--no-acl", "--no-comments", "-tx", "--no-unlogged-table-data", "x", "--snapshot=1"])
def test_an_option_that_may_leave_something_out_is_refused(option: str):
    with pytest.raises(CastoreError, match="leaves something out"):
        from castore.engines.postgresql.session import refuse_options

        refuse_options(("--verbose", "--role", "x", "--lock-wait-timeout=3", option))


def test_a_dump_without_an_inventory_is_kept_and_reported(server: Postgres, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch):
    from castore.engines.postgresql import inventory as postgresql_inventory

    with database(server, "app") as source:
        server.psql("CREATE TABLE t (x int); INSERT INTO t VALUES (1); CREATE PUBLICATION p FOR TABLE t; CREATE TABLE bare (); ALTER PUBLICATION p ADD TABLE bare", "app")
        assert sandbox.snapshot("s", source).parts[0].skipped_files == 0
        with monkeypatch.context() as newer:
            newer.setattr(postgresql_inventory, "OBJECTS", "SELECT no_such_column;")
            assert sandbox.snapshot("s", source).parts[0].skipped_files == 1
        assert "no inventory was taken" in warnings(sandbox, 2)[0]
        server.psql("TRUNCATE t", "app")
        sandbox.rollback(2)
        assert server.psql("SELECT count(*) FROM t", "app") == "1"


UNACCENT = """
CREATE EXTENSION unaccent; CREATE FUNCTION plainly(x text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT unaccent('unaccent', lower(x)) $$;
CREATE TABLE t (id int PRIMARY KEY, x text, CHECK (plainly(x) <> '')); INSERT INTO t VALUES (1, 'Ä'), (2, 'b'); CREATE INDEX i ON t (plainly(x));
CREATE SCHEMA other; CREATE FUNCTION other.helper() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE FUNCTION uses() RETURNS int LANGUAGE sql AS 'SELECT helper()';
CREATE MATERIALIZED VIEW m AS SELECT uses() AS x; ALTER DATABASE app SET search_path = public, other;
"""


def test_functions_that_need_the_search_path_of_the_database_are_no_obstacle(server: Postgres, sandbox: Sandbox):
    from castore.services.config import Service
    from castore.services.drill import DrillRequest, drill

    if "unaccent" not in server.psql("SELECT name FROM pg_available_extensions"):
        missing("there is no extension unaccent")
    with database(server, "app") as source:
        server.psql("ALTER DATABASE app SET search_path = public, other")
        server.psql(UNACCENT, "app")
        assert sandbox.snapshot("s", source).parts[0].skipped_files == 0
        server.psql("DROP TABLE t; DROP MATERIALIZED VIEW m", "app")
        sandbox.rollback(1)
        assert server.psql("SELECT x FROM t WHERE x = 'Ä'", "app") == "Ä"
        assert server.psql("SELECT x FROM m", "app") == "1"
        with sandbox.open() as store:
            target = store.generations.get("s", 1)
            drill(store, DrillRequest(target, dict(read_details(store, target).origins), Service(), Ownership(change=False)))
        assert left(server) == ""


def test_a_database_without_what_the_template_has_comes_back_so(server: Postgres, sandbox: Sandbox):
    with database(server, "app") as source:
        server.psql("DROP SCHEMA public; DROP EXTENSION plpgsql", "app")
        sandbox.snapshot("s", source)
        server.psql("CREATE SCHEMA public; CREATE EXTENSION plpgsql; CREATE TABLE public.t (x int)", "app")
        sandbox.rollback(1)
        asked = "SELECT (SELECT count(*) FROM pg_extension), (SELECT count(*) FROM pg_namespace WHERE nspname = 'public')"
        assert server.psql(asked, "app") == "0|0"


def test_an_inventory_of_objects_only_is_compared_as_such(server: Postgres, sandbox: Sandbox):
    import msgspec

    with database(server, "app") as source:
        server.psql("CREATE TABLE t (x int); INSERT INTO t VALUES (1)", "app")
        for kind in ("objects", "off"):
            engine = msgspec.structs.replace(source["db"].engine, inventory=kind)
            sandbox.snapshot("s", {"db": EngineSource("postgresql", engine)})
        server.psql("DELETE FROM t", "app")
        for number in (1, 2):
            with sandbox.open() as store:
                origins = dict(read_details(store, store.generations.get("s", number)).origins)
            origins["db"].settings["inventory"] = "full"
            sandbox.rollback(number)
            assert server.psql("SELECT x FROM t", "app") == "1"
            server.psql("DELETE FROM t", "app")
