"""The administrator's environment does not reach the clients of databases."""

from __future__ import annotations

import pytest

from castore.process.environment import client_environment
from castore.process.runners import output_of

SETTINGS = ("PGOPTIONS", "PGHOST", "PGTZ", "PSQLRC", "MYSQL_PWD", "MARIADB_PLUGIN_DIR", "LDAPRC", "REDISCLI_AUTH", "LC_NUMERIC", "LANG", "TZ")


def test_settings_of_clients_and_the_locale_are_removed(monkeypatch: pytest.MonkeyPatch):
    for name in SETTINGS:
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("OTHER", "kept")
    seen = dict(line.split("=", 1) for line in output_of(["env"], env=client_environment(PGAPPNAME="castore")).decode().splitlines())
    assert not set(SETTINGS) & set(seen)
    assert (seen["LC_ALL"], seen["PGAPPNAME"], seen["OTHER"]) == ("C", "castore", "kept")
