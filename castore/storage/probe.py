"""Test whether a place keeps the contract of storage, before a store trusts it with data."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from castore.errors import CastoreError, ObjectExistsError, ObjectMissingError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.storage.base import Storage

_FOLDER: Final = "flags"
"""The folder for what the storage layer itself writes."""
CREATE_ONLY: Final = "create-only writes"
DELETION: Final = "deletion"
_WRITERS: Final = 8
_LENGTH: Final = 100_000
_NAMES: Final = 5


class Check(NamedTuple):
    """A property that was tested."""

    name: str
    failure: str | None
    """What went wrong; None: the place has the property."""
    consequence: str
    """What a store without it loses."""


class _Probe:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._mark = os.urandom(8).hex()
        self._data = os.urandom(_LENGTH)
        self.has_written = False

    def _name(self, which: str) -> str:
        return f"{_FOLDER}/{self._mark}-{which}"

    def write(self) -> None:
        """Write the first object. Raises StorageError."""
        self._storage.put(self._name("a"), self._data)
        self.has_written = True

    def read_after_write(self) -> str | None:
        """Read the object that was just written."""
        if self._storage.get(self._name("a")) != self._data:
            return "an object that was just written has other bytes"
        if self._storage.size(self._name("a")) != _LENGTH:
            return "an object that was just written has another length"
        return None

    def ranges(self) -> str | None:
        """Read ranges, also over the end."""
        for offset, length in (
            (0, 10),
            (1000, 5000),
            (_LENGTH - 10, 100),
            (_LENGTH, 10),
            (_LENGTH + 5, None),
        ):
            wanted = self._data[offset:] if length is None else self._data[offset : offset + length]
            if self._storage.get(self._name("a"), offset, length) != wanted:
                return f"{length} bytes from {offset} are not those that were written"
        return None

    def create_only(self) -> str | None:
        """Let eight writers race for one name: exactly one must win, and all others must learn that."""
        outcomes: list[bytes | CastoreError] = []
        start = threading.Barrier(_WRITERS)

        def race(data: bytes) -> None:
            start.wait()
            try:
                self._storage.put(self._name("race"), data)
                outcomes.append(data)
            except CastoreError as error:
                outcomes.append(error)

        threads = [threading.Thread(target=race, args=(b"%d" % number * 1000,)) for number in range(_WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        won = [outcome for outcome in outcomes if isinstance(outcome, bytes)]
        failed = [outcome for outcome in outcomes if not isinstance(outcome, bytes | ObjectExistsError)]
        if failed:
            return str(failed[0])
        if len(won) != 1:
            return f"of {_WRITERS} writers of one name, {len(won)} got the answer that they wrote it"
        if self._storage.get(self._name("race")) != won[0]:
            return "the object is not that of the writer that got the answer that it wrote it"
        try:
            self._storage.put(self._name("a"), b"other")
        except ObjectExistsError:
            return None
        return "an object that existed was replaced"

    def listing(self) -> str | None:
        """List objects that were just written, all and after a name."""
        names = [self._name(f"l{number}").partition("/")[2] for number in range(_NAMES)]
        for name in names:
            self._storage.put(f"{_FOLDER}/{name}", b"")
        if missing := sorted({*names} - {*self._storage.list(_FOLDER)}):
            return f"a listing lacks {missing[0]}, which was just written"
        after = [name for name in self._storage.list(_FOLDER, names[1]) if name in names]
        if sorted(after) != names[2:]:
            return "a listing that begins after a name has other names"
        return None

    def deletion(self) -> str | None:
        """Delete what was written."""
        mine = [name for name in self._storage.list(_FOLDER) if name.startswith(self._mark)]
        self._storage.delete_all([f"{_FOLDER}/{name}" for name in mine])
        try:
            self._storage.get(self._name("a"))
        except ObjectMissingError:
            left = [name for name in self._storage.list(_FOLDER) if name.startswith(self._mark)]
            return f"{left[0]} is listed after it was deleted" if left else None
        return "an object can be read after it was deleted"


_TESTS: Final[tuple[tuple[str, Callable[[_Probe], str | None], str], ...]] = (
    ("read after write", _Probe.read_after_write, "a snapshot may be unreadable"),
    ("ranged reads", _Probe.ranges, "every read would transfer a whole pack, or return wrong bytes"),
    (CREATE_ONLY, _Probe.create_only, "two machines can replace each other's generations"),
    ("listing", _Probe.listing, "a machine does not see what another one stored"),
    (DELETION, _Probe.deletion, "'castore prune' frees nothing; right for a place that only adds"),
)


def probe(storage: Storage) -> list[Check]:
    """Return what a place can do; objects of the test are written to its folder `flags`, and deleted.

    Raises StorageError if nothing can be written there at all, which says nothing about the place.
    """
    tests = _Probe(storage)
    try:
        return _checks(tests)
    except BaseException:
        if tests.has_written:
            with contextlib.suppress(CastoreError):
                tests.deletion()
        raise


def _checks(tests: _Probe) -> list[Check]:
    tests.write()
    checks = []
    for name, test, consequence in _TESTS:
        try:
            failure = test(tests)
        except StorageError as error:
            failure = str(error)
        checks.append(Check(name, failure, consequence))
    return checks
