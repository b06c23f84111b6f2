"""A stored dump that somebody filled with commands: no engine runs them, in a rollback or in a drill."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import shutil
import sqlite3
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from castore.content.restore.metadata import Ownership
from castore.engines.base import Contents, Engine
from castore.engines.command import Command
from castore.engines.ldap import LDAP
from castore.engines.ldif import without_files
from castore.engines.mariadb.contents import digests_of
from castore.engines.mariadb.engine import MariaDB
from castore.engines.mariadb.inventory import End, Table
from castore.engines.mariadb.programs import Program
from castore.engines.postgresql.engine import PostgreSQL
from castore.engines.postgresql.roles import PostgreSQLRoles
from castore.engines.redis import Redis
from castore.engines.sqlite import SQLite
from castore.errors import CastoreError
from castore.services import drill
from castore.services.config import Service
from castore.services.sources import EngineSource
from tests.support.data_dir_templates import folder_for_servers
from tests.support.mariadb import MariaDBServer
from tests.support.postgres import Postgres, missing
from tests.support.stores import Sandbox

END = b"\n--\n-- PostgreSQL database dump complete\n--\n\n"
PSQL = {
    "alone": b"\\! touch MARK\n",
    "with its own key": b"\\restrict castore\n\n\\unrestrict castore\n\\! touch MARK\n",
    "after a pair around nothing": b"\\restrict a\nSELECT 1;\n\\unrestrict a\n\\! touch MARK\n\\unrestrict a\n",
    "in a query": b"SELECT 1 \\g |touch MARK\n",
    "after COPY data": b"CREATE TABLE x (a text);\nCOPY x FROM stdin;\n1\n\\.\n\\! touch MARK\n",
    "in the data of a COPY that fails": b"COPY missing FROM stdin;\n\\! touch MARK\n\\.\n",
    "by a backtick": b"\\set x `touch MARK`\n",
    "as the output": b"\\o |touch MARK\nSELECT 1;\n",
    "into a file": b"SELECT 1 \\g MARK\n",
    "a file as the output": b"\\o MARK\nSELECT 1;\n",
    "a query into a file": b"SELECT 1\n\\w MARK\n",
    "a copy into a file": b"\\copy (SELECT 1) TO 'MARK'\n",
    "a script": b"\\i /etc/hostname\n",
    "a copy of a file": b"CREATE TABLE x (a text);\n\\copy x FROM '/etc/hostname'\n",
    "a large object of a file": b"\\lo_import /etc/hostname\n",
}
MYSQL = {
    "backslash": b"\\! touch MARK\n",
    "system": b"system touch MARK\n",
    "after a statement": b"SELECT 1; system touch MARK;\n",
    "after a row": b"INSERT INTO t VALUES ('a'); \\! touch MARK\nINSERT INTO t VALUES ('b');\n",
    "after a comment": b"/* c */ system touch MARK;\n",
    "tee": b"tee MARK\nSELECT 1;\n",
    "source": b"source SCRIPT\n",
    "with another delimiter": b"DELIMITER ;;\nSELECT 1;; system touch MARK;;\n",
    "a local file": b"LOAD DATA LOCAL INFILE 'SCRIPT' INTO TABLE t;\n",
}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariaDBServer]:
    with MariaDBServer() as server:
        yield server


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that servers of other users can reach, as they cannot reach pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="castore-hostile-", dir=folder_for_servers()))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def mark() -> Iterator[Path]:
    """A file that a command makes, if one is run."""
    folder = Path(tempfile.mkdtemp(prefix="castore-mark-", dir=folder_for_servers()))
    folder.chmod(0o777)
    yield folder / "ran"
    left = list(folder.iterdir())
    shutil.rmtree(folder)
    assert left == []


def try_all(engine: Engine, dump: bytes, *, drilled: bool = True) -> list[str]:
    """Roll back to a dump, and drill it; return what was said."""
    contents = Contents(lambda: [dump], lambda: [dump])
    said = []
    swapping = engine.prepare()
    try:
        with contextlib.suppress(CastoreError):
            engine.preflight()
        try:
            engine.stage(swapping, contents)
            engine.swap(swapping, contents)
        except CastoreError as error:
            said.append(str(error))
    finally:
        engine.revert(swapping, contents, swapped=False)
    if not drilled:
        return said
    with drill_folder() as folder:
        try:
            with engine.drill(folder, contents):
                pass
        except CastoreError as error:
            said.append(str(error))
    assert "did not start" not in "".join(said)
    assert "Permission denied" not in "".join(said)
    return said


def mariadb_dump(name: str, script: bytes, view: str, **changed: str) -> bytes:
    """Return a dump as the engine stores it, with a script after its table, and a view."""
    introduction = {"charset": ["utf8mb4", "utf8mb4_bin"], "database": name, "mark": "ab"}
    program = {"type": "program", "kind": "view", "name": "v", "text": view.encode(), "charset": "utf8mb4", "collation": "utf8mb4_bin", **changed}
    records: list = [Table("t", "BASE TABLE"), *([msgspec.convert(program, Program)] if view else [])]
    records.append(End("10.11.0-MariaDB", (), digests_of(records)))
    tail = b"".join(b"-- castore ab: " + msgspec.json.encode(one) + b"\n" for one in records)
    text = f"-- castore: {json.dumps(introduction)}\nCREATE TABLE `t` (\n  `a` text DEFAULT NULL\n);\n".encode()
    return text + script + b"\n-- castore ab: views\n" + tail


@contextlib.contextmanager
def drill_folder() -> Iterator[str]:
    """Make a directory that a server of another user can reach."""
    top = tempfile.mkdtemp(prefix="castore-hostile-", dir=folder_for_servers())
    try:
        os.chmod(top, 0o711)
        folder = os.path.join(top, "drill")
        os.mkdir(folder, 0o711)
        yield folder
    finally:
        shutil.rmtree(top)


def wrapped(folder: Path, real: str, hidden: str, name: str) -> str:
    """Make a directory of programs in which one does not know an option; return it."""
    folder.mkdir()
    folder.chmod(0o755)
    for path in Path(real).iterdir():
        (folder / path.name).symlink_to(path)
    program = folder / name
    program.unlink()
    program.write_text(
        f'#!/bin/sh\ncase "$1" in --help*) {real}/{name} "$@" | grep -v -e "{hidden}"; exit;; esac\nexec {real}/{name} "$@"\n'
    )
    program.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize("old", [False, True], ids=["psql with restrict", "older psql"])
def test_a_postgresql_dump_runs_no_command(postgres: Postgres, mark: Path, public: Path, old: bool):
    programs = wrapped(public / "bin", postgres.programs, "restrict", "psql") if old else postgres.programs
    postgres.createdb("victim")
    try:
        engine = PostgreSQL(database="victim", host=postgres.socket_folder, user="postgres", program_path=programs)
        for name, script in PSQL.items():
            drilled = name in {"alone", "with its own key"}  # a server of its own takes a second
            dump = script.replace(b"MARK", str(mark).encode()) + END
            assert len(try_all(engine, dump, drilled=drilled)) == 1 + drilled, name
            assert not mark.exists(), name
        roles = PostgreSQLRoles(host=postgres.socket_folder, user="postgres", program_path=programs)
        for name, script in PSQL.items():
            try_all_roles(roles, script.replace(b"MARK", str(mark).encode()))
            assert not mark.exists(), name
    finally:
        postgres.dropdb("victim")


def try_all_roles(roles: PostgreSQLRoles, dump: bytes) -> None:
    contents = Contents(lambda: [b"CREATE ROLE hostile; \n" + dump], lambda: [dump])
    with contextlib.suppress(CastoreError):
        roles.swap({}, contents)
    with contextlib.suppress(CastoreError):
        roles.stage({}, Contents(lambda: [b"CREATE ROLE hostile; " + dump], lambda: [dump]))


def test_the_word_in_a_postgresql_dump_is_secret_and_stays(postgres: Postgres, tmp_path: Path):
    postgres.createdb("worded")
    try:
        engine = PostgreSQL(database="worded", host=postgres.socket_folder, user="postgres", program_path=postgres.programs)
        words = []
        for sandbox in (Sandbox(tmp_path / "one"), Sandbox(tmp_path / "two")):
            for service, part in (("s", "db"), ("s", "db"), ("s", "other"), ("t", "db")):
                sandbox.snapshot(service, {part: EngineSource("postgresql", engine)})
                number = max(one.number for one in sandbox.open(identity=False).generations.all(service))
                sandbox.restore(f"{service}@{number}:{part}", tmp_path / "out")
                text = (tmp_path / "out" / part).read_text()
                shutil.rmtree(tmp_path / "out")
                (word,) = {line.split()[1] for line in text.splitlines() if line.startswith(("\\restrict ", "\\unrestrict "))}
                words.append(word)
        assert words[0] == words[1]
        assert words[4] == words[5]
        assert len(set(words)) == 6
        assert all(len(word) == 64 for word in words)
    finally:
        postgres.dropdb("worded")


def test_the_first_line_of_a_postgresql_dump_grants_rights_only():
    from castore.engines.postgresql.sql import adornments, quoted_text

    was = {"settings": None, "datconnlimit": -1, "comment": None, "restricted": False, "rights": [[None, "CONNECT ON DATABASE x TO y; \\! touch x --", False]]}
    with pytest.raises(CastoreError, match="not a right to a database"):
        list(adornments("new", was, set()))
    with pytest.raises(CastoreError, match="zero byte"):
        quoted_text("a\0b")


@pytest.mark.parametrize("old", [False, True], ids=["client with a sandbox", "older client"])
def test_a_mariadb_dump_runs_no_command(mariadb: MariaDBServer, mark: Path, public: Path, old: bool):
    name = f"victim{random.randrange(10**9)}"
    mariadb.sql(f"CREATE DATABASE {name}; CREATE TABLE {name}.t (a text)")
    programs = wrapped(public / "bin", "/usr/bin", "--sandbox", "mariadb") if old else None
    script = public / "script"
    script.write_text(f"\\! touch {mark}\n")
    script.chmod(0o644)
    engine = MariaDB(database=name, socket=mariadb.socket, user="root", program_path=programs)
    for case, text in MYSQL.items():
        hostile = text.replace(b"MARK", str(mark).encode()).replace(b"SCRIPT", str(script).encode())
        drilled = case in {"backslash", "a local file"}
        for at, dump in enumerate((mariadb_dump(name, hostile, ""), mariadb_dump(name, b"", hostile.decode()))):
            is_drilled = drilled and (at == 0) != old
            assert len(try_all(engine, dump, drilled=is_drilled)) == 1 + is_drilled, case
            assert not mark.exists(), case
    assert len(try_all(engine, b"CREATE TABLE t (a text);\n", drilled=old)) == 1 + old
    for changed in ({"charset": f"utf8mb4;\nsystem touch {mark}\n"}, {"mode": f"';\nsystem touch {mark}\n"}, {"kind": "user"}):
        dump = mariadb_dump(name, b"", "CREATE VIEW v AS SELECT 1", **changed)
        assert all("is not valid" in said for said in try_all(engine, dump, drilled="kind" in changed))
    mariadb.sql(f"DROP DATABASE {name}")


def test_a_mariadb_client_that_cannot_refuse_commands_is_not_used(mariadb: MariaDBServer, public: Path):
    programs = wrapped(public / "bin", "/usr/bin", "--sandbox\\|--binary-mode", "mariadb")
    with pytest.raises(CastoreError, match="neither --sandbox nor --binary-mode"):
        MariaDB(database="mysql", socket=mariadb.socket, user="root", program_path=programs).check()


def test_a_mariadb_dump_reaches_no_file_in_a_drill(mariadb: MariaDBServer, mark: Path, public: Path):
    """Statements that the server carries out, with all rights, in the server of a drill."""
    secret = public / "secret"
    secret.write_text("a secret\n")
    secret.chmod(0o644)
    engine = MariaDB(database="mysql", socket=mariadb.socket, user="root")
    writes = f"INSERT INTO t SELECT 'x' INTO OUTFILE '{mark}';\n"
    for statement in (writes.replace("INSERT INTO t ", ""), f"LOAD DATA INFILE '{secret}' INTO TABLE t;\n"):
        dump = mariadb_dump("victim", statement.encode(), "")
        with drill_folder() as folder, pytest.raises(CastoreError, match="secure"), engine.drill(folder, Contents(lambda dump=dump: [dump], list)):
            pass
    dump = mariadb_dump("victim", f"CREATE TABLE u AS SELECT LOAD_FILE('{secret}') IS NULL AS unread;\nDROP TABLE u;\n".encode(), "")
    with drill_folder() as folder, contextlib.suppress(CastoreError), engine.drill(folder, Contents(lambda: [dump], list)):
        pass
    assert not mark.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a server as another user")
def test_what_a_postgresql_dump_runs_in_a_drill_is_not_the_live_servers_user(postgres: Postgres, public: Path):
    """A superuser's dump can start programs in the server that it is loaded into."""
    out = public / "out"
    out.mkdir()
    out.chmod(0o777)
    engine = PostgreSQL(database="x", host=postgres.socket_folder, user="postgres", program_path=postgres.programs)
    dump = f"COPY (SELECT 1) TO PROGRAM 'id -un > {out}/user';\n".encode() + END
    with drill_folder() as folder, contextlib.suppress(CastoreError), engine.drill(folder, Contents(lambda: [dump], lambda: [dump])):
        pass
    assert (out / "user").read_text() == "nobody\n"


