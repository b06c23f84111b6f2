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
from blake3 import blake3

from castore.content.restore.in_place import InPlace
from castore.content.restore.recover import recover as recover_tree
from castore.content.restore.undo_area import UNMOVABLE
from castore.content.restore.undo_journal import boot_id, same_file
from castore.content.streams import StreamReader
from castore.engines.base import SWITCHING, Contents, Memo
from castore.errors import (
    CastoreError,
    NotFoundError,
    NotIntactError,
    ProgramError,
    StorageError,
    UsageError,
)
from castore.fs.beneath import locate, make_directory
from castore.fs.regular import temporary_names
from castore.fs.removing import remove
from castore.model.generation import Origin
from castore.model.odd_text import lossless, texts
from castore.process.runners import run
from castore.process.users import account_of
from castore.services.events import event
from castore.services.restore import counted
from castore.services.snapshot import EngineSource, engine_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from castore.content.restore.metadata import Ownership
    from castore.content.restore.plan import TreePlan
    from castore.model.generation import Generation, Part
    from castore.progress import Progress
    from castore.services.config import Service
    from castore.store import Store

_AGAIN_SECONDS: Final = 0.5
_VERSION: Final = 3
"""2: a part may be one that is removed; 3: a checksum follows."""
_CHECKSUM: Final = 16
"""Bytes of it."""
_UNDONE: Final = "undone"
_EXISTED: Final = "existed"
_LEFT: Final = "left"
"""In a memo: what was moved aside is not removed, because no generation has all of it."""
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
    """An engine's; of a tree that is to be gone, its path and `old`, which it is moved to."""

    @property
    def switched(self) -> bool:
        """Whether the live state may have been touched, and was not put back."""
        return SWITCHING in self.memo and _UNDONE not in self.memo


class Journal(msgspec.Struct):
    """How far a roll-back has got."""

    service: str
    target: int
    safety: int | None
    parts: list[PartJournal]
    stop: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    timeout: float | None = None
    run_as: str | None = None
    """The user that `stop` and `start` are run as; None: castore's own."""
    phase: Literal["begun", "stopped", "started", "done"] = "begun"
    revision: str = ""
    """What the state belongs to when the rollback is done."""
    before: str = ""
    """The revision that the replaced state belonged to."""
    version: int = _VERSION

    @property
    def changed(self) -> bool:
        """Whether any part was not equal to the target already."""
        return any(SWITCHING in part.memo for part in self.parts)


class _JournalVersion(msgspec.Struct):
    """What is read first of a journal: who does not know its version cannot tell what the rest means."""

    version: int = 1


class RollbackStep:
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


class DumpStep(RollbackStep):
    """A dump that an engine puts back."""

    def __init__(
        self,
        source: EngineSource,
        memo: Memo,
        contents: Contents,
        own: Callable[[str, str], None] = lambda _path, _inode: None,
    ) -> None:
        """own: gives a staged file that replaces nothing its recorded owner and mode."""
        self.problems = []
        self._own = own
        self._engine = source.engine
        self._memo = memo
        self._contents = contents

    def stage(self) -> None:
        """Make what can be made beside the live state."""
        self._engine.stage(self._memo, self._contents)
        new = self._memo.get("new", "")
        if self._memo.get(_EXISTED) == "" and os.path.isfile(new):
            self._own(new, self._memo.get("inode", ""))

    def switch(self) -> None:
        """Let it take its place."""
        self._engine.switch(self._memo, self._contents)

    def undo(self) -> None:
        """Put the live state back."""
        self._engine.undo(self._memo, self._contents)

    def finish(self) -> None:
        """Remove what was replaced."""
        if self._memo.get(_LEFT):
            old = self._memo.get("old", "")
            self.problems = [(b".", f"a snapshot could not read all of it: it was moved to {old}")]
            return
        self._engine.finish(self._memo)


class TreeStep(RollbackStep):
    """A tree that is made equal to the stored one, in place."""

    def __init__(
        self,
        reader: StreamReader,
        service: str,
        path: bytes,
        plan: Callable[[], TreePlan],
        ownership: Ownership,
        tally: Progress,
    ) -> None:
        self.problems = []
        self.memo: Memo = {_EXISTED: "yes" if os.path.lexists(path) else ""}
        self._reader = reader
        self._service = service
        self._path = os.fsdecode(path)
        self._plan = plan
        self._ownership = ownership
        self._tally = tally
        self._work: InPlace | None = None

    def switch(self) -> None:
        """Let it take its place."""
        if not os.path.lexists(self._path):
            refuse_without_folder(self._path)
            try:
                with locate(self._path) as at:
                    os.close(make_directory(at.name, at.folder))
            except OSError as error:
                raise CastoreError(f"cannot make {self._path}: {error.strerror}") from error
        self._work = InPlace(self._reader, self._plan(), self._ownership, self._tally, self._service)
        self._work.apply()

    def undo(self) -> None:
        """Put the live state back."""
        if self._work is not None:
            work, self._work = self._work, None
            work.undo()
        _unmake(self._path, self.memo)

    def finish(self) -> None:
        """Remove what was replaced."""
        if self._work is not None:
            work, self._work = self._work, None
            work.keep()
            # Not before: what cannot be removed is found here.
            self.problems = work.problems


