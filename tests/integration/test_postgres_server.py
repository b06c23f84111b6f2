"""The PostgreSQL server of the tests does what the tests that use it rely on."""

from __future__ import annotations

import subprocess


def test_a_dump_is_the_same_each_time_and_restores(postgres):
    postgres.createdb("bench")
    try:
        postgres.pgbench_init(1)
        before = postgres.fingerprint()
        dump = subprocess.run(postgres.dump_argv("bench"), capture_output=True, check=True).stdout
        assert subprocess.run(postgres.dump_argv("bench"), capture_output=True, check=True).stdout == dump
        postgres.pgbench_run(100)
        assert postgres.fingerprint() != before
        subprocess.run(postgres.restore_argv("bench"), input=dump, capture_output=True, check=True)
        assert postgres.fingerprint() == before
    finally:
        postgres.dropdb("bench")
    assert postgres.psql("select 1 + 1") == "2"
