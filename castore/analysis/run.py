"""Run an analysis: store the nights in a trial store of each setting, one setting after the other.

Memory is that of a snapshot. Temporary files are those of one trial store: its index, scan cache, nodes and
base cache.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from castore.analysis.advice import recommend
from castore.analysis.census import Census
from castore.analysis.levels import SAMPLE_BYTES, estimate_levels
from castore.analysis.results import Analysis, ChunkClass, NightFigures, Row, WholeFile
from castore.analysis.scatter import measure_scatter
from castore.analysis.trial import trial_store
from castore.analysis.whole_file import whole_files
from castore.errors import ProgramError, UsageError
from castore.progress import Progress, unwatched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castore.analysis.nights import Night, Stored
    from castore.analysis.settings import Setting
    from castore.progress import Watch


@dataclass(frozen=True, kw_only=True)
class AnalysisRequest:
    """What is analysed, and how."""

    nights: Sequence[Night]
    """The states of the data, the oldest first."""
    settings: Sequence[Setting]
    folder: str
    """A directory for temporary files."""
    levels: bool = True
    """Whether to estimate other levels of zstd."""
    price: float | None = None
    """Price of a gigabyte (10^9 bytes) per month."""
    watch: Watch = unwatched
    """Called when a setting begins to store one more night."""


def run_analysis(request: AnalysisRequest) -> Analysis:
    """Try each setting, and recommend one. Raises UsageError, ProgramError, StorageError."""
    if not request.nights or not request.settings:
        raise UsageError("nothing to analyze: name at least one file or directory, and one chunk size")
    rows: list[Row] = []
    newest: Stored | None = None
    for setting in request.settings:
        row, newest = _try_setting(request, setting, rows[0] if rows else None)
        rows.append(row)
        if not row.plain:
            raise UsageError("nothing to analyze: the files and directories that were named have no content")
    files = [night.file for night in request.nights]
    paths = [file for file in files if file is not None]
    if newest is None:
        raise AssertionError("there is at least one setting")
    return Analysis(
        plain=rows[0].nights[-1].plain,
        files=newest.files,
        nights=[night.name for night in request.nights],
        rows=rows,
        advice=recommend(rows, request.price),
        whole_files=_whole_files(request, paths) if len(paths) == len(files) > 1 else [],
        warnings=newest.warnings,
    )


def _whole_files(request: AnalysisRequest, paths: Sequence[str]) -> list[WholeFile]:
    request.watch("zstd --patch-from", Progress())
    try:
        return whole_files(paths)
    except ProgramError:
        return []  # it printed why; all other figures are complete


def _try_setting(request: AnalysisRequest, setting: Setting, first: Row | None) -> tuple[Row, Stored]:
    """Return the figures of one setting, and what it has of the newest night.

    first: the row of the first setting, which knows how much each night has.
    """
    folder = os.path.join(request.folder, "trial")
    levels = request.levels and setting.peer is None
    census = Census(SAMPLE_BYTES if levels else 0)
    began = time.monotonic()
    try:
        with trial_store(folder, setting, census) as trial:
            empty = before = trial.storage.total
            figures: list[NightFigures] = []
            for number, night in enumerate(request.nights):

                def watch(part: str, progress: Progress, number: int = number) -> None:
                    if first is not None and not progress.total:
                        progress.total = first.nights[number].plain
                    del part
                    request.watch(setting.label, progress)

                started = time.monotonic()
                stored = night.store(trial, watch)
                seconds = time.monotonic() - started
                after = trial.storage.total
                figures.append(NightFigures(night.name, stored.plain, stored.unique, after - before, seconds))
                before = after
            seconds = time.monotonic() - began
            scatter = measure_scatter(trial, stored.roots)
            index = trial.index.size()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures[0].stored += empty
    total = sum(night.stored for night in figures)
    row = Row(
        average=setting.average,
        deltas=setting.deltas,
        plain=sum(night.plain for night in figures),
        unique=sum(night.unique for night in figures),
        stored=total,
        index=index,
        chunks=census.full_chunks + census.delta_chunks,
        delta_chunks=census.delta_chunks,
        seconds=round(seconds, 3),
        mb_per_s=round(figures[0].plain / 1e6 / max(figures[0].seconds, 1e-9), 1),
        scatter=scatter,
        simulates=setting.peer.name if setting.peer is not None else "",
        nights=figures,
        sizes=[ChunkClass(*found) for found in census.classes()],
        levels=estimate_levels(census, total) if levels else [],
    )
    return row, stored