class _RecoveredTreeStep(RollbackStep):
    """A tree that another process was at work on."""

    def __init__(self, journals: str, path: bytes, memo: Memo) -> None:
        self.problems = []
        self._journals = journals
        self._path = os.fsdecode(path)
        self._memo = memo

    def undo(self) -> None:
        if os.path.isdir(self._path):
            recover_tree(self._journals, self._path, owned=True)
        _unmake(self._path, self._memo)

    def finish(self) -> None:
        if os.path.isdir(self._path):
            recover_tree(self._journals, self._path, keep=True, owned=True)


def _unmake(path: str, memo: Memo) -> None:
    """Remove a tree that a roll-back made, if it is empty: what is in it is the service's."""
    if memo.get(_EXISTED) == "" and SWITCHING in memo:
        with contextlib.suppress(OSError), locate(path, follow=False) as at:
            os.rmdir(at.name, dir_fd=at.folder)


def refuse_without_folder(path: str) -> None:
    """Raise UsageError where there is no folder that a tree could be made in again."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise UsageError(
            f"there is no folder {folder} to make the tree {path} in: make it, with the owner and mode that "
            "it had"
        )


class TreeRemoval(RollbackStep):
    """A tree that did not exist in the state to go back to: it is moved aside, next to itself.

    What no snapshot has of it stays where it is.
    """

    def __init__(
        self,
        journals: str,
        path: bytes,
        memo: Memo | None = None,
        work: Callable[[], tuple[InPlace, bool]] | None = None,
    ) -> None:
        """journals: the directory of those of restores in place.

        work: returns what removes the tree in place, and whether nothing in it has to stay.
        """
        self.problems = []
        self._journals = journals
        live = os.fsdecode(path)
        self.memo: Memo = {"path": live, "old": temporary_names(live)[1], **_identity(live)}
        if memo is not None:
            self.memo = memo
        self._prepare = work
        self._work: InPlace | None = None
        self._complete = False

    def switch(self) -> None:
        """Move it aside, or remove what may go."""
        live, old = self.memo["path"], self.memo["old"]
        work = None
        if self._prepare is not None and os.path.isdir(live) and not os.path.islink(live):
            work, self._complete = self._prepare()
        if work is None or self._complete:
            try:
                _rename(live, old)
            except OSError as error:
                if work is None or error.errno not in UNMOVABLE:
                    raise CastoreError(
                        f"{live} did not exist before, and cannot be moved aside: {error.strerror}"
                    ) from error
            else:
                if work is not None:
                    work.close()
                if not _is_same(old, self.memo):
                    _rename(old, live)
                    raise CastoreError(f"{live} has been replaced by something else meanwhile, and is left")
                return
        self._work = work
        work.apply()

    def undo(self) -> None:
        """Move it back."""
        live, old = self.memo["path"], self.memo["old"]
        work, self._work = self._work, None
        if work is not None:
            work.undo()
        elif os.path.isdir(live) and not os.path.islink(live):
            recover_tree(self._journals, live, owned=True)
        try:
            if os.path.lexists(old):
                if not _is_same(old, self.memo):
                    raise CastoreError(
                        f"{live} could not be restored: {old}, which it was moved to, has been replaced by "
                        "something else"
                    )
                _rename(old, live)
        except OSError as error:
            raise CastoreError(
                f"{live} could not be restored ({error.strerror}): its previous state is in {old}"
            ) from error

    def finish(self) -> None:
        """Remove it."""
        live = self.memo["path"]
        work, self._work = self._work, None
        if work is not None:
            work.keep()
            self.problems = work.problems
            if self._complete:
                with contextlib.suppress(OSError), locate(live, follow=False) as at:
                    os.rmdir(at.name, dir_fd=at.folder)
        elif os.path.isdir(live) and not os.path.islink(live):
            recover_tree(self._journals, live, keep=True, owned=True)
        old = self.memo["old"]
        if not os.path.lexists(old):
            return
        if not _is_same(old, self.memo):
            raise CastoreError(f"{old} has been replaced by something else: look at it, and remove it")
        with locate(old, follow=False) as at, contextlib.suppress(FileNotFoundError):
            remove(at.name, at.folder)


def _identity(path: str) -> Memo:
    """Return what tells whether a path still names the same file or directory."""
    try:
        info = os.lstat(path)
    except OSError:
        return {}
    return {"device": str(info.st_dev), "inode": str(info.st_ino), "boot": boot_id()}


def _is_same(path: str, memo: Memo) -> bool:
    """Whether a path names what a memo is about. Raises OSError."""
    ids = (int(memo.get("device", "0")), int(memo.get("inode", "0")))
    return "inode" not in memo or same_file(ids, os.lstat(path), memo.get("boot", ""))


def _rename(path: str, new: str) -> None:
    """Give what is at a path another name in its directory, durably. Raises OSError."""
    with locate(path, follow=False) as at:
        os.rename(at.name, os.path.basename(os.fsencode(new)), src_dir_fd=at.folder, dst_dir_fd=at.folder)
        at.sync()


class EngineRemoval(DumpStep):
    """A part of an engine that did not exist in the state to go back to."""

    def __init__(
        self, source: EngineSource, memo: Memo, contents: Contents, is_kept: Callable[[], bool]
    ) -> None:
        """is_kept: whether the pre-rollback generation has all of it."""
        super().__init__(source, memo, contents)
        self._is_kept = is_kept

    def stage(self) -> None:
        """Make nothing."""

    def switch(self) -> None:
        """Remove it."""
        if not self._is_kept():
            self._memo[_LEFT] = "yes"
        self._engine.remove(self._memo)


def contents_of(
    reader: StreamReader,
    part: Part | None,
    safety: Callable[[], Generation | None],
    tally: Progress | None = None,
) -> Contents:
    """Return what there is of a part: the dump to go back to, and that of the safety generation.

    tally: counts what is read of the dump to go back to.
    """

    def target() -> Iterable[bytes]:
        pieces: Iterable[bytes] = reader.read(part.content) if part is not None else ()
        return pieces if tally is None else counted(pieces, tally)

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
            run(service.health, timeout=service.timeout, account=account_of(service.run_as))
        except ProgramError as error:
            if time.monotonic() >= end:
                raise ProgramError(f"the health check failed: {error}") from error
            time.sleep(_AGAIN_SECONDS)
        else:
            return


def undo(store: Store, journal: Journal, changes: list[RollbackStep], *, later: bool = False) -> list[str]:
    """Put the state back as it was; return what failed. The journal stays if anything did.

    later: it is another process that was interrupted, and what it had stopped may have been started since.
    """
    failed = []
    runs = journal.phase == "started"
    if later and journal.phase == "stopped":
        runs = any(part.switched for part in journal.parts)
    if runs and journal.stop:
        try:
            run(journal.stop, timeout=journal.timeout, account=account_of(journal.run_as))
        except CastoreError as error:
            failed.append(str(error))
    left = []
    for part, change in reversed(list(zip(journal.parts, changes, strict=True))):
        if _UNDONE in part.memo:
            continue
        try:
            change.undo()
            # Once is enough: what is there from now on is the service's.
            part.memo[_UNDONE] = "yes"
            write_journal(store, journal)
        except (CastoreError, OSError) as error:
            left.append(f"{part.name!r} could not be put back: {error}")
    failed += left
    if left and journal.changed and journal.start:
        # On a state that is half of each it would do more harm than while it is down.
        failed.append(f"so {journal.service!r} is not started")
    elif journal.phase != "begun" and journal.start:
        try:
            run(journal.start, timeout=journal.timeout, account=account_of(journal.run_as))
        except CastoreError as error:
            failed.append(str(error))
    if not failed:
        store.forget_rollback(journal.service)
    return failed


def finish(store: Store, journal: Journal, changes: list[RollbackStep]) -> list[tuple[str, bytes, str]]:
    """Remove what was replaced; return what could not be. The journal stays if an engine has to try again."""
    problems = []
    left = False
    for part, change in zip(journal.parts, changes, strict=True):
        try:
            if SWITCHING in part.memo:
                change.finish()
            else:
                change.undo()  # it was equal: what was staged goes
        except (CastoreError, OSError) as error:
            problems.append((part.name, b".", f"what was replaced cannot be removed: {error}"))
            # Of a tree only files are left over, which another try could not remove either, and which must
            # not block the next command.
            left = left or isinstance(change, DumpStep)
    if not left:
        store.forget_rollback(journal.service)
    return problems


def remember(store: Store, journal: Journal) -> None:
    """Keep what the state is of, and what `rollback --undo` goes back to, when a roll-back is done."""
    store.set_live_revision(journal.service, journal.revision)
    if journal.changed or (journal.safety is not None and journal.before != journal.revision):
        store.set_undo(journal.service, journal.safety)


def write_journal(store: Store, journal: Journal) -> None:
    """Make durable how far a roll-back has got. Raises StorageError."""
    # Paths may have bytes that are not UTF-8.
    data = msgspec.msgpack.encode(lossless(msgspec.to_builtins(journal, builtin_types=(bytes,))))
    store.remember_rollback(journal.service, data + _checksum(data))


def _checksum(data: bytes) -> bytes:
    return blake3(data).digest(_CHECKSUM)


def _read_journal(store: Store, service: str) -> Journal | None:
    """Return the journal of a rollback that has not ended; None: there is none. Raises NotIntactError."""
    try:
        data = store.begun_rollback(service)
        if data is None:
            return None
        intact = data[-_CHECKSUM:] == _checksum(data[:-_CHECKSUM])
        data = data[:-_CHECKSUM] if intact else data
        version = msgspec.msgpack.decode(data, type=_JournalVersion).version
        if version == _VERSION and not intact:
            raise _damaged(service, "its checksum is wrong")
        if version in range(1, _VERSION + 1):
            return _decoded(data)
    except (msgspec.DecodeError, msgspec.ValidationError, StorageError) as error:
        raise _damaged(service, str(error)) from None
    raise NotIntactError(
        f"the journal of a rollback of {service!r} is of version {version}, and this castore knows "
        f"{_VERSION}: recover it with the castore that began it, or a newer one; if you have repaired the "
        f"state: castore recover --forget {service}"
    )


def _decoded(data: bytes) -> Journal:
    """Return a journal. Raises DecodeError, ValidationError."""
    plain = msgspec.msgpack.decode(data, type=dict[str, Any])
    parts = msgspec.convert(plain.get("parts"), list[dict[str, Any]])
    for part in parts:
        part |= {name: texts(part.get(name, {})) for name in ("settings", "memo")}
    return msgspec.convert({**plain, "parts": parts}, Journal)


def _damaged(service: str, reason: str) -> NotIntactError:
    return NotIntactError(
        f"the journal of a rollback of {service!r} is damaged ({reason}), so that it can be neither "
        f"undone nor completed: castore recover --forget {service}, then check its state, or restore a "
        f"generation: castore rollback {service} --to NUMBER"
    )


def refuse_interrupted(store: Store, service: str) -> None:
    """Raise NotIntactError if an earlier rollback of a service was interrupted or failed."""
    if store.has_begun_rollback(service):
        raise NotIntactError(unfinished(service))


def unfinished(service: str) -> str:
    """Say that a rollback of a service has not ended, and how it is ended."""
    return (
        f"an earlier rollback of {service!r} was interrupted or failed, and its state may be inconsistent: "
        f"first castore recover {service}; if that cannot succeed, or you have repaired the state: castore "
        f"recover --forget {service}"
    )


def ways_out(service: str, safety: int | None) -> str:
    """Return the commands that continue where the previous state could not be restored."""
    then = f", then castore rollback {service} --to {safety or 'NUMBER'}"
    return (
        f"when the cause is fixed: castore recover {service}; if that cannot succeed: castore recover "
        f"--forget {service}{then} (a dump that a program restores: with another --restore)"
    )


def forget(store: Store, service: str) -> str:
    """Forget a roll-back that was interrupted, touching nothing; say what it has left behind."""
    try:
        journal = _read_journal(store, service)
    except CastoreError:
        store.forget_rollback(service)
        return (
            f"the rollback of {service} is forgotten; its journal is damaged or of another version, so that "
            "what the rollback may have left next to its parts is not known: look there for names with "
            "'castore' in them"
        )
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
        changes: list[RollbackStep] = []
        for part in journal.parts:
            if not part.engine:
                removed = "old" in part.memo
                kind = TreeRemoval if removed else _RecoveredTreeStep
                changes.append(kind(store.places.journals, part.path, part.memo))
                continue
            source = engine_of(Origin(engine=part.engine, settings=part.settings))
            assert source is not None
            found = target.part(part.name) if target is not None else None
            contents = contents_of(reader, found, lambda: safety)
            changes.append(DumpStep(source, part.memo, contents))
        if journal.phase == "done":
            remember(store, journal)
            problems = finish(store, journal, changes)
            if problems:
                raise CastoreError("; ".join(f"{name}: {reason}" for name, _, reason in problems))
            return f"{service} is at generation {journal.target}: what it replaced is removed"
        failed = undo(store, journal, changes, later=True)
    if failed:
        raise NotIntactError(
            f"the state of {service!r} is not intact: {'; '.join(failed)}; "
            + ways_out(service, journal.safety)
        )
    return f"{service} is as it was before the roll-back to generation {journal.target}"
