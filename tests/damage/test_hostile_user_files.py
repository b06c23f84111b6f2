"""root works with files of a service's user who wants harm: nothing outside their rights is read, written or deleted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from castore.engines import ldap_directory
from castore.engines.base import Contents
from castore.engines.file import File
from castore.engines.sqlite import SQLite
from castore.errors import CastoreError
from castore.process.open_files import refuse_open
from castore.services import detect, folders
from castore.services.sources import EngineSource
from tests.support.stores import Sandbox

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be harmed in this way")

USER = 23456
"""No such user is in the database of users, as with files of a container."""


@contextlib.contextmanager
def as_user() -> Iterator[None]:
    """Run the block with the rights of the service's user."""
    os.setegid(USER)
    os.seteuid(USER)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def home(home: Path) -> Iterator[Path]:
    """A directory of the service's user, which that user can reach; castore's own files are in another home."""
    assert os.environ["HOME"] == str(home)
    path = Path(tempfile.mkdtemp(prefix="castore-test-"))
    try:
        path.chmod(0o755)
        (path / "app").mkdir()
        os.chown(path / "app", USER, USER)
        yield path / "app"
    finally:
        shutil.rmtree(path)


@pytest.fixture
def precious() -> Iterator[Path]:
    """A file of root."""
    path = Path(tempfile.mkdtemp(prefix="castore-test-"))
    (path / "precious").write_text("of root\n")
    yield path / "precious"
    shutil.rmtree(path)


@pytest.fixture
def database(home: Path) -> Path:
    path = home / "app.db"
    with as_user(), contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
    return path


def hot_journal(database: Path, names: Path) -> bytes:
    """Return a journal that SQLite rolls back, and then deletes the file `names`: the super-journal."""
    pages = database.stat().st_size // 4096
    header = bytes.fromhex("d9d505f920a163d7") + struct.pack(">IIIII", 0, 0, pages, 512, 4096)
    name = os.fsencode(names)
    return header.ljust(512, b"\0") + struct.pack(">I", 0x40000000 // 4096 + 1) + name + struct.pack(">II", len(name), sum(name)) + header[:8]


def rows(path: Path) -> list:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT x FROM t").fetchall()


def test_the_journal_of_this_attack_deletes_a_file_if_root_opens_the_database(database: Path, precious: Path):
    journal = Path(f"{database}-journal")
    journal.write_bytes(hot_journal(database, precious))
    assert rows(database) == [(1,)]
    assert not precious.exists()


@pytest.mark.parametrize("act", ["snapshot", "check", "rollback"])
def test_a_journal_that_names_a_file_of_root_does_not_delete_it(act: str, database: Path, precious: Path, tmp_path: Path):
    sandbox = Sandbox(tmp_path / "sandbox")
    engine = SQLite(path=str(database))
    sandbox.snapshot("s", {"db": EngineSource("sqlite", engine)})
    with as_user():
        Path(f"{database}-journal").write_bytes(hot_journal(database, precious))
    with contextlib.suppress(CastoreError):
        if act == "snapshot":
            sandbox.snapshot("s", {"db": EngineSource("sqlite", engine)})
        elif act == "check":
            engine.check()
        else:
            sandbox.rollback(1)
    assert precious.read_text() == "of root\n"


@pytest.mark.parametrize("ending", ["-journal", "-wal", "-shm"])
def test_a_link_in_the_place_of_a_journal_leads_nowhere(ending: str, database: Path, precious: Path, tmp_path: Path):
    with as_user():
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        os.symlink(precious, f"{database}{ending}")
    with pytest.raises(CastoreError, match=f"app.db{ending} is not a regular file"):
        Sandbox(tmp_path / "sandbox").snapshot("s", {"db": EngineSource("sqlite", SQLite(path=str(database)))})
    assert precious.read_text() == "of root\n"


@pytest.mark.parametrize("ending", ["", "-journal", "-wal"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "directory"])
def test_a_special_file_in_the_place_of_a_database_is_not_waited_for(kind: str, ending: str, database: Path):
    place = Path(f"{database}{ending}")
    with as_user():
        place.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(place)
        elif kind == "directory":
            place.mkdir()
        else:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(place))
    with pytest.raises(CastoreError, match=f"app.db{ending} is (a {kind}|not a regular file)"):
        SQLite(path=str(database)).check()


