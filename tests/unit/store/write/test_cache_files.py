"""The files of the base cache: what is added is read; what is old, unused or unusable is not kept."""

from __future__ import annotations

import contextlib
import os
import resource
import struct
import time

import pytest

from castore.model.refs import PackId
from castore.store.write.base_cache import BaseCache

DAY = 86400
OVERHEAD = 16
FIRST, SECOND, THIRD = (PackId(bytes([number]) * 32) for number in (1, 2, 3))
PAYLOAD = bytes(range(256)) * 32


@pytest.fixture
def cache(tmp_path):
    cache = BaseCache(str(tmp_path / "cache"))
    yield cache
    cache.close()


def add(cache, pack, payload=PAYLOAD, *, days=0):
    """Add a file with one record, last changed some days ago."""
    writer = cache.create(OVERHEAD)
    writer.add(100, payload)
    writer.commit(cache.path_of(pack))
    then = time.time() - days * DAY
    os.utime(cache.path_of(pack), (then, then))


def begin(cache, *, days):
    """Leave an unfinished file, as a killed snapshot does."""
    path = f"{cache.path_of(FIRST)}.part"
    cache.create(OVERHEAD).abort()
    with open(path, "wb") as file:
        file.write(PAYLOAD)
    os.utime(path, (time.time() - days * DAY,) * 2)
    return path


def read(cache, pack, length=8192):
    return cache.read(pack, 100, length + OVERHEAD)


