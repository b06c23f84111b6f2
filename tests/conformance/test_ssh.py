"""A directory that `castore serve` gives access to keeps the contract of storage: through OpenSSH."""

from __future__ import annotations

import itertools
import os
import signal
import time

import pytest

from castore.errors import StorageError, StoragePermissionError, UsageError
from castore.storage.ssh import SshStorage
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
_opened: list[SshStorage] = []


def _fresh() -> SshStorage:
    while len(_opened) > 1:
        _opened.pop(0).close()
    path = os.path.join(_servers[-1].folder, f"ssh-{next(_numbers)}")
    _opened.append(SshStorage(StoreUrl(f"ssh://castore-test{path}"), create=True))
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


class TestSshStorage(StorageContract):
    """The suite, through ssh."""

    listed = 40


class TestSshStorageAgainstADict(machine(_fresh, examples=4, steps=25)):
    """The state machine, through ssh."""


def test_a_host_that_looks_like_an_option_is_refused():
    for url in ("ssh://-oProxyCommand=id/x", "ssh://-l@host/x"):
        with pytest.raises(UsageError):
            SshStorage(StoreUrl(url))


def test_an_append_only_key_adds_and_reads_and_deletes_nothing(server, storage):
    storage.put("packs/ab", b"x")
    path = storage.location.removeprefix("ssh://castore-test")
    storage.close()
    server.authorize(f'restrict,command="castore serve --stdio --append-only {path}"')
    storage.put("packs/cd", b"y")
    assert storage.get("packs/ab") == b"x"
    with pytest.raises(StoragePermissionError, match="append-only"):
        storage.delete_all(["packs/ab"])
    with pytest.raises(StoragePermissionError, match="append-only"), storage.lock(exclusive=True):
        pass
    with storage.lock() as held:
        assert held
    assert sorted(storage.list("packs")) == ["ab", "cd"]
    storage.close()


@pytest.mark.parametrize("name", ["../x", "packs/../x", "/etc/passwd", "packs/a/b", "tmp/x", "packs/", "packs/..", "packs/.", "packs"])
def test_a_name_outside_the_store_is_refused(storage, name):
    for ask in (storage.get, storage.size, lambda name: storage.put(name, b""), lambda name: storage.delete_all([name])):
        with pytest.raises(StorageError, match="not the name of an object"):
            ask(name)


def test_wrong_key_is_reported_with_the_words_of_ssh(server, monkeypatch):
    server.authorize("#")
    with pytest.raises(StorageError, match="Permission denied"):
        _fresh().put("packs/ab", b"")


def test_a_host_key_that_changed_is_refused(server, storage, tmp_path, monkeypatch):
    with open(server.config, encoding="ascii") as config:
        text = config.read()
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{server.port} ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPhVJJ3HNDPh+9pYYlCJVGiRE/0Lkd5dRbrWQbXHvhAg\n")
    own = tmp_path / "config"
    own.write_text(text.replace(os.path.join(server.folder, "known_hosts"), str(tmp_path / "known_hosts")))
    monkeypatch.setenv("CASTORE_SSH", f"ssh -F {own}")
    with pytest.raises(StorageError, match=r"[Hh]ost key"):
        _fresh().put("packs/ab", b"")


def test_a_connection_that_was_killed_is_made_again(storage):
    storage.put("packs/ab", b"x")
    os.kill(storage.process_id, signal.SIGKILL)
    assert _eventually(lambda: storage.get("packs/ab")) == b"x"


def test_an_interrupt_of_the_terminal_does_not_end_the_connection(storage):
    """Ctrl-C reaches ssh, too, and castore may need its connection to revert what it began."""
    storage.put("packs/ab", b"x")
    connection = storage.process_id
    with storage.lock():
        os.kill(connection, signal.SIGINT)
        time.sleep(0.5)
        assert storage.get("packs/ab") == b"x"
    assert storage.process_id == connection


def test_a_lock_that_was_lost_with_its_connection_stops_its_holder(storage):
    storage.put("packs/ab", b"x")
    with storage.lock(exclusive=True):
        os.kill(storage.process_id, signal.SIGKILL)
        for _ in range(3):
            with pytest.raises(StorageError):
                storage.put("packs/cd", b"y")
    assert _eventually(lambda: sorted(storage.list("packs"))) == ["ab"]


def test_a_hash_is_made_on_the_other_side(storage):
    from blake3 import blake3

    storage.put("packs/ab", b"x" * 3_000_000)
    assert storage.hash("packs/ab") == (blake3(b"x" * 3_000_000).digest(), 3_000_000)


def _eventually(ask):
    from castore.errors import UnreachableError

    for _ in range(3):
        try:
            return ask()
        except UnreachableError:
            continue
    return ask()
