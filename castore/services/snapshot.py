"""Take a generation: store every part, then commit the record of the generation, all or nothing."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import msgspec

from castore.errors import BusyError, DamageError, StorageError, UsageError
from castore.model.counting import count as counted
from castore.model.names import check_name, check_revision
from castore.process.signal_shield import interrupt_note
from castore.progress import unwatched
from castore.services.events import event
from castore.services.hosts import note_taken
from castore.services.part_writer import PartWriter
from castore.services.recorded import remember
from castore.services.sources import NONE_ABSENT, Absent, Stream, present_parts
from castore.store.format.envelope import Refusal
from castore.store.format.names import DELETIONS, is_in
from castore.store.reachability import is_whole, roots_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from castore.model.generation import Generation, Origin
    from castore.progress import Watch
    from castore.services.hooks import Hooks
    from castore.services.sources import Source
    from castore.store import Store


class SnapshotRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot takes, and how its generation is recorded."""

    service: str
    sources: Mapping[str, Source]
    """The parts, by name."""
    revision: str = ""
    """The revision that the generation is filed under."""
    pre_rollback: bool = False
    """Whether it is a pre-rollback generation."""
    interrupted: bool = False
    """Whether an earlier rollback of the service is unfinished; the generation is then marked so."""
    missing_parts: tuple[str, ...] = ()
    """Parts of the service that are not taken: with any, the generation is partial."""
    absent: Absent = NONE_ABSENT
    """Parts that do not exist, which a pre-rollback generation records as absent."""
    leave_out: Sequence[str] = ()
    """Castore's own directories, which trees store empty."""
    hooks: Hooks | None = None
    """Runs programs before and after the parts are taken; its `failures` has those of the latter."""
    watch: Watch = unwatched
    """Called at the start of each part."""

    def check(self) -> None:
        """Raise UsageError if no generation can be taken."""
        check_name("service", self.service)
        check_revision(self.revision)
        if not self.sources and not self.absent.kinds:
            raise UsageError(f"nothing to take of {self.service!r}: name at least one tree, dump or program")

    @property
    def marks(self) -> str:
        """What is special about the generation, for people."""
        marks = ", pre-rollback" if self.pre_rollback else ""
        marks += ", after an unfinished rollback" if self.interrupted else ""
        marks += f", partial: without {', '.join(self.missing_parts)}" if self.missing_parts else ""
        return marks


class _OvertakenError(BusyError):
    """A prune removed something from the store that this snapshot depends on, while it was taken."""


def snapshot(store: Store, request: SnapshotRequest) -> Generation:
    """Take one generation of a service and return it. The caller holds the service's lock.

    Raises UsageError, ProgramError, StorageError, DamageError; then nothing was committed, and the next try
    finds the chunks that were stored already.
    """
    with event(store, "snapshot", request.service) as note:
        # An open file cannot be read a second time.
        repeats = not any(isinstance(source, Stream) for source in request.sources.values())
        for tries_left in (2, 1, 0):
            try:
                generation, origins = _take(store, request)
                break
            except _OvertakenError:
                if not (repeats and tries_left):
                    raise
        note.of(generation)
        stored = sum(part.stored_bytes for part in generation.parts)
        note.text = f"{counted(generation.size, 'byte')}, {stored:,} stored{request.marks}"
    remember(store, request.service, origins)
    return generation


def _take(store: Store, request: SnapshotRequest) -> tuple[Generation, dict[str, Origin]]:
    """Store the parts and commit the generation; return it, and where each part was taken from."""
    request.check()
    started = time.time_ns()
    clock = time.monotonic_ns()
    store.sync(report_older=not request.pre_rollback)
    older = store.generations.older
    epoch = store.index.epoch()
    generation: Generation | None = None

    def state() -> str:
        if generation is not None:
            return f"{generation.service}@{generation.number} is committed"
        return "nothing was committed; the next snapshot reuses the packs that were stored"

    with interrupt_note(state), store.session() as session, PartWriter(store, session, request) as writer:
        with request.hooks if request.hooks is not None else contextlib.nullcontext():
            for name, source in present_parts(request.sources).items():
                writer.write(name, source)
        record = writer.finish(started, time.monotonic_ns() - clock)
        generation = _commit(store, record, epoch)
        store.generations.older = store.generations.older or older
        writer.keep_scans()
    return generation, writer.origins


def _commit(store: Store, generation: Generation, epoch: bytes) -> Generation:
    """Assign a generation's number and commit it, unless chunks it needs were removed since `epoch`."""
    with store.storage.lock():
        # A concurrent prune sees this generation, or this process sees what the prune removes.
        store.sync(report_older=not generation.pre_rollback)
        unread = [name for name, reason in store.damaged.items() if not isinstance(reason, Refusal)]
        if lacking := [name for name in unread if is_in(DELETIONS, name)]:
            raise DamageError(
                f"{lacking[0]} is damaged: it is not known which packs are about to be removed; nothing was "
                "committed; run castore repair, then try again"
            )
        if store.index.epoch() != epoch and not is_whole(store, roots_of(generation)):
            raise _OvertakenError(
                f"chunks that this snapshot of {generation.service!r} shares with older ones were removed "
                "from the store while it was taken; nothing was committed, try again"
            )
        newest = next(filter(store.hosts.is_own, store.generations.newest_first(generation.service)), None)
        generation = msgspec.structs.replace(
            generation,
            number=store.generations.next_number(generation.service),
            parent=newest.number if newest is not None else 0,
        )
        with contextlib.suppress(StorageError):
            note_taken(store, generation.service, generation.number)
        with interrupt_note(f"'castore log {generation.service}' shows whether the generation is committed"):
            store.generations.commit(generation)
    return generation
