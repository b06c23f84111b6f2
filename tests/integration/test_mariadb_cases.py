# ruff: noqa: ISC004 - scripts of many lines
"""MariaDB: databases as they are found in the world, which a rollback restores or refuses, and never changes."""

from __future__ import annotations

import pytest

from castore.engines.mariadb.engine import MariaDB
from castore.errors import CastoreError, ProgramError
from castore.model.generation import Generation
from castore.services.config import Service
from castore.services.details import read_details
from castore.services.sources import EngineSource
from tests.support.mariadb import MariaDBServer
from tests.support.mariadb_fixtures import app, sandbox, server
from tests.support.stores import Sandbox

__all__ = ["app", "sandbox", "server"]


def engine(server: MariaDBServer, name: str, **more) -> MariaDB:
    return MariaDB(database=name, socket=server.socket, user="root", **more)


def take(sandbox: Sandbox, own: MariaDB) -> Generation:
    return sandbox.snapshot("s", {"db": EngineSource("mariadb", own)})


def warnings(sandbox: Sandbox, taken: Generation) -> dict[str, str]:
    with sandbox.open() as store:
        return {path.decode(): reason for _, path, reason in read_details(store, taken).warnings}


def state(server: MariaDBServer, name: str) -> str:
    """Return everything that the catalogue and SHOW CREATE say of a database, and every row."""
    columns = "SQL_MODE, CHARACTER_SET_CLIENT, COLLATION_CONNECTION, DATABASE_COLLATION"
    statements = [
        f"SELECT {what} FROM information_schema.{table} WHERE {schema} = '{name}' ORDER BY 1, 2"
        for table, schema, what in (
            ("TRIGGERS", "TRIGGER_SCHEMA", f"TRIGGER_NAME, ACTION_ORDER, ACTION_TIMING, EVENT_MANIPULATION, {columns}"),
            ("ROUTINES", "ROUTINE_SCHEMA", f"ROUTINE_TYPE, ROUTINE_NAME, DTD_IDENTIFIER, ROUTINE_COMMENT, SECURITY_TYPE, {columns}"),
            ("EVENTS", "EVENT_SCHEMA", f"EVENT_NAME, STARTS, ENDS, EXECUTE_AT, TIME_ZONE, ON_COMPLETION, EVENT_COMMENT, {columns}"),
            ("VIEWS", "TABLE_SCHEMA", "TABLE_NAME, VIEW_DEFINITION, CHECK_OPTION, DEFINER, SECURITY_TYPE, ALGORITHM, CHARACTER_SET_CLIENT"),
        )
    ]
    for sequence in server.sql(
        f"SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA='{name}' AND TABLE_TYPE='SEQUENCE'"
    ).splitlines():
        statements += [f"SHOW CREATE SEQUENCE {sequence}", f"SELECT * FROM {sequence}"]
    return server.fingerprint(name) + "\n" + server.sql(";\n".join(statements), name)


def check_round_trip(sandbox: Sandbox, server: MariaDBServer, app: str, migration: str) -> None:
    """Take a generation, migrate, roll back with a failing health check, roll back, and undo that."""
    own = engine(server, app)
    first = state(server, app)
    taken = take(sandbox, own)
    assert warnings(sandbox, taken) == {}
    server.sql(migration, app)
    second = state(server, app)
    assert second != first
    with pytest.raises(ProgramError, match="health"):
        sandbox.rollback(taken.number, settings=Service(health=("false",), health_timeout=0))
    assert state(server, app) == second
    done = sandbox.rollback(taken.number)
    assert done.problems == []
    assert state(server, app) == first
    assert done.pre_rollback is not None
    sandbox.rollback(done.pre_rollback.number)
    assert state(server, app) == second
    assert [one for one in server.databases() if one.startswith("castore")] == []


