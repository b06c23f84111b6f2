"""`castore serve` withstands a hostile client, and one that dies."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys

import msgspec
import pytest

from castore.storage import LocalStorage
from castore.storage.wire import Answer, Frames, Request

PATIENCE = 20


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "store")


@pytest.fixture
def serve(folder):
    """Start a server of a client; the second call starts one of another client."""
    started = []

    def start(*options):
        process = subprocess.Popen(
            [sys.executable, "-m", "castore", "serve", "--stdio", "--create", *options, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        frames = Frames(process.stdout, process.stdin)
        frames.write(Request(1, "hello"))
        assert _answer(frames).error is None
        return process, frames

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                stream.close()


def _answer(frames):
    head, _ = frames.read()
    return msgspec.msgpack.decode(head, type=Answer)


def test_a_client_that_dies_while_it_waits_for_a_lock_leaves_no_process_and_no_lock(serve, folder):
    process, frames = serve()
    frames.write(Request(2, "lock"))
    assert _answer(frames).number == 2
    frames.write(Request(3, "lock", exclusive=True))  # waits for the lock that the same client holds
    process.stdin.close()
    assert process.wait(PATIENCE) == 0
    with LocalStorage(folder).lock(exclusive=True) as held:
        assert held


def test_requests_are_answered_while_many_locks_are_waited_for(serve, folder):
    process, frames = serve()
    with LocalStorage(folder).lock(exclusive=True):
        for number in range(2, 8):
            frames.write(Request(number, "lock"))
        frames.write(Request(9, "put", name="packs/ab"), b"x")
        assert _answer(frames).number == 9
    assert {_answer(frames).number for _ in range(6)} == {*range(2, 8)}
    process.stdin.close()
    assert process.wait(PATIENCE) == 0


def test_a_client_cannot_wait_for_any_number_of_locks(serve):
    process, frames = serve()
    for number in range(2, 100):
        try:
            frames.write(Request(number, "lock", exclusive=True))
        except OSError:
            break
    assert process.wait(PATIENCE) == 1
    assert b"locks" in process.stderr.read()


def test_large_objects_are_handled_one_after_another(serve, folder):
    """Bodies that no pack has are not in memory together."""
    process, frames = serve()
    body = bytes(80 << 20)
    for number in range(2, 7):
        frames.write(Request(number, "put", name=f"packs/{number}"), body)
    for _ in range(5):
        assert _answer(frames).error is None
    with open(f"/proc/{process.pid}/status", encoding="ascii") as status:
        [peak] = [int(line.split()[1]) for line in status if line.startswith("VmHWM")]
    assert peak < 350_000


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">II", 1 << 30, 0),
        struct.pack(">II", 1, (256 << 20) + 1) + b"x",
        struct.pack(">II", 3, 0) + b"\xc1\xc1\xc1",
    ],
)
def test_what_is_no_request_ends_the_server_with_an_error(serve, sent):
    process, _ = serve()
    process.stdin.write(sent)
    process.stdin.flush()
    assert process.wait(PATIENCE) == 1
    assert process.stderr.read().startswith(b"castore: ")


def test_a_client_that_dies_in_the_middle_of_an_upload_adds_nothing(serve, folder):
    process, _ = serve("--append-only")
    head = msgspec.msgpack.encode(Request(2, "put", name="packs/ab"))
    process.stdin.write(struct.pack(">II", len(head), 1000) + head + b"x" * 999)
    process.stdin.close()
    assert process.wait(PATIENCE) == 1
    assert [*LocalStorage(folder).list("packs")] == []
    assert os.listdir(os.path.join(folder, "tmp")) == []