def slapd_configuration(folder: Path) -> tuple[Path, Path]:
    """Make the configuration of a slapd with one database; return its directory, and that of the data."""
    if shutil.which("slapadd", path="/usr/sbin:/usr/bin:" + os.environ["PATH"]) is None:
        missing("there is no slapadd")
    conf, data = folder / "conf", folder / "data"
    conf.mkdir()
    data.mkdir()
    config = (
        "dn: cn=config\nobjectClass: olcGlobal\ncn: config\n\ndn: cn=module,cn=config\nobjectClass: olcModuleList\ncn: module\n"
        "olcModulePath: /usr/lib/ldap\nolcModuleLoad: back_mdb\n\ndn: cn=schema,cn=config\nobjectClass: olcSchemaConfig\ncn: schema\n\n"
        "include: file:///etc/ldap/schema/core.ldif\n\ndn: olcDatabase=mdb,cn=config\nobjectClass: olcDatabaseConfig\nobjectClass: olcMdbConfig\n"
        f"olcDatabase: mdb\nolcSuffix: dc=x\nolcDbDirectory: {data}\n"
    )
    subprocess.run(["/usr/sbin/slapadd", "-F", str(conf), "-n", "0"], input=config.encode(), check=True, capture_output=True)
    return conf, data


def test_another_spelling_of_a_suffix_does_not_lead_to_the_live_directory(tmp_path: Path):
    """Slapadd would find the live database by it."""
    conf, data = slapd_configuration(tmp_path)
    before = sorted(data.iterdir())
    dump = b"dn: dc=x\nobjectClass: dcObject\nobjectClass: organization\ndc: x\no: hostile\n\n"
    for suffix in (" dc=x", "dc= x", "dc=x ", "0.9.2342.19200300.100.1.25=x", "ou=a,dc=x"):
        engine = LDAP(suffix=suffix, config=str(conf))
        with (
            drill_folder() as folder,
            pytest.raises(CastoreError, match="no database with the suffix"),
            engine.drill(folder, Contents(lambda: [dump], list)),
        ):
            pass
        assert sorted(data.iterdir()) == before


