"""Generations and their parts."""

from __future__ import annotations

import datetime as dt
import os
from functools import cached_property
from typing import TYPE_CHECKING

from castore.process.signal_shield import interrupt_note

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Unpack

    from castore.api.selection import Entry, RestoreOptions, RestoreReport, Selection
    from castore.api.store import Store
    from castore.model.generation import Generation as Record
    from castore.model.generation import Part as PartRecord
    from castore.progress import Watch
    from castore.services.comparison import Difference
    from castore.services.drill import Drilled
    from castore.services.operations import Snapshot
    from castore.store.store import Store as OpenStore


class Generation:
    """One snapshot of a service."""

    def __init__(
        self, store: Store, record: Record, *, taken: Snapshot | None = None, notes: Sequence[str] = ()
    ) -> None:
        self._owner = store
        self.record = record
        """The generation as the store has it, for castore's own functions."""
        self.warnings = tuple(taken.failures) if taken is not None else ()
        """Of the snapshot that just took it: what failed after it was committed, such as a hook."""
        self.skipped_files = tuple(taken.skipped_files) if taken is not None else ()
        """Of the snapshot that just took it: (part, path, reason) of missing or inconsistent files."""
        self.notes = tuple(notes)
        """Of the snapshot that just took it: what else the caller should know."""

    def __repr__(self) -> str:
        revision = f" of {self.revision!r}" if self.revision else ""
        return f"<castore.Generation {self.service}@{self.number}{revision}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Generation) and self.record == other.record

    def __hash__(self) -> int:
        return hash((self.service, self.number))

    @property
    def opened(self) -> OpenStore:
        """The open store that has it, for castore's own functions. Raises UsageError after it is closed."""
        return self._owner.internal

    @property
    def service(self) -> str:
        """The name of the service."""
        return self.record.service

    @property
    def number(self) -> int:
        """The number, which ascends within the service."""
        return self.record.number

    @property
    def revision(self) -> str:
        """The name of the configuration that the state belongs to, or empty if none was given."""
        return self.record.revision

    @property
    def time(self) -> dt.datetime:
        """When it was taken, in UTC, by the clock of the machine that took it."""
        return dt.datetime.fromtimestamp(self.record.time / 10**9, dt.UTC)

    @property
    def host(self) -> str:
        """The certified name of the machine that took it."""
        return self.record.host

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self.record.size

    @property
    def is_pre_rollback(self) -> bool:
        """Whether a rollback took it, of the state that it replaced."""
        return self.record.pre_rollback

    @property
    def is_interrupted(self) -> bool:
        """Whether it was taken after an interrupted rollback, so that its state may be inconsistent."""
        return self.record.interrupted

    @property
    def missing_parts(self) -> tuple[str, ...]:
        """The parts that castore.toml described when it was taken, and that it does not have."""
        return self.record.missing_parts

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts, in the order in which they were taken."""
        return tuple(Part(self, part) for part in self.record.parts)

    def part(self, name: str) -> Part:
        """Return a part by its name. Raises NotFoundError."""
        from castore.services.selectors import part_of

        return Part(self, part_of(self.record, name))

    def restore(
        self,
        destination: str | os.PathLike[str],
        *,
        parts: Iterable[str] | None = None,
        **options: Unpack[RestoreOptions],
    ) -> RestoreReport:
        """Restore into a directory that is new or empty: each part under its name.

        parts: the names of the parts to restore, or None for all.
        change_owner: whether to restore owners and groups, or None to restore them if this process is root.
        numeric_ids: restore owners and groups by number, not by name.
        resume: continue an interrupted restore of the same parts.
        progress: as in `Service.snapshot`.
        Raises UsageError, IdentityError, StorageError. Damaged files are not restored, and reported.
        """
        return self._selection(parts).restore(destination, **options)

    def drill(
        self,
        *,
        scratch: str | os.PathLike[str] | None = None,
        trust_recorded: bool = False,
        note: Callable[[str], None] | None = None,
        progress: Watch | None = None,
    ) -> Drilled:
        """Restore into a scratch directory, check what was restored, and delete it.

        Databases are loaded into servers of their own. The live state is not touched.
        scratch: where to create the directory, or None for the system's temporary directory.
        trust_recorded: as in `Service.plan_rollback`.
        note: called with each finding, or None.
        progress: as in `Service.snapshot`.
        Raises CastoreError if anything is not sound.
        """
        operations = self._owner.operations(progress)
        if note is not None:
            operations.note = note
        where = None if scratch is None else os.fspath(scratch)
        with interrupt_note("the live state was not changed, and the scratch directory was deleted"):
            return operations.drill(self.record, scratch=where, consent=trust_recorded)

    def diff(self, newer: Generation) -> Iterator[Difference]:
        """Yield what differs between this and a newer generation. Raises IdentityError, DamageError."""
        return self._selection(None).diff(newer._selection(None))

    def recorded_warnings(self) -> list[tuple[str, bytes, str]]:
        """Return (part, path, reason) of files that are missing or possibly inconsistent in it.

        Raises IdentityError, DamageError.
        """
        from castore.services.details import read_details

        return list(read_details(self._owner.internal, self.record).warnings)

    @property
    def is_of_this_host(self) -> bool:
        """Whether this machine took it, or took over the host that did."""
        return self._owner.internal.hosts.is_own(self.record)

    @property
    def pin_note(self) -> str | None:
        """The note of its pin, or None if it is not pinned."""
        return self._owner.internal.generations.pins(self.service).get(self.number)

    def pin(self, note: str = "") -> bool:
        """Keep it whatever the retention rules say; return whether it was not pinned yet."""
        return self._owner.internal.generations.pin(self.service, self.number, note)

    def unpin(self) -> bool:
        """Let the retention rules decide about it again; return whether it was pinned."""
        return self._owner.internal.generations.unpin(self.service, self.number)

    def forget(self) -> None:
        """Delete it permanently; `Store.compact` reclaims the space. Raises UsageError if it is pinned."""
        from castore.api.service import Service

        Service(self._owner, self.service).forget([self.number])

    def _selection(self, parts: Iterable[str] | None) -> Selection:
        import msgspec

        from castore.api.selection import Selection
        from castore.services.selectors import Selection as Selected
        from castore.services.selectors import part_of

        record = self.record
        if parts is not None:
            chosen = tuple(part_of(record, name) for name in dict.fromkeys(parts))
            record = msgspec.structs.replace(record, parts=chosen)
        return Selection(self._owner, Selected(record))


class Part:
    """A part of a generation: a tree or a dump."""

    def __init__(self, generation: Generation, record: PartRecord) -> None:
        self._generation = generation
        self.record = record
        """The part as the store has it, for castore's own functions."""

    def __repr__(self) -> str:
        of = self._generation
        return f"<castore.Part {of.service}@{of.number}:{self.name}>"

    @property
    def name(self) -> str:
        """The name."""
        return self.record.name

    @property
    def kind(self) -> str:
        """Either "tree" or "dump"."""
        return self.record.kind

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self.record.size

    def open(self, path: str = "") -> io.BufferedReader:
        """Open the dump, or a file of the tree, for reading from its beginning to its end.

        path: the path of the file in the tree, or empty for a dump.
        Raises NotFoundError, UsageError, IdentityError; reading raises
        DamageError where content is damaged.
        """
        return self._selection(path).open()

    def entries(self, path: str = "", *, recursive: bool = False) -> Iterator[Entry]:
        """Yield the entries of the tree, or of a directory in it. Raises as `Selection.entries`."""
        return self._selection(path).entries(recursive=recursive)

    def restore(
        self, destination: str | os.PathLike[str], *, path: str = "", **options: Unpack[RestoreOptions]
    ) -> RestoreReport:
        """Restore into a directory that is new or empty: a tree as its content, a dump as a file.

        path: restore only this directory or file of the tree, or everything if empty.
        options: as in `Generation.restore`.
        """
        return self._selection(path).restore(destination, **options)

    def _selection(self, path: str) -> Selection:
        from castore.api.selection import Selection
        from castore.services.selectors import Selection as Selected

        return Selection(self._generation._owner, Selected(self._generation.record, self.record, path))
