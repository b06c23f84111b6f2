"""A real SSH server, OpenSSH's sshd, on loopback, started for the tests as their own user."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Self

from tests.support.data_dir_templates import folder_for_servers
from tests.support.postgres import missing
from tests.support.seaweedfs import free_ports

if TYPE_CHECKING:
    from types import TracebackType

_PATIENCE = 30


class Sshd:
    """A server that logs this user in with a key; a context manager. `environment` is for its clients.

    more: further lines of sshd_config.
    """

    host = "castore-test"
    """The name of the server in the clients' configuration."""

    def __init__(self, *more: str) -> None:
        program = shutil.which("sshd", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
        if program is None:
            missing("there is no program sshd")
        self._program = program
        self._more = more
        self.folder = tempfile.mkdtemp(prefix="castore-ssh-", dir=folder_for_servers())
        [self.port] = free_ports(1)
        self.config = self._path("ssh_config")
        self.environment = {"CASTORE_SSH": f"ssh -F {self.config}", "CASTORE_SSH_CONFIG": self.config}
        self._process: subprocess.Popen[bytes] | None = None

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _write(self, name: str, *lines: str) -> None:
        with open(self._path(name), "w", encoding="ascii", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write("".join(f"{line}\n" for line in lines))

    def __enter__(self) -> Self:
        for name in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._path(name)], check=True)
        self.authorize()
        with open(self._path("host_key.pub"), encoding="ascii") as key:
            self._write("known_hosts", f"[127.0.0.1]:{self.port} {key.read().strip()}")
        programs = os.path.dirname(sys.executable)
        self._write(
            "sshd_config",
            "ListenAddress 127.0.0.1",
            f"Port {self.port}",
            f"HostKey {self._path('host_key')}",
            f"AuthorizedKeysFile {self._path('authorized_keys')}",
            f"PidFile {self._path('pid')}",
            "UsePAM no",
            "StrictModes no",
            "PasswordAuthentication no",
            "PermitRootLogin yes",
            "MaxStartups 100:30:200",
            "Subsystem sftp internal-sftp",
            f"SetEnv PATH={programs}:/usr/bin:/bin HOME={self.folder}",
            *self._more,
        )
        self._write(
            "ssh_config",
            f"Host {self.host}",
            "  HostName 127.0.0.1",
            f"  Port {self.port}",
            f"  User {_own_name()}",
            f"  IdentityFile {self._path('user_key')}",
            "  IdentitiesOnly yes",
            "  IdentityAgent none",
            f"  UserKnownHostsFile {self._path('known_hosts')}",
            "  GlobalKnownHostsFile /dev/null",
            "  StrictHostKeyChecking yes",
            "  BatchMode yes",
        )
        self.start()
        return self

    def authorize(self, options: str = "") -> None:
        """Let the user's key log in, with these options of authorized_keys."""
        with open(self._path("user_key.pub"), encoding="ascii") as key:
            self._write("authorized_keys", f"{options} {key.read().strip()}".strip())

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        with open(self._path("log"), "ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-D", "-e", "-f", self._path("sshd_config")], stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as client:
                if client.recv(4) == b"SSH-":
                    return
            if time.monotonic() > deadline or self._process.poll() is not None:
                with open(self._path("log"), encoding="utf-8", errors="replace") as text:
                    raise RuntimeError(f"sshd does not start: {text.read()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server; connections that exist go on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def process_id(self) -> int | None:
        """The process whose children serve the connections."""
        return None if self._process is None else self._process.pid

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _own_name() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name
