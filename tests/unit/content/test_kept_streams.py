"""Which small-file streams a directory keeps."""

from __future__ import annotations

from castore.content.scan.kept_streams import streams_to_drop
from castore.kernel.small_streams import KeptFiles


def files(used: list[int], to_read: int = 5, unsure: list[int] | None = None) -> KeptFiles:
    kept = KeptFiles.empty(bytearray())
    kept.used, kept.to_read, kept.unsure = used, to_read, unsure or [0] * len(used)
    return kept


def test_streams_that_are_mostly_used_are_kept() -> None:
    assert streams_to_drop([1000, 10], files([990, 10])) == set()
    assert streams_to_drop([1000, 10, 0], files([500, 10, 0])) == set()


def test_files_of_a_stream_that_is_mostly_unused_are_read_again() -> None:
    assert streams_to_drop([1000, 10], files([499, 10])) == {0}


def test_small_streams_are_merged_when_there_are_many_and_a_large_one_stays() -> None:
    assert streams_to_drop([10_000, *[10] * 20], files([9_000, *[10] * 20])) == {*range(1, 21)}


def test_all_streams_are_merged_when_the_largest_is_not_the_majority() -> None:
    assert streams_to_drop([100] * 20, files([100] * 20)) == {*range(20)}


def test_a_stream_whose_files_may_have_changed_is_read_again_as_a_whole() -> None:
    assert streams_to_drop([1000, 10], files([900, 10], 100, [100, 0])) == {0}
    assert streams_to_drop([1000, 10], files([1000, 0], 10, [0, 10])) == {1}


def test_it_is_not_if_that_would_make_another_stream() -> None:
    assert streams_to_drop([1000, 10], files([900, 10], 101, [100, 0])) == set(), "a file changed"
    assert streams_to_drop([1000, 100], files([900, 90], 110, [100, 10])) == set(), "two streams become one"
    assert streams_to_drop([1100, 10], files([900, 10], 100, [100, 0])) == set(), "a file was deleted"
