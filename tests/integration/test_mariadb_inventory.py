"""MariaDB: one object of each kind is removed or changed in a dump, a copy, or the swapped database: castore says so."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import pytest

from castore.engines.base import Contents
from castore.engines.mariadb.engine import MariaDB
from castore.engines.mariadb.swap import Swap
from castore.errors import CastoreError
from tests.integration.test_mariadb_cases import engine, state, take, warnings
from tests.support.mariadb import MariaDBServer
from tests.support.mariadb_fixtures import sandbox, server
from tests.support.stores import Sandbox

__all__ = ["sandbox", "server"]

SCHEMA = """
CREATE TABLE parent (id INT PRIMARY KEY); INSERT INTO parent VALUES (1);
CREATE SEQUENCE numbers START WITH 9;
CREATE TABLE t (id INT PRIMARY KEY, x INT DEFAULT 5, p INT, KEY by_x (x), CONSTRAINT fk FOREIGN KEY (p) REFERENCES parent (id), CONSTRAINT small CHECK (x < 90));
INSERT INTO t VALUES (1, 2, 1), (2, 3, NULL), (3, 4, NULL);
CREATE VIEW v AS SELECT x FROM t; CREATE FUNCTION f() RETURNS INT DETERMINISTIC RETURN 1; CREATE PROCEDURE p() SELECT 1;
CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW SET NEW.x = 1; CREATE EVENT ev ON SCHEDULE EVERY 1 YEAR STARTS '2037-01-01' DO SELECT 1;
SET sql_mode = ORACLE;
CREATE PACKAGE pack AS FUNCTION g RETURN INT; END;
"""
TABLES = {
    "a table": (rb"DROP TABLE IF EXISTS `parent`;.*?UNLOCK|CREATE TABLE `parent` \(.*?;\n", b"", "parent"),
    "a column": (rb"  `x` int\(11\) DEFAULT 5,\n  ", b"  `x` bigint(20) DEFAULT 5,\n  ", "t"),
    "a default": (rb"DEFAULT 5", b"DEFAULT 6", "t"),
    "an index": (rb"  KEY `by_x` \(`x`\),\n", b"", "t"),
    "a foreign key": (rb"  CONSTRAINT `fk` [^\n]*\n", b"", "t"),
    "a check": (rb",\n  CONSTRAINT `small` [^\n]*", b"", "t"),
    "a row": (rb"\(2,3,NULL\),\n", b"", "t"),
    "a sequence": (rb"CREATE SEQUENCE `numbers`[^\n]*\nDO SETVAL[^\n]*\n", b"", "numbers"),
}  # fmt: skip
PROGRAMS = {kind: (rb'\n-- castore \w+: \{"type":"program","kind":"%b"[^\n]*' % kind.encode(), b"", kind) for kind in ("view", "function", "procedure", "trigger", "event", "package")}
STORED = {
    **TABLES,
    **PROGRAMS,
    "where a sequence continues": (rb"DO SETVAL\(`numbers`, 9", b"DO SETVAL(`numbers`, 10", "numbers"),
    "the text of a program": (rb'"name":"v","text":"[^"]*"', b'"name":"v","text":"Q1JFQVRFIFZJRVcgdiBBUyBTRUxFQ1QgMQ=="', "view v"),
    "the record of a row count": (rb'"engine":"InnoDB","rows":3', b'"engine":"InnoDB","rows":4', "t"),
    "its end": (rb'\n-- castore \w+: \{"type":"end".*', b"\n", "incomplete"),
    "all after the tables": (rb"\n-- castore \w+: views.*", b"\n", "incomplete"),
}


@pytest.fixture(scope="module")
def app(server: MariaDBServer) -> str:
    name = f"app_{random.randrange(10**9)}"
    server.sql(f"CREATE DATABASE {name}")
    server.sql(SCHEMA.replace("END;\n", "").replace("CREATE PACKAGE pack AS FUNCTION g RETURN INT; ", "DELIMITER //\nCREATE PACKAGE pack AS FUNCTION g RETURN INT; END//\n"), name)
    return name


@pytest.fixture(scope="module")
def dump(server: MariaDBServer, app: str) -> bytes:
    data, room = b"", memoryview(bytearray(1 << 20))
    with engine(server, app).stable_dump("secret") as stream:
        while count := stream.readinto(room):
            data += room[:count]
    return data


@pytest.mark.parametrize("what", STORED)
def test_a_change_of_the_stored_dump_ends_the_staging(server: MariaDBServer, app: str, dump: bytes, what: str):
    pattern, replacement, name = STORED[what]
    changed, number = re.subn(pattern, replacement.replace(b"\\", b"\\\\"), dump, count=1, flags=re.DOTALL)
    assert number == 1
    own, contents = engine(server, app), Contents(lambda: [changed], lambda: [changed])
    before = state(server, app)
    swapping = own.prepare()
    with pytest.raises(CastoreError, match=name):
        own.stage(swapping, contents)
    own.revert(swapping, contents, swapped=False)
    assert state(server, app) == before
    assert server.databases() == [app]


@pytest.mark.parametrize("what", TABLES)
def test_a_change_by_the_dump_program_is_reported(sandbox: Sandbox, server: MariaDBServer, app: str, tmp_path: Path, what: str):
    pattern, replacement, name = TABLES[what]
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "mariadb").symlink_to(shutil.which("mariadb") or "")
    program = folder / "mariadb-dump"
    program.write_text(
        f"#!/usr/bin/env python3\nimport re, subprocess, sys\n"
        f"done = subprocess.run(['{shutil.which('mariadb-dump')}', *sys.argv[1:]], stdout=subprocess.PIPE)\n"
        f"sys.stdout.buffer.write(re.sub({pattern!r}, {replacement!r}, done.stdout, count=1, flags=re.DOTALL))\nsys.exit(done.returncode)\n"
    )
    program.chmod(0o755)
    # A table that was changed just now may be changed again.
    changed = f"SELECT max(greatest(CREATE_TIME, coalesce(UPDATE_TIME, CREATE_TIME))) FROM information_schema.TABLES WHERE TABLE_SCHEMA = '{app}'"
    server.sql(f"DO sleep(greatest(0, 2.1 - timestampdiff(MICROSECOND, ({changed}), now(6)) / 1000000))")
    said = warnings(sandbox, take(sandbox, engine(server, app, program_path=str(folder))))
    assert set(said) == {name}


SWAPPED = {
    "a trigger": "DROP TRIGGER tr",
    "a view": "CREATE OR REPLACE VIEW v AS SELECT id FROM t",
    "a function": "DROP FUNCTION f; CREATE FUNCTION f() RETURNS INT DETERMINISTIC RETURN 2",
    "an event": "ALTER EVENT ev DISABLE",
    "a program more": "CREATE PROCEDURE q() SELECT 1",
}


@pytest.mark.parametrize("what", SWAPPED)
def test_a_difference_after_the_swap_is_undone(server: MariaDBServer, app: str, dump: bytes, what: str, monkeypatch):
    own, contents = engine(server, app), Contents(lambda: [dump], lambda: [dump])
    before = state(server, app)
    swapping = own.prepare()
    own.stage(swapping, contents)
    with monkeypatch.context() as patch:
        patch.setattr(Swap, "grant", lambda _self: server.sql(SWAPPED[what], app))
        with pytest.raises(CastoreError, match=r"missing|differs|not expected"):
            own.swap(swapping, contents)
    own.revert(swapping, contents, swapped=True)
    assert state(server, app) == before
    assert server.databases() == [app]


def test_a_table_that_appears_during_the_swap_is_found(server: MariaDBServer, app: str, dump: bytes, monkeypatch):
    own, contents = engine(server, app), Contents(lambda: [dump], lambda: [dump])
    swapping = own.prepare()
    own.stage(swapping, contents)
    with monkeypatch.context() as patch:
        patch.setattr(Swap, "grant", lambda _self: server.sql("CREATE TABLE sudden (x INT)", app))
        with pytest.raises(CastoreError, match="sudden"):
            own.swap(swapping, contents)
    own.revert(swapping, contents, swapped=True)
    assert MariaDB(database=app, socket=server.socket, user="root").exists()
