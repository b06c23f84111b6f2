"""Random SQLite databases go back and forth: settings, schema and every row are as they were.

CASTORE_TEST_DATABASES=2000 takes that many instead of a few, CASTORE_TEST_FIRST_DATABASE=N begins with seed N:
CASTORE_TEST_DATABASES=2000 tools/test tests/integration/test_random_sqlite.py --timeout=0
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from castore.engines.sqlite import SQLite
from castore.engines.sqlite_check import look
from castore.services.sources import EngineSource
from tests.support.random_sqlite import RandomDatabase, contents, run
from tests.support.stores import Sandbox

FIRST = int(os.environ.get("CASTORE_TEST_FIRST_DATABASE", "1"))
SEEDS = range(FIRST, FIRST + int(os.environ.get("CASTORE_TEST_DATABASES", "12")))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_database_goes_back_and_forth(tmp_path: Path, seed: int):
    made = RandomDatabase(seed)
    path = tmp_path / "app" / "app.db"
    path.parent.mkdir()
    run(path, made.create())
    first = contents(path)
    sandbox = Sandbox(tmp_path / "sandbox")
    sandbox.snapshot("s", {"db": EngineSource("sqlite", SQLite(path=str(path)))})
    run(path, made.change())
    second = contents(path)
    done = sandbox.rollback(1)
    assert contents(path) == first
    assert done.pre_rollback is not None
    sandbox.rollback(done.pre_rollback.number)
    assert contents(path) == second
    run(path, ["PRAGMA journal_mode = DELETE"])
    look(str(path), "it", thorough=True)
    assert [name for name in os.listdir(path.parent) if "castore" in name] == []
