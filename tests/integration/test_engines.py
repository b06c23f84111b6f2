"""Engines with real servers: what they dump comes back, and after an interrupted rollback one state is complete."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from castore.content.restore.metadata import Ownership
from castore.engines.base import Engine
from castore.engines.file import File
from castore.engines.mariadb.engine import MariaDB
from castore.engines.password import Secret
from castore.engines.postgresql.engine import PostgreSQL
from castore.engines.query_session import QuerySession
from castore.engines.sqlite import SQLite
from castore.errors import CastoreError, ProgramError, UsageError
from castore.process import program
from castore.services.config import Service
from castore.services.rollback import (
    execute,
    outcome,
    plan,
    preparation,
    transaction,
)
from castore.services.sources import EngineSource
from tests.support.data_dir_templates import folder_for_servers
from tests.support.mariadb import MariaDBServer
from tests.support.postgres import Postgres
from tests.support.stores import Sandbox


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariaDBServer]:
    with MariaDBServer() as server:
        yield server


@dataclass
class Live:
    """A database of one kind, with everything in it that the kind can have."""

    name: str
    engine: Engine
    fingerprint: Callable[[], str]
    migrate: Callable[[], None]
    """Change its schema, as an upgrade does."""
    left: Callable[[], list[str]]
    """Leftovers of a rollback."""

    @property
    def source(self) -> EngineSource:
        return EngineSource(self.name, self.engine)


POSTGRES_SCHEMA = """
CREATE ROLE app; CREATE ROLE reader;
ALTER DATABASE {db} OWNER TO app;
ALTER DATABASE {db} SET search_path = app, public;
ALTER DATABASE {db} SET work_mem = '5MB';
ALTER ROLE reader IN DATABASE {db} SET statement_timeout = '7s';
GRANT CONNECT ON DATABASE {db} TO reader;
COMMENT ON DATABASE {db} IS 'it''s the app';
\\connect {db}
CREATE SCHEMA app AUTHORIZATION app;
CREATE EXTENSION IF NOT EXISTS plpgsql;
CREATE SEQUENCE app.numbers START 1000;
CREATE TYPE app.mood AS ENUM ('sad', 'happy');
CREATE TABLE app.people (id int PRIMARY KEY DEFAULT nextval('app.numbers'), name text NOT NULL, feels app.mood, blob bytea);
CREATE TABLE app.posts (id serial PRIMARY KEY, author int REFERENCES app.people, body text, tags text[]);
CREATE INDEX ON app.posts USING gin (tags);
CREATE VIEW app.happy AS SELECT * FROM app.people WHERE feels = 'happy';
CREATE MATERIALIZED VIEW app.counts AS SELECT author, count(*) FROM app.posts GROUP BY 1;
CREATE FUNCTION app.shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.name := upper(NEW.name); RETURN NEW; END $$;
CREATE TRIGGER shout BEFORE INSERT ON app.people FOR EACH ROW EXECUTE FUNCTION app.shout();
INSERT INTO app.people (name, feels, blob) SELECT 'näme ' || n, CASE WHEN n % 2 = 0 THEN 'sad'::app.mood ELSE 'happy' END,
  decode(md5(n::text), 'hex') FROM generate_series(1, 300) n;
INSERT INTO app.posts (author, body, tags) SELECT 1000 + n % 300, repeat(md5(n::text), 20), ARRAY['a', n::text] FROM generate_series(1, 2000) n;
SELECT lo_from_bytea(4242, '\\x00ff00ff');
GRANT SELECT ON app.people TO reader;
"""
POSTGRES_MIGRATION = """
ALTER TABLE app.people RENAME COLUMN name TO full_name; ALTER TABLE app.posts DROP COLUMN tags;
DROP MATERIALIZED VIEW app.counts; CREATE TABLE app.new (x int); INSERT INTO app.new VALUES (1);
DELETE FROM app.posts WHERE id % 3 = 0; SELECT lo_unlink(4242); SELECT nextval('app.numbers');
"""
POSTGRES_STATE = """
SELECT datname, pg_get_userbyid(datdba), (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(datacl) a), shobj_description(oid, 'pg_database'), datcollate
  FROM pg_database WHERE datname = current_database();
SELECT setrole::regrole, setconfig FROM pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database
  WHERE datname = current_database()) ORDER BY 1;
SELECT table_schema, table_name, column_name, data_type, column_default FROM information_schema.columns
  WHERE table_schema IN ('app', 'public') ORDER BY 1, 2, 3;
