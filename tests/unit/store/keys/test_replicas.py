"""The essential objects are stored twice: one of the two is enough, a damaged one is named and rewritten."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from castore.content.streams import StreamReader
from castore.crypto import Identity
from castore.errors import DamageError, KeyRotatedError, StorageError, UsageError
from castore.maintenance.verify import verify
from castore.progress import Progress
from castore.services.reading import read
from castore.services.selectors import select
from castore.services.sources import file_source
from castore.storage import LocalStorage
from castore.store import MachinePaths, Store, StoreOptions
from castore.store.keys import replicas
from tests.support.checkout import ROOT
from tests.support.repairs import repair_store
from tests.support.stores import Sandbox, remove_copies

RESCUE = ROOT / "tools" / "rescue.py"
CONTENT = b"what is taken" * 1000


@pytest.fixture
def sandbox(tmp_path):
    """A store whose writer key was replaced, so that it has an `rotations/N`."""
    sandbox = Sandbox(tmp_path, average=4096)
    (tmp_path / "dump").write_bytes(CONTENT)
    take(sandbox)
    with sandbox.open() as store:
        store.admin.rotate()
    return sandbox


def take(sandbox):
    return sandbox.snapshot("web", {"d": file_source(str(sandbox.folder / "dump"))})


def both(sandbox, folder):
    """The object, and its copy."""
    first, second = sorted((sandbox.store / folder).iterdir(), key=lambda path: len(path.name))
    return first, second


def damage(path, how):
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        path.write_bytes(data[:how] + bytes([data[how] ^ 1]) + data[how + 1 :])


def check(sandbox):
    with sandbox.open() as store:
        store.sync()
        assert store.damaged == {}
        with StreamReader(store) as reader:
            assert b"".join(read(reader, select(store, "web@1:d"))) == CONTENT


HARMS = ["gone", "cut", "emptied", 0, 9, 20, 33, 50, -1]
"""In the header, the store's id, the count of seals, a seal, the box."""


@pytest.mark.parametrize("folder", ["config", "rotations"])
@pytest.mark.parametrize("which", [0, 1], ids=["object", "copy"])
@pytest.mark.parametrize("how", HARMS)
def test_one_of_the_two_is_enough_and_the_other_is_named_and_repaired(sandbox, folder, which, how):
    broken, intact = both(sandbox, folder)[which], both(sandbox, folder)[1 - which]
    before = broken.read_bytes()
    damage(broken, how)
    check(sandbox)
    for key in (True, False):
        with Store.open(LocalStorage(str(sandbox.store)), sandbox.places, lambda: sandbox.identity, StoreOptions(local_key=key)) as store:
            assert store.keys.config.recipients[0].key == sandbox.identity.recipient.key
    out = sandbox.folder / "out"
    (sandbox.folder / "identity").write_text(sandbox.identity.text())
    command = [sys.executable, str(RESCUE), str(sandbox.store), "--identity", str(sandbox.folder / "identity")]
    subprocess.run([*command, "web", "1", str(out)], check=True, capture_output=True)
    assert (out / "d").read_bytes() == CONTENT
    with sandbox.open() as store:
        found = verify(store, Progress())
        if (which, how) == (1, "gone"):  # as a castore leaves it that is killed
            assert found.sound
            return
        name = f"{folder}/{broken.name}"
        assert [line.partition(":")[0] for line in found.damage] == [name]
        assert not found.affected
        done, result = repair_store(store)
        assert (done.repaired, done.drop, done.rewrite) == ([name], [], [])
        assert result.after.sound
    assert broken.read_bytes() == before
    assert intact.read_bytes() == before


@pytest.mark.parametrize("folder", ["config", "rotations"])
def test_a_snapshot_writes_the_copy_that_is_missing(sandbox, folder):
    intact, copy = both(sandbox, folder)
    data = copy.read_bytes()
    remove_copies(sandbox.store)
    take(sandbox)
    assert both(sandbox, folder) == (intact, copy)
    assert copy.read_bytes() == data


def test_a_damaged_list_gets_no_copy(sandbox):
    remove_copies(sandbox.store)
    (listed,) = (sandbox.store / "rotations").iterdir()
    damage(listed, -1)
    with sandbox.open() as store:
        store.session().abort()
    assert len(list((sandbox.store / "rotations").iterdir())) == 1


@pytest.mark.parametrize("folder", ["config", "rotations"])
def test_two_damaged_copies_are_reported(sandbox, folder):
    for path in both(sandbox, folder):
        damage(path, -1)
    if folder == "config":
        with pytest.raises((DamageError, KeyRotatedError), match="config/2 is damaged"):
            Store.open(LocalStorage(str(sandbox.store)), sandbox.places, lambda: sandbox.identity, StoreOptions(local_key=False))
    else:
        with sandbox.open() as store:
            assert any(line.startswith("rotations/2: ") for line in verify(store, Progress()).damage)


