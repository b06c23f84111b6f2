"""Which directories, types of files, and tables take the room in a trial store.

Each chunk counts for the first content that has it, as when it is stored. The streams of a tree are those
that its scan cache names; the tables of a dump are found by the statements that fill them.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from castore.analysis.first_seen import FirstSeen
from castore.analysis.results import Room, RoomItem
from castore.content.ref_tree import iter_chunks
from castore.content.scan.record_streams import decode_streams, own_streams
from castore.kernel.dir_listing import BUNDLED, entry_at, places_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.content.scan.cache_reader import ScanCacheReader
    from castore.kernel.dir_listing import Record
    from castore.model.refs import Ref
    from castore.store import Store

_DEPTH: Final = 4
"""Levels of directories that are counted separately."""
_MOST_COUNTED: Final = 50_000
"""Directories that are counted separately while a tree is read."""
_MOST_NAMED: Final = 250
"""Directories, types or tables that are named in the results."""
_SUFFIX: Final = re.compile(r"\.[a-z][a-z0-9_+-]{0,9}")
_STATEMENT: Final = re.compile(
    rb'(?:^|\n)(?:COPY|INSERT INTO|CREATE TABLE(?: IF NOT EXISTS)?)[ \t]+([\w.`"]{1,200})'
)
_PIECE: Final = 4 << 20
_OVERLAP: Final = 256
_HEAD: Final = 1 << 18
_TOP: Final = "\0"
"""Ends the path of a tree's top in the names of its directories."""
OTHER: Final = "(other)"
METADATA: Final = "(names and attributes)"


class _Tally:
    """Plain and stored bytes by name."""

    def __init__(self) -> None:
        self._sizes: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])

    def add(self, name: str, plain: float, stored: float) -> None:
        entry = self._sizes[name]
        entry[0] += plain
        entry[1] += stored

    def __len__(self) -> int:
        return len(self._sizes)

    def shorten(self, depth: int) -> None:
        """Count directories below `depth` levels with those above them."""
        sizes, self._sizes = self._sizes, defaultdict(lambda: [0, 0.0])
        for name, (plain, stored) in sizes.items():
            self.add(_level(name, depth), plain, stored)

    def items(self) -> list[RoomItem]:
        """Return the largest names, the largest first, and the sum of the others."""
        ordered = sorted(self._sizes.items(), key=lambda item: -item[1][1])
        found = [
            RoomItem(name.replace(_TOP, "") or "/", round(plain), round(stored))
            for name, (plain, stored) in ordered[:_MOST_NAMED]
        ]
        if rest := ordered[_MOST_NAMED:]:
            plain, stored = sum(one[0] for _, one in rest), sum(one[1] for _, one in rest)
            found.append(RoomItem(OTHER, round(plain), round(stored)))
        return found


class RoomCounter:
    """Counts the room that parts of a trial store take."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen = FirstSeen(store)
        self._directories, self._types, self._tables = _Tally(), _Tally(), _Tally()
        self._depth = _DEPTH

    def result(self) -> Room:
        """Return what was counted."""
        return Room(self._directories.items(), self._types.items(), self._tables.items())

    def add_tree(self, top: str, scan: ScanCacheReader) -> None:
        """Count a tree by its scan cache. top: its path."""
        todo = [(scan.top, top.rstrip("/") + _TOP)]
        while todo:
            at, path = todo.pop()
            record = scan.record(at)
            below = scan.below(record)
            self._add_directory(path, record)
            todo += [(one, f"{path}/{_text(name)}") for name, one in below.items()]

    def _add_directory(self, path: str, record: Record) -> None:
        streams = decode_streams(record)
        small = streams.small_files
        stored = self._named(METADATA, streams.entries)
        plain = streams.entries.size
        for own in own_streams(record):
            stored += self._named(_type_of(entry_at(record.listing, own.place).name), own.ref)
            plain += own.ref.size
        size = sum(ref.size for ref in small)
        taken = sum(self._seen.weigh(ref) for ref in small)
        marked = zip(places_of(record.listing), record.marks, strict=True)
        files = [entry_at(record.listing, place) for place, mark in marked if mark & BUNDLED]
        # A stream may also have bytes of files that have changed since.
        total = max(sum(file.size for file in files), 1)
        for file in files:
            self._types.add(_type_of(file.name), file.size, taken * file.size / total)
        self._directories.add(_level(path, self._depth), plain + size, stored + taken)
        if len(self._directories) > _MOST_COUNTED and self._depth > 1:
            self._depth -= 1
            self._directories.shorten(self._depth)

    def _named(self, kind: str, ref: Ref) -> float:
        """Count a stream as one type of content; return what it takes."""
        stored = self._seen.weigh(ref)
        self._types.add(kind, ref.size, stored)
        return stored

    def add_dump(self, name: str, path: str | None, ref: Ref) -> None:
        """Count a dump. path: a file that has its content, for the tables; None if there is none."""
        places = [(0, "(before the tables)"), *(tables_of(path) if path is not None else ())]
        if len(places) == 1:
            self._tables.add(name, ref.size, self._seen.weigh(ref))
            return
        at = 0
        for offset, chunk in iter_chunks(self._store, ref):
            stored = self._seen.take(chunk.id)
            end = offset + chunk.size
            while at + 1 < len(places) and places[at + 1][0] <= offset:
                at += 1
            for number in range(at, len(places)):
                begin = max(places[number][0], offset)
                following = places[number + 1][0] if number + 1 < len(places) else end
                share = min(following, end) - begin
                if begin >= end:
                    break
                self._tables.add(places[number][1], share, stored * share / chunk.size)


def tables_of(path: str) -> Iterator[tuple[int, str]]:
    """Yield where a dump in SQL begins to fill each table, and its name: none if it is not SQL."""
    last = ""
    with open(path, "rb", buffering=0) as file:
        head = file.read(_HEAD)
        if _STATEMENT.search(head) is None:
            return
        at, piece = 0, head
        while True:
            for found in _STATEMENT.finditer(piece):
                if found.end() == len(piece) and len(piece) > _OVERLAP:
                    continue  # its name may go on in the next piece, which repeats the end of this one
                name = _text(found[1].replace(b"`", b"").replace(b'"', b""))
                if name != last:
                    yield at + found.start(), name
                    last = name
            following = file.read(_PIECE)
            if not following:
                return
            at += len(piece) - min(_OVERLAP, len(piece))
            piece = piece[-_OVERLAP:] + following


def _level(path: str, depth: int) -> str:
    """Return the directory at most `depth` levels below the top that contains a path, or is it."""
    top, mark, below = path.partition(_TOP)
    return top + mark + "/".join(below.split("/")[: depth + 1])


def _type_of(name: bytes) -> str:
    """Return the type of a file by its name: `.py`."""
    suffix = os.path.splitext(_text(name).lower())[1]
    return suffix if _SUFFIX.fullmatch(suffix) else "(no suffix)"


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