SELECT md5(string_agg(p::text, ',' ORDER BY id)) FROM app.people p;
SELECT md5(string_agg(p::text, ',' ORDER BY id)) FROM app.posts p;
SELECT last_value, is_called FROM app.numbers;
SELECT viewname, definition FROM pg_views WHERE schemaname = 'app'; SELECT matviewname FROM pg_matviews;
SELECT tgname FROM pg_trigger WHERE NOT tgisinternal; SELECT indexdef FROM pg_indexes WHERE schemaname = 'app' ORDER BY 1;
SELECT loid, data FROM pg_largeobject; SELECT grantee, table_name, privilege_type FROM information_schema.role_table_grants
  WHERE table_schema = 'app' ORDER BY 1, 2, 3;
"""


@pytest.fixture
def postgres_database(postgres: Postgres) -> Iterator[Live]:
    name = f"app{random.randrange(10**9)}"
    postgres.psql(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
    schema = POSTGRES_SCHEMA.format(db=name)
    if postgres.psql("SELECT 1 FROM pg_roles WHERE rolname = 'app'"):
        schema = schema.replace("CREATE ROLE app; CREATE ROLE reader;", "")
    postgres.psql(schema)
    others = "SELECT datname FROM pg_database WHERE datname LIKE 'castore%' OR NOT datallowconn AND datname <> 'template0'"
    yield Live(
        "postgresql",
        PostgreSQL(database=name, host=postgres.socket_folder, user="postgres", program_path=postgres.programs),
        lambda: postgres.psql(POSTGRES_STATE, name),
        lambda: postgres.psql(POSTGRES_MIGRATION, name) and None,
        lambda: postgres.psql(others).split(),
    )
    postgres.dropdb(name)


MARIADB_SCHEMA = """
CREATE DATABASE {db} CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci; USE {db};
CREATE TABLE people (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(50), photo BLOB, born DATETIME(6)) ENGINE=InnoDB;
CREATE TABLE posts (id INT AUTO_INCREMENT PRIMARY KEY, author INT, body TEXT, FOREIGN KEY (author) REFERENCES people (id) ON DELETE CASCADE);
CREATE TABLE log (id INT AUTO_INCREMENT PRIMARY KEY, what VARCHAR(99));
CREATE TABLE `odd ``name` (x INT PRIMARY KEY);
CREATE SEQUENCE numbers START WITH 77;
CREATE VIEW authors AS SELECT name, count(*) AS posts FROM people JOIN posts ON author = people.id GROUP BY name;
CREATE VIEW busy AS SELECT * FROM authors WHERE posts > 3;
DELIMITER //
CREATE TRIGGER logged AFTER INSERT ON posts FOR EACH ROW BEGIN INSERT INTO log (what) VALUES (concat('post; ', NEW.id)); END//
CREATE FUNCTION twice(x INT) RETURNS INT DETERMINISTIC BEGIN DECLARE y INT; SET y = 2 * x; RETURN y; END//
CREATE PROCEDURE tidy() BEGIN DELETE FROM log; END//
CREATE EVENT nightly ON SCHEDULE EVERY 1 DAY STARTS '2037-01-01 00:00:00' DO BEGIN CALL tidy(); END//
DELIMITER ;
INSERT INTO people (name, photo, born) VALUES ('Ådä 🌳', 0x00ff27005c, '2001-02-03 04:05:06.789'), ('Bob', NULL, NULL);
INSERT INTO posts (author, body) SELECT 1 + seq % 2, repeat(md5(seq), 20) FROM seq_1_to_500;
INSERT INTO `odd ``name` VALUES (1), (2);
"""
MARIADB_MIGRATION = """
DROP VIEW busy; DROP TRIGGER logged; DROP PROCEDURE tidy; DROP EVENT nightly;
ALTER TABLE people ADD COLUMN mail VARCHAR(99); CREATE TABLE new_table (x INT); INSERT INTO new_table VALUES (1);
CREATE VIEW newer AS SELECT name FROM people; DROP TABLE `odd ``name`; DELETE FROM posts WHERE id % 3 = 0;
CREATE TRIGGER other BEFORE INSERT ON people FOR EACH ROW SET NEW.mail = 'x';
"""


@pytest.fixture
def mariadb_database(mariadb: MariaDBServer) -> Iterator[Live]:
    name = f"app{random.randrange(10**9)}"
    mariadb.sql(MARIADB_SCHEMA.format(db=name))
    yield Live(
        "mariadb",
        MariaDB(database=name, socket=mariadb.socket, user="root"),
        lambda: mariadb.fingerprint(name),
        lambda: mariadb.sql(MARIADB_MIGRATION, name) and None,
        lambda: [one for one in mariadb.databases() if one.startswith("castore")],
    )
    mariadb.sql(f"DROP DATABASE IF EXISTS {name}")
    for one in mariadb.databases():
        if one.startswith("castore"):
            mariadb.sql(f"DROP DATABASE {one}")


@pytest.fixture
def sqlite_database(tmp_path: Path) -> Iterator[Live]:
    folder = tmp_path / "sqlite"
    folder.mkdir()
    path = folder / "app.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(
            "PRAGMA journal_mode = WAL; CREATE TABLE t (x INTEGER PRIMARY KEY, y TEXT, z BLOB);"
            "CREATE INDEX i ON t (y); CREATE VIEW v AS SELECT y FROM t; CREATE TABLE log (what);"
            "CREATE TRIGGER tr AFTER INSERT ON t BEGIN INSERT INTO log VALUES (new.x); END;"
        )
        database.executemany("INSERT INTO t (y, z) VALUES (?, ?)", [(f"ä{n}", os.urandom(50)) for n in range(2000)])
        database.commit()

    def state() -> str:
        with contextlib.closing(sqlite3.connect(path)) as database:
            return "\n".join(database.iterdump())

    def migrate() -> None:
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.executescript("ALTER TABLE t ADD COLUMN n; DROP VIEW v; DELETE FROM t WHERE x % 2; CREATE TABLE new (x);")

    return Live(
        "sqlite",
        SQLite(path=str(path)),
        state,
        migrate,
        lambda: [name for name in os.listdir(folder) if "castore" in name],
    )


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def live(request: pytest.FixtureRequest) -> Live:
    return request.getfixturevalue({"postgresql": "postgres", "mariadb": "mariadb", "sqlite": "sqlite"}[request.param] + "_database")


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path / "sandbox")


def rollback(sandbox: Sandbox, live: Live, number: int, settings: Service | None = None) -> execute.RolledBack:
    return sandbox.rollback(number, settings)


def recover(sandbox: Sandbox) -> str:
    return sandbox.recover()


def test_a_migrated_database_goes_back_and_forth(sandbox: Sandbox, live: Live):
    live.engine.check()
    first = live.fingerprint()
    sandbox.snapshot("s", {"db": live.source}, revision="r1")
    again = sandbox.snapshot("s", {"db": live.source}, revision="r1")
    assert again.parts[0].stored_bytes == 0  # the same bytes each time
    live.migrate()
    second = live.fingerprint()
    assert second != first
    done = rollback(sandbox, live, 1)
    assert done.problems == []
    assert live.fingerprint() == first
    assert live.left() == []
    assert done.pre_rollback is not None
    rollback(sandbox, live, done.pre_rollback.number)
    assert live.fingerprint() == second
    assert live.left() == []
    with sandbox.open() as store:
        taken = store.generations.get("s", 1)
        assert taken is not None
        made_by = plan.read_details(store, taken).origins["db"].producer
    assert made_by.split()[0] == live.name
    assert live.engine.compatibility_warning(made_by) == ""


def test_what_is_equal_is_left_alone(sandbox: Sandbox, live: Live, monkeypatch):
    sandbox.snapshot("s", {"db": live.source})
    before = live.fingerprint()
    monkeypatch.setattr(type(live.engine), "swap", lambda *_: pytest.fail("it is equal"))
    done = rollback(sandbox, live, 1)
    assert done.parts == ()
    assert live.fingerprint() == before
    assert live.left() == []


def test_a_service_that_is_not_healthy_afterwards_is_reverted(sandbox: Sandbox, live: Live, tmp_path: Path):
    sandbox.snapshot("s", {"db": live.source})
    live.migrate()
    second = live.fingerprint()
    log = tmp_path / "log"
    hooks = {name: ("sh", "-c", f"echo {name} >> {log}") for name in ("stop", "start")}
    with pytest.raises(ProgramError, match="false failed"):
        rollback(sandbox, live, 1, Service(**hooks, health=("false",), health_timeout=0.2))
    assert log.read_text().split() == ["stop", "start", "stop", "start"]
    assert live.fingerprint() == second
    assert live.left() == []


def test_a_dump_that_does_not_load_changes_nothing(sandbox: Sandbox, live: Live, monkeypatch):
    sandbox.snapshot("s", {"db": live.source})
    live.migrate()
    second = live.fingerprint()
    real = preparation.contents_of

    def broken(*given):
        found = real(*given)

        def target():
            for at, piece in enumerate(found.restore_dump()):
                yield piece if at else bytes(piece[:-100]) + b"\x00 no SQL ';;" + b"\xff" * 88

        return found._replace(restore_dump=target)

    monkeypatch.setattr(preparation, "contents_of", broken)
    marker = Service(stop=("false",))  # it does not come to that
    with pytest.raises(CastoreError) as caught:
        rollback(sandbox, live, 1, marker)
    assert "false failed" not in str(caught.value)
    assert live.fingerprint() == second
    assert live.left() == []


class Killed(BaseException):
    """The process was killed."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch):
    """Let castore die at a point of a rollback: nothing after it is done, not even undoing."""

    def kill(point: int) -> Callable[[], None]:
        dead = [False]
        count = iter(range(10**6))

        def step() -> None:
            if dead[0] or next(count) == point:
                dead[0] = True
                raise Killed

        start, write, rename = program.Program._start, outcome.write_journal, os.rename  # noqa: SLF001 - the moment of the kill
        answer = QuerySession.answer

        def starting(self, *args):
            step()
            return start(self, *args)

        def answering(self, sql):
            if sql.startswith("BEGIN"):  # others change nothing
                step()
            return answer(self, sql)

        def writing(store, journal):
            step()
            write(store, journal)
            step()

        def renaming(*args, **options):
            if "castore-new" in str(args[0]) or "castore-old" in str(args[1]):
                step()
            return rename(*args, **options)

        revert = transaction.revert_parts
        with_patches = pytest.MonkeyPatch()
        with_patches.setattr(program.Program, "_start", starting)
        with_patches.setattr(QuerySession, "answer", answering)
        with_patches.setattr(transaction, "write_journal", writing)
        with_patches.setattr(outcome, "write_journal", writing)
        with_patches.setattr(os, "rename", renaming)
        with_patches.setattr(transaction, "revert_parts", lambda *args: [] if dead[0] else revert(*args))
        return with_patches.undo

    return kill


