"""Who decides: configurations are signed by admins, and what a thief of a writer key adds is passed over."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import time

import msgspec
import pytest

import castore
from castore.content.streams import StreamReader
from castore.crypto import Admin, Cipher, Identity, MachineKey, SigningKey, WriterKey
from castore.errors import (
    ConfigError,
    DamageError,
    FormatError,
    IdentityError,
    KeyRotatedError,
    StaleStoreError,
    UntrustedError,
    UsageError,
)
from castore.maintenance.audit import audit
from castore.maintenance.compact import compact
from castore.maintenance.verify import verify as verify_store
from castore.services.prune import forget
from castore.services.reading import read
from castore.services.selectors import select
from castore.services.sources import file_source
from castore.storage import LocalStorage
from castore.store import MachinePaths, NewStore, Store, StoreOptions
from castore.store.format.config import (
    MAINTAIN,
    Certificate,
    LabelledAdmin,
    LabelledRecipient,
    StoreConfig,
    encode_config,
)
from castore.store.format.config import config_numbers as numbers
from castore.store.format.deletion import write_deletion
from castore.store.format.envelope import seal_object
from castore.store.format.generation import MAX_JUMP, MAX_NUMBER, encode_generation
from castore.store.format.header import CONFIG, DELETION, GENERATION, PACK, PIN, REMOVAL, SESSION
from castore.store.format.names import generation_name, pack_name, session_name
from castore.store.format.pack import CHUNK, PackWriter
from castore.store.format.pin import pin
from castore.store.format.removal import Removal, record_removal
from castore.store.format.session_key import decode_session, encode_session, new_session_record, sealed_to
from castore.store.format.signed import open_signed, sign
from castore.store.keys import replicas
from castore.store.write import session as session_module
from tests.support.checkout import ROOT
from tests.support.repairs import repair_store
from tests.support.stores import Sandbox, admins, signed, take_snapshot

RESCUE = ROOT / "tools" / "rescue.py"


class StolenKeySandbox(Sandbox):
    """A store, and what a thief of this machine's writer key knows."""

    @property
    def storage(self) -> LocalStorage:
        return LocalStorage(str(self.store))

    def machine(self, name: str) -> MachinePaths:
        return MachinePaths(str(self.folder / name / "state"), str(self.folder / name / "cache"))

    def at(self, places: MachinePaths | None = None, identity: Identity | None = None, **options) -> Store:
        provider = None if identity is None else lambda: identity
        return Store.open(self.storage, places or self.places, provider, StoreOptions(**options))

    def stolen(self) -> tuple[WriterKey, StoreConfig]:
        with self.open(identity=False) as store:
            return store.keys.writer_key, store.keys.config

    def forge(self, number: int, signer: SigningKey, writer: WriterKey | None = None, **changes) -> None:
        """Put a configuration there as somebody who has the writer key can."""
        stolen, config = self.stolen()
        config = msgspec.structs.replace(config, **changes)
        self.storage.put(f"config/{number}", encode_config(number, config, writer or stolen, signer))


@pytest.fixture
def sandbox(tmp_path):
    return StolenKeySandbox(tmp_path)


def thief() -> tuple[Identity, LabelledRecipient, LabelledAdmin]:
    identity = Identity.generate()
    return identity, LabelledRecipient(identity.recipient.key, ""), LabelledAdmin(identity.admin.public)


def test_signatures_are_bound_to_signer_object_and_record():
    key, other = SigningKey(os.urandom(32)), SigningKey(os.urandom(32))
    envelope = sign(key, b"config/1", b"record")
    assert open_signed(b"config/1", envelope) == (key.public, b"record")
    for about, wrong in [
        (b"config/2", envelope),
        (b"config/1", envelope + b"x"),
        (b"config/1r", envelope[:-6] + b"ecord"),
        (b"config/1", other.public + envelope[32:]),
        (b"config/1", envelope[:90]),
        (b"config/1", b""),
    ]:
        with pytest.raises(Exception, match="signature"):
            open_signed(about, wrong)


def test_the_text_of_an_admin_key_has_a_check():
    admin = Admin(Identity.generate().admin.public)
    assert Admin.parse(admin.text) == admin
    for wrong in (admin.text[:-1], admin.text.replace("admin", "pub"), ""):
        with pytest.raises(UsageError):
            Admin.parse(wrong)


def test_a_writer_key_holds_the_machine_and_the_admins_that_it_pins():
    key = WriterKey.generate().with_trusted_signers([b"a" * 32, b"b" * 32])
    again = WriterKey.parse(key.text())
    assert (again, again.trusted_signers) == (key, key.trusted_signers)
    assert again.machine.seed == key.machine.seed
    assert again.machine.signing.public == MachineKey(key.machine.seed).signing.public
    with pytest.raises(UsageError):
        WriterKey.parse(key.text()[:-3])


