"""A new machine: only the store, the identity and castore.toml are left."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.support.postgres import Postgres

Run = Callable[..., subprocess.CompletedProcess]


def lose(home: Path) -> None:
    """Delete everything that castore keeps on the machine but the identity and castore.toml."""
    for name in (".cache", ".local"):
        shutil.rmtree(home / name, ignore_errors=True)
    for writer in (home / ".config/castore").glob("*.writer"):
        writer.unlink()


def test_a_tree_and_a_sqlite_database_come_back_on_an_empty_machine(home: Path, castore: Run, tmp_path: Path) -> None:
    top = tmp_path / "srv"
    (top / "app/files").mkdir(parents=True)
    (top / "app/files/a").write_text("first")
    (top / "data").mkdir()
    database = top / "data/app.db"
    with sqlite3.connect(database) as live:
        live.execute("CREATE TABLE t (x)")
        live.execute("INSERT INTO t VALUES (7)")
    live.close()
    (top / "revision").symlink_to("r1")
    database.chmod(0o640)
    (top / "data").chmod(0o750)
    root = os.geteuid() == 0
    if root:
        for path in (top / "data", database):
            os.chown(path, 12, 13)
    config = home / "castore.toml"
    config.write_text(
        f'store = "{tmp_path}/store"\n[service.app]\nrevision = {{ link = "{top}/revision" }}\n'
        f'[service.app.parts.files]\nengine = "tree"\npath = "{top}/app/files"\n'
        f'[service.app.parts.db]\nengine = "sqlite"\npath = "{database}"\n'
    )
    castore("init", tmp_path / "store")
    castore("snapshot", "app")
    shutil.rmtree(top)
    lose(home)
    castore("key", "adopt")
    done = castore("rollback", "app", "--to", "latest")
    assert f"made the directory {top}/data" in done.stderr
    assert (top / "app/files/a").read_text() == "first"
    with sqlite3.connect(database) as live:
        assert live.execute("SELECT x FROM t").fetchall() == [(7,)]
    live.close()
    assert database.stat().st_mode & 0o7777 == 0o640
    assert (top / "data").stat().st_mode & 0o7777 == 0o750
    if root:
        assert {(path.stat().st_uid, path.stat().st_gid) for path in (top / "data", database)} == {(12, 13)}


def test_a_postgresql_database_and_its_roles_come_back_in_a_new_cluster(home: Path, castore: Run, tmp_path: Path) -> None:
    config = home / "castore.toml"

    def describe(server: Postgres) -> None:
        config.write_text(
            f'store = "{tmp_path}/store"\n[service.app.parts.db]\nengine = "postgresql"\ndatabase = "app"\n'
            f'user = "postgres"\nhost = "{server.socket_folder}"\n'
        )

    with Postgres() as lost:
        describe(lost)
        lost.psql("CREATE ROLE owner LOGIN CREATEDB; CREATE ROLE reader; CREATE DATABASE app OWNER owner TEMPLATE template0")
        lost.psql("SET ROLE owner; CREATE TABLE t (x int); INSERT INTO t VALUES (7); GRANT SELECT ON t TO reader", "app")
        castore("init", tmp_path / "store")
        castore("snapshot", "app")
    lose(home)
    with Postgres() as fresh:
        describe(fresh)
        castore("key", "adopt")
        done = castore("rollback", "app", "--to", "latest")
        assert "made the role owner" in done.stderr
        assert fresh.psql("SELECT x FROM t", "app") == "7"
        assert fresh.psql("SELECT tableowner FROM pg_tables WHERE tablename = 't'", "app") == "owner"
        assert fresh.psql("SELECT rolcanlogin, rolcreatedb FROM pg_roles WHERE rolname = 'owner'") == "t|t"
        assert fresh.psql("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'app'") == "owner"