def sweep(sandbox: Sandbox, live: Live, kill_at, points: Iterator[int]) -> tuple[int, int]:
    """Kill a rollback at many points, and recover; return how often which state came out."""
    first = live.fingerprint()
    sandbox.snapshot("s", {"db": live.source})
    live.migrate()
    second = live.fingerprint()
    sandbox.snapshot("s", {"db": live.source})
    outcomes = [0, 0]
    for point in points:
        alive = kill_at(point)
        killed = False
        try:
            sandbox.rollback(1, take_pre_rollback=False)
        except Killed:
            killed = True
        finally:
            alive()
        with sandbox.open() as store:
            begun = store.state.rollback_journal("s") is not None
        if begun:
            with pytest.raises(CastoreError, match="interrupted"):
                rollback(sandbox, live, 1)
            recover(sandbox)
        now = live.fingerprint()
        assert now in {first, second}, point
        assert live.left() == [], point
        outcomes[now == first] += 1
        if not killed:
            break
        if now == first:
            rollback(sandbox, live, 2)
            assert live.fingerprint() == second
    else:
        return outcomes[0], outcomes[1]
    assert now == first
    return outcomes[0], outcomes[1]


def test_a_roll_back_that_is_killed_is_undone_or_finished(sandbox: Sandbox, live: Live, kill_at):
    every = {"sqlite": 1, "postgresql": 5, "mariadb": 7}[live.name]
    old, new = sweep(sandbox, live, kill_at, iter(range(1, 400, every)))
    print(f"{old} times as before, {new} times as after")
    assert old > 3
    assert new >= 1


