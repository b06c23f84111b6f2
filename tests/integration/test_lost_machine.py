"""A new machine: only the store, the identity and castore.toml are left."""

from __future__ import annotations

import glob
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from castore.engines.mariadb import accounts as mariadb_accounts
from tests.support.mariadb import MariaDBServer
from tests.support.postgres import Postgres

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(autouse=True)
def own_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have psql found in PostgreSQL's own directory: Debian's in /usr/bin is a script, which takes 25 ms to start."""
    found = glob.glob("/usr/lib/postgresql/*/bin")
    monkeypatch.setenv("PATH", os.pathsep.join([*sorted(found, reverse=True)[:1], os.environ["PATH"]]))


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
    castore("key", "adopt", "--replace")
    assert "is sound" in castore("drill", "app").stdout
    assert not top.exists()
    done = castore("rollback", "app", "--to", "latest")
    assert f"created the directory {top}/data" in done.stderr
    assert (top / "app/files/a").read_text() == "first"
    with sqlite3.connect(database) as live:
        assert live.execute("SELECT x FROM t").fetchall() == [(7,)]
    live.close()
    assert database.stat().st_mode & 0o7777 == 0o640
    assert (top / "data").stat().st_mode & 0o7777 == 0o750
    if root:
        assert {(path.stat().st_uid, path.stat().st_gid) for path in (top / "data", database)} == {(12, 13)}


def test_what_a_new_machine_lacks_is_not_the_state_of_its_configured_revision(home: Path, castore: Run, tmp_path: Path) -> None:
    top = tmp_path / "srv"
    top.mkdir()
    database = top / "app.db"
    with sqlite3.connect(database) as live:
        live.execute("CREATE TABLE t (x)")
    live.close()
    revision = tmp_path / "revision"
    revision.symlink_to("r1")
    (home / "castore.toml").write_text(
        f'store = "{tmp_path}/store"\n[service.app]\nfollow = "restore"\nrevision = {{ link = "{revision}" }}\n'
        f'[service.app.parts.files]\nengine = "tree"\npath = "{top}"\nexclude = ["/app.db*"]\n'
        f'[service.app.parts.db]\nengine = "sqlite"\npath = "{database}"\n'
    )
    castore("init", tmp_path / "store")
    castore("snapshot", "app")
    lose(home)
    shutil.rmtree(top)
    revision.unlink()
    revision.symlink_to("r2")
    castore("key", "adopt", "--replace")
    castore("rollback", "app", "--to", "latest")
    assert database.exists()
    # Nothing of r2 is stored: the state follows the deployment, and is not replaced by an empty one.
    castore("follow", "app")
    assert database.exists()


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
        castore("key", "adopt", "--replace")
        assert "is sound" in castore("drill", "app").stdout
        done = castore("rollback", "app", "--to", "latest")
        assert "created the role owner" in done.stderr
        assert fresh.psql("SELECT x FROM t", "app") == "7"
        assert fresh.psql("SELECT tableowner FROM pg_tables WHERE tablename = 't'", "app") == "owner"
        assert fresh.psql("SELECT rolcanlogin, rolcreatedb FROM pg_roles WHERE rolname = 'owner'") == "t|t"
        assert fresh.psql("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'app'") == "owner"


CLUSTER = """
CREATE ROLE owner LOGIN CREATEDB PASSWORD 'of the owner'; CREATE ROLE team; CREATE ROLE app LOGIN PASSWORD 'of the app';
GRANT team TO app; CREATE ROLE boss SUPERUSER CREATEROLE; GRANT boss TO team; CREATE DATABASE app OWNER owner TEMPLATE template0;
"""


def test_roles_come_back_with_passwords_and_memberships_but_no_power(home: Path, castore: Run, tmp_path: Path) -> None:
    config = home / "castore.toml"
    hashes = "SELECT string_agg(rolname || rolpassword, ' ' ORDER BY rolname) FROM pg_authid WHERE rolname IN ('app', 'owner')"

    def describe(server: Postgres) -> None:
        config.write_text(
            f'store = "{tmp_path}/store"\n[service.app.parts.db]\nengine = "postgresql"\ndatabase = "app"\n'
            f'user = "postgres"\nhost = "{server.socket_folder}"\n'
        )

    with Postgres() as lost:
        describe(lost)
        for statement in CLUSTER.split(";")[:-1]:
            lost.psql(statement)
        lost.psql("CREATE TABLE t (x int); GRANT SELECT ON t TO team; CREATE TABLE b (x int); GRANT SELECT ON b TO boss", "app")
        before = lost.psql(hashes)
        castore("init", tmp_path / "store")
        castore("snapshot", "app")
    lose(home)
    with Postgres() as fresh:
        describe(fresh)
        castore("key", "adopt", "--replace")
        planned = castore("rollback", "app", "--to", "latest", "--dry-run").stderr
        for made in ("the database app", "the role app", "the role owner", "the role team"):
            assert f"would create db: {made}\n" in planned
        assert fresh.psql("SELECT count(*) FROM pg_roles WHERE rolname IN ('app', 'owner', 'team')") == "0"
        run = castore("rollback", "app", "--to", "latest", "--json")
        assert set(planned.replace("castore: would create ", "").splitlines()) >= set(json.loads(run.stdout)["creations"])
        assert "db: the database app" in json.loads(run.stdout)["creations"]
        done = run.stderr
        assert "db: created the database app\n" in done
        assert "created the role app, with the recorded password hash" in done
        assert fresh.psql(hashes) == before
        assert fresh.psql("SELECT pg_has_role('app', 'team', 'MEMBER')") == "t"
        assert fresh.psql("SELECT bool_or(rolsuper OR rolcreaterole) FROM pg_roles WHERE rolname IN ('app', 'boss', 'owner', 'team')") == "f"


def test_a_failed_rollback_leaves_no_roles(home: Path, castore: Run, tmp_path: Path) -> None:
    with Postgres() as server:
        text = (
            f'store = "{tmp_path}/store"\n[service.app.parts.db]\nengine = "postgresql"\ndatabase = "app"\n'
            f'user = "postgres"\nhost = "{server.socket_folder}"\n'
        )
        (home / "castore.toml").write_text(text)
        server.psql("CREATE ROLE owner LOGIN PASSWORD 'x'")
        server.psql("CREATE DATABASE app OWNER owner")
        castore("init", tmp_path / "store")
        castore("snapshot", "app")
        server.psql("DROP DATABASE app")
        server.psql("DROP ROLE owner")
        (home / "castore.toml").write_text(text.replace("[service.app.parts.db]", '[service.app]\nhealth = ["false"]\nhealth-timeout = 0.1\n[service.app.parts.db]'))
        castore("rollback", "app", "--to", "latest", expect=4)
        assert server.psql("SELECT count(*) FROM pg_roles WHERE rolname = 'owner'") == "0"


def test_a_cluster_comes_back_on_an_empty_server(home: Path, castore: Run, tmp_path: Path) -> None:
    config = home / "castore.toml"

    def describe(server: Postgres) -> None:
        config.write_text(
            f'store = "{tmp_path}/store"\n[service.pg.parts.db]\nengine = "postgresql"\ncluster = true\n'
            f'user = "postgres"\nhost = "{server.socket_folder}"\n'
        )

    with Postgres() as lost:
        describe(lost)
        for statement in CLUSTER.split(";")[:-1]:
            lost.psql(statement)
        lost.psql("CREATE TABLE t (x int); INSERT INTO t VALUES (7); ALTER TABLE t OWNER TO team", "app")
        castore("init", tmp_path / "store")
        castore("snapshot", "pg")
    lose(home)
    with Postgres() as fresh:
        describe(fresh)
        castore("key", "adopt", "--replace")
        planned = castore("rollback", "pg", "--to", "latest", "--dry-run").stderr
        assert "would create db.app: the database app" in planned
        assert "would create db: the role boss" in planned
        done = castore("rollback", "pg", "--to", "latest").stderr
        assert "db.app: created the database app" in done
        assert "db: created the role boss" in done
        assert fresh.psql("SELECT x FROM t", "app") == "7"
        assert fresh.psql("SELECT tableowner FROM pg_tables WHERE tablename = 't'", "app") == "team"
        assert fresh.psql("SELECT rolsuper FROM pg_roles WHERE rolname = 'boss'") == "t"
        assert fresh.psql("SELECT pg_has_role('app', 'team', 'MEMBER')") == "t"
        castore("snapshot", "pg")
        castore("drill", "pg")


ACCOUNTS = """
CREATE DATABASE app_x CHARACTER SET latin1 COLLATE latin1_german2_ci; CREATE TABLE app_x.t (x INT, y INT); INSERT INTO app_x.t VALUES (7, 8);
CREATE PROCEDURE app_x.p() SELECT 1;
CREATE USER 'u''q'@'localhost' IDENTIFIED BY 'pw'; GRANT ALL ON app_x.* TO 'u''q'@'localhost' WITH GRANT OPTION;
CREATE ROLE r; GRANT SELECT ON app_x.t TO r; CREATE USER m@localhost IDENTIFIED BY 'm'; GRANT r TO m@localhost; SET DEFAULT ROLE r FOR m@localhost;
CREATE USER v@'%' IDENTIFIED BY 'x' REQUIRE SSL ACCOUNT LOCK; GRANT SELECT (x) ON app_x.t TO v@'%'; GRANT UPDATE ON `app%`.* TO v@'%';
CREATE USER s@localhost IDENTIFIED VIA unix_socket; GRANT EXECUTE ON PROCEDURE app_x.p TO s@localhost; CREATE USER other@localhost IDENTIFIED BY 'o';
GRANT SELECT ON *.* TO r;
"""


def grants(server: MariaDBServer) -> str:
    """Return what the users of the database may do, and how they log in."""
    who = ("'u''q'@'localhost'", "m@localhost", "v@'%'", "s@localhost", "r")
    shown = [server.sql(f"SHOW GRANTS FOR {one}") for one in who]
    shown += [server.sql(f"SHOW CREATE USER {one}") for one in who[:-1]]
    return "\n".join(line for one in shown for line in sorted(one.splitlines()))


def test_a_mariadb_database_and_its_users_come_back_on_an_empty_server(home: Path, castore: Run, tmp_path: Path) -> None:
    config = home / "castore.toml"

    def describe(server: MariaDBServer) -> None:
        config.write_text(
            f'store = "{tmp_path}/store"\n[service.app.parts.db]\nengine = "mariadb"\ndatabase = "app_x"\n'
            f'user = "root"\nsocket = "{server.socket}"\n'
        )

    with MariaDBServer() as lost:
        describe(lost)
        lost.sql(ACCOUNTS)
        # What only the whole server's administrator may give does not come back.
        before = grants(lost).replace("GRANT SELECT ON *.* TO `r`", "GRANT USAGE ON *.* TO `r`").replace("`app%`", "`app\\_x`").replace("`app_x`.*", "`app\\_x`.*")
        castore("init", tmp_path / "store")
        castore("snapshot", "app")
        castore("snapshot", "app")
    lose(home)
    with MariaDBServer() as fresh:
        describe(fresh)
        fresh.sql("CREATE USER v@'%' IDENTIFIED BY 'x' REQUIRE SSL ACCOUNT LOCK")
        castore("key", "adopt", "--replace")
        planned = castore("rollback", "app", "--to", "latest", "--dry-run").stderr
        for made in ("the database app_x", "the role r", "the user m@localhost", "the user u'q@localhost"):
            assert f"would create db: {made}\n" in planned
        assert "is sound" in castore("drill", "app").stdout
        assert "v@%" not in planned
        assert "other" not in planned
        done = castore("rollback", "app", "--to", "latest").stderr
        assert "created the database app_x" in done
        assert "created the user m@localhost, with the recorded password hash" in done
        assert "created the user s@localhost, who logs in by unix_socket" in done
        assert fresh.sql("SELECT * FROM app_x.t") == "7\t8"
        assert "latin1_german2_ci" in fresh.sql("SHOW CREATE DATABASE app_x")
        assert sorted(grants(fresh).splitlines()) == sorted(before.splitlines())


def test_users_of_a_hostile_dump_get_nothing_but_its_database() -> None:
    script: list[str] = []

    def query(sql: str) -> list[list[str]]:
        script.append(sql)
        return [["admin", ""]] if "mysql.user" in sql else []

    record = {
        "accounts": {
            "accounts": [
                {"user": "a`; DROP DATABASE mysql; --", "host": "%", "plugin": "mysql_native_password", "secret": b"x' OR 1".hex(), "roles": ["admin"]},
                {"user": "b", "host": "%", "plugin": "x; SHUTDOWN", "secret": "00", "require": "; SHUTDOWN"},
            ],
            "rights": [
                ["b", "%", "SUPER", False], ["b", "%", "SELECT ON *.* TO b; --", True], ["b", "%", "SELECT", False, "", "x", ""],
                ["b", "%", "SELECT", False, "DATABASE mysql.* TO b; --", "x", ""], ["b", "%", "SELECT", False, "TABLE", "x` TO b; SHUTDOWN; --", "c) ON *.*"],
            ],
        }
    }
    recorded = mariadb_accounts.decode(record)
    assert recorded is not None
    created, lines = mariadb_accounts.create(query, mariadb_accounts.missing(query, recorded))
    assert all("locked" in line for line in lines)
    left = mariadb_accounts.grant(query, "a%p", recorded, created)
    assert any("was not made a member of admin" in line for line in left)
    assert script[1:] == [
        "CREATE USER `a``; DROP DATABASE mysql; --`@`%` ACCOUNT LOCK",
        "CREATE USER `b`@`%` ACCOUNT LOCK",
        "GRANT SELECT ON `a\\%p`.* TO `b`@`%`;\nGRANT SELECT (`c) ON *.*`) ON TABLE `a%p`.`x`` TO b; SHUTDOWN; --` TO `b`@`%`",
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_directories_above_parts_get_their_acls_and_no_others(home: Path, castore: Run, tmp_path: Path) -> None:
    top = tmp_path / "srv"
    (top / "shared" / "tree").mkdir(parents=True)
    (top / "data").mkdir()
    sqlite3.connect(top / "data/x.db").execute("CREATE TABLE t (a)").connection.close()
    subprocess.run(["setfacl", "-m", "u:daemon:rwx,d:u:daemon:rx", top / "shared"], check=True)
    subprocess.run(["setfacl", "-m", "u:daemon:rw", top / "data/x.db"], check=True)
    (home / "castore.toml").write_text(
        f'store = "{tmp_path}/store"\n[service.app.parts.t]\nengine = "tree"\npath = "{top}/shared/tree"\n'
        f'[service.app.parts.db]\nengine = "sqlite"\npath = "{top}/data/x.db"\n'
    )

    def acls() -> str:
        shown = [top / "shared", top / "data", top / "data/x.db"]
        return subprocess.run(["getfacl", "-p", "-n", *shown], check=True, capture_output=True, text=True).stdout

    before = acls()
    castore("init", tmp_path / "store")
    castore("snapshot", "app")
    shutil.rmtree(top)
    subprocess.run(["setfacl", "-m", "d:u:games:rwx", tmp_path], check=True)
    castore("rollback", "app", "--to", "latest")
    assert acls() == before


def test_a_file_or_a_dead_link_in_the_place_of_a_directory_is_named(home: Path, castore: Run, tmp_path: Path) -> None:
    top = tmp_path / "srv"
    (top / "app").mkdir(parents=True)
    (top / "app" / "file").write_text("stored")
    (home / "castore.toml").write_text(
        f'store = "{tmp_path}/store"\n[service.app.parts.f]\nengine = "file"\npath = "{top}/app/file"\n'
    )
    castore("init", tmp_path / "store")
    castore("snapshot", "app")
    shutil.rmtree(top)
    top.write_text("a file")
    assert f"{top}, of a part: a file has that name" in castore("rollback", "app", "--to", "latest", expect=1).stderr
    top.unlink()
    top.symlink_to(tmp_path / "nowhere")
    assert "leads nowhere" in castore("rollback", "app", "--to", "latest", expect=1).stderr
    (tmp_path / "nowhere").mkdir()
    castore("rollback", "app", "--to", "latest")
    assert (top / "app" / "file").read_text() == "stored"
