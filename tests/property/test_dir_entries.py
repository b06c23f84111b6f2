"""Entries of plain files, encoded and taken apart by the kernel: what the model says of them, byte for byte."""

from __future__ import annotations

import fnmatch
import os
import re
import resource
import stat
import struct
import time
from array import array
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from castore.content.patterns import PathPattern
from castore.errors import CastoreError, DamageError
from castore.kernel.dir_entries import (
    AS_LISTED,
    GIVEN,
    NewOwners,
    Run,
    join_entries,
    select_entries,
    split_entries,
)
from castore.kernel.dir_listing import PLAIN_FILE, list_directory, survey
from castore.kernel.small_streams import KeptFiles
from castore.model.tree import (
    NO_EXTRA,
    Content,
    Entry,
    Extra,
    Located,
    Owners,
    decode_entries,
    decode_entry,
    decode_owners,
    encode_entries,
    encode_owners,
    locate,
)

REGULAR = stat.S_IFREG >> 12
LIMIT = 1 << 20

names = st.binary(min_size=1, max_size=255).filter(lambda n: n not in {b".", b".."} and not {0, 47} & set(n))
numbers = st.integers(0, 2**32 - 1)
sizes = st.one_of(st.integers(0, 300), st.integers(0, LIMIT))
times = st.one_of(st.integers(-(10**18), 10**18), st.integers(-300, 300))


@st.composite
def plain_entries(draw: st.DrawFn, name: bytes) -> Entry:
    size = draw(sizes)
    mode, uid, gid, mtime = draw(st.integers(0, 0o7777)), draw(numbers), draw(numbers), draw(times)
    content = Content.SMALL_FILES if size else Content.NONE
    return Entry(name, REGULAR, mode, uid, gid, mtime, size, content, NO_EXTRA)


@st.composite
def other_entries(draw: st.DrawFn, name: bytes) -> Entry:
    kind = draw(st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO]))
    xattrs = ((b"user.x", draw(st.binary(max_size=20))),)
    target = b"t" if kind == stat.S_IFLNK else b""
    extra = draw(st.sampled_from([Extra(target, xattrs=xattrs), Extra(target, link=(1, 2)), Extra(b"t", xattrs=xattrs)]))
    size = draw(st.integers(0, 5000)) if kind == stat.S_IFREG else 0
    content = Content.NONE
    if kind == stat.S_IFREG and size:
        content = draw(st.sampled_from([Content.SMALL_FILES, Content.OWN]))
    return Entry(name, kind >> 12, 0o644, 0, 7, draw(times), size, content, extra)


@st.composite
def directories(draw: st.DrawFn) -> list[Entry]:
    found = sorted(draw(st.sets(names, max_size=12)))
    kinds = [draw(st.sampled_from([plain_entries, plain_entries, other_entries])) for _ in found]
    return [draw(kind(name)) for kind, name in zip(kinds, found, strict=True)]


def listing_of(entries: list[Entry]) -> tuple[bytes, array[int]]:
    """The listing of a directory that would give these entries, and where each is in it."""
    listing, places = b"", array("Q")
    for entry in entries:
        places.append(len(listing))
        seconds, rest = divmod(entry.mtime, 10**9)
        times = seconds, 5, 8, 0, rest, 0
        listing += struct.pack(
            "<QQQqqQQIIIIIIII", 1, 2, entry.size, *times, entry.st_mode, entry.uid, entry.gid, 1, 0, len(entry.name)
        )
        listing += entry.name + bytes(-len(entry.name) % 8)
    return listing, places


def is_plain(entry: Entry) -> bool:
    return entry.is_file and entry.extra == NO_EXTRA and entry.content is not Content.OWN