@pytest.mark.slow
def test_a_roll_back_that_is_killed_anywhere_is_undone_or_finished(sandbox: Sandbox, live: Live, kill_at):
    old, new = sweep(sandbox, live, kill_at, iter(range(400)))
    print(f"{live.name}: {old} times as before, {new} times as after")


def test_a_castore_that_is_killed_while_it_loads_is_recovered_at_once(sandbox: Sandbox, live: Live, postgres, mariadb):
    if live.name == "sqlite":
        pytest.skip("has no program that loads it")
    run, rows = (postgres.psql, "generate_series(1, 400000) seq") if live.name == "postgresql" else (mariadb.sql, "seq_1_to_400000")
    run(f"CREATE TABLE large AS SELECT seq, md5(seq{'::text' if live.name == 'postgresql' else ''}) AS x FROM {rows}", live.engine.database)
    sandbox.snapshot("s", {"db": live.source})
    run("DELETE FROM large WHERE seq % 2 = 0", live.engine.database)
    live.migrate()
    second = live.fingerprint()
    castore = os.fork()
    if not castore:
        try:
            rollback(sandbox, live, 1)
        finally:
            os._exit(0)
    try:
        while not live.left():
            time.sleep(0.01)
        time.sleep(0.3)
    finally:
        os.kill(castore, signal.SIGKILL)
        os.waitpid(castore, 0)
    # The program that loads may still be at it.
    recover(sandbox)
    assert live.fingerprint() == second
    time.sleep(0.5)
    assert live.left() == []
    rollback(sandbox, live, 1)
    assert run("SELECT count(*) FROM large", live.engine.database) == "400000"


