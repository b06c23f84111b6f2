"""Random databases go back and forth: everything in the catalogue and every row is as it was.

CASTORE_TEST_DATABASES=2000 takes that many instead of a few, CASTORE_TEST_FIRST_DATABASE=N begins with seed N:
CASTORE_TEST_DATABASES=2000 tools/test tests/integration/test_random_postgresql.py --timeout=0
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from castore.engines.postgresql.engine import PostgreSQL
from castore.services.sources import EngineSource
from tests.support.postgres import Postgres
from tests.support.random_postgres import ROLES, RandomDatabase, contents, differing, run
from tests.support.stores import Sandbox

FIRST = int(os.environ.get("CASTORE_TEST_FIRST_DATABASE", "1"))
SEEDS = range(FIRST, FIRST + int(os.environ.get("CASTORE_TEST_DATABASES", "3")))


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as found:
        found.psql(ROLES)
        yield found


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_database_goes_back_and_forth(server: Postgres, tmp_path: Path, seed: int):
    made = RandomDatabase(seed, "generated")
    encoding = made.random.choice(("UTF8", "UTF8", "UTF8", "SQL_ASCII"))
    server.psql(f"CREATE DATABASE generated TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
    try:
        run(server, "generated", made.create())
        sandbox = Sandbox(tmp_path / "sandbox")
        engine = PostgreSQL(database="generated", host=server.socket_folder, user="postgres", program_path=server.programs)
        first = contents(server, "generated")
        sandbox.snapshot("s", {"db": EngineSource("postgresql", engine)})
        run(server, "generated", made.change())
        second = contents(server, "generated")
        done = sandbox.rollback(1)
        assert done.problems == []
        found = differing(first, contents(server, "generated"))
        assert not found, "\n".join(found)
        assert done.pre_rollback is not None
        sandbox.rollback(done.pre_rollback.number)
        found = differing(second, contents(server, "generated"))
        assert not found, "\n".join(found)
        assert server.psql("SELECT datname FROM pg_database WHERE datname LIKE 'castore%'") == ""
    finally:
        server.psql("DROP DATABASE IF EXISTS generated WITH (FORCE)")
