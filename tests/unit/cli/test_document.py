"""The JSON document of a run: a list is written while its elements are found."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from castore.cli import document
from castore.errors import DamageError


@contextlib.contextmanager
def standard_output(path: Path) -> Iterator[Path]:
    """Let descriptor 1 be a file, as it is the pipe of a run."""
    kept = os.dup(1)
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.dup2(fd, 1)
    os.close(fd)
    try:
        yield path
    finally:
        os.dup2(kept, 1)
        os.close(kept)


ROWS: list[Any] = [{"path": "a\udcff", "n": 1 << 60}, {"path": b"b\xff"}, {"plain": [1, 2.5, None, (3,)]}, "text"]


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_list_that_is_written_piecemeal_is_the_same_document(tmp_path: Path, count: int) -> None:
    with standard_output(tmp_path / "out") as output:
        run = document.Document()
        document.print_json_list(iter(ROWS[:count]))
        run.finish()
        assert output.read_text() == document.as_text(ROWS[:count]) + "\n"
        json.loads(output.read_text())


def test_elements_are_written_before_all_of_them_are_known(tmp_path: Path) -> None:
    with standard_output(tmp_path / "out") as output:
        run = document.Document()

        def rows() -> Iterator[dict[str, str]]:
            for number in range(1000):
                yield {"path": f"{number:01000}"}
            assert output.stat().st_size > 900_000

        document.print_json_list(rows())
        run.finish()
        assert len(json.loads(output.read_text())) == 1000


def test_an_error_after_some_elements_is_the_last_element(tmp_path: Path) -> None:
    with standard_output(tmp_path / "out") as output:
        run = document.Document()

        def rows() -> Iterator[int]:
            yield 1
            yield 2
            raise DamageError("the rest")

        with pytest.raises(DamageError):
            document.print_json_list(rows())
        run.finish({"code": 4, "kind": "damage", "message": "the rest"})
        assert json.loads(output.read_text()) == [1, 2, {"error": {"code": 4, "kind": "damage", "message": "the rest"}}]


def test_an_error_before_the_first_element_is_the_document(tmp_path: Path) -> None:
    with standard_output(tmp_path / "out") as output:
        run = document.Document()
        with pytest.raises(ZeroDivisionError):
            document.print_json_list(1 // 0 for _ in range(1))
        run.finish({"code": 1})
        assert json.loads(output.read_text()) == {"error": {"code": 1}}
