"""Lists: whatever references go in come out, and nearly equal lists share nearly all nodes."""

from __future__ import annotations

import random
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castore.content.ref_tree import ListBuilder, iter_chunks, iter_list
from castore.errors import DamageError
from castore.model.refs import MAX_NODE_REFS, Ref, RefKind, decode_node, encode_node

CHUNK, LIST, SPLICE = RefKind.CHUNK, RefKind.LIST, RefKind.INNER
BORDER = bytes(4) + b"\xff" * 28
NO_BORDER = b"\x01" + bytes(31)


class Nodes:
    """The parts of a store that lists need, over a dict."""

    class keys:  # noqa: N801 - the name of the part in a store
        class cutter:  # noqa: N801
            min = 4

    def __init__(self):
        self.reader = self
        self.held = {}
        self.read = 0

    def put_node(self, refs):
        plain = encode_node(refs)
        assert 0 < len(refs) <= MAX_NODE_REFS
        name = sha256(plain).digest()
        self.held[name] = plain
        return name

    def read_node(self, name):
        self.read += 1
        return decode_node(self.held[name])

    def build(self, refs):
        builder = ListBuilder(self.put_node)
        for ref in refs:
            builder.add(ref)
        return builder

    def stream(self, refs):
        return self.build(refs).stream()

    def leaves(self, refs):
        """The nodes of a list that hold its references, in order."""
        leaves = []

        def put(node):
            if all(ref.kind is not SPLICE for ref in node):
                leaves.append(tuple(node))
            return self.put_node(node)

        builder = ListBuilder(put)
        for ref in refs:
            builder.add(ref)
        if refs:
            builder.list()
        return leaves


def noise(seed, count, kind=CHUNK):
    rng = random.Random(seed)
    return [Ref(kind, rng.randbytes(32), rng.randint(1, 1 << 20)) for _ in range(count)]


counts = st.one_of(
    st.integers(0, 40),
    st.integers(0, 20_000),
    st.sampled_from([31, 32, 33, 127, 511, 512, 513, 1024, 16384, 20_000]),
)
seeds = st.integers(0, 1 << 32)


@st.composite
def sequences(draw):
    """References of all sorts: random, all the same, all borders, none; mixtures of these."""
    if draw(st.booleans()):
        return noise(draw(seeds), draw(counts))
    refs = []
    for _ in range(draw(st.integers(1, 4))):
        count = draw(st.integers(0, 5000))
        sort = draw(st.sampled_from(["noise", "border", "plain", "tiny"]))
        if sort == "noise":
            refs += noise(draw(seeds), count)
        else:
            name = {"border": BORDER, "plain": NO_BORDER, "tiny": BORDER}[sort]
            refs += [Ref(CHUNK, name, 1 if sort == "tiny" else 7)] * count
    return refs


def located(refs):
    offset, found = 0, []
    for ref in refs:
        found.append((offset, ref))
        offset += ref.size
    return found


@given(sequences())
def test_any_references_round_trip(refs):
    nodes = Nodes()
    top = nodes.stream(refs)
    assert list(iter_chunks(nodes, top)) == located(refs)
    if len(refs) == 0:
        assert top is None
    elif len(refs) == 1:
        assert top == refs[0]
        assert nodes.held == {}
    else:
        assert top.kind is LIST
        assert top.size == sum(ref.size for ref in refs)


@given(st.lists(st.tuples(st.sampled_from([CHUNK, LIST]), seeds, st.integers(1, 1 << 40)), min_size=1, max_size=200))
def test_a_list_of_streams_and_directories_keeps_their_kinds_even_if_it_has_only_one(items):
    refs = [Ref(kind, random.Random(seed).randbytes(32), size) for kind, seed, size in items]
    nodes = Nodes()
    top = nodes.build(refs).list()
    assert top.kind is LIST
    assert top.id in nodes.held
    assert list(iter_list(nodes, top)) == located(refs)


@settings(max_examples=30)
@given(seeds, counts.filter(lambda count: count > 1), st.floats(0, 1.01))
def test_start_passes_over_exactly_what_ends_before_it_and_reads_little(seed, count, share):
    refs = noise(seed, count)
    nodes = Nodes()
    top = nodes.stream(refs)
    for start in {int(top.size * share), top.size - 1, refs[0].size - 1, refs[0].size}:
        expected = [(offset, ref) for offset, ref in located(refs) if offset + ref.size > start]
        assert list(iter_chunks(nodes, top, start)) == expected
    nodes.read = 0
    first = next(iter_chunks(nodes, top, top.size - 1))
    assert first == located(refs)[-1]
    assert nodes.read <= 4  # a path from the top to a leaf


@settings(max_examples=30)
@given(seeds, st.integers(4000, 20_000), st.floats(0, 1), st.sampled_from(["insert", "remove", "replace"]))
def test_one_change_in_a_long_list_makes_few_new_nodes(seed, count, share, change):
    refs = noise(seed, count)
    nodes = Nodes()
    nodes.stream(refs)
    before = len(nodes.held)
    at = min(int(count * share), count - 1)
    new = noise(seed + 1, 1)
    edited = refs[:at] + (new if change != "remove" else []) + refs[at + (change != "insert") :]
    top = nodes.stream(edited)
    assert list(iter_chunks(nodes, top)) == located(edited)
    assert before > count // MAX_NODE_REFS
    assert len(nodes.held) - before < 20


@given(seeds, st.integers(0, 12_000), st.integers(0, 3000), st.integers(0, 3000))
def test_equal_prefixes_share_all_nodes_that_end_in_them(seed, shared, one, other):
    prefix = noise(seed, shared)
    nodes = Nodes()

    def inside(tail):
        ended, found = 0, []
        leaves = nodes.leaves(prefix + tail)
        for leaf in leaves[:-1]:  # the last one ended because the list did
            ended += len(leaf)
            if ended <= shared:
                found.append(leaf)
        return found

    first, second = inside(noise(seed + 1, one)), inside(noise(seed + 2, other))
    longer, shorter = sorted([first, second], key=len, reverse=True)
    assert longer[: len(shorter)] == shorter
    assert len(longer) - len(shorter) <= 1  # where one list ends right after the prefix
    if one and other and first != second:
        assert sum(map(len, longer)) == shared


@given(sequences())
def test_nodes_depend_on_the_references_only(refs):
    one, two = Nodes(), Nodes()
    assert one.stream(refs) == two.stream(refs)
    assert one.held == two.held


def test_a_node_whose_bytes_are_not_what_its_parent_promises_is_damage():
    nodes = Nodes()
    top = nodes.stream(noise(1, 2000))
    with pytest.raises(DamageError, match="reference to it"):
        list(iter_chunks(nodes, top._replace(size=top.size + 1)))


def test_a_list_among_the_chunks_of_a_stream_is_damage():
    nodes = Nodes()
    top = nodes.build(noise(1, 3) + noise(2, 1, LIST)).list()
    with pytest.raises(DamageError, match="not to a chunk"):
        list(iter_chunks(nodes, top))


def test_a_list_nested_without_end_is_damage():
    nodes = Nodes()
    below = Ref(SPLICE, nodes.put_node(noise(1, 1)), noise(1, 1)[0].size)
    for _ in range(200):
        below = below._replace(id=nodes.put_node([below]))
    with pytest.raises(DamageError, match="deeper"):
        list(iter_list(nodes, below._replace(kind=LIST)))