@given(directories(), st.data())
def test_entries_that_are_joined_are_those_of_the_model(entries, data):
    listing, places = listing_of(entries)
    take = bytes(
        data.draw(st.sampled_from([AS_LISTED, GIVEN, 0])) if is_plain(one) else data.draw(st.sampled_from([GIVEN, 0]))
        for one in entries
    )
    given_ones = encode_entries(one for one, how in zip(entries, take, strict=True) if how == GIVEN)
    joined, ids = join_entries(listing, places, take, given_ones)
    assert joined == encode_entries(one for one, how in zip(entries, take, strict=True) if how)
    here = [(one.uid, one.gid) for one, how in zip(entries, take, strict=True) if how == AS_LISTED]
    assert len(ids) == len(set(ids))
    assert set(ids) == set(here)


def test_fewer_entries_than_are_to_be_taken_are_refused():
    listing, places = listing_of([Entry(b"a", REGULAR, 0, 0, 0, 0, 0, Content.NONE)])
    with pytest.raises(ValueError, match="fewer"):
        join_entries(listing, places, bytes([GIVEN]), b"")


@given(directories())
def test_entries_that_are_split_are_those_of_the_model(entries):
    head = encode_owners(Owners())
    split = split_entries(head + encode_entries(entries), len(head))
    assert split is not None
    located, ends = locate(Owners(), entries)
    assert split.ends == ends
    assert decoded(split.others) == [one for one in located if not is_plain(one.entry)]
    plain = [one for one in located if is_plain(one.entry)]
    assert decoded(split.encoded(0, None)) == plain
    assert (split.plain, split.plain_size) == (len(plain), sum(one.entry.size for one in plain))


@given(directories(), st.data())
def test_entries_in_several_streams_are_placed_as_the_model_places_them(entries, data):
    runs = data.draw(some_runs(entries))
    split = split_entries(encode_entries(entries), 0, runs)
    try:
        located, ends = locate(Owners(runs=runs), entries)
    except DamageError:
        assert split is None
        return
    assert split is not None
    assert split.ends == ends
    assert sorted(decoded([*split.others, *split.encoded(0, None)]), key=lambda one: one.entry.name) == located
    for stream in range(len(ends)):
        found = decoded(split.encoded(0, None, stream))
        assert [one for one in found if one.entry.size] == [
            one for one in located if is_plain(one.entry) and one.entry.size and one.stream == stream
        ]
    found = select_entries(encode_entries(entries), 0, b"\0", runs)
    assert (found.others, found.ends) == (split.others, split.ends)
    assert [placed for _, placed in found.plain] == split.encoded(0, None)
    # Encoding the places gives these runs again, or shorter ones of the same places.
    kept = KeptFiles.empty(bytearray(len(entries)))
    for position, one in enumerate(located):
        if one.entry.content is Content.SMALL_FILES:
            kept.place(position, one.stream, one.offset, one.entry.size)
    assert locate(Owners(runs=kept.runs()), entries) == (located, ends)


def some_runs(entries):
    """Return runs that describe the small files among entries, and sometimes others."""
    count = sum(one.content is Content.SMALL_FILES for one in entries)
    number = st.tuples(st.integers(1, max(count, 1)), st.integers(0, 3), st.sampled_from([0, 0, 1, 700, 1 << 62]))

    def exact(runs):
        left, found = count, []
        for size, stream, gap in runs:
            found += [min(size, left), stream, gap] if left else []
            left -= min(size, left)
        return tuple([*found, left, 0, 0] if left else found)

    several = st.lists(number, max_size=6)
    hostile = st.lists(st.integers(0, 40) | st.sampled_from([(1 << 64) - 1, (1 << 63) - 1]), max_size=9).map(tuple)
    return several.map(exact) | hostile


def decoded(placed):
    return [Located(decode_entry(frame), stream, offset) for frame, stream, offset in placed]


