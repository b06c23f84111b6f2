"""The command line of castore in processes of its own that need not import it: they are forked from one that has.

A test run calls castore thousands of times, and most of such a call is Python's start and the import of modules.
Each call still is a new process with arguments, an environment, a directory and pipes of its own.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.support.checkout import ROOT, import_all_modules
from tests.support.passphrases import derive_keys_cheaply

_AT_START = ("LC_", "LANG", "PYTHON", "LD_")
"""Beginnings of variables that matter when a program starts."""
_NO_MATTER = ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
_UTF8 = "C.UTF-8"


def _at_start(env: Mapping[str, str]) -> dict[str, str]:
    found = {name: env[name] for name in env if name.startswith(_AT_START) and name not in _NO_MATTER}
    if (env.get("LC_ALL") or env.get("LC_CTYPE") or env.get("LANG")) == _UTF8:
        # However it is said: Python asks for nothing else of the locale.
        found = {name: found[name] for name in found if not name.startswith(("LC_", "LANG"))} | {"LC_ALL": _UTF8}
    return found


class ForkServer:
    """A process that has imported castore; started when it is used first."""

    def __init__(self, at_start: Mapping[str, str]) -> None:
        """at_start: the variables of its environment that matter when a program starts."""
        self._socket: socket.socket | None = None
        self._pid = 0
        others = {name: os.environ[name] for name in os.environ if not name.startswith(_AT_START) or name in _NO_MATTER}
        self._env = {**others, **at_start}

    def _start(self) -> socket.socket:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, "-m", "tests.support.forked_cli", str(its.fileno())]
        process = subprocess.Popen(argv, pass_fds=[its.fileno()], cwd=ROOT, stdin=subprocess.DEVNULL, env=self._env)
        process.returncode = 0  # it ends with the socket
        its.close()
        self._socket, self._pid = ours, os.getpid()
        return ours

    def channel(self) -> socket.socket:
        """Return the socket that takes requests."""
        return self._socket if self._socket is not None and self._pid == os.getpid() else self._start()

    def run(
        self, args: Sequence[str | bytes | os.PathLike[str]], *, env: Mapping[str, str], cwd: str | os.PathLike[str], given: bytes | None, timeout: float
    ) -> subprocess.CompletedProcess[bytes]:
        """Run castore with these arguments; given: its input, None: /dev/null. Raises subprocess.TimeoutExpired."""
        channel = self.channel()
        words = [os.fsdecode(one) for one in args]
        output: list[bytes] = [b"", b""]
        reading, writing = zip(os.pipe(), os.pipe(), strict=True)
        stdin, feed = os.pipe() if given is not None else (os.open("/dev/null", os.O_RDONLY), None)
        # Its end is read from a socket of its own: calls of several threads may overlap.
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = json.dumps([words, dict(env), os.fspath(cwd)]).encode()
        with os.fdopen(os.memfd_create("request"), "w+b") as file:
            file.write(request)
            file.flush()
            socket.send_fds(channel, [b"run"], [stdin, *writing, its.fileno(), file.fileno()])
        its.close()
        for one in (stdin, *writing):
            os.close(one)

        def read(at: int) -> None:
            with os.fdopen(reading[at], "rb") as pipe:
                output[at] = pipe.read()

        threads = [threading.Thread(target=read, args=(at,)) for at in (0, 1)]
        for thread in threads:
            thread.start()
        with ours:
            pid = int(ours.recv(20))
            if feed is not None:
                with contextlib.suppress(BrokenPipeError), os.fdopen(feed, "wb") as pipe:
                    pipe.write(given or b"")
            ours.settimeout(timeout)
            try:
                status = int(ours.recv(20))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(words, timeout, *output) from None
        for thread in threads:
            thread.join()
        return subprocess.CompletedProcess(words, status, *output)


_servers: dict[frozenset[tuple[str, str]], ForkServer] = {}
"""By the variables that matter when a program starts: also with a preloaded library a process is forked."""


def _server(env: Mapping[str, str]) -> ForkServer:
    at_start = _at_start(env)
    return _servers.setdefault(frozenset(at_start.items()), ForkServer(at_start))


def run(
    args: Sequence[str | bytes | os.PathLike[str]], *, env: Mapping[str, str], cwd: str | os.PathLike[str], given: bytes | None = None, timeout: float = 250
) -> subprocess.CompletedProcess[bytes]:
    """Run castore in a process of its own; return its exit code and output."""
    return _server(env).run(args, env=env, cwd=cwd, given=given, timeout=timeout)


def text(
    args: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str | os.PathLike[str] | None = None, given: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run castore in a process of its own; return its exit code and its output as text."""
    data = None if given is None else given.encode()
    given_env = env if env is not None else os.environ
    done = run(args, env={"LC_ALL": _UTF8, **given_env}, cwd=cwd or os.getcwd(), given=data)
    output = (found.decode(errors="backslashreplace") for found in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(done.args, done.returncode, *output)


_CLIENT = """\
import json, os, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
    door.connect({path!r})
    request = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
    socket.send_fds(door, [request], [0, 1, 2])
    door.recv(20)
    status = int(door.recv(20))
sys.exit(status if status >= 0 else 128 - status)
"""


@contextlib.contextmanager
def program() -> Iterator[str]:
    """Give a line of shell that runs castore with "$@", forked; for scripts that call it often."""
    # The name of a socket has at most 107 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="castore-door-", dir="/tmp") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door,
    ):
        path, script = os.path.join(folder, "door"), os.path.join(folder, "castore.py")
        with open(script, "w", encoding="utf-8") as file:
            file.write(_CLIENT.format(path=path))
        door.bind(path)
        door.listen()
        thread = threading.Thread(target=_forward, args=(door, _server(os.environ).channel()))
        thread.start()
        try:
            yield f'exec {sys.executable} -I -S {script} "$@"'
        finally:
            door.shutdown(socket.SHUT_RDWR)
            thread.join()


