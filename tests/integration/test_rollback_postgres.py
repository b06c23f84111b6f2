"""A service with a real PostgreSQL: two nights, an upgrade, and the way back."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkout import ROOT
from tests.support.postgres import Postgres
from tests.support.tree_walker import Tree, compare, walk

Run = Callable[..., subprocess.CompletedProcess]

RESCUE = ROOT / "tools" / "rescue.py"
DATABASE = "wiki"
EMPTY = "DROP SCHEMA public CASCADE; CREATE SCHEMA public"
"""What a dump does not do: remove the tables that came after it."""

TABLE = """
create table pages (id serial primary key, title text not null, body text, legacy text unique);
insert into pages (title, body, legacy)
    select 'Page ' || i, repeat(md5(i::text) || E' line\\n', 20 + i % 50), 'old-' || i
    from generate_series(1, 3000) i;
insert into pages (title, body) values ('Ünïcode \\ back', E'tab\\tnull-less\\x01'), ('empty', ''), ('none', null);
create view long_pages as select id, title from pages where length(body) > 1000;
"""

MIGRATION = """
update pages set body = body || ' edited' where id % 100 = 0;
delete from pages where id = 7;
alter table pages drop column legacy;
create table tags (page int references pages (id), tag text);
insert into tags select id, 'tag-' || id % 5 from pages;
"""


@dataclass
class Wiki:
    """The service: a database, a directory of uploads, and castore."""

    castore: Run
    postgres: Postgres
    uploads: Path
    night_copy: Path
    dump: list[str]
    restore: list[str]
    first: str = ""
    """Fingerprint of the database on night 1."""
    second: str = ""
    second_uploads: Tree | None = None
    taken: tuple[Any, ...] = ()

    def snapshot(self, revision: str) -> Any:
        program = f"db={shlex.join(self.dump)}"
        done = self.castore("snapshot", "wiki", "--json", "--revision", revision, "--exec", program, "--tree", f"uploads={self.uploads}")
        return json.loads(done.stdout)

    def fingerprint(self) -> str:
        return self.postgres.fingerprint(DATABASE)

    def grow(self) -> None:
        """Fill the service, as it is on night 1."""
        self.postgres.createdb(DATABASE)
        self.postgres.pgbench_init(1, DATABASE)
        self.postgres.psql(TABLE, DATABASE)
        self.uploads.mkdir()
        for number in range(40):
            folder = self.uploads / f"2026-{number % 4:02}"
            folder.mkdir(exist_ok=True)
            (folder / f"{number}.jpg").write_bytes(os.urandom(20_000 + 3000 * number))
        (self.uploads / "latest").symlink_to("2026-03/39.jpg")
        os.link(self.uploads / "2026-00" / "0.jpg", self.uploads / "cover.jpg")
        os.chown(self.uploads / "2026-01", 33, 33)

    def upgrade(self) -> None:
        """Work for a day, and migrate the schema."""
        self.postgres.pgbench_run(60, DATABASE)
        self.postgres.psql(MIGRATION, DATABASE)
        same = self.uploads / "2026-02" / "2.jpg"
        times = same.stat().st_atime_ns, same.stat().st_mtime_ns
        same.write_bytes(os.urandom(same.stat().st_size))
        os.utime(same, ns=times)  # changed, though size and time say that it is not
        (self.uploads / "2026-01" / "1.jpg").write_bytes(b"changed")
        (self.uploads / "2026-03" / "new.jpg").write_bytes(os.urandom(50_000))
        (self.uploads / "2026-03" / "39.jpg").unlink()
        shutil.rmtree(self.uploads / "2026-00")
        (self.uploads / "2026-00").write_text("no directory now")
        (self.uploads / "latest").unlink()
        (self.uploads / "latest").symlink_to("2026-03/new.jpg")
        os.chmod(self.uploads / "2026-01", 0o700)

    def is_first(self) -> None:
        """Assert that all is as on night 1."""
        assert self.fingerprint() == self.first
        assert compare(walk(self.night_copy), walk(self.uploads)) == []

    def is_second(self) -> None:
        """Assert that all is as on night 2."""
        assert self.fingerprint() == self.second
        assert compare(self.second_uploads or {}, walk(self.uploads)) == []

    def rollback(self, to: str, *options: str, program: list[str] | None = None, **others: Any) -> Any:
        restore = f"db={shlex.join(program or self.restore)}"
        return self.castore("rollback", "wiki", "--to", to, "--numeric-ids", *options, "--restore", restore, **others)

    def generations(self) -> list[Any]:
        return json.loads(self.castore("log", "wiki", "--json").stdout)


@pytest.fixture
def wiki(castore: Run, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wiki]:
    """The service after two nights."""
    monkeypatch.setenv("CASTORE_STORE", str(tmp_path / "store"))
    castore("init", "--identity", tmp_path / "identity", tmp_path / "store")
    monkeypatch.setenv("CASTORE_IDENTITY", str(tmp_path / "identity"))
    plain = postgres.restore_argv(DATABASE)
    # As the README does it, and before that, what later revisions left is removed.
    restore = [*plain, "-c", EMPTY, "-f", "-"]
    made = Wiki(
        castore, postgres, tmp_path / "uploads", tmp_path / "night", postgres.dump_argv(DATABASE), restore
    )
    postgres.dropdb(DATABASE)
    try:
        made.grow()
        one = made.snapshot("r1")
        made.first = made.fingerprint()
        subprocess.run(["cp", "-a", made.uploads, made.night_copy], check=True)
        made.is_first()
        made.upgrade()
        two = made.snapshot("r2")
        made.taken = one, two
        made.second = made.fingerprint()
        made.second_uploads = walk(made.uploads)
        yield made
    finally:
        postgres.dropdb(DATABASE)


def test_two_nights_an_upgrade_and_the_way_back(wiki: Wiki) -> None:
    one, two = wiki.taken
    assert [(g["number"], g["revision"]) for g in wiki.taken] == [(1, "r1"), (2, "r2")]
    assert [part["kind"] for part in two["parts"]] == ["tree", "dump"]
    assert one["new_bytes"] > one["size"] * 0.9
    assert two["stored_bytes"] < one["stored_bytes"] / 8
    print(f"night 2: {two['size']} bytes, {two['new_bytes']} new, {two['stored_bytes']} stored")

    wiki.is_second()
    plan = wiki.rollback("r1", "--dry-run").stdout
    assert "generation 1 of revision r1" in plan
    assert "2026-03/39.jpg" in plan
    assert "psql" in plan
    wiki.is_second()
    assert len(wiki.generations()) == 2

    printed = wiki.rollback("r1").stdout
    assert "what it replaced is generation 3" in printed
    wiki.is_first()
    pre_rollback = wiki.generations()[0]
    assert (pre_rollback["number"], pre_rollback["pre_rollback"], pre_rollback["revision"]) == (3, True, "r2")

    wiki.rollback("3")
    wiki.is_second()
    wiki.rollback("r2")  # the night, not a pre-rollback generation of the same revision
    wiki.is_second()
    assert [g["number"] for g in wiki.generations() if not g["pre_rollback"]] == [2, 1]
    wiki.castore("verify", "--read-data")


def test_the_command_of_the_readme_restores_every_table_of_the_dump(wiki: Wiki) -> None:
    plain = [word for word in wiki.postgres.restore_argv(DATABASE) if word != "--single-transaction"]
    wiki.postgres.psql("drop table tags", DATABASE)  # it refers to pages, so that these could not be dropped
    wiki.postgres.psql("create table later (x int); insert into later values (1)", DATABASE)
    wiki.rollback("r1", program=plain)
    tables = wiki.fingerprint().splitlines()
    # pg_dump --clean removes the tables that it knows: a later one stays.
    assert [line for line in tables if not line.startswith("later ")] == wiki.first.splitlines()
    assert len(tables) == len(wiki.first.splitlines()) + 1
    assert compare(walk(wiki.night_copy), walk(wiki.uploads)) == []


def test_with_a_castore_toml_the_name_of_the_service_is_enough(
    wiki: Wiki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "castore.toml"
    revision = tmp_path / "current-system"
    revision.symlink_to("/gnu/store/aaa-system")
    config.write_text(
        f"""store = {json.dumps(str(tmp_path / "store"))}