EXTENSION = """
#include <fcntl.h>
__attribute__((constructor)) static void run(void) { open("MARK", O_CREAT | O_WRONLY, 0644); }
int sqlite3_extension_init(void *a, void *b, void *c) { return 0; }
"""


def test_a_sqlite_database_loads_no_extension(mark: Path, tmp_path: Path):
    source, library, path = tmp_path / "e.c", tmp_path / "e.so", tmp_path / "live.db"
    source.write_text(EXTENSION.replace("MARK", str(mark)))
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    for made in ("CREATE TABLE t (a CHECK (load_extension('LIB') IS NULL))", "CREATE TABLE t (a, b AS (load_extension('LIB')))"):
        hostile = tmp_path / "hostile.db"
        with contextlib.closing(sqlite3.connect(hostile)) as database:
            database.executescript("CREATE TABLE t (a); INSERT INTO t VALUES (1); PRAGMA writable_schema = ON")
            database.execute("UPDATE sqlite_schema SET sql = ?", (made.replace("LIB", str(library)),))
            database.commit()
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.executescript("CREATE TABLE IF NOT EXISTS live (a)")
        try_all(SQLite(path=str(path)), hostile.read_bytes())
        hostile.unlink()
        assert not mark.exists()


@pytest.mark.parametrize("line", ["description:< file://FILE", "description: < file://FILE", "desc\n ription:\n < file://FILE", "include: file://FILE", "inc\n lude: file://FILE", "description;x-" + "\n ".join(["a" * 70] * 80) + ":< file://FILE"])
@pytest.mark.parametrize("size", [1, 5, 10_000])
def test_ldif_reads_no_other_file(line: str, size: int):
    text = f"dn: cn=x\nobjectClass: person\ndescription: a <b\n # c:<d\n{line}\n\n".encode()
    with pytest.raises(CastoreError, match="read another file"):
        list(without_files(text[at : at + size] for at in range(0, len(text), size)))


