"""One Redis server, as the snapshot file (RDB) that it loads when it starts."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec

from castore.engines.base import Engine
from castore.engines.dump_stream import DumpStream
from castore.engines.file import File
from castore.engines.password import Secret
from castore.engines.state import EngineState, FileSwap
from castore.errors import CastoreError, ProgramError
from castore.process.environment import client_environment
from castore.process.runners import output_of, run_dump
from castore.process.servers import give, running, socket_folder, unprivileged
from castore.process.users import owner_account

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.engines.base import Contents
    from castore.process.standard_error import Filter

_MAGIC: Final = b"REDIS"
_SAVING: Final = "3600 1"
"""With any such rule a server writes its RDB when it ends; without one it does not."""
_SAVE_SECONDS: Final = 3600.0
_NO_SERVER: Final = "exited with status 1"
"""How redis-cli fails if it cannot connect; on an error that the server reports it exits with 0."""
_STILL_RUNS: Final = "the Redis server still runs: the `stop` program in castore.toml has to stop it"


class RedisSwap(FileSwap, kw_only=True):
    """The RDB file of a server, which is replaced by renaming."""

    save: str
    """The server's setting `save` before the rollback; empty: the server saves nothing when it is stopped."""
    saved: str = ""
    """What identifies the RDB that the server wrote while the rollback was staged."""


