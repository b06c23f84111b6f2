"""`verify --read-data` reports what of a tree does not restore, and nothing else, whatever a faulty writer stored."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import castore
from castore.content.stored_dirs import open_directory, open_fetched, open_top, read_file, references
from castore.content.streams import StreamReader
from castore.errors import DamageError
from castore.maintenance import trees as trees_module
from castore.maintenance.impact import Reasons, affected
from castore.maintenance.trees import Trees
from castore.maintenance.verify import verify
from castore.model.generation import Generation, Part, StoredRef
from castore.model.refs import RecordId, Ref, RefKind
from castore.services.restore import restore as restore_parts
from castore.services.selectors import select
from castore.services.sources import Tree
from tests.property.test_hostile_bytes import Hostile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EXAMPLES_OF_CHANGES = int(os.environ.get("CASTORE_TREE_EXAMPLES", "60"))
pytestmark = pytest.mark.timeout(240 + EXAMPLES_OF_CHANGES)
MIXED, NESTED, FLAT, TOP = (b"mixed",), (b"mixed", b"nested"), (b"flat",), ()
NAME, TYPE, MODE, UID, GID, MTIME, SIZE, CONTENT, EXTRA = range(9)
TARGET, DEVICE, LINK, XATTRS, EXTENTS = range(5)


@dataclass
class Directory:
    """What is stored of a directory, to be changed."""

    head: object
    entries: list[list]
    refs: list[Ref]
    """Those after its entries."""
    lie: int = 0
    """How many bytes more the reference to it promises."""
    raw: bytes | None = None
    """Instead of the entries."""

    def frames(self) -> bytes:
        if self.raw is not None:
            return self.raw
        packed = [msgspec.msgpack.encode(one) for one in (self.head, *self.entries)]
        return b"".join(len(one).to_bytes(4, "little") + one for one in packed)


class Writer(Hostile):
    """Stores trees with faults, sealed as by any writer."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.numbers = itertools.count(2)
        live = folder / "live"
        plant(live)
        self.sandbox.snapshot("s", {"t": Tree(str(live))})
        self.store.sync()
        first = self.store.generations.get("s", 1)
        assert first is not None
        self.first = first
        self.reader = StreamReader(self.store)

    def directory(self, path: tuple[bytes, ...]) -> Directory:
        """Read what is stored of a directory."""
        child = open_top(self.reader, self.root)
        for name in path:
            child = next(one for one in open_directory(self.reader, child.ref) if one.entry.name == name)
        return self.read(child.ref)

    def read(self, ref: Ref | None) -> Directory:
        assert ref is not None
        first, *rest = references(self.reader, ref)
        data = self.reader.read_all(first)
        frames = []
        while data:
            end = 4 + int.from_bytes(data[:4], "little")
            frames.append(msgspec.msgpack.decode(data[4:end], strict=False) if frames else data[4:end])
            data = data[end:]
        return Directory(msgspec.Raw(frames[0]), frames[1:], rest)

    @property
    def root(self) -> Ref:
        ref = self.first.parts[0].content
        assert ref is not None
        return ref

    def put(self, session, data: bytes) -> Ref:
        """Store bytes as one chunk."""
        name = self.store.reader.chunk_id(data)
        if not self.store.index.locations.contains([name])[0] and name not in self.written:
            self.written.add(name)
            codec, packed = session._codecs.compress(data)
            self.chunk(session, name, codec, bytes(packed), len(data), ())
        return Ref(RefKind.CHUNK, name, len(data))

    def list(self, session, refs: list[Ref]) -> Ref:
        return Ref(RefKind.LIST, self.node(session, refs), sum(ref.size for ref in refs))

    def commit(self, path: tuple[bytes, ...] | None, change: Callable[[Directory, Writer, object], None]) -> Generation:
        """Store the tree with one directory, or the root, changed; all that refers to it as it should be."""
        self.written: set[bytes] = set()
        with self.store.session() as session:
            found = self.directory(path) if path is not None else self.read(self.root)
            change(found, self, session)
            ref = self.store_directory(session, found)
            while path is not None:
                above = self.directory(path[:-1]) if path else self.read(self.root)
                at = [one[NAME] for one in above.entries if one[TYPE] == 4 and one[CONTENT] == 2].index(path[-1] if path else b"")
                at += len(above.refs) - sum(one[TYPE] == 4 and one[CONTENT] == 2 for one in above.entries)
                above.refs[at] = ref
                ref = self.store_directory(session, above)
                path = path[:-1] if path else None
        part = msgspec.structs.replace(self.first.parts[0], root=StoredRef.of(ref))
        taken = msgspec.structs.replace(self.first, number=next(self.numbers), parts=(part,))
        self.store.generations.commit(taken)
        self.store.sync()
        return taken

    def store_directory(self, session, found: Directory) -> Ref:
        ref = self.list(session, [self.put(session, found.frames()), *found.refs])
        return ref._replace(size=ref.size + found.lie)

    def reported(self, taken: Generation) -> set[str]:
        """Return the paths that `verify --read-data` reports, had all packs been read."""
        reasons = Reasons(self.store, {})
        hits = list(affected(taken, reasons, Trees(self.reader, reasons), self.reader, decode=True))
        assert all(hit.paths or hit.part == "(details)" for hit in hits), hits
        return {path for hit in hits for path in hit.paths}

    def unreadable(self, part: Part) -> set[str]:
        """Return the paths that cannot be read, each by itself."""
        assert part.content is not None
        try:
            waiting = [(b"", open_top(self.reader, part.content))]
        except DamageError:
            return {"."}
        found = set()
        while waiting:
            path, child = waiting.pop()
            shown = path.decode(errors="backslashreplace") or "."
            try:
                if child.entry.is_dir:
                    below = open_directory(self.reader, child.ref)
                    waiting += [(path + b"/" + one.entry.name if path else one.entry.name, one) for one in below]
                elif child.entry.is_file:
                    assert sum(map(len, read_file(self.reader, child))) == child.entry.size
            except DamageError:
                found.add(shown)
        return found

    def lost_by_restore(self, taken: Generation) -> set[str]:
        out = self.sandbox.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        selection = select(self.store, f"s@{taken.number}:t")
        try:
            done = restore_parts(self.store, selection, str(out), self.sandbox.ownership, castore.Progress())
        except DamageError:
            return {"."}
        return {path.decode(errors="backslashreplace") for path, _ in done.report.damaged}


