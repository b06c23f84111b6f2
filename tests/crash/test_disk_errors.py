"""Every operation of the file system fails in turn: it is told, nothing is half done, and the next try works.

The same disk as in test_power_loss.py, of which one operation refuses: once, from then on, or with the word
that it failed although it was done. After that the disk is well again, the step is repeated, and
the power is lost at once: what was acknowledged before and since must be there.

EINTR is not among the errors: no system call of Python's returns it (PEP 475).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from castore.crypto import Identity
from castore.errors import CastoreError, StorageError, UsageError
from castore.storage import LocalStorage
from castore.store import Store
from castore.store.format.config import config_numbers
from tests.support import store_histories
from tests.support.power_loss_checks import Inspector
from tests.support.power_loss_disk import AFTER, ON, ONCE, Disk, DiskFiles, Fault
from tests.support.store_histories import ROOT, World, run

pytestmark = pytest.mark.usefixtures("small_packs")

ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE)
MODES = (ONCE, ON, AFTER)
BEFORE = {
    "init": [],
    "snapshot": ["init", "snapshot"],
    "add_recipient": ["init", "snapshot", "snapshot"],
    "forget": ["init", "snapshot", "snapshot"],
    "compact": ["init", "snapshot", "snapshot", "snapshot", "forget", "forget"],
}
"""Steps, and what comes before each."""
GIVEN_UP = {"close", "unlink"}
"""What may still be done with a file whose sync has failed."""


class Base:
    """A world as it is before a step, to be begun from many times."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.world = World(folder / "base", f"errors {name}")
        run(self.world, BEFORE[name])
        self.state = self.world.disk.live()
        self.chance = self.world.chance.getstate()
        self._made = 0

    def fresh(self) -> World:
        """Return a world like it."""
        self._made += 1
        folder = self.folder / f"{self._made}"
        world = World(folder, f"errors {self.name}")
        for part in ("state", "cache"):
            shutil.rmtree(folder / part)
            shutil.copytree(self.world.folder / part, folder / part)
        world.disk = Disk(self.state)
        world.files = DiskFiles(world.disk)
        world.chance.setstate(self.chance)
        world.promised, world.identities = self.world.promised, dict(self.world.identities)
        world.trees, world.dumps, world.old = dict(self.world.trees), dict(self.world.dumps), list(self.world.old)
        return world


def let_fail(base: Base, fault: Fault, counts: Counter[str]) -> bool:
    """Take the step with a fault; check all that must hold; tell whether anything was let fail."""
    world = base.fresh()
    world.files.fault = fault
    before = set(world.promised.whole)
    failure = None
    try:
        store_histories.STEPS[base.name](world)
    except StorageError as error:
        failure = error
    world.files.fault = None
    if not fault.fired:
        shutil.rmtree(world.folder)
        return False
    counts["operations that failed"] += 1
    counts["steps that failed"] += failure is not None
    refused = [operation for operation, _, failed in fault.taken if failed]
    if failure is not None:
        assert ROOT in str(failure), f"the error does not name the place: {failure}"
        assert os.strerror(fault.error) in str(failure), f"the error does not tell the reason: {failure}"
    elif fault.mode == ON:
        assert set(refused) <= {"close", "unlink"}, f"nothing was said of {refused}"
    assert world.files.left_open() == []
    _given_up(fault)
    _nothing_half_done(world, base, before, failure, fault)
    # The disk is well again.
    _again(world, base)
    inspector = Inspector(world)
    inspector.look(world.disk.worst(), world.promised, 0)
    shutil.rmtree(world.folder)
    return True


def _given_up(fault: Fault) -> None:
    """After a sync that failed, a file is let go of: neither synced again nor given a name."""
    gone = set()
    for operation, paths, failed in fault.taken:
        assert not gone.intersection(paths) or operation in GIVEN_UP, f"{operation} of a file whose sync had failed"
        if failed and operation == "fsync":
            gone.update(paths)