class Redis(Engine[RedisSwap], frozen=True):
    """All databases of a server. A rollback needs `stop` and `start`, because the file is read at the start.

    The server writes its state into that file when it is stopped. If its configuration says not to, castore
    changes the setting during the rollback, and checks that the file has been written.
    """

    host: str | None = None
    port: int | None = None
    socket: str | None = None
    user: str | None = None
    password: Secret | None = None
    path: str | None = None
    """The RDB file; None: castore asks the server."""
    program_path: str | None = None
    """The directory of redis-cli."""

    runs_programs: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...]] = ("socket", "path", "program_path")
    state_type: ClassVar[type[EngineState]] = RedisSwap

    def file_path(self) -> str | None:
        """Return the path of the RDB, if it is configured."""
        return self.path

    def _argv(self) -> list[str]:
        program = f"{self.program_path}/redis-cli" if self.program_path else "redis-cli"
        if shutil.which(program) is None:
            raise ProgramError(
                f"there is no program {program!r}, which the engine redis needs: install it, or set "
                "`program-path`"
            )
        argv = [program, "--no-auth-warning"]
        where = (("-h", self.host), ("-p", self.port), ("-s", self.socket), ("--user", self.user))
        for option, value in where:
            if value is not None:
                argv += [option, str(value)]
        return argv

    def _env(self) -> dict[str, str | None]:
        own = {} if self.password is None else {"REDISCLI_AUTH": self.password.get(self.account)}
        return client_environment(**own)

    def _process(self) -> dict[str, Any]:
        """Return the environment, time limit (seconds) and user of redis-cli."""
        return {"env": self._env(), "timeout": self.timeout, "account": self.account}

    def _ask(self, *words: str, only: Filter | None = None) -> list[str]:
        out = output_of([*self._argv(), *words], **self._process(), only=only)
        lines = out.decode(errors="replace").splitlines()
        if lines and lines[0].startswith(("ERR", "NOAUTH", "WRONGPASS", "NOPERM")):
            raise ProgramError(f"redis-cli {' '.join(words)}: {lines[0]}")
        return lines

    def check(self) -> None:
        """Check that the server answers."""
        if self._ask("PING") != ["PONG"]:
            raise ProgramError("the Redis server does not answer PING: is it the right host, port or socket?")

    def version(self) -> str:
        """Return the server's version."""
        lines = [line for line in self._ask("INFO", "server") if line.startswith("redis_version:")]
        return f"redis {lines[0].partition(':')[2].strip()}" if lines else "redis"

    @contextlib.contextmanager
    def dump(self) -> Iterator[DumpStream]:
        """Yield a stream of the RDB, which the server sends as to a replica."""
        with run_dump([*self._argv(), "--rdb", "-"], **self._process()) as readinto:
            began = b""

            def read(view: memoryview) -> int:
                nonlocal began
                count = readinto(view)
                if len(began) < len(_MAGIC):
                    began += bytes(view[: min(count, len(_MAGIC))])
                    if not began.startswith(_MAGIC[: len(began)]) or (not count and not began):
                        raise ProgramError("redis-cli exited with 0, but sent no RDB: see the server's log")
                return count

            yield DumpStream(read)

    def when_stopped(self, state: RedisSwap) -> Engine[Any]:
        """Return an engine that reads the file that the server wrote when it was stopped.

        Raises CastoreError if the server still runs, or has not written the file.
        """
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        if self._runs():
            raise CastoreError(_STILL_RUNS)
        _refuse_unsaved(state)
        return _StoppedRedis(**{**fields, "path": state.live})

    def _file(self, state: RedisSwap) -> File:
        return File(path=state.live)

    def preflight(self) -> None:
        """Refuse a server that would not load its RDB, or would not keep what it loaded."""
        if self._setting("appendonly") != "no":
            raise CastoreError(
                "the Redis server keeps an append-only file (appendonly), and would load that, not its RDB: "
                "castore can take and drill it, but not roll it back; nothing was changed"
            )
        if "role:slave" in self._ask("INFO", "replication"):
            raise CastoreError(
                "the Redis server is a replica, and would copy its master's state again: roll back the "
                "master instead; nothing was changed"
            )

    def _setting(self, name: str) -> str:
        values = self._ask("CONFIG", "GET", name)
        if len(values) < 2:
            raise CastoreError(
                f"the Redis server does not report its setting {name!r}: allow the account CONFIG GET; "
                "nothing was changed"
            )
        return values[1]

    def prepare(self) -> RedisSwap:
        """Return the names of the files that the rollback creates, and the server's `save` setting."""
        path = self.path
        if path is None:
            path = os.path.join(*(self._setting(name) for name in ("dir", "dbfilename")))
        file = File(path=path).prepare()
        return RedisSwap(**msgspec.structs.asdict(file), save=self._setting("save"))

    def stage(self, state: RedisSwap, contents: Contents) -> list[str]:
        """Write the RDB next to the live one, and have the server prove that it can save."""
        self._file(state).stage(state, contents)
        program = shutil.which("redis-check-rdb")
        if program is not None:
            account = self.account or owner_account(state.new)
            output_of([program, state.new], timeout=self.timeout, account=account)
        state.saved = self._save(state.live, state.save)
        return []

    def _save(self, path: str, setting: str) -> str:
        """Check that the server can write its RDB to `path`, and that it writes it when it is stopped.

        setting: the server's setting `save`. Return what identifies the RDB that was saved for this.
        """
        if not setting:
            try:
                self._ask("CONFIG", "SET", "save", _SAVING)
            except ProgramError as error:
                raise CastoreError(
                    'the Redis server saves nothing when it is stopped (save ""), and this setting cannot be '
                    f"changed for a rollback: {error}"
                ) from error
        before = _seen(path)
        end = time.monotonic() + (self.timeout or _SAVE_SECONDS)
        # Another save may be running: it saves an older state.
        while self._is_saving() or not self._begin_to_save():
            _wait(end)
        while self._is_saving():
            _wait(end)
        if "rdb_last_bgsave_status:ok" not in self._ask("INFO", "persistence"):
            raise CastoreError("the Redis server cannot write its RDB: see its log for the reason")
        if _seen(path) in {before, ""}:
            raise CastoreError(
                f"the Redis server does not write {path}: is it on this machine, and is `path` in "
                "castore.toml its file?"
            )
        return _seen(path)

    def _is_saving(self) -> bool:
        return "rdb_bgsave_in_progress:1" in self._ask("INFO", "persistence")

    def _begin_to_save(self) -> bool:
        """Have the server write its RDB; return False if another save is running."""
        try:
            self._ask("BGSAVE")
        except ProgramError as error:
            if "in progress" not in str(error):
                raise
            return False
        return True

    def swap(self, state: RedisSwap, contents: Contents) -> list[str]:
        """Swap the files; the server has written its own when it was stopped."""
        if self._runs():
            raise CastoreError(_STILL_RUNS)
        _refuse_unsaved(state)
        return self._file(state).swap(state, contents)

    def _runs(self) -> bool:
        """Whether there is a server; one that answers with an error exists, too."""
        try:
            self._ask("PING", only=lambda _line: None)
        except ProgramError as error:
            return _NO_SERVER not in str(error)
        return True

    def revert(self, state: RedisSwap, contents: Contents, *, swapped: bool) -> None:
        """Restore the replaced file, and the server's setting."""
        self._file(state).revert(state, contents, swapped=swapped)
        if not state.save and self._runs():
            # If it does not run, it reads its configuration when it is started the next time.
            with contextlib.suppress(ProgramError):
                self._ask("CONFIG", "SET", "save", "")

    def cleanup(self, state: RedisSwap) -> None:
        """Delete the replaced file."""
        self._file(state).cleanup(state)

    @contextlib.contextmanager
    def drill(self, folder: str, contents: Contents) -> Iterator[tuple[str, dict[str, str]] | None]:
        """Load the RDB into a private server on a private socket, and count its keys."""
        server = shutil.which("redis-server")
        if server is None:
            raise ProgramError("there is no redis-server here to drill with: install it")
        path = os.path.join(folder, "dump.rdb")
        with open(path, "xb") as file:
            file.writelines(contents.restore_dump())
            account = unprivileged("redis")
            give(file.fileno(), account)
        give(folder, account)
        with socket_folder(account) as sockets:
            socket = os.path.join(sockets, "socket")
            argv = [server, "--port", "0", "--unixsocket", socket, "--dir", folder, "--save", ""]
            # Access is limited by the directory of the socket.
            argv += ["--unixsocketperm", "777"]
            with running(argv, signal.SIGTERM, account=account, cwd=folder) as process:
                own = Redis(socket=socket, program_path=self.program_path)
                process.wait_for([*own._argv(), "-e", "DBSIZE"])
                keys = [line for line in own._ask("INFO", "keyspace") if line.startswith("db")]
                count = sum(int(line.split("keys=")[1].split(",")[0]) for line in keys)
                yield f"{count} keys in a private server", {"SOCKET": socket}


