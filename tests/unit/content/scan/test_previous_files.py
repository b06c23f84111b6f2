"""Large files are compared with their previous versions, whatever these were called."""

from __future__ import annotations

import functools
import random

import pytest

from castore.content.scan import cache, large_files, previous_files
from castore.errors import MissingError
from castore.services.sources import Tree
from tests.support.stores import Sandbox

SIZE = 1 << 18


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    monkeypatch.setattr(previous_files, "_LEAST", SIZE // 2)
    monkeypatch.setattr(cache, "_RACY_NS", 0)  # the tests do not wait until a change is old
    return Sandbox(tmp_path / "sandbox", average=4096)


@pytest.fixture
def tree(tmp_path):
    path = tmp_path / "tree"
    path.mkdir()
    return path


@pytest.fixture
def compared(monkeypatch):
    """Return a list of the sizes of the streams that were compared with."""
    sizes = []
    original = large_files.iter_runs_of_chunks

    def recorded(store, ref):
        sizes.append(ref.size)
        return original(store, ref)

    monkeypatch.setattr(large_files, "iter_runs_of_chunks", recorded)
    return sizes


@functools.cache
def rows(seed, night=0, size=SIZE):
    """Return lines of text, about `size` bytes, of which one in 250 differs each night."""
    rng, lines, length = random.Random(seed), [], 0
    while length < size:
        text = f"{rng.getrandbits(200):x}"
        line = f"{len(lines)}\t{night if random.Random(f'{text}{night}').random() < 0.004 else 0}\t{text}\n"
        lines.append(line)
        length += len(line)
    return "".join(lines).encode() + b"end of the dump\n" * (seed + night)


def take(sandbox, tree):
    return sandbox.snapshot("s", {"t": Tree(str(tree))})


def restored(sandbox, path, tmp_path):
    into = tmp_path / "restored"
    sandbox.restore("s@latest:t", into)
    return (into / path).read_bytes()


def test_a_file_that_is_overwritten_is_compared_with_itself(sandbox, tree, compared, tmp_path):
    (tree / "db.sql").write_bytes(rows(1))
    take(sandbox, tree)
    (tree / "db.sql").write_bytes(rows(1, 1))
    take(sandbox, tree)
    assert compared == [len(rows(1))]
    assert restored(sandbox, "db.sql", tmp_path) == rows(1, 1)


def test_a_file_that_is_replaced_by_a_new_one_is_compared_with_its_name(sandbox, tree, compared):
    for seed in (1, 2, 3):
        (tree / f"{seed}.sql").write_bytes(rows(seed))
    take(sandbox, tree)
    (tree / "new").write_bytes(rows(2, 1))
    (tree / "new").rename(tree / "2.sql")
    take(sandbox, tree)
    assert compared == [len(rows(2))]


@pytest.mark.parametrize("kept", [True, False])
def test_a_dump_under_the_name_of_its_night_is_compared_with_the_night_before(sandbox, tree, compared, kept):
    for name, seed in (("db-11-01.sql", 1), ("other-11-01.sql", 2)):
        (tree / name).write_bytes(rows(seed))
    take(sandbox, tree)
    (tree / "other-11-02.sql").write_bytes(rows(2, 1))
    (tree / "db-11-02.sql").write_bytes(rows(1, 1))
    if not kept:
        (tree / "db-11-01.sql").unlink()
        (tree / "other-11-01.sql").unlink()
    take(sandbox, tree)
    assert compared == [len(rows(1)), len(rows(2))]


def test_a_dump_in_the_directory_of_its_night_is_compared_with_the_night_before(sandbox, tree, compared):
    for night in (0, 1, 2):
        (tree / f"11-0{night}").mkdir()
        (tree / f"11-0{night}" / "db.sql").write_bytes(rows(1, night))
        take(sandbox, tree)
    assert compared == [len(rows(1)), len(rows(1, 1))]


def test_rotated_files_are_compared_with_what_they_were(sandbox, tree, compared):
    (tree / "log").write_bytes(rows(1))
    (tree / "log.1").write_bytes(rows(2))
    take(sandbox, tree)
    (tree / "log.1").rename(tree / "log.2")
    (tree / "log").rename(tree / "log.1")
    (tree / "log").write_bytes(rows(3))
    take(sandbox, tree)
    # `log` resembles neither: its name decides, and costs nothing.
    assert compared == [len(rows(1)), len(rows(1)), len(rows(2))]


def test_a_file_that_resembles_none_is_compared_with_none(sandbox, tree, compared):
    (tree / "a").write_bytes(rows(1))
    take(sandbox, tree)
    (tree / "b").write_bytes(random.Random(1).randbytes(SIZE))
    take(sandbox, tree)
    assert compared == []


def test_a_file_without_a_stored_chunk_has_no_chunk_list_read_for_it(sandbox, tree, compared, monkeypatch):
    for seed in (1, 2, 3):
        (tree / f"a{seed}").write_bytes(rows(seed))
    take(sandbox, tree)
    read = []
    original = previous_files.iter_runs_of_chunks
    monkeypatch.setattr(
        previous_files, "iter_runs_of_chunks", lambda store, ref: read.append(ref) or original(store, ref)
    )
    (tree / "b").write_bytes(random.Random(1).randbytes(SIZE))
    take(sandbox, tree)
    assert (read, compared) == ([], [])
    (tree / "c").write_bytes(rows(2, 1))
    take(sandbox, tree)
    assert compared == [len(rows(2))]


def test_a_file_of_another_size_is_no_candidate(sandbox, tree, compared):
    (tree / "a").write_bytes(rows(1))
    take(sandbox, tree)
    (tree / "b").write_bytes(rows(1, size=8 * SIZE))
    take(sandbox, tree)
    assert compared == []


def test_a_previous_version_that_cannot_be_read_costs_nothing(sandbox, tree, monkeypatch, tmp_path):
    (tree / "db-1.sql").write_bytes(rows(1))
    take(sandbox, tree)
    (tree / "db-2.sql").write_bytes(rows(1, 1))

    def fail(*_):
        raise MissingError("a node is missing")

    monkeypatch.setattr(previous_files, "own_streams", fail)
    take(sandbox, tree)
    assert restored(sandbox, "db-2.sql", tmp_path) == rows(1, 1)


def test_an_empty_read_does_not_compare_the_next_file(sandbox, tree, compared):
    """A file that was cut off while it was opened has no stream; what it resembled is not the next one's."""
    (tree / "a").write_bytes(rows(1))
    take(sandbox, tree)
    (tree / "a").write_bytes(b"")
    (tree / "b").write_bytes(random.Random(1).randbytes(SIZE))
    take(sandbox, tree)
    assert compared == []
