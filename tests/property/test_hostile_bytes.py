"""Any bytes, in the place of any that are stored: castore's own errors come out, in bounded time and memory.

Most of what is stored is sealed: these are authentic, but malformed, as somebody with a stolen writer key
could write them; and what is stored on this machine in the clear, as a broken disk could leave it.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import castore
from castore.content.ref_tree import iter_chunks, iter_list
from castore.content.scan.cache import summary_of
from castore.content.scan.record_streams import decode_streams
from castore.content.streams import StreamReader
from castore.crypto import Identity, Recipient, WriterKey
from castore.errors import CastoreError, ConfigError, DamageError
from castore.kernel import MAX_GROUP, apply_delta, join_deltas
from castore.kernel.dir_entries import split_entries
from castore.kernel.dir_listing import decode_record, places_of, survey
from castore.kernel.small_streams import keep_files
from castore.maintenance.compact import compact, plan
from castore.maintenance.verify import verify
from castore.model import tree
from castore.model.generation import decode_details, decode_generation
from castore.model.refs import RecordId, Ref, RefKind, SessionId, decode_node, encode_node
from castore.model.tree import decode_entries, decode_entry, locate
from castore.services import config as toml
from castore.services.selectors import select
from castore.services.sources import Tree, file_source
from castore.store.format import pack as packs
from castore.store.format.codecs import Codecs
from castore.store.format.config import SealedConfig
from castore.store.format.deletion import open_deletion
from castore.store.format.envelope import seal_object
from castore.store.format.generation import open_generation
from castore.store.format.header import (
    CONFIG,
    DELETION,
    GENERATION,
    PACK,
    PIN,
    SESSION,
    check_header,
    header,
)
from castore.store.format.names import generation_name, session_name
from castore.store.format.pack import CHUNK, NODE, PackEntry, read_footer
from castore.store.format.pin import open_pin
from castore.store.format.session_key import decode_session
from castore.store.format.signed import sign
from castore.store.index import Index
from castore.store.index.pack_tables import PackContent
from castore.store.reachability import Walk, is_whole
from castore.store.read.delta_resolver import StoredForm, assemble
from castore.store.write.base_cache import BaseCache
from castore.store.write.session import Session
from tests.support.stores import Sandbox, certified, signed, take_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WRITER = certified()
KEY = WRITER.signer.public
IDENTITY = Identity.generate()
BOUND = 96 << 20
"""Bytes that a small input may take at most."""

pytestmark = pytest.mark.timeout(120)
common = settings(max_examples=150, suppress_health_check=list(HealthCheck))

# Values of any shape, and those that look like what is stored.
_leaf = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.binary(max_size=40) | st.text(max_size=12)
_value = st.recursive(
    _leaf, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(0, 9), inner, max_size=4), max_leaves=12
)


def _shaped(*fields: str) -> st.SearchStrategy[bytes]:
    """Maps with these fields, of values of any shape, encoded; or any bytes."""
    maps = st.dictionaries(st.sampled_from(fields), _value | st.just(1), max_size=len(fields))
    return maps.map(msgspec.msgpack.encode) | _value.map(msgspec.msgpack.encode) | st.binary(max_size=200) | st.just(b"\x91" * 5000)


class OneObject(castore.storage.Storage):
    """A storage that holds one object."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    location = "here"

    def create(self):
        raise NotImplementedError

    def get(self, name, offset=0, length=None):
        return self.data[offset : None if length is None else offset + length]

    def size(self, name):
        return len(self.data)

    def list(self, folder, after=""):
        return iter(())

    def delete(self, name):
        raise NotImplementedError


def tame(call: Callable[[], object]) -> object:
    """Call, and let nothing but castore's errors out."""
    with contextlib.suppress(CastoreError):
        return call()
    return None


