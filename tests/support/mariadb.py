"""A real MariaDB server, started for the tests and reached over a Unix socket only."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any, Self

from tests.support.data_dir_templates import copied, folder_for_servers
from tests.support.postgres import missing

if TYPE_CHECKING:
    from types import TracebackType

_PATIENCE = 60
_QUIET = (
    "--no-defaults",
    "--skip-networking",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-buffer-pool-size=32M",
    "--innodb-log-file-size=16M",
    "--event-scheduler=ON",
    "--skip-log-bin",
)


class MariaDBServer:
    """A server in a temporary directory; a context manager. `root` connects through `socket`, without password."""

    def __init__(self, *options: str) -> None:
        """options: more of the server."""
        self._options = options
        if shutil.which("mariadbd") is None or shutil.which("mariadb-install-db") is None:
            missing("there is no MariaDB server in PATH")
        self._folder = tempfile.mkdtemp(prefix="castore-my-", dir=folder_for_servers())
        self.socket = os.path.join(self._folder, "socket")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        rights: dict[str, Any] = {}
        if os.geteuid() == 0:
            for name in ("mysql", "nobody"):
                with contextlib.suppress(KeyError):
                    account = pwd.getpwnam(name)
                    rights = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
                    break
            os.chown(self._folder, rights["user"], rights["group"])
        os.chmod(self._folder, 0o755)
        data = os.path.join(self._folder, "data")
        install: tuple[str, ...] = ("mariadb-install-db", "--no-defaults", "--auth-root-authentication-method=normal")
        install += ("--skip-test-db", "--skip-name-resolve", "--innodb-log-file-size=16M")

        def make(folder: str) -> None:
            argv = [*install, f"--datadir={folder}", f"--tmpdir={self._folder}"]
            made = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=self._folder, **rights)
            assert made.returncode == 0, f"mariadb-install-db failed: {made.stderr}{made.stdout}"

        copied(install, make, data)
        self.log = os.path.join(self._folder, "log")
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                ["mariadbd", *_QUIET, *self._options, f"--tmpdir={self._folder}", f"--datadir={data}", f"--socket={self.socket}", f"--pid-file={self._folder}/pid"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                cwd=self._folder,
                **rights,
            )
        end = time.monotonic() + _PATIENCE
        while self._query("SELECT 1", check=False).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > end:
                with open(self.log, encoding="utf-8", errors="replace") as log_:
                    raise AssertionError(f"MariaDB did not start: {log_.read()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the server and remove its directory."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _query(self, sql: str, database: str = "", *, check: bool) -> subprocess.CompletedProcess[str]:
        argv = ["mariadb", "--no-defaults", f"--socket={self.socket}", "--user=root", "--batch", "--raw"]
        argv += ["--skip-column-names", "--default-character-set=utf8mb4", *([database] if database else [])]
        done = subprocess.run(
            argv,
            input=sql,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            check=False,
            env={name: value for name, value in os.environ.items() if not name.startswith("MYSQL")},
        )
        assert not check or done.returncode == 0, f"{sql[:200]}: {done.stderr}"
        return done

    def sql(self, sql: str, database: str = "") -> str:
        """Run SQL statements; return what they print."""
        return self._query(sql, database, check=True).stdout.strip()

    def fingerprint(self, database: str) -> str:
        """Return what there is in a database: rows of all tables, and views, triggers, routines, events."""
        tables = self.sql(
            f"SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA='{database}' "
            "AND TABLE_TYPE <> 'SEQUENCE' ORDER BY 1"
        )
        # In one call of the client: starting it takes longer than most of these statements.
        statements = []
        for name in tables.splitlines():
            table = name.replace("`", "``")
            shown = table.replace("'", "''").replace("\\", "\\\\")
            statements += [f"SELECT '{shown}'", f"SELECT * FROM `{table}` ORDER BY 1", f"SHOW CREATE TABLE `{table}`"]
        statements += [
            f"SELECT TRIGGER_NAME, EVENT_OBJECT_TABLE, ACTION_STATEMENT, DEFINER FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA='{database}' ORDER BY 1",
            f"SELECT ROUTINE_TYPE, ROUTINE_NAME, ROUTINE_DEFINITION, DEFINER FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA='{database}' ORDER BY 1, 2",
            f"SELECT EVENT_NAME, EVENT_DEFINITION, INTERVAL_VALUE, STATUS FROM information_schema.EVENTS WHERE EVENT_SCHEMA='{database}' ORDER BY 1",
            f"SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA='{database}' AND TABLE_TYPE='SEQUENCE'",
        ]
        return self.sql(";\n".join(statements), database)

    def databases(self) -> list[str]:
        """Return the names of all databases that people made."""
        system = {"information_schema", "mysql", "performance_schema", "sys"}
        return sorted(set(self.sql("SHOW DATABASES").split()) - system)
