"""A private MariaDB or MySQL server on a private socket, into which a drill loads a dump."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from typing import TYPE_CHECKING

from castore.engines.mariadb.client import PACKET, environment
from castore.errors import ProgramError
from castore.process.runners import output_of
from castore.process.servers import give, running, socket_folder, unprivileged

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def scratch_server(folder: str, client: str) -> Iterator[str]:
    """Run a server below `folder`; yield the path of its socket. client: a program to query it with."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    server = shutil.which("mariadbd", path=path) or shutil.which("mysqld", path=path)
    make = shutil.which("mariadb-install-db", path=path)
    if server is None:
        raise ProgramError("there is no MariaDB or MySQL server here to drill with: install one")
    account = unprivileged("mysql")
    give(folder, account)
    data = os.path.join(folder, "data")
    # In a shared directory for temporary files, a starting server removes files of other servers.
    argv = [server, "--no-defaults", "--initialize-insecure", f"--datadir={data}"]
    if make is not None:
        argv = [make, "--no-defaults", f"--datadir={data}", f"--tmpdir={folder}", "--skip-test-db"]
        argv.append("--auth-root-authentication-method=normal")
    output_of(argv, account=account, cwd=folder, env=environment())
    with socket_folder(account) as sockets:
        socket = os.path.join(sockets, "socket")
        files = os.path.join(folder, "files")
        os.mkdir(files, 0o700)
        give(files, account)
        # No statement of a dump reads or writes files outside this directory, which is empty.
        quiet = [f"--max-allowed-packet={PACKET}", f"--tmpdir={folder}", f"--secure-file-priv={files}"]
        quiet += ("--skip-networking", "--innodb-flush-log-at-trx-commit=0", "--event-scheduler=OFF")
        argv = [server, "--no-defaults", f"--datadir={data}", f"--socket={socket}", *quiet]
        argv.append(f"--pid-file={sockets}/pid")
        with running(argv, signal.SIGTERM, account=account, cwd=folder) as process:
            ask = [client, "--no-defaults", f"--socket={socket}", "--user=root"]
            process.wait_for([*ask, "--execute=SELECT 1"])
            yield socket