[service.wiki]
revision = {{ link = {json.dumps(str(revision))} }}
[service.wiki.parts.uploads]
engine = "tree"
path = {json.dumps(str(wiki.uploads))}
[service.wiki.parts.db]
engine = "command"
dump = {json.dumps(wiki.dump)}
restore = {json.dumps(wiki.restore)}
"""
    )
    monkeypatch.delenv("CASTORE_STORE")
    monkeypatch.setenv("CASTORE_CONFIG", str(config))
    taken = json.loads(wiki.castore("snapshot", "wiki", "--json").stdout)
    assert (taken["number"], taken["revision"]) == (3, "/gnu/store/aaa-system")
    assert taken["new_bytes"] == 0
    revision.unlink()
    revision.symlink_to("/gnu/store/bbb-system")
    wiki.castore("rollback", "wiki", "--to", "r1", "--numeric-ids")
    wiki.is_first()
    assert wiki.generations()[0]["revision"] == "/gnu/store/bbb-system"
    wiki.castore("rollback", "wiki", "--to", "/gnu/store/aaa-system", "--numeric-ids")
    wiki.is_second()


def script(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "restore-program"
    path.write_text(f"#!{sys.executable}\nimport os, subprocess, sys\n{text}")
    path.chmod(0o755)
    return [str(path)]


def test_a_program_that_fails_once_it_has_changed_the_database(wiki: Wiki, tmp_path: Path) -> None:
    """It destroyed half of the database; the pre-rollback generation goes in through the same program."""
    program = script(
        tmp_path,
        f"""
