"""How far a roll-back has got, and how each of its parts is changed, finished or undone.

The journal lies on this machine, in castore's state, and is durable before anything is done. What was
killed is undone by whoever comes next, or, if all had been switched, finished.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from castore.content import aside
from castore.content.inplace import InPlace
from castore.content.streams import StreamReader
from castore.errors import CastoreError, NotFoundError, ProgramError
from castore.model.generation import Origin
from castore.services.engines.contract import SWITCHING, Contents, Memo
from castore.services.events import event
from castore.services.programs import run
from castore.services.snapshot import EngineSource, engine_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from castore.content.attributes import Ownership
    from castore.content.inplace import TreePlan
    from castore.model.generation import Generation, Part
    from castore.model.tally import Tally
    from castore.services.config import Service
    from castore.store import Store

_AGAIN_SECONDS: Final = 0.5
_UNDONE: Final = "undone"
_MADE: Final = {"new", "old", "code"}
"""Of memos: names of what a roll-back makes."""


class PartJournal(msgspec.Struct):
    """What is being done to one part."""

    name: str
    path: bytes = b""
    """A tree's."""
    engine: str = ""
    settings: dict[str, Any] = {}
    memo: Memo = {}


class Journal(msgspec.Struct):
    """How far a roll-back has got."""

    service: str
    target: int
    safety: int | None
    parts: list[PartJournal]
    stop: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    timeout: float | None = None
    phase: Literal["begun", "stopped", "started", "done"] = "begun"
    revision: str = ""
    """Of the target."""
    version: int = 1


class Change:
    """How one part is changed. Of these, `undo` and `finish` may be called in another process."""

    problems: list[tuple[bytes, str]]

    def stage(self) -> None:
        """Make what can be made beside the live state."""

    def switch(self) -> None:
        """Let it take its place."""

    def undo(self) -> None:
        """Put the live state back."""

    def finish(self) -> None:
        """Remove what was replaced."""


class EngineChange(Change):
    """A dump that an engine puts back."""

    def __init__(self, source: EngineSource, memo: Memo, contents: Contents) -> None:
        self.problems = []
        self._engine = source.engine
        self._memo = memo
        self._contents = contents

    def stage(self) -> None:
        """Make what can be made beside the live state."""
        self._engine.stage(self._memo, self._contents)

    def switch(self) -> None:
        """Let it take its place."""
        self._engine.switch(self._memo, self._contents)

    def undo(self) -> None:
        """Put the live state back."""
        self._engine.undo(self._memo, self._contents)

    def finish(self) -> None:
        """Remove what was replaced."""
        self._engine.finish(self._memo)


class TreeChange(Change):
    """A tree that is made equal to the stored one, in place."""

    def __init__(
        self,
        reader: StreamReader,
        service: str,
        path: bytes,
        plan: Callable[[], TreePlan],
        ownership: Ownership,
        tally: Tally,
    ) -> None:
        self.problems = []
        self._reader = reader
        self._service = service
        self._path = os.fsdecode(path)
        self._plan = plan
        self._ownership = ownership
        self._tally = tally
        self._work: InPlace | None = None
        self._made = False

    def switch(self) -> None:
        """Let it take its place."""
        if not os.path.lexists(self._path):
            os.mkdir(self._path, 0o700)
            self._made = True
        self._work = InPlace(self._reader, self._plan(), self._ownership, self._tally, self._service)
        self._work.apply()
        self.problems = self._work.problems

    def undo(self) -> None:
        """Put the live state back."""
        if self._work is not None:
            work, self._work = self._work, None
            work.undo()
        if self._made:
            with contextlib.suppress(OSError):
                os.rmdir(self._path)

    def finish(self) -> None:
        """Remove what was replaced."""
        if self._work is not None:
            work, self._work = self._work, None
            work.keep()


class _LeftTree(Change):
    """A tree that another process was at work on."""

    def __init__(self, path: bytes) -> None:
        self.problems = []
        self._path = os.fsdecode(path)

    def undo(self) -> None:
        if os.path.isdir(self._path):
            aside.recover(self._path, owned=True)

    def finish(self) -> None:
        aside.recover(self._path, keep=True, owned=True)


def contents_of(
    reader: StreamReader, part: Part | None, safety: Callable[[], Generation | None]
) -> Contents:
    """Return what there is of a part: the dump to go back to, and that of the safety generation."""

    def target() -> Iterable[bytes]:
        return reader.read(part.content) if part is not None else ()

    def before() -> Iterable[bytes]:
        taken = safety()
        found = taken.part(part.name) if taken is not None and part is not None else None
        if found is None:
            raise CastoreError("there is no dump of what was there before")
        return reader.read(found.content)

    return Contents(target, before)


def check_health(service: Service) -> None:
    """Run the service's health check until it succeeds. Raises ProgramError."""
    if not service.health:
        return
    end = time.monotonic() + service.health_timeout
    while True:
        try:
            run(service.health, timeout=service.timeout)
        except ProgramError as error:
            if time.monotonic() >= end:
                raise ProgramError(f"the health check failed: {error}") from error
            time.sleep(_AGAIN_SECONDS)
        else:
            return


