"""`castore config init` writes a castore.toml for what is on the machine, which `config check` accepts."""

from __future__ import annotations

import os
import tomllib

import pytest

from castore.services import detect
from castore.services.config import load
from tests.support.mariadb import MariaDBServer


def test_databases_of_a_postgresql_server_are_found_and_can_be_snapshotted(castore, home, postgres):
    for name in ("shop one", "shop-two"):
        postgres.createdb(name)
    # Of what else the machine has, this test wants nothing.
    env = {"PGHOST": postgres.socket_folder, "PGUSER": "postgres", "CASTORE_STORE": str(home / "store")}
    try:
        castore("init", env=env)
        castore("config", "init", home / "castore.toml", env=env)
        document = tomllib.loads((home / "castore.toml").read_text())
        service = next(name for name in document["service"] if name.startswith("postgresql"))
        parts = document["service"][service]["parts"]
        assert {part["database"] for part in parts.values()} >= {"shop one", "shop-two"}
        assert document["store"] == str(home / "store")
        checked = castore("config", "check", env=env, expect=None).stdout
        assert f"{service}: shop-one: ok" in checked
        castore("snapshot", service, env=env)
    finally:
        for name in ("shop one", "shop-two"):
            postgres.dropdb(name)


def test_databases_of_a_mariadb_server_are_found(castore, home):
    with MariaDBServer() as server:
        server.sql("CREATE DATABASE shop")
        env = {"MYSQL_UNIX_PORT": server.socket}
        castore("config", "init", home / "castore.toml", env=env)
        parts = tomllib.loads((home / "castore.toml").read_text())["service"]["mariadb"]["parts"]
        assert parts["shop"] == {"engine": "mariadb", "database": "shop", "socket": server.socket}
        assert "performance_schema" not in parts


def test_a_server_that_cannot_be_asked_is_left_as_comments(castore, home, postgres):
    env = {"PGHOST": postgres.socket_folder, "PGUSER": "nobody-of-this-name"}
    printed = castore("config", "init", "-", env=env).stdout
    assert "# Its databases could not be listed: " in printed
    assert '# database = "mydatabase"' in printed
    assert os.listdir(home) == []


def test_what_exists_is_not_overwritten(castore, home):
    (home / "castore.toml").write_text("# mine")
    assert "is not overwritten" in castore("config", "init", "castore.toml", expect=2).stderr
    (home / "link").symlink_to(home / "none")
    castore("config", "init", "link", expect=2)
    assert (home / "castore.toml").read_text() == "# mine"


def test_the_file_has_a_default_place_where_castore_finds_it(castore, home):
    env = {"CASTORE_CONFIG": str(home / "new" / "castore.toml")}
    castore("config", "init", env=env)
    assert (home / "new" / "castore.toml").stat().st_mode & 0o777 == 0o600
    castore("config", "show", env=env)


@pytest.mark.parametrize("name", ['qu"ote', "back\\slash", "a.b", "\u00fc", "1", "--", "a b", "a-b"])
def test_any_name_makes_a_file_that_is_read(tmp_path, name):
    found = [detect.Found("s", "why", detect._parts([name, "a b", "a-b"], engine="postgresql"))]  # noqa: SLF001 - as if a server had them
    path = tmp_path / "castore.toml"
    path.write_text(detect.document('/st"ore', found))
    parts = load(str(path), programs=False).service["s"].parts
    assert {part.source.database for part in parts.values()} >= {"a b", "a-b"}


def test_nothing_found_is_an_example(tmp_path):
    path = tmp_path / "castore.toml"
    path.write_text(detect.document(None, []))
    assert load(str(path)).service == {}
    assert "# [service.example.parts.files]" in path.read_text()