def test_an_object_that_the_disk_refuses_is_read_from_its_copy(sandbox):
    class Bad(LocalStorage):
        def get(self, name, offset=0, length=None):
            if name == "config/2":
                raise StorageError(f"cannot read {name}") from OSError(errno.EIO, "I/O error")
            return super().get(name, offset, length)

    with Store.open(Bad(str(sandbox.store)), sandbox.places, lambda: sandbox.identity) as store:
        assert verify(store, Progress()).damage == ["config/2: cannot read config/2"]


def test_a_copy_that_was_never_written_by_castore_is_not_believed(sandbox):
    """Anyone who can add objects blocks nothing by a copy of their own."""
    path, copy = both(sandbox, "config")
    copy.unlink()
    replicas.put_copy(LocalStorage(str(sandbox.store)), "config", 2, b"forged")
    sandbox.open().close()
    path.unlink()
    with pytest.raises(DamageError, match="config/2"):
        sandbox.open()


def test_what_cannot_be_read_for_a_moment_is_not_taken_from_the_other(sandbox, monkeypatch):
    """The copy is damaged, and the object refused: neither goes before one was read."""
    path, copy = both(sandbox, "config")
    damage(copy, -1)
    data = path.read_bytes()
    storage = LocalStorage(str(sandbox.store))
    with monkeypatch.context() as patch:
        get = LocalStorage.get
        def refuse(self, name, *rest):
            return (_ for _ in ()).throw(StorageError("I/O error")) if name == "config/2" else get(self, name, *rest)
        patch.setattr(LocalStorage, "get", refuse)
        with pytest.raises(StorageError, match="neither config/2 nor its copy"):
            replicas.repair(storage, "config", 2, data)
    assert path.read_bytes() == data
    assert copy.exists()
    replicas.repair(storage, "config", 2, data)
    assert copy.read_bytes() == data


def test_no_copy_is_left_of_an_object_that_was_replaced_or_withdrawn_meanwhile(sandbox):
    storage = LocalStorage(str(sandbox.store))
    data = storage.get("config/2")

    def replaced():
        storage.put("config/3", b"the next")
        return data

    remove_copies(sandbox.store)
    replicas.keep_copy(storage, "config", 2, replaced)
    assert sorted(storage.list("config")) == ["2", "3"]
    storage.delete("config/3")

    def withdrawn():
        storage.delete("config/2")
        return data

    replicas.keep_copy(storage, "config", 2, withdrawn)
    assert list(storage.list("config")) == []


def test_what_another_machine_replaces_meanwhile_is_not_written_back(sandbox, monkeypatch):
    from castore.maintenance import repair as module

    other = Identity.generate()

    elsewhere = MachinePaths(str(sandbox.folder / "other" / "state"), str(sandbox.folder / "other" / "cache"))

    def meanwhile(*args, **kwargs):
        monkeypatch.setattr(module, "verify", verify)
        found = verify(*args, **kwargs)
        with Store.open(LocalStorage(str(sandbox.store)), elsewhere, lambda: sandbox.identity) as second:
            second.admin.reseal([(other.recipient, "other"), *second.keys.recipients])
        return found

    monkeypatch.setattr(module, "verify", meanwhile)
    damage(both(sandbox, "config")[0], "gone")
    with sandbox.open() as store:
        done, _ = repair_store(store)
    assert done.repaired == []
    assert {name.split(".")[0] for name in LocalStorage(str(sandbox.store)).list("config")} == {"3"}


def test_a_store_that_lost_its_configuration_is_not_recreated(sandbox):
    for path in both(sandbox, "config"):
        path.rename(sandbox.folder / path.name)
    with pytest.raises(DamageError, match=r"config/ is missing in .*: without it nothing .* restore config/"):
        sandbox.open()
    with pytest.raises(UsageError, match="its config/ is missing"):
        Store.create(LocalStorage(str(sandbox.store)), sandbox.places, [(sandbox.identity.recipient, "")])
    command = [sys.executable, str(RESCUE), str(sandbox.store), "--identity", str(sandbox.folder / "identity")]
    (sandbox.folder / "identity").write_text(sandbox.identity.text())
    done = subprocess.run([*command, "web", "1", str(sandbox.folder / "out")], check=False, capture_output=True, text=True)
    assert "has no config/" in done.stderr
    (sandbox.folder / "2").rename(sandbox.store / "config" / "2")
    check(sandbox)


def test_a_missing_object_with_a_damaged_copy_is_named(sandbox):
    path, copy = both(sandbox, "config")
    path.unlink()
    damage(copy, -1)
    with pytest.raises(DamageError, match="config/2 is missing, and its copy is damaged"):
        sandbox.open()
