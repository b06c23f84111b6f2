"""MariaDB: what the machine, the account or the server's settings could change of a dump or a rollback."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from castore.engines import connecting
from castore.engines.mariadb import lock as mariadb_lock
from castore.engines.mariadb.client import Client
from castore.engines.mariadb.engine import MariaDB
from castore.engines.mariadb.rights import _matches
from castore.engines.password import Secret
from castore.errors import CastoreError, ProgramError
from castore.services.config import Service
from tests.integration.test_mariadb_cases import engine, take, warnings
from tests.support.data_dir_templates import folder_for_servers
from tests.support.mariadb import MariaDBServer
from tests.support.mariadb_fixtures import app, sandbox, server
from tests.support.stores import Sandbox

__all__ = ["app", "sandbox", "server"]

SCHEMA = """
CREATE TABLE t (x INT PRIMARY KEY); INSERT INTO t VALUES (1), (2); CREATE TABLE log (x INT);
CREATE TRIGGER tr AFTER INSERT ON t FOR EACH ROW INSERT INTO log VALUES (NEW.x); CREATE VIEW v AS SELECT * FROM t;
CREATE PROCEDURE p() SELECT 1; CREATE EVENT ev ON SCHEDULE EVERY 1 YEAR STARTS '2037-01-01' DO SELECT 1;
"""
FULL = "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, ALTER, REFERENCES, INDEX, LOCK TABLES, CREATE VIEW, SHOW VIEW, TRIGGER, EVENT, CREATE ROUTINE, ALTER ROUTINE, EXECUTE, CREATE TEMPORARY TABLES"


def account(server: MariaDBServer, app: str, rights: str, tmp_path: Path, *more: str) -> MariaDB:
    """Return an engine whose account has rights on its database, and more by whole statements."""
    server.sql(f"CREATE OR REPLACE USER limited@localhost IDENTIFIED BY 'secret'; GRANT {rights} ON {app}.* TO limited@localhost")
    for statement in more:
        server.sql(statement)
    (tmp_path / "secret").write_text("secret\n")
    return msgspec.structs.replace(engine(server, app), user="limited", password=Secret(file=str(tmp_path / "secret")))


def granted(server: MariaDBServer, message: str) -> None:
    """Run the statements that a message says are missing."""
    statements = message[message.index("GRANT ") :].split("; nothing", maxsplit=1)[0].split("; the previous", maxsplit=1)[0]
    server.sql(statements)


def left(server: MariaDBServer) -> list[str]:
    return [one for one in server.databases() if one.startswith("castore")]


def test_the_usual_rights_of_a_dump_report_what_they_do_not_show(sandbox: Sandbox, server: MariaDBServer, app: str, tmp_path: Path):
    server.sql(SCHEMA, app)
    own = account(server, app, "SELECT, LOCK TABLES, SHOW VIEW, EVENT", tmp_path)
    taken = take(sandbox, own)
    said = warnings(sandbox, taken)
    assert set(said) == {"triggers", "functions, procedures and packages"}
    for reason in said.values():
        server.sql(reason[reason.index("GRANT ") :])
    assert warnings(sandbox, take(sandbox, own)) == {}
    # The first generation has no trigger: a rollback would drop the live one.
    server.sql("GRANT ALL ON *.* TO limited@localhost WITH GRANT OPTION")
    server.sql("DELETE FROM t", app)
    with pytest.raises(CastoreError, match=r"could not see triggers.*would drop trigger tr"):
        sandbox.rollback(taken.number)
    assert server.sql("SHOW TRIGGERS", app).startswith("tr")
    assert left(server) == []


@pytest.mark.parametrize("lacking", ["SELECT", "SHOW VIEW", "EVENT", "TRIGGER"])
def test_each_right_of_a_dump_is_asked_for(server: MariaDBServer, app: str, tmp_path: Path, lacking: str):
    server.sql(SCHEMA, app)
    rights = ", ".join(one for one in FULL.split(", ") if one != lacking)
    own = account(server, app, rights, tmp_path, "GRANT SELECT ON mysql.* TO limited@localhost")
    with pytest.raises(CastoreError, match=f"GRANT {lacking} ON `{app}`") as caught:
        own.check()
    granted(server, str(caught.value))
    with pytest.raises(CastoreError, match=r"a rollback .* needs: GRANT ALL PRIVILEGES ON `castore.+%`.*; nothing was changed") as caught:
        own.check()
    granted(server, str(caught.value))
    own.check()


def test_an_account_without_rights_to_stage_is_refused_before_anything_stops(sandbox: Sandbox, server: MariaDBServer, app: str, tmp_path: Path):
    server.sql(SCHEMA, app)
    own = account(server, app, FULL, tmp_path, "GRANT SELECT ON mysql.* TO limited@localhost")
    assert warnings(sandbox, take(sandbox, own)) == {}
    server.sql("INSERT INTO t VALUES (7)", app)
    stopped = tmp_path / "stopped"
    service = Service(stop=("touch", str(stopped)))
    with pytest.raises(CastoreError, match="lacks rights") as caught:
        sandbox.rollback(1, settings=service)
    assert not stopped.exists()
    with sandbox.open() as store:
        assert store.state.rollback_journal("s") is None
    take(sandbox, own)  # is not refused
    granted(server, str(caught.value))
    sandbox.rollback(1, settings=service)
    assert server.sql("SELECT x FROM t", app).split() == ["1", "2"]
    assert server.sql("SELECT DEFINER FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = database()", app) == "root@localhost"
    assert left(server) == []


def test_a_failure_to_stage_leaves_no_journal_even_if_the_server_ends(sandbox: Sandbox, server: MariaDBServer, app: str, monkeypatch):
    server.sql(SCHEMA, app)
    own = engine(server, app)
    take(sandbox, own)
    server.sql("INSERT INTO t VALUES (7)", app)
    real = MariaDB._refuse_differences  # noqa: SLF001 - what the engine asks its server

    def gone(lines: list[str]) -> None:
        monkeypatch.setattr(MariaDB, "names", (("mariadb-dump",), ("no-such-client",)))
        real(["the server was stopped"])

    with monkeypatch.context():
        monkeypatch.setattr(MariaDB, "_refuse_differences", staticmethod(gone))
        with pytest.raises(CastoreError, match="the server was stopped"):
            sandbox.rollback(1)
        monkeypatch.undo()
    with sandbox.open() as store:
        assert store.state.rollback_journal("s") is None
    assert left(server) != []
    sandbox.rollback(1)
    assert server.sql("SELECT x FROM t", app).split() == ["1", "2"]
    assert left(server) == []  # what the first one could not remove, too


@contextlib.contextmanager
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Iterator[None]:
    """Let the programs find an option file of the administrator."""
    with monkeypatch.context() as patch:
        folder = tmp_path / "home"
        folder.mkdir()
        (folder / ".my.cnf").write_text(text)
        patch.setenv("HOME", str(folder))
        patch.setenv("MYSQL_HOME", str(folder))
        patch.setenv("MYSQL_PWD", "wrong")
        patch.setenv("MYSQL_HOST", "192.0.2.1")
        patch.setenv("LANG", "de_DE.UTF-8")
        yield


HOMES = {
    "another password": "[client]\npassword=other\nuser=nobody\n",
    "a table is ignored": "[mysqldump]\nignore-table=APP.t\n[mariadb-dump]\nignore-table=APP.t\nwhere=1=0\nno-data\n",
    "modes": "[client]\ninit-command='SET sql_mode=ANSI_QUOTES, autocommit=0, sql_select_limit=1'\nbinary-as-hex\n[mysql]\ntable\nskip-column-names=0\ncolumn-names\n",
    "a character set": "[client]\ndefault-character-set=latin1\n[mysqldump]\ncompatible=ansi\nskip-opt\nxml\n",
    "an unknown option": "[client]\nno-such-option=1\n",
}


@pytest.mark.parametrize("what", HOMES)
def test_option_files_and_the_environment_change_nothing(
    sandbox: Sandbox, server: MariaDBServer, app: str, tmp_path: Path, monkeypatch, what: str
):
    server.sql(SCHEMA + "CREATE TABLE `ü` (ä VARCHAR(9)) CHARSET utf8mb4; INSERT INTO `ü` VALUES ('🌳'), ('b');", app)
    first = server.fingerprint(app)
    own = engine(server, app)
    with home(tmp_path, monkeypatch, HOMES[what].replace("APP", app)):
        own.check()
        assert warnings(sandbox, take(sandbox, own)) == {}
        server.sql("DROP TABLE t; DELETE FROM `ü`", app)
        sandbox.rollback(1)
    assert server.fingerprint(app) == first


@pytest.mark.parametrize(
    ("tables", "limit"), [(120, "select-limit=100\n"), pytest.param(1200, "", marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_all_of_many_tables_go_back_though_an_option_file_limits_what_is_selected(
    sandbox: Sandbox, server: MariaDBServer, app: str, tmp_path: Path, monkeypatch, tables: int, limit: str
):
    server.sql("".join(f"CREATE TABLE t{n} (x INT) ENGINE=InnoDB; INSERT INTO t{n} VALUES ({n});" for n in range(tables)), app)
    own = engine(server, app)
    with home(tmp_path, monkeypatch, "[client]\nsafe-updates\n" + limit):
        take(sandbox, own)
        server.sql("".join(f"UPDATE t{n} SET x = -1;" for n in range(tables)), app)
        sandbox.rollback(1, take_pre_rollback=False)
    rows = server.sql(" UNION ALL ".join(f"SELECT x FROM t{n}" for n in range(tables)), app).split()
    assert rows == [str(n) for n in range(tables)]
    assert left(server) == []


def test_a_defaults_file_is_the_only_one_that_is_read(sandbox: Sandbox, server: MariaDBServer, app: str, tmp_path: Path, monkeypatch):
    server.sql(SCHEMA, app)
    account(server, app, "ALL PRIVILEGES", tmp_path, "GRANT ALL ON *.* TO limited@localhost WITH GRANT OPTION")
    file = tmp_path / "own.cnf"
    file.write_text(f"[client]\nuser=limited\npassword=secret\nsocket={server.socket}\n")
    own = MariaDB(database=app, defaults_file=str(file))
    with home(tmp_path, monkeypatch, "[client]\npassword=other\n"):
        own.check()
        take(sandbox, own)
        server.sql("DELETE FROM t", app)
        sandbox.rollback(1)
    assert server.sql("SELECT x FROM t", app).split() == ["1", "2"]
    file.write_text(file.read_text() + f"[mysqldump]\nignore-table={app}.t\n")
    assert set(warnings(sandbox, take(sandbox, own))) == {"t"}
    with pytest.raises(CastoreError, match="leaves something out"):
        sandbox.rollback(1)
    with pytest.raises(CastoreError, match="cannot read the defaults-file"):
        msgspec.structs.replace(own, defaults_file=str(tmp_path / "missing")).check()


@contextlib.contextmanager
def setting(server: MariaDBServer, name: str, value: str) -> Iterator[None]:
    before = server.sql(f"SELECT @@GLOBAL.{name}")
    server.sql(f"SET GLOBAL {name} = {value}")
    try:
        yield
    finally:
        server.sql(f"SET GLOBAL {name} = {before}")


def test_helper_tables_have_primary_keys(sandbox: Sandbox, server: MariaDBServer, app: str):
    server.sql("CREATE TABLE t (x INT PRIMARY KEY); INSERT INTO t VALUES (1)", app)
    with setting(server, "innodb_force_primary_key", "1"):
        assert take(sandbox, engine(server, app)).skipped_files == 0
        server.sql("DELETE FROM t", app)
        sandbox.rollback(1)
        assert server.sql("SELECT x FROM t", app) == "1"
        server.sql("SET GLOBAL innodb_force_primary_key = 0; CREATE TABLE bare (x INT); SET GLOBAL innodb_force_primary_key = 1", app)
        assert set(warnings(sandbox, take(sandbox, engine(server, app)))) == {"bare"}


def test_a_server_that_limits_what_is_selected_is_not_dumped(sandbox: Sandbox, server: MariaDBServer, app: str):
    server.sql(SCHEMA, app)
    with setting(server, "sql_select_limit", "1"), pytest.raises(ProgramError, match="SET GLOBAL sql_select_limit"):
        take(sandbox, engine(server, app))
    with setting(server, "system_versioning_asof", "'2001-01-01 00:00:00'"), pytest.raises(CastoreError, match="as of"):
        take(sandbox, engine(server, app))


@pytest.mark.parametrize("kind", ["MyISAM", "Aria", "InnoDB"])
def test_tables_without_transactions_are_of_one_moment(sandbox: Sandbox, server: MariaDBServer, app: str, kind: str):
    server.sql(f"CREATE TABLE a (n INT) ENGINE={kind}; CREATE TABLE b (n INT) ENGINE=MyISAM; INSERT INTO a VALUES (0); INSERT INTO b VALUES (0)", app)
    server.sql("CREATE TABLE aa (x LONGTEXT); INSERT INTO aa SELECT repeat('x', 1000000) FROM seq_1_to_20", app)
    over = threading.Event()
    step = "LOCK TABLES a WRITE, b WRITE; UPDATE a SET n = n + 1; UPDATE b SET n = n + 1; UNLOCK TABLES;" * 20

    def write() -> None:
        while not over.is_set():
            server.sql(step, app)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(2):
            assert take(sandbox, engine(server, app)).skipped_files == 0
            time.sleep(0.05)
    finally:
        over.set()
        writer.join()
    for number in (1, 2):
        sandbox.rollback(number, take_pre_rollback=False)
        assert len(set(server.sql("SELECT n FROM a; SELECT n FROM b", app).split())) == 1


def test_a_lock_that_holds_up_the_dump_is_given_up_and_reported(sandbox: Sandbox, server: MariaDBServer, app: str, monkeypatch):
    monkeypatch.setattr(mariadb_lock, "STUCK_SECONDS", 1)
    server.sql("CREATE TABLE a (n INT) ENGINE=MEMORY; CREATE TABLE b (n INT); INSERT INTO a VALUES (5)", app)
    real = mariadb_lock.OtherTables.watched
    writers: list[threading.Thread] = []

    def watched(self, readinto):
        # Another client begins to wait for the lock before the dump program reads the table.
        writers.append(threading.Thread(target=server.sql, args=("LOCK TABLES a WRITE; DELETE FROM a", app)))
        writers[0].start()
        time.sleep(0.5)
        return real(self, readinto)

    monkeypatch.setattr(mariadb_lock.OtherTables, "watched", watched)
    said = warnings(sandbox, take(sandbox, engine(server, app)))
    writers[0].join()
    assert set(said) in ({"a"}, set())
    assert all("the lock was released" in reason for reason in said.values()), said


def test_tables_that_cannot_be_locked_are_reported(sandbox: Sandbox, server: MariaDBServer, app: str, tmp_path: Path):
    server.sql("CREATE TABLE a (n INT) ENGINE=MyISAM; CREATE TABLE b (n INT) ENGINE=InnoDB", app)
    own = account(server, app, FULL, tmp_path, "GRANT SELECT ON mysql.* TO limited@localhost")
    said = warnings(sandbox, take(sandbox, own))
    assert set(said) == {"a"}
    assert "GRANT RELOAD" in said["a"]


def test_a_pattern_of_a_right_covers_what_the_server_says():
    assert _matches("app\\_1", "app_1")
    assert not _matches("app\\_1", "appx1")
    assert _matches("app_1", "appx1")
    assert _matches("castore\\_%", "castore_new_0123456789ab")
    assert not _matches("castore_", "castore_new")


def connections(server: MariaDBServer) -> int:
    return int(server.sql("SHOW GLOBAL STATUS LIKE 'Connections'").split()[1])


def test_many_questions_are_asked_in_one_session(server: MariaDBServer, app: str):
    before = connections(server)
    with engine(server, app)._client.connected() as client:  # noqa: SLF001 - what the engine asks its server
        assert [client.ask(f"SELECT {number}, 'a\tb\\n'; SELECT 2;") for number in range(20)] == [
            [[str(number), "a\tb\n"], ["2"]] for number in range(20)
        ]
        assert client.ask("SELECT repeat('x', 1000000)")[0] == ["x" * 1000000]
        assert client.ask(f"SELECT '{'y' * 100000}'")[0] == ["y" * 100000]  # too long for the session
    assert connections(server) - before < 5


def test_a_session_goes_on_after_a_question_that_fails_or_is_killed(server: MariaDBServer, app: str):
    with engine(server, app)._client.connected() as client:  # noqa: SLF001 - what the engine asks its server
        (number,) = client.ask("SELECT CONNECTION_ID()")[0]
        with pytest.raises(ProgramError, match="missing"):
            client.ask("SELECT 1; SELECT * FROM missing.missing", quiet=True)
        assert client.ask("SELECT 2") == [["2"]]
        (another,) = client.ask("SELECT CONNECTION_ID()")[0]
        assert another != number
        server.sql(f"KILL {another}")
        assert client.ask("SELECT 3") == [["3"]]


@pytest.fixture(scope="module")
def logging() -> Iterator[MariaDBServer]:
    """A server with a filtered binary log."""
    with MariaDBServer("--log-bin=log", "--server-id=1", "--binlog-ignore-db=ignored") as started:
        yield started


def test_a_database_that_the_binary_log_leaves_out_is_refused(logging: MariaDBServer):
    logging.sql("CREATE DATABASE ignored; CREATE DATABASE logged")
    engine(logging, "logged").preflight()
    with pytest.raises(CastoreError, match=r"filtered \(binlog-ignore-db=ignored\).*replicate-wild-do-table"):
        engine(logging, "ignored").preflight()


def test_an_account_that_may_not_create_triggers_under_a_binary_log_is_refused(logging: MariaDBServer, tmp_path: Path):
    logging.sql("CREATE DATABASE app_log; CREATE TABLE app_log.t (x INT); CREATE TRIGGER app_log.tr BEFORE INSERT ON app_log.t FOR EACH ROW SET NEW.x = 1")
    own = account(logging, "app_log", FULL, tmp_path, "GRANT SELECT ON mysql.* TO limited@localhost; GRANT ALL ON `castore\\_%`.* TO limited@localhost; GRANT SET USER ON *.* TO limited@localhost")
    with pytest.raises(CastoreError, match="trigger tr while the server writes a binary log") as caught:
        own.preflight()
    granted(logging, str(caught.value).replace("or GRANT", "; GRANT"))
    own.preflight()


@pytest.mark.parametrize("definition", [
    "(x INT PRIMARY KEY) ENGINE=InnoDB DATA DIRECTORY='{}'", "(x INT) ENGINE=MyISAM INDEX DIRECTORY='{}'",
    "(x INT) PARTITION BY HASH(x) (PARTITION a DATA DIRECTORY='{}', PARTITION b)",
    "(x INT) PARTITION BY RANGE(x) SUBPARTITION BY HASH(x) (PARTITION a VALUES LESS THAN (9) (SUBPARTITION b, SUBPARTITION c DATA DIRECTORY='{}'))",
])  # fmt: skip
def test_a_table_with_a_directory_of_its_own_is_refused(server: MariaDBServer, app: str, definition: str):
    with tempfile.TemporaryDirectory(prefix="castore-data-", dir=folder_for_servers()) as folder:
        Path(folder).chmod(0o777)
        server.sql("CREATE TABLE other (x INT COMMENT \"DATA DIRECTORY='x'\") COMMENT 'PARTITION'", app)
        engine(server, app).preflight()
        server.sql(f"CREATE TABLE t {definition.format(folder)}", app)
        with pytest.raises(CastoreError, match="the table t has a DATA DIRECTORY"):
            engine(server, app).preflight()
        if "PARTITION" not in definition:
            server.sql("CREATE TABLE copy LIKE t; DROP TABLE t; RENAME TABLE copy TO t", app)
            engine(server, app).preflight()
        server.sql("DROP TABLE t", app)


def test_a_node_of_a_cluster_is_refused(server: MariaDBServer, app: str, monkeypatch: pytest.MonkeyPatch):
    real = Client.ask
    def answers(self, sql, **more):
        return [["wsrep_cluster_size", "3"]] if "wsrep" in sql else real(self, sql, **more)
    monkeypatch.setattr(Client, "ask", answers)
    with pytest.raises(CastoreError, match=r"Galera cluster of 3.*stop the other nodes"):
        engine(server, app).preflight()


def test_values_of_an_enum_that_would_become_its_empty_member_are_reported(sandbox: Sandbox, server: MariaDBServer, app: str):
    server.sql("CREATE TABLE e (x ENUM('a', ''), y ENUM('', 'b'), z ENUM('a,', 'b')); INSERT IGNORE INTO e VALUES ('none', '', 'none'), ('', '', 'b')", app)
    assert list(warnings(sandbox, take(sandbox, engine(server, app)))) == ["e"]
    server.sql("DELETE FROM e WHERE x + 0 = 0", app)
    assert warnings(sandbox, take(sandbox, engine(server, app))) == {}


def test_a_database_on_a_server_that_keeps_names_in_lower_case_goes_back(sandbox: Sandbox):
    with MariaDBServer("--lower-case-table-names=1") as lower:
        lower.sql("CREATE DATABASE Shop; CREATE TABLE Shop.Things (X INT); INSERT INTO Shop.Things VALUES (1)")
        lower.sql("CREATE VIEW V AS SELECT X FROM Things; CREATE TRIGGER T BEFORE INSERT ON Things FOR EACH ROW SET NEW.X = 7; CREATE PROCEDURE P() SELECT 1", "Shop")
        before = lower.fingerprint("shop")
        take(sandbox, engine(lower, "Shop"))
        lower.sql("DROP VIEW V; ALTER TABLE Things ADD Y INT; DROP PROCEDURE P", "Shop")
        sandbox.rollback(1)
        assert lower.fingerprint("shop") == before
        assert left(lower) == []


def test_a_view_over_a_view_whose_definer_was_dropped_is_restored(sandbox: Sandbox, server: MariaDBServer, app: str):
    server.sql("CREATE OR REPLACE USER former@localhost; CREATE TABLE t (x INT); INSERT INTO t VALUES (1)", app)
    server.sql(f"GRANT SELECT ON {app}.* TO former@localhost; CREATE DEFINER = former@localhost VIEW a AS SELECT x FROM t; CREATE VIEW b AS SELECT x FROM a", app)
    server.sql("DROP USER former@localhost")
    views = server.sql("SELECT TABLE_NAME, VIEW_DEFINITION, DEFINER FROM information_schema.VIEWS WHERE TABLE_SCHEMA = database() ORDER BY 1", app)
    take(sandbox, engine(server, app))
    server.sql("DROP VIEW a, b; DELETE FROM t", app)
    sandbox.rollback(1)
    assert server.sql("SELECT TABLE_NAME, VIEW_DEFINITION, DEFINER FROM information_schema.VIEWS WHERE TABLE_SCHEMA = database() ORDER BY 1", app) == views
    assert server.sql("SELECT x FROM t", app) == "1"


@pytest.mark.parametrize("number", [1, 2])
def test_an_account_that_may_have_few_connections_is_enough(sandbox: Sandbox, server: MariaDBServer, app: str, number: int):
    server.sql("CREATE TABLE t (x INT); INSERT INTO t VALUES (1)", app)
    server.sql(f"CREATE USER few@localhost WITH MAX_USER_CONNECTIONS {number}; GRANT ALL ON *.* TO few@localhost WITH GRANT OPTION")
    try:
        own = msgspec.structs.replace(engine(server, app), user="few")
        assert warnings(sandbox, take(sandbox, own)) == {}
        server.sql("DELETE FROM t", app)
        sandbox.rollback(1)
        assert server.sql("SELECT x FROM t", app) == "1"
    finally:
        server.sql("DROP USER few@localhost")


def test_a_client_waits_while_an_earlier_one_still_counts(
    server: MariaDBServer, app: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    server.sql("CREATE OR REPLACE USER few@localhost WITH MAX_USER_CONNECTIONS 1; GRANT ALL ON *.* TO few@localhost")
    server.sql("CREATE TABLE t (x INT)", app)
    own = msgspec.structs.replace(engine(server, app), user="few")
    client = own._client  # noqa: SLF001 - what the engine asks its server

    def read_dump() -> None:
        with client.dumping(["--", app]) as readinto:
            assert readinto(memoryview(bytearray(1 << 16)))
            while readinto(memoryview(bytearray(1 << 16))):
                pass

    def held() -> None:
        with client.holding("SELECT 1;"):
            pass

    ways = [
        lambda: client.query("SELECT 1"),
        lambda: client.feed(app, iter([b"INSERT INTO t VALUES (1);\n", b"INSERT INTO t VALUES (2);\n"])),
        lambda: client.feed(app, iter([b"INSERT INTO t VALUES (3);\n"]), force=True),
        held,
        read_dump,
    ]
    for way in ways:
        with subprocess.Popen(["mariadb", "--no-defaults", f"--socket={server.socket}", "--user=few", "--unbuffered", "-e", "SELECT 1; SELECT SLEEP(1)"], stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            way()
    assert server.sql("SELECT x FROM t ORDER BY x", app).split() == ["1", "2", "3"]
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(connecting, "_FREE_SECONDS", 0.5)
    with subprocess.Popen(["mariadb", "--no-defaults", f"--socket={server.socket}", "--user=few", "--unbuffered", "-e", "SELECT 1; SELECT SLEEP(60)"], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ProgramError, match="max_user_connections"):
            client.quietly("SELECT 1")
        other.kill()
    server.sql("DROP USER few@localhost")