CASES = {
    "programs of clients with other character sets": (
        "CREATE TABLE t (x INT); CREATE TABLE u (x INT); SET NAMES latin1;"
        "CREATE TRIGGER tr BEFORE INSERT ON u FOR EACH ROW SET @x = 'ö'; RENAME TABLE u TO `u_ö`;"
        "CREATE FUNCTION `f_ö`(`ö` INT) RETURNS INT COMMENT 'ö it''s \\\\ \\n' RETURN 1;"
        "CREATE PROCEDURE `p_ö`() COMMENT 'ö' SELECT 'ö' COMMENT;"
        "CREATE EVENT `e_ö` ON SCHEDULE EVERY 5 YEAR STARTS '2036-01-01' DO SELECT 'ö';"
        "CREATE EVENT plain ON SCHEDULE EVERY '1:2' HOUR_MINUTE ENDS '2037-01-01' DISABLE COMMENT ' DO ö' DO SELECT 1;"
        "SET NAMES cp1251, sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'; CREATE FUNCTION g() RETURNS INT COMMENT 'ö\\' RETURN 1;"
        "CREATE EVENT \"e_ö\"\"\" ON SCHEDULE AT '2037-01-02 03:04:05' ON COMPLETION PRESERVE COMMENT 'ö\\' DO SELECT 'ö';"
        "SET sql_mode = ORACLE;\nDELIMITER //\nCREATE PACKAGE k COMMENT 'ö' AS FUNCTION f RETURN INT; END//\nDELIMITER ;\n",
        "DROP EVENT plain; DROP PROCEDURE `p_Ã¶`; INSERT INTO t VALUES (4)",
    ),
    "a trigger that names its schema": (
        "CREATE TABLE t (id INT PRIMARY KEY, x INT); CREATE TABLE log (x INT); INSERT INTO t VALUES (1, 1);"
        "CREATE TRIGGER `{app}`.`tr` BEFORE INSERT ON `{app}`.`t` FOR EACH ROW INSERT INTO `{app}`.`log` VALUES (NEW.x);",
        "DROP TRIGGER tr; ALTER TABLE t ADD COLUMN y INT; INSERT INTO log VALUES (4)",
    ),
    "triggers in an order": (
        "CREATE TABLE t (x INT);"
        "CREATE TRIGGER c BEFORE INSERT ON t FOR EACH ROW SET NEW.x = NEW.x + 1;"
        "CREATE TRIGGER a BEFORE INSERT ON t FOR EACH ROW FOLLOWS c SET NEW.x = NEW.x * 2;"
        "CREATE TRIGGER b BEFORE INSERT ON t FOR EACH ROW PRECEDES c SET NEW.x = NEW.x * 3;",
        "DROP TRIGGER c; INSERT INTO t VALUES (1)",
    ),
    "a default that takes the next value of a sequence": (
        "CREATE SEQUENCE seq START WITH 5 INCREMENT BY 3; CREATE SEQUENCE other CYCLE MAXVALUE 9 NOCACHE;"
        "CREATE TABLE t (id BIGINT DEFAULT NEXTVAL(seq), n BIGINT DEFAULT (NEXTVAL(`{app}`.other) + 1), s TEXT DEFAULT 'nextval(`{app}`.`seq`)');"
        "INSERT INTO t (s) VALUES (DEFAULT), ('b');",
        "DROP TABLE t; DROP SEQUENCE seq; CREATE TABLE t (id INT)",
    ),
    "a view with a check option over a later view": (
        "CREATE TABLE t (x INT); CREATE VIEW z AS SELECT x FROM t WHERE x > 1; CREATE VIEW a AS SELECT x FROM z WHERE x < 9 WITH CASCADED CHECK OPTION;"
        "CREATE ALGORITHM=MERGE SQL SECURITY INVOKER VIEW `m ``m` AS SELECT a.x FROM a JOIN z WITH LOCAL CHECK OPTION;",
        "CREATE OR REPLACE VIEW z AS SELECT x FROM t WHERE x > 2; INSERT INTO t VALUES (4)",
    ),
    "rows wider than strict mode allows": (
        "SET innodb_strict_mode = 0; CREATE TABLE wide (" + ", ".join(f"c{n} VARCHAR(200)" for n in range(60)) + ") CHARSET latin1 ROW_FORMAT=COMPACT;"
        "INSERT INTO wide (c1) VALUES ('x');",
        "DELETE FROM wide",
    ),
    "comments and ends of lines in programs": (
        "DELIMITER //\nCREATE PROCEDURE p()\r\nBEGIN\r\n  -- a comment; with 'a quote\r\n  # another\r\n  /* and one */ SELECT ';;$$', 1; /*! SELECT 2 */;\r\nEND//\n"
        "CREATE FUNCTION f() RETURNS TEXT DETERMINISTIC COMMENT 'it''s; a \\\\ comment' RETURN 'a\\\\n\\\\\\\\'; -- end//\n//\nDELIMITER ;\n",
        "DROP PROCEDURE p; CREATE TABLE t (x INT)",
    ),
    "programs of many modes": (
        "CREATE TABLE t (x INT, s VARCHAR(50));\nSET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT';\n"
        'CREATE TRIGGER "q" BEFORE INSERT ON t FOR EACH ROW SET NEW.s = \'a\\\' || NEW.s;\n'
        "SET sql_mode = 'ORACLE';\nDELIMITER //\nCREATE PACKAGE pack AS FUNCTION f RETURN INT; END//\n"
        "CREATE PACKAGE BODY pack AS FUNCTION f RETURN INT AS BEGIN RETURN 5; END; END//\nDELIMITER ;\n"
        "SET NAMES latin1; SET sql_mode = ''; CREATE VIEW v AS SELECT concat(s, 'x') AS c FROM t;",
        "SET sql_mode = ORACLE; DROP PACKAGE pack; DROP TRIGGER q",
    ),
    "events": (
        "SET time_zone = '+05:00'; CREATE EVENT later ON SCHEDULE AT '2037-05-06 07:08:09' ON COMPLETION PRESERVE COMMENT 'c' DO SELECT 1;"
        "CREATE EVENT off ON SCHEDULE EVERY '1:30' HOUR_MINUTE STARTS '2036-01-01 00:00:00' ENDS '2037-01-01 00:00:00' DISABLE DO SELECT 2;"
        "CREATE EVENT replica ON SCHEDULE EVERY 3 DAY STARTS '2036-01-01' DISABLE ON SLAVE DO SELECT 3;",
        "DROP EVENT later; ALTER EVENT off ENABLE; CREATE EVENT more ON SCHEDULE EVERY 1 YEAR STARTS '2037-01-01' DO SELECT 4",
    ),
    "columns of every kind": (
        "CREATE TABLE t (id INT NOT NULL AUTO_INCREMENT, b BIT(9) DEFAULT b'1', e ENUM('it''s', 'a,b', 'ü', '') DEFAULT '', st SET('a', 'b''c'),"
        "z INT(6) UNSIGNED ZEROFILL, d DATE, dt DATETIME(3), ts TIMESTAMP NOT NULL DEFAULT current_timestamp() ON UPDATE current_timestamp(), y YEAR, g GEOMETRY NOT NULL, j JSON, "
        "i6 INET6, u UUID, f FLOAT, dd DOUBLE, de DECIMAL(30,10), tb TINYBLOB, c CHAR(0), hidden INT INVISIBLE DEFAULT 3, "
        "virt INT AS (id * 2) VIRTUAL, kept VARCHAR(40) AS (concat(e, 'x\\ny')) STORED, l3 VARCHAR(9) CHARACTER SET latin1, m4 TEXT, n3 TEXT CHARACTER SET utf8mb3, "
        "CONSTRAINT pos CHECK (z >= 0), KEY k (d, dt), UNIQUE `u ``k` (z), FULLTEXT ft (m4), SPATIAL sp (g), PRIMARY KEY (id)) COMMENT='it''s\\n`odd`';"
        "SET sql_mode = 'NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES';"
        "INSERT INTO t (id, b, e, st, z, d, dt, y, g, j, i6, u, f, dd, de, tb, c, hidden, l3, m4, n3) VALUES (0, 511, 'ü', 'a,b''c', 42, '0000-00-00', '2001-02-31 00:00:00', 0, ST_GeomFromText('POINT(1 2)'), '{{\"a\": \"\\\\u00e4\"}}', '::1', '123e4567-e89b-12d3-a456-426655440000', 1e-30, -1.5e300, 12345678901234567890.0123456789, x'00ff0a0d1a275c', '', NULL, x'e4', '🌳\\n''\\\\', 'ü');"
        "INSERT INTO t (id, g) VALUES (7, ST_GeomFromText('POLYGON((0 0,1 0,1 1,0 0))'));"
        "ALTER TABLE t AUTO_INCREMENT = 99;",
        "DELETE FROM t WHERE id = 0; ALTER TABLE t DROP COLUMN hidden",
    ),
    "storage engines": (
        "CREATE TABLE m (x INT, KEY (x)) ENGINE=MyISAM; CREATE TABLE a (x INT) ENGINE=Aria TRANSACTIONAL=0;"
        "CREATE TABLE c (x INT NOT NULL) ENGINE=CSV; CREATE TABLE m2 LIKE m; CREATE TABLE both_m (x INT, KEY (x)) ENGINE=MRG_MyISAM UNION=(m, m2) INSERT_METHOD=LAST;"
        "INSERT INTO m VALUES (1), (2); INSERT INTO m2 VALUES (3); INSERT INTO a VALUES (4); INSERT INTO c VALUES (6);",
        "DELETE FROM m; INSERT INTO both_m VALUES (9); DROP TABLE c",
    ),
    "tables in memory": (
        "CREATE TABLE h (x INT) ENGINE=MEMORY; INSERT INTO h VALUES (5); CREATE TABLE i (x INT); INSERT INTO i VALUES (6)",
        "DELETE FROM h; DROP TABLE i",
    ),
    "partitions and history": (
        "CREATE TABLE p (x INT PRIMARY KEY) PARTITION BY RANGE (x) (PARTITION `a b` VALUES LESS THAN (10), PARTITION rest VALUES LESS THAN MAXVALUE);"
        "CREATE TABLE hp (x INT, k INT) PARTITION BY HASH (k) PARTITIONS 4; INSERT INTO p VALUES (1), (20); INSERT INTO hp VALUES (1, 2);"
        "CREATE TABLE v (x INT) WITH SYSTEM VERSIONING; INSERT INTO v VALUES (1); UPDATE v SET x = 2; DELETE FROM v;"
        "CREATE TABLE vp (x INT) WITH SYSTEM VERSIONING PARTITION BY SYSTEM_TIME (PARTITION old HISTORY, PARTITION now CURRENT); INSERT INTO vp VALUES (1); UPDATE vp SET x = 2;"
        "CREATE TABLE app_time (s DATE, e DATE, PERIOD FOR validity (s, e)); INSERT INTO app_time VALUES ('2001-01-01', '2002-01-01');",
        "INSERT INTO p VALUES (30); UPDATE v SET x = 9; INSERT INTO v VALUES (5); ALTER TABLE hp ADD COLUMN z INT",
    ),
    "foreign keys that are violated and lead around": (
        "SET foreign_key_checks = 0; CREATE TABLE a (id INT PRIMARY KEY, b INT, CONSTRAINT fk_named FOREIGN KEY (b) REFERENCES b (id) ON DELETE SET NULL ON UPDATE CASCADE);"
        "CREATE TABLE b (id INT PRIMARY KEY, a INT, FOREIGN KEY (a) REFERENCES a (id)); CREATE TABLE me (id INT PRIMARY KEY, up INT, FOREIGN KEY (up) REFERENCES me (id));"
        "CREATE TABLE orphan (x INT, FOREIGN KEY (x) REFERENCES missing (id));"
        "CREATE TABLE parent_myisam (id INT PRIMARY KEY) ENGINE=MyISAM; CREATE TABLE parent_aria (id INT PRIMARY KEY) ENGINE=Aria;"
        "CREATE TABLE parent_parts (id INT PRIMARY KEY) PARTITION BY HASH (id) PARTITIONS 3;"
        "CREATE TABLE child (x INT, FOREIGN KEY (x) REFERENCES parent_myisam (id), FOREIGN KEY (x) REFERENCES parent_aria (id), FOREIGN KEY (x) REFERENCES parent_parts (id));"
        "INSERT INTO a VALUES (1, 99); INSERT INTO b VALUES (5, 1); INSERT INTO me VALUES (2, 1);",
        "SET foreign_key_checks = 0; DROP TABLE b; DELETE FROM me",
    ),
}


