"""The Python API, as its users call it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import castore
from castore import testing
from castore.errors import CastoreError, IdentityError, NotFoundError, ProgramError, UsageError


@pytest.fixture
def store():
    with testing.temporary_store() as made:
        yield made


@pytest.fixture
def wiki(tmp_path: Path) -> Path:
    (tmp_path / "wiki" / "pages").mkdir(parents=True)
    (tmp_path / "wiki" / "settings.conf").write_text("mode = 1\n")
    (tmp_path / "wiki" / "pages" / "start").write_bytes(os.urandom(100_000))
    execute(tmp_path, "CREATE TABLE t (x INT)", "INSERT INTO t VALUES (1)")
    return tmp_path


def parts(folder: Path) -> dict:
    return {"pages": castore.Tree(str(folder / "wiki")), "db": castore.SQLite(path=str(folder / "wiki.db"))}


def execute(folder: Path, *statements: str) -> list:
    with contextlib.closing(sqlite3.connect(folder / "wiki.db")) as database, database:
        return [database.execute(one).fetchall() for one in statements]


def rows(folder: Path) -> list:
    return [x for (x,) in execute(folder, "SELECT x FROM t ORDER BY x")[0]]


def test_a_service_is_snapshotted_restored_and_rolled_back(store: castore.Store, wiki: Path, tmp_path: Path):
    service = store.service("wiki")
    first = service.snapshot(parts(wiki), revision="r1")
    assert (first.number, first.revision, first.warnings, first.skipped_files) == (1, "r1", (), ())
    assert [(part.name, part.kind) for part in first.parts] == [("pages", "tree"), ("db", "dump")]
    (wiki / "wiki" / "settings.conf").write_text("mode = 2\n")
    execute(wiki, "INSERT INTO t VALUES (2)")
    second = service.snapshot(parts(wiki), revision="r2")
    assert list(service.generations()) == [second, first]
    assert list(service.generations(revision="r1")) == [first]
    assert service.generation("r1") == first == service.generation(1)
    assert service.live_revision == "r2"
    assert store.services() == ["wiki"]

    report = first.restore(tmp_path / "look", parts=["pages"])
    assert (tmp_path / "look" / "pages" / "settings.conf").read_text() == "mode = 1\n"
    assert report.damaged == report.warnings == []
    assert report.size > 100_000
    with first.part("pages").open("settings.conf") as file:
        assert file.read() == b"mode = 1\n"
    out = io.BytesIO()
    with first.part("db").open() as file:
        shutil.copyfileobj(file, out)
    assert out.getvalue().startswith(b"SQLite format 3")

    plan = service.plan_rollback(to="r1")
    assert plan.target.number == 1
    done = service.rollback(plan)
    assert done.generation == first
    assert set(done.parts) == {"pages", "db"}
    assert done.pre_rollback is not None
    assert done.pre_rollback.is_pre_rollback
    assert done.problems == []
    assert (wiki / "wiki" / "settings.conf").read_text() == "mode = 1\n"
    assert rows(wiki) == [1]
    assert service.live_revision == "r1"
    service.rollback(done.pre_rollback)
    assert rows(wiki) == [1, 2]
    assert store.verify(read_data=True).sound
    assert store.verify(sample=0.5).sound


def test_generations_that_no_rule_keeps_are_deleted(store: castore.Store, wiki: Path):
    service = store.service("wiki")
    for number in range(4):
        (wiki / "wiki" / "settings.conf").write_text(f"mode = {number}\n")
        service.snapshot(parts(wiki))
    report = store.prune(castore.Retention(last=1, per_revision=0), dry_run=True)
    assert [one.number for one in report.deleted] == [3, 2, 1]
    assert len(list(service.generations())) == 4
    report = store.prune(castore.Retention(last=1, per_revision=0))
    assert [one.number for one in report.deleted] == [3, 2, 1]
    assert report.left_out == []
    assert [one.number for one in service.generations()] == [4]
    assert store.prune().deleted == []  # without castore.toml, nothing says what to delete


def test_a_machine_without_the_identity_takes_snapshots_and_cannot_read(tmp_path: Path, wiki: Path):
    paths = castore.MachinePaths(str(tmp_path / "state"), str(tmp_path / "cache"))
    identity = castore.Identity.generate()
    with castore.create(tmp_path / "store", identity=identity, paths=paths) as store:
        assert store.location == str(tmp_path / "store")
    with castore.open(tmp_path / "store", paths=paths) as store:
        taken = store.service("wiki").snapshot(parts(wiki), revision="r1")
        with pytest.raises(IdentityError):
            taken.restore(tmp_path / "out")
        assert not (tmp_path / "out").exists()
        with pytest.raises(IdentityError):
            taken.part("pages").open("settings.conf").read()
    with castore.open(tmp_path / "store", identity=lambda: identity, paths=paths) as store:
        store.service("wiki").generation("latest").restore(tmp_path / "out")
        assert (tmp_path / "out" / "pages" / "settings.conf").exists()


def test_an_identity_is_saved_and_loaded(tmp_path: Path):
    identity = castore.Identity.generate()
    identity.save(tmp_path / "key", passphrase="open")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert castore.Identity.load(tmp_path / "key", passphrase="open").recipient == identity.recipient
    with pytest.raises(IdentityError, match="passphrase"):
        castore.Identity.load(tmp_path / "key")
    with pytest.raises(UsageError, match="exists already"):
        identity.save(tmp_path / "key")
    paths = castore.MachinePaths(str(tmp_path / "state"), str(tmp_path / "cache"))
    with castore.create(tmp_path / "store", identity=tmp_path / "key", passphrase="open", paths=paths):
        pass
    with castore.open(tmp_path / "store", identity=tmp_path / "key", passphrase="open", paths=paths) as store:
        assert store.services() == []


def test_services_of_a_castore_toml_need_no_parts(tmp_path: Path, wiki: Path):
    config = tmp_path / "castore.toml"
    config.write_text(
        f'[service.wiki]\nrevision = {{ command = ["cat", "{wiki}/revision"] }}\nkeep = {{ last = 1, per-revision = 0 }}\n'
        f'[service.wiki.parts.pages]\nengine = "tree"\npath = "{wiki}/wiki"\n'
    )
    (wiki / "revision").write_text("r7\n")
    paths = castore.MachinePaths(str(tmp_path / "state"), str(tmp_path / "cache"))
    identity = castore.Identity.generate()
    castore.create(tmp_path / "store", identity=identity, paths=paths).close()
    with castore.open(tmp_path / "store", identity=identity, paths=paths, config=config) as store:
        assert store.service("wiki").snapshot().revision == "r7"
        store.service("wiki").snapshot()
        assert [one.number for one in store.prune().deleted] == [1]
        with pytest.raises(UsageError, match="does not describe"):
            store.service("other").snapshot()


def test_what_fails_names_the_thing(store: castore.Store, wiki: Path, tmp_path: Path):
    service = store.service("wiki")
    with pytest.raises(NotFoundError, match="wiki"):
        service.generation("r1")
    with pytest.raises(ProgramError):
        service.snapshot({"dump": castore.Command(program=("false",))})
    assert list(service.generations()) == []
    taken = service.snapshot(parts(wiki))
    with pytest.raises(NotFoundError, match="no part 'none'"):
        taken.part("none")
    with pytest.raises(NotFoundError, match="no part 'none'"):
        taken.restore(tmp_path / "out", parts=["pages", "none"])
    assert not (tmp_path / "out").exists()
    with pytest.raises(NotFoundError):
        castore.open(tmp_path / "missing")
    with pytest.raises(UsageError, match="recipients"):
        castore.create(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(CastoreError):
        service.recover()


def test_every_public_name_exists_and_importing_castore_is_quick():
    for name in castore.__all__:
        assert getattr(castore, name) is not None
    script = "import sys, castore; print(len([m for m in sys.modules if m.startswith('castore')]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 2


def test_the_examples_of_the_documentation_run(wiki: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    page = (Path(castore.__file__).parent / "docs" / "api.md").read_text()
    monkeypatch.chdir(wiki)
    for name in ("state", "cache", "config", "data"):
        monkeypatch.setenv(f"XDG_{name.upper()}_HOME", str(wiki / name))
    names: dict = {}
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for example in examples:
        exec(compile(example, "api.md", "exec"), names)  # noqa: S102 - it is our own page
    assert len(examples) > 5
    printed = capsys.readouterr().out
    assert "1 r1 ['pages', 'db']" in printed
    assert "mode = 1" in printed
    assert "True" in printed
