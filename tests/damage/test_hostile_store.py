"""A store that somebody with a writer key made to exhaust a machine: castore ends soon, in little memory, and says why.

Every command runs in a process of its own with a limit on its address space and on its time.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import zstandard

import castore as api
from castore.errors import DamageError
from castore.kernel.id_set import IdSet
from castore.kernel.index_rows import Rows
from castore.model.generation import Details, Generation, Origin, Part, StoredRef
from castore.model.refs import MAX_NODE_REFS, RecordId, Ref, RefKind
from castore.model.spans import Spans
from castore.model.tree import Content, Entry, Owners, encode_entries, encode_owners
from castore.store.format import pack as packs
from castore.store.format.envelope import seal_object
from castore.store.format.header import REMOVAL
from castore.store.format.removal import Removal, record_removal, removals
from tests.property.test_hostile_bytes import Hostile
from tests.support.forged_generations import forge

Run = Callable[..., subprocess.CompletedProcess]

MEMORY = 2 << 30
"""Address space of a command."""
SECONDS = 60
CODES = {0, 1, 2, 3, 5, 6}
"""What may come of a command, of those that the README documents."""

pytestmark = pytest.mark.timeout(300)

_CHILD = """
import json, os, resource, signal, sys, time
from castore.cli import main as cli
from castore.services import drill, restore, find
from castore.maintenance import compact, verify

for args in json.loads(sys.stdin.read()):
    began = time.monotonic()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(writer, 2)
        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
        signal.alarm(int(sys.argv[2]))
        sys.argv = ["castore", *args]
        try:
            cli.main()
        except SystemExit as error:
            os._exit(error.code if isinstance(error.code, int) else 1)
        os._exit(99)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        text = said.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    print(json.dumps([args, os.waitstatus_to_exitcode(status), text[-2000:], time.monotonic() - began]))
"""


def run_all(commands: list[list[str]]) -> list[tuple[list[str], int, str]]:
    """Run commands one after the other, each with little memory and time; return what came of each."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(MEMORY), str(SECONDS)], input=json.dumps(commands), capture_output=True, text=True, check=False, timeout=280
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(commands), done.stderr
    return [(args, code, said) for args, code, said, _ in found]


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Hostile]:
    found = Hostile(tmp_path)
    yield found
    found.store.close()


def nested(hostile: Hostile, session, ref: Ref, levels: int, width: int = MAX_NODE_REFS) -> Ref:
    """Return a list that names a reference width ** levels times, in a node a level."""
    for _ in range(levels):
        ref = Ref(RefKind.INNER, hostile.node(session, [ref] * width), ref.size * width)
    return ref._replace(kind=RefKind.LIST)


def chunk(hostile: Hostile, session, data: bytes) -> Ref:
    record = hostile.store.reader.chunk_id(data)
    hostile.chunk(session, record, packs.ZSTD, zstandard.compress(data), len(data), ())
    return Ref(RefKind.CHUNK, record, len(data))


def directory(hostile: Hostile, session, entries: list[Entry], below: list[Ref]) -> Ref:
    first = chunk(hostile, session, encode_owners(Owners()) + encode_entries(entries))
    refs = [first, *below]
    while len(refs) > MAX_NODE_REFS:
        refs = [
            Ref(RefKind.INNER, hostile.node(session, part), sum(ref.size for ref in part))
            for part in (refs[at : at + MAX_NODE_REFS] for at in range(0, len(refs), MAX_NODE_REFS))
        ]
    return Ref(RefKind.LIST, hostile.node(session, refs), sum(ref.size for ref in refs))


def entry(name: bytes, kind: int = 4, size: int = 0, content: Content = Content.OWN) -> Entry:
    return Entry(name, kind, 0o755, 0, 0, 0, size, content)


def root(hostile: Hostile, session, top: Ref) -> Ref:
    return directory(hostile, session, [entry(b"")], [top])


def commit(hostile: Hostile, service: str, tree: Ref, dump: Ref, files: int, size: int = 0, details: Ref | None = None) -> None:
    """Commit two generations, so that there is something to compare."""
    zeros = dict.fromkeys(("chunks", "new_chunks", "new_bytes", "stored_bytes"), 0)
    parts = (
        Part("t", "tree", StoredRef.of(tree), size, files=files, **zeros),
        Part("d", "dump", StoredRef.of(dump), dump.size, files=0, **zeros),
    )
    live = hostile.sandbox.folder / "live"
    live.mkdir(exist_ok=True)
    (live / "file").write_text(service)

    def change(one: Generation) -> Generation:
        other = {} if details is None else {"details": StoredRef.of(details)}
        return msgspec.structs.replace(one, parts=parts, **other)

    forge(hostile.store, service, {"t": api.Tree(str(live))})
    forge(hostile.store, service, {"t": api.Tree(str(live))}, change)