def _forward(door: socket.socket, channel: socket.socket) -> None:
    """Have what each caller asks for done; it gets the answers itself."""
    while True:
        try:
            caller = door.accept()[0]
        except OSError:
            return
        with caller:
            request, files, _, _ = socket.recv_fds(caller, 1 << 20, 3)
            with os.fdopen(os.memfd_create("request"), "w+b") as file:
                file.write(request)
                file.flush()
                socket.send_fds(channel, [b"run"], [*files, caller.fileno(), file.fileno()])
            for one in files:
                os.close(one)


def _serve(channel: socket.socket) -> None:
    """Fork for each request, and report how each process ends."""
    import_all_modules()
    derive_keys_cheaply()
    gc.freeze()
    wakeup, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running: dict[int, int] = {}
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(wakeup, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == wakeup:
                os.read(wakeup, 1000)
                while running:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                    if not pid:
                        break
                    if pid in running:
                        _answer(running.pop(pid), os.waitstatus_to_exitcode(status))
                continue
            data, found, _, _ = socket.recv_fds(channel, 10, 5)
            if not data:
                os._exit(0)
            stdin, stdout, stderr, answer, request = found
            child = os.fork()
            if not child:
                signal.set_wakeup_fd(-1)
                _become(stdin, stdout, stderr, request)
            for one in (stdin, stdout, stderr, request):
                os.close(one)
            running[child] = answer
            os.write(answer, str(child).encode())


def _answer(descriptor: int, status: int) -> None:
    with contextlib.suppress(OSError):
        os.write(descriptor, str(status).encode())
    os.close(descriptor)


def _opened_as(stream: Any, descriptor: int, mode: str, buffering: int = -1) -> Any:
    return open(descriptor, mode, buffering, encoding=stream.encoding, errors=stream.errors, closefd=False)


def _become(stdin: int, stdout: int, stderr: int, request: int) -> None:
    """Be castore: with its arguments, environment, directory and standard streams."""
    try:
        os.lseek(request, 0, os.SEEK_SET)
        with os.fdopen(request, "rb", closefd=False) as file:
            words, env, cwd = json.loads(file.read())
        for at, one in enumerate((stdin, stdout, stderr)):
            os.dup2(one, at)
        os.closerange(3, 200)
        # As Python made those of the server from the same variables.
        sys.stdin = _opened_as(sys.stdin, 0, "r")
        sys.stdout = _opened_as(sys.stdout, 1, "w")
        sys.stderr = _opened_as(sys.stderr, 2, "w", buffering=1)
        vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(env)
        time.tzset()
        os.chdir(cwd)
        import castore.__main__

        sys.argv = [castore.__main__.__file__, *words]
        castore.__main__.main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else (0 if error.code is None else 1)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
