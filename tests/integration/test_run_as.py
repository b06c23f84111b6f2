"""`run-as`: engines and hooks run their programs as another user, which peer authentication needs."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.data_dir_templates import folder_for_servers
from tests.support.documents import block
from tests.support.mariadb import MariaDBServer
from tests.support.postgres import Postgres

Run = Callable[..., subprocess.CompletedProcess]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may run programs as another user")


@pytest.fixture(scope="module")
def peer() -> Iterator[Postgres]:
    with Postgres() as server:
        server.require_peer()
        yield server


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that every user may write to."""
    folder = Path(tempfile.mkdtemp(prefix="castore-shared-", dir=folder_for_servers()))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def shop(castore: Run, home: Path, peer: Postgres) -> Iterator[Postgres]:
    peer.createdb("shop")
    peer.psql("CREATE TABLE t (x int); INSERT INTO t VALUES (1)", "shop")
    castore("init", home / "store")
    yield peer
    peer.dropdb("shop")


def describe(home: Path, server: Postgres, service: str = "", part: str = 'run-as = "postgres"', what: str = 'database = "shop"') -> None:
    (home / "castore.toml").write_text(
        f'store = "{home}/store"\n[service.shop]\n{service}\n[service.shop.parts.db]\nengine = "postgresql"\n'
        f'{what}\nhost = "{server.socket_folder}"\n{part}\n'
    )


def rows(server: Postgres) -> str:
    return server.psql("SELECT string_agg(x::text, ' ' ORDER BY x) FROM t", "shop")


def hook(path: Path) -> str:
    return json.dumps(["sh", "-c", f"echo $(id -un) $HOME $USER in $(pwd) >>{path}"])


def test_a_database_with_peer_authentication_is_snapshotted_rolled_back_and_drilled(
    castore: Run, home: Path, shop: Postgres, shared: Path
) -> None:
    describe(home, shop, part="")
    assert "shop: db:" in castore("config", "check", expect=2).stdout
    castore("snapshot", "shop", expect=4)
    describe(home, shop)
    assert "shop: db: ok" in castore("config", "check").stdout
    castore("snapshot", "shop", "--revision", "r1")
    shop.psql("INSERT INTO t VALUES (2)", "shop")
    castore("snapshot", "shop", "--revision", "r2")
    castore("rollback", "shop", "--to", "r1", "--dry-run")
    castore("rollback", "shop", "--to", "r1")
    assert rows(shop) == "1"
    castore("rollback", "--undo", "shop")
    assert rows(shop) == "1 2"
    assert "is sound" in castore("drill", "shop").stdout
    # Without castore.toml the recorded user is used.
    (home / "castore.toml").write_text(f'store = "{home}/store"\n')
    castore("rollback", "shop", "--to", "r1")
    assert rows(shop) == "1"


def test_every_client_runs_as_the_user_and_without_the_settings_of_the_caller(
    castore: Run, home: Path, shop: Postgres, shared: Path
) -> None:
    for name in ("psql", "pg_dump"):
        found = shutil.which(name)
        line = "$(id -un) $PGOPTIONS $PGHOST $PGPASSWORD $PSQLRC $LANG $HOME ${0##*/} $1"
        (shared / name).write_text(f'#!/bin/sh\necho "{line}" >>{shared}/seen\nexec {found} "$@"\n')
        (shared / name).chmod(0o755)
    env = {"PGOPTIONS": "-c search_path=hostile", "PGHOST": "/nowhere", "PGPASSWORD": "wrong", "PSQLRC": "/x", "LANG": "de_DE.UTF-8"}
    describe(home, shop, part=f'run-as = "postgres"\nprogram-path = "{shared}"')
    castore("config", "check", env=env)
    castore("snapshot", "shop", "--revision", "r1", env=env)
    shop.psql("INSERT INTO t VALUES (2)", "shop")
    castore("rollback", "shop", "--to", "r1", env=env)
    assert rows(shop) == "1"
    seen = (shared / "seen").read_text().splitlines()
    user = pwd.getpwnam("postgres")
    for line in seen:
        assert line.startswith("postgres "), line
        assert not [word for word in ("hostile", "/nowhere", "wrong", "de_DE") if word in line], line
        assert user.pw_dir in line, line
    assert any(line.endswith("pg_dump --help") for line in seen)
    assert any(line.endswith("psql --help=commands") for line in seen)


def test_config_check_shows_the_error_of_a_client_once(castore: Run, home: Path, shop: Postgres) -> None:
    describe(home, shop, part="")
    done = castore("config", "check", expect=2)
    assert (done.stdout + done.stderr).count("FATAL: ") == 1