def test_a_missing_database_is_restored(sandbox: Sandbox, live: Live, postgres, mariadb):
    first = live.fingerprint()
    sandbox.snapshot("s", {"db": live.source})
    if live.name == "postgresql":
        owner = live.engine.database
        postgres.dropdb(owner)
    elif live.name == "mariadb":
        mariadb.sql(f"DROP DATABASE {live.engine.database}")
    else:
        for ending in ("", "-wal", "-shm"):
            Path(live.engine.path + ending).unlink(missing_ok=True)
    with pytest.raises((ProgramError, UsageError)):
        live.engine.check()
    with pytest.raises((ProgramError, UsageError)):
        sandbox.snapshot("s", {"db": live.source})
    with pytest.raises((ProgramError, UsageError)):
        sandbox.rollback(1, Service(health=("false",), health_timeout=0), take_pre_rollback=False)
    assert live.left() == []
    with pytest.raises((ProgramError, UsageError)):
        live.engine.check()
    sandbox.rollback(1, take_pre_rollback=False)
    assert live.fingerprint() == first  # its owner, settings and rights, too, which pg_dump does not write
    assert live.left() == []


def test_a_password_is_never_an_argument(mariadb: MariaDBServer, mariadb_database: Live, sandbox: Sandbox, tmp_path, monkeypatch):
    secret = 'p"a\\ss w#rd'
    quoted = secret.replace("\\", "\\\\").replace("'", "''")
    mariadb.sql(f"CREATE OR REPLACE USER guarded IDENTIFIED BY '{quoted}'; GRANT ALL ON *.* TO guarded WITH GRANT OPTION")
    (tmp_path / "password").write_text(secret + "\n")
    seen: list[list[str]] = []
    start = program.Program._start  # noqa: SLF001 - the moment of the kill

    def starting(self, *args):
        seen.append(list(self._command.argv))
        return start(self, *args)

    monkeypatch.setattr(program.Program, "_start", starting)
    engine = MariaDB(
        database=mariadb_database.engine.database, socket=mariadb.socket, user="guarded", password=Secret(file=str(tmp_path / "password"))
    )
    engine.check()
    sandbox.snapshot("s", {"db": EngineSource("mariadb", engine)})
    assert seen
    assert not [argv for argv in seen if secret in " ".join(argv)]
    assert "p" not in repr(engine.password).replace("Secret()", "")
    wrong = MariaDB(database="x", socket=mariadb.socket, user="guarded", password=Secret(env="CASTORE_TEST_SECRET"))
    monkeypatch.setenv("CASTORE_TEST_SECRET", "wrong")
    with pytest.raises(ProgramError, match="Access denied"):
        wrong.check()
    monkeypatch.delenv("CASTORE_TEST_SECRET")
    with pytest.raises(CastoreError, match="CASTORE_TEST_SECRET"):
        wrong.check()


def test_a_dump_without_its_end_is_no_generation(sandbox: Sandbox, live: Live, tmp_path: Path):
    if live.name == "sqlite":
        pytest.skip("has no dump program")
    programs_path = tmp_path / "bin"
    programs_path.mkdir()
    name = "pg_dump" if live.name == "postgresql" else "mariadb-dump"
    dump = programs_path / name
    dump.write_text('#!/bin/sh\n[ "$1" = --help ] && exit 0\necho "-- half a dump"\nexit 0\n')
    dump.chmod(0o755)
    for other in ("psql", "mariadb"):
        (programs_path / other).write_text(f'#!/bin/sh\nexec {shutil.which(other)} "$@"\n')
        (programs_path / other).chmod(0o755)
    engine = type(live.engine)(**{**{f: getattr(live.engine, f) for f in live.engine.__struct_fields__}, "program_path": str(programs_path)})
    with pytest.raises(ProgramError, match="its end is missing"):
        sandbox.snapshot("s", {"db": EngineSource(live.name, engine)})
    with sandbox.open() as store:
        assert store.generations.all("s") == []


def test_a_snapshot_while_writers_are_busy_is_one_moment(sandbox: Sandbox, live: Live, postgres, mariadb, tmp_path):
    """Two tables change together all the time; in every generation they agree."""
    import threading

    over = threading.Event()

    def write() -> None:
        if live.name == "sqlite":
            with contextlib.closing(sqlite3.connect(live.engine.path, timeout=60)) as database:
                database.executescript("CREATE TABLE a (x); CREATE TABLE b (x); INSERT INTO a VALUES (0); INSERT INTO b VALUES (0)")
                started.set()
                while not over.is_set():
                    database.executescript("BEGIN IMMEDIATE; UPDATE a SET x = x + 1; UPDATE b SET x = x + 1; COMMIT")
            return
        step = "BEGIN; UPDATE a SET x = x + 1; UPDATE b SET x = x + 1; COMMIT;" * 50
        make = "CREATE TABLE a (x INT); CREATE TABLE b (x INT); INSERT INTO a VALUES (0); INSERT INTO b VALUES (0);"
        run = postgres.psql if live.name == "postgresql" else mariadb.sql
        run(make, live.engine.database)
        started.set()
        while not over.is_set():
            run(step, live.engine.database)

    started = threading.Event()
    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert started.wait(30)
        for _ in range(3):
            assert sandbox.snapshot("s", {"db": live.source}).skipped_files == 0
    finally:
        over.set()
        writer.join()
    both = "SELECT (SELECT x FROM a), (SELECT x FROM b)"
    for number in (1, 2, 3):
        rollback(sandbox, live, number)
        if live.name == "sqlite":
            with contextlib.closing(sqlite3.connect(live.engine.path)) as database:
                one, two = database.execute(both).fetchone()
        elif live.name == "postgresql":
            one, two = postgres.psql(both, live.engine.database).split("|")
        else:
            one, two = mariadb.sql(both, live.engine.database).split("\t")
        assert one == two