@pytest.mark.parametrize("what", CASES)
def test_it_goes_back_and_forth(sandbox: Sandbox, server: MariaDBServer, app: str, what: str):
    schema, migration = CASES[what]
    server.sql(schema.replace("{{", "{").replace("}}", "}").replace("{app}", app), app)
    check_round_trip(sandbox, server, app, migration)


def test_values_that_the_dump_program_rounds_are_reported(sandbox: Sandbox, server: MariaDBServer, app: str):
    server.sql("CREATE TABLE t (f FLOAT, d DOUBLE, g FLOAT(9,2)); INSERT INTO t VALUES (16777216, 0.1e0 + 0.2e0, 1234567.89), (0.5, 1, 1)", app)
    said = warnings(sandbox, take(sandbox, engine(server, app)))
    assert list(said) == ["t"]
    assert said["t"].startswith("1 value of f, of type FLOAT")
    server.sql("DELETE FROM t WHERE f > 1", app)
    assert warnings(sandbox, take(sandbox, engine(server, app))) == {}


def test_texts_that_their_character_set_does_not_define_are_reported(sandbox: Sandbox, server: MariaDBServer, app: str):
    server.sql(
        "SET NAMES binary; SET sql_mode = ''; CREATE TABLE t (a VARCHAR(9) CHARACTER SET ascii, g TEXT CHARACTER SET greek, "
        "l VARCHAR(9) CHARACTER SET latin1, u VARCHAR(9) CHARACTER SET utf8mb4, b VARBINARY(9));"
        "INSERT INTO t VALUES (x'c3bc', x'e1', x'81', x'c3bc', x'ff'), ('a', x'aa', x'e4', 'u', x'fe'), ('?', '?', '?', '?', '?')", app,
    )
    said = sandbox.snapshot("s", {"db": EngineSource("mariadb", engine(server, app))})
    with sandbox.open() as store:
        reasons = [reason for _, path, reason in read_details(store, said).warnings if path == b"t"]
    assert sorted(reason.split(" with bytes")[0] for reason in reasons) == ["1 value of a", "1 value of g"]