def mangled(data: bytes, rng: random.Random) -> bytes:
    """Return bytes as a broken disk or a hostile hand leaves them."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        what = rng.randrange(6)
        at = rng.randrange(len(out) + 1)
        if what == 0 and out:
            out[at - 1] ^= 1 << rng.randrange(8)
        elif what == 1:
            del out[at:]
        elif what == 2:
            out[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 0xFFFFFFFF, 1 << 40, (1 << 64) - 1)))
        elif what == 3:
            out[at:at] = rng.randbytes(rng.randrange(20))
        elif what == 4:
            out[at : at + 30] = bytes(len(out[at : at + 30]))
        else:
            out[at : at + 4] = b"\xff" * len(out[at : at + 4])
    return bytes(out)


# Objects


@common
@given(data=st.binary(max_size=40) | st.binary(max_size=8).map(lambda rest: b"castorep" + rest))
def test_headers(data):
    for kind in (CONFIG, SESSION, PACK, GENERATION, DELETION, PIN):
        tame(lambda kind=kind: check_header("packs/x", data, kind))


@common
@given(data=st.binary(max_size=300), count=st.integers(0, 65535), plain=_shaped("version", "created", "average_chunk_size", "recipients"))
def test_configurations(data, count, plain):
    tame(lambda: SealedConfig(1, data).open(WRITER))
    tame(lambda: SealedConfig(1, header(CONFIG) + data).secret(IDENTITY))
    start = header(CONFIG) + WRITER.store_id + struct.pack("<H", count) + data

    def read():
        sealed = SealedConfig(1, start + bytes(96 * min(count, 3)) + b"x" * 50)
        sealed.secret(IDENTITY)
        return sealed.open(WRITER)

    tame(read)
    seals = header(CONFIG) + WRITER.store_id + struct.pack("<H", 0)
    about = b"config/1" + seals
    authentic = seals + WRITER.objects.seal(about, sign(WRITER.signer, about, plain))
    tame(lambda: SealedConfig(1, authentic).open(WRITER))


@common
@given(plain=_shaped("version", "time", "host", "cipher", "sealed_keys"), seals=_value)
@example(plain=msgspec.msgpack.encode({"version": 1, "time": 0, "host": "", "cipher": 1, "sealed_keys": [[b"", b""]]}), seals=None)
def test_sessions(plain, seals):
    session = SessionId(bytes(16))
    name = session_name(session, 0)
    own = msgspec.msgpack.encode({"version": 1, "time": 1, "host": "h", "cipher": 1, "sealed_keys": seals, "writer": KEY})
    for one in (plain, own):
        data = seal_object(SESSION, name, one, WRITER, more=session)

        def read(data=data):
            record = decode_session(session, 0, data, WRITER)
            record.data_key(name, session, IDENTITY)

        tame(read)


_GENERATION = ("service", "number", "time", "revision", "host", "parts", "details", "session", "version", "parent")


@common
@given(plain=_shaped(*_GENERATION), service=st.text(max_size=20), number=st.integers(-2, 1 << 40), parts=_value)
def test_generations(plain, service, number, parts):
    tame(lambda: decode_generation(plain))
    tame(lambda: decode_details(plain))
    ref = [1, bytes(32), 5]
    good = {"service": service, "number": number, "time": 1, "revision": "", "host": "h", "host_id": KEY.hex(), "parts": [], "details": ref, "session": b""}
    for one in (plain, msgspec.msgpack.encode(good), msgspec.msgpack.encode({**good, "parts": parts})):
        for name in ("generations/0123456789abcdef-0000000001", _name_of(service, number)):
            data = seal_object(GENERATION, name, one, WRITER)
            tame(lambda name=name, data=data: open_generation(name, data, WRITER))


def _name_of(service: str, number: int) -> str:
    try:
        return generation_name(WRITER.tag(service), number)
    except UnicodeEncodeError:
        return "generations/0123456789abcdef-0000000001"


@common
@given(plain=_shaped("version", "time", "packs", "note"), packs_=_value)
def test_pending_deletions_and_pins(plain, packs_):
    own = msgspec.msgpack.encode({"version": 1, "time": 1, "packs": packs_, "note": packs_})
    for one in (plain, own):
        for kind, name in ((DELETION, "deletions/" + "0" * 32), (PIN, "pins/0123456789abcdef-0000000001")):
            data = seal_object(kind, name, one, WRITER)
            tame(lambda name=name, data=data: open_deletion(name, data, WRITER))
            tame(lambda name=name, data=data: open_pin(name, data, WRITER))


# Packs


def sealed_pack(footer: bytes, length: int, count: int, records: bytes = b"") -> bytes:
    start = header(PACK) + bytes(16)
    associated = WRITER.store_id + start
    about = b"footer" + associated
    box = WRITER.objects.seal(about, sign(WRITER.signer, about, footer))
    trailer = WRITER.objects.seal(b"trailer" + associated, struct.pack("<II", length if length >= 0 else len(box), count))
    return start + records + box + trailer


_entry = st.builds(
    lambda *fields: struct.pack("<32sIIIHBB", *fields),
    st.sampled_from([bytes(32), b"\1" * 32, b"\2" * 32]),
    *(st.sampled_from([0, 1, 17, 200, 0xFFFFFFFF]) for _ in range(3)),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 10),
)


@common
@given(
    table=st.integers(0, 3) | st.just(65535),
    entries=st.lists(_entry, max_size=6),
    rest=st.binary(max_size=64) | st.integers(0, 8).map(lambda count: bytes(32 * count)),
    length=st.sampled_from([-1, -1, -1, 0, 40, 1 << 20, 0xFFFFFFFF]),
    count=st.integers(0, 7) | st.just(0xFFFFFFFF),
    records=st.binary(max_size=100),
)
def test_packs(tmp_path_factory, table, entries, rest, length, count, records):
    footer = struct.pack("<H", table) + bytes(16 * min(table, 3)) + b"".join(entries) + rest
    data = sealed_pack(footer, length, count, records)
    found = tame(lambda: read_footer(OneObject(data), "packs/" + "0" * 64, WRITER))
    if found is not None:
        entries_, size = found
        assert all(entry.offset + entry.sealed_length <= size for entry in entries_)
        index = _index()
        index.clear()
        index.packs.put([PackContent(packs.PackId(bytes(32)), size, entries_)])
        ids = [entry.id for entry in entries_]
        tame(lambda: index.locations.contains(ids))
        tame(lambda: index.locations.locate_chunks(ids))
        tame(lambda: [index.locations.missing_base(one) for one in ids])
        tame(lambda: index.packs.remove([packs.PackId(bytes(32))]))


_indexes: list[tuple[Index, str]] = []


def _index() -> Index:
    if not _indexes:
        folder = tempfile.mkdtemp(prefix="castore-hostile-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        _indexes.append((Index(os.path.join(folder, "index"), bytes(16)), folder))
    return _indexes[0][0]


@pytest.fixture(scope="module", autouse=True)
def _close_index() -> Iterator[None]:
    yield
    while _indexes:
        index, folder = _indexes.pop()
        index.close()
        shutil.rmtree(folder)


@common
@given(seed=st.integers(0, 1 << 32))
def test_packs_that_were_sound(seed):
    rng = random.Random(seed)
    data = sealed_pack(struct.pack("<H", 1) + bytes(16) + struct.pack("<32sIIIHBB", bytes(32), 20, 20, 0, 0, 0, 0), -1, 1, bytes(20))
    assert read_footer(OneObject(data), "packs/" + "0" * 64, WRITER)
    tame(lambda: read_footer(OneObject(mangled(data, rng)), "packs/" + "0" * 64, WRITER))


# The graph: what only somebody who holds keys can write


@common
@given(data=st.binary(max_size=100) | st.integers(0, 600).map(lambda count: bytes(40 * count)))
def test_nodes(data):
    tame(lambda: decode_node(data))


@common
@given(data=st.binary(max_size=120), seed=st.integers(0, 1 << 32), values=st.lists(_value, max_size=10))
def test_entries(data, seed, values):
    frames = [msgspec.msgpack.encode(value) for value in ([1, {}, {}], values, [b"a", 8, 0o644, 0, 0, 0, 5, 1], *values[:2])]
    framed = b"".join(len(frame).to_bytes(4, "little") + frame for frame in frames)
    for one in (data, framed, mangled(framed, random.Random(seed))):
        tame(lambda one=one: decode_entries(one))
        tame(lambda one=one: decode_entry(one))
        tame(lambda one=one: split_entries(one, min(4, len(one))))


@common
@given(runs=st.lists(st.integers(0, 4) | st.integers(-1, 1 << 64), max_size=9), small=st.integers(0, 4))
def test_places_of_small_files(runs, small):
    entries = [tree.Entry(b"%d" % one, 8, 0o644, 0, 0, 0, 5, tree.Content.SMALL_FILES) for one in range(small)]
    data = tree.encode_entries(entries)
    tame(lambda: locate(tree.Owners(runs=tuple(runs)), entries))
    if min(runs, default=0) >= 0 and max(runs, default=0) < 1 << 64:
        split = split_entries(data, 0, runs)
        assert split is None or sum(split.ends) >= 5 * small


class Hostile:
    """A store into which anything is put that its keys can seal."""

    def __init__(self, folder: Path) -> None:
        self.sandbox = Sandbox(folder / "sandbox", average=4096)
        self.store = self.sandbox.open()
        self.sessions: list[Session] = []

    def session(self) -> Session:
        found = self.store.session()
        self.sessions.append(found)
        return found

    def node(self, session: Session, refs: list[Ref], record_id: bytes | None = None) -> RecordId:
        """Put a node, under another id than its own if one is given: a reader distinguishes the two."""
        return self.raw(session, encode_node(refs), record_id)

    def raw(self, session: Session, plain: bytes, record_id: bytes | None = None) -> RecordId:
        from blake3 import blake3

        own = RecordId(record_id or blake3(plain, key=self.store.keys.writer_key.node_id_key).digest())
        codec, data = session._codecs.compress(plain)
        counter = session._node_counter.take()
        record = session._node_sealer.seal(counter, own, len(plain), NODE, codec, data)
        session._append_record([PackEntry(own, NODE, codec, len(plain), len(record), counter, session.id)], record)
        return own

    def chunk(self, session: Session, record_id: bytes, codec: int, data: bytes, length: int, bases: tuple[bytes, ...]) -> None:
        """Put a chunk's record as it is: whatever its id, its length and its bases are."""
        counter = session._chunk_counter.take()
        names = packs.record_names(RecordId(record_id), length, CHUNK, codec)
        record = session._chunk_sealer.seal(counter, *names, data)
        entry = PackEntry(RecordId(record_id), CHUNK, codec, length, len(record), counter, session.id, 0, bases)
        session._append_record([entry], record)


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Hostile]:
    found = Hostile(tmp_path)
    yield found
    found.store.close()