def test_a_whole_cluster_goes_back_with_its_roles(sandbox: Sandbox, postgres: Postgres):
    engine = PostgreSQL(cluster=True, host=postgres.socket_folder, user="postgres", program_path=postgres.programs)
    postgres.psql("DROP ROLE IF EXISTS owner_one; CREATE ROLE owner_one LOGIN PASSWORD 'x' CONNECTION LIMIT 3")
    for name in ("one", "Two words"):
        postgres.psql(f'CREATE DATABASE "{name}" OWNER owner_one')
        postgres.psql("CREATE TABLE t (x int); INSERT INTO t VALUES (1)", name)
    try:
        taken = sandbox.snapshot("s", {"pg": EngineSource("postgresql", engine)})
        names = [part.name for part in taken.parts]
        assert names[0] == "pg"
        assert {"pg.one", "pg.postgres"} <= set(names)
        assert any(name.startswith("pg.Two_words-") for name in names)
        postgres.psql("INSERT INTO t VALUES (2)", "one")
        postgres.psql("DROP TABLE t", "Two words")
        postgres.psql("ALTER ROLE owner_one CONNECTION LIMIT 7; CREATE TABLE postgres_too (x int)")
        postgres.dropdb("one")
        done = sandbox.rollback(1, take_pre_rollback=False)
        assert done.problems == []
        assert postgres.psql("SELECT * FROM t", "one") == "1"
        assert postgres.psql("SELECT * FROM t", "Two words") == "1"
        assert postgres.psql("SELECT rolconnlimit FROM pg_roles WHERE rolname = 'owner_one'") == "3"
        assert postgres.psql("SELECT count(*) FROM pg_tables WHERE tablename = 'postgres_too'") == "0"
        assert postgres.psql("SELECT datname FROM pg_database WHERE datname LIKE 'castore%'") == ""
    finally:
        for name in ("one", "Two words"):
            postgres.dropdb(name)
        postgres.psql("DROP ROLE owner_one")


def test_either_a_database_or_a_cluster_is_named():
    for options in ({}, {"database": "x", "cluster": True}):
        with pytest.raises(ValueError, match="either"):
            PostgreSQL(**options)


def test_generations_are_drilled_in_servers_of_their_own(sandbox: Sandbox, live: Live):
    from castore.services import drill

    taken = sandbox.snapshot("s", {"db": live.source})
    live.migrate()
    before = live.fingerprint()
    scratch = tempfile.mkdtemp(prefix="scratch-", dir=folder_for_servers())
    os.chmod(scratch, 0o711)
    with sandbox.open() as store:
        done = drill.drill(store, drill.DrillRequest(taken, {}, Service(), Ownership(change=os.geteuid() == 0), scratch=scratch))
    os.rmdir(scratch)  # it is empty again
    result = done.parts["db"]
    assert result.startswith({"postgresql": "2,300 rows", "mariadb": "1,005 rows", "sqlite": "4,000 rows"}[live.name])
    assert live.fingerprint() == before


def test_rights_to_routines_and_large_code_come_back(sandbox: Sandbox, mariadb: MariaDBServer, mariadb_database: Live):
    name = mariadb_database.engine.database
    mariadb.sql("CREATE OR REPLACE USER caller; CREATE OR REPLACE USER other")
    body = "; ".join(f"SET @x{n} = '{'y' * 1000}'" for n in range(60))
    large = "".join(f"CREATE PROCEDURE large{n}() BEGIN {body}; END//\n" for n in range(12))
    mariadb.sql(f"DELIMITER //\n{large}", name)
    mariadb.sql(f"GRANT EXECUTE ON PROCEDURE {name}.tidy TO caller; GRANT EXECUTE ON FUNCTION {name}.twice TO other", name)
    first, rights = mariadb_database.fingerprint(), [mariadb.sql(f"SHOW GRANTS FOR {who}") for who in ("caller", "other")]
    sandbox.snapshot("s", {"db": mariadb_database.source})
    mariadb.sql("CREATE TABLE more (x INT)", name)
    second = mariadb_database.fingerprint()
    with pytest.raises(ProgramError, match="health"):
        rollback(sandbox, mariadb_database, 1, Service(health=("false",), health_timeout=0))
    assert mariadb_database.fingerprint() == second
    assert [mariadb.sql(f"SHOW GRANTS FOR {who}") for who in ("caller", "other")] == rights
    rollback(sandbox, mariadb_database, 1)
    assert mariadb_database.fingerprint() == first
    assert [mariadb.sql(f"SHOW GRANTS FOR {who}") for who in ("caller", "other")] == rights


