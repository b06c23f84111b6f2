"""A directory of an SFTP server keeps the contract of storage: OpenSSH's."""

from __future__ import annotations

import itertools
import os
import subprocess

import pytest

from castore.errors import NotFoundError, StorageError, StoragePermissionError, TransientStorageError
from castore.storage.sftp import SftpStorage
from castore.storage.url import StoreUrl
from tests.conformance.storage import StorageContract, machine


@pytest.fixture(scope="module")
def server(shared_sshd):
    _servers.append(shared_sshd)
    yield shared_sshd
    _servers.remove(shared_sshd)


@pytest.fixture(autouse=True)
def environment(server, monkeypatch):
    server.authorize()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


_servers = []
_numbers = itertools.count()
_opened: list[SftpStorage] = []


def _fresh() -> SftpStorage:
    while len(_opened) > 1:
        _opened.pop(0).close()
    path = os.path.join(_servers[-1].folder, f"sftp-{next(_numbers)}")
    _opened.append(SftpStorage(StoreUrl(f"sftp://castore-test{path}"), create=True))
    return _opened[-1]


@pytest.fixture(scope="module")
def connected(server):
    """One connection for most tests: each costs a second."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        server.authorize()
        storage = _fresh()
        yield storage
        storage.close()


@pytest.fixture
def storage(connected):
    for folder in ("config", "sessions", "packs", "pack", "generations"):
        connected.delete_all([f"{folder}/{name}" for name in connected.list(folder)])
    return connected


class TestSftpStorage(StorageContract):
    """The suite, through SFTP."""

    listed = 40


class TestSftpStorageAgainstADict(machine(_fresh, examples=4, steps=25)):
    """The state machine, through SFTP."""


def test_a_wrong_key_is_reported(server):
    server.authorize("#")
    with pytest.raises(StoragePermissionError, match="cannot log in to sftp://castore-test"):
        _fresh()


def test_a_missing_directory_is_no_store(server):
    with pytest.raises(NotFoundError, match="no such directory"):
        SftpStorage(StoreUrl(f"sftp://castore-test{server.folder}/missing"))


def test_a_host_key_that_is_not_known_is_refused(server, tmp_path, monkeypatch):
    with open(server.config, encoding="ascii") as config:
        text = config.read()
    (tmp_path / "known_hosts").write_text("")
    own = tmp_path / "config"
    own.write_text(text.replace(os.path.join(server.folder, "known_hosts"), str(tmp_path / "known_hosts")))
    monkeypatch.setenv("CASTORE_SSH_CONFIG", str(own))
    with pytest.raises(StorageError, match="cannot trust the host"):
        _fresh()


def test_a_connection_that_was_killed_is_made_again(server, storage):
    storage.put("packs/ab", b"x")
    subprocess.run(["pkill", "-KILL", "-P", str(server.process_id), "sshd"], check=True)
    for _ in range(3):
        try:
            assert storage.get("packs/ab") == b"x"
        except TransientStorageError:
            continue
        return
    raise AssertionError