def _nothing_half_done(world: World, base: Base, before: set, failure: Exception | None, fault: Fault) -> None:
    if base.name != "snapshot" or failure is None:
        return
    assert set(world.promised.whole) == before
    with world.open("first") as store:
        store.sync()
        there = {(one.service, one.number) for one in store.generations()}
    if fault.mode != ON:
        # A disk that refuses everything may keep what it would not let be removed.
        assert there == before, "what was said to have failed is there"


def _again(world: World, base: Base) -> None:
    if base.name == "init":
        try:
            store_histories.STEPS["init"](world)
        except UsageError:
            # It is there, whole, although its last sync had failed.
            world.promise(begun=True, readers=frozenset({"first"}))
        store_histories.STEPS["snapshot"](world)
        return
    store_histories.STEPS[base.name](world)


def everywhere(folder: Path, name: str, choices: list[tuple[int, str]], each: int) -> Counter[str]:
    """Let each operation of a step fail, in `each` of the ways, which take turns."""
    base = Base(folder, name)
    counts: Counter[str] = Counter()
    number = turn = 0
    while number < 300:
        fired = False
        for _ in range(each):
            error, mode = choices[turn % len(choices)]
            turn += 1
            try:
                fired |= let_fail(base, Fault(number, error, mode), counts)
            except BaseException as failure:
                failure.add_note(f"{name}, operation {number}: {errno.errorcode[error]}, {mode}")
                raise
        if not fired and not let_fail(base, Fault(number, errno.EIO, ONCE), counts):
            break
        number += 1
    counts["operations"] = number
    print(f"{name}: {dict(counts)}")
    return counts


CHOICES = [(error, mode) for error in ERRORS for mode in MODES]


@pytest.mark.parametrize("name", BEFORE)
def test_an_operation_that_fails_is_told_and_the_next_try_works(folder: Path, name: str) -> None:
    counts = everywhere(folder, name, CHOICES, 2)
    assert counts["steps that failed"] > counts["operations"] / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", BEFORE)
def test_an_operation_that_fails_with_any_error_is_told(folder: Path, name: str) -> None:
    everywhere(folder, name, CHOICES, len(CHOICES))


class Stubborn(LocalStorage):
    """Tries a sync that failed once more."""

    def create(self):
        writer = super().create()
        sync = writer._files.fsync

        class Twice:
            def __getattr__(self, name):
                return getattr(writer_files, name)

            def fsync(self, descriptor):
                try:
                    sync(descriptor)
                except OSError:
                    sync(descriptor)

        writer_files, writer._files = writer._files, Twice()
        return writer


def test_a_store_that_tries_a_failed_sync_again_is_found_out(folder: Path) -> None:
    world = World(folder, "stubborn", storage=Stubborn)
    run(world, ["init", "snapshot"])
    world.files.fault = Fault(0, errno.EIO, ONCE, frozenset({"fsync"}))
    store_histories.STEPS["snapshot"](world)  # "done"
    with pytest.raises((AssertionError, CastoreError)):
        Inspector(world).look(world.disk.worst(), world.promised, 0)
    with pytest.raises(AssertionError, match="whose sync had failed"):
        _given_up(world.files.fault)


def test_a_name_that_another_took_is_not_taken_back(folder: Path) -> None:
    world = World(folder, "taken")
    run(world, ["init", "snapshot"])
    generation = next(iter(world.promised.whole))
    with world.open("first") as store:
        store.sync()
        found = store.generation(*generation)
        name = next(name for name in world.disk.live().files if "/generations/" in name)
        store._revert_commit(found, name.removeprefix(ROOT + "/"), b"of mine", StorageError("told"))
        assert store.generation(*generation) == found
        assert name in world.disk.live().files


def test_what_must_be_kept_is_kept_before_the_store_is_there(folder: Path) -> None:
    world = World(folder, "keep")
    storage = LocalStorage(ROOT, create=True, files=world.files)
    kept = []

    def keep(store_id):
        assert config_numbers(storage) == []
        kept.append(store_id)

    to = [(Identity.generate().recipient, "")]
    with Store.create(storage, world.places, to, keep=keep) as store:
        assert kept == [store.store_id]