@pytest.mark.parametrize("number", [2, 7, 999_999_999_999_999_999])
def test_a_thief_of_the_writer_key_adds_no_recipient(sandbox, number):
    identity, recipient, admin = thief()
    (mine,) = admins(sandbox.identity)
    recipients = (LabelledRecipient(sandbox.identity.recipient.key, ""), recipient)
    sandbox.forge(number, identity.admin, recipients=recipients, admins=(mine, admin))
    for places in (sandbox.places, sandbox.machine("fresh")):
        with sandbox.at(places, sandbox.identity) as store:
            assert [one.key for one in store.keys.config.recipients] == [sandbox.identity.recipient.key]
            assert f"config/{number}" in store.keys.passed_over
            assert "--trust-admin" in store.keys.passed_over[f"config/{number}"]
            store.session().abort()
    with sandbox.open() as store:
        assert store.admin.reseal([*store.keys.recipients, (Identity.generate().recipient, "second")])
        assert len(store.keys.recipients) == 2
        store.admin.rotate()
    with sandbox.open(identity=False) as store:
        assert store.keys.sealed.secret(identity) is None
        assert store.keys.config.certificate(store.keys.writer_key.machine.signing.public).host


def test_a_thief_removes_no_recipient_and_ends_no_history(sandbox):
    stolen, _ = sandbox.stolen()
    sandbox.forge(2, stolen.machine.signing, recipients=(), previous_secrets=(stolen.secret,), rotation=2, rotation_hash=b"h" * 32)
    sandbox.forge(3, Identity.generate().admin, stolen.successor())
    sandbox.storage.put("config/4", os.urandom(500))
    sandbox.storage.put("config/5", b"")
    with sandbox.open(identity=False) as store:
        assert store.keys.config.rotation == 0
        assert len(store.keys.passed_over) == 4
    with sandbox.open() as store:
        store.admin.reseal([*store.keys.recipients, (Identity.generate().recipient, "")])
        store.keys.refresh()
    assert 6 in numbers(sandbox.storage)


def test_a_certified_machine_signs_no_configuration_for_others(sandbox):
    with sandbox.at(sandbox.machine("other"), sandbox.identity) as store:
        store.admin.adopt("other")
        key = store.keys.writer_key.machine.signing
    sandbox.forge(7, key, admins=(), recipients=(thief()[1],))
    with sandbox.open(identity=False) as store:
        assert list(store.keys.passed_over) == ["config/7"]
        assert [one.key for one in store.keys.config.recipients] == [sandbox.identity.recipient.key]


def test_an_admin_removes_configurations_that_are_not_accepted(sandbox, tmp_path):
    writer, config = sandbox.stolen()
    identity, recipient, admin = thief()
    sandbox.forge(7, identity.admin, recipients=(recipient,), admins=(admin,))
    sandbox.forge(8, writer.signer)
    sandbox.storage.put("config/9", CONFIG + b"\2" + bytes(7) + os.urandom(300))
    sandbox.storage.put("config/99", os.urandom(300))
    sandbox.storage.put(f"config/99.{'0' * 32}", os.urandom(300))
    planned = []

    for other in (None, identity):
        with sandbox.at(identity=other) as store:
            assert list(store.keys.passed_over) == ["config/7", "config/8", "config/9", "config/99"]
            planned.append(repair_store(store)[0].drop)
            assert store.keys.passed_over, "only an admin decides"
    with sandbox.open() as store:
        sandbox.storage.put("config/3", encode_config(3, config, writer, sandbox.identity.admin))
        planned.append(repair_store(store)[0].drop)
        assert not store.keys.passed_over
    assert len(planned[-1]) == 5
    assert [one for one in numbers(sandbox.storage) if one > 1] == [3]


@pytest.mark.parametrize("is_admin", [True, False])
def test_only_an_admin_says_that_a_store_is_of_a_newer_format(sandbox, is_admin):
    with sandbox.open() as store:
        machine = store.keys.writer_key.signer
    sandbox.forge(7, sandbox.identity.admin if is_admin else machine, version=2)
    if not is_admin:
        sandbox.open(identity=False).close()
        sandbox.at(sandbox.machine("other"), sandbox.identity).close()
        return
    for places in (sandbox.places, sandbox.machine("other")):
        with pytest.raises(FormatError, match="update castore"):
            sandbox.at(places, sandbox.identity)


def test_a_configuration_of_another_store_is_passed_over(sandbox, tmp_path):
    other = StolenKeySandbox(tmp_path / "2")
    data = other.storage.get("config/1")
    sandbox.storage.put("config/9", data)
    with sandbox.open(identity=False) as store:
        assert store.keys.passed_over == {"config/9": "it is of another store"}
    with sandbox.at(sandbox.machine("fresh"), sandbox.identity) as store:
        assert store.store_id == sandbox.stolen()[0].store_id