def plant(live: Path) -> None:
    (live / "mixed" / "nested" / "deep").mkdir(parents=True)
    (live / "flat").mkdir()
    (live / "none").mkdir()
    for folder in ("mixed", "flat", "mixed/nested"):
        for number in range(4):
            (live / folder / f"small{number}").write_bytes(bytes([number]) * (30 * number))
    (live / "mixed" / "nested" / "deep" / "x").write_text("x")
    for folder in ("mixed", "mixed/nested"):
        (live / folder / "large").write_bytes(b"".join(number.to_bytes(4, "little") for number in range(70_000)))
        (live / folder / "medium").write_bytes(bytes(range(256)) * 300)
        with open(live / folder / "sparse", "wb") as file:
            file.write(b"begin" * 20_000)
            file.seek(1 << 20)
            file.write(b"end" * 30_000)
        os.symlink("small1", live / folder / "link")
        os.mkfifo(live / folder / "pipe")
        os.link(live / folder / "small2", live / folder / "small2-again")


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    found = Writer(tmp_path_factory.mktemp("writer"))
    with found.reader:
        yield found
    found.store.close()


numbers = st.sampled_from([-1, 0, 1, 2, 3, 5, 8, 30, 31, 60, 0o644, 0o10000, 76800, 1 << 32, 1 << 40, 1 << 62, 1 << 63])
names = st.sampled_from([b"", b".", b"..", b"a/b", b"a\0b", b"small1", b"zz", b"large", b"x" * 255, b"\xff", "text", 7, None])
extents = st.none() | st.lists(st.tuples(numbers, numbers), max_size=3) | st.sampled_from([[(0, 76800)], [(0, 100), (200, 76700)], 3])
EXTRAS = {
    TARGET: st.sampled_from([b"", b"elsewhere", b"a\0b", 3]),
    DEVICE: numbers,
    LINK: st.none() | st.tuples(st.just(0), st.integers(0, 3)) | numbers,
    XATTRS: st.sampled_from([[], [(b"user.a", b"1")], [(b"user.\0", b"1")], [(b"a",)], b""]),
    EXTENTS: extents,
}
FIELDS = {NAME: names, TYPE: st.integers(-1, 16), CONTENT: st.integers(-1, 3), **dict.fromkeys((MODE, UID, GID, MTIME, SIZE), numbers)}
SHIFTS = st.sampled_from([-30, -1, 1, 30, 5000])


