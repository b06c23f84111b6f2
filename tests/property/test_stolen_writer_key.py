"""A thief among the writers: whatever they do, the generations of other hosts restore, and nobody new reads."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import castore
from castore.content.streams import StreamReader
from castore.crypto import Identity, WriterKey
from castore.errors import CastoreError, DamageError, KeyRotatedError, UntrustedError
from castore.maintenance.compact import compact
from castore.services.config import Keep, Service
from castore.services.prune import judged
from castore.services.reading import read
from castore.services.selectors import select
from castore.services.sources import file_source
from castore.storage import LocalStorage
from castore.store import MachinePaths, Store, StoreOptions
from castore.store.format.config import LabelledAdmin, LabelledRecipient, encode_config
from castore.store.format.deletion import write_deletion
from castore.store.format.generation import MAX_NUMBER, encode_generation
from castore.store.format.names import generation_name
from castore.store.format.removal import record_removal
from castore.store.format.session_key import read_session, session_numbers
from tests.support.stores import Sandbox, take_snapshot

pytestmark = pytest.mark.timeout(300)
HOSTS = ("owner", "other")
numbers = st.sampled_from([1, 2, 3, 5, 9, 70_000, MAX_NUMBER])
names = st.sampled_from(["config", "rotations", "sessions", "generations", "pins", "removals", "deletions", "packs"])


class Thief(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="castore-thief-"))
        self.identity = Identity.generate()
        self.revoked = False
        self.taken: dict[int, tuple[str, bytes]] = {}
        self.secrets: list[WriterKey] = []

    def teardown(self):
        shutil.rmtree(self.folder)

    def places(self, name: str) -> MachinePaths:
        return MachinePaths(str(self.folder / name / "state"), str(self.folder / name / "cache"))

    def at(self, name: str, identity: Identity | None = None) -> Store:
        provider = None if identity is None else lambda: identity
        return Store.open(self.sandbox.storage, self.places(name), provider)

    @initialize()
    def make(self):
        self.sandbox = _Sandbox(self.folder, average=4096)
        for name in (*HOSTS, "thief"):
            with self.sandbox.open() as store, Store.open(self.sandbox.storage, self.places(name), lambda: self.sandbox.identity) as own:
                own.admin.adopt(name, maintain=name == "owner")
                self.recipients = store.keys.recipients
        with self.at("thief") as store:
            self.secrets.append(store.keys.writer_key)
        for name in HOSTS:
            self.take(name, 0)

    @rule(name=st.sampled_from(HOSTS), seed=st.integers(1, 99))
    def take(self, name, seed):
        data = random.Random(seed).randbytes(9000) + name.encode() + os.urandom(40)
        (self.folder / "dump").write_bytes(data)
        with self.at(name) as store:
            taken = take_snapshot(store, "s", {"d": file_source(str(self.folder / "dump"))})
        assert taken.number not in self.taken
        self.taken[taken.number] = name, data

    # What the thief does

    def put(self, name: str, data: bytes) -> None:
        try:
            self.sandbox.storage.put(name, data)
        except CastoreError:
            assert self.sandbox.storage.get(name), "create-only"

    @rule(number=numbers, empty=st.booleans(), own=st.booleans())
    def a_configuration(self, number, empty, own):
        key = self.secrets[-1]
        with self.sandbox.open() as store:
            config = store.keys.config
        me = LabelledRecipient(self.identity.recipient.key, "")
        changed = msgspec.structs.replace(
            config,
            recipients=(me,) if empty else (*config.recipients, me),
            admins=(*config.admins, LabelledAdmin(self.identity.admin.public)),
        )
        signer = self.identity.admin if own else key.machine.signing
        self.put(f"config/{number}", encode_config(number, changed, key, signer))

    @rule(folder=names, number=numbers)
    def garbage(self, folder, number):
        tag = self.secrets[0].tag("s").hex()
        name = {
            "config": str(number), "rotations": str(number), "sessions": f"{os.urandom(16).hex()}.{number}",
            "generations": f"{tag}-{number:010d}", "pins": f"{tag}-{number:010d}",
            "removals": f"{tag}-{os.urandom(16).hex()}", "deletions": os.urandom(16).hex(), "packs": os.urandom(32).hex(),
        }[folder]  # fmt: skip
        self.put(f"{folder}/{name}", os.urandom(300))

    @rule(number=numbers, host=st.sampled_from([*HOSTS, "thief"]), key=st.integers(0, 9))
    def a_generation(self, number, host, key):
        writer = self.secrets[key % len(self.secrets)]
        with self.sandbox.open() as store:
            store.sync(report_older=True)
            model = next(one for one in store.generations.all() if one.host in HOSTS)
        forged = msgspec.structs.replace(model, number=number, host=host, host_id=writer.signer.public.hex())
        self.put(generation_name(writer.tag("s"), number), encode_generation(forged, writer)[0])

    @rule(number=numbers)
    def a_removal(self, number):
        record_removal(self.sandbox.storage, self.secrets[-1], "s", [number])
        with self.sandbox.open() as store:
            write_deletion(self.sandbox.storage, self.secrets[-1], store.index.packs.ids())

    @rule()
    def a_session_again(self):
        names = [name for name in self.sandbox.storage.list("sessions") if name.endswith(".0")]
        if names:
            self.put(f"sessions/{names[0][:-1]}99", os.urandom(200))

    # What the owner does

    @precondition(lambda self: not self.revoked)
    @rule()
    def revoke(self):
        with self.at("owner", self.sandbox.identity) as store:
            store.admin.revoke("thief")
        self.revoked = True
        with pytest.raises((KeyRotatedError, UntrustedError)):
            self.at("thief")

    @rule()
    def rotate(self):
        with self.at("owner", self.sandbox.identity) as store:
            store.admin.rotate()
        if not self.revoked:
            with self.at("thief") as store:
                self.secrets.append(store.keys.writer_key)

    @rule()
    def retention_keeps_others(self):
        keep = Service("s", keep=Keep(last=50))
        for name in HOSTS:
            with self.at(name) as store:
                store.sync(report_older=True)
                gone = {verdict.generation.number for verdict in judged(store, "s", keep, 1 << 62) if not verdict.rules}
            assert gone.isdisjoint(self.taken)

    @invariant()
    def others_restore_and_nobody_new_reads(self):
        if not hasattr(self, "recipients"):
            return
        with Store.open(self.sandbox.storage, self.places(f"fresh-{os.urandom(4).hex()}"), lambda: self.sandbox.identity, StoreOptions(chosen_host="*")) as store:
            store.sync()
            assert store.keys.recipients == self.recipients
            found = {one.number: one for one in store.generations.all("s")}
            with StreamReader(store) as reader:
                for number, (name, data) in self.taken.items():
                    assert store.hosts.name_of(found[number]) == name
                    assert b"".join(read(reader, select(store, f"s@#{number}:d"))) == data
            assert store.generations.next_number("s") < 1000
            assert not [one for one in found.values() if one.host in HOSTS and one.number not in self.taken]
            for session, several in session_numbers(self.sandbox.storage).items():
                with contextlib.suppress(DamageError):
                    _, record = read_session(self.sandbox.storage, session, several, store.keys.writer_key)
                    assert record.data_key("", session, self.identity) is None

    @rule()
    def compact_what_there_is(self):
        with self.at("owner") as store:
            try:
                compact(store, castore.Progress())
            except CastoreError as error:
                assert "castore repair" in str(error), "garbage is named, and repair drops it"


class _Sandbox(Sandbox):
    @property
    def storage(self):
        return LocalStorage(str(self.store))


Thief.TestCase.settings = settings(
    max_examples=6, stateful_step_count=14, deadline=None, suppress_health_check=list(HealthCheck)
)
TestThief = Thief.TestCase
