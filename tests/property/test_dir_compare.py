"""Live directories next to stored ones: the kernel finds what a comparison of each entry in Python finds."""

from __future__ import annotations

import os
import stat
import struct
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from castore.kernel.dir_compare import (
    AS_STORED,
    CONTENT,
    LOOK,
    METADATA,
    MISSING,
    UNREAD,
    XATTRS,
    MarksRule,
    Matched,
    Window,
    known_files,
)
from castore.kernel.dir_entries import NewOwners, split_entries
from castore.kernel.dir_listing import REPEATED, Record, entries_of, entry_at, list_directory, places_of
from castore.model.tree import Content, Entry, Extra, Owners, encode_entries, encode_owners

if TYPE_CHECKING:
    from pathlib import Path

    from castore.kernel.dir_entries import Split

SECOND = 10**9
NAMES = [b"a", b"ab", b"b", b"b.c", b"c" * 200, b"\xff"]
few = st.integers(0, 2)
kinds = st.sampled_from([stat.S_IFREG] * 5 + [stat.S_IFDIR, stat.S_IFLNK])
times = st.sampled_from([0, 5 * SECOND + 7, -3 * SECOND + 1, 5 * SECOND + 8])
modes = st.sampled_from([0o644, 0o600, 0o4644])


@st.composite
def entries(draw: st.DrawFn) -> list[Entry]:
    found = []
    for name in sorted(draw(st.sets(st.sampled_from(NAMES)))):
        kind, size = draw(kinds), draw(few)
        extra = draw(st.sampled_from([Extra()] * 4 + [Extra(xattrs=((b"user.x", b""),))]))
        content = Content.NONE
        if kind != stat.S_IFREG:
            size = 0
            content = draw(st.sampled_from([Content.NONE, Content.OWN])) if kind == stat.S_IFDIR else content
            if kind == stat.S_IFLNK and not extra.xattrs:
                extra = draw(st.sampled_from([Extra(target=b"away"), Extra(target=b"t" * 300), Extra()]))
        elif size:
            content = draw(st.sampled_from([Content.SMALL_FILES] * 3 + [Content.OWN]))
        owner = draw(few), draw(few)
        found.append(Entry(name, kind >> 12, draw(modes), *owner, draw(times), size, content, extra))
    return found