@given(directories(), st.integers(1, 6000), st.data())
def test_runs_hold_every_plain_file_once_with_its_content(entries, room, data):
    split = split_entries(encode_entries(entries), 0, data.draw(some_runs(entries)))
    assume(split is not None)
    per_stream = {}
    for run in split.runs(room):
        per_stream.setdefault(run.stream, []).append(run)
    assert [*per_stream] == [*range(len(split.ends) or 1)]
    for stream, runs in per_stream.items():
        assert (runs[0].first, runs[-1].end) == (0, len(entries))
        assert all(one.end == other.first for one, other in pairwise(runs))
        for run in runs:
            inside = decoded(split.encoded(run.first, run.end, stream))
            held = [(one.offset, one.entry.size) for one in inside if one.entry.size]
            assert all(run.start <= at and at + size <= run.start + run.length for at, size in held)
            assert run.length <= room or len(held) <= 1 or run.length <= split.ends[stream] <= room


@given(directories(), st.data())
def test_damaged_entries_are_split_as_the_model_decodes_them_or_not_at_all(entries, data):
    head = encode_owners(Owners())
    stream = bytearray(encode_entries(entries))
    for _ in range(data.draw(st.integers(1, 4))):
        if stream:
            stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    stream = stream[: data.draw(st.integers(0, len(stream)))] if data.draw(st.booleans()) else stream
    split = split_entries(head + bytes(stream), len(head))
    if split is None:
        return
    try:
        found = [decode_entry(frame) for frame, _, _ in split.others]
    except CastoreError:
        return  # reported when it is opened
    found += [decode_entry(frame) for frame, _, _ in split.encoded(0, None)]
    _, expected = decode_entries(head + bytes(stream))
    assert sorted(found, key=lambda one: one.name) == expected


@given(directories(), st.lists(st.sampled_from([b"", b"a", b"b", b".txt", b"\xc3"]), min_size=1, max_size=4), st.data())
def test_entries_that_are_selected_are_those_of_the_model(entries, pieces, data):
    if entries and data.draw(st.booleans()):
        name = data.draw(st.sampled_from(entries)).name
        pieces = data.draw(st.sampled_from([[name], [name[:1], name[-1:]], [b"", name[1:-1], b""], [b"", b""]]))
    head = encode_owners(Owners())
    found = select_entries(head + encode_entries(entries), len(head), b"\0".join(pieces))
    assert found is not None
    fits = re.compile(b".*".join(map(re.escape, pieces)), re.DOTALL).fullmatch
    split = split_entries(head + encode_entries(entries), len(head))
    wanted = [entry for entry in entries if is_plain(entry) and fits(entry.name)]
    assert [(name, decode_entry(placed.frame)) for name, placed in found.plain] == [(one.name, one) for one in wanted]
    assert {placed for _, placed in found.plain} <= {*split.encoded(0, None)}
    assert (found.others, found.ends) == (split.others, split.ends)


@given(directories(), st.data())
def test_damaged_entries_are_selected_where_they_are_split(entries, data):
    stream = bytearray(encode_entries(entries))
    for _ in range(data.draw(st.integers(1, 3))):
        if stream:
            stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    split, found = split_entries(bytes(stream), 0), select_entries(bytes(stream), 0, b"\0")
    assert (found is None) == (split is None)
    if split is not None and found is not None:
        assert (found.others, found.ends, len(found.plain)) == (split.others, split.ends, split.plain)


@given(
    st.text("ab*?[]!é\udca9-", min_size=1, max_size=6).filter(lambda one: one != "**"),
    st.lists(st.text("ab*é\udca9\udcc3[", min_size=1, max_size=5), max_size=8),
)
def test_a_pattern_finds_what_fnmatch_does(pattern, names):
    compiled = PathPattern(pattern)
    entries = [Entry(name, REGULAR, 0o600, 0, 0, 0, 0, Content.NONE) for name in sorted({*map(os.fsencode, names)})]
    found = select_entries(encode_entries(entries), 0, compiled.pieces)
    matched = [name for name, _ in found.plain if compiled.is_exact or compiled.matches_name(name)]
    assert matched == [one.name for one in entries if fnmatch.fnmatchcase(os.fsdecode(one.name), pattern)]


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0", b"x" * 256])
def test_names_that_lead_elsewhere_are_not_split(name):
    entry = Entry(name, REGULAR, 0o600, 0, 0, 0, 0, Content.NONE)
    assert split_entries(encode_entries([entry]), 0) is None