def test_harmless_ldif_passes_unchanged():
    text = b"dn: cn=x\ndescription: a:<b\n\njpegPhoto:: AAAA\n BBBB\nseeAlso: ldap:///<\nlast: without end"
    for size in (1, 3, 1000):
        assert b"".join(without_files(text[at : at + size] for at in range(0, len(text), size))) == text


def test_slapadd_does_not_put_a_local_file_into_the_directory(tmp_path: Path):
    conf, _ = slapd_configuration(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("a secret")
    dump = f"dn: dc=x\nobjectClass: dcObject\nobjectClass: organization\ndc: x\no: x\ndescription:< file://{secret}\n\n".encode()
    said = try_all(LDAP(suffix="dc=x", config=str(conf)), dump)
    assert len(said) == 2
    assert all("read another file" in one for one in said)


def test_a_redis_file_that_is_none_is_refused_in_a_server_of_its_own(mark: Path, tmp_path: Path):
    if shutil.which("redis-server") is None:
        missing("there is no redis-server")
    dump = b"REDIS0009\xfa\nredis-ver\x056.0.0" + f"\n\\! touch {mark}\nEVAL \"os.execute('touch {mark}')\" 0\n".encode()
    with (
        drill_folder() as folder,
        pytest.raises(CastoreError, match="did not start"),
        Redis().drill(folder, Contents(lambda: [dump], lambda: [dump])),
    ):
        pass


@pytest.mark.parametrize("program", ["psql", "mariadb", "sqlite3"])
def test_a_client_that_a_user_names_runs_no_command_either(
    program: str, postgres: Postgres, mariadb: MariaDBServer, mark: Path, tmp_path: Path
):
    restore = {
        "psql": (f"{postgres.programs}/psql", "-X", "-h", postgres.socket_folder, "-U", "postgres", "-d", "postgres"),
        "mariadb": ("mariadb", "--no-defaults", f"--socket={mariadb.socket}", "--user=root", "mysql"),
        "sqlite3": ("sqlite3", str(tmp_path / "x.db")),
    }[program]
    text = {"psql": "\\! touch MARK\n", "mariadb": "system touch MARK\n", "sqlite3": ".shell touch MARK\n"}[program]
    dump = text.replace("MARK", str(mark)).encode()
    engine = Command(program=("true",), restore=restore)
    with pytest.raises(CastoreError):
        engine.swap({}, Contents(lambda: [dump], lambda: [dump]))


@pytest.mark.parametrize(
    "script",
    [".output MARK\nSELECT 1;\n", ".once MARK\nSELECT 1;\n", ".backup MARK\n", ".log MARK\n", "ATTACH 'MARK' AS a; CREATE TABLE a.t (x);\n", "VACUUM INTO 'MARK';\n", "SELECT writefile('MARK', 'x');\n", ".read /etc/hostname\n", "SELECT readfile('/etc/hostname');\n", ".import /etc/hostname t\n", ".load /tmp/x\n"],
)
def test_a_client_of_sqlite_reaches_no_other_file(script: str, mark: Path, tmp_path: Path):
    engine = Command(program=("true",), restore=("sqlite3", "-bail", str(tmp_path / "x.db")))
    dump = script.replace("MARK", str(mark)).encode()
    with pytest.raises(CastoreError):
        engine.swap({}, Contents(lambda: [dump], list))


def behind_others(client: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [
        ("env", "X=1", *client),
        ("sh", "-c", " ".join(client)),
        ("bash", "-e", "-c", "exec " + " ".join(client)),
    ]


@pytest.mark.parametrize("program", ["psql", "mariadb", "sqlite3"])
def test_a_client_that_another_program_starts_runs_no_command(
    program: str, postgres: Postgres, mariadb: MariaDBServer, mark: Path, tmp_path: Path
):
    client, hostile, harmless = {
        "psql": (
            (f"{postgres.programs}/psql", "-X", "-h", postgres.socket_folder, "-U", "postgres", "postgres"),
            "\\! touch MARK\n",
            "SELECT 1;\n",
        ),
        "mariadb": (
            ("mariadb", "--no-defaults", f"--socket={mariadb.socket}", "--user=root", "mysql"),
            "system touch MARK\n",
            "SELECT 1;\n",
        ),
        "sqlite3": (("sqlite3", str(tmp_path / "x.db")), ".shell touch MARK\n", "CREATE TABLE t (a);\n"),
    }[program]
    restores = behind_others(client)
    if program != "psql":
        restores.append(("sh", "-c", "cat | " + " ".join(client)))
    for restore in restores:
        engine = Command(program=("true",), restore=restore)
        dump = hostile.replace("MARK", str(mark)).encode()
        with pytest.raises(CastoreError):
            engine.swap({}, Contents(lambda dump=dump: [dump], list))
        (tmp_path / "x.db").unlink(missing_ok=True)
        engine.swap({}, Contents(lambda: [harmless.encode()], list))
        (tmp_path / "x.db").unlink(missing_ok=True)


def test_a_client_for_ldif_that_a_user_names_reads_no_other_file(tmp_path: Path):
    taken = tmp_path / "taken"
    client = tmp_path / "ldapadd"
    client.write_text(f"#!/bin/sh\ncat > {taken}\n")
    client.chmod(0o755)
    dump = b"dn: cn=x\njpegPhoto:< file:///etc/shadow\n"
    with pytest.raises(CastoreError, match="read another file"):
        Command(program=("true",), restore=(str(client), "-x")).swap({}, Contents(lambda: [dump], list))
    assert b"shadow" not in (taken.read_bytes() if taken.exists() else b"")


def test_a_hostile_dump_in_a_store_is_not_drilled(postgres: Postgres, mark: Path, public: Path, tmp_path: Path):
    sandbox = Sandbox(tmp_path / "sandbox")
    hostile = public / "pg_dump"
    hostile.write_text(f"#!/bin/sh\n[ \"$1\" = --help ] && exit\ncat <<'X'\n\\! touch {mark}\n{END.decode()}\nX\n")
    for path in Path(postgres.programs).iterdir():
        if path.name != "pg_dump":
            (public / path.name).symlink_to(path)
    hostile.chmod(hostile.stat().st_mode | stat.S_IXUSR)
    engine = PostgreSQL(database="postgres", host=postgres.socket_folder, user="postgres", program_path=str(public))
    taken = sandbox.snapshot("s", {"db": EngineSource("postgresql", engine)})
    with sandbox.open() as store, pytest.raises(CastoreError, match="s@1:db: "):
        drill.drill(store, drill.DrillRequest(taken, {}, Service(), Ownership(change=os.geteuid() == 0)))
    with pytest.raises(CastoreError):
        sandbox.rollback(1, take_pre_rollback=False)


@pytest.mark.parametrize("around", ["{}", "env X=1 {}", "sh -c '{}'"])
@pytest.mark.parametrize("kind", ["psql", "mariadb", "sqlite3"])
def test_a_dump_that_deletes_no_tables_is_refused_where_tables_exist(
    kind: str, around: str, postgres: Postgres, mariadb: MariaDBServer, tmp_path: Path
):
    name = f"plain{random.randrange(10**9)}"
    postgres.createdb(name)
    mariadb.sql(f"CREATE DATABASE {name}")
    server = f"-h {postgres.socket_folder} -U postgres {name}"
    local = f"--no-defaults --socket={mariadb.socket} --user=root"
    dump, restore, make = {
        "psql": (f"{postgres.programs}/pg_dump {server}", f"{postgres.programs}/psql -X -q -v ON_ERROR_STOP=1 {server}", "-c"),
        "mariadb": (f"mariadb-dump {local} --skip-add-drop-table {name}", f"mariadb {local} {name}", "-e"),
        "sqlite3": (f"sqlite3 {tmp_path}/x.db .dump", f"sqlite3 {tmp_path}/x.db", ""),
    }[kind]
    table = "CREATE TABLE t (a int)"
    subprocess.run([*restore.split(), *([make] if make else []), table], check=True)
    taken = subprocess.run(dump.split(), check=True, capture_output=True).stdout
    engine = Command(program=tuple(shlex.split(around.format(dump))), restore=tuple(shlex.split(around.format(restore))))
    with pytest.raises(CastoreError, match="the database has tables"):
        engine.preflight()
    subprocess.run([*restore.split(), *([make] if make else []), "DROP TABLE t"], check=True)
    engine.preflight()
    engine.swap({}, Contents(lambda: [taken], list))
    with pytest.raises(CastoreError, match="the database has tables"):
        engine.preflight()
    postgres.dropdb(name)
    mariadb.sql(f"DROP DATABASE {name}")
