"""The nights that are analysed: each is stored in every trial store, as a snapshot stores it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from castore.engines.file import File
from castore.services.snapshot import SnapshotRequest, snapshot
from castore.services.sources import EngineSource, program_source
from castore.store.reachability import roots_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from castore.analysis.trial import TrialStore
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

    @property
    def file(self) -> str | None:
        """The file whose content it is; None if it is anything else."""
        (source, *more) = self._sources.values()
        if more or not isinstance(source, EngineSource) or not isinstance(source.engine, File):
            return None
        return source.engine.path

    def store(self, trial: TrialStore, watch: Watch) -> Stored:
        """Take a snapshot of the sources."""
        tallies: dict[str, Progress] = {}

        def noted(part: str, progress: Progress) -> None:
            tallies[part] = progress
            watch(part, progress)

        request = SnapshotRequest(
            service=_SERVICE, sources=self._sources, leave_out=self._leave_out, watch=noted
        )
        taken = snapshot(trial, request)
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


def spool_program(argv: Sequence[str], path: str, progress: Progress) -> None:
    """Run a program once, and write its output to the file `path`, for all settings to read.

    Raises ProgramError, OSError.
    """
    engine = program_source(tuple(argv)).engine
    buffer = memoryview(bytearray(_PIECE))
    with open(path, "xb", buffering=0) as file, engine.dump() as dump:
        while count := dump.readinto(buffer):
            rest = buffer[:count]
            while rest:
                rest = rest[file.write(rest) :]
            progress.read += count