def test_programs_of_users_that_were_dropped_come_back(sandbox: Sandbox, server: MariaDBServer, app: str):
    server.sql("CREATE OR REPLACE USER author; GRANT ALL ON *.* TO author; CREATE TABLE t (x INT); INSERT INTO t VALUES (1)", app)
    server.sql(
        "CREATE DEFINER=author VIEW v AS SELECT t.x FROM t;"
        "CREATE DEFINER=author TRIGGER tr BEFORE INSERT ON t FOR EACH ROW SET NEW.x = 1; CREATE DEFINER=author PROCEDURE p() SELECT 1;"
        "CREATE DEFINER=author EVENT ev ON SCHEDULE EVERY 1 YEAR STARTS '2037-01-01' DO SELECT 1",
        app,
    )
    first = state(server, app)
    take(sandbox, engine(server, app))
    server.sql("DROP USER author; DROP VIEW v; DELETE FROM t", app)
    with pytest.raises(ProgramError, match="health"):
        sandbox.rollback(1, settings=Service(health=("false",), health_timeout=0))
    done = sandbox.rollback(1)
    assert done.problems == []
    server.sql("CREATE USER author; GRANT ALL ON *.* TO author")
    assert state(server, app) == first
    server.sql("DROP USER author")


def test_an_event_whose_time_has_passed_is_reported(sandbox: Sandbox, server: MariaDBServer, app: str):
    server.sql("SET GLOBAL event_scheduler = OFF; CREATE TABLE t (x INT)", app)
    try:
        at = "ON SCHEDULE AT current_timestamp + INTERVAL 4 SECOND"
        server.sql(f"CREATE EVENT soon {at} DO SELECT 1; CREATE EVENT kept {at} ON COMPLETION PRESERVE DO SELECT 1", app)
        assert warnings(sandbox, take(sandbox, engine(server, app))) == {}
        server.sql("INSERT INTO t VALUES (1); DO sleep(5)", app)
        said: list[str] = []
        sandbox.rollback(1, say=said.append)
        assert server.sql("SELECT count(*) FROM t", app) == "0"
        assert len([line for line in said if "no time left" in line]) == 2
    finally:
        server.sql("SET GLOBAL event_scheduler = ON")


