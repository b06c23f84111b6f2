"""The nights that are analysed: each is stored in every trial store, as a snapshot stores it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from castore.engines.file import File
from castore.errors import CastoreError
from castore.fs.durable import write_all
from castore.services.last_scan import last_scan
from castore.services.snapshot import SnapshotRequest, snapshot
from castore.services.sources import EngineSource, Tree, left_out, program_source, rules_of
from castore.store.reachability import roots_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from castore.analysis.room import RoomCounter
    from castore.analysis.trial import TrialStore
    from castore.model.generation import Generation
    from castore.model.refs import Ref
    from castore.progress import Progress, Watch
    from castore.services.sources import Source

_SERVICE: Final = "analysis"
_PIECE: Final = 1 << 20


@dataclass
class Stored:
    """What a trial store has of one night."""

    plain: int
    unique: int
    files: int
    roots: list[Ref]
    warnings: list[tuple[str, bytes, str]] = field(default_factory=list)
    """(part, path, reason) of files that could not be read."""


class Night(ABC):
    """The state of the data at one time."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def file(self) -> str | None:
        """The file whose content it is; None if it is anything else."""
        return None

    def count_room(self, trial: TrialStore, counter: RoomCounter) -> None:  # noqa: B027 - optional
        """Count what its directories, files and tables take in the trial store where it was just stored."""

    @abstractmethod
    def store(self, trial: TrialStore, watch: Watch) -> Stored:
        """Store this night in a trial store, after the nights before it. Raises CastoreError."""


class LiveNight(Night):
    """Files and directories of this machine, as parts of a snapshot."""

    def __init__(self, name: str, sources: Mapping[str, Source], leave_out: Sequence[str]) -> None:
        """sources: the parts by name. leave_out: directories that trees store empty."""
        super().__init__(name)
        self._sources = sources
        self._leave_out = leave_out
        self._taken: Generation | None = None
        """The generation in the trial store of the present setting."""

    @property
    def file(self) -> str | None:
        """The file whose content it is; None if it is anything else."""
        source, *more = self._sources.values()
        return None if more else _file_of(source)

    def store(self, trial: TrialStore, watch: Watch) -> Stored:
        """Take a snapshot of the sources."""
        tallies: dict[str, Progress] = {}

        def noted(part: str, progress: Progress) -> None:
            tallies[part] = progress
            watch(part, progress)

        self._taken = None
        request = SnapshotRequest(
            service=_SERVICE, sources=self._sources, leave_out=self._leave_out, watch=noted
        )
        taken = self._taken = snapshot(trial, request)
        warnings = [
            (part, path, reason) for part, tally in tallies.items() for path, reason in tally.warnings
        ]
        return Stored(
            plain=taken.size,
            unique=sum(part.new_bytes for part in taken.parts),
            files=sum(part.files for part in taken.parts),
            roots=roots_of(taken),
            warnings=warnings,
        )

    def count_room(self, trial: TrialStore, counter: RoomCounter) -> None:
        """Count what its directories, files and tables take."""
        if self._taken is None:
            return
        skip = left_out(trial, self._leave_out)
        for part in self._taken.parts:
            source = self._sources[part.name]
            if isinstance(source, Tree):
                with last_scan(trial, _SERVICE, part.name, source.path, rules_of(source, skip)) as scan:
                    if scan is not None:
                        counter.add_tree(source.path, scan)
            elif part.content is not None:
                path = _file_of(source)
                counter.add_dump(os.path.basename(path or part.name), path, part.content)


def _file_of(source: Source) -> str | None:
    """Return the file that a part is; None if it is anything else."""
    if isinstance(source, EngineSource) and isinstance(source.engine, File):
        return source.engine.path
    return None


def spool_program(argv: Sequence[str], path: str, progress: Progress) -> None:
    """Run a program once, and write its output to the file `path`, for all settings to read.

    Raises ProgramError, CastoreError if there is no room for it.
    """
    engine = program_source(tuple(argv)).engine
    buffer = memoryview(bytearray(_PIECE))
    with open(path, "xb", buffering=0) as file, engine.dump() as dump:
        while count := dump.readinto(buffer):
            try:
                write_all(file.fileno(), buffer[:count])
            except OSError as error:
                raise CastoreError(
                    f"cannot keep the output of {argv[0]} in {os.path.dirname(path)}: {error.strerror}; set "
                    "TMPDIR to a directory that has room for it"
                ) from None
            progress.read += count
