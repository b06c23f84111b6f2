"""What is read and restored: a generation, a part of it, or a path in a part."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any, Final, TypedDict

import msgspec

from castore.api.generation import Generation, Part
from castore.api.progress import counters
from castore.content.stored_dirs import Child  # noqa: TC001 - help() evaluates it
from castore.content.streams import StreamReader
from castore.errors import UsageError
from castore.model.generation import Part as PartRecord  # noqa: TC001 - help() evaluates it
from castore.progress import Progress
from castore.services.listing import list_entries
from castore.services.reading import child_of, read
from castore.state.directories import expanded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Unpack

    from castore.api.in_place import InPlaceOptions, InPlacePlan
    from castore.api.store import Store
    from castore.progress import Watch
    from castore.services.comparison import Difference
    from castore.services.selectors import Selection as Selected


class RestoreOptions(TypedDict, total=False):
    """The options of restores; `Generation.restore` describes them."""

    change_owner: bool | None
    numeric_ids: bool
    resume: bool
    progress: Watch | None


class RestoreReport(msgspec.Struct):
    """What a restore wrote, and what it could not restore."""

    placed: list[str] = []
    """The files and directories that were restored."""
    warnings: list[tuple[bytes, str]] = []
    """(path, reason) of what could not be restored as it was, such as an owner."""
    damaged: list[tuple[bytes, str]] = []
    """(path, reason) of files that are missing since they are damaged in the store."""
    progress: Progress = msgspec.field(default_factory=Progress)
    """The files and bytes that were restored."""

    @property
    def files(self) -> int:
        """Number of entries of trees, and of dumps."""
        return self.progress.files

    @property
    def size(self) -> int:
        """Bytes."""
        return self.progress.read


_KINDS: Final = {1: "fifo", 2: "char", 4: "dir", 6: "block", 8: "file", 10: "link", 12: "socket"}


class Entry(msgspec.Struct, frozen=True):
    """A file, a directory or another entry of a stored tree; or a dump."""

    path: str
    """Below what was listed. Bytes that are not UTF-8 are as in other file names of Python."""
    record: Child | PartRecord
    """The entry as the store has it, for castore's own functions."""

    @property
    def kind(self) -> str:
        """One of "file", "dir", "link", "fifo", "socket", "char", "block", "dump"."""
        child = self.record
        return _KINDS.get(child.entry.type, "unknown") if isinstance(child, tuple) else "dump"

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self.record.entry.size if isinstance(self.record, tuple) else self.record.size

    @property
    def mode(self) -> int | None:
        """The permissions; None for a dump."""
        return self.record.entry.mode if isinstance(self.record, tuple) else None

    @property
    def mtime_ns(self) -> int | None:
        """When its content last changed, in ns since 1970; None for a dump."""
        return self.record.entry.mtime if isinstance(self.record, tuple) else None

    @property
    def target(self) -> str:
        """What a symbolic link points to; empty for anything else."""
        return os.fsdecode(self.record.entry.extra.target) if isinstance(self.record, tuple) else ""


