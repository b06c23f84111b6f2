"""Redis and OpenLDAP, whose servers have to be stopped for a rollback."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from castore.content.restore.metadata import Ownership
from castore.engines import ldap_directory
from castore.engines.base import Engine
from castore.engines.ldap import LDAP
from castore.engines.password import Secret
from castore.engines.redis import Redis
from castore.errors import CastoreError, ProgramError
from castore.services import drill
from castore.services.config import Service
from castore.services.rollback import execute, preparation
from castore.services.sources import EngineSource
from tests.support.data_dir_templates import folder_for_servers
from tests.support.postgres import missing
from tests.support.stores import Sandbox

PATH = os.environ["PATH"] + ":/usr/sbin"


@dataclass
class Server:
    """A server that hooks can start and stop, as programs of their own."""

    folder: Path
    engine: Engine
    name: str
    command: str
    ready: list[str]
    state: Callable[[], str]
    change: Callable[[], None]

    @property
    def hooks(self) -> Service:
        pid = self.folder / "pid"
        start = f"{self.command} >>{self.folder}/log 2>&1 & echo $! >{pid}; for i in $(seq 200); do {shlex.join(self.ready)} >/dev/null 2>&1 && exit 0; sleep 0.05; done; exit 1"
        # A process that has ended exists until init has noticed that, which may take a second.
        stop = f"kill $(cat {pid}); while grep -qs '^State:.[^ZX]' /proc/$(cat {pid})/status; do sleep 0.02; done; rm {pid}"
        return Service(stop=("sh", "-c", stop), start=("sh", "-c", start), health=tuple(self.ready), health_timeout=5)

    def start(self) -> None:
        subprocess.run(self.hooks.start, check=True, timeout=60)

    def stop(self) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            descriptor = os.pidfd_open(int((self.folder / "pid").read_text()))
            try:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                select.select([descriptor], [], [], 10)
            finally:
                os.close(descriptor)

    def leftovers(self) -> list[str]:
        return [name for folder, dirs, files in os.walk(self.folder) for name in (*dirs, *files) if "castore" in name]


def run(*argv: str, given: str = "") -> str:
    done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}{done.stdout}"
    return done.stdout


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="srv-", dir=folder_for_servers()))  # a socket's path is short
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def redis(folder: Path) -> Iterator[Server]:
    if shutil.which("redis-server") is None:
        missing("there is no redis-server in PATH")
    socket = str(folder / "socket")
    client = ["redis-cli", "-s", socket, "-a", "pass word", "--no-auth-warning"]
    (folder / "password").write_text("pass word\n")
    (folder / "conf").write_text(
        f'port 0\nunixsocket {socket}\ndir {folder}\ndbfilename dump.rdb\nrequirepass "pass word"\nsave 3600 1\nrepl-diskless-sync-delay 0\n'
    )

    def state() -> str:
        keys = sorted(run(*client, "KEYS", "*").split())
        return "\n".join([*keys, run(*client, "GET", "counter"), run(*client, "LRANGE", "list", "0", "-1"), run(*client, "HGETALL", "hash")])

    def change() -> None:
        run(*client, "SET", "counter", "2")
        run(*client, "DEL", "list")
        run(*client, "SET", "new", "key")

    server = Server(
        folder,
        Redis(socket=socket, password=Secret(file=str(folder / "password"))),
        "redis",
        f"redis-server {folder}/conf",
        ["test", "-S", socket],
        state,
        change,
    )
    server.start()
    try:
        for _ in range(100):
            if subprocess.run([*client, "PING"], capture_output=True, check=False).stdout == b"PONG\n":
                break
            time.sleep(0.05)
        run(*client, "SET", "counter", "1")
        run(*client, "RPUSH", "list", "a", "b", "ä")
        run(*client, "HSET", "hash", "f", "v")
        yield server
    finally:
        server.stop()


CONFIG = """dn: cn=config
objectClass: olcGlobal
cn: config
olcPidFile: {0}/slapd.pid

dn: cn=module,cn=config
objectClass: olcModuleList
cn: module
olcModulePath: /usr/lib/ldap
olcModuleLoad: back_mdb

