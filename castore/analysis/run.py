"""Run an analysis: store the nights in a trial store of each setting, one setting after the other.

Memory is that of a snapshot. Temporary files are those of one trial store: its index, scan cache, nodes and
base cache.
"""

from __future__ import annotations

import gc
import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from castore.analysis.advice import recommend
from castore.analysis.census import Census
from castore.analysis.levels import SAMPLE_BYTES, estimate_levels
from castore.analysis.results import (
    Analysis,
    ChunkClass,
    NightFigures,
    Room,
    Row,
    Sample,
    Scatter,
    WholeFile,
)
from castore.analysis.room import RoomCounter
from castore.analysis.sampling import SampledNight, scaled
from castore.analysis.scatter import measure_scatter
from castore.analysis.settings import Setting
from castore.analysis.trial import trial_store
from castore.analysis.whole_file import whole_files
from castore.errors import ProgramError, UsageError
from castore.process.own_process import release_freed_memory
from castore.progress import Progress, unwatched
from castore.store.format.config import DEFAULT_AVERAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castore.analysis.nights import Night, Stored
    from castore.analysis.trial import TrialStore
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
    return _Run(request).result()


class _Run:
    """One run of an analysis."""

    def __init__(self, request: AnalysisRequest) -> None:
        self._request = request
        self._rows: list[Row] = []
        self._newest: Stored | None = None
        """What the last trial store has of the newest night."""
        self._room = Room()

    def result(self) -> Analysis:
        """Try each setting; return the results."""
        request, rows = self._request, self._rows
        usual = Setting(DEFAULT_AVERAGE)
        counted = usual if usual in request.settings else request.settings[0]
        for setting in request.settings:
            rows.append(self._try(setting, count_room=setting == counted))
            if not rows[0].plain:
                raise UsageError(
                    "nothing to analyze: the files and directories that were named have no content"
                )
        if self._newest is None:
            raise AssertionError("there is at least one setting")
        return Analysis(
            plain=rows[0].nights[-1].plain,
            files=self._newest.files,
            nights=[night.name for night in request.nights],
            rows=rows,
            advice=recommend(rows, request.price),
            whole_files=self._whole_files(),
            sample=self._sample(),
            room=self._room,
            warnings=self._newest.warnings,
        )

    def _sample(self) -> Sample | None:
        """Return what was read of the data, if it was sampled."""
        night = self._request.nights[0]
        if self._newest is None or not isinstance(night, SampledNight):
            return None
        return Sample(read=self._newest.plain, copied=night.survey.copied)

    def _whole_files(self) -> list[WholeFile]:
        """Return what zstd makes of the nights, if each is one file."""
        files = [night.file for night in self._request.nights]
        paths = [file for file in files if file is not None]
        if len(paths) < len(files) or len(files) == 1:
            return []
        self._request.watch("zstd --patch-from", Progress())
        try:
            return whole_files(paths)
        except ProgramError:
            return []  # it printed why; all other figures are complete

    def _try(self, setting: Setting, *, count_room: bool) -> Row:
        """Return the figures of one setting. count_room: also count what takes the room."""
        levels = self._request.levels and setting.peer is None
        census = Census(SAMPLE_BYTES if levels else 0)
        nights, index, scatter, seconds = self._measure(setting, census, count_room=count_room)
        # Most memory of the trial store is freed now, and the next work needs other sizes.
        gc.collect()
        release_freed_memory()
        stored = sum(night.stored for night in nights)
        row = Row(
            average=setting.average,
            deltas=setting.deltas,
            plain=sum(night.plain for night in nights),
            unique=sum(night.unique for night in nights),
            stored=stored,
            index=index,
            chunks=census.full_chunks + census.delta_chunks,
            delta_chunks=census.delta_chunks,
            seconds=round(seconds, 3),
            mb_per_s=round(nights[0].plain / 1e6 / max(nights[0].seconds, 1e-9), 1),
            scatter=scatter,
            simulates=setting.peer.name if setting.peer is not None else "",
            nights=nights,
            sizes=[ChunkClass(*found) for found in census.classes()],
            levels=estimate_levels(census, stored) if levels else [],
        )
        night = self._request.nights[0]
        return scaled(row, night) if isinstance(night, SampledNight) else row

    def _measure(
        self, setting: Setting, census: Census, *, count_room: bool
    ) -> tuple[list[NightFigures], int, Scatter, float]:
        """Store all nights; return their figures, the bytes of the index, the scatter, and the seconds."""
        folder = os.path.join(self._request.folder, "trial")
        began = time.monotonic()
        try:
            with trial_store(folder, setting, census) as trial:
                empty = trial.storage.total
                nights, self._newest = self._store_nights(trial, setting)
                nights[0].stored += empty
                seconds = time.monotonic() - began
                if count_room:
                    counter = RoomCounter(trial)
                    self._request.nights[-1].count_room(trial, counter)
                    self._room = counter.result()
                return nights, trial.index.size(), measure_scatter(trial, self._newest.roots), seconds
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _store_nights(self, trial: TrialStore, setting: Setting) -> tuple[list[NightFigures], Stored]:
        """Store all nights; return the figures of each, and what the store has of the newest."""
        # The first setting knows how much each night has.
        first = self._rows[0].nights if self._rows else None
        figures: list[NightFigures] = []
        for number, night in enumerate(self._request.nights):
            expected = first[number].plain if first is not None else 0

            def watch(_part: str, progress: Progress, expected: int = expected) -> None:
                progress.total = progress.total or expected
                number = f"{len(self._rows) + 1} of {len(self._request.settings)}"
                self._request.watch(f"{number}: {setting.label}", progress)

            before, began = trial.storage.total, time.monotonic()
            stored = night.store(trial, watch)
            seconds = round(time.monotonic() - began, 3)
            added = trial.storage.total - before
            figures.append(NightFigures(night.name, stored.plain, stored.unique, added, seconds))
        return figures, stored