def test_history_and_packages_come_back(sandbox: Sandbox, mariadb: MariaDBServer, mariadb_database: Live):
    name = mariadb_database.engine.database
    mariadb.sql("CREATE TABLE aged (x INT) WITH SYSTEM VERSIONING; INSERT INTO aged VALUES (1); UPDATE aged SET x = 2; UPDATE aged SET x = 3", name)
    mariadb.sql(
        "SET sql_mode = ORACLE;\nDELIMITER //\nCREATE PACKAGE pack AS FUNCTION f RETURN INT; END//\n"
        "CREATE PACKAGE BODY pack AS FUNCTION f RETURN INT AS BEGIN RETURN 5; END; END//\n",
        name,
    )
    history = mariadb.sql("SELECT x FROM aged FOR SYSTEM_TIME ALL ORDER BY 1", name)
    sandbox.snapshot("s", {"db": mariadb_database.source})
    mariadb.sql("DELETE FROM aged", name)
    rollback(sandbox, mariadb_database, 1)
    assert mariadb.sql("SELECT x FROM aged FOR SYSTEM_TIME ALL ORDER BY 1", name) == history
    assert mariadb.sql("SET sql_mode = ORACLE; SELECT pack.f()", name) == "5"
    assert mariadb_database.left() == []


def test_a_foreign_key_from_elsewhere_is_refused_before_anything_is_touched(
    sandbox: Sandbox, mariadb: MariaDBServer, mariadb_database: Live
):
    name = mariadb_database.engine.database
    mariadb.sql(f"CREATE DATABASE elsewhere; CREATE TABLE elsewhere.child (p INT, FOREIGN KEY (p) REFERENCES {name}.people (id))")
    try:
        sandbox.snapshot("s", {"db": mariadb_database.source})
        mariadb_database.migrate()
        second = mariadb_database.fingerprint()
        with pytest.raises(CastoreError, match=r"the foreign key .* references"):
            rollback(sandbox, mariadb_database, 1)
        assert mariadb_database.fingerprint() == second
    finally:
        mariadb.sql("DROP DATABASE elsewhere")


def test_a_transaction_that_holds_a_table_ends_the_roll_back_and_all_is_as_it_was(
    sandbox: Sandbox, mariadb: MariaDBServer, mariadb_database: Live, monkeypatch: pytest.MonkeyPatch
):
    from castore.engines.mariadb import client as engine

    monkeypatch.setattr(engine, "LOCK_SECONDS", 1)
    name = mariadb_database.engine.database
    sandbox.snapshot("s", {"db": mariadb_database.source})
    mariadb_database.migrate()
    second = mariadb_database.fingerprint()
    client = ["mariadb", "--no-defaults", f"--socket={mariadb.socket}", "--user=root", name]
    holder = subprocess.Popen(client, stdin=subprocess.PIPE, text=True)
    try:
        assert holder.stdin is not None
        holder.stdin.write("BEGIN; SELECT count(*) FROM people;\n")
        holder.stdin.flush()
        time.sleep(0.5)
        with pytest.raises(ProgramError, match="Lock wait timeout"):
            rollback(sandbox, mariadb_database, 1)
    finally:
        holder.communicate("COMMIT;")
    assert mariadb_database.fingerprint() == second
    assert mariadb_database.left() == []


def test_settings_of_a_database_do_not_hold_up_its_roll_back(sandbox: Sandbox, postgres: Postgres, postgres_database: Live):
    name = postgres_database.engine.database
    postgres.psql(
        f"ALTER DATABASE {name} SET default_transaction_read_only = on; ALTER DATABASE {name} SET statement_timeout = '5ms';"
        f"COMMENT ON DATABASE {name} IS E'two\nlines'; ALTER DATABASE {name} IS_TEMPLATE true"
    )
    sandbox.snapshot("s", {"db": postgres_database.source})
    postgres.psql("SET statement_timeout = 0; SET default_transaction_read_only = off; DELETE FROM app.posts", name)
    rollback(sandbox, postgres_database, 1)
    settings = (
        "SELECT datistemplate, shobj_description(oid, 'pg_database'), "
        "setconfig @> '{default_transaction_read_only=on, statement_timeout=5ms}' FROM pg_database "
        f"JOIN pg_db_role_setting ON setdatabase = oid AND setrole = 0 WHERE datname = '{name}'"
    )
    assert postgres.psql(settings) == "t|two\nlines|t"
    assert postgres.psql("SET statement_timeout = 0; SELECT count(*) FROM app.posts", name) == "2000"
    assert postgres_database.left() == []
    postgres.psql(f"ALTER DATABASE {name} IS_TEMPLATE false")


