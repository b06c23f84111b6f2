"""Analyze data: what it would take in a store with other settings."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from castore.analysis.settings import AVERAGES, settings_of
from castore.api.generation import Generation
from castore.errors import UsageError
from castore.process.scratch_dir import scratch_folder
from castore.progress import Progress, unwatched
from castore.state.directories import absolute
from castore.store.format.config import MAX_AVERAGE, MIN_AVERAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castore.analysis.nights import Night
    from castore.analysis.results import Analysis
    from castore.progress import Watch
    from castore.services.sources import Source

_SCRATCH: Final = "castore-analysis-"


def analyze(
    *data: str | os.PathLike[str] | Generation,
    program: Sequence[str] = (),
    nights: bool = False,
    sample: int = 0,
    average_chunk_sizes: Sequence[int] = AVERAGES,
    levels: bool = True,
    peers: bool = True,
    price: float | None = None,
    leave_out: Sequence[str] = (),
    progress: Watch | None = None,
) -> Analysis:
    """Return what data would take in a store, for several settings; store nothing.

    data: paths of files and directories, or generations of a store, the oldest first, which needs its
        identity. Each generation is one night.
    program: a program whose output is analyzed instead, as a list of arguments. It runs once.
    nights: the paths are the states of one part in successive nights, the oldest first.
    sample: read about this number of bytes, and estimate the figures of all data with an error bound; 0: read
        everything.
    average_chunk_sizes: mean lengths of chunks to try, in bytes.
    peers: simulate the chunking parameters of borg, restic, casync and bupstash, with castore's cutter.
    levels: estimate what other levels of zstd would give.
    price: price of a gigabyte (10^9 bytes) per month, for the forecast.
    leave_out: directories that trees store empty.
    progress: called with the name and the counters of each task, or None.
    Temporary files are created in TMPDIR, and deleted at the end. Raises UsageError, ProgramError,
    StorageError.
    """
    from castore.analysis.run import AnalysisRequest, run_analysis

    if sample and (nights or program):
        raise UsageError("a sample is of files and directories: leave out nights, and the program")
    _check(average_chunk_sizes)
    watch = progress or unwatched
    with scratch_folder(_SCRATCH) as folder:
        excluded = [*leave_out, folder]
        request = AnalysisRequest(
            nights=_sampled(data, excluded, sample, folder, watch)
            if sample
            else _nights(data, program, folder, excluded, watch, apart=nights),
            settings=settings_of(tuple(dict.fromkeys(average_chunk_sizes)), peers=peers),
            folder=folder,
            levels=levels,
            price=price,
            watch=watch,
        )
        return run_analysis(request)


def _check(averages: Sequence[int]) -> None:
    for average in averages:
        if not MIN_AVERAGE <= average <= MAX_AVERAGE:
            raise UsageError(f"chunks cannot have {average} bytes on average: {MIN_AVERAGE} to {MAX_AVERAGE}")


def _nights(
    data: Sequence[str | os.PathLike[str] | Generation],
    program: Sequence[str],
    folder: str,
    leave_out: Sequence[str],
    watch: Watch,
    *,
    apart: bool,
) -> list[Night]:
    """Return the nights to analyze. Raises UsageError, ProgramError."""
    from castore.analysis.nights import LiveNight, spool_program
    from castore.services.sources import file_source

    if program:
        if data:
            raise UsageError("give either paths or a program to analyze, not both")
        counted, path = Progress(), os.path.join(folder, "output")
        watch("running the program", counted)
        spool_program(program, path, counted)
        return [LiveNight("output", {"output": file_source(path)}, leave_out)]
    generations = [item for item in data if isinstance(item, Generation)]
    if generations:
        return _stored(generations, len(data))
    names = [os.fspath(path) for path in data if not isinstance(path, Generation)]
    sources = [(name, _source(name, any_top=apart)) for name in names]
    if apart:
        return [
            LiveNight(os.path.basename(path.rstrip("/")) or path, {"night": source}, leave_out)
            for path, source in sources
        ]
    parts = {f"part-{number}": source for number, (_, source) in enumerate(sources, 1)}
    return [LiveNight("now", parts, leave_out)]


def _sampled(
    data: Sequence[str | os.PathLike[str] | Generation],
    leave_out: Sequence[str],
    sample: int,
    folder: str,
    watch: Watch,
) -> list[Night]:
    """Return a sample of files and directories as one night. Raises UsageError."""
    from castore.analysis.sampling import SampledNight
    from castore.analysis.survey import survey
    from castore.services.sources import directory_ids

    paths = [absolute(os.fspath(path)) for path in data if not isinstance(path, Generation)]
    if len(paths) < len(data):
        raise UsageError("a sample is of files and directories, not of generations")
    for path in paths:
        _source(path)
    skipped = frozenset(directory_ids(leave_out))
    tally = Progress()
    watch("listing", tally)
    return [SampledNight(paths, skipped, survey(paths, skipped, tally), sample, folder)]


def _stored(generations: Sequence[Generation], given: int) -> list[Night]:
    """Return generations as nights. Raises IdentityError without the identity."""
    from castore.analysis.stored_nights import StoredNight

    if len(generations) < given:
        raise UsageError("give either paths or generations to analyze, not both")
    nights: list[StoredNight] = []
    for generation in generations:
        source = generation.opened
        source.keys.identity()
        nights.append(StoredNight(source, generation.record, nights[-1] if nights else None))
    return [*nights]


def _source(path: str, *, any_top: bool = False) -> Source:
    from castore.services.sources import Tree, file_source

    full = absolute(path)
    if not os.path.lexists(full):
        raise UsageError(f"cannot analyze {path}: no such file or directory")
    return Tree(full, any_top=any_top) if os.path.isdir(full) else file_source(full)