def change_entry(found: Directory, writer: Writer, session, data) -> None:
    """Give one field of one entry another value."""
    at = data.draw(st.integers(0, len(found.entries) - 1))
    entry = list(found.entries[at])
    field = data.draw(st.sampled_from([*FIELDS, EXTRA, EXTRA]))
    if field == EXTRA:
        extra = list(entry[EXTRA])
        which = data.draw(st.sampled_from([*EXTRAS]))
        extra[which] = data.draw(EXTRAS[which])
        entry[EXTRA] = extra
    elif field == SIZE and data.draw(st.booleans()):
        entry[SIZE] += data.draw(SHIFTS)
    else:
        entry[field] = data.draw(FIELDS[field])
    found.entries[at] = entry


def change_order(found: Directory, writer: Writer, session, data) -> None:
    """Leave entries or references out, double or swap them."""
    items = found.entries if data.draw(st.booleans()) or not found.refs else found.refs
    one, two = (data.draw(st.integers(0, len(items) - 1)) for _ in range(2))
    match data.draw(st.sampled_from(["drop", "double", "swap"])):
        case "drop":
            del items[one]
        case "double":
            items.insert(two, items[one])
        case _:
            items[one], items[two] = items[two], items[one]


def change_reference(found: Directory, writer: Writer, session, data) -> None:
    """Let a reference name something else, or promise another length."""
    if not found.refs:
        found.lie = data.draw(SHIFTS)
        return
    at = data.draw(st.integers(0, len(found.refs) - 1))
    ref = found.refs[at]
    match data.draw(st.sampled_from(["size", "kind", "splice", "deep", "list", "missing", "root", "other", "part", "lie"])):
        case "size":
            ref = ref._replace(size=max(0, ref.size + data.draw(SHIFTS)))
        case "kind":
            ref = ref._replace(kind=data.draw(st.sampled_from([*RefKind])))
        case "splice":
            for _ in range(data.draw(st.integers(1, 3))):
                ref = writer.list(session, [ref])._replace(kind=RefKind.INNER)
        case "deep":
            for _ in range(data.draw(st.integers(61, 67))):
                ref = writer.list(session, [ref])._replace(kind=RefKind.INNER)
            ref = ref._replace(kind=data.draw(st.sampled_from([RefKind.LIST, RefKind.INNER])))
        case "list":
            ref = writer.list(session, [ref])
        case "missing":
            ref = Ref(data.draw(st.sampled_from([*RefKind])), RecordId(bytes(32)), ref.size)
        case "root":
            ref = writer.root
        case "other":
            ref = data.draw(st.sampled_from(found.refs))
        case "part":
            ref = writer.list(session, [writer.put(session, b"x" * 7), ref]) if ref.kind is RefKind.CHUNK else ref
        case _:
            found.lie = data.draw(SHIFTS)
    found.refs[at] = ref


def change_bytes(found: Directory, writer: Writer, session, data) -> None:
    """Replace some bytes of the entries."""
    frames = bytearray(found.frames())
    at = data.draw(st.integers(0, len(frames)))
    end = data.draw(st.integers(at, min(at + 8, len(frames))))
    frames[at:end] = data.draw(st.binary(max_size=8))
    found.raw = bytes(frames)


