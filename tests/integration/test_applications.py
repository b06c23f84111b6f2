"""Applications of Debian with their own installers, writers and upgrades: guard, follow, drill, rollback and undo."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import pytest

from tests.support.data_dir_templates import folder_for_servers
from tests.support.distro_packages import WORDPRESS, php, unpacked
from tests.support.mariadb import MariaDBServer
from tests.support.postgres import Postgres

Run = Callable[..., subprocess.CompletedProcess]

DRIVERS = Path(__file__).parents[1] / "support" / "applications"
TOML = """
[service.app]
revision = {{ link = "{top}/system" }}
follow = "restore"
health = ["sh", "{top}/system/health"]
health-timeout = 1
undo = ["ln", "-sfn", "revision-1", "{top}/system"]

[service.app.parts.db]
engine = "{engine}"
database = "app"
user = "{user}"
{where}
"""
MARIADB_DUMP = ("--skip-comments", "--skip-dump-date", "--order-by-primary", "--hex-blob", "--routines", "--events", "--triggers")


@dataclass
class Live(ABC):
    """A database that an application uses."""

    @property
    @abstractmethod
    def keys(self) -> dict[str, str]:
        """What of castore.toml describes it."""

    @abstractmethod
    def create(self) -> None:
        """Make it, empty."""

    @abstractmethod
    def run(self, sql: str) -> str:
        """Run SQL; return what it prints."""

    @abstractmethod
    def spoil(self, table: str) -> None:
        """Drop a table, and whatever else hangs on it."""

    @abstractmethod
    def state(self) -> tuple[str, str]:
        """Return its text as the server's own dump program writes it, and a checksum of each table's rows."""

    @abstractmethod
    def left(self) -> list[str]:
        """Return what is on the server apart from it."""


@dataclass
class OnMariaDB(Live):
    server: MariaDBServer

    @property
    def keys(self) -> dict[str, str]:
        return {"engine": "mariadb", "user": "root", "where": f'socket = "{self.server.socket}"'}

    def create(self) -> None:
        self.server.sql("DROP DATABASE IF EXISTS app; CREATE DATABASE app CHARACTER SET utf8mb4")

    def run(self, sql: str) -> str:
        return self.server.sql(sql, "app")

    def spoil(self, table: str) -> None:
        self.run(f"SET foreign_key_checks = 0; DROP TABLE `{table}`")

    def state(self) -> tuple[str, str]:
        argv = ["mariadb-dump", "--no-defaults", f"--socket={self.server.socket}", "--user=root", *MARIADB_DUMP, "app"]
        text = subprocess.run(argv, check=True, capture_output=True).stdout.decode(errors="backslashreplace")
        tables = self.run("SHOW FULL TABLES WHERE Table_type = 'BASE TABLE'").splitlines()
        names = ", ".join(f"`{line.split(chr(9))[0]}`" for line in tables)
        return text, self.run(f"CHECKSUM TABLE {names} EXTENDED")

    def left(self) -> list[str]:
        return [name for name in self.server.databases() if name != "app"]


@dataclass
class OnPostgreSQL(Live):
    server: Postgres

    @property
    def keys(self) -> dict[str, str]:
        return {"engine": "postgresql", "user": "postgres", "where": f'host = "{self.server.socket_folder}"'}

    def create(self) -> None:
        self.server.dropdb("app")
        self.server.createdb("app")

    def run(self, sql: str) -> str:
        return self.server.psql(sql, "app")

    def spoil(self, table: str) -> None:
        self.run(f'DROP TABLE "{table}" CASCADE')

    def state(self) -> tuple[str, str]:
        argv = [f"{self.server.programs}/pg_dump", "-h", self.server.socket_folder, "-U", "postgres", "app"]
        text = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        rows = "md5(coalesce(string_agg(t::text, chr(10) ORDER BY t::text), ''))"
        tables = "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables WHERE schemaname !~ '^(pg_|inf)'"
        found = [f"SELECT '{name}', count(*), {rows} FROM {name} AS t;" for name in sorted(self.run(tables).split())]
        text = re.sub(r"(?m)^\\(un)?restrict .*$", "", text)
        return re.sub(r"(?ms)(?<=FROM stdin;\n).*?(?=^\\\.$)", _sorted, text), self.run("".join(found))

    def left(self) -> list[str]:
        return self.server.psql("SELECT datname FROM pg_database WHERE datname NOT IN ('app', 'postgres') AND NOT datistemplate").split()


def _sorted(rows: re.Match[str]) -> str:
    """Return rows in an order of their own: PostgreSQL puts a row wherever a page has room for it."""
    return "".join(sorted(rows[0].splitlines(keepends=True)))


@dataclass
class Application(ABC):
    """An application, whose first revision has an older schema that its second one upgrades."""

    top: Path
    live: Live
    castore: Run
    environment: dict[str, str] = field(default_factory=dict)

    older: ClassVar[str] = ""
    """SQL that undoes what the upgrade will do; what it prints is SQL, too."""
    modules: ClassVar[tuple[str, ...]] = ("mbstring", "xml", "intl")

    @abstractmethod
    def install(self) -> None:
        """Run its installer."""

    @abstractmethod
    def argv(self, *words: str) -> list[str]:
        """Return the command by which it reads or writes."""

    @property
    @abstractmethod
    def upgrade(self) -> list[str]:
        """The command of its upgrade."""

    @property
    @abstractmethod
    def failing(self) -> list[str]:
        """Its upgrade, which fails in the middle."""

    @cached_property
    def php(self) -> list[str]:
        return [php(*self.modules), "-d", "display_errors=stderr"]

    def call(self, argv: list[str]) -> str:
        done = subprocess.run(argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=self.variables)
        assert done.returncode == 0, f"{argv}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    @property
    def variables(self) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin", **self.environment}

    def answer(self, *words: str) -> dict:
        return json.loads(self.call(self.argv(*(words or ("read",)))))

    def script(self, name: str, argv: list[str], more: str = "") -> list[str]:
        lines = [f"export {key}={shlex.quote(value)}" for key, value in self.variables.items()]
        (self.top / name).write_text("\n".join(["set -e", *lines, f"{shlex.join(argv)}{more}", ""]))
        return ["sh", str(self.top / name)]

    def prepare(self) -> None:
        """Install it with the older schema, and write of each revision what its health is checked with."""
        self.live.create()
        self.install()
        self.answer("write", "eins")
        script = self.older
        while script:
            script = self.live.run(script)
        for revision in (1, 2):
            (self.top / f"revision-{revision}").mkdir()
        self.answer("write", "zwei")
        self.answer()
        (self.top / "castore.toml").write_text(TOML.format(top=self.top, **self.live.keys))
        self.configure(1)

    def configure(self, revision: int) -> None:
        subprocess.run(["ln", "-sfn", f"revision-{revision}", self.top / "system"], check=True)

    def run(self, command: str, *words: str, expect: int = 0) -> str:
        done = self.castore(command, "--config", str(self.top / "castore.toml"), *words, expect=expect)
        return done.stdout + done.stderr

    @property
    def state(self) -> tuple:
        text = self.live.state()
        return (*text, self.answer())


class WordPress(Application):
    modules = ("mysqli",)
    # Of WordPress 4.0, as far as its later upgrades convert it.
    older = """
        DROP TABLE wp_termmeta;
        UPDATE wp_options SET option_value = '30133' WHERE option_name = 'db_version';
        UPDATE wp_options SET option_name = 'blacklist_keys' WHERE option_name = 'disallowed_keys';
        UPDATE wp_options SET option_name = 'comment_whitelist' WHERE option_name = 'comment_previously_approved';
        DELETE FROM wp_options WHERE option_name IN ('site_icon', 'medium_large_size_w', 'admin_email_lifespan');
        UPDATE wp_comments SET comment_type = '';
        ALTER TABLE wp_users MODIFY user_activation_key varchar(60) NOT NULL DEFAULT '';
        SELECT CONCAT('ALTER TABLE ', TABLE_NAME, ' CONVERT TO CHARACTER SET utf8;') FROM information_schema.TABLES
        WHERE TABLE_SCHEMA = 'app';
    """

    def argv(self, *words: str) -> list[str]:
        folder = unpacked(*WORDPRESS) / "usr/share/wordpress"
        assert isinstance(self.live, OnMariaDB)
        return [*self.php, str(DRIVERS / "wordpress.php"), str(folder), self.live.server.socket, "app", *words]

    def install(self) -> None:
        self.answer("install")

    @property
    def upgrade(self) -> list[str]:
        return self.argv("upgrade")

    @property
    def failing(self) -> list[str]:
        return self.argv("upgrade", "7")


class Roundcube(Application):
    @property
    def folder(self) -> Path:
        return unpacked("roundcube-core")

    def argv(self, *words: str) -> list[str]:
        return [*self.php, str(DRIVERS / "roundcube.php"), str(self.folder / "usr/share/roundcube"), *words]

    def install(self) -> None:
        settings = self.top / "config"
        shutil.copytree(self.folder / "etc/roundcube", settings)
        config = {"db_dsnw": self.address, "log_driver": "stdout", "temp_dir": str(self.top), "des_key": "0" * 24}
        text = "".join(f"$config['{key}'] = '{value}';\n" for key, value in config.items())
        (settings / "config.inc.php").write_text(f"<?php\n{text}$config['plugins'] = [];\n")
        self.environment["ROUNDCUBE_CONFIG_DIR"] = str(settings)
        self.answer("install")

    @property
    @abstractmethod
    def address(self) -> str:
        """How it reaches its database."""

    def updates(self, folder: str) -> list[str]:
        first = self.top / "first.php"
        first.write_text(f"<?php define('INSTALL_PATH', '{self.folder}/usr/share/roundcube/');")
        # Debian's script names /var/lib/roundcube; what is defined first counts.
        return [
            *(*self.php, "-d", f"auto_prepend_file={first}", "-d", "error_reporting=E_ERROR"),
            *(f"{self.folder}/usr/share/roundcube/bin/updatedb.sh", f"--dir={folder}", "--package=roundcube"),
        ]

    @property
    def upgrade(self) -> list[str]:
        return self.updates(f"{self.folder}/usr/share/roundcube/SQL")

    @property
    def failing(self) -> list[str]:
        shutil.copytree(self.folder / "usr/share/roundcube/SQL", self.top / "SQL")
        for path in self.top.glob("SQL/*/2021081000.sql"):
            with open(path, "a") as file:
                file.write("\nALTER TABLE nowhere ADD COLUMN more integer;\n")
        return self.updates(f"{self.top}/SQL")


class RoundcubeOnMariaDB(Roundcube):
    modules = (*Application.modules, "pdo_mysql")
    older = """
        SET SESSION foreign_key_checks = 0;
        DROP TABLE responses, collected_addresses;
        UPDATE `system` SET value = '2018122300' WHERE name = 'roundcube-version';
        ALTER TABLE users MODIFY language varchar(5);
        ALTER TABLE dictionary MODIFY language varchar(5) NOT NULL;
        SELECT 'SET SESSION foreign_key_checks = 0;';
        SELECT CONCAT('ALTER TABLE `', TABLE_NAME, '` CONVERT TO CHARACTER SET utf8;') FROM information_schema.TABLES
        WHERE TABLE_SCHEMA = 'app';
    """

    @property
    def address(self) -> str:
        assert isinstance(self.live, OnMariaDB)
        return f"mysql://root@unix({self.live.server.socket})/app"


class RoundcubeOnPostgreSQL(Roundcube):
    modules = (*Application.modules, "pdo_pgsql")
    older = """
        DROP TABLE responses, collected_addresses;
        DROP SEQUENCE responses_seq, collected_addresses_seq;
        UPDATE system SET value = '2018122300' WHERE name = 'roundcube-version';
        ALTER TABLE users ALTER language TYPE varchar(5), ALTER preferences SET DEFAULT '';
        ALTER TABLE dictionary ALTER language TYPE varchar(5);
    """

    @property
    def address(self) -> str:
        assert isinstance(self.live, OnPostgreSQL)
        return f"pgsql://postgres@unix({self.live.server.socket_folder})/app"


class MediaWiki(Application):
    modules = (*Application.modules, "pgsql")
    # Of MediaWiki 1.36, as far as its later upgrades convert it.
    older = """
        SET search_path = mediawiki;
        DROP TABLE user_autocreate_serial, searchindex;
        ALTER TABLE page ADD page_restrictions text;
        UPDATE page SET page_restrictions = 'edit=sysop:move=sysop' WHERE page_id = 1;
        ALTER INDEX page_name_title RENAME TO name_title;
        ALTER TABLE objectcache DROP modtoken, DROP flags;
        ALTER TABLE revision ALTER rev_comment_id TYPE integer, ALTER rev_actor TYPE integer;
        CREATE INDEX rev_page_id ON revision (rev_page, rev_id);
        ALTER TABLE mwuser ALTER user_token DROP NOT NULL;
    """.replace("mwuser", '"user"')

    @property
    def folder(self) -> Path:
        return unpacked("mediawiki", "mediawiki-classes") / "usr/share/mediawiki"

    def argv(self, *words: str) -> list[str]:
        return [*self.php, str(DRIVERS / "mediawiki.php"), str(self.folder), *words]

    def maintenance(self, script: str, *words: str) -> list[str]:
        return [*self.php, f"{self.folder}/maintenance/{script}.php", *words]

    def install(self) -> None:
        assert isinstance(self.live, OnPostgreSQL)
        where = {"dbtype": "postgres", "dbserver": self.live.server.socket_folder, "dbname": "app", "dbuser": "postgres"}
        where |= {"dbpass": "x", "installdbuser": "postgres", "installdbpass": "x", "confpath": str(self.top)}
        where |= {"scriptpath": "", "server": "http://127.0.0.1", "pass": "not a secret at all"}
        self.call(self.maintenance("install", *(f"--{key}={value}" for key, value in where.items()), "Wiki", "Admin"))
        settings = self.top / "LocalSettings.php"
        settings.write_text(settings.read_text() + f'\n$wgCacheDirectory = "{self.top}";\n')
        self.environment["MW_CONFIG_FILE"] = str(settings)

    @property
    def upgrade(self) -> list[str]:
        return self.maintenance("update", "--quick")

    @property
    def failing(self) -> list[str]:
        argv = shlex.join(self.upgrade)
        return ["sh", "-c", f"{argv} | while read -r line; do echo $line; case $line in *modtoken*) exit 1; esac; done"]


@pytest.fixture(scope="module")
def mariadb() -> Iterator[OnMariaDB]:
    with MariaDBServer() as server:
        yield OnMariaDB(server)


@pytest.fixture(scope="module")
def postgresql() -> Iterator[OnPostgreSQL]:
    with Postgres() as server:
        yield OnPostgreSQL(server)


# test_wordpress.py installs and upgrades WordPress, too; with the others each server has an application.
@pytest.fixture(
    params=[
        pytest.param(WordPress, marks=pytest.mark.slow), RoundcubeOnMariaDB,
        pytest.param(RoundcubeOnPostgreSQL, marks=pytest.mark.slow), MediaWiki,
    ]
)
def app(request: pytest.FixtureRequest, castore: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    live = "mariadb" if request.param in {WordPress, RoundcubeOnMariaDB} else "postgresql"
    with tempfile.TemporaryDirectory(prefix="castore-app-", dir=folder_for_servers()) as top:
        monkeypatch.setenv("CASTORE_STORE", f"{top}/store")
        monkeypatch.setenv("TMPDIR", "/tmp")
        found = request.param(Path(top), request.getfixturevalue(live), castore)
        found.prepare()
        castore("init")
        yield found


def test_the_state_follows_the_upgrades_and_rollbacks_of_an_application(app: Application):
    first = app.state
    old = first[2]["version"]
    app.castore("config", "check", "--config", str(app.top / "castore.toml"))
    app.script("revision-1/health", app.argv("read"), f" | grep '\"version\":\"{old}\"'")
    deploy = ["sh", "-c", 'ln -sfn revision-2 "$1"; shift; exec "$@"', "sh", f"{app.top}/system"]

    # An upgrade that fails in the middle is reverted.
    app.script("revision-2/health", ["false"])
    reverted = app.run("guard", "app", "--", *deploy, *app.script("fail", app.failing), expect=9)
    assert "the state of generation 1 (revision revision-1) is restored" in reverted
    assert app.state == first

    # The same upgrade succeeds; its health check wants another version than the old one.
    app.script("revision-2/health", app.argv("read"), f" | grep -v '\"version\":\"{old}\"'")
    app.run("guard", "app", "--", *deploy, *app.script("upgrade", app.upgrade))
    upgraded = app.state
    assert upgraded[0] != first[0]
    assert upgraded[2]["version"] != old
    app.answer("write", "drei")
    second = app.state

    # The system is rolled back and forth, and the state with it.
    app.run("guard", "--restore", "app", "--", "ln", "-sfn", "revision-1", f"{app.top}/system")
    assert app.state == first
    app.configure(2)
    app.run("rollback", "--undo", "app")
    assert app.state == second
    app.configure(1)
    app.run("rollback", "app", "--to", "1")
    assert app.state == first
    app.answer("write", "vier")
    app.configure(2)
    app.run("follow", "app")
    assert app.state == second

    assert "is sound" in app.run("drill", "app")
    assert app.live.left() == []


@pytest.mark.parametrize(
    ("package", "files", "table"),
    [
        pytest.param("icinga2-ido-{}", ["schema/{}.sql"], "icinga_objects", id="icinga"),
        pytest.param("zabbix-server-{}", ["schema.sql.gz", "images.sql.gz", "data.sql.gz"], "hosts", id="zabbix"),
    ],
)
@pytest.mark.parametrize("server", ["mysql", "pgsql"])
@pytest.mark.slow
def test_the_schema_of_an_application_is_restored(
    request: pytest.FixtureRequest, castore: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, package: str, files: list[str], table: str, server: str
):
    live: Live = request.getfixturevalue({"mysql": "mariadb", "pgsql": "postgresql"}[server])
    live.create()
    folder = unpacked(package.format(server)) / "usr/share" / package.format(server)
    for path in (folder / file.format(server) for file in files):
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            live.run(file.read().decode())
    first = live.state()
    monkeypatch.setenv("CASTORE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("TMPDIR", "/tmp")
    settings = TOML.format(top=tmp_path, **live.keys)
    (tmp_path / "castore.toml").write_text("[service.app.parts" + settings.partition("[service.app.parts")[2])
    where = ("--config", str(tmp_path / "castore.toml"))
    castore("init")
    castore("snapshot", *where, "app")
    live.spoil(table)
    second = live.state()
    castore("rollback", *where, "app", "--to", "1")
    assert live.state() == first
    castore("rollback", *where, "--undo", "app")
    assert live.state() == second
    assert "is sound" in castore("drill", *where, "app@1").stdout
    assert live.left() == []
