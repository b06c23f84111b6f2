"""Which directories, types of files and tables take the room."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import castore
from castore.analysis import room
from castore.analysis.room import tables_of


def rows(table: str, count: int, quote: str = "") -> str:
    rng = random.Random(table)
    return "".join(
        f"INSERT INTO {quote}{table}{quote} VALUES ({n}, '{rng.getrandbits(200):x}');\n" for n in range(count)
    )


def test_the_tables_of_a_dump_are_found_across_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_PIECE", 700)
    monkeypatch.setattr(room, "_HEAD", 1500)
    text = "-- a dump\nCREATE TABLE `page` (id int);\n" + rows("page", 200, "`")
    second = len(text)
    text += "COPY public.user (id) FROM stdin;\n" + "1\n" * 500 + "\\.\n"
    third = len(text)
    text += rows("log", 300)
    (tmp_path / "dump").write_text(text)
    found = list(tables_of(str(tmp_path / "dump")))
    assert [name for _, name in found] == ["page", "public.user", "log"]
    assert [abs(at - wanted) <= 1 for (at, _), wanted in zip(found[1:], (second, third), strict=True)] == [True, True]
    (tmp_path / "noise").write_bytes(random.Random(1).randbytes(100_000))
    assert list(tables_of(str(tmp_path / "noise"))) == []


def test_each_chunk_counts_once_for_the_content_that_has_it_first(tmp_path: Path) -> None:
    rng = random.Random(4)
    noise = rng.randbytes(300_000)
    for folder in ("a/deep", "b", "c"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    (tmp_path / "data" / "a" / "deep" / "big.JPG").write_bytes(noise)
    (tmp_path / "data" / "b" / "copy.jpg").write_bytes(noise)
    for number in range(20):
        (tmp_path / "data" / "c" / f"{number}.py").write_bytes(rng.randbytes(2000))
        (tmp_path / "data" / "c" / f"{number}").write_bytes(rng.randbytes(1000))
    (tmp_path / "dump.sql").write_text(rows("page", 3000) + rows("log", 9000))
    found = castore.analyze(
        tmp_path / "data", tmp_path / "dump.sql", average_chunk_sizes=[4096], levels=False, peers=False
    )
    directories = {one.name.removeprefix(f"{tmp_path}/data"): one for one in found.room.directories}
    types = {one.name: one for one in found.room.types}
    tables = {one.name: one for one in found.room.tables}
    first, second = directories["/a/deep"], directories["/b"]
    assert {first.plain // 1000, second.plain // 1000} == {300}
    assert first.stored + second.stored == pytest.approx(303_000, rel=0.03)
    assert min(first.stored, second.stored) < 3000
    assert types[".jpg"].plain == 600_000
    assert types[".jpg"].stored == pytest.approx(303_000, rel=0.03)
    assert types[".py"].plain == 40_000
    assert types[".py"].stored == pytest.approx(2 * types["(no suffix)"].stored, rel=0.01)
    assert tables["log"].plain == pytest.approx(3 * tables["page"].plain, rel=0.05)
    assert tables["log"].stored == pytest.approx(3 * tables["page"].stored, rel=0.1)
    assert sum(one.plain for one in found.room.tables) == (tmp_path / "dump.sql").stat().st_size