dn: cn=schema,cn=config
objectClass: olcSchemaConfig
cn: schema

include: file:///etc/ldap/schema/core.ldif

dn: olcDatabase=mdb,cn=config
objectClass: olcDatabaseConfig
objectClass: olcMdbConfig
olcDatabase: mdb
olcSuffix: dc=example,dc=org
olcRootDN: cn=admin,dc=example,dc=org
olcRootPW: secret
olcDbDirectory: {0}/data
olcDbMaxSize: 10485760
"""
ENTRIES = """dn: dc=example,dc=org
objectClass: dcObject
objectClass: organization
dc: example
o: Exämple with a line that is so long that slapcat has to fold it onto a second one, which it does

dn: ou=people,dc=example,dc=org
objectClass: organizationalUnit
ou: people
"""
PERSON = "dn: cn={0},ou=people,dc=example,dc=org\nobjectClass: person\ncn: {0}\nsn: {0}\ndescription: {1}\n\n"


@pytest.fixture
def ldap(folder: Path) -> Iterator[Server]:
    if shutil.which("slapd", path=PATH) is None or shutil.which("ldapadd") is None:
        missing("there is no slapd in PATH")
    slapd, slapadd = shutil.which("slapd", path=PATH), shutil.which("slapadd", path=PATH)
    for name in ("conf", "data"):
        (folder / name).mkdir()
    run(str(slapadd), "-F", str(folder / "conf"), "-n", "0", given=CONFIG.format(folder))
    url = "ldapi://" + str(folder / "socket").replace("/", "%2F")
    who = ["-x", "-H", url, "-D", "cn=admin,dc=example,dc=org", "-w", "secret"]

    def state() -> str:
        return "\n\n".join(sorted(run("ldapsearch", *who, "-LLL", "-b", "dc=example,dc=org").split("\n\n")))

    def change() -> None:
        run("ldapdelete", *who, "cn=p3,ou=people,dc=example,dc=org")
        run("ldapadd", *who, given=PERSON.format("new", "x"))

    server = Server(
        folder,
        LDAP(suffix="dc=example,dc=org", config=str(folder / "conf")),
        "ldap",
        f"{slapd} -d 0 -F {folder}/conf -h {url}",
        ["ldapsearch", "-x", "-H", url, "-b", "", "-s", "base"],
        state,
        change,
    )
    server.start()
    try:
        run("ldapadd", *who, given=ENTRIES + "\n" + "".join(PERSON.format(f"p{n}", "d" * (n + 1)) for n in range(200)))
        yield server
    finally:
        server.stop()


@pytest.fixture(params=["redis", "ldap"])
def server(request: pytest.FixtureRequest) -> Server:
    return request.getfixturevalue(request.param)


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path / "sandbox")


def rollback(sandbox: Sandbox, number: int, settings: Service, **options) -> execute.RolledBack:
    return sandbox.rollback(number, settings, **options)


def test_a_server_goes_back_and_forth(sandbox: Sandbox, server: Server):
    server.engine.check()
    first = server.state()
    sandbox.snapshot("s", {"db": EngineSource(server.name, server.engine)})
    server.change()
    second = server.state()
    assert second != first
    done = rollback(sandbox, 1, server.hooks)
    assert server.state() == first
    assert done.pre_rollback is not None
    rollback(sandbox, done.pre_rollback.number, server.hooks)
    assert server.state() == second
    assert server.leftovers() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may run programs as another user")
def test_the_programs_of_a_server_are_run_as_another_user(sandbox: Sandbox, server: Server):
    user = {"redis": "redis", "ldap": "openldap"}[server.name]
    server.folder.chmod(0o755)
    for folder, _, files in os.walk(server.folder):
        for path in (folder, *(os.path.join(folder, name) for name in files)):
            shutil.chown(path, user)
    engine = msgspec.structs.replace(server.engine, run_as=user)
    first = server.state()
    sandbox.snapshot("s", {"db": EngineSource(server.name, engine)})
    server.change()
    rollback(sandbox, 1, server.hooks)
    assert server.state() == first
    with sandbox.open() as store:
        drill.drill(store, drill.DrillRequest(store.generations.get("s", 1), {}, Service(), Ownership(change=True)))


def test_a_server_that_is_not_healthy_is_reverted(sandbox: Sandbox, server: Server):
    sandbox.snapshot("s", {"db": EngineSource(server.name, server.engine)})
    server.change()
    second = server.state()
    hooks = server.hooks
    broken = Service(stop=hooks.stop, start=hooks.start, health=("false",), health_timeout=0.1)
    with pytest.raises(ProgramError, match="health"):
        rollback(sandbox, 1, broken)
    assert server.state() == second
    assert server.leftovers() == []


def test_a_generation_is_drilled(sandbox: Sandbox, server: Server):
    taken = sandbox.snapshot("s", {"db": EngineSource(server.name, server.engine)})
    server.change()
    with sandbox.open() as store:
        ownership = Ownership(change=os.geteuid() == 0, numeric=True)
        done = drill.drill(store, drill.DrillRequest(taken, {}, Service(), ownership))
    assert done.parts["db"].startswith("3 keys" if server.name == "redis" else "202 entries")


def test_redis_has_to_be_stopped(sandbox: Sandbox, redis: Server):
    sandbox.snapshot("s", {"db": EngineSource("redis", redis.engine)})
    redis.change()
    second = redis.state()
    with pytest.raises(CastoreError, match="still runs"):
        rollback(sandbox, 1, Service())
    assert redis.state() == second
    assert redis.leftovers() == []


def test_a_wrong_password_is_reported(sandbox: Sandbox, redis: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CASTORE_TEST_SECRET", "wrong")
    engine = Redis(socket=redis.engine.socket, password=Secret(env="CASTORE_TEST_SECRET"))
    with pytest.raises(ProgramError) as caught:
        engine.check()
    assert "wrong" not in str(caught.value).replace("WRONGPASS", "")
    with pytest.raises(ProgramError):
        sandbox.snapshot("s", {"db": EngineSource("redis", engine)})


def test_an_unknown_suffix_is_reported(sandbox: Sandbox, ldap: Server):
    engine = LDAP(suffix="dc=other", config=ldap.engine.config)
    with pytest.raises(ProgramError, match="no database of 'dc=other'"):
        engine.check()
    with pytest.raises(ProgramError):
        sandbox.snapshot("s", {"db": EngineSource("ldap", engine)})


def ask(redis: Server, *words: str) -> str:
    return run("redis-cli", "-s", redis.engine.socket, "-a", "pass word", "--no-auth-warning", *words).strip()


@pytest.fixture
def unsaving(redis: Server) -> Server:
    """A server whose configuration says that it keeps nothing when it is stopped."""
    conf = redis.folder / "conf"
    conf.write_text(conf.read_text().replace("save 3600 1", 'save ""'))
    ask(redis, "CONFIG", "SET", "save", "")
    return redis


def test_a_server_that_does_not_save_when_it_is_stopped_loses_nothing(sandbox: Sandbox, unsaving: Server):
    redis = unsaving
    first = redis.state()
    sandbox.snapshot("s", {"db": EngineSource("redis", redis.engine)})
    redis.change()
    ask(redis, "SAVE")  # what is in the file is old from here on
    ask(redis, "SET", "counter", "newest")
    second = redis.state()
    hooks = redis.hooks
    broken = Service(stop=hooks.stop, start=hooks.start, health=("false",), health_timeout=0.1)
    with pytest.raises(ProgramError, match="health"):
        rollback(sandbox, 1, broken)
    assert redis.state() == second
    late = ["redis-cli", "-s", redis.engine.socket, "-a", "pass word", "--no-auth-warning", "SET", "counter", "late"]
    write_late = Service(stop=("sh", "-c", f"{shlex.join(late)}; {hooks.stop[2]}"), start=hooks.start)
    done = rollback(sandbox, 1, write_late)
    assert redis.state() == first
    assert done.pre_rollback is not None
    rollback(sandbox, done.pre_rollback.number, hooks)
    assert ask(redis, "GET", "counter") == "late"
    assert redis.leftovers() == []


def test_a_roll_back_that_does_not_come_to_the_stop_leaves_the_settings_alone(sandbox: Sandbox, unsaving: Server):
    sandbox.snapshot("s", {"db": EngineSource("redis", unsaving.engine)})
    unsaving.change()
    second = unsaving.state()
    with pytest.raises(ProgramError, match="false"):
        rollback(sandbox, 1, Service(stop=("false",), start=("true",)))
    assert unsaving.state() == second
    assert ask(unsaving, "CONFIG", "GET", "save") == "save"
    assert unsaving.leftovers() == []


@pytest.mark.parametrize("take_pre_rollback", [True, False])
def test_a_server_that_was_stopped_without_saving_is_reverted(sandbox: Sandbox, redis: Server, take_pre_rollback: bool):
    sandbox.snapshot("s", {"db": EngineSource("redis", redis.engine)})
    redis.change()
    second = redis.state()
    hooks = redis.hooks
    killing = Service(stop=("sh", "-c", hooks.stop[2].replace("kill $", "kill -9 $", 1)), start=hooks.start)
    with pytest.raises(CastoreError, match="stopped without writing"):
        rollback(sandbox, 1, killing, take_pre_rollback=take_pre_rollback)
    for _ in range(100):
        if subprocess.run(["redis-cli", "-s", redis.engine.socket, "-a", "pass word", "PING"], capture_output=True, check=False).stdout == b"PONG\n":
            break
        time.sleep(0.05)
    assert redis.state() == second
    assert redis.leftovers() == []


def test_a_server_that_keeps_an_append_only_file_is_refused_and_drilled(sandbox: Sandbox, redis: Server):
    ask(redis, "CONFIG", "SET", "appendonly", "yes")
    taken = sandbox.snapshot("s", {"db": EngineSource("redis", redis.engine)})
    redis.change()
    second = redis.state()
    with pytest.raises(CastoreError, match=r"append-only file.*nothing was changed"):
        rollback(sandbox, 1, redis.hooks)
    assert redis.state() == second
    with sandbox.open() as store:
        done = drill.drill(store, drill.DrillRequest(taken, {}, Service(), Ownership(change=os.geteuid() == 0, numeric=True)))
    assert done.parts["db"].startswith("3 keys")


def test_a_file_that_the_server_does_not_write_is_reported(sandbox: Sandbox, redis: Server, tmp_path: Path):
    (tmp_path / "other.rdb").write_bytes(b"REDIS")
    engine = Redis(socket=redis.engine.socket, password=redis.engine.password, path=str(tmp_path / "other.rdb"))
    sandbox.snapshot("s", {"db": EngineSource("redis", engine)})
    with pytest.raises(CastoreError, match=r"does not write .*other.rdb"):
        rollback(sandbox, 1, redis.hooks)
    assert sorted(os.listdir(tmp_path)) == ["other.rdb", "sandbox"]


def test_slapd_has_to_be_stopped(sandbox: Sandbox, ldap: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ldap_directory, "_END_SECONDS", 0.2)
    sandbox.snapshot("s", {"db": EngineSource("ldap", ldap.engine)})
    ldap.change()
    second = ldap.state()
    for watch in ("is_locked", "is_open"):
        with monkeypatch.context() as only, pytest.raises(CastoreError, match=r"slapd still has .*/data open"):
            only.setattr(ldap_directory, watch, lambda _data: 0)
            rollback(sandbox, 1, Service())
    assert ldap.state() == second
    assert ldap.leftovers() == []


def test_no_entry_is_shown_when_a_dump_does_not_load(sandbox: Sandbox, ldap: Server, capfd, monkeypatch: pytest.MonkeyPatch):
    sandbox.snapshot("s", {"db": EngineSource("ldap", ldap.engine)})
    ldap.change()
    real = preparation.contents_of

    def broken(*given):
        found = real(*given)
        return found._replace(restore_dump=lambda: [b"".join(found.restore_dump()).replace(b"cn: p7\n", b"cn: p7\nsecretAttribute: x\n")])

    monkeypatch.setattr(preparation, "contents_of", broken)
    with pytest.raises(ProgramError, match=r"slapadd failed.*line=\d+") as caught:
        rollback(sandbox, 1, ldap.hooks)
    assert "cn=p7" not in str(caught.value) + capfd.readouterr().err