def test_a_forged_copy_takes_nobodys_place(sandbox):
    identity, recipient, admin = thief()
    stolen, config = sandbox.stolen()
    changed = msgspec.structs.replace(config, recipients=(recipient,), admins=(admin,))
    forged = encode_config(1, changed, stolen, identity.admin)
    for name in list(sandbox.storage.list("config")):
        if "." in name:
            sandbox.storage.delete(f"config/{name}")
    replicas.put_copy(sandbox.storage, "config", 1, forged)
    with sandbox.at(sandbox.machine("fresh"), sandbox.identity) as store:
        assert store.keys.config.admin_keys == config.admin_keys


def test_only_an_admin_changes_recipients_and_writers(sandbox):
    reader = Identity.generate()
    with sandbox.open() as store:
        store.admin.reseal([*store.keys.recipients, (reader.recipient, "reader")])
        admin = store.keys.signer
    places = sandbox.machine("reader")
    with pytest.raises(UntrustedError, match=r"--trust-admin castore-admin-"):
        sandbox.at(places, reader)
    with sandbox.at(places, reader, trust=[admin]) as store:
        for change in (lambda: store.admin.adopt("reader"), store.admin.rotate, lambda: store.admin.reseal(store.keys.recipients[:1])):
            with pytest.raises(IdentityError, match="no admin"):
                change()
    sandbox.at(places, reader).close()  # it is remembered
    with sandbox.open() as store:
        store.admin.reseal(store.keys.recipients, admins=[*store.keys.config.admins, *admins(reader)])
    with sandbox.at(places, reader) as store:
        store.admin.adopt("reader")
        assert store.keys.certified_host == "reader"
        with pytest.raises(UsageError, match="identity that stays"):
            store.admin.reseal(store.keys.recipients, admins=admins(sandbox.identity))
    assert len(sandbox.stolen()[1].writers) == 2


def test_machines_follow_the_admins_that_an_admin_names(sandbox):
    second = Identity.generate()
    with sandbox.open() as store:
        store.admin.reseal([*store.keys.recipients, (second.recipient, "")], admins=[*store.keys.config.admins, *admins(second)])
    sandbox.open(identity=False).close()
    with sandbox.at(sandbox.machine("second"), second, trust=[sandbox.identity.admin.public]) as store:
        pass
    with sandbox.at(sandbox.machine("second"), second) as store:
        store.admin.reseal([(second.recipient, "")], admins=admins(second))
    with sandbox.open(identity=False) as store:
        assert store.keys.writer_key.trusted_signers == (second.admin.public,)
    sandbox.forge(9, sandbox.identity.admin)
    with sandbox.open(identity=False) as store:
        assert list(store.keys.passed_over) == ["config/9"], "who is an admin no more signs nothing"


def test_another_configuration_under_the_same_number_is_refused(sandbox):
    sandbox.open(identity=False).close()
    stolen, config = sandbox.stolen()
    data = encode_config(1, config, stolen, sandbox.identity.admin)  # as an admin did on another copy of the store
    for name in list(sandbox.storage.list("config")):
        sandbox.storage.delete(f"config/{name}")
    sandbox.storage.put("config/1", data)
    with pytest.raises(StaleStoreError, match="not the one that this machine has seen"):
        sandbox.open(identity=False)
    with sandbox.at(accept_older=True):
        pass
    sandbox.open(identity=False).close()


def test_a_store_without_an_admin_counts_where_it_was_made_until_one_signs(sandbox, tmp_path):
    storage = LocalStorage(str(tmp_path / "made"), create=True)
    places, elsewhere = sandbox.machine("maker"), sandbox.machine("elsewhere")
    Store.create(storage, places, [(sandbox.identity.recipient, "")]).close()
    def provide():
        return sandbox.identity
    Store.open(storage, places).close()
    with pytest.raises(UntrustedError, match="castore key sign"):
        Store.open(storage, elsewhere, provide)
    with pytest.raises(UntrustedError, match="castore key sign"):
        Store.open(storage, elsewhere, provide, StoreOptions(agree=lambda *_: False))
    with Store.open(storage, places, provide) as store:
        with pytest.raises(IdentityError, match="castore key sign"):
            store.admin.rotate()
        assert store.admin.sign()
        assert not store.admin.sign()
        store.admin.rotate()
    with Store.open(storage, elsewhere, provide) as store:
        assert store.keys.is_signed_by_admin
    Store.open(storage, places).close()