def test_a_program_whose_text_is_in_two_character_sets_is_reported_and_nothing_is_touched(sandbox: Sandbox, server: MariaDBServer, app: str):
    own = engine(server, app)
    server.sql("CREATE TABLE t (x INT); SET NAMES latin1; CREATE FUNCTION f() RETURNS INT RETURN 1; CREATE EVENT e ON SCHEDULE EVERY 1 YEAR DO DO 1", app)
    take(sandbox, own)
    server.sql("ALTER FUNCTION f COMMENT '日本'", app)
    assert "SET NAMES utf8mb4" in warnings(sandbox, take(sandbox, own))["f"]
    server.sql("SET NAMES latin1; DROP FUNCTION f; CREATE TRIGGER f AFTER INSERT ON t FOR EACH ROW DO 'ö'; SET NAMES utf8mb4; RENAME TABLE t TO 日本", app)
    assert "SET NAMES utf8mb4" in warnings(sandbox, take(sandbox, own))["f"]
    before = state(server, app)
    for number in (1, 2, 3):
        with pytest.raises(CastoreError, match=r"(function|trigger) f: its name, comment or table .* nothing was changed"):
            sandbox.rollback(number, take_pre_rollback=False)
        assert state(server, app) == before
    assert [one for one in server.databases() if one.startswith("castore")] == []