def bounded(call: Callable[[], object], bound: int = BOUND) -> None:
    """Call; let only castore's errors out, and see that not much memory was asked for."""
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        tame(call)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak < bound, f"{peak} bytes were allocated"
    assert (after - before) * 1024 < bound + (32 << 20)


def group(*streams: bytes) -> bytes:
    """Return the payload of a delta group with these four streams."""
    frames = [zstandard.compress(stream) for stream in streams]
    return struct.pack("<III", *map(len, frames[:3])) + b"".join(frames)


EMPTY_DELTA = group(b"\0", b"\0", b"", b"")
"""A group of one delta, of an empty chunk."""


def test_nodes_that_hold_themselves_end(hostile):
    """By hashes they cannot; by the index of a lying pack they seem to, until they are opened."""
    with hostile.session() as session:
        one, two = b"\1" * 32, b"\2" * 32
        for kind in (RefKind.LIST, RefKind.INNER):
            hostile.node(session, [Ref(kind, RecordId(two), 0)], one)
            hostile.node(session, [Ref(kind, RecordId(one), 0)], two)
    for root in (one, two):
        ref = Ref(RefKind.LIST, RecordId(root), 0)
        tame(lambda ref=ref: list(iter_list(hostile.store, ref)))
        tame(lambda ref=ref: is_whole(hostile.store, [ref]))
        tame(lambda ref=ref: list(Walk(hostile.store).runs([ref])))
    tame(lambda: verify(hostile.store, castore.Progress(), read_data=True))