def test_hooks_and_parts_get_the_user_of_their_service(castore: Run, home: Path, shop: Postgres, shared: Path) -> None:
    names = ("before", "after", "stop", "start", "health", "drill-check")
    describe(home, shop, 'run-as = "postgres"\n' + "\n".join(f"{name} = {hook(shared / name)}" for name in names), part="")
    castore("snapshot", "shop", "--revision", "r1", "--config", home / "castore.toml", cwd="/root")
    shop.psql("INSERT INTO t VALUES (2)", "shop")
    assert "(as postgres)" in castore("rollback", "shop", "--to", "r1", "--dry-run").stdout
    castore("rollback", "shop", "--to", "r1")
    assert rows(shop) == "1"
    castore("drill", "shop")
    user = pwd.getpwnam("postgres")
    for name in names:
        assert set((shared / name).read_text().splitlines()) == {f"postgres {user.pw_dir} postgres in /"}, name


def test_a_part_has_a_user_of_its_own(castore: Run, home: Path, shop: Postgres, shared: Path) -> None:
    service = f'run-as = "nobody"\nbefore = {hook(shared / "service")}'
    describe(home, shop, service, f'run-as = "postgres"\nbefore = {hook(shared / "part")}')
    castore("snapshot", "shop")
    assert (shared / "service").read_text().startswith("nobody ")
    assert (shared / "part").read_text().startswith("postgres ")


def test_a_rollback_that_was_killed_is_recovered(castore: Run, home: Path, shop: Postgres, shared: Path) -> None:
    started = shared / "started"
    start = ["sh", "-c", f"id -un >>{shared}/users; test -e {started} && exit 0; touch {started}; exec sleep 100"]
    describe(home, shop, f'run-as = "postgres"\nstop = ["true"]\nstart = {json.dumps(start)}', part="")
    castore("snapshot", "shop", "--revision", "r1")
    shop.psql("INSERT INTO t VALUES (2)", "shop")
    process = subprocess.Popen([sys.executable, "-m", "castore", "rollback", "shop", "--to", "r1"], cwd=home)
    while not started.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert rows(shop) == "1"
    castore("snapshot", "shop", expect=3)
    # What it needs is in the journal, whatever castore.toml says now.
    (home / "castore.toml").write_text(f'store = "{home}/store"\n')
    castore("recover", "shop")
    assert rows(shop) == "1 2"
    assert set((shared / "users").read_text().split()) == {"postgres"}


def test_a_cluster_with_peer_authentication(castore: Run, home: Path, shop: Postgres) -> None:
    part = block("configuration", "run-as")
    (home / "castore.toml").write_text(f'store = "{home}/store"\n{part}host = "{shop.socket_folder}"\n')
    castore("snapshot", "shop", "--revision", "r1")
    shop.psql("INSERT INTO t VALUES (2)", "shop")
    castore("rollback", "shop", "--to", "r1")
    assert rows(shop) == "1"
    castore("drill", "shop")


def test_the_check_of_a_drill_reaches_what_was_restored(castore: Run, home: Path, shop: Postgres, tmp_path: Path) -> None:
    (home / "file").write_text("content")
    check = 'test $(psql -XAtqh $CASTORE_DRILL_DB_HOST -U postgres drill -c "SELECT x FROM t") = 1 && grep -q content $CASTORE_DRILL_FILE_PATH && test $(id -un) = nobody'
    describe(home, shop, f'run-as = "nobody"\ndrill-check = {json.dumps(["sh", "-c", check])}')
    with open(home / "castore.toml", "a") as file:
        file.write(f'[service.shop.parts.file]\nengine = "file"\npath = "{home}/file"\n')
    castore("snapshot", "shop")
    castore("drill", "shop")


def test_config_init_names_the_user_where_peer_authentication_needs_it(castore: Run, home: Path, shop: Postgres) -> None:
    env = {"PGHOST": shop.socket_folder, "CASTORE_STORE": str(home / "store")}
    castore("config", "init", home / "castore.toml", env=env)
    document = tomllib.loads((home / "castore.toml").read_text())
    service = next(name for name in document["service"] if name.startswith("postgresql"))
    assert document["service"][service]["parts"]["shop"]["run-as"] == "postgres"
    castore("snapshot", service, env=env)


def command(home: Path, script: str, more: str = "") -> None:
    (home / "castore.toml").write_text(
        f'store = "{home}/store"\n[service.s.parts.db]\nengine = "command"\ndump = {json.dumps(["sh", "-c", script])}\n{more}'
    )


def test_a_dump_program_has_the_groups_and_may_open_its_own_output(castore: Run, home: Path) -> None:
    castore("init", home / "store")
    command(home, "echo $(id -un) $(id -G) >/dev/stdout; cat /dev/stdin >/dev/stdout", 'run-as = "postgres"\n')
    castore("snapshot", "s")
    name, *groups = castore("cat", "s@latest:db").stdout.split()
    user = pwd.getpwnam("postgres")
    assert name == "postgres"
    assert set(map(int, groups)) == set(os.getgrouplist("postgres", user.pw_gid))