def test_names_out_of_order_and_twice_are_not_split():
    one, two = (Entry(name, REGULAR, 0o600, 0, 0, 0, 0, Content.NONE) for name in (b"a", b"b"))
    assert split_entries(encode_entries([two, one]), 0) is None
    assert split_entries(encode_entries([one, one]), 0) is None
    assert split_entries(encode_entries([one, two]), 0) is not None


WIDE = Entry(b"name", REGULAR, 0o7777, 2**32 - 1, 2**31, -(10**18), 2**33, Content.SMALL_FILES)


def test_an_entry_that_ends_within_a_number_is_not_split():
    body = encode_entries([replace(WIDE, size=LIMIT)])[4:]
    numbers_end = body.index(b"\xce" + LIMIT.to_bytes(4, "big") + b"\1") + 6
    for length in range(len(body) + 1):
        split = split_entries(length.to_bytes(4, "little") + body[:length], 0)
        assert (split is None) == (length < numbers_end), "the slow decoder judges what follows"


@pytest.mark.parametrize(
    "change",
    [{"mode": 0o10000}, {"uid": 2**32}, {"gid": 2**32}, {"size": 2**63, "content": Content.OWN}, {"mtime": 2**63}],
)
def test_an_entry_with_a_number_that_no_file_has_is_not_split(change):
    assert split_entries(encode_entries([replace(WIDE, size=LIMIT)]), 0) is not None
    assert split_entries(encode_entries([replace(WIDE, **{"size": LIMIT} | change)]), 0) is None


@pytest.mark.parametrize("power", [5, 7, 15, 31, 62])
def test_times_of_each_width_are_encoded_as_the_model_encodes_them(power):
    for mtime in (-(2**power) - 1, -(2**power), -(2**power) + 1, 2**power - 1, 2**power):
        entries = [replace(WIDE, mtime=mtime, size=0, content=Content.NONE)]
        listing, places = listing_of(entries)
        joined, _ = join_entries(listing, places, bytes([AS_LISTED]), b"")
        assert joined == encode_entries(entries)


def test_a_file_that_has_no_room_is_removed_again(tmp_path):
    entries = [Entry(b"%d" % n, REGULAR, 0o600, 0, 0, 0, 3, Content.SMALL_FILES) for n in range(2)]
    split = split_entries(encode_entries(entries), 0)
    assert split is not None
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    fd = os.open(tmp_path, os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2, before[1]))
    try:
        assert split.write(fd, Run(0, 0, 2, 0, 6), 0, NewOwners(change=False, mode=0o777), b"abcdef") == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        os.close(fd)
    assert os.listdir(tmp_path) == []