def deep(hostile: Hostile, kind: RefKind, levels: int) -> Ref:
    with hostile.session() as session:
        ref = Ref(RefKind.CHUNK, RecordId(bytes(32)), 0)
        for _ in range(levels):
            ref = Ref(kind, hostile.node(session, [ref]), 0)
    return ref._replace(kind=RefKind.LIST)


@pytest.mark.parametrize("kind", [RefKind.LIST, RefKind.INNER])
def test_nodes_that_are_nested_deeply_end(hostile, kind):
    ref = deep(hostile, kind, 3000)
    with StreamReader(hostile.store) as reader:
        tame(lambda: list(iter_list(hostile.store, ref)))
        tame(lambda: list(iter_chunks(hostile.store, ref)))
        tame(lambda: list(reader.read(ref)))
        assert not is_whole(hostile.store, [ref])
        commit(hostile, ref)
        tame(lambda: select(hostile.store, "web@1:t"))
        tame(lambda: verify(hostile.store, castore.Progress()))
        tame(lambda: plan(hostile.store))
        tame(lambda: compact(hostile.store, castore.Progress(), max_unused=0, grace_seconds=0, unfinished_seconds=0))
        tame(lambda: hostile.sandbox.restore("web@1:t", hostile.sandbox.folder / "out"))
        tame(lambda: hostile.sandbox.restore("web@1:d", hostile.sandbox.folder / "out"))


