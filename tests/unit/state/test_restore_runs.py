"""Estimates of a restore in place, from the last ones on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from castore.state.restore_runs import Work, estimate, record_run

if TYPE_CHECKING:
    from pathlib import Path

SMALL = Work(entries=1000, read=1 << 20, steps=10, written=1 << 16)
LARGE = Work(entries=300_000, read=600 << 20, steps=3000, written=6 << 20)


def test_there_is_no_estimate_without_an_earlier_run(tmp_path: Path) -> None:
    assert estimate(str(tmp_path / "none"), SMALL) is None


def test_an_estimate_of_the_same_work_is_the_median_of_the_last_five_runs(tmp_path: Path) -> None:
    path = str(tmp_path / "folder" / "restores")
    for seconds in [50.0, 1.0, 9.0, 2.0, 3.0, 4.0]:
        record_run(path, SMALL, seconds)
    expected = estimate(path, SMALL)
    assert expected is not None
    assert expected.runs == 5
    assert expected.seconds == pytest.approx(3.0)


def test_an_estimate_grows_with_the_work(tmp_path: Path) -> None:
    path = str(tmp_path / "restores")
    record_run(path, SMALL, 0.5)
    small, large = estimate(path, SMALL), estimate(path, LARGE)
    assert small is not None
    assert large is not None
    assert large.seconds > 5 * small.seconds


@pytest.mark.parametrize("data", [b"", b"[[1]]", b"\xff", b"{}"])
def test_a_damaged_record_is_no_record(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "restores"
    path.write_bytes(data)
    assert estimate(str(path), SMALL) is None
    record_run(str(path), SMALL, 1.0)
    assert estimate(str(path), SMALL) is not None


def test_a_record_that_cannot_be_written_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    record_run(str(tmp_path / "file" / "restores"), SMALL, 1.0)


def test_only_the_last_runs_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "restores"
    for _ in range(40):
        record_run(str(path), SMALL, 1.0)
    length = path.stat().st_size
    record_run(str(path), SMALL, 1.0)
    assert path.stat().st_size == length