def undo(store: Store, journal: Journal, changes: list[Change]) -> list[str]:
    """Put the state back as it was; return what failed. The journal stays if anything did."""
    failed = []
    if journal.phase == "started" and journal.stop:
        try:
            run(journal.stop, timeout=journal.timeout)
        except CastoreError as error:
            failed.append(str(error))
    for part, change in reversed(list(zip(journal.parts, changes, strict=True))):
        if _UNDONE in part.memo:
            continue
        try:
            change.undo()
            # Once is enough: what is there from now on is the service's.
            part.memo[_UNDONE] = "yes"
            write_journal(store, journal)
        except (CastoreError, OSError) as error:
            failed.append(f"{part.name!r} could not be put back: {error}")
    if journal.phase != "begun" and journal.start:
        try:
            run(journal.start, timeout=journal.timeout)
        except CastoreError as error:
            failed.append(str(error))
    if not failed:
        store.forget_rollback(journal.service)
    return failed


def finish(store: Store, journal: Journal, changes: list[Change]) -> list[tuple[str, bytes, str]]:
    """Remove what was replaced; return what could not be. The journal stays if anything is left."""
    problems = []
    for part, change in zip(journal.parts, changes, strict=True):
        try:
            if SWITCHING in part.memo:
                change.finish()
            else:
                change.undo()  # it was equal: what was staged goes
        except (CastoreError, OSError) as error:
            problems.append((part.name, b".", f"what was replaced cannot be removed: {error}"))
    if not problems:
        store.forget_rollback(journal.service)
    return problems


def write_journal(store: Store, journal: Journal) -> None:
    """Make durable how far a roll-back has got. Raises StorageError."""
    store.remember_rollback(journal.service, msgspec.msgpack.encode(journal))


def _read_journal(store: Store, service: str) -> Journal | None:
    data = store.begun_rollback(service)
    if data is None:
        return None
    try:
        return msgspec.msgpack.decode(data, type=Journal)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise CastoreError(f"the journal of a roll-back of {service!r} is damaged: {error}") from None


def refuse_interrupted(store: Store, service: str) -> None:
    """Raise CastoreError if an earlier roll-back of a service was interrupted."""
    if store.begun_rollback(service) is not None:
        raise CastoreError(
            f"an earlier roll-back of {service!r} was interrupted, and its state may be half of each: first "
            f"castore recover {service} (or, if you have put it right: castore recover --forget {service})"
        )


def forget(store: Store, service: str) -> str:
    """Forget a roll-back that was interrupted, touching nothing; say what it has left behind."""
    journal = _read_journal(store, service)
    if journal is None:
        raise NotFoundError(f"no roll-back of {service!r} was interrupted here")
    left = [
        f"{part.name}: {', '.join(sorted(value for key, value in part.memo.items() if key in _MADE))}"
        for part in journal.parts
        if _MADE & part.memo.keys()
    ]
    trees = [part for part in journal.parts if part.path]
    left += [f"{part.name}: .castore-aside-... in {os.fsdecode(part.path)}" for part in trees]
    store.forget_rollback(service)
    return f"the roll-back of {service} is forgotten; it may have left behind: {'; '.join(left) or 'nothing'}"


def recover(store: Store, service: str) -> str:
    """Finish or undo a roll-back that was interrupted; say which. The caller holds the service's lock.

    Raises NotFoundError if there is none, CastoreError if the state is still not whole.
    """
    journal = _read_journal(store, service)
    if journal is None:
        raise NotFoundError(f"no roll-back of {service!r} was interrupted here")
    with event(store, "recover", service) as note:
        note.number, note.revision = journal.target, journal.revision
        note.text = _recover(store, service, journal)
    return note.text


def _recover(store: Store, service: str, journal: Journal) -> str:
    target = store.generation(service, journal.target)
    safety = store.generation(service, journal.safety) if journal.safety is not None else None
    with StreamReader(store) as reader:
        changes: list[Change] = []
        for part in journal.parts:
            if not part.engine:
                changes.append(_LeftTree(part.path))
                continue
            source = engine_of(Origin(engine=part.engine, settings=part.settings))
            assert source is not None
            found = target.part(part.name) if target is not None else None
            contents = contents_of(reader, found, lambda: safety)
            changes.append(EngineChange(source, part.memo, contents))
        if journal.phase == "done":
            store.set_live_revision(service, journal.revision)
            problems = finish(store, journal, changes)
            if problems:
                raise CastoreError("; ".join(f"{name}: {reason}" for name, _, reason in problems))
            return f"{service} is at generation {journal.target}: what it replaced is removed"
        failed = undo(store, journal, changes)
    if failed:
        raise CastoreError(f"the state of {service!r} is not whole: {'; '.join(failed)}")
    return f"{service} is as it was before the roll-back to generation {journal.target}"