flag = {str(tmp_path / "failed")!r}
psql = {wiki.restore!r}
if os.path.exists(flag):
    sys.exit(subprocess.run(psql).returncode)
open(flag, "w").close()
half = sys.stdin.buffer.read(100_000)
subprocess.run([*{wiki.postgres.restore_argv(DATABASE)!r}, "-c", "drop table tags; drop table pages cascade"], check=True)
sys.exit(1)
""",
    )
    failed = wiki.rollback("r1", program=program, expect=4)
    assert "restore-program" in failed.stderr
    assert "not intact" not in failed.stderr
    assert (tmp_path / "failed").exists()
    wiki.is_second()
    assert not list(wiki.uploads.glob(".castore-*"))
    assert [g["pre_rollback"] for g in wiki.generations()] == [True, False, False]


def test_a_program_that_always_fails_midway(wiki: Wiki, tmp_path: Path) -> None:
    """It takes half of the dump in one transaction and breaks off: nothing has happened."""
    program = script(
        tmp_path,
        f"""
half = sys.stdin.buffer.read(2_000_000)
subprocess.run({wiki.restore!r}, input=half + b"\\n\\\\.\\nthis is no SQL;", stderr=subprocess.DEVNULL)
sys.exit(1)
""",
    )
    failed = wiki.rollback("r1", program=program, expect=11)
    assert "generation 3 holds it" in failed.stderr  # castore cannot know that it is whole
    wiki.is_second()
    wiki.castore("recover", "--forget", "wiki")
    wiki.rollback("r1")
    wiki.is_first()


def test_a_program_that_is_not_there(wiki: Wiki) -> None:
    failed = wiki.rollback("r1", program=["no-such-psql-anywhere", "-q"], expect=None)
    assert failed.returncode in {2, 4}
    assert "no-such-psql-anywhere" in failed.stderr
    wiki.is_second()


def test_rescue_brings_night_one_back_with_the_identity_alone(wiki: Wiki, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    arguments = [tmp_path / "store", "--identity", tmp_path / "identity", "wiki", "1", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, RESCUE, *arguments], env=environment, cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert compare(walk(wiki.night_copy), walk(tmp_path / "out" / "uploads")) == []
    fresh = "wiki_rescued"
    wiki.postgres.dropdb(fresh)
    wiki.postgres.createdb(fresh)
    try:
        with open(tmp_path / "out" / "db", "rb") as dump:
            subprocess.run(wiki.postgres.restore_argv(fresh), stdin=dump, capture_output=True, check=True)
        assert wiki.postgres.fingerprint(fresh) == wiki.first
    finally:
        wiki.postgres.dropdb(fresh)