@contextlib.contextmanager
def no_room():
    """Let no file of this process grow."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_payload_is_read_before_and_after_its_file_is_finished(cache):
    writer = cache.create(OVERHEAD)
    large = os.urandom(1 << 20)
    writer.add(100, PAYLOAD)
    assert writer.read(100, len(PAYLOAD)) == PAYLOAD
    writer.add(20_000, large)
    assert writer.read(100, len(PAYLOAD)) == PAYLOAD
    writer.add(20_000 + len(large), PAYLOAD)
    assert writer.read(20_000, len(large)) == large
    across = writer.read(20_000 + len(large) - 10, 20)
    assert across == large[-10:] + PAYLOAD[:10]
    writer.commit(cache.path_of(FIRST))
    assert read(cache, FIRST) == PAYLOAD
    assert cache.read(FIRST, 20_000, len(large) + OVERHEAD) == large
    assert cache.read(FIRST, 20_000 + len(large), len(PAYLOAD) + OVERHEAD) == PAYLOAD
    assert cache.packs() == [FIRST]


def test_a_file_that_is_discarded_leaves_nothing(cache, tmp_path):
    writer = cache.create(OVERHEAD)
    writer.add(100, PAYLOAD)
    writer.abort()
    assert writer.read(100, len(PAYLOAD)) is None
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_space_a_file_is_discarded_and_the_snapshot_goes_on(cache, tmp_path):
    writer = cache.create(OVERHEAD)
    with no_room():
        writer.add(100, bytes(1 << 20))
        assert writer.read(100, 10) is None
        writer.add(100 + (1 << 20), PAYLOAD)
        writer.commit(cache.path_of(FIRST))
    assert list((tmp_path / "cache").iterdir()) == []
    assert read(cache, FIRST) is None


def test_without_space_at_the_end_no_incomplete_file_is_kept(cache, tmp_path):
    writer = cache.create(OVERHEAD)
    writer.add(100, PAYLOAD)
    with no_room():
        writer.commit(cache.path_of(FIRST))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_is_full_or_switched_off_takes_no_files(cache):
    add(cache, FIRST)
    cache.limit = cache.size()
    assert cache.create(OVERHEAD) is None
    cache.limit += 1
    cache.create(OVERHEAD).abort()
    cache.limit = 0
    assert cache.create(OVERHEAD) is None
    assert read(cache, FIRST) is None


def test_a_record_that_its_file_lacks_is_not_cached(cache):
    add(cache, FIRST)
    assert read(cache, FIRST, len(PAYLOAD) + 1) is None
    assert cache.read(FIRST, 100, OVERHEAD - 1) is None
    assert read(cache, SECOND) is None


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, b"C"), (8, struct.pack("<I", 2)), (16, struct.pack("<Q", int(time.time()) - 91 * DAY))],
    ids=["magic", "version", "created"],
)
def test_a_file_of_another_kind_or_of_more_than_90_days_is_not_read(cache, at, value):
    add(cache, FIRST)
    with open(cache.path_of(FIRST), "r+b") as file:
        file.seek(at)
        file.write(value)
    assert read(cache, FIRST) is None


def test_a_file_of_less_than_90_days_is_read(cache):
    add(cache, FIRST)
    with open(cache.path_of(FIRST), "r+b") as file:
        file.seek(16)
        file.write(struct.pack("<Q", int(time.time()) - 89 * DAY))
    assert read(cache, FIRST) == PAYLOAD


def test_a_link_or_an_empty_file_is_not_read(cache):
    add(cache, FIRST)
    os.symlink(cache.path_of(FIRST), cache.path_of(SECOND))
    with open(cache.path_of(THIRD), "wb"):
        pass
    assert [read(cache, pack) for pack in (FIRST, SECOND, THIRD)] == [PAYLOAD, None, None]


def test_used_files_are_kept_up_to_90_days(cache):
    add(cache, FIRST, days=89)
    add(cache, SECOND, days=91)
    cache.evict({FIRST: 1 << 20, SECOND: 1 << 20})
    assert cache.packs() == [FIRST]


def test_unused_files_are_kept_for_a_day_as_another_snapshot_may_need_them(cache):
    add(cache, FIRST, days=0.9)
    add(cache, SECOND, days=1.1)
    cache.evict({})
    assert cache.packs() == [FIRST]


def test_a_file_of_which_less_than_a_16th_is_used_is_removed(cache):
    for pack in (FIRST, SECOND):
        add(cache, pack, days=2)
    size = os.stat(cache.path_of(FIRST)).st_blocks * 512
    cache.evict({FIRST: size // 16, SECOND: size // 16 - 1})
    assert cache.packs() == [FIRST]


def test_beyond_the_limit_the_oldest_files_are_removed_first(cache):
    for days, pack in enumerate((SECOND, FIRST, THIRD)):
        add(cache, pack, days=days)
    cache.limit = cache.size() - 1
    cache.evict(dict.fromkeys((FIRST, SECOND, THIRD), 1 << 20))
    assert sorted(cache.packs()) == [FIRST, SECOND]


def test_a_file_that_is_removed_leaves_room_for_older_ones(cache):
    add(cache, SECOND, bytes(1 << 18), days=2)
    add(cache, FIRST, days=3)
    cache.limit = 1 << 16
    cache.evict({FIRST: 1 << 20, SECOND: 1 << 20})
    assert cache.packs() == [FIRST]


def test_an_unfinished_file_is_removed_after_a_day(cache):
    path = begin(cache, days=0.9)
    cache.evict({})
    assert os.path.exists(path)
    os.utime(path, (time.time() - 1.1 * DAY,) * 2)
    cache.evict({})
    assert not os.path.exists(path)


def test_a_trimmed_file_has_the_records_that_are_kept_and_no_others(cache):
    writer = cache.create(OVERHEAD)
    for number in range(3):
        writer.add(100 + number * 10_000, bytes([number + 1]) * 9_000)
    writer.commit(cache.path_of(FIRST))
    then = os.stat(cache.path_of(FIRST)).st_mtime_ns
    cache.close()
    with cache.trimming() as trim:
        trim(FIRST, [(10_100, 9_000 + OVERHEAD)])
    assert cache.read(FIRST, 10_100, 9_000 + OVERHEAD) == b"\2" * 9_000
    with open(cache.path_of(FIRST), "rb") as file:
        assert set(file.read()[100:]) == {0, 2}
    assert os.stat(cache.path_of(FIRST)).st_mtime_ns == then, "its age is that of its content"


def test_trimming_to_no_records_removes_a_file_and_a_file_without_header(cache):
    add(cache, FIRST)
    with open(cache.path_of(SECOND), "wb") as file:
        file.write(b"short")
    cache.close()
    with cache.trimming() as trim:
        trim(FIRST, [])
        trim(SECOND, [(100, 1000)])
        trim(THIRD, [(100, 1000)])
    assert cache.packs() == []


def test_trimming_without_space_leaves_the_file_as_it_is(cache, tmp_path):
    add(cache, FIRST)
    cache.close()
    with cache.trimming() as trim, no_room():
        trim(FIRST, [(100, len(PAYLOAD) + OVERHEAD)])
    assert read(cache, FIRST) == PAYLOAD
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [FIRST.hex()]


def test_while_a_snapshot_runs_young_files_are_not_trimmed(cache, tmp_path):
    add(cache, FIRST, days=0.9)
    add(cache, SECOND, days=1.1)
    path = begin(cache, days=0)
    other = BaseCache(str(tmp_path / "cache"))
    with other.trimming() as trim:
        trim(FIRST, [])
        trim(SECOND, [])
    assert cache.packs() == [FIRST]
    assert os.path.exists(path)
    cache.close()
    with other.trimming() as trim:
        trim(FIRST, [])
    assert list((tmp_path / "cache").iterdir()) == []
