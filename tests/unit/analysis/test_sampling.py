"""A sample gives the figures of all data, within its error bound."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

import castore
from castore.analysis import sampling
from castore.analysis.survey import survey
from castore.progress import Progress

_MB = 1_000_000


def make_data(top: Path) -> None:
    """Create text, noise and small files, and a copy of a large one."""
    rng = random.Random(1)
    words = [f"{rng.getrandbits(36):x}" for _ in range(2000)]
    for name in ("text", "noise", "small"):
        (top / name).mkdir(parents=True)
    for number in range(8):
        (top / "text" / f"{number}").write_text(" ".join(rng.choices(words, k=250_000)))
        (top / "noise" / f"{number}").write_bytes(rng.randbytes(2 * _MB))
    for number in range(400):
        (top / "small" / f"{number}").write_text(" ".join(rng.choices(words, k=1000)))
    (top / "noise" / "copy").write_bytes((top / "noise" / "0").read_bytes())


def test_a_sample_estimates_all_data_within_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_data(tmp_path / "data")
    monkeypatch.setattr(sampling, "WINDOW", 1 << 18)
    options = {"average_chunk_sizes": [16384], "levels": False, "peers": False}
    exact = castore.analyze(tmp_path / "data", **options)
    found = castore.analyze(tmp_path / "data", sample=12 * _MB, **options)
    assert found.plain == exact.plain
    assert found.sample is not None
    assert found.sample.copied == 2 * _MB
    assert found.sample.read < 0.6 * exact.plain
    for one, other in zip(exact.rows, found.rows, strict=True):
        assert 0 < other.error < other.stored // 2
        assert abs(one.stored - other.stored) < 2 * other.error
        assert one.unique == pytest.approx(other.unique, rel=0.1)
        assert one.chunks == pytest.approx(other.chunks, rel=0.3)
        assert other.scatter is None


def test_copies_of_large_files_are_found_and_other_names_are_not(tmp_path: Path) -> None:
    rng = random.Random(2)
    data = rng.randbytes(2 * _MB)
    (tmp_path / "one").write_bytes(data)
    (tmp_path / "link").hardlink_to(tmp_path / "one")
    (tmp_path / "copy").write_bytes(data)
    (tmp_path / "other").write_bytes(data[:-1] + b"\0")
    (tmp_path / "small").write_bytes(data[:1000])
    found = survey([str(tmp_path)], frozenset(), Progress())
    assert found.copied == 2 * _MB
    assert found.plain == 6 * _MB + 1000


def test_all_data_is_listed_twice_whatever_the_number_of_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_data(tmp_path / "data")
    monkeypatch.setattr(sampling, "WINDOW", 1 << 18)
    listed: list[object] = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or real(folder))
    found = castore.analyze(
        tmp_path / "data", sample=6 * _MB, average_chunk_sizes=[16384, 65536], levels=False, peers=False
    )
    assert len(found.rows) == 4
    data = os.fsencode(tmp_path / "data")
    assert sum(os.fsencode(folder).startswith(data) for folder in listed if not isinstance(folder, int)) == 2 * 4


def test_small_data_is_not_sampled(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" * 100_000)
    with pytest.raises(castore.UsageError, match="needs at least"):
        castore.analyze(tmp_path, sample=1 << 30)
    with pytest.raises(castore.UsageError, match="leave out nights"):
        castore.analyze(tmp_path, tmp_path, nights=True, sample=1 << 30)