def test_files_are_created_as_described(tmp_path):
    entries = [
        Entry(b"a", REGULAR, 0o6755, 0, 0, 1_500_000_001, 3, Content.SMALL_FILES),
        Entry(b"b", REGULAR, 0o644, 0, 0, -1_500_000_001, 0, Content.NONE),
        Entry(b"c", REGULAR, 0o600, 0, 0, 5, 2, Content.SMALL_FILES, Extra(link=(1, 2))),
        Entry(b"d", REGULAR, 0o600, 0, 0, 5, 2, Content.SMALL_FILES),
    ]
    split = split_entries(encode_entries(entries), 0)
    assert split is not None
    (tmp_path / "d").symlink_to(tmp_path / "elsewhere")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        new = NewOwners(change=False, mode=0o1777)
        assert split.write(fd, Run(0, 0, 4, 0, 7), 0, new, b"abcCCdd") == 3  # nothing is followed or replaced
        assert split.write(fd, Run(0, 0, 4, 5, 2), 3, new, b"") == 3  # nor read from beyond the buffer
        (tmp_path / "d").unlink()
        assert split.write(fd, Run(0, 0, 4, 5, 2), 3, new, memoryview(bytearray(b"dd"))) == 4
    finally:
        os.close(fd)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "d"]
    assert [(tmp_path / name).read_bytes() for name in "abd"] == [b"abc", b"", b"dd"]
    infos = [os.stat(tmp_path / name) for name in "abd"]
    assert [stat.S_IMODE(info.st_mode) for info in infos] == [0o755, 0o644, 0o600]
    assert [info.st_mtime_ns for info in infos] == [1_500_000_001, -1_500_000_001, 5]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_files_are_given_to_whom_they_belong_here(tmp_path):
    entries = [Entry(b"%d" % uid, REGULAR, 0o4711, uid, uid + 1, 0, 0, Content.NONE) for uid in (3, 4, 5)]
    split = split_entries(encode_entries(entries), 0)
    assert split is not None
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        new = NewOwners(change=True, mode=0o7777, users={4: 40, 3: 30}, groups={6: 60})
        assert split.write(fd, Run(0, 0, 3, 0, 0), 0, new, b"") == 3
    finally:
        os.close(fd)
    infos = [os.stat(tmp_path / name) for name in "345"]
    assert [(info.st_uid, info.st_gid) for info in infos] == [(30, 4), (40, 5), (5, 60)]
    assert all(stat.S_IMODE(info.st_mode) == 0o4711 for info in infos)


def test_a_listing_is_surveyed(tmp_path):
    for name, size in (("empty", 0), ("small", 10), ("large", 70_000)):
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "holes", "wb") as file:
        file.truncate(20_000)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        listing = list_directory(fd)
        found = survey(listing, 65536)
        assert not found.linked
        os.link(tmp_path / "small", tmp_path / "twice")
        linked = survey(list_directory(fd), 65536)
    finally:
        os.close(fd)
    # In order of names: empty, folder, holes, large, pipe, small.
    assert list(found.kinds) == [PLAIN_FILE, 4, 3, 3, 5, PLAIN_FILE]
    newest = max(os.lstat(tmp_path / name).st_ctime_ns for name in os.listdir(tmp_path))
    assert linked.linked
    assert linked.last_ctime == newest
    assert survey(b"").kinds == b""


def test_what_a_far_time_makes_of_a_file_is_not_plain():
    entry = Entry(b"a", REGULAR, 0, 0, 0, 10**19, 0, Content.NONE)
    listing, _ = listing_of([entry])
    assert survey(listing, 100).kinds != bytes([PLAIN_FILE])


def test_a_spool_of_many_owners_takes_no_time_per_pair_of_files() -> None:
    def seconds(owners: int) -> float:
        many = [Entry(b"%08d" % n, REGULAR, 0o600, n % owners, 8, 0, 100, Content.SMALL_FILES, NO_EXTRA) for n in range(60_000)]
        listings = [listing_of(many[at : at + 100]) for at in range(0, len(many), 100)]
        listing, places = b"".join(one for one, _ in listings), array("Q")
        start = 0
        for one, at in listings:
            places.extend(start + place for place in at)
            start += len(one)
        begin = time.process_time()
        _, ids = join_entries(listing, places, bytes([AS_LISTED]) * len(many), b"")
        assert len(ids) == owners
        return time.process_time() - begin

    # A search among all owners for each file made this 200 times slower.
    assert seconds(60_000) < 40 * max(seconds(1), 0.005)


@pytest.mark.parametrize("runs", [(-1, 0, 0), (1, -1, 0), (1, 0, -5)])
def test_a_directory_with_negative_runs_is_damaged(runs):
    with pytest.raises(DamageError, match="a negative number of small files"):
        decode_owners(encode_owners(Owners(runs=runs)))
