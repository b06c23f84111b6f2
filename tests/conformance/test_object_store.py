"""An object store keeps the contract of storage: SeaweedFS, through its S3 interface."""

from __future__ import annotations

import itertools

import pytest

from castore.errors import StorageError, StoragePermissionError, UnreachableError
from castore.storage import Storage, open_storage
from castore.storage.object_store import ObjectStorage
from castore.storage.url import StoreUrl
from tests.conformance.storage import StorageContract, machine
from tests.support.seaweedfs import SeaweedFS, free_ports

pytestmark = pytest.mark.xdist_group("seaweedfs")


@pytest.fixture(scope="module")
def server():
    with SeaweedFS() as running:
        running.make_bucket("castore-test")
        yield running


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