def attack(hostile: Hostile, home: Path, castore: Run, services: list[str], monkeypatch: pytest.MonkeyPatch, *, damaged: bool = True) -> None:
    """Run all commands that read on a machine that never saw the store; damaged: whether something in it does not open."""
    (home / "identity").write_text(hostile.sandbox.identity.text())
    monkeypatch.setenv("CASTORE_STORE", str(hostile.sandbox.store))
    monkeypatch.setenv("CASTORE_IDENTITY", str(home / "identity"))
    castore("key", "adopt", "--host", "victim")
    commands = []
    for service in services:
        commands += [
            ["restore", f"{service}@2:t", f"{home}/{service}-t"],
            ["drill", f"{service}@2", "--scratch", str(home)],
            ["diff", f"{service}@1", f"{service}@2"],
            ["find", "*nothing*", service],
            ["ls", "-R", f"{service}@2:t"],
            ["show", f"{service}@2"],
            ["history", f"{service}:t/file"],
        ]
    commands += [["verify"], ["verify", "--read-data"], ["reindex"], ["prune", "--dry-run", "--keep-last", "1"], ["compact", "--dry-run"], ["log"], ["stats"]]
    done = run_all(commands)
    for args, code, said in done:
        assert code in CODES, (args, code, said)
        assert "a mistake in castore" not in said, (args, said)
        assert code in {0, 3} or said.startswith("castore: ") or "\ncastore: " in said or "damage" in said, (args, code, said)
    codes = {tuple(args): code for args, code, _ in done}
    assert codes["verify", "--read-data"] == (5 if damaged else 0)


def test_entries_details_and_lists_that_declare_much_take_little(hostile, home, castore, monkeypatch) -> None:
    with hostile.session() as session:
        small = chunk(hostile, session, b"x" * 64)
        large = chunk(hostile, session, encode_owners(Owners()) + b"\0" * 8100)
        tree = root(hostile, session, directory(hostile, session, [], []))
        # 8 TiB of entries; 512 ** 6 references to no bytes, and to 64.
        huge = nested(hostile, session, large, 4)
        entries = root(hostile, session, Ref(RefKind.LIST, hostile.node(session, [huge]), huge.size))
        empty = nested(hostile, session, Ref(RefKind.CHUNK, small.id, 0), 6)
        tiny = nested(hostile, session, chunk(hostile, session, b"y"), 5)
        # Directories that name more than their entries do.
        many = hostile.node(session, [Ref(RefKind.CHUNK, large.id, 1 << 40), tiny._replace(kind=RefKind.INNER)])
        listed = root(hostile, session, Ref(RefKind.LIST, many, (1 << 40) + tiny.size))
        small_files = [entry(b"a", 8, 1 << 50, Content.SMALL_FILES)]
        small_size = root(hostile, session, directory(hostile, session, small_files, [nested(hostile, session, large, 5, 256)]))
    commit(hostile, "entries", entries, small, 1)
    commit(hostile, "empty", tree, empty, 1)
    commit(hostile, "tiny", tree, tiny, 1)
    commit(hostile, "listed", listed, small, 1)
    commit(hostile, "small", small_size, small, 1)
    commit(hostile, "details", tree, small, 1, details=huge)
    attack(hostile, home, castore, ["entries", "empty", "tiny", "listed", "small", "details"], monkeypatch)


def test_directories_that_refer_to_each_other_often_end(hostile, home, castore, monkeypatch) -> None:
    """Few directories, each named a hundred times by the one above, have 100 ** 7 paths."""
    with hostile.session() as session:
        small = chunk(hostile, session, b"x" * 64)
        for leaf in (b"a", b"b"):
            below = directory(hostile, session, [entry(leaf, 8, 0, Content.NONE)], [])
            for _ in range(7):
                below = directory(hostile, session, [entry(b"%03d" % number) for number in range(100)], [below] * 100)
            commit(hostile, f"wide-{leaf.decode()}", root(hostile, session, below), small, 500)
    attack(hostile, home, castore, ["wide-a"], monkeypatch, damaged=False)
    done = run_all([["diff", "wide-a@2", "wide-a@1"], ["restore", "wide-b@2", str(home / "out")]])
    assert [code for _, code, _ in done][1] == 5
    assert "more directories than the record of its generation says" in done[1][2]


def test_deltas_of_many_large_chunks_end(hostile, home, castore, monkeypatch) -> None:
    """Each of four bases, on eight levels: 4 ** 8 chunks for one."""
    streams = [zstandard.compress(piece) for piece in (b"\0\0", b"\1\0", b"\0", b"")]
    data = struct.pack("<III", *map(len, streams[:3])) + b"".join(streams)
    plain = zstandard.compress(bytes(32 << 20))
    with hostile.session() as session:
        level: list[bytes] = []
        for number in range(64):
            level.append(number.to_bytes(32, "big"))
            hostile.chunk(session, level[-1], packs.ZSTD, plain, 32 << 20, ())
        for depth in range(8):
            above = [bytes([depth + 1]) * 16 + number.to_bytes(16, "big") for number in range(64)]
            for number, record in enumerate(above):
                bases = tuple(level[(number * 4 + at) % 64] for at in range(4))
                hostile.chunk(session, record, packs.DELTA + 3, data, 1, bases)
            level = above
        dumps = [Ref(RefKind.CHUNK, RecordId(record), 1) for record in level]
        dump = Ref(RefKind.LIST, hostile.node(session, dumps), len(dumps))
        tree = root(hostile, session, directory(hostile, session, [], []))
    commit(hostile, "deltas", tree, dump, 1)
    attack(hostile, home, castore, ["deltas"], monkeypatch)


