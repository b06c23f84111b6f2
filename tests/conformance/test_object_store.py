"""An object store keeps the contract of storage: SeaweedFS, through its S3 interface."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time

import pytest

from castore.errors import StorageError, StoragePermissionError, UnreachableError, UsageError
from castore.storage import Storage, open_storage
from castore.storage.object_store import ObjectStorage
from castore.storage.url import StoreUrl
from tests.conformance.storage import StorageContract, machine
from tests.support.seaweedfs import free_ports


@pytest.fixture
def server(seaweedfs):
    return seaweedfs


@pytest.fixture(autouse=True)
def environment(server, monkeypatch):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


_numbers = itertools.count()


def _fresh() -> Storage:
    return open_storage(f"s3://castore-test/stores/{next(_numbers)}")


@pytest.fixture
def storage():
    return _fresh()


class TestObjectStorage(StorageContract):
    """The suite, on a server."""


class TestObjectStorageAgainstADict(machine(_fresh, examples=8, steps=20)):
    """The state machine, on a server."""


def test_a_missing_bucket_is_named():
    storage = open_storage("s3://no-such-bucket/x")
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/x/packs.*no such bucket"):
        list(storage.list("packs"))


def test_wrong_credentials_are_refused_without_a_word_of_them(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    storage = _fresh()
    for request in (lambda: storage.put("packs/a", b""), lambda: storage.get("packs/a"), lambda: [*storage.list("packs")]):
        with pytest.raises(StoragePermissionError, match="s3://castore-test") as refused:
            request()
        assert "secret" not in str(refused.value)
        assert "castore-test-key" not in str(refused.value)


def test_a_server_that_is_down_is_reported(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(UnreachableError, match="no connection"):
        ObjectStorage(StoreUrl("s3://castore-test/x")).put("packs/a", b"")


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:9000", "https://"])
def test_an_endpoint_that_is_no_url_is_refused(monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL"):
        _fresh()


def test_the_endpoint_of_s3_alone_comes_first(monkeypatch, server):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    storage = _fresh()
    storage.put("packs/a", b"x")
    assert storage.get("packs/a") == b"x"


def test_an_interrupt_ends_the_wait_for_a_server_that_hangs(server):
    storage = _fresh()
    storage.put("packs/a", b"x")
    interrupt = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
    server.suspend()
    try:
        interrupt.start()
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            storage.get("packs/a")
        assert time.monotonic() - begun < 10
    finally:
        interrupt.cancel()
        os.kill(server.process_id, signal.SIGCONT)
    assert storage.get("packs/a") == b"x"


def test_a_missing_object_keeps_no_other_from_being_deleted(tmp_path, monkeypatch):
    """Google and Azure report it, as obstore's directories do, and the rest of the request is not done."""
    from obstore.store import LocalStore

    storage = ObjectStorage(StoreUrl("s3://castore-test/x"))
    for client in ("_store", "_metadata"):
        monkeypatch.setattr(storage, client, LocalStore(tmp_path))
    names = [f"packs/{number}" for number in range(100)]
    for name in names[::2]:
        storage.put(name, b"x")
    storage.delete_all(names)
    assert [*storage.list("packs")] == []
