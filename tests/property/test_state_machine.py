"""Everything a store is used for, in any order, against dicts that remember what was put in."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from castore.content.restore.metadata import Ownership
from castore.content.scan import cache
from castore.content.streams import StreamReader
from castore.crypto import Identity
from castore.errors import IdentityError, NotFoundError, UsageError
from castore.maintenance.compact import compact
from castore.maintenance.limits import Limits
from castore.maintenance.verify import verify as verify_store
from castore.progress import Progress
from castore.services.config import Keep, Service
from castore.services.details import read_details
from castore.services.prune import forget, prune
from castore.services.reading import read
from castore.services.restore import restore as restore_parts
from castore.services.selectors import select
from castore.services.sources import Tree, file_source
from castore.storage import LocalStorage
from castore.store import MachinePaths, Store, StoreOptions
from tests.support.repairs import repair_store
from tests.support.stores import Sandbox, admins, take_snapshot

SERVICES = ["web", "mail"]
REVISIONS = ["", "r1", "r2", "r2-more", "sha256:ab:tree", "/gnu/store/x1y2-system", "2", "7"]
LARGEST = 300_000

services = st.sampled_from(SERVICES)
seeds = st.integers(0, 1 << 32)
picks = st.integers(0, 1 << 16)


def content(rng):
    size = rng.choice([0, 1, rng.randint(2, 2000), rng.randint(2000, 40_000), rng.randint(40_000, LARGEST)])
    if rng.random() < 0.3:
        pattern = rng.randbytes(rng.randint(1, 100))
        return (pattern * (size // len(pattern) + 1))[:size]
    return rng.randbytes(size)


def edited(rng, data):
    """The same with a stretch inserted, removed or replaced."""
    at = rng.randint(0, len(data))
    new = rng.randbytes(rng.randint(0, 300))
    gone = rng.choice([0, len(new), rng.randint(0, 5000)])
    return (data[:at] + new + data[at + gone :])[:LARGEST]


def edit_tree(rng, tree):
    for _ in range(rng.randint(0, 4)):
        path = b"/".join([*rng.choice([[], [b"a"], [b"a", b"\xff b"], [b"c"]]), b"f%d" % rng.randint(0, 9)])
        if path not in tree:
            tree[path] = content(rng)
        elif rng.random() < 0.4:
            del tree[path]
        else:
            tree[path] = edited(rng, tree[path])


def plant(top, tree):
    """Make a directory of the tree. Files that are as they were are not touched, so that snapshots keep them."""
    top = os.fsencode(top)
    os.makedirs(top, exist_ok=True)
    before = harvest(top)
    for path in before.keys() - tree.keys():
        os.unlink(os.path.join(top, path))
    for path, data in tree.items():
        whole = os.path.join(top, path)
        os.makedirs(os.path.dirname(whole), exist_ok=True)
        if before.get(path) != data:
            with open(whole, "wb") as file:
                file.write(data)


def harvest(top):
    top = os.fsencode(top)
    found = {}
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, top)] = file.read()
    return found


def cat(store, what):
    with StreamReader(store) as reader:
        return b"".join(read(reader, select(store, what)))


class Machine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="castore-machine-"))
        self.sandbox = Sandbox(self.folder, average=4096)
        self.identities = [self.sandbox.identity]
        self.removed = []
        self.labels = {self.sandbox.identity.recipient: "test"}
        self.has_key = True
        self.trees = {service: {} for service in SERVICES}
        self.dumps = dict.fromkeys(SERVICES, b"")
        self.taken = {}  # (service, number) to (revision, tree, dump)
        self.pinned = set()
        self.steps = 0

    def teardown(self):
        try:
            with self.elsewhere(self.sandbox.identity) as store:
                store.sync()
                assert verify_store(store, Progress(), read_data=True).damage == []
                for service, number in self.taken:
                    self.check_dump(store, service, number)
                    self.check_tree(store, service, number)
            for identity in self.removed:
                with pytest.raises(IdentityError):
                    self.elsewhere(identity)
        finally:
            shutil.rmtree(self.folder)

    # Help

    def fresh(self):
        self.steps += 1
        return str(self.folder / f"new{self.steps}")

    def elsewhere(self, identity):
        """Open the store on a machine that never saw it."""
        home = self.fresh()
        places = MachinePaths(home + "/state", home + "/cache")
        trust = [one.admin.public for one in self.identities]
        return Store.open(LocalStorage(str(self.sandbox.store)), places, lambda: identity, StoreOptions(trust=trust))

    def writing(self):
        """Open the store as who adds to it does: without an identity if the machine has a key."""
        return self.sandbox.open(identity=not self.has_key)

    def note(self, generation, revision):
        """Keep plain copies of what was taken. Numbers go up, also over those of what was forgotten."""
        service, number = generation.service, generation.number
        assert number > max(self.numbers(service), default=0)
        self.taken[service, number] = (revision, dict(self.trees[service]), self.dumps[service])

    def sources(self, service):
        live, file = str(self.folder / f"live-{service}"), self.folder / f"dump-{service}"
        plant(live, self.trees[service])
        file.write_bytes(self.dumps[service])
        return {"tree": Tree(live), "dump": file_source(str(file))}

    def any_generation(self, pick):
        return sorted(self.taken)[pick % len(self.taken)]

    def numbers(self, service):
        return sorted(number for name, number in self.taken if name == service)

    def check_dump(self, store, service, number):
        assert cat(store, f"{service}@#{number}:dump") == self.taken[service, number][2]

    def check_tree(self, store, service, number):
        out = self.fresh()
        selection = select(store, f"{service}@#{number}:tree")
        done = restore_parts(store, selection, out, Ownership(change=False), Progress())
        assert done.report.damaged == []
        assert harvest(out) == self.taken[service, number][1]
        shutil.rmtree(out)

    # Adding

    @initialize(seed=seeds)
    def something_to_begin_with(self, seed):
        self.snapshot("web", "r1", seed, "new")

    @rule(
        service=services,
        revision=st.sampled_from(REVISIONS),
        seed=seeds,
        dump=st.sampled_from(["new", "edited", "same", "as the other's", "as once"]),
    )
    def snapshot(self, service, revision, seed, dump):
        rng = random.Random(seed)
        edit_tree(rng, self.trees[service])
        if dump == "new":
            self.dumps[service] = content(rng)
        elif dump == "edited":
            self.dumps[service] = edited(rng, self.dumps[service])
        elif dump == "as the other's":
            self.dumps[service] = self.dumps[SERVICES[service == "web"]]
        elif dump == "as once" and self.taken:
            self.dumps[service] = edited(rng, self.taken[self.any_generation(seed)][2])
        with self.writing() as store:
            generation = take_snapshot(store, service, self.sources(service), revision=revision)
        self.note(generation, revision)

    @precondition(lambda self: self.taken)
    @rule(service=services)
    def the_same_again_stores_only_what_is_about_it(self, service):
        sources = self.sources(service)
        for _ in range(2):
            with self.writing() as store:
                generation = take_snapshot(store, service, sources)
            self.note(generation, "")
        assert [part.stored_bytes for part in generation.parts] == [0, 0]

    # Reading

    @rule(pick=picks)
    def restore_a_tree(self, pick):
        with self.sandbox.open() as store:
            store.generations.sync()
            self.check_tree(store, *self.any_generation(pick))

    @rule(pick=picks)
    def cat_a_dump_and_a_file(self, pick):
        service, number = self.any_generation(pick)
        _, tree, _ = self.taken[service, number]
        with self.sandbox.open() as store:
            store.generations.sync()
            self.check_dump(store, service, number)
            if tree:
                path = sorted(tree)[pick % len(tree)]
                found = cat(store, f"{service}@#{number}:tree/{os.fsdecode(path)}")
                assert found == tree[path]

    @rule(pick=picks)
    def restore_a_whole_generation(self, pick):
        service, number = self.any_generation(pick)
        _, tree, dump = self.taken[service, number]
        out = self.fresh()
        with self.sandbox.open() as store:
            store.generations.sync()
            selection = select(store, f"{service}@#{number}")
            restore_parts(store, selection, out, Ownership(change=False), Progress())
        assert harvest(out + "/tree") == tree
        assert Path(out, "dump").read_bytes() == dump

    @rule(
        service=services,
        selector=st.one_of(
            st.sampled_from(["latest", "r", "r2-", "sha256", "sha256:ab", "/gnu/store/", "none"]),
            st.sampled_from(REVISIONS[1:]),
            st.sampled_from(REVISIONS[1:]).map(lambda revision: "=" + revision),
            st.integers(1, 12).map(str),
            st.integers(1, 12).map(lambda number: f"#{number}"),
        ),
        part=st.sampled_from(["", ":tree", ":dump"]),
    )
    def select(self, service, selector, part):
        with self.sandbox.open(identity=not self.has_key) as store:
            store.generations.sync()
            expected = self.meant(service, selector)
            if isinstance(expected, int):
                found = select(store, f"{service}@{selector}{part}")
                assert found.generation.number == expected
                assert (found.part.name if found.part else "") == part[1:]
            else:
                with pytest.raises(expected):
                    select(store, f"{service}@{selector}{part}")

    def meant(self, service, selector):
        """The number of the generation, or the error."""
        revisions = {number: self.taken[service, number][0] for number in self.numbers(service)}

        def newest(wanted):
            return max((n for n, revision in revisions.items() if wanted(revision)), default=NotFoundError)

        if selector == "latest":
            return newest(lambda _: True)
        if selector.startswith("#"):
            number = int(selector[1:])
            return number if number in revisions else NotFoundError
        if selector.startswith("="):
            return newest(lambda revision: revision == selector[1:])
        exact = newest(lambda revision: revision == selector)
        if selector.isdigit() and int(selector) in revisions:
            clash = isinstance(exact, int) and revisions[int(selector)] != selector
            return UsageError if clash else int(selector)
        if isinstance(exact, int):
            return exact
        begun = {revision for revision in revisions.values() if revision.startswith(selector)}
        return UsageError if len(begun) > 1 else newest(lambda revision: revision in begun)

    @rule()
    def the_writer_key_alone_lists_and_does_not_read(self):
        if not self.has_key:
            return
        with self.sandbox.open(identity=False) as store:
            store.sync()
            listed = {(g.service, g.number): g.revision for g in store.generations.all()}
            assert listed == {name: revision for name, (revision, _, _) in self.taken.items()}
            assert store.generations.services() == sorted({service for service, _ in self.taken})
            for (service, number), (_, _, dump) in self.taken.items():
                if dump:
                    with pytest.raises(IdentityError):
                        cat(store, f"{service}@#{number}:dump")
            service, number = self.any_generation(0)
            with pytest.raises(IdentityError):
                read_details(store, store.generations.get(service, number))
            with pytest.raises(IdentityError):
                verify_store(store, Progress(), read_data=True)
            assert verify_store(store, Progress(), packs=True).sound

    @rule()
    def verify(self):
        with self.sandbox.open() as store:
            found = verify_store(store, Progress(), read_data=True)
        assert (found.damage, found.affected) == ([], [])
        assert found.sound
        assert found.generations == len(self.taken)

    # Deleting

    @precondition(lambda self: len(self.taken) > 1)
    @rule(pick=picks)
    def forget(self, pick):
        service, number = self.any_generation(pick)
        with self.writing() as store:
            store.generations.sync()
            if (service, number) in self.pinned:
                with pytest.raises(UsageError, match="pinned"):
                    forget(store, service, [store.generations.get(service, number)])
                return
            forget(store, service, [store.generations.get(service, number)])
        del self.taken[service, number]

    @rule(pick=picks)
    def pin_or_unpin(self, pick):
        one = self.any_generation(pick)
        with self.writing() as store:
            if one in self.pinned:
                assert store.generations.unpin(*one)
                self.pinned.remove(one)
            else:
                assert store.generations.pin(*one, "kept")
                self.pinned.add(one)
            for service in SERVICES:
                assert set(store.generations.pins(service)) == {n for name, n in self.pinned if name == service}

    @rule(share=st.sampled_from([0, 0.1, 0.5]), unfinished=st.sampled_from([0, 3600]), lockless=st.booleans())
    def compact(self, share, unfinished, lockless):
        with self.writing() as store:
            if lockless:
                store.storage.lock = lambda *, exclusive=False: contextlib.nullcontext(False)
            done = compact(store, Progress(), max_unused=share, grace_seconds=0, unfinished_seconds=unfinished)
            assert done.damaged == []
            assert done.plan.lost == 0

    @rule(last=st.integers(1, 3))
    def prune(self, last):
        with self.writing() as store:
            store.generations.sync()
            settings = dict.fromkeys(store.generations.services(), Service(keep=Keep(last=last, per_revision=0)))
            gone, busy, _ = prune(store, settings, Progress(), Limits(grace_seconds=0))
        assert not busy
        for one in gone:
            assert one.number != max(self.numbers(one.service))
            assert (one.service, one.number) not in self.pinned
            del self.taken[one.service, one.number]
        for service in SERVICES:
            assert len(self.numbers(service)) <= last + sum(name == service for name, _ in self.pinned) + 1

    @rule(service=services, seed=seeds, dies=st.booleans(), share=st.sampled_from([0, 0.5]), unfinished=st.sampled_from([0, 3600]))
    def snapshot_while_others_work(self, service, seed, dies, share, unfinished):
        """In the middle of a snapshot another service is taken, something is forgotten, and all compacted."""
        rng = random.Random(seed)
        edit_tree(rng, self.trees[service])
        if self.taken:
            self.dumps[service] = self.taken[self.any_generation(seed)][2]
        other = SERVICES[service == "web"]
        edit_tree(rng, self.trees[other])
        sources = self.sources(service)
        begun = []

        def progress(name, _tally):
            if name != "dump" or begun:
                return
            begun.append(name)
            with self.writing() as store:
                self.note(take_snapshot(store, other, self.sources(other), revision="r1"), "r1")
            if len(self.taken) > 1:
                self.forget(seed)
            self.compact(share, unfinished, False)
            if dies:
                raise KeyboardInterrupt

        with self.writing() as store:
            try:
                self.note(take_snapshot(store, service, sources, watch=progress), "")
            except KeyboardInterrupt:
                assert dies

    @precondition(lambda self: len(self.taken) > 1)
    @rule(seed=seeds, times=st.integers(1, 3))
    def damage_and_repair(self, seed, times):
        rng = random.Random(seed)
        packs = sorted((self.sandbox.store / "packs").iterdir())
        for _ in range(times):
            pack = rng.choice(packs)
            data = bytearray(pack.read_bytes())
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            pack.chmod(0o600)
            pack.write_bytes(data)
        with self.sandbox.open() as store:
            after = repair_store(store)[1].after
            assert after.damage == []
            lost = {(hit.service, hit.number) for hit in after.affected}
            for service, number in self.taken.keys() - lost:
                self.check_dump(store, service, number)
                self.check_tree(store, service, number)
            # Stored again from what is still there, all that is lost of it is healed.
            for service in SERVICES:
                if self.numbers(service):
                    self.note(take_snapshot(store, service, self.sources(service)), "")
            healed = verify_store(store, Progress(), read_data=True)
            assert healed.damage == []
            for service, number in {(hit.service, hit.number) for hit in healed.affected}:
                assert (service, number) in lost
                if (service, number) in self.pinned:
                    store.generations.unpin(service, number)
                    self.pinned.remove((service, number))
                forget(store, service, [store.generations.get(service, number)])
                del self.taken[service, number]

    # Losing and keeping

    @rule()
    def lose_the_index(self):
        shutil.rmtree(self.sandbox.places.cache)

    @rule()
    def reindex(self):
        with self.writing() as store:
            before = {(g.service, g.number) for g in store.generations.all()}
            store.updater.rebuild()
            assert before <= {(g.service, g.number) for g in store.generations.all()} == set(self.taken)
            assert store.damaged == {}

    @precondition(lambda self: self.has_key)
    @rule(whole=st.booleans())
    def lose_the_writer_key(self, whole):
        with self.sandbox.open() as store:
            key = self.sandbox.places.writer_key_of(store.store_id)
        if whole:
            shutil.rmtree(self.sandbox.places.state)
        else:
            os.unlink(key)
        with pytest.raises(IdentityError, match="adopt"):
            self.sandbox.open(identity=False)
        self.has_key = False

    @rule()
    def adopt(self):
        with self.sandbox.open() as store:
            store.admin.adopt(replace=True)
        self.has_key = True
        self.sandbox.open(identity=False).close()

    @rule(new_ids=st.booleans())
    def replace_the_writer_key(self, new_ids):
        with self.sandbox.open() as store:
            before = store.keys.writer_key
            store.admin.rotate(new_ids=new_ids)
            assert store.keys.writer_key != before
            assert store.keys.writer_key.previous_keys[-1] == before
            store.sync()
            assert store.damaged == {}
            assert {(g.service, g.number) for g in store.generations.all()} == set(self.taken)

    # Recipients

    @precondition(lambda self: len(self.identities) < 3)
    @rule(use=st.booleans())
    def add_a_recipient(self, use):
        identity = Identity.generate()
        self.labels[identity.recipient] = f"number {len(self.labels)}"
        with self.sandbox.open() as store:
            recipients = [*store.keys.recipients, (identity.recipient, self.labels[identity.recipient])]
            store.admin.reseal(recipients, admins=admins(*self.identities, identity))
        self.identities.append(identity)
        if use:
            self.sandbox.identity = identity
        with self.elsewhere(identity) as store:
            store.sync()
            self.check_dump(store, *max(self.taken))
            self.check_dump(store, *min(self.taken))

    @rule(pick=picks)
    def read_with_another_identity(self, pick):
        self.sandbox.identity = self.identities[pick % len(self.identities)]

    @precondition(lambda self: len(self.identities) > 1)
    @rule(pick=picks)
    def remove_a_recipient(self, pick):
        self.sandbox.identity, gone = random.Random(pick).sample(self.identities, 2)
        with self.sandbox.open() as store:
            rest = [one for one in self.identities if one is not gone]
            store.admin.reseal([one for one in store.keys.recipients if one[0] != gone.recipient], admins=admins(*rest))
        self.identities.remove(gone)
        self.removed.append(gone)
        if self.has_key:
            with Store.open(LocalStorage(str(self.sandbox.store)), self.sandbox.places, lambda: gone) as store:
                store.sync()
                for (service, number), (_, _, dump) in self.taken.items():
                    if dump:
                        with pytest.raises(IdentityError, match="opens nothing"):
                            cat(store, f"{service}@#{number}:dump")

    @rule()
    def the_last_recipient_stays(self):
        with self.sandbox.open() as store, pytest.raises(UsageError):
            store.admin.reseal([])

    @invariant()
    def recipients_are_as_said(self):
        with self.sandbox.open() as store:
            expected = {(one.recipient, self.labels[one.recipient]) for one in self.identities}
            assert set(store.keys.recipients) == expected


@pytest.fixture(autouse=True)
def trust_what_is_10_ms_old(monkeypatch):
    """Let snapshots keep the small files of earlier ones, though files are only some steps old."""
    monkeypatch.setattr(cache, "_RACY_NS", 10_000_000)


def test_a_store_holds_what_was_put_in_whatever_is_done_to_it():
    run_state_machine_as_test(Machine, settings=settings(max_examples=10, stateful_step_count=30))
