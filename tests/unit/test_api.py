"""The Python API, as its users call it."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import pydoc
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import click
import pytest

import castore
from castore import testing
from castore.cli.commands.drill import drill
from castore.cli.commands.init import init
from castore.cli.commands.log import log
from castore.cli.commands.pin import pin
from castore.cli.commands.prune import prune
from castore.cli.commands.recover import recover
from castore.cli.commands.restore import restore
from castore.cli.commands.rollback import rollback
from castore.cli.commands.snapshot import snapshot
from castore.cli.commands.verify import verify
from castore.content.streams import StreamReader
from castore.crypto import identity as crypto_identity
from castore.errors import CastoreError, ConfigError, IdentityError, NotFoundError, ProgramError, UsageError
from castore.maintenance.limits import GRACE_SECONDS, MAX_UNUSED, UNFINISHED_SECONDS


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
    plan = store.prune(castore.Retention(last=1, per_revision=0), dry_run=True)
    assert isinstance(plan, castore.PrunePlan)
    assert [one.number for one in plan.deleted] == [3, 2, 1]
    assert store.plan_prune(castore.Retention(last=1, per_revision=0)).reclaimed == plan.reclaimed
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
        with pytest.raises(UsageError, match="has no parts to take"):
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


def test_every_public_name_exists_and_is_described_and_importing_castore_is_quick():
    page = (Path(castore.__file__).parent / "docs" / "api.md").read_text()
    for name in castore.__all__:
        assert getattr(castore, name) is not None
        assert f"`{name}`" in page
    script = "import sys, castore; print(len([m for m in sys.modules if m.startswith('castore')]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 2
    script = "import castore; castore.errors.CastoreError is castore.CastoreError or 1 / 0; castore.testing.temporary_store"
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="nothing"):
        castore.nothing  # noqa: B018


def test_help_describes_every_public_class_with_its_arguments():
    from castore.api.in_place import InPlacePlan
    from castore.api.repair import RepairReport

    classes = [found for name in castore.__all__ if inspect.isclass(found := getattr(castore, name))]
    assert castore.RollbackPlan in classes
    for found in [*classes, InPlacePlan, RepairReport]:
        assert f"class {found.__name__}" in pydoc.render_doc(found, renderer=pydoc.plaintext)
    for result in (castore.PrunePlan, castore.RollbackPlan, castore.RestoreReport, InPlacePlan, RepairReport):
        assert list(inspect.signature(result).parameters) == list(result.__struct_fields__)


def test_the_examples_of_the_documentation_run(wiki: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    page = (Path(castore.__file__).parent / "docs" / "api.md").read_text()
    monkeypatch.chdir(wiki)
    for name in ("state", "cache", "config", "data"):
        monkeypatch.setenv(f"XDG_{name.upper()}_HOME", str(wiki / name))
    names: dict = {}
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for example in examples:
        exec(compile(example, "api.md", "exec"), names)  # noqa: S102 - examples are executed  # noqa: S102 - examples are executed
    assert len(examples) > 5
    printed = capsys.readouterr().out
    assert "1 r1 ['pages', 'db']" in printed
    assert "mode = 1" in printed
    assert "True" in printed


def test_defaults_are_those_of_the_command_line(tmp_path: Path):
    def default(function: Callable, name: str) -> object:
        return inspect.signature(function).parameters[name].default

    assert default(castore.Store.prune, "grace_seconds") == default_of(prune, "grace_seconds") == GRACE_SECONDS
    assert default(castore.Store.prune, "max_unused") == default_of(prune, "max_unused") == MAX_UNUSED
    assert default(castore.Store.prune, "unfinished_seconds") == UNFINISHED_SECONDS
    assert default(castore.create, "average_chunk_size") == default_of(init, "average")


def test_prune_refuses_a_service_that_does_not_exist(store: castore.Store, wiki: Path):
    store.service("wiki").snapshot(parts(wiki))
    for dry_run in (True, False):
        with pytest.raises(NotFoundError, match="wiky"):
            store.prune(castore.Retention(last=1), services=["wiki", "wiky"], dry_run=dry_run)


def test_a_dry_run_of_prune_says_how_much_it_would_reclaim(store: castore.Store, wiki: Path):
    service = store.service("wiki")
    for _ in range(2):
        (wiki / "wiki" / "pages" / "start").write_bytes(os.urandom(500_000))
        service.snapshot(parts(wiki))
    rules = castore.Retention(last=1, per_revision=0)
    assert store.prune(rules, dry_run=True).reclaimed > 400_000
    assert len(list(service.generations())) == 2
    assert store.prune(rules).reclaimed > 400_000


def test_a_plan_of_a_rollback_holds_the_parts_that_it_was_made_for(store: castore.Store, wiki: Path, tmp_path: Path):
    service = store.service("wiki")
    service.snapshot(parts(wiki), revision="r1")
    (wiki / "wiki" / "settings.conf").write_text("mode = 2\n")
    (tmp_path / "other").mkdir()
    execute(tmp_path, "DELETE FROM t")
    shutil.copy(tmp_path / "wiki.db", tmp_path / "other" / "wiki.db")
    elsewhere = {"pages": castore.Tree(str(tmp_path / "other" / "wiki")), "db": castore.SQLite(path=str(tmp_path / "other" / "wiki.db"))}
    plan = service.plan_rollback(to="r1", parts=elsewhere, pre_rollback=False)
    assert [one.partition(" ")[0] for one in plan.doubts] == ["db"]
    with pytest.raises(UsageError, match=r"nothing was changed.*accept_doubts"):
        service.rollback(plan)
    done = service.rollback(plan, accept_doubts=True)
    assert done.pre_rollback is None
    assert (tmp_path / "other" / "wiki" / "settings.conf").read_text() == "mode = 1\n"
    assert (wiki / "wiki" / "settings.conf").read_text() == "mode = 2\n"
    assert rows(tmp_path / "other") == [1]
    assert rows(wiki) == []


def test_what_a_plan_fixes_cannot_be_given_again(store: castore.Store, wiki: Path):
    service = store.service("wiki")
    service.snapshot(parts(wiki), revision="r1")
    plan = service.plan_rollback(to="r1")
    with pytest.raises(UsageError, match="the plan"):
        service.rollback(plan, parts=parts(wiki))
    with pytest.raises(UsageError, match="the plan"):
        service.rollback(plan, pre_rollback=False)
    with pytest.raises(UsageError, match="wiki"):
        store.service("other").rollback(plan)


def test_a_part_that_cannot_be_opened_leaves_no_reader(store: castore.Store, wiki: Path, monkeypatch: pytest.MonkeyPatch):
    opened, closed = [], []
    made = StreamReader.__init__
    monkeypatch.setattr(StreamReader, "__init__", lambda self, store: opened.append(self) or made(self, store))
    monkeypatch.setattr(StreamReader, "__exit__", lambda self, *_: closed.append(self))
    taken = store.service("wiki").snapshot(parts(wiki))
    opened.clear()
    closed.clear()
    for path, error in (("none", NotFoundError), ("pages", UsageError)):
        with pytest.raises(error):
            taken.part("pages").open(path)
    assert opened == closed
    assert len(opened) == 2
    with pytest.raises(UsageError):
        taken.part("db").open("path")
    file = taken.part("pages").open("settings.conf")
    assert len(opened) == len(closed) + 1
    file.close()
    assert opened == closed


def test_a_passphrase_is_stretched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    castore.Identity.generate().save(tmp_path / "key", passphrase="open")
    stretched = []
    stretch = crypto_identity._stretch
    monkeypatch.setattr(crypto_identity, "_stretch", lambda *given: stretched.append(1) or stretch(*given))
    written = []
    monkeypatch.setattr(castore.Identity, "text", lambda _self: written.append(1))
    assert isinstance(castore.Identity.load(tmp_path / "key", passphrase="open"), castore.Identity)
    assert (len(stretched), written) == (1, [])
    paths = castore.MachinePaths(str(tmp_path / "state"), str(tmp_path / "cache"))
    stretched.clear()
    with castore.create(tmp_path / "store", identity=tmp_path / "key", passphrase="open", paths=paths) as store:
        taken = store.service("a").snapshot({"key": castore.File(path=str(tmp_path / "key"))})
        taken.part("key").open().read()
    assert len(stretched) == 1


def test_parts_are_restored_under_their_names_alone_or_all(store: castore.Store, wiki: Path, tmp_path: Path):
    taken = store.service("wiki").snapshot(parts(wiki))
    for name, chosen in (("all", None), ("each", ["pages", "db"])):
        report = taken.restore(tmp_path / name, parts=chosen)
        assert sorted(report.placed) == [str(tmp_path / name / "db"), str(tmp_path / name / "pages")]
        assert (tmp_path / name / "db").is_file()
        assert (tmp_path / name / "pages" / "settings.conf").exists()
    with pytest.raises(UsageError, match="not empty"):
        taken.restore(tmp_path / "each", parts=["db"])


def test_a_closed_store_says_so(store: castore.Store, wiki: Path, tmp_path: Path):
    service = store.service("wiki")
    taken = service.snapshot(parts(wiki))
    file = taken.part("pages").open("settings.conf")
    left = service.generations()
    store.close()
    store.close()
    for use in (
        store.services, store.verify, store.stats, store.prune, lambda: next(service.generations()), lambda: next(left), service.recover,
        lambda: service.snapshot(parts(wiki)), lambda: service.generation("latest"), lambda: taken.restore(tmp_path / "out"),
        lambda: taken.part("db").open(), lambda: service.live_revision, lambda: store.warnings, file.read,
    ):
        with pytest.raises(UsageError, match="is closed"):
            use()


def test_a_store_is_created_only_in_a_new_or_empty_directory(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"cat\.jpg"):
        castore.create(tmp_path / "photos", identity=castore.Identity.generate())
    assert os.listdir(tmp_path / "photos") == ["cat.jpg"]


def test_the_settings_of_castore_toml_hold_for_the_api(tmp_path: Path, wiki: Path):
    config = tmp_path / "castore.toml"
    paths = castore.MachinePaths(str(tmp_path / "state"), str(tmp_path / "cache"))
    identity = castore.Identity.generate()
    castore.create(tmp_path / "store", identity=identity, paths=paths).close()
    other = castore.Identity.generate().recipient.text
    config.write_text(f'recipients = ["{other}"]\n[service.wiki.parts.pages]\nengine = "tree"\npath = "{wiki}/wiki"\n')
    with castore.open(tmp_path / "store", identity=identity, paths=paths, config=config) as store, pytest.raises(ConfigError, match="recipients"):
        store.service("wiki").snapshot()
    config.write_text(
        f'[service.wiki.parts.pages]\nengine = "tree"\npath = "{wiki}/wiki"\n'
        '[service.bad.parts.db]\nengine = "none"\n[service.gone.parts.db]\nengine = "command"\ndump = ["/no/such/program"]\n'
    )
    with castore.open(tmp_path / "store", identity=identity, paths=paths, config=config) as store:
        store.service("wiki").snapshot()  # mistakes in other services do not matter
        with pytest.raises(ConfigError, match="none"):
            store.service("bad").snapshot()
        with pytest.raises(ConfigError, match="/no/such/program"):
            store.service("gone").snapshot()


def test_a_snapshot_is_taken_and_marked_after_an_interrupted_rollback(store: castore.Store, wiki: Path, tmp_path: Path):
    service = store.service("wiki")
    service.snapshot(parts(wiki), revision="r1")
    store.internal.state.write_rollback_journal("wiki", b"not a journal")
    assert service.has_interrupted_rollback
    taken = service.snapshot(parts(wiki), revision="r1")
    assert taken.is_interrupted
    assert any("only its number selects it" in one for one in taken.warnings)


def test_a_home_directory_is_expanded_in_every_path(store: castore.Store, wiki: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(wiki))
    taken = store.service("wiki").snapshot({"pages": castore.Tree("~/wiki"), "db": castore.SQLite(path="~/wiki.db")})
    assert [part.size > 0 for part in taken.parts] == [True, True]


def test_options_have_the_defaults_of_the_command_line():
    for function, command, names in (
        (castore.Store.verify, verify, ["packs", "read_data", "sample", "restart"]),
        (castore.Service.plan_rollback, rollback, ["trust_times", "trust_recorded", "numeric_ids"]),
        (castore.Selection.restore, restore, ["numeric_ids", "resume"]),
        (castore.Generation.drill, drill, ["scratch", "trust_recorded"]),
        (castore.Tree, snapshot, ["one_file_system", "exclude_caches", "exclude"]),
        (castore.Stream, snapshot, ["allow_empty"]),
        (castore.Service.snapshot, snapshot, ["revision"]),
        (castore.Store.prune, prune, ["services", "dry_run"]),
        (castore.open, log, ["host", "accept_older"]),
        (castore.Service.recover, recover, ["forget"]),
        (castore.Generation.pin, pin, ["note"]),
    ):
        for name in names:
            assert inspect.signature(function).parameters[name].default == default_of(command, name), (function, name)
    assert inspect.signature(castore.Service.plan_rollback).parameters["pre_rollback"].default is True
    assert default_of(rollback, "no_pre_rollback") is False


def default_of(command: click.Command, name: str) -> object:
    return command.make_context("castore", [], resilient_parsing=True).params[name]


def test_abandoned_iterators_and_files_hold_no_lock_and_no_thread(store: castore.Store, wiki: Path):
    service = store.service("wiki")
    for number in range(3):
        (wiki / "wiki" / "pages" / "start").write_bytes(os.urandom(3_000_000))
        service.snapshot(parts(wiki), revision=f"r{number}")
    left, all_left = service.generations(), store.generations()
    newest = next(left)
    assert next(all_left) == newest
    file = newest.part("pages").open("pages/start")
    assert file.read(10)
    service.snapshot(parts(wiki))
    report = store.prune(castore.Retention(last=1, per_revision=0))
    assert report.left_out == []
    assert len(report.deleted) == 3
    del file
    assert not [one for one in threading.enumerate() if one.name.startswith("castore-open")]


def test_closing_a_store_wipes_the_identity_that_it_asked_for(tmp_path: Path, wiki: Path):
    paths = castore.MachinePaths(str(tmp_path / "state"), str(tmp_path / "cache"))
    castore.Identity.generate().save(tmp_path / "key")
    asked = []

    def provide() -> castore.Identity:
        found = castore.Identity.load(tmp_path / "key")
        asked.append(weakref.ref(found))
        return found

    with castore.create(tmp_path / "store", identity=provide, paths=paths) as store:
        store.service("wiki").snapshot(parts(wiki))
    with castore.open(tmp_path / "store", identity=provide, paths=paths) as store:
        taken = store.service("wiki").generation("latest")
        file = taken.part("pages").open("settings.conf")
        assert file.read() == b"mode = 1\n"
    assert [one() for one in asked] == [None, None]
    with pytest.raises(UsageError, match="is closed"):
        taken.part("pages").open("settings.conf")


def test_messages_arrive_at_once_and_in_results(tmp_path: Path, wiki: Path):
    config = tmp_path / "castore.toml"
    config.write_text(
        f'[service.wiki.parts.pages]\nengine = "tree"\npath = "{wiki}/wiki"\n'
        f'[service.wiki.parts.db]\nengine = "sqlite"\npath = "{wiki}/wiki.db"\n'
    )
    paths = castore.MachinePaths(str(tmp_path / "state"), str(tmp_path / "cache"))
    identity = castore.Identity.generate()
    castore.create(tmp_path / "store", identity=identity, paths=paths).close()
    said: list[str] = []
    with castore.open(tmp_path / "store", identity=identity, paths=paths, config=config, report=said.append) as store:
        service = store.service("wiki")
        assert list(service.configured_parts()) == ["pages", "db"]
        assert [(one.name, one.error) for one in service.preview_snapshot()] == [("pages", ""), ("db", "")]
        taken = service.snapshot({"pages": castore.Tree(str(wiki / "wiki"))})
        assert taken.missing_parts == ("db",)
        assert said == list(taken.notes)
        assert "only its number selects it" in said[0]
        seen = []
        service.snapshot(progress=lambda name, counters: seen.append((name, counters)))
        assert [name for name, _ in seen] == ["pages", "db"]
        assert all(counters.read > 0 for _, counters in seen)


def test_a_store_is_opened_by_the_path_in_castore_toml(tmp_path: Path):
    config = tmp_path / "castore.toml"
    paths = castore.MachinePaths(str(tmp_path / "state"), str(tmp_path / "cache"))
    castore.create(tmp_path / "store", identity=castore.Identity.generate(), paths=paths).close()
    config.write_text(f'store = "{tmp_path}/store"\n')
    with castore.open(config=config, paths=paths) as store:
        assert store.location == str(tmp_path / "store")
    config.write_text("")
    for given in (config, None):
        with pytest.raises(castore.UsageError, match="no store is named"):
            castore.open(config=given, paths=paths)


def test_a_host_is_chosen_for_a_store(tmp_path: Path, wiki: Path):
    paths = castore.MachinePaths(str(tmp_path / "state"), str(tmp_path / "cache"))
    identity = castore.Identity.generate()
    with castore.create(tmp_path / "store", identity=identity, paths=paths, host="web1") as store:
        taken = store.service("wiki").snapshot(parts(wiki))
        assert taken.host == "web1"
    for host in ("web1", "*", None):
        with castore.open(tmp_path / "store", paths=paths, host=host) as store:
            assert list(store.generations()) == list(store.service("wiki").generations()) == [taken]
            assert store.service("wiki").generation("latest") == taken
    with castore.open(tmp_path / "store", paths=paths, host="web2") as store:
        assert list(store.generations()) == []
        for look in (lambda: list(store.service("wiki").generations()), lambda: store.service("wiki").generation("latest")):
            with pytest.raises(NotFoundError, match="web2"):
                look()


def test_generations_are_pinned_forgotten_and_drilled(store: castore.Store, wiki: Path):
    service = store.service("wiki")
    first, second = service.snapshot(parts(wiki), revision="a/1"), service.snapshot(parts(wiki), revision="b/2")
    assert list(service.generations(revision_prefix="a")) == list(store.generations(revision_prefix="a")) == [first]
    assert first.pin("before the move")
    assert not first.pin()
    with pytest.raises(UsageError, match="before the move"):
        first.forget()
    assert first.unpin()
    assert not first.unpin()
    findings = []
    done = first.drill(note=findings.append)
    assert list(done.parts) == ["pages", "db"]
    assert findings == [f"{name}: {finding}" for name, finding in done.parts.items()]
    first.forget()
    assert list(service.generations()) == [second]
    with pytest.raises(NotFoundError, match="no generation 1"):
        service.forget([1])
    assert store.plan_compact().reclaimed >= 0
    assert store.compact().compacted is not None
    assert store.stats().total.generations == 1


def test_a_rollback_is_undone_by_rolling_back_to_what_it_replaced(store: castore.Store, wiki: Path):
    service = store.service("wiki")
    service.snapshot(parts(wiki), revision="r1")
    with pytest.raises(NotFoundError, match="nothing to undo"):
        service.replaced_generation()
    execute(wiki, "INSERT INTO t VALUES (2)")
    done = service.rollback("r1")
    assert service.replaced_generation() == done.pre_rollback
    service.rollback(service.replaced_generation())
    assert rows(wiki) == [1, 2]
    assert not service.has_interrupted_rollback
    with pytest.raises(NotFoundError, match="interrupted"):
        service.recover()


def test_a_tree_is_restored_in_place_and_another_place_is_refused(store: castore.Store, wiki: Path, tmp_path: Path):
    store.service("wiki").snapshot(parts(wiki), revision="r1")
    (wiki / "wiki" / "settings.conf").write_text("mode = 2\n")
    (wiki / "wiki" / "new").write_text("x")
    pages = store.select("wiki@r1:pages")
    plan = pages.plan_in_place(wiki / "wiki")
    assert (plan.tree.summary, plan.doubt) == ((0, 1, 1), "")
    assert (wiki / "wiki" / "new").exists()
    report = pages.restore_in_place(plan)
    assert (report.placed, report.warnings, report.damaged) == ([str(wiki / "wiki")], [], [])
    assert (wiki / "wiki" / "settings.conf").read_text() == "mode = 1\n"
    assert not (wiki / "wiki" / "new").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("x")
    plan = pages.plan_in_place(tmp_path / "other")
    with pytest.raises(UsageError, match=r"is not the directory that was taken.*1 removed.*accept_doubts"):
        pages.restore_in_place(plan)
    assert (tmp_path / "other" / "precious").exists()
    pages.restore_in_place(plan, accept_doubts=True)
    assert not (tmp_path / "other" / "precious").exists()
    one = store.select("wiki@r1:pages/settings.conf")
    assert (one.generation.number, one.part.name, one.path) == (1, "pages", "settings.conf")
    (wiki / "wiki" / "settings.conf").unlink()
    one.restore_in_place(one.plan_in_place(wiki / "wiki" / "settings.conf"))
    assert (wiki / "wiki" / "settings.conf").read_text() == "mode = 1\n"
    with one.open() as file:
        assert file.read() == b"mode = 1\n"


def test_what_is_stored_is_listed(store: castore.Store, wiki: Path):
    (wiki / "wiki" / "link").symlink_to("settings.conf")
    taken = store.service("wiki").snapshot(parts(wiki))
    assert [(one.path, one.kind) for one in store.select("wiki@1").entries()] == [("pages", "dir"), ("db", "dump")]
    found = {one.path: one for one in taken.part("pages").entries(recursive=True)}
    assert {path for path in found if path} == {"link", "pages", "pages/start", "settings.conf"}
    assert (found["settings.conf"].kind, found["settings.conf"].size) == ("file", 9)
    assert (found["link"].kind, found["link"].target) == ("link", "settings.conf")
    info = (wiki / "wiki" / "pages" / "start").stat()
    assert (found["pages/start"].mtime_ns, found["pages/start"].mode) == (info.st_mtime_ns, info.st_mode & 0o7777)
    assert [one.path for one in taken.part("pages").entries("pages")] == ["start"]
    assert [(one.path, one.size, one.mode, one.mtime_ns, one.target) for one in taken.part("db").entries()] == [("db", taken.part("db").size, None, None, "")]
    with pytest.raises(NotFoundError):
        list(taken.part("pages").entries("none"))
    left = taken.part("pages").entries(recursive=True)
    next(left)
    del left
    assert not [one for one in threading.enumerate() if one.name.startswith("castore-open")]


def test_paths_mean_what_they_meant_when_they_were_given(tmp_path: Path, wiki: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    castore.Identity.generate().save("key")
    paths = castore.MachinePaths(str(tmp_path / "state"), str(tmp_path / "cache"))
    with castore.create("store", identity="key", paths=paths) as store:
        store.service("wiki").snapshot(parts(wiki))
    with castore.open("store", identity="key", paths=paths) as store:
        monkeypatch.chdir("/")
        assert store.service("wiki").generation("latest").part("pages").open("settings.conf").read() == b"mode = 1\n"
        assert str(tmp_path / "key") in store.excluded_paths


def test_a_callback_that_fails_does_not_stop_a_rollback(tmp_path: Path, wiki: Path, caplog: pytest.LogCaptureFixture):
    config = tmp_path / "castore.toml"
    config.write_text(f'[service.wiki.parts.pages]\nengine = "tree"\npath = "{wiki}/wiki"\n')
    paths = castore.MachinePaths(str(tmp_path / "state"), str(tmp_path / "cache"))
    identity = castore.Identity.generate()

    def report(text: str) -> None:
        raise RuntimeError(text)

    castore.create(tmp_path / "store", identity=identity, paths=paths).close()
    with castore.open(tmp_path / "store", identity=identity, paths=paths, report=report) as store:
        store.service("wiki").snapshot({"db": castore.SQLite(path=str(wiki / "wiki.db"))}, revision="r1")
    execute(wiki, "INSERT INTO t VALUES (2)")
    with castore.open(tmp_path / "store", identity=identity, paths=paths, report=report, config=config) as store:
        done = store.service("wiki").rollback("r1")
        assert rows(wiki) == [1]
        assert done.notes == ["not in generation 1, and left as they are: pages"]
    assert "not in generation 1" in caplog.text


def test_a_generation_of_another_store_is_refused(store: castore.Store, wiki: Path):
    with testing.temporary_store() as other:
        theirs = other.service("wiki").snapshot(parts(wiki), revision="r1")
        theirs_plan = other.service("wiki").plan_rollback(theirs)
        service = store.service("wiki")
        with pytest.raises(NotFoundError, match="wiki@1"):
            service.rollback(theirs)
        ours = service.snapshot(parts(wiki), revision="r1")
        for to in (theirs, theirs_plan):
            with pytest.raises(UsageError, match="another generation"):
                service.rollback(to)
    assert service.rollback(ours).parts == ()
    ours.forget()
    with pytest.raises(NotFoundError, match="wiki@1"):
        service.plan_rollback(ours)
