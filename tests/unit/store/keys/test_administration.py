"""Changes of keys by two machines at once: one is done, and the other is refused and can be repeated."""

from __future__ import annotations

import pytest

from castore.crypto import Identity
from castore.errors import BusyError, DamageError, IdentityError, NotFoundError
from castore.storage import LocalStorage
from castore.store import MachinePaths, Store, StoreOptions
from castore.store.format.names import CONFIGS
from castore.store.keys.replicas import free_above
from castore.store.keys.trust import newest_numbers
from tests.support.stores import Sandbox, admins, remove_copies


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path)


@pytest.fixture
def other(sandbox, tmp_path):
    """Return another machine of the same admin, on which `adopt` certifies it under a name."""
    places = MachinePaths(str(tmp_path / "other" / "state"), str(tmp_path / "other" / "cache"))

    def adopt(name="other", *, replace=False):
        trust = StoreOptions(trust=frozenset([sandbox.identity.admin.public]))
        with Store.open(LocalStorage(str(sandbox.store)), places, lambda: sandbox.identity, trust) as store:
            store.admin.adopt(name, replace=replace)

    return adopt


def hosts(sandbox):
    with sandbox.open() as store:
        return {writer.host for writer in store.keys.config.writers if not writer.revoked}


def meanwhile(monkeypatch, action, *, after):
    """Do something once when a configuration is written: before that, or after it."""
    put, done = LocalStorage.put, []

    def writing(self, name, data):
        def act():
            if name.startswith(CONFIGS) and not done:
                done.append(name)
                action()

        if not after:
            act()
        put(self, name, data)
        if after:
            act()

    monkeypatch.setattr(LocalStorage, "put", writing)


@pytest.mark.parametrize("after", [False, True])
def test_of_two_changes_at_once_one_is_refused_and_neither_is_lost(sandbox, other, monkeypatch, after):
    with sandbox.open() as store:
        with monkeypatch.context() as patch:
            meanwhile(patch, other, after=after)
            with pytest.raises(BusyError, match=r"another castore has just (written|changed)"):
                store.admin.adopt("renamed")
        assert "other" in hosts(sandbox)
        store.admin.adopt("renamed")
    assert hosts(sandbox) == {"other", "renamed"}


def test_of_two_changes_of_recipients_at_once_one_is_refused(sandbox, other, monkeypatch):
    second = Identity.generate()
    recipients = [(sandbox.identity.recipient, "me"), (second.recipient, "you")]
    with sandbox.open() as store:
        with monkeypatch.context() as patch:
            meanwhile(patch, other, after=False)
            with pytest.raises(BusyError, match="another castore has just written config/"):
                store.admin.reseal(recipients)
        assert store.admin.reseal(recipients)
        assert len(list(store.storage.list(CONFIGS))) == 2, "one object, and its copy"
        assert not store.admin.reseal(recipients), "nothing is left to do"
    assert "other" in hosts(sandbox)


def test_a_rotation_is_refused_after_a_change_that_it_does_not_know(sandbox, other):
    with sandbox.open() as store:
        other()
        with pytest.raises(BusyError, match="has just changed the keys of this store; try again"):
            store.admin.rotate()
        before = store.keys.writer_key.secret
        store.admin.rotate()
        assert store.keys.writer_key.secret != before
    assert "other" in hosts(sandbox)


def test_only_an_admin_changes_keys_and_a_recipient_says_how_to_become_one(sandbox):
    second = Identity.generate()
    recipients = [(sandbox.identity.recipient, "me"), (second.recipient, "you")]
    with sandbox.open() as store:
        store.admin.reseal(recipients, admins=admins(sandbox.identity))
        assert not store.admin.sign(), "it is signed already"
        with pytest.raises(NotFoundError, match=r"no machine is a writer .* under the name 'nobody'"):
            store.admin.revoke("nobody")
    for identity, reason in ((second, "is no admin of the store"), (Identity.generate(), "opens nothing in the store|is not a recipient")):
        with Store.open(LocalStorage(str(sandbox.store)), sandbox.places, lambda identity=identity: identity) as store:
            for change in (store.admin.rotate, store.admin.sign, lambda: store.admin.reseal(recipients)):
                with pytest.raises(IdentityError, match=reason):
                    change()


def test_a_sealing_that_was_interrupted_before_old_objects_were_removed_is_completed(sandbox, monkeypatch):
    second = Identity.generate()
    recipients = [(sandbox.identity.recipient, "me"), (second.recipient, "you")]
    with sandbox.open() as store:
        with store.session() as session:
            session.put_node([])
        with monkeypatch.context() as patch:
            patch.setattr(LocalStorage, "delete_all", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                store.admin.reseal(recipients)
        assert len(list(store.storage.list("sessions"))) == 2
        assert store.admin.reseal(recipients), "the former session object was removed"
        assert len(list(store.storage.list("sessions"))) == 1
        assert not store.admin.reseal(recipients)


def test_a_machine_that_replaces_none_gets_no_role(sandbox, other):
    other("new", replace=True)
    with sandbox.open() as store:
        assert [(writer.host, writer.roles) for writer in store.keys.config.writers if writer.host == "new"] == [("new", ())]


def test_a_machine_adds_as_soon_as_it_is_certified(sandbox, tmp_path):
    places = MachinePaths(str(tmp_path / "new" / "state"), str(tmp_path / "new" / "cache"))
    options = StoreOptions(local_key=False, trust=frozenset([sandbox.identity.admin.public]))
    with Store.open(LocalStorage(str(sandbox.store)), places, lambda: sandbox.identity, options) as store:
        assert store.keys.certified_host == ""
        store.admin.adopt("new")
        assert store.keys.certified_host == "new"
        with store.session() as session:
            session.put_node([])


def test_the_next_number_is_the_lowest_that_is_free():
    assert [free_above(1, taken) for taken in ((), {2}, {2, 3, 5}, {3})] == [2, 3, 4, 2]


def test_without_a_configuration_that_can_be_read_the_first_reason_is_reported(sandbox):
    remove_copies(sandbox.store)
    (path,) = (sandbox.store / "config").iterdir()
    storage = LocalStorage(str(sandbox.store))
    ((_, number),) = newest_numbers(storage)
    assert path.name == str(number)
    path.write_bytes(b"no configuration")
    with pytest.raises(DamageError, match=f"config/{path.name} is damaged: it does not begin"):
        newest_numbers(storage)
    path.unlink()
    with pytest.raises(NotFoundError, match="no store at"):
        newest_numbers(storage)