def test_a_link_of_the_user_is_not_followed_to_another_database(home: Path, precious: Path):
    with contextlib.closing(sqlite3.connect(precious.parent / "root.db")) as connection:
        connection.execute("CREATE TABLE t (x)")
    with as_user():
        os.symlink(precious.parent / "root.db", home / "app.db")
    with pytest.raises(CastoreError, match="is a symbolic link that another user could have made"):
        SQLite(path=str(home / "app.db")).check()


def test_a_database_of_root_in_a_directory_of_a_user_is_opened_as_that_user(database: Path, precious: Path):
    os.chown(database, 0, 0)
    database.chmod(0o644)
    with as_user():
        Path(f"{database}-journal").write_bytes(hot_journal(database, precious))
    with contextlib.suppress(CastoreError):
        SQLite(path=str(database)).check()
    assert precious.exists()


def test_a_database_of_root_where_others_may_write_is_refused(database: Path):
    os.chown(database, 0, 0)
    os.chown(database.parent, 0, 0)
    SQLite(path=str(database)).check()
    for mode in (0o775, 0o1777):
        database.parent.chmod(mode)
        with pytest.raises(CastoreError, match=f"chmod go-w {database.parent}"):
            SQLite(path=str(database)).check()


def test_a_database_goes_back_as_its_user(database: Path, tmp_path: Path):
    with as_user(), contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    sandbox = Sandbox(tmp_path / "sandbox")
    sandbox.snapshot("s", {"db": EngineSource("sqlite", SQLite(path=str(database)))})
    with as_user(), contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("INSERT INTO t VALUES (2)")
        connection.commit()
    sandbox.rollback(1)
    info = database.stat()
    assert (info.st_uid, info.st_gid) == (USER, USER)
    with as_user():
        assert rows(database) == [(1,)]
        with contextlib.closing(sqlite3.connect(database)) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert os.listdir(database.parent) == ["app.db"]


def test_a_database_below_a_directory_that_its_user_cannot_enter_is_read(database: Path, precious: Path):
    """As in a volume of a container: /var/lib/docker is for root only."""
    database.parent.parent.chmod(0o700)
    SQLite(path=str(database)).check()
    Path(f"{database}-journal").write_bytes(hot_journal(database, precious))
    with contextlib.suppress(CastoreError):
        SQLite(path=str(database)).check()
    assert precious.exists()


_SWAPPED = """
import os, sys
from castore.engines import sqlite_worker

def swap(path):
    os.symlink(sys.argv[1], path + ".link")
    os.rename(path + ".link", path)

sqlite_worker._mounted = lambda folder, path: path
sqlite_worker._refuse_special = swap
sqlite_worker.main()
"""
"""Exchange a database for a link after it was looked at, where no directory can be mounted."""


def test_a_link_to_a_database_of_root_is_not_read_with_the_right_to_reach_that_of_the_user(database: Path):
    top = database.parent.parent
    top.chmod(0o700)
    secret = top / "secret.db"
    with contextlib.closing(sqlite3.connect(secret)) as connection:
        connection.execute("CREATE TABLE t AS SELECT 'secret of root'")
    folder = os.open(database.parent, os.O_RDONLY)
    request = {"path": os.fsencode(database).hex(), "user": [USER, USER, []], "folder": folder, "parent": os.getpid()}
    request |= {"act": "dump", "seconds": 5}
    argv = [sys.executable, "-c", _SWAPPED, str(secret), json.dumps(request)]
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o777)
        env = {**os.environ, "TMPDIR": place}
        ended = subprocess.run(argv, capture_output=True, check=False, pass_fds=[folder], env=env)
    os.close(folder)
    assert b"secret of root" not in ended.stdout
    assert b"another user's file took its place" in ended.stdout, ended.stderr


@pytest.fixture
def file(home: Path) -> Path:
    path = home / "state"
    with as_user():
        path.write_text("first\n")
    return path


def source(path: Path) -> dict[str, EngineSource]:
    return {"file": EngineSource("file", File(path=str(path)))}


def test_a_link_in_the_place_of_a_file_is_not_read(file: Path, precious: Path, tmp_path: Path):
    with as_user():
        file.unlink()
        file.symlink_to(precious)
    with pytest.raises(CastoreError, match=f"{file} is a symbolic link that another user could have made"):
        Sandbox(tmp_path / "sandbox").snapshot("s", source(file))