def commit(hostile: Hostile, ref: Ref) -> None:
    from castore.model.generation import Generation, Part, StoredRef

    zeros = dict.fromkeys(("files", "chunks", "new_chunks", "new_bytes", "stored_bytes"), 0)
    parts = tuple(Part(name, kind, StoredRef.of(ref), ref.size, **zeros) for name, kind in (("t", "tree"), ("d", "dump")))
    stored = StoredRef.of(ref)
    assert stored is not None
    hostile.store.generations.commit(signed(hostile.store, Generation("web", 1, 1, "", "", parts, stored, bytes(16))))


def test_lists_that_fan_out_end(hostile):
    """Few nodes, each named often by the one above, stand for more than any machine can go through.

    What restores has to stop at what the generation says that it holds; what walks the graph sees each once.
    """
    with hostile.session() as session:
        ref = Ref(RefKind.CHUNK, RecordId(bytes(32)), 0)
        for _ in range(40):
            ref = Ref(RefKind.INNER, hostile.node(session, [ref] * 512), 0)
    root = ref._replace(kind=RefKind.LIST)
    assert not is_whole(hostile.store, [root])
    commit(hostile, root)
    tame(lambda: verify(hostile.store, castore.Progress()))
    tame(lambda: plan(hostile.store))


def test_circular_deltas_end(hostile):
    one, two, three = (bytes([n]) * 32 for n in (1, 2, 3))
    with hostile.session() as session:
        for record_id, base in ((one, two), (two, one), (three, three)):
            hostile.chunk(session, record_id, packs.DELTA, EMPTY_DELTA, 0, (base,))
    index = hostile.store.index
    assert index.locations.contains([one, two, three]) == [False] * 3
    for record_id in (one, two, three):
        assert index.locations.missing_base(RecordId(record_id)) is not None
        bounded(lambda record_id=record_id: hostile.store.read_chunk(RecordId(record_id)))
        bounded(lambda record_id=record_id: hostile.store.read_chunks([RecordId(record_id)]))
    commit(hostile, Ref(RefKind.CHUNK, RecordId(one), 0))
    assert not verify(hostile.store, castore.Progress()).sound
    tame(lambda: compact(hostile.store, castore.Progress(), max_unused=0, grace_seconds=0, unfinished_seconds=0))


@pytest.mark.parametrize("width", [1, 4])
def test_long_chains_of_deltas_end(hostile, width):
    """Far longer ones than are written, and such as fan out."""
    ids = [n.to_bytes(32, "big") for n in range(1, 1501)]
    codec = packs.DELTA + width - 1
    with hostile.session() as session:
        for position, record_id in enumerate(ids):
            bases = (ids[position + 1],) * width if position + 1 < len(ids) else ()
            if bases:
                hostile.chunk(session, record_id, codec, EMPTY_DELTA, 0, bases)
            else:
                hostile.chunk(session, record_id, packs.RAW, b"", 0, ())
    index = hostile.store.index
    first = RecordId(ids[0])
    tame(lambda: index.locations.contains([first]))
    tame(lambda: index.locations.missing_base(first))
    tame(lambda: index.locations.locate_chunks([first]))
    bounded(lambda: hostile.store.read_chunk(first))
    bounded(lambda: hostile.store.read_chunks([first]))
    commit(hostile, Ref(RefKind.CHUNK, first, 0))
    tame(lambda: verify(hostile.store, castore.Progress(), read_data=True))
    tame(lambda: compact(hostile.store, castore.Progress(), max_unused=0, grace_seconds=0, unfinished_seconds=0))
    tame(hostile.store.updater.rebuild)


def bomb(size: int) -> bytes:
    """Return a frame that says that it has many bytes, and has."""
    compressor = zstandard.ZstdCompressor(level=1)
    parts = compressor.compressobj(size=size)
    out = b"".join(parts.compress(bytes(1 << 20)) for _ in range(size >> 20))
    return out + parts.flush()


def unsaid(data: bytes) -> bytes:
    """Return a frame that does not say how many bytes it has."""
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


