"""The client of ssh:// is not harmed by a server that hangs or lies, nor by Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest

from castore.errors import StorageError
from castore.storage.ssh import SshStorage
from castore.storage.url import StoreUrl

SOON = 5
"""Seconds, far less than the client waits for an answer."""


@pytest.fixture
def storage_of():
    """Connect to a server of tests.support.hostile_serve."""
    opened = []

    def start(kind):
        # As a program of its own: what ssh would append are arguments that it ignores.
        storage = SshStorage(StoreUrl("ssh://host/x"), f"{sys.executable} -m tests.support.hostile_serve {kind}")
        opened.append(storage)
        return storage

    yield start
    for storage in opened:
        storage.close()


@pytest.fixture
def interrupt():
    """Interrupt the main thread, as Ctrl-C does, in a moment."""
    timers = []

    def soon(seconds=1.5):
        timers.append(threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)))
        timers[-1].start()

    yield soon
    for timer in timers:
        timer.cancel()


def _has_ended(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    ("kind", "request_of"),
    [
        ("deaf", lambda storage: storage.size("packs/ab")),
        ("stuck", lambda storage: storage.size("packs/ab")),
        ("stuck", lambda storage: storage.put("packs/ab", bytes(5 << 20))),
        ("stuck", lambda storage: storage.lock().__enter__()),
    ],
)
def test_an_interrupt_ends_the_wait_for_a_server_and_its_ssh(storage_of, interrupt, kind, request_of, monkeypatch):
    started = []
    popen = __import__("subprocess").Popen

    def remember(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr("castore.storage.ssh.subprocess.Popen", remember)
    storage = storage_of(kind)
    interrupt()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        request_of(storage)
    assert time.monotonic() - begun < SOON
    assert _has_ended(started[0].pid)


def test_a_server_that_reads_no_more_does_not_block_the_client_for_ever(storage_of, monkeypatch):
    monkeypatch.setattr("castore.storage.ssh._PATIENCE", 1.0)
    storage = storage_of("stuck")
    monkeypatch.setattr("castore.storage.ssh._PATIENCE", 1.0)
    with pytest.raises(StorageError, match="did not answer for 1 seconds"):
        storage.put("packs/ab", bytes(5 << 20))


def test_what_the_server_says_is_checked(storage_of):
    with pytest.raises(StorageError, match=r"100 bytes of packs/ab, instead of 10"):
        storage_of("long").get("packs/ab", 0, 10)
    with pytest.raises(StorageError, match="a length of -1"):
        storage_of("long").size("packs/ab")
    with pytest.raises(StorageError, match="not in order"):
        [*storage_of("endless").list("packs")]