class Selection:
    """A generation, optionally one of its parts, and optionally a path in that part."""

    def __init__(self, store: Store, record: Selected) -> None:
        self._owner = store
        self.record = record
        """The selection, for castore's own functions."""

    @property
    def generation(self) -> Generation:
        """The generation."""
        return Generation(self._owner, self.record.generation)

    @property
    def part(self) -> Part | None:
        """The part, or None if the whole generation is selected."""
        return None if self.record.part is None else Part(self.generation, self.record.part)

    @property
    def path(self) -> str:
        """The path in the part, or empty for the whole part."""
        return self.record.path

    def open(self) -> io.BufferedReader:
        """Open the dump or the file for reading, as `Part.open` does."""
        reader = StreamReader(self._owner.internal)
        try:
            pieces = read(reader, self.record)
        except BaseException:
            reader.__exit__(None, None, None)
            raise
        return io.BufferedReader(_Raw(self._owner, reader, pieces), 1 << 20)

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes of the dump or the file, in pieces of any length: the fastest way to read all.

        Raises NotFoundError, UsageError, IdentityError, DamageError.
        """
        with StreamReader(self._owner.internal) as reader:
            for piece in read(reader, self.record):
                yield piece
                self._owner.check_open()

    def entries(self, *, recursive: bool = False) -> Iterator[Entry]:
        """Yield what is selected: the parts of a generation, the entries of a directory, or a file itself.

        recursive: also yield the entries of subdirectories.
        Raises NotFoundError, UsageError, IdentityError, DamageError.
        """
        with StreamReader(self._owner.internal) as reader:
            for path, record in list_entries(reader, self.record, recursive=recursive):
                yield Entry(os.fsdecode(path), record)
                self._owner.check_open()

    def entry(self) -> Entry | None:
        """Return the entry at the path, or None for a dump.

        Raises NotFoundError, UsageError, IdentityError, DamageError.
        """
        record = self.record
        if record.part is None:
            raise UsageError("a whole generation is no entry: select a part of it")
        with StreamReader(self._owner.internal) as reader:
            child = child_of(reader, record.part, record.path)
        return None if child is None else Entry(record.path, child)

    def diff(self, newer: Selection) -> Iterator[Difference]:
        """Yield what differs between this and a newer selection.

        A part or path of one of the two also applies to the other, unless that has its own.
        Raises NotFoundError if neither has the path; UsageError, IdentityError, DamageError.
        """
        from castore.services.comparison import differences

        with StreamReader(self._owner.internal) as reader:
            for difference in differences(reader, self.record, newer.record):
                yield difference
                self._owner.check_open()

    def restore(
        self,
        destination: str | os.PathLike[str],
        *,
        change_owner: bool | None = None,
        numeric_ids: bool = False,
        resume: bool = False,
        progress: Watch | None = None,
    ) -> RestoreReport:
        """Restore into a directory that is new or empty, as `Generation.restore` and `Part.restore` do."""
        from castore.services.ownership import stored_ownership
        from castore.services.restore import restore

        counted = counters("restoring", progress)
        owned = stored_ownership(change_owner, numeric=numeric_ids)
        done = restore(
            self._owner.internal, self.record, expanded(os.fspath(destination)), owned, counted, resume=resume
        )
        return RestoreReport(done.placed, done.report.warnings, done.report.damaged, counted)


    def plan_in_place(
        self, directory: str | os.PathLike[str], **options: Unpack[InPlaceOptions]
    ) -> InPlacePlan:
        """Return what would make a directory equal to the selected tree, for `restore_in_place`.

        A selected file is compared with the file `directory`. The options are:
        checksum: also read files that have not changed since the last snapshot read them.
        trust_times: do not compare the content of files of the same size and time.
        range_writes: if false, replace large files in one step instead of overwriting ranges of them.
        trust_recorded: accept the directory that the generation records as the origin of the tree.
        change_owner, numeric_ids: as in `Generation.restore`.
        Raises UsageError, IdentityError, DamageError.
        """
        from castore.api.in_place import make_plan

        return make_plan(self._owner, self.record, directory, options)

    def restore_in_place(
        self, plan: InPlacePlan, *, accept_doubts: bool = False, progress: Watch | None = None
    ) -> RestoreReport:
        """Do what a plan says: everything else in the directory is removed, but not what snapshots leave out.

        accept_doubts: continue although the plan has a `doubt`, which is refused otherwise.
        progress: as in `Service.snapshot`.
        Raises CastoreError; then the directory is unchanged, or the message says how to recover it.
        """
        from castore.api.in_place import carry_out

        return carry_out(self._owner, plan, progress, accept_doubts=accept_doubts)


class _Raw(io.RawIOBase):
    """A file that reads what an iterator yields."""

    def __init__(self, store: Store, reader: StreamReader, pieces: Iterator[bytes]) -> None:
        self._owner = store
        self._reader = reader
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._owner.check_open()
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        memoryview(buffer)[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            self._reader.__exit__(None, None, None)
        super().close()
