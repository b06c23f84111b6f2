"""Fixtures of the tests of MariaDB, to be imported and named in __all__."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mariadb import MariaDBServer
from tests.support.stores import Sandbox


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDBServer]:
    """Yield a server for the tests of a file."""
    with MariaDBServer() as started:
        yield started


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    """Return a store, and the machine that uses it."""
    return Sandbox(tmp_path / "sandbox")


@pytest.fixture
def app(server: MariaDBServer) -> Iterator[str]:
    """Yield the name of an empty database; all databases are removed afterwards."""
    name = f"app_{random.randrange(10**9)}"
    server.sql(f"CREATE DATABASE {name}")
    yield name
    for database in server.databases():
        server.sql(f"DROP DATABASE `{database}`")