def test_objects_of_any_size_are_refused_before_they_are_read(hostile, home, castore, monkeypatch) -> None:
    with hostile.session() as session:
        small = chunk(hostile, session, b"x" * 64)
        tree = root(hostile, session, directory(hostile, session, [], []))
    commit(hostile, "sparse", tree, small, 1)
    for name in ("generations/0123456789abcdef-0000000001", "sessions/" + "0" * 32 + ".0", "removals/0123456789abcdef-" + "0" * 32, "packs/" + "0" * 64):
        path = hostile.sandbox.store / name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.truncate(1 << 42)
    attack(hostile, home, castore, ["sparse"], monkeypatch)


def test_the_settings_of_a_part_take_little(hostile: Hostile, tmp_path: Path) -> None:
    """Values of any type take many times as much memory as bytes in the store."""
    nothing: list = []
    settings = {"a": [nothing] * (8 << 20)}
    plain = msgspec.msgpack.encode({"origins": {"t": {"engine": "file", "settings": settings}}})
    with pytest.raises(DamageError, match="longer than castore writes"):
        api_decode(plain)
    with pytest.raises(DamageError, match="more than castore writes"):
        api_decode(bytes(33 << 20))
    assert api_decode(msgspec.msgpack.encode(Details({"t": Origin(settings={"a": "b"})}))).origins["t"].settings == {"a": "b"}


def api_decode(plain: bytes) -> Details:
    from castore.model.generation import decode_details

    return decode_details(plain)


def test_removed_generations_are_spans(hostile: Hostile) -> None:
    """A record of 100 bytes lists up to 2 ** 32 numbers."""
    store = hostile.store
    name = f"removals/{store.keys.writer_key.tag('web').hex()}-{'0' * 32}"
    record = Removal(1, 1, ((1, 5), (10, 0xFFFFFFF0), (3, 7)))
    store.storage.put(name, seal_object(REMOVAL, name, msgspec.msgpack.encode(record), store.keys.writer_key))
    began = time.monotonic()
    found = removals(store.storage, store.keys.writer_key, "web").by_maintainers
    assert (7 in found, 8 in found, 1 << 31 in found, 0xFFFFFFF1 in found, 0 in found, found.spans[-1][1]) == (True, False, True, False, False, 0xFFFFFFF0)
    record_removal(store.storage, store.keys.writer_key, "web", [9])
    found = removals(store.storage, store.keys.writer_key, "web").by_maintainers
    assert found.spans == ((1, 7), (9, 0xFFFFFFF0))
    assert time.monotonic() - began < 5


def test_spans_are_the_set_that_they_stand_for() -> None:
    assert Spans.of([5, 1, 2, 2, 9]).spans == ((1, 2), (5, 5), (9, 9))
    assert not Spans()
    assert Spans().spans == ()
    assert Spans([(1, 3)]).union(Spans([(4, 6)]), Spans([(2, 2)])).spans == ((1, 6),)
    assert "x" not in Spans([(1, 3)])


def crafted(count: int) -> bytes:
    """Return ids that all begin with the same bytes, as no keyed hash would."""
    return b"".join(bytes(24) + number.to_bytes(8, "big") for number in range(count))


def test_ids_that_somebody_chose_do_not_meet_in_a_set() -> None:
    count = 200_000
    marks = IdSet()
    began = time.monotonic()
    assert marks.add(crafted(count)) == b"\1" * count
    assert len(marks) == count
    assert bytes(31) + b"\1" in marks
    # Those that begin the same are distinguished, too.
    assert bytes(24) + count.to_bytes(8, "big") not in marks
    assert time.monotonic() - began < 10


def test_ids_that_somebody_chose_do_not_meet_in_a_footer(tmp_path: Path) -> None:
    count = 200_000
    ids = crafted(count)
    entries = b"".join(struct.pack("<32sIIIHBB", ids[32 * at : 32 * at + 32], 1, 1, at, 0, 0, 0) for at in range(count))
    rows = Rows(str(tmp_path))
    began = time.monotonic()
    plain = struct.pack("<H", 1) + bytes(16) + entries
    assert rows.add(plain, count, (32, 32 + count), 0, [0]) == count
    assert sum(len(block) // 64 for block in rows.chunks.merged(1 << 16)) == count
    assert time.monotonic() - began < 20


def test_a_random_factor_is_another_one_in_every_process() -> None:
    command = [sys.executable, "-c", "import castore.kernel as k; print(list(k.ID_SEED))"]
    found = {subprocess.run(command, capture_output=True, check=True, env=os.environ.copy()).stdout for _ in range(2)}
    assert len(found) == 2