@st.composite
def listings(draw: st.DrawFn) -> bytes:
    listing = b""
    for name in sorted(draw(st.sets(st.sampled_from(NAMES)))):
        time = draw(times)
        mode = draw(kinds) | draw(modes)
        links, error = draw(st.sampled_from([1, 1, 1, 2])), draw(st.sampled_from([0, 0, 0, 0, 13]))
        raw = struct.pack(
            "<QQQqqQQIIIIIIII",
            *(1, 2, draw(few), time // SECOND, draw(few), 8, 0, time % SECOND, 0),
            *(mode, draw(few), draw(few), links, error, len(name)),
        )
        listing += raw + name + bytes(-len(name) % 8)
        if draw(st.integers(0, 9)) == 0:
            listing += bytes(80) + struct.pack("<II", REPEATED, len(name)) + name + bytes(-len(name) % 8)
    return listing


def split_of(stored: list[Entry]) -> Split:
    head = encode_owners(Owners())
    split = split_entries(head + encode_entries(stored), len(head))
    assert split is not None
    return split


def has_rights(entry: Entry, live, new: NewOwners, mode: int) -> bool:
    wanted = new.users.get(entry.uid, entry.uid), new.groups.get(entry.gid, entry.gid)
    if new.change and (live.uid, live.gid) != wanted:
        return False
    return stat.S_ISLNK(live.mode) or not (live.mode ^ entry.mode) & mode


def expected_other(entry: Entry, live, new: NewOwners, *, mode: int, hints: int) -> int:
    """Return the state of an entry that is not a plain file."""
    if live.mtime_ns != entry.mtime or not has_rights(entry, live, new, mode):
        return LOOK
    if not stat.S_ISDIR(live.mode) and live.nlink != 1:
        return LOOK
    if hints & AS_STORED:
        return 0
    if entry.is_dir and stat.S_ISDIR(live.mode) and not entry.extra.xattrs:
        return XATTRS & ~hints
    is_link = stat.S_ISLNK(entry.st_mode) and stat.S_ISLNK(live.mode) and not entry.extra.xattrs
    return UNREAD | XATTRS if is_link and 0 < len(entry.extra.target) < 256 else LOOK


def expected(entry: Entry, live, new: NewOwners, *, mode: int, content: bool, looked: bool, hints: int) -> int:
    if live is None:
        return MISSING
    if looked or live.error:
        return LOOK
    if not entry.is_file or entry.extra.xattrs or entry.content is Content.OWN:
        return expected_other(entry, live, new, mode=mode, hints=hints)
    if not stat.S_ISREG(live.mode) or live.nlink != 1:
        return LOOK
    if (live.size, live.mtime_ns) != (entry.size, entry.mtime):
        return CONTENT
    state = XATTRS & ~hints
    if not has_rights(entry, live, new, mode):
        state |= METADATA
    if content and entry.size:
        state |= UNREAD & ~hints
    return state


@given(entries(), listings(), st.data())
def test_entries_are_compared_as_one_by_one(stored, listing, data):
    new = NewOwners(data.draw(st.booleans()), 0o7777, data.draw(st.dictionaries(few, few)), {1: 2})
    mode = data.draw(st.sampled_from([0o7777, 0o1777]))
    content, looked = data.draw(st.booleans()), data.draw(st.sets(st.sampled_from(NAMES)))
    places = places_of(listing)
    hinted = st.sampled_from([0, UNREAD, XATTRS, UNREAD | XATTRS, UNREAD | XATTRS | AS_STORED])
    known = bytes(data.draw(hinted) for _ in places)
    matched = Matched(split_of(stored), listing, new, mode=mode, content=content, known=known, looked=looked)
    live = {one.name: one for one in entries_of(listing)}
    hints = dict(zip(places, known, strict=True))
    wanted = [
        expected(
            one,
            found := live.get(one.name),
            new,
            mode=mode,
            content=content,
            looked=one.name in looked,
            hints=hints[found.offset] if found else 0,
        )
        for one in stored
    ]
    assert list(matched.states) == wanted
    others = live.keys() - {one.name for one in stored}
    assert [entry_at(listing, at).name for at in matched.extra] == sorted(others)
    for number, one in enumerate(stored):
        at = matched.live_at(number)
        assert at == (live[one.name].offset if one.name in live else None)
    assert matched.differing() == [(number, state) for number, state in enumerate(wanted) if state]


@given(listings(), listings(), st.data())
def test_known_files_are_those_that_an_earlier_listing_has_unchanged(listing, before, data):
    if data.draw(st.booleans()):
        before = listing
    marks = bytes(data.draw(st.integers(0, 7)) for _ in places_of(before))
    record = Record(0, 0, 0, before, marks, b"", 0, b"")
    stored, since = data.draw(st.booleans()), data.draw(few)
    rule = MarksRule(1, data.draw(st.sampled_from([None, 2])), 4, stored, since)
    known = known_files(record, listing, rule)
    old = {entry_at(before, at)._replace(offset=0): mark for at, mark in zip(places_of(before), marks, strict=True)}
    for number, at in enumerate(places_of(listing)):
        entry = entry_at(listing, at)
        mark = old.get(entry._replace(offset=0), 0)
        is_known = mark & 1 and not entry.error
        content = UNREAD if is_known and rule.content is not None and not mark & 2 else 0
        bare = XATTRS if is_known and not mark & 4 else 0
        as_stored = stored and bare and entry.ctime_ns // SECOND < since and (content or stat.S_ISDIR(entry.mode))
        assert known[number] == content | bare | (AS_STORED if as_stored else 0)


@given(entries(), listings(), st.data())
def test_damaged_listings_are_refused_or_compared(stored, listing, data):
    damaged = bytearray(listing)
    for _ in range(data.draw(st.integers(1, 4))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        matched = Matched(split_of(stored), cut, NewOwners(change=False, mode=0o777), mode=0o777, content=True)
    except ValueError:
        return
    assert len(matched.extra) <= len(cut) // 80


def read_stream(fd: int, matched: Matched, number: int, stream: bytes, data: st.DataObject) -> None:
    """Compare the files of a stream that is cut into chunks anywhere, some chunks at a time."""
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(stream) - 1, 1)), max_size=5)) & set(range(len(stream))))
    chunks = [stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])] if stream else []
    first = start = 0
    while chunks:
        together = [chunks.pop(0) for _ in range(min(len(chunks), data.draw(st.integers(1, 3))))]
        room = memoryview(bytearray(sum(map(len, together))))
        window = Window(number, start, [len(one) for one in together], room)
        end = matched.read(fd, first, window)
        for got, chunk in zip(window.got, together, strict=True):
            assert got <= len(chunk)
            if got != len(chunk) or bytes(room[start - window.start :][: len(chunk)]) != chunk:
                matched.compare_stored(first, end + 1, window, start, chunk)
            start += len(chunk)
        first = end


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.data())
def test_content_is_compared_in_windows_of_any_length(tmp_path_factory, data):
    folder: Path = tmp_path_factory.mktemp("live")
    # Two streams, each with gaps: bytes of files that the directory does not have any more.
    stored, streams, runs, changed = [], [b"", b""], [], set()
    for number in range(data.draw(st.integers(0, 8))):
        content = data.draw(st.binary(max_size=20))
        name = b"%d" % number
        path = folder / name.decode()
        path.write_bytes(content)
        if content and data.draw(st.integers(0, 3)) == 0:
            # The same size and time, but another content.
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
            changed.add(name)
        os.utime(path, ns=(5, 5))
        entry = Entry(name, 8, 0o644, 0, 0, 5, len(content), Content.SMALL_FILES if content else Content.NONE)
        stored.append(entry)
        if content:
            stream, gap = data.draw(st.integers(0, 1)), data.draw(st.sampled_from([0, 0, 3]))
            stream = stream if streams[0] else 0
            runs += [1, stream, gap]
            streams[stream] += bytes(gap) + content
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        listing = list_directory(fd)
        vanished = data.draw(st.sampled_from([None, *(one.name for one in stored)]))
        if vanished is not None:
            (folder / vanished.decode()).unlink()
        split = split_entries(encode_entries(stored), 0, tuple(runs))
        assert split is not None
        matched = Matched(split, listing, NewOwners(change=False, mode=0o777), mode=0, content=True)
        for number, stream in enumerate(streams):
            read_stream(fd, matched, number, stream, data)
        matched.read(fd, 0, Window(0, 0, [], memoryview(b"")))
        matched.all_read()
    finally:
        os.close(fd)
    for entry, state in zip(stored, matched.states, strict=True):
        if entry.name == vanished:
            assert state & (LOOK | XATTRS)
        else:
            assert state == (CONTENT | state & XATTRS if entry.name in changed else 0)


def test_a_window_has_to_fit_its_room():
    with pytest.raises(ValueError, match="larger"):
        Window(0, 0, [2, 3], memoryview(bytearray(4)))