def test_a_machine_accepts_the_admin_that_it_was_given_when_the_store_was_made(sandbox, tmp_path):
    storage = LocalStorage(str(tmp_path / "made"), create=True)
    places = sandbox.machine("maker")
    Store.create(storage, places, [(sandbox.identity.recipient, "")], new=NewStore(admins=[sandbox.identity.admin.public])).close()
    with Store.open(storage, sandbox.machine("elsewhere"), lambda: sandbox.identity, StoreOptions(agree=lambda *_: True)) as store:
        assert store.admin.sign()
    with Store.open(storage, places) as store:
        assert store.keys.is_signed_by_admin
        assert store.keys.passed_over == {}


def test_a_name_belongs_to_one_machine(sandbox):
    with sandbox.at(sandbox.machine("second"), sandbox.identity) as store:
        host = store.keys.config.writers[0].host
        with pytest.raises(UsageError, match="--replace"):
            store.admin.adopt(host)
        store.admin.adopt("second")
    with sandbox.at(sandbox.machine("second"), sandbox.identity, local_key=False) as store:
        store.admin.adopt("renamed")
        assert [(one.host, one.names, one.revoked) for one in store.keys.config.writers[1:]] == [("renamed", ("second",), 0)]
    with sandbox.at(sandbox.machine("third"), sandbox.identity) as store:
        store.admin.adopt("renamed", replace=True)
        assert store.keys.certified_host == "renamed"
        assert [one.replaced for one in store.keys.config.writers] == [False, True, False]
    with pytest.raises(KeyRotatedError, match=r"another machine replaced it.*castore key adopt.*--replace.*--host NAME"):
        sandbox.at(sandbox.machine("second"))


def test_an_earlier_name_of_a_machine_is_given_to_no_other(sandbox):
    """It could remove the generations of that one unnoticed, as it may those that it took under the name."""
    with sandbox.at(sandbox.machine("one"), sandbox.identity) as store:
        store.admin.adopt("web")
        store.admin.adopt("renamed")
    with sandbox.at(sandbox.machine("two"), sandbox.identity) as store:
        for replace in (False, True):
            with pytest.raises(UsageError, match="earlier name of the machine renamed"):
                store.admin.adopt("web", replace=replace)
        store.admin.revoke("renamed")
    with sandbox.at(sandbox.machine("two"), sandbox.identity) as store:
        store.admin.adopt("web")


def test_a_machine_that_replaces_another_keeps_its_role(sandbox):
    """A single machine that was lost and replaced can still free the space of its store."""
    with sandbox.at(sandbox.machine("second"), sandbox.identity) as store:
        made = store.keys.config.writers[0]
        assert made.roles == (MAINTAIN,)
        store.admin.adopt(made.host, replace=True)
        assert [one.roles for one in store.keys.config.writers if not one.revoked] == [(MAINTAIN,)]
    with sandbox.at(sandbox.machine("second")) as store:
        store.keys.check_may_maintain("compact")
    with sandbox.at(sandbox.machine("third"), sandbox.identity) as store:
        store.admin.revoke(made.host)
        store.admin.adopt(made.host, replace=True)
        assert [one.roles for one in store.keys.config.writers if not one.revoked] == [()]


def test_a_revoked_machine_does_not_get_the_next_key(sandbox):
    with sandbox.at(sandbox.machine("stolen"), sandbox.identity) as store:
        store.admin.adopt("stolen")
        key = store.keys.writer_key
    with sandbox.at(sandbox.machine("other"), sandbox.identity) as store:
        store.admin.adopt("other")
    with sandbox.open() as store:
        store.admin.revoke("stolen")
        (ended,) = [one for one in store.keys.config.writers if one.host == "stolen"]
        assert 0 < ended.revoked <= time.time_ns()
        assert store.keys.sealed.secret(key.machine.identity) is None
    for places in (sandbox.machine("other"), sandbox.places):
        with sandbox.at(places) as store:
            assert store.keys.writer_key.secret != key.secret
    with pytest.raises(KeyRotatedError):
        sandbox.at(sandbox.machine("stolen"))


def test_a_thief_who_adds_configurations_all_the_time_keeps_no_revocation_from_its_end(sandbox, monkeypatch):
    with sandbox.at(sandbox.machine("stolen"), sandbox.identity) as store:
        store.admin.adopt("stolen")
    put = LocalStorage.put

    def flooded(storage, name, data):
        if name.startswith("rotations/") and "." not in name:
            put(storage, f"config/{int(name.partition('/')[2]) + 1}", os.urandom(500))
        put(storage, name, data)

    with sandbox.open() as store:
        with monkeypatch.context() as patch:
            patch.setattr(LocalStorage, "put", flooded)
            store.admin.revoke("stolen")
        assert store.keys.config.live("stolen") is None
    with sandbox.open(identity=False) as store:
        assert store.keys.config.live("stolen") is None