@pytest.mark.parametrize("claim", [10, 4096, 1 << 20, 0xFFFFFFFF])
@pytest.mark.parametrize("what", ["stated", "not stated", "false"])
@pytest.mark.parametrize("codec", range(packs.ZSTD, len(packs.BASES)))
def test_records_that_claim_much_take_little(hostile, codec, what, claim):
    frame = {"stated": lambda: bomb(64 << 20), "not stated": lambda: unsaid(b"x" * 5000), "false": lambda: _lie(0xFFFFFFF0)}[what]()
    base = b"\7" * 32
    bases = (base,) * packs.BASES[codec]
    with hostile.session() as session:
        hostile.chunk(session, b"\1" * 32, codec, frame, claim, bases)
        hostile.chunk(session, base, packs.RAW, b"base", 4, ())
    bounded(lambda: hostile.store.read_chunk(RecordId(b"\1" * 32)))
    bounded(lambda: hostile.store.read_chunks([RecordId(b"\1" * 32)]))


def _lie(size: int) -> bytes:
    """Return a frame whose header announces `size` bytes, with a few in it."""
    return struct.pack("<IBI", 0xFD2FB528, 0xA0, size) + b"\x01\0\0"


@pytest.mark.parametrize("size", [1 << 20, 64 << 20, 256 << 20])
@pytest.mark.parametrize("position", range(4))
def test_groups_that_claim_much_take_little(position, size):
    frames = [zstandard.compress(b"\0")] * 4
    for frame in (bomb(size), _lie(0xFFFFFFF0), unsaid(bytes(100))):
        frames[position] = frame
        data = struct.pack("<III", *map(len, frames[:3])) + b"".join(frames)
        bounded(lambda data=data: Codecs().group(data), 160 << 20)


def test_deltas_that_claim_much_take_little(hostile):
    for claim in (1 << 28, 0xFFFFFFFF):
        with hostile.session() as session:
            hostile.chunk(session, b"\1" * 31 + bytes([claim & 0xFF]), packs.DELTA, EMPTY_DELTA, claim, (b"\7" * 32,))
            hostile.chunk(session, b"\7" * 32, packs.RAW, b"base", 4, ())
        bounded(lambda claim=claim: hostile.store.read_chunk(RecordId(b"\1" * 31 + bytes([claim & 0xFF]))))
        bounded(lambda claim=claim: hostile.store.read_chunks([RecordId(b"\1" * 31 + bytes([claim & 0xFF]))]))


@common
@given(data=st.binary(max_size=300), lengths=st.lists(st.integers(0, 1 << 33), min_size=3, max_size=3))
def test_groups(data, lengths):
    tame(lambda: Codecs().group(data))
    tame(lambda: Codecs().group(struct.pack("<III", *(length & 0xFFFFFFFF for length in lengths)) + data))


@common
@given(streams=st.lists(st.binary(max_size=80), min_size=4, max_size=4))
def test_streams_of_groups(streams):
    found = join_deltas(streams)
    assert found is None or len(found) <= MAX_GROUP


@common
@given(base=st.binary(max_size=100), delta=st.binary(max_size=60), length=st.integers(0, 300))
def test_deltas(base, delta, length):
    made = apply_delta(base, delta, length)
    assert made is None or len(made) == length


@common
@given(bases=st.dictionaries(st.integers(0, 12), st.lists(st.integers(0, 12), max_size=4), min_size=1))
def test_chunks_assembled_from_anything(bases):
    def layer(chunk):
        position = chunk[0]
        return StoredForm(b"\0", 0, tuple(RecordId(bytes([one]) * 32) for one in bases[position]))

    calls = []

    def counted(chunk):
        calls.append(chunk)
        assert len(calls) < 100_000
        return layer(chunk)

    with contextlib.suppress(KeyError, DamageError):
        assemble(RecordId(bytes([next(iter(bases))]) * 32), counted, {})


# What is stored on this machine


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sandbox, Path, Path]]:
    folder = tmp_path_factory.mktemp("scanned")
    sandbox = Sandbox(folder / "sandbox", average=4096)
    live = folder / "live"
    (live / "a" / "b").mkdir(parents=True)
    for number in range(5):
        (live / "a" / f"f{number}").write_bytes(bytes([number]) * 400)
    (live / "a" / "b" / "deep").write_text("deep")
    sandbox.snapshot("web", {"t": Tree(str(live))})
    (cache,) = (folder / "sandbox" / "cache").rglob("web:t")
    return sandbox, live, cache


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32), rehashed=st.booleans())
def test_scan_caches(scanned, seed, rehashed):
    """Damaged, it is of no use, and the tree is scanned again; with a right hash it is still no crash."""
    from blake3 import blake3

    sandbox, live, cache = scanned
    with sandbox.open(identity=False) as store:
        take_snapshot(store, "web", {"t": Tree(str(live))})
    sound = cache.read_bytes()
    rng = random.Random(seed)
    data = mangled(sound, rng)
    if rehashed and len(data) > 200:
        # Flipped after the header, with a right hash: what a hash cannot detect.
        body = sound[:104] + mangled(sound[104:-32], rng)
        data = body + blake3(body).digest()
    cache.write_bytes(data)
    try:
        if rehashed:
            _decoded(data)
        else:
            with sandbox.open(identity=False) as store:
                take_snapshot(store, "web", {"t": Tree(str(live))})
    finally:
        cache.write_bytes(sound)


