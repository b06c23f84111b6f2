"""Every operation of the file system fails in turn: it is reported, nothing is half done, and the next try works.

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
from castore.store import NewStore, Store
from castore.store.format.config import config_numbers
from tests.support import store_histories
from tests.support.power_loss_checks import PowerLossChecker
from tests.support.power_loss_disk import AFTER, ON, ONCE, Disk, DiskFiles, Fault
from tests.support.store_histories import ROOT, SimulatedHost, run

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


class HostBeforeStep:
    """A host as it is before a step, to be begun from many times."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.host = SimulatedHost(folder / "base", f"errors {name}")
        run(self.host, BEFORE[name])
        self.state = self.host.disk.live()
        self.chance = self.host.chance.getstate()
        self._made = 0

    def fresh(self) -> SimulatedHost:
        """Return a host like it."""
        self._made += 1
        folder = self.folder / f"{self._made}"
        host = SimulatedHost(folder, f"errors {self.name}")
        for part in ("state", "cache"):
            shutil.rmtree(folder / part)
            shutil.copytree(self.host.folder / part, folder / part)
        host.disk = Disk(self.state)
        host.files = DiskFiles(host.disk)
        host.chance.setstate(self.chance)
        host.guaranteed, host.identities = self.host.guaranteed, dict(self.host.identities)
        host.trees, host.dumps, host.old = dict(self.host.trees), dict(self.host.dumps), list(self.host.old)
        return host


def let_fail(base: HostBeforeStep, fault: Fault, counts: Counter[str]) -> bool:
    """Take the step with a fault; check all that must hold; return whether an operation failed."""
    host = base.fresh()
    host.files.fault = fault
    before = set(host.guaranteed.whole)
    failure = None
    try:
        store_histories.STEPS[base.name](host)
    except StorageError as error:
        failure = error
    host.files.fault = None
    if not fault.fired:
        shutil.rmtree(host.folder)
        return False
    counts["operations that failed"] += 1
    counts["steps that failed"] += failure is not None
    refused = [operation for operation, _, failed in fault.taken if failed]
    if failure is not None:
        assert ROOT in str(failure), f"the error does not name the place: {failure}"
        assert os.strerror(fault.error) in str(failure), f"the error does not name the reason: {failure}"
    elif fault.mode == ON:
        assert set(refused) <= {"close", "unlink"}, f"nothing was said of {refused}"
    assert host.files.left_open() == []
    _given_up(fault)
    _nothing_half_done(host, base, before, failure, fault)
    # The disk is well again.
    _again(host, base)
    checker = PowerLossChecker(host)
    checker.look(host.disk.worst(), host.guaranteed, 0)
    shutil.rmtree(host.folder)
    return True


def _given_up(fault: Fault) -> None:
    """After a sync that failed, a file is abandoned: neither synced again nor given a name."""
    gone = set()
    for operation, paths, failed in fault.taken:
        assert not gone.intersection(paths) or operation in GIVEN_UP, f"{operation} of a file whose sync had failed"
        if failed and operation == "fsync":
            gone.update(paths)


def _nothing_half_done(host: SimulatedHost, base: HostBeforeStep, before: set, failure: Exception | None, fault: Fault) -> None:
    if base.name != "snapshot" or failure is None:
        return
    assert set(host.guaranteed.whole) == before
    with host.open("first") as store:
        store.sync()
        there = {(one.service, one.number) for one in store.generations.all()}
    if fault.mode != ON:
        # A disk that refuses everything may keep what it would not let be removed.
        assert there == before, "what was said to have failed is there"


def _again(host: SimulatedHost, base: HostBeforeStep) -> None:
    if base.name == "init":
        try:
            store_histories.STEPS["init"](host)
        except UsageError:
            # It is there, whole, although its last sync had failed.
            host.guarantee(begun=True, readers=frozenset({"first"}))
        store_histories.STEPS["snapshot"](host)
        return
    store_histories.STEPS[base.name](host)


def everywhere(folder: Path, name: str, choices: list[tuple[int, str]], each: int) -> Counter[str]:
    """Let each operation of a step fail, in `each` of the ways, which take turns."""
    base = HostBeforeStep(folder, name)
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
def test_a_failing_operation_is_reported_and_the_next_try_works(folder: Path, name: str) -> None:
    counts = everywhere(folder, name, CHOICES, 2)
    assert counts["steps that failed"] > counts["operations"] / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", BEFORE)
def test_an_operation_that_fails_with_any_error_is_reported(folder: Path, name: str) -> None:
    everywhere(folder, name, CHOICES, len(CHOICES))


class Stubborn(LocalStorage):
    """Tries a sync that failed once more."""

    def create(self):
        writer = super().create()
        writer_files = writer._files  # noqa: SLF001 - no other way to a mistake that LocalStorage does not make
        sync = writer_files.fsync

        class Twice:
            def __getattr__(self, name):
                return getattr(writer_files, name)

            def fsync(self, descriptor):
                try:
                    sync(descriptor)
                except OSError:
                    sync(descriptor)

        writer._files = Twice()  # noqa: SLF001
        return writer


def test_a_store_that_tries_a_failed_sync_again_is_found_out(folder: Path) -> None:
    host = SimulatedHost(folder, "stubborn", storage=Stubborn)
    run(host, ["init", "snapshot"])
    host.files.fault = Fault(0, errno.EIO, ONCE, frozenset({"fsync"}))
    store_histories.STEPS["snapshot"](host)  # "done"
    with pytest.raises((AssertionError, CastoreError)):
        PowerLossChecker(host).look(host.disk.worst(), host.guaranteed, 0)
    with pytest.raises(AssertionError, match="whose sync had failed"):
        _given_up(host.files.fault)


def test_a_name_that_another_process_took_is_not_removed(folder: Path) -> None:
    host = SimulatedHost(folder, "taken")
    run(host, ["init", "snapshot"])
    generation = next(iter(host.guaranteed.whole))
    with host.open("first") as store:
        store.sync()
        found = store.generations.get(*generation)
        name = next(name for name in host.disk.live().files if "/generations/" in name)
        store.generations._revert_commit(found, name.removeprefix(ROOT + "/"), b"of mine", StorageError("reported"))  # noqa: SLF001 - the moment between a write and its report
        assert store.generations.get(*generation) == found
        assert name in host.disk.live().files


def test_what_must_be_kept_is_kept_before_the_store_is_there(folder: Path) -> None:
    host = SimulatedHost(folder, "keep")
    storage = LocalStorage(ROOT, create=True, files=host.files)
    kept = []

    def keep(store_id):
        assert config_numbers(storage) == []
        kept.append(store_id)

    to = [(Identity.generate().recipient, "")]
    with Store.create(storage, host.places, to, new=NewStore(before_create=keep)) as store:
        assert kept == [store.store_id]