def test_a_directory_exchanged_for_a_link_is_not_followed(file: Path, precious: Path, tmp_path: Path):
    inner = file.parent / "inner"
    with as_user():
        inner.mkdir()
        (inner / "precious").write_text("first\n")
    sandbox = Sandbox(tmp_path / "sandbox")
    sandbox.snapshot("s", source(inner / "precious"))
    with as_user():
        inner.rename(file.parent / "away")
        inner.symlink_to(precious.parent)
    for act in (lambda: sandbox.snapshot("s", source(inner / "precious")), lambda: sandbox.rollback(1)):
        with pytest.raises(CastoreError, match="is a symbolic link that another user could have made"):
            act()
    assert precious.read_text() == "of root\n"
    assert os.listdir(precious.parent) == ["precious"]


@pytest.mark.parametrize("kind", ["pipe", "socket", "link"])
def test_a_special_file_in_the_place_of_a_file_is_neither_waited_for_nor_replaced(kind: str, file: Path, tmp_path: Path, precious: Path):
    sandbox = Sandbox(tmp_path / "sandbox")
    sandbox.snapshot("s", source(file))
    with as_user():
        file.unlink()
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "link":
            file.symlink_to(precious)
        else:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(file))
    for act in (lambda: sandbox.snapshot("s", source(file)), lambda: sandbox.rollback(1, take_pre_rollback=False)):
        with pytest.raises(CastoreError, match=f"is a {kind}|is a symbolic link"):
            act()
    assert precious.read_text() == "of root\n"


def test_a_file_of_the_user_never_becomes_a_set_user_id_program_of_root(file: Path, tmp_path: Path):
    """As if the user had linked /usr/bin/passwd there, or root's own copy of it were there."""
    sandbox = Sandbox(tmp_path / "sandbox")
    sandbox.snapshot("s", source(file))
    file.write_text("second\n")
    os.chown(file, 0, 0)
    file.chmod(0o6755)
    sandbox.rollback(1)
    assert file.stat().st_mode & 0o7777 == 0o755


