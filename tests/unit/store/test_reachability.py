"""What a walk from a generation reaches, and whether that is complete."""

from __future__ import annotations

import os

import pytest

from castore.errors import MissingError
from castore.model.refs import RecordId, Ref, RefKind
from castore.store import NewChunk
from castore.store.reachability import Walk, is_whole
from tests.support.stores import Sandbox


@pytest.fixture
def store(tmp_path):
    with Sandbox(tmp_path).open() as store:
        yield store


def put_chunk(session, content):
    chunk = NewChunk(session.chunk_id(content), 0, len(content))
    session.append(session.seal(bytearray(content), [chunk])[0])
    return Ref(RefKind.CHUNK, chunk.id, len(content))


def missing(kind=RefKind.CHUNK):
    return Ref(kind, RecordId(os.urandom(32)), 1)


def as_list(node):
    return Ref(RefKind.LIST, node[0], 1)


def test_nodes_that_are_in_no_pack_are_listed_and_all_others_visited_once(store):
    lost = [missing(RefKind.LIST), missing(RefKind.INNER)]
    with store.session() as session:
        chunk = put_chunk(session, b"content")
        inner = as_list(session.put_node([chunk]))
        root = as_list(session.put_node([lost[0], inner, lost[1], inner]))
    walk = Walk(store)
    with pytest.raises(MissingError, match="node"):
        list(walk.refs([root, root, chunk]))
    assert {RecordId(ref.id) for ref in lost} == set(walk.lost)
    walk = Walk(store)
    runs = [len(run) // 40 for run in walk.runs([root, root, chunk])]
    assert sorted(runs) == [1, 1, 1, 1, 4], "three roots, two nodes"


def test_a_tree_is_complete_if_all_its_chunks_and_nodes_may_be_referenced(store):
    with store.session() as session:
        inner = as_list(session.put_node([put_chunk(session, b"one")]))
        root = as_list(session.put_node([put_chunk(session, b"two"), inner]))
    assert is_whole(store, [root])
    assert is_whole(store, [])
    store.index.liveness.set_not_referenced(store.index.packs.ids())
    assert not is_whole(store, [root])


@pytest.mark.parametrize("kind", RefKind)
def test_a_tree_that_lacks_something_is_not_complete(store, kind):
    with store.session() as session:
        chunk = put_chunk(session, b"content")
        root = as_list(session.put_node([chunk, missing(kind)]))
    assert not is_whole(store, [root])
    assert not is_whole(store, [chunk, missing(kind)])
    assert is_whole(store, [chunk])