@pytest.mark.parametrize("option", ["--exclude-table=x", "-T", "-Tx", "--schema-only", "--where=1", "--ignore-table=a.b"])
def test_options_that_leave_something_out_are_refused(sandbox: Sandbox, live: Live, option: str):
    if live.name == "sqlite" or (live.name == "postgresql") != (option in {"--exclude-table=x", "-T", "-Tx", "--schema-only"}):
        pytest.skip("is an option of another")
    import msgspec

    engine = msgspec.structs.replace(live.engine, options=(option,))
    with pytest.raises(CastoreError, match="leaves something out"):
        engine.preflight()
    msgspec.structs.replace(live.engine, options=("--verbose",)).preflight()


def test_a_server_that_ends_before_the_swap_blocks_nothing(
    sandbox: Sandbox, postgres: Postgres, postgres_database: Live
):
    socket = postgres.socket_folder + "/.s.PGSQL.5432"
    sandbox.snapshot("s", {"db": postgres_database.source})
    postgres_database.migrate()
    second = postgres_database.fingerprint()
    gone = Service(stop=("mv", socket, socket + ".gone"))
    said: list[str] = []
    with pytest.raises(CastoreError, match="is restored"):
        sandbox.rollback(1, gone, say=said.append)
    os.rename(socket + ".gone", socket)
    # The live database was not touched, so nothing is blocked; what was staged is named.
    assert postgres_database.fingerprint() == second
    (new,) = postgres_database.left()
    assert any(new in line for line in said)
    sandbox.snapshot("s", {"db": postgres_database.source})
    rollback(sandbox, postgres_database, 1)
    assert postgres_database.left() == [new]
    postgres.dropdb(new)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems")
def test_a_full_disk_leaves_the_live_database_as_it_was(sandbox: Sandbox, tmp_path: Path):
    import subprocess

    point = tmp_path / "point"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m,mode=755", "castore-test", point], check=True)
    try:
        with contextlib.closing(sqlite3.connect(point / "app.db")) as database:
            database.execute("CREATE TABLE t (x)")
            database.executemany("INSERT INTO t VALUES (?)", [(os.urandom(1000),) for _ in range(1100)])
            database.commit()
        engine = SQLite(path=str(point / "app.db"))
        sandbox.snapshot("s", {"db": EngineSource("sqlite", engine)})
        with contextlib.closing(sqlite3.connect(point / "app.db")) as database:
            database.execute("UPDATE t SET x = 1 WHERE rowid = 1")
            database.commit()
        before = (point / "app.db").read_bytes()
        (point / "filler").write_bytes(bytes(3_200_000))
        live = Live("sqlite", engine, lambda: "", lambda: None, list)
        with pytest.raises(CastoreError, match="No space left"):
            rollback(sandbox, live, 1)
        assert (point / "app.db").read_bytes() == before
        (point / "filler").unlink()
        assert sorted(os.listdir(point)) == ["app.db"]
        rollback(sandbox, live, 1)
        assert (point / "app.db").read_bytes() != before
    finally:
        subprocess.run(["umount", "--lazy", point], check=True)


@pytest.mark.parametrize("kind", ["sqlite", "file"])
def test_a_file_keeps_its_attributes_and_access_control_list(sandbox: Sandbox, sqlite_database: Live, kind: str):
    path = sqlite_database.engine.path
    if kind == "file":
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA journal_mode = DELETE")
    os.setxattr(path, "user.origin", b"here")
    if shutil.which("setfacl") is None:
        pytest.skip("there is no setfacl")
    subprocess.run(["setfacl", "-m", "u:1:r", path], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:2:rw", os.path.dirname(path)], check=True)

    def attributes() -> dict[str, bytes]:
        return {name: os.getxattr(path, name) for name in os.listxattr(path)}

    before = attributes()
    assert set(before) == {"user.origin", "system.posix_acl_access"}
    source = EngineSource(kind, SQLite(path=path) if kind == "sqlite" else File(path=path))
    sandbox.snapshot("s", {"db": source})
    sqlite_database.migrate()
    rollback(sandbox, sqlite_database, 1)
    assert attributes() == before
    os.removexattr(path, "system.posix_acl_access")
    sqlite_database.migrate()
    rollback(sandbox, sqlite_database, 1)
    assert attributes() == {"user.origin": b"here"}


def test_leftovers_of_a_killed_snapshot_next_to_a_database_are_removed_by_the_next(sandbox: Sandbox, sqlite_database: Live):
    folder = Path(sqlite_database.engine.path).parent
    left = folder / ".castore-dump-0123abcd"
    left.mkdir()
    (left / "copy").write_bytes(b"half")
    sandbox.snapshot("s", {"db": sqlite_database.source})
    assert sqlite_database.left() == []