class _StoppedRedis(Redis, frozen=True):
    """A server that does not run: its file is its state."""

    def version(self) -> str:
        """Return only the name: the server cannot be queried."""
        return "redis"

    @contextlib.contextmanager
    def dump(self) -> Iterator[DumpStream]:
        """Yield a stream of the file."""
        with File(path=self.path or "").dump() as stream:
            yield stream


def _seen(path: str) -> str:
    """Return what distinguishes one RDB from the next; empty: there is none."""
    try:
        info = os.stat(path)
    except OSError:
        return ""
    return f"{info.st_ino} {info.st_size} {info.st_mtime_ns}"


def _refuse_unsaved(state: RedisSwap) -> None:
    """Raise CastoreError if a server was stopped and has not written its RDB."""
    if state.saved in {_seen(state.live), ""}:
        raise CastoreError(
            f"the Redis server was stopped without writing {state.live} (killed, or by SHUTDOWN NOSAVE?): "
            "writes since the rollback began are missing from it. The `stop` program in castore.toml has to "
            "end the server by SIGTERM or SHUTDOWN"
        )


def _wait(end: float) -> None:
    if time.monotonic() > end:
        raise ProgramError("the Redis server takes too long to write its RDB: raise `timeout` (seconds)")
    time.sleep(0.05)