def _decoded(data: bytes) -> None:
    at = 104
    while at < len(data) - 32:
        try:
            record = decode_record(data, at)
        except ValueError:
            return
        places_of(record.listing)
        summary_of(record)
        with contextlib.suppress(DamageError):
            keep_all(record)
        if record.below <= at:
            return
        at = record.below


@common
@given(data=st.binary(max_size=400), seed=st.integers(0, 1 << 32))
def test_records_of_scan_caches(data, seed):
    with contextlib.suppress(ValueError, DamageError):
        record = decode_record(data, 0)
        places_of(record.listing)
        keep_all(record)
    places_of(data)


def keep_all(record):
    """Keep the small files of a record that has them all, as the next scan does."""
    listing = record.listing
    found = survey(listing, 1 << 16)
    streams = decode_streams(record)
    if len(record.marks) == len(found.kinds):
        keep_files(record, streams.runs, 1 << 62, listing, found.places, found.kinds)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=100) | st.binary(max_size=60).map(lambda rest: b"castorer\1\0\x20\0\0\0\0\0" + rest), offset=st.integers(0, 200), length=st.integers(0, 200))
def test_base_cache_files(tmp_path_factory, data, offset, length):
    folder = tmp_path_factory.mktemp("base-cache")
    cache = BaseCache(str(folder))
    pack = packs.PackId(bytes(32))
    Path(cache.path_of(pack)).write_bytes(data)
    found = cache.read(pack, offset, length)
    assert found is None or len(found) <= length
    cache.evict({})
    cache.close()


# Text