def test_configurations_that_name_no_keys_are_damaged(sandbox):
    stolen, config = sandbox.stolen()
    bad = [
        {"admins": (LabelledAdmin(b"x"),)},
        {"writers": (Certificate(b"k" * 32, b"x", "h", 0),)},
        {"recipients": ()},
        {"rotation": 3},
        {"average_chunk_size": 5},
    ]
    for number, changes in enumerate(bad, 2):
        named = changes.get("admins", ()) + config.admins
        changed = msgspec.structs.replace(config, **{**changes, "admins": named})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StoreConfig, "sealed_to", [])
            data = encode_config(number, changed, stolen, sandbox.identity.admin)
        sandbox.storage.put(f"config/{number}", data)
    with sandbox.open(identity=False) as store:
        assert len(store.keys.passed_over) == len(bad)
        assert store.keys.config == config


# What machines add


class Fleet(StolenKeySandbox):
    """A store with two more machines: one that a thief has, and one that stays."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("stolen", "other"):
            with self.at(self.machine(name), self.identity) as store:
                store.admin.adopt(name)

    def take(self, data: bytes, machine: str = "", service: str = "s", **options):
        (self.folder / "dump").write_bytes(data)
        with self.at(self.machine(machine) if machine else self.places) as store:
            return take_snapshot(store, service, {"d": file_source(str(self.folder / "dump"))}, **options)

    def read(self, what: str) -> bytes:
        with self.at(identity=self.identity, chosen_host="*") as store, StreamReader(store) as reader:
            store.sync()
            return b"".join(read(reader, select(store, what)))

    def key(self, machine: str) -> WriterKey:
        with self.at(self.machine(machine) if machine else self.places) as store:
            return store.keys.writer_key


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


NOISE = random.Random(5).randbytes(400_000)


def test_a_host_is_a_certified_name_and_not_a_claim(fleet):
    fleet.take(b"mine")
    fleet.take(b"theirs", "stolen")
    with fleet.at(fleet.machine("stolen")) as store:
        store.sync()
        (model,) = [one for one in store.generations.all() if one.host == "stolen"]
        key, host = store.keys.writer_key, [one.host for one in store.generations.all()][1]
        assert model.host_id == key.signer.public.hex()
        (victim,) = [one for one in store.generations.all() if one.host == host]
    for number, changes in enumerate([{"host": host}, {"host": host, "host_id": victim.host_id}, {"host": "new"}], 7):
        forged = msgspec.structs.replace(model, number=number, **changes)
        fleet.storage.put(generation_name(key.tag("s"), number), encode_generation(forged, key)[0])
    with fleet.open(identity=False) as store:
        store.sync()
        assert [one.number for one in store.generations.all()] == [2, 1]
        assert len([name for name in store.damaged if name.startswith("generations/")]) == 3
        assert store.generations.next_number("s") == 3
        assert compact(store, castore.Progress()).removed == 0, "it blocks nothing"
    fleet.take(b"more")


def test_what_an_admin_adds_is_listed_under_the_admin_s_key(fleet):
    with fleet.at(fleet.machine("new"), fleet.identity, host="other") as store:
        (fleet.folder / "dump").write_bytes(NOISE)
        taken = take_snapshot(store, "s", {"d": file_source(str(fleet.folder / "dump"))})
        assert taken.host == "other"
        listed = {(one.kind, one.host): one.generations for one in audit(store).added}
    assert listed["admin", ""] == 1
    assert listed["writer", "other"] == 0


def test_a_number_far_above_all_others_blocks_no_service(fleet):
    fleet.take(b"one")
    with fleet.at(fleet.machine("stolen")) as store:
        store.sync()
        (model,) = store.generations.all()
        key = store.keys.writer_key
        for number in (MAX_NUMBER, MAX_NUMBER - 1):
            store.generations.commit(signed(store, msgspec.structs.replace(model, number=number)))
    fleet.storage.put(generation_name(key.tag("s"), 2), b"garbage")
    fleet.storage.put(generation_name(key.tag("s"), 3), os.urandom(300))
    for _ in range(2):
        with fleet.open(identity=False) as store:
            store.sync()
            assert store.generations.next_number("s") == 4
    assert fleet.take(b"two").number == 4
    assert fleet.take(b"three", "other").number == 5
    with fleet.open(identity=False) as store:
        store.sync()
        assert [one.number for one in store.generations.all() if store.hosts.is_own(one)] == [4, 1]


def test_removals_of_one_host_use_no_numbers_up(fleet):
    fleet.take(b"one")
    key = fleet.key("stolen")
    name = f"removals/{key.tag('s').hex()}-{os.urandom(16).hex()}"
    record = Removal(1, 1, tuple((number, number) for number in range(MAX_JUMP, MAX_NUMBER, MAX_JUMP)))
    fleet.storage.put(name, seal_object(REMOVAL, name, msgspec.msgpack.encode(record), key))
    assert fleet.take(b"two").number <= MAX_JUMP + 1


def test_nobody_else_removes_a_generation_unnoticed(fleet):
    fleet.take(b"one")
    with fleet.at(fleet.machine("stolen")) as store:
        store.sync()
        with pytest.raises(UsageError, match="--maintain"):
            forget(store, "s", store.generations.all("s"))
        with pytest.raises(UsageError, match="--maintain"):
            compact(store, castore.Progress())
        record_removal(store.storage, store.keys.writer_key, "s", [1])
        write_deletion(store.storage, store.keys.writer_key, store.index.packs.ids())
    for name in list(fleet.storage.list("generations")):
        fleet.storage.delete(f"generations/{name}")
    with fleet.open(identity=False) as store, pytest.raises(StaleStoreError, match="s@1"):
        store.sync()


def test_a_machine_may_remove_generations_of_its_own_host(fleet):
    fleet.take(b"one", "other")
    fleet.open(identity=False).close()
    with fleet.open(identity=False) as store:
        store.sync()
    with fleet.at(fleet.machine("other")) as store:
        store.sync()
        forget(store, "s", store.generations.all("s"))
    with fleet.open(identity=False) as store:
        store.sync()
        assert store.generations.all() == []
        assert store.generations.next_number("s") == 2


def test_a_session_without_the_seal_of_a_recipient_is_reported(fleet, monkeypatch):
    fleet.take(b"whole")
    monkeypatch.setattr(session_module, "sealed_to", lambda _to, session, key: sealed_to([Identity.generate().recipient], session, key))
    fleet.take(NOISE, "stolen")
    monkeypatch.setattr(session_module, "sealed_to", lambda to, session, key: tuple((one.key, os.urandom(96)) for one in to))
    fleet.take(NOISE[::-1], "stolen")
    with fleet.open() as store:
        assert not verify_store(store, castore.Progress()).damage, "without an identity it is not known"
        store.keys.identity()
        found = verify_store(store, castore.Progress()).damage
        assert len(found) == 2
        assert "castore key add" in "".join(found)
        assert "its seal does not open" in "".join(found)


def test_what_a_revoked_machine_signs_is_refused_and_what_it_signed_stays(fleet):
    fleet.take(NOISE, "stolen")
    key = fleet.key("stolen")
    with fleet.open() as store:
        store.admin.revoke("stolen")
        (model,) = store.generations.all()
    late = msgspec.structs.replace(model, number=5)
    fleet.storage.put(generation_name(key.tag("s"), 5), encode_generation(late, key)[0])
    # Who has the new secret, too, but not the certificate.
    with fleet.open(identity=False) as store:
        known = store.keys.writer_key
    thief = WriterKey(known.store_id, known.secret, signer=key.signer)
    fleet.storage.put(generation_name(thief.tag("s"), 6), encode_generation(msgspec.structs.replace(model, number=6), thief)[0])
    pin(fleet.storage, thief, "s", 1, "keep")
    for places in (fleet.places, fleet.machine("other"), fleet.machine("fresh")):
        with fleet.at(places, fleet.identity) as store:
            store.sync()
            assert [one.number for one in store.generations.all()] == [1]
            assert len(store.damaged) == 2
            assert store.generations.pins("s") == {}
    assert fleet.read("s@1:d") == NOISE
    assert fleet.take(b"next", "other").number == 2


def test_nothing_of_a_revoked_machine_is_shared_by_new_snapshots(fleet):
    fleet.take(NOISE, "stolen")
    assert fleet.take(NOISE, "other").part("d").new_chunks == 0, "before, all machines share"
    with fleet.open() as store:
        store.admin.revoke("stolen")
    taken = fleet.take(NOISE, "other")
    assert taken.part("d").new_chunks == taken.part("d").chunks
    assert fleet.take(NOISE, "other").part("d").new_chunks == 0
    for path in (fleet.store / "packs").iterdir():
        with fleet.open(identity=False) as store:
            store.sync()
            (owner,) = [signer for pack, _, signer, _ in store.index.packs.owners() if path.name == pack.hex()]
            stolen = store.keys.config.writers[1].key
        if owner == stolen:
            path.unlink()
    assert fleet.read("s@3:d") == NOISE


def test_nor_is_what_a_maintainer_moved_of_it_to_packs_of_its_own(fleet):
    fleet.take(NOISE, "stolen")
    with fleet.open() as store:
        store.sync()
        for pack in store.index.packs.ids():
            path = fleet.store / pack_name(pack)
            data, moved = path.read_bytes(), PackWriter(fleet.storage, store.keys.writer_key)
            for offset, entries in itertools.groupby(store.reader.pack_entries(pack), lambda entry: entry.offset):
                shared = list(entries)
                moved.add(shared, data[offset : offset + shared[0].sealed_length])
            moved.commit(full=False)
            path.unlink()
    assert fleet.take(NOISE, "other").part("d").new_chunks == 0
    with fleet.open() as store:
        store.admin.revoke("stolen")
    taken = fleet.take(NOISE, "other")
    assert taken.part("d").new_chunks == taken.part("d").chunks


def test_a_machine_may_share_nothing_with_others(fleet):
    fleet.take(NOISE)
    with fleet.at(fleet.machine("other"), isolate_writers=True) as store:
        taken = take_snapshot(store, "s", {"d": file_source(str(fleet.folder / "dump"))})
    assert taken.part("d").new_chunks == taken.part("d").chunks


def test_a_pack_is_signed_and_holds_sessions_of_its_signer(fleet):
    fleet.take(NOISE)
    key = fleet.key("stolen")
    with fleet.open(identity=False) as store:
        store.sync()
        (pack,) = store.index.packs.ids()
        entries = store.reader.pack_entries(pack)
    forged = PackWriter(fleet.storage, key)
    forged.add(entries[:1], b"x" * entries[0].sealed_length)
    forged.commit(full=False)
    stranger = WriterKey(key.store_id, key.secret, signer=MachineKey.generate().signing)
    unknown = PackWriter(fleet.storage, stranger)
    unknown.add(entries[:1], b"y" * entries[0].sealed_length)
    unknown.commit(full=False)
    with fleet.at(fleet.machine("other")) as store:
        store.sync()
        assert store.index.packs.ids() == {pack}
        assert "another machine's session" in "".join(store.damaged.values())
        assert "a key that the configuration does not list" in "".join(store.damaged.values())
    assert fleet.take(NOISE, "other").part("d").new_chunks == 0


def test_a_garbled_session_object_blocks_nothing(fleet):
    taken = fleet.take(NOISE)
    name = f"sessions/{taken.session.hex()}"
    fleet.storage.put(f"{name}.999999999999999999", b"garbage")
    fleet.storage.put(f"{name}.7", os.urandom(400))
    assert fleet.read("s@1:d") == NOISE
    with fleet.open() as store:
        store.admin.reseal([*store.keys.recipients, (Identity.generate().recipient, "second")])
    assert fleet.read("s@1:d") == NOISE


@pytest.mark.parametrize("number", [1, 99])
def test_a_machine_takes_no_session_of_another_over(fleet, number, tmp_path):
    session = fleet.take(NOISE).session
    key = fleet.key("stolen")
    with fleet.open(identity=False) as store:
        seals = sealed_to([one for one, _ in store.keys.recipients], session, os.urandom(32))
    record = new_session_record(1, "stolen", Cipher.AEGIS_256, seals, key.signer.public)
    fleet.storage.put(f"sessions/{session.hex()}.{number}", encode_session(session, number, record, key))
    assert fleet.read("s@1:d") == NOISE
    identity = tmp_path / "identity"
    identity.write_text(fleet.identity.text())
    command = [sys.executable, str(RESCUE), str(fleet.store), "--identity", str(identity), "s", "1", str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (tmp_path / "out" / "d").read_bytes() == NOISE, ended.stderr
    with fleet.open() as store:
        store.admin.revoke("stolen")
        assert verify_store(store, castore.Progress()).generations
    assert fleet.read("s@1:d") == NOISE
    assert fleet.take(NOISE, "other").part("d").new_chunks == 0, "it is still another's session"


@pytest.mark.parametrize("is_signed", [True, False])
def test_a_session_object_of_another_format_hides_none(fleet, is_signed):
    session = fleet.take(NOISE).session
    name = f"sessions/{session.hex()}.7"
    data = SESSION + b"\2" + bytes(7) + session + bytes(100)
    if is_signed:
        record = {"version": 2, "time": 1, "host": "stolen", "cipher": 1, "sealed_keys": []}
        data = seal_object(SESSION, name, msgspec.msgpack.encode(record), fleet.key("stolen"), more=session)
    fleet.storage.put(name, data)
    assert fleet.read("s@1:d") == NOISE
    with fleet.open() as store:
        store.admin.reseal([*store.keys.recipients, (Identity.generate().recipient, "second")])
        store.admin.rotate()
    assert fleet.read("s@1:d") == NOISE


def test_what_claims_to_be_of_a_newer_format_blocks_no_snapshot(fleet):
    fleet.take(NOISE)
    tag, some = fleet.key("").tag("s").hex(), os.urandom(16).hex()
    names = {
        f"deletions/{some}": DELETION, f"removals/{tag}-{some}": REMOVAL, f"pins/{tag}-0000000001": PIN,
        f"packs/{some * 2}": PACK, "config/7": CONFIG, f"generations/{tag}-0000000002": GENERATION,
    }  # fmt: skip
    for name, kind in names.items():
        fleet.storage.put(name, kind + b"\2" + bytes(7) + os.urandom(300))
    assert fleet.take(NOISE, "other").part("d").new_chunks == 0
    with fleet.open() as store:
        store.admin.rotate()


def test_no_pack_of_a_revoked_maintainer_is_shared(fleet):
    with fleet.at(fleet.machine("stolen"), fleet.identity) as store:
        store.admin.adopt("stolen", maintain=True)
    fleet.take(NOISE[:50_000], "other")
    with fleet.at(fleet.machine("stolen")) as store:
        store.sync()
        (pack,) = store.index.packs.ids()
        entry = next(one for one in store.reader.pack_entries(pack) if one.kind == CHUNK)
        claimed = entry._replace(id=store.reader.chunk_id(b"what another machine will store"))
        forged = PackWriter(fleet.storage, store.keys.writer_key)
        forged.add([claimed], b"x" * claimed.sealed_length)
        made, _ = forged.commit(full=False)
    with fleet.open() as store:
        store.admin.revoke("stolen")
    assert fleet.take(b"what another machine will store", "other").part("d").new_chunks == 1
    assert fleet.read("s@2:d") == b"what another machine will store"
    with fleet.at(fleet.machine("other")) as store:
        store.sync()
        assert made in store.index.packs.ids()


def test_a_record_that_is_not_accepted_is_not_taken_for_the_latest(fleet):
    fleet.take(NOISE)
    key = fleet.key("stolen")
    with fleet.open() as store:
        store.sync()
        (model,) = store.generations.all()
    forged = encode_generation(msgspec.structs.replace(model, number=2), key)[0]
    fleet.storage.put(generation_name(key.tag("s"), 2), forged)
    fleet.storage.put(generation_name(key.tag("s"), MAX_NUMBER), os.urandom(500))
    assert fleet.read("s@latest:d") == NOISE
    fleet.storage.put(generation_name(key.tag("s"), 3), os.urandom(500))
    with pytest.raises(DamageError, match=r"s@1|by its number"):
        fleet.read("s@latest:d")
    assert fleet.read("s@1:d") == NOISE


def test_what_does_not_open_blocks_no_snapshot(fleet):
    fleet.take(NOISE)
    tag = fleet.key("").tag("s").hex()
    random_name = os.urandom(16).hex()
    for name in (
        f"deletions/{random_name}", f"removals/{tag}-{random_name}", f"pins/{tag}-0000000001", f"packs/{random_name * 2}",
        f"sessions/{random_name}.0", f"generations/{tag}-0000000002", f"generations/{tag}-4294967295", "config/2", "rotations/2",
    ):  # fmt: skip
        fleet.storage.put(name, os.urandom(500))
    for machine in ("", "other"):
        taken = fleet.take(NOISE + machine.encode(), machine)
        assert taken.part("d").new_chunks <= 1
        assert fleet.read(f"s@#{taken.number}:d") == NOISE + machine.encode()
    with fleet.open() as store:
        store.admin.rotate()
    fleet.take(NOISE)


def test_no_machine_puts_its_own_object_in_the_place_of_anothers_session(fleet):
    taken = fleet.take(NOISE)
    key = fleet.key("stolen")
    record = decode_session(taken.session, 0, fleet.storage.get(session_name(taken.session, 0)), key)
    seals = tuple((one, os.urandom(96)) for one, _ in record.sealed_keys)
    for number, writer in [(1, key.signer.public), (2, record.writer)]:
        forged = msgspec.structs.replace(record, sealed_keys=seals, writer=writer)
        fleet.storage.put(session_name(taken.session, number), encode_session(taken.session, number, forged, key))
    assert fleet.read("s@1:d") == NOISE
    with fleet.open() as store:
        store.keys.identity()
        assert not [line for line in verify_store(store, castore.Progress()).damage if "seal" in line]
        store.admin.rotate()
        store.admin.reseal([*store.keys.recipients, (Identity.generate().recipient, "second")])
    assert fleet.read("s@1:d") == NOISE


def test_space_of_a_revoked_machine_is_reclaimed_once_nothing_needs_it(fleet):
    fleet.take(NOISE, "stolen")
    with fleet.open() as store:
        store.admin.revoke("stolen")
    fleet.take(NOISE[:1000])
    with fleet.open(identity=False) as store:
        store.sync()
        assert len(store.updater.distrusted) == 1
        assert compact(store, castore.Progress(), unfinished_seconds=0).removed == 0
        forget(store, "s", [store.generations.get("s", 1)])
        assert compact(store, castore.Progress(), unfinished_seconds=0).removed == 1
    assert fleet.read("s@2:d") == NOISE[:1000]


def test_castore_toml_and_the_store_must_agree_wherever_something_is_added(fleet):
    recipients = (Identity.generate().recipient.text,)
    with fleet.at(recipients=recipients) as store, pytest.raises(ConfigError, match="recipients"):
        store.session()
    with fleet.at(host="another") as store, pytest.raises(ConfigError, match="castore key adopt --host another"):
        store.session()