def test_a_restore_program_is_run_as_the_user_and_may_open_its_input(castore: Run, home: Path, shared: Path) -> None:
    castore("init", home / "store")
    restore = json.dumps(["sh", "-c", f"id -un >{shared}/user; cat /dev/stdin >{shared}/state"])
    (shared / "state").write_text("1")
    (shared / "state").chmod(0o666)
    command(home, f"cat {shared}/state", f'restore = {restore}\nrun-as = "nobody"\n')
    castore("snapshot", "s", "--revision", "r1")
    (shared / "state").write_text("2")
    castore("rollback", "s", "--to", "r1")
    assert (shared / "state").read_text() == "1"
    assert (shared / "user").read_text() == "nobody\n"


def test_a_program_has_not_the_terminal_of_castore_and_ends_with_it(castore: Run, home: Path, shared: Path) -> None:
    castore("init", home / "store")
    command(home, f"ps -o sid= -p $$ >{shared}/session; sleep 1000 & echo $$ $! >{shared}/pids; wait", 'run-as = "nobody"\n')
    process = subprocess.Popen([sys.executable, "-m", "castore", "snapshot", "s"], cwd=home, stderr=subprocess.DEVNULL)
    while not (shared / "pids").exists() or not (shared / "pids").read_text():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    shell, sleep = (shared / "pids").read_text().split()
    assert (shared / "session").read_text().strip() == shell
    end = time.monotonic() + 20
    while os.path.exists(f"/proc/{sleep}") and "State:\tZ" not in Path(f"/proc/{sleep}/status").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_failure_names_the_user(castore: Run, home: Path) -> None:
    castore("init", home / "store")
    command(home, "exit 7", 'run-as = "nobody"\n')
    assert "sh (as nobody) failed: it exited with status 7" in castore("snapshot", "s", expect=4).stderr


def test_an_unknown_user_stops_its_service_only(castore: Run, home: Path) -> None:
    castore("init", home / "store")
    command(home, "echo 1", f'run-as = "nobody-of-this-name"\n[service.t.parts.files]\nengine = "tree"\npath = "{home}/tree"\n')
    (home / "tree").mkdir()
    failed = castore("snapshot", "s", expect=2).stderr
    assert "service.s.parts.db.run-as: cannot run programs as 'nobody-of-this-name': there is no such user" in failed
    castore("snapshot", "t")
    assert "nobody-of-this-name" in castore("config", "check", expect=2).stdout


@pytest.mark.parametrize("engine", ['engine = "tree"\npath = "/etc"', 'engine = "file"\npath = "/a"'])
def test_a_user_without_a_program_is_a_mistake(castore: Run, home: Path, engine: str) -> None:
    (home / "castore.toml").write_text(f'[service.s.parts.p]\n{engine}\nrun-as = "nobody"\n')
    failed = castore("config", "show", expect=2).stderr
    assert "service.s.parts.p.run-as: the engine" in failed
    assert "runs no program" in failed


def test_another_user_than_root_cannot_run_programs_as_a_third(home: Path) -> None:
    program = """if True:
        import os, sys
        from castore.errors import CastoreError
        from castore.process.users import account_of
        os.setuid(65534)
        assert account_of("nobody") is None
        try:
            account_of("postgres")
        except CastoreError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "castore runs as 'nobody', and only root may do that" in done.stdout
    assert "sudo -u postgres castore" in done.stdout


def test_a_mariadb_client_is_run_as_the_user(castore: Run, home: Path) -> None:
    with MariaDBServer() as server:
        server.sql("CREATE USER mysql@localhost IDENTIFIED VIA unix_socket; GRANT ALL ON *.* TO mysql@localhost WITH GRANT OPTION")
        server.sql("CREATE DATABASE shop; CREATE TABLE shop.t (x INT); INSERT INTO shop.t VALUES (1)")
        described = (
            f'store = "{home}/store"\n[service.shop.parts.db]\nengine = "mariadb"\ndatabase = "shop"\n'
            f'socket = "{server.socket}"\nuser = "mysql"\n'
        )
        castore("init", home / "store")
        (home / "castore.toml").write_text(described)
        castore("snapshot", "shop", expect=4)
        (home / "castore.toml").write_text(f'{described}run-as = "mysql"\n')
        castore("config", "check")
        castore("snapshot", "shop", "--revision", "r1")
        server.sql("INSERT INTO shop.t VALUES (2)")
        # The client reads a password from castore's memory.
        server.sql("ALTER USER mysql@localhost IDENTIFIED BY 'a \"b\\\\c'")
        (home / "password").write_text('a "b\\c\n')
        (home / "password").chmod(0o600)
        (home / "castore.toml").write_text(f'{described}run-as = "mysql"\npassword = {{ file = "{home}/password" }}\n')
        castore("rollback", "shop", "--to", "r1")
        assert server.sql("SELECT x FROM shop.t") == "1"
        castore("rollback", "--undo", "shop")
        assert server.sql("SELECT x FROM shop.t") == "1\n2"
