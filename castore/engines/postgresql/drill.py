"""A drill: load a dump into a private PostgreSQL server, and count its rows."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import signal
from typing import TYPE_CHECKING

from castore.engines.dump_stream import read_preamble
from castore.engines.postgresql.client import Client
from castore.engines.postgresql.database import Database, valid_record
from castore.engines.postgresql.sql import quoted_name, quoted_text
from castore.engines.postgresql.staging import restore, verify
from castore.errors import ProgramError
from castore.model.counting import count as counted
from castore.process.environment import client_environment
from castore.process.runners import output_of
from castore.process.servers import give, running, socket_folder, unprivileged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from castore.engines.base import Contents

NAME = "drill"
"""The database in the server of a drill."""


def server_programs(program_path: str | None) -> str:
    """Return the directory of initdb and postgres: those of the newest installed server."""
    found = glob.glob("/usr/lib/postgresql/*/bin/initdb")
    if program_path and os.path.exists(f"{program_path}/initdb"):
        return program_path
    if found:
        newest = max(found, key=lambda path: [int(n) for n in path.split("/")[4].split(".")])
        return os.path.dirname(newest)
    if program := shutil.which("initdb"):
        return os.path.dirname(os.path.realpath(program))
    raise ProgramError("there is no PostgreSQL server (initdb) here to drill with: install one")


@contextlib.contextmanager
def scratch_server(programs: str, folder: str) -> Iterator[str]:
    """Run a private PostgreSQL server in `folder`; yield the directory of its socket."""
    account = unprivileged("postgres")
    give(folder, account)
    data = os.path.join(folder, "data")
    make = ["initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
    own = client_environment()
    output_of([f"{programs}/{make[0]}", *make[1:]], account=account, cwd=folder, env=own)
    with socket_folder(account) as socket:
        quiet = [f"-c{setting}" for setting in ("listen_addresses=", "fsync=off", "autovacuum=off")]
        argv = [f"{programs}/postgres", "-D", data, "-k", socket, *quiet]
        with running(argv, signal.SIGINT, account=account, cwd=folder) as server:
            server.wait_for([f"{programs}/pg_isready", "-q", "-h", socket, "-U", "postgres"])
            yield socket


@contextlib.contextmanager
def drilled(
    folder: str, contents: Contents, program_path: str | None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Load a dump into a scratch server below `folder`; yield a summary, and how to reach the server."""
    with scratch_server(server_programs(program_path), folder) as socket:
        client = Client(host=socket, user="postgres", program_path=program_path)
        database = Database(client, NAME)
        was = read_preamble(contents.restore_dump())
        _load(database, folder, contents, was)
        with valid_record():
            differing, found = verify(database, was, NAME)
        rows = [int(text) for name, text in found.items() if name.startswith("rows of ")]
        size = client.query(f"SELECT pg_database_size('{NAME}');")[0]
        finding = f"{counted(sum(rows), 'row')} in {counted(len(rows), 'table')}, "
        finding += f"{counted(int(size), 'byte')} in a private server"
        finding = "; ".join([finding, *differing])
        yield finding, {"HOST": socket, "DATABASE": NAME, "USER": "postgres"}


def _load(database: Database, folder: str, contents: Contents, was: dict[str, Any]) -> None:
    """Load a dump, and create the roles and tablespaces that it turns out to need."""
    client = database.client
    encoding = str(was.get("encoding", "UTF8"))
    spaces = 0

    def again() -> None:
        client.query(f"DROP DATABASE IF EXISTS {NAME};")
        client.query(f"CREATE DATABASE {NAME} TEMPLATE template0 ENCODING {quoted_text(encoding)};")

    while True:
        again()
        try:
            # The first attempts may fail because a role is missing: that is no error of the drill.
            restore(database, contents, was, again, shown=False)
        except ProgramError as error:
            # Roles belong to the server, not to the database: its dump does not create them.
            if role := re.search('role "(.+?)" does not exist', str(error)):
                client.query(f"CREATE ROLE {quoted_name(role[1])};")
            elif space := re.search('parameter "default_tablespace": "(.+?)"(;|$)', str(error)):
                directory = os.path.join(folder, f"space{spaces}")
                # The server's user, who owns the directory, creates it: a name there may be a link.
                output_of(["mkdir", "-m", "700", directory], account=unprivileged("postgres"), cwd=folder)
                named = f"{quoted_name(space[1])} LOCATION {quoted_text(directory)}"
                client.query(f"CREATE TABLESPACE {named};")
                spaces += 1
            else:
                raise
        else:
            return