def test_what_the_user_puts_in_the_place_of_a_staged_file_is_not_given_to_them(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The file is missing, so that the new one gets the recorded owner: of the file that was written, and no other."""
    sandbox = Sandbox(tmp_path / "sandbox")
    sandbox.snapshot("s", source(file))
    secret = file.parent / "secret"
    secret.write_text("of root\n")
    secret.chmod(0o600)
    file.unlink()
    real = folders.give

    def exchange(path: str, *rest):
        with as_user():
            os.rename(secret, path)
        real(path, *rest)

    monkeypatch.setattr(folders, "give", exchange)
    with pytest.raises(CastoreError, match="another user replaced it"):
        sandbox.rollback(1)
    # The rollback removes what it staged.
    assert not any(path.stat().st_uid == USER and path.read_text() == "of root\n" for path in file.parent.iterdir())


def test_a_staged_file_that_the_user_exchanged_is_not_switched_to(file: Path):
    engine = File(path=str(file))
    contents = Contents(lambda: [b"second\n"], list)
    swapping = engine.prepare()
    engine.stage(swapping, contents)
    with as_user():
        (file.parent / "other").write_text("other\n")
        os.rename(file.parent / "other", swapping.new)
    with pytest.raises(CastoreError, match="another process exchanged"):
        engine.swap(swapping, contents)
    engine.revert(swapping, contents, swapped=False)
    assert file.read_text() == "first\n"


def test_a_drill_is_for_root_only_and_not_made_where_others_exchange_it(home: Path, tmp_path: Path, castore):
    (home / "tree").mkdir(mode=0o755)
    (home / "tree" / "file").write_text("state\n")
    with as_user(), contextlib.closing(sqlite3.connect(home / "app.db")) as connection:
        connection.execute("CREATE TABLE t (x)")
    seen = tmp_path / "seen"
    check = f"stat -c '%a %U' $CASTORE_DRILL >{seen}; stat -c %a $CASTORE_DRILL_TREE_PATH >>{seen}; stat -c '%a %U' $CASTORE_DRILL_DB_PATH >>{seen}"
    config = tmp_path / "castore.toml"
    config.write_text(
        f'store = "{tmp_path}/store"\n[service.app]\ndrill-check = ["sh", "-c", "{check}"]\n'
        f'[service.app.parts.tree]\nengine = "tree"\npath = "{home}/tree"\n'
        f'[service.app.parts.db]\nengine = "sqlite"\npath = "{home}/app.db"\n'
    )
    castore("init", "--config", config)
    castore("snapshot", "--config", config, "app")
    castore("drill", "--config", config, "app")
    assert seen.read_text().splitlines() == ["700 root", "755", "600 root"]
    for mode, owner in ((0o777, 0), (0o755, USER)):
        scratch = tmp_path / f"scratch{owner}"
        scratch.mkdir()
        scratch.chmod(mode)
        os.chown(scratch, owner, owner)
        failed = castore("drill", "--config", config, "app", "--scratch", scratch, expect=1).stderr
        assert f"cannot make a scratch directory in {scratch}" in failed
        assert os.listdir(scratch) == []


def test_a_drill_restores_nothing_that_gives_rights(home: Path, tmp_path: Path, castore):
    tree = home / "tree"
    tree.mkdir(mode=0o755)
    for name, mode in {"plain": 0o4755, "large": 0o4755, "group": 0o2755, "capable": 0o755, "other": 0o755}.items():
        (tree / name).write_bytes(b"#!/bin/sh\n" + (os.urandom(400_000) if name == "large" else b""))
        (tree / name).chmod(mode)
    os.link(tree / "large", tree / "again")
    os.setxattr(tree / "capable", "security.capability", struct.pack("<5I", 0x02000001, 1 << 7, 0, 0, 0))
    os.setxattr(tree / "other", "security.castore", b"x")
    (tree / "sub").mkdir()
    (tree / "sub").chmod(0o2755)
    with contextlib.suppress(PermissionError):
        os.mknod(tree / "disk", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    check = tmp_path / "check.py"
    check.write_text(
        "import os, stat\n"
        "for folder, _, names in os.walk(os.environ['CASTORE_DRILL_TREE_PATH']):\n"
        "    for path in [folder, *(os.path.join(folder, name) for name in names)]:\n"
        "        mode = os.lstat(path).st_mode\n"
        "        assert not mode & 0o6000 and stat.S_IFMT(mode) in (stat.S_IFREG, stat.S_IFDIR), path\n"
        "        assert not [one for one in os.listxattr(path) if one.startswith('security.')], path\n"
        f"    names and print(len(names), file=open({str(tmp_path / 'seen')!r}, 'w'))\n"
    )
    config = tmp_path / "castore.toml"
    config.write_text(
        f'store = "{tmp_path}/store"\n[service.app]\ndrill-check = ["{sys.executable}", "{check}"]\n'
        f'[service.app.parts.tree]\nengine = "tree"\npath = "{tree}"\n'
    )
    castore("init", "--config", config)
    castore("snapshot", "--config", config, "app")
    castore("drill", "--config", config, "app")
    assert (tmp_path / "seen").read_text() == "6\n"


def test_config_check_names_parts_of_another_user(home: Path, tmp_path: Path, castore):
    (home / "tree").mkdir()
    os.chown(home / "tree", USER, USER)
    config = tmp_path / "castore.toml"
    config.write_text(f'store = "{tmp_path}/store"\n[service.app.parts.tree]\nengine = "tree"\npath = "{home}/tree"\n')
    castore("init", "--config", config)
    shown = castore("config", "check", "--config", config).stdout
    assert f"app: tree: run-as: {home}/tree belongs to the user id {USER}" in shown
    assert f"sudo -u '#{USER}' castore snapshot" in shown


@pytest.mark.parametrize("kind", ["link", "swap"])
def test_slapd_s_user_gets_no_file_of_root(kind: str, home: Path, precious: Path):
    """What slapadd left is given to slapd's user: links and hard links in it are refused."""
    new = home / "new"
    with as_user():
        new.mkdir()
    if kind == "link":
        (new / "data.mdb").symlink_to(precious)
    else:
        os.link(precious, new / "data.mdb")
    with pytest.raises(OSError, match=r"links|directory|permitted|regular"):
        ldap_directory.give_like(str(new), home.stat())  # the moment after the attack
    assert precious.stat().st_uid == 0


def test_looking_for_databases_and_users_of_files_waits_for_no_pipe(home: Path):
    with as_user():
        os.mkfifo(home / "app.db")
        os.mkfifo(home / "lock.mdb")
    assert not detect._is_sqlite(str(home / "app.db"))  # noqa: SLF001
    assert ldap_directory.is_locked(str(home)) == 0
    refuse_open(str(home / "app.db"))