def change_head(found: Directory, writer: Writer, session, data) -> None:
    """Replace the owners."""
    runs = st.lists(st.integers(0, 3) | st.integers(0, (1 << 64) - 1), max_size=9).map(lambda numbers: [1, {}, {}, numbers])
    found.head = data.draw(st.sampled_from([[1, {}, {}], [1, {"a": 1}, {}], [1], [1, {0: "a\0b"}, {}], [1, {-1: "x"}, {}], {}, None, [b"x", 8]]) | runs)


def change_top(found: Directory, writer: Writer, session, data) -> None:
    """Make the root have none or several entries, or one of another kind."""
    entry = list(found.entries[0])
    match data.draw(st.sampled_from(["none", "two", "name", "file"])):
        case "none":
            found.entries = []
        case "two":
            found.entries.append(entry)
        case "name":
            entry[NAME] = b"top"
            found.entries = [entry]
        case _:
            entry[TYPE] = 8
            entry[SIZE] = found.refs[0].size
            found.entries = [entry]


CHANGES = (change_entry, change_entry, change_order, change_reference, change_reference, change_bytes, change_head)


@settings(max_examples=EXAMPLES_OF_CHANGES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_verify_reports_what_a_restore_cannot(writer, data):
    path = data.draw(st.sampled_from([MIXED, NESTED, FLAT, TOP, None]))
    change = data.draw(st.sampled_from(CHANGES if path is not None else (change_top, *CHANGES)))
    taken = writer.commit(path, lambda found, w, session: change(found, w, session, data))
    reported = writer.reported(taken)
    assert reported == writer.unreadable(taken.parts[0])
    lost = writer.lost_by_restore(taken)
    # Another name of a file with several is made from the first: its own content is not looked at.
    assert lost <= reported
    if not lost:
        for shown in reported:
            restored = writer.sandbox.folder / "out" / shown
            assert stat.S_ISREG(restored.lstat().st_mode)
            assert restored.lstat().st_nlink > 1


EXAMPLES = {
    "places of too few small files": (FLAT, lambda found, w, s: setattr(found, "head", [1, {}, {}, [2, 0, 0]]), {"flat"}),
    "a small-file stream that is missing": (FLAT, lambda found, w, s: setattr(found, "head", [1, {}, {}, [1, 1, 0, 2, 0, 0]]), {"flat"}),
    "a small file after the end of its stream": (FLAT, lambda found, w, s: setattr(found, "head", [1, {}, {}, [3, 0, 1]]), {"flat/small1", "flat/small2", "flat/small3"}),
    "a second small-file stream that is too short": (
        FLAT,
        lambda found, w, s: (setattr(found, "head", [1, {}, {}, [1, 0, 0, 1, 1, 0, 1, 0, 0]]), found.refs.insert(1, w.put(s, b"short"))),
        {"flat/small2"},
    ),
    "a small-file stream that is too short": (FLAT, lambda found, w, s: found.refs.__setitem__(0, w.put(s, b"short")), {"flat/small1", "flat/small2", "flat/small3"}),
    "a name twice": (FLAT, lambda found, w, s: found.entries.append(found.entries[-1]), {"flat"}),
    "a name with a slash": (FLAT, lambda found, w, s: found.entries.append([b"z/z", *found.entries[0][1:]]), {"flat"}),
    "no order": (FLAT, lambda found, w, s: found.entries.reverse(), {"flat"}),
    "no name": (FLAT, lambda found, w, s: (found.entries.clear(), found.refs.clear(), found.entries.append([b"", 8, 0o644, 0, 0, 0, 0, 0])), {"flat"}),
    "a stream that is too short": (MIXED, lambda found, w, s: found.refs.__setitem__(1, w.put(s, b"short")), {"mixed/large"}),
    "a stream with a list in it": (MIXED, lambda found, w, s: found.refs.__setitem__(1, w.list(s, [found.refs[1]])), {"mixed/large"}),
    "a length that is not true": (MIXED, lambda found, w, s: found.refs.__setitem__(2, found.refs[2]._replace(size=found.refs[2].size + 1)), {"mixed/medium"}),
    "a directory that is longer": (NESTED, lambda found, w, s: setattr(found, "lie", 5), {"mixed/nested"}),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_fault_is_reported_with_its_paths(writer, name):
    path, change, expected = EXAMPLES[name]
    taken = writer.commit(path, change)
    assert writer.reported(taken) == expected
    assert writer.lost_by_restore(taken) == expected
    with writer.sandbox.open() as store:
        found = verify(store, castore.Progress(), read_data=True)
    (hit,) = [hit for hit in found.affected if hit.number == taken.number]
    assert (hit.part, set(hit.paths)) == ("t", expected)
    assert found.damage == []


def test_a_tree_that_does_not_decode_is_read_again_by_the_next_snapshot(tmp_path):
    writer = Writer(tmp_path)
    with writer.reader:
        (scan,) = (tmp_path / "sandbox" / "cache").rglob("s:t")
        with writer.sandbox.open() as store:
            assert verify(store, castore.Progress(), read_data=True).sound
        assert scan.exists()
        writer.commit(FLAT, EXAMPLES["no order"][1])
        with writer.sandbox.open() as store:
            assert not verify(store, castore.Progress(), read_data=True).sound
        assert not scan.exists()
    writer.store.close()


def test_details_that_do_not_decode_are_reported(writer):
    writer.written = set()
    with writer.store.session() as session:
        ref = writer.put(session, b"\x81\xa1x")
    taken = msgspec.structs.replace(writer.first, number=next(writer.numbers), details=StoredRef.of(ref))
    writer.store.generations.commit(taken)
    with writer.sandbox.open() as store:
        found = verify(store, castore.Progress(), read_data=True)
    hits = [(hit.part, hit.reason) for hit in found.affected if hit.number == taken.number]
    assert [part for part, _ in hits] == ["(details)"]
    assert "do not decode" in hits[0][1]


def test_a_deep_tree_is_decoded_without_recursion(tmp_path):
    writer = Writer(tmp_path)
    with writer.reader:
        writer.written = set()
        with writer.store.session() as session:
            ref = writer.list(session, [writer.put(session, Directory([1, {}, {}], [[b"f", 8, 0o644, 0, 0, 0, 9, 1]], []).frames())])
            for _ in range(3000):
                ref = writer.store_directory(session, Directory([1, {}, {}], [[b"d", 4, 0o755, 0, 0, 0, 0, 2]], [ref]))
            ref = writer.store_directory(session, Directory([1, {}, {}], [[b"", 4, 0o755, 0, 0, 0, 0, 2]], [ref]))
        part = msgspec.structs.replace(writer.first.parts[0], root=StoredRef.of(ref))
        taken = msgspec.structs.replace(writer.first, number=2, parts=(part,))
        writer.store.generations.commit(taken)
        assert writer.reported(taken) == {"d/" * 2999 + "d"}
    writer.store.close()


def test_a_directory_is_decoded_once_for_all_generations(writer, monkeypatch):
    decoded: list[Ref] = []

    def note(reader, ref, fetched):
        decoded.append(ref)
        return open_fetched(reader, ref, fetched)

    monkeypatch.setattr(trees_module, "open_fetched", note)
    reasons = Reasons(writer.store, {})
    trees = Trees(writer.reader, reasons)
    for _ in range(3):
        assert list(affected(writer.first, reasons, trees, writer.reader, decode=True)) == []
    # The top, those in it, nested, deep.
    assert len(decoded) == len({ref.id for ref in decoded}) == 1 + 3 + 1 + 1
    # As many as where only the graph is walked.
    blind = Reasons(writer.store, {})
    for _ in range(3):
        assert list(affected(writer.first, blind, trees, writer.reader, decode=False)) == []
    assert (reasons.nodes, reasons.chunks) == (blind.nodes, blind.chunks)