_toml_value = st.recursive(
    st.booleans() | st.integers(-5, 1 << 40) | st.floats() | st.text(max_size=8).map(lambda text: text) | st.sampled_from(["/x", "~/x", "tree", "file", "command", "30d", "02:30"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["path", "engine", "a", "last"]) | st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_KEYS = ("store", "recipients", "base-cache", "service", "parts", "web", "engine", "path", "keep", "last", "within", "revision", "value", "paths", "before", "timeout", "schedule", "follow", "exclude", "program")


def _written(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(str(key))} = {_written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _quoted(value)
    return repr(value)


def _quoted(text: str) -> str:
    return msgspec.json.encode(text.encode("utf-8", "replace").decode()).decode()


_table = st.recursive(_toml_value, lambda inner: st.dictionaries(st.sampled_from(_KEYS), inner, max_size=4), max_leaves=12)


@common
@given(document=st.dictionaries(st.sampled_from(_KEYS), _table, max_size=4), service=_table, part=_table, raw=st.binary(max_size=80))
def test_configuration_files(tmp_path_factory, document, service, part, raw):
    path = tmp_path_factory.mktemp("toml") / "castore.toml"
    texts = ["\n".join(f"{_quoted(key)} = {_written(value)}" for key, value in document.items())]
    texts.append(f"[service]\nweb = {_written(service)}\n")
    texts.append(f"[service.web.parts]\np = {_written(part)}\n")
    texts.append(f'[service.web.parts.p]\nengine = "tree"\npath = {_written(part)}\n[service.web]\nkeep = {_written(service)}\n')
    for text in (*(text.encode() for text in texts), raw):
        path.write_bytes(text)
        try:
            toml.load(str(path), home="/root", programs=False)
        except ConfigError as error:
            assert str(path) in str(error)


@common
@given(depth=st.sampled_from([10, 1000, 30_000]), opening=st.sampled_from(["[", "{a=", "[[a.", "a."]))
def test_configuration_files_without_end(tmp_path_factory, depth, opening):
    path = tmp_path_factory.mktemp("toml") / "castore.toml"
    path.write_text("x = " + opening * depth)
    with pytest.raises(ConfigError):
        toml.load(str(path), programs=False)


@common
@given(text=st.text(max_size=80), prefix=st.sampled_from(["castore-pub-", "castore-identity-", "castore-locked-", "castore-writer-"]))
def test_keys(text, prefix):
    for one in (text, prefix + text):
        tame(lambda one=one: Recipient.parse(one))
        tame(lambda one=one: Identity.parse(one, lambda: ""))
        tame(lambda one=one: WriterKey.parse(one))


# The index


_CHILD = """
import sys
from castore.errors import CastoreError
from castore.crypto import Identity
from castore.process.own_process import declare_own_process
from castore.services.snapshot import SnapshotRequest, snapshot
from castore.services.sources import file_source
from castore.store import MachinePaths, open_store

declare_own_process()  # as the command line: a crash by the index is recorded
store, state, cache, identity, dump, data = sys.argv[1:]
found = Identity.parse(identity, lambda: "")
try:
    with open_store(store, MachinePaths(state, cache), lambda: found) as opened:
        opened.sync()
        taken = snapshot(opened, SnapshotRequest(service="web", sources={"d": file_source(dump)}))
        print("taken", taken.number)
except CastoreError as error:
    print("refused", error)
"""


def flipped_index(sandbox: Sandbox, folder: Path, dump: Path, rng: random.Random) -> str:
    """Break an index somewhere, and take a generation by it; return what came of that."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(sandbox.folder, work)
    (data,) = work.rglob("data.mdb")
    content = bytearray(data.read_bytes())
    how = rng.randrange(5)
    page = 4096 * rng.randrange(len(content) // 4096)
    if how == 0:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif how == 1:
        content[page : page + 4096] = bytes(4096)
    elif how == 2:
        del content[page + rng.randrange(4096) :]
    elif how == 3:
        other = 4096 * rng.randrange(len(content) // 4096)
        content[page : page + 4096] = content[other : other + 4096]
    else:
        at = page + rng.randrange(24)
        content[at : at + 4] = rng.randbytes(4)
    data.write_bytes(content)
    words = [work / "store", work / "state", work / "cache", sandbox.identity.text(), dump, data]
    command = [sys.executable, "-c", _CHILD, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    before = ""
    if done.returncode < 0 or done.stdout.startswith("refused"):
        # LMDB believes what it maps. It does so once: the next one builds the index again.
        before = "refused, then "
        if done.returncode < 0:
            before = f"crashed by {-done.returncode}, then "
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("taken"), (before, done.stdout)
    # What was acknowledged has to be there, whatever the index said.
    copy = object.__new__(Sandbox)
    copy.folder, copy.identity = work, sandbox.identity
    shutil.rmtree(work / "cache")
    with copy.open() as store:
        store.sync()
        verified = verify(store, castore.Progress(), read_data=True)
        assert verified.sound, (how, verified.damage, verified.affected)
        assert copy_dump(store) == dump.read_bytes()
    return before + "taken"


def copy_dump(store) -> bytes:
    from castore.services.reading import read

    with StreamReader(store) as reader:
        return b"".join(read(reader, select(store, "web@latest:d")))


def index_lab(folder: Path) -> tuple[Sandbox, Path]:
    """A sandbox whose index lists two generations, and a dump that is much like them."""
    sandbox = Sandbox(folder / "sandbox", average=4096)
    dump = folder / "dump"
    base = random.Random(1).randbytes(120_000)
    for number in range(2):
        dump.write_bytes(base + random.Random(number + 2).randbytes(40_000))
        sandbox.snapshot("web", {"d": file_source(str(dump))})
    dump.write_bytes(base + b"more")
    return sandbox, dump


def break_indexes(folder: Path, count: int, seed: int) -> dict[str, int]:
    sandbox, dump = index_lab(folder)
    rng = random.Random(seed)
    found: dict[str, int] = {}
    for _ in range(count):
        came = flipped_index(sandbox, folder, dump, rng)
        found[came] = found.get(came, 0) + 1
    return found


@pytest.fixture
def memory() -> Iterator[Path]:
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="castore-hostile-", dir=folder) as path:
        yield Path(path)


def test_a_broken_index_is_reported_or_rebuilt(memory: Path) -> None:
    found = break_indexes(memory, 25, 1)
    print(f"broken indexes: {found}")
    assert found["taken"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_broken_indexes_are_reported_or_rebuilt(memory: Path) -> None:
    found = break_indexes(memory, 1000, random.randrange(1 << 30))
    print(f"broken indexes: {found}")
    assert found["taken"]
