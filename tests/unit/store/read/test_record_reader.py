"""The reader of records opens only what is stored under its own id."""

from __future__ import annotations

import os

import pytest

from castore.errors import DamageError
from castore.model.refs import MAX_NODE_REFS, RecordId, Ref, RefKind, encode_node
from castore.store import NewChunk, Session, Store
from castore.store.format.names import pack_name
from castore.store.format.pack import CHUNK, NODE, RECORDS, PackEntry
from castore.store.reachability import Walk
from tests.support.stores import Sandbox


@pytest.fixture
def store(tmp_path):
    with Sandbox(tmp_path).open() as opened:
        yield opened


def put_node(session: Session, plain: bytes, record_id: bytes) -> RecordId:
    """Put a node of these bytes under an id of the caller's choice, as a thief of the writer key could."""
    codec, data = session._codecs.compress(plain)
    counter = session._node_counter.take()
    record = session._node_sealer.seal(counter, RecordId(record_id), len(plain), NODE, codec, data)
    session._append_record(
        [PackEntry(RecordId(record_id), NODE, codec, len(plain), len(record), counter, session.id)], record
    )
    return RecordId(record_id)


def a_chunk() -> Ref:
    return Ref(RefKind.CHUNK, RecordId(os.urandom(32)), 1)


def test_a_node_under_another_id_is_damaged_alone_and_in_a_batch(store: Store) -> None:
    with store.session() as session:
        sound, _ = session.put_node([a_chunk()])
        forged = put_node(session, encode_node([a_chunk()]), bytes(32))
    assert store.reader.read_nodes_bytes([sound, sound])
    for read in (lambda: store.reader.read_node(forged), lambda: store.reader.read_nodes_bytes([sound, forged])):
        with pytest.raises(DamageError):
            read()


def test_of_two_copies_the_damaged_one_is_found_wherever_the_other_is(store: Store, tmp_path) -> None:
    content = b"content" * 100
    with store.session() as first, store.session() as second:
        for session in (first, second):
            chunk = NewChunk(session.chunk_id(content), 0, len(content))
            session.append(session.seal(bytearray(content), [chunk])[0])
            session.finish()
    place, (copy,) = store.index.locations.locate(CHUNK, chunk.id), store.index.locations.copies(chunk.id)
    assert place is not None
    for damaged, intact in ((copy.pack, place.pack), (place.pack, copy.pack)):
        path = tmp_path / "store" / pack_name(damaged)
        data = path.read_bytes()
        path.write_bytes(data[: RECORDS + 10] + bytes([data[RECORDS + 10] ^ 1]) + data[RECORDS + 11 :])
        entries = store.reader.pack_entries(damaged)
        assert [entry.id for entry, _ in store.reader.broken_entries(damaged, entries)] == [chunk.id]
        assert list(store.reader.broken_entries(intact, store.reader.pack_entries(intact))) == []
        assert store.read_chunk(chunk.id) == content
        path.write_bytes(data)


@pytest.mark.parametrize("count", [1, MAX_NODE_REFS])
def test_a_walk_passes_through_a_node_of_any_permitted_length(store: Store, count: int) -> None:
    chunks = [a_chunk() for _ in range(count)]
    with store.session() as session:
        node, _ = session.put_node(chunks)
    root = Ref(RefKind.LIST, node, count)
    assert list(Walk(store).refs([root])) == [[root], chunks]


@pytest.mark.parametrize("count", [0, MAX_NODE_REFS + 1])
def test_a_walk_refuses_a_node_of_another_length(store: Store, count: int) -> None:
    from blake3 import blake3

    plain = b"".join(encode_node([a_chunk()]) for _ in range(count))
    with store.session() as session:
        name = blake3(plain, key=store.keys.writer_key.node_id_key).digest()
        node = put_node(session, plain, name)
    with pytest.raises(DamageError):
        list(Walk(store).refs([Ref(RefKind.LIST, node, 1)]))
