"""Streams in and out: how they are split does not matter, and errors do not pass in silence."""

from __future__ import annotations

import itertools
import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castore.content import pipeline as ingesting
from castore.content.pipeline import Pipeline
from castore.content.streams import RangeReader, StreamReader, store_stream
from castore.errors import DamageError, StorageError
from castore.model.refs import RefKind
from castore.progress import Progress
from tests.support.stores import Sandbox

AVERAGE = 1024


@pytest.fixture(scope="module", params=[1, None], ids=["small batches", "one batch"])
def store(request, tmp_path_factory):
    """A store; batches of 32 KiB, so that buffers go round, or of their usual size."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param is not None:
            patch.setattr(ingesting, "_MIN_BATCH", request.param)
        with Sandbox(tmp_path_factory.mktemp("sandbox"), average=AVERAGE).open() as opened:
            yield opened


seeds = st.integers(0, 1 << 32)


@st.composite
def contents(draw):
    """Bytes: a few of any sort, random, repeated, zeros, patched together."""
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        count = draw(st.one_of(st.integers(0, 2 * AVERAGE), st.integers(0, 150_000)))
        sort = draw(st.sampled_from(["noise", "few", "zeros", "drawn"]))
        if sort == "noise":
            parts.append(random.Random(draw(seeds)).randbytes(count))
        elif sort == "few":
            pattern = draw(st.binary(min_size=1, max_size=50))
            parts.append((pattern * (count // len(pattern) + 1))[:count])
        elif sort == "zeros":
            parts.append(bytes(count))
        else:
            parts.append(draw(st.binary(max_size=300)))
    return b"".join(parts)


def pieces(data, splits):
    borders = [0, *sorted(min(split, len(data)) for split in splits), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(borders)]


def put(store, *streams, tally=None):
    """Store streams, each given as its pieces, in one session; return their references."""
    found = []
    with store.session() as session, Pipeline(session, store.keys.cutter, tally or Progress()) as ingest:
        for stream in streams:
            for piece in stream:
                ingest.write(piece)
            ingest.end_stream(found.append)
    return found


def read(store, ref):
    with StreamReader(store) as reader:
        return b"".join(reader.read(ref))


def reading(data, size):
    """A readinto that gives at most `size` bytes a call."""
    rest = memoryview(data)

    def readinto(view):
        nonlocal rest
        count = min(len(view), size, len(rest))
        view[:count] = rest[:count]
        rest = rest[count:]
        return count

    return readinto


@settings(max_examples=60)
@given(contents(), st.lists(st.integers(0, 450_000), max_size=12), st.integers(1, 70_000))
def test_a_stream_is_the_same_however_it_is_split_and_comes_back(store, data, splits, size):
    whole, split = put(store, [data], pieces(data, splits))
    assert whole == split
    found = []
    with store.session() as session, Pipeline(session, store.keys.cutter, Progress()) as ingest:
        store_stream(ingest, reading(data, size), found.append)
    assert found == [whole]
    assert read(store, whole) == data
    if not data:
        assert whole is None
    else:
        assert whole.size == len(data)
        assert (whole.kind is RefKind.CHUNK) or len(data) > AVERAGE // 4


@settings(max_examples=40)
@given(contents(), st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20))
def test_any_range_reads_back(store, data, ranges):
    (ref,) = put(store, [data])
    reader = RangeReader(store, ref)
    for a, b in ranges:
        start, end = sorted((int(a * len(data)), int(b * len(data))))
        assert reader.read(start, end - start) == data[start:end]
    assert reader.read(0, len(data)) == data
    assert reader.read(len(data), 0) == b""
    with pytest.raises(DamageError):
        reader.read(len(data), 1)
    with pytest.raises(DamageError):
        reader.read(0, len(data) + 1)


@settings(max_examples=25)
@given(st.lists(st.binary(max_size=40), max_size=60), seeds)
def test_many_tiny_streams_come_back_in_order(store, tiny, seed):
    rng = random.Random(seed)
    streams = tiny + [rng.randbytes(rng.randint(0, 600)) for _ in range(200)]
    refs = put(store, *([stream] for stream in streams))
    assert len(refs) == len(streams)
    with StreamReader(store) as reader:
        assert [reader.read_all(ref) for ref in refs] == streams


@settings(max_examples=25)
@given(contents(), contents())
def test_a_stream_does_not_depend_on_its_neighbours(store, one, other):
    alone = put(store, [one]) + put(store, [other])
    assert put(store, [one], [other], [one]) == [*alone, alone[0]]


@settings(max_examples=25)
@given(contents(), seeds)
def test_the_same_again_stores_nothing_new(store, data, seed):
    data += random.Random(seed).randbytes(3000)
    refs = put(store, [data])
    packs = sorted(store.index.packs.lengths())
    tally = Progress()
    assert put(store, [data], tally=tally) == refs
    assert (tally.new_chunks, tally.new_bytes, tally.stored) == (0, 0, 0)
    assert tally.chunks > 0
    assert sorted(store.index.packs.lengths()) == packs


def test_lists_and_actions_run_in_the_order_in_which_they_are_fed(store):
    order = []
    with store.session() as session, Pipeline(session, store.keys.cutter, Progress()) as ingest:
        for number in range(300):
            ingest.write(random.Random(number).randbytes(1000))
            ingest.end_stream(lambda ref, number=number: order.append((number, ref.size)))
            ingest.call_when_stored(lambda number=number: order.append((number, None)))
    assert order == [item for number in range(300) for item in [(number, 1000), (number, None)]]


@pytest.mark.parametrize(
    ("method", "at"), [("chunk_id", 0), ("chunk_id", 1), ("chunk_id", 300), ("use_stored", 0), ("seal", 0)]
)
def test_an_error_in_a_worker_surfaces_and_ends_the_session(store, method, at):
    data = random.Random(f"{method} {at}").randbytes(1_000_000)
    kept = []
    with pytest.raises(ZeroDivisionError, match="in a worker"), store.session() as session:
        real, calls = getattr(session, method), []

        def failing(*args):
            calls.append(None)
            if len(calls) > at:
                raise ZeroDivisionError("in a worker")
            return real(*args)

        setattr(session, method, failing)
        with Pipeline(session, store.keys.cutter, Progress()) as ingest:
            ingest.write(data)
            ingest.end_stream(kept.append)
    assert kept == []
    delattr(session, method)
    with pytest.raises(StorageError, match="ended"):
        session.seal(bytearray(b"more"), [])
    with pytest.raises(StorageError, match="ended"):
        session.put_node([])
    (ref,) = put(store, [data])  # the next session is not concerned
    assert read(store, ref) == data


def test_an_error_of_the_feeder_ends_the_session_and_keeps_what_was_stored(store):
    data = random.Random(5).randbytes(600_000)

    def failing(view):
        raise ZeroDivisionError("of the feeder")

    with (
        pytest.raises(ZeroDivisionError, match="of the feeder"),
        store.session() as session,
        Pipeline(session, store.keys.cutter, Progress()) as ingest,
    ):
        ingest.write(data)
        store_stream(ingest, failing, lambda _ref: None)
    (ref,) = put(store, [data])
    assert read(store, ref) == data


@pytest.mark.parametrize("method", ["append", "put_node"])
def test_an_error_on_the_feeding_thread_surfaces(store, method):
    data = random.Random(method).randbytes(300_000)
    with pytest.raises(StorageError, match="full"), store.session() as session:

        def failing(*args):
            raise StorageError("full")

        setattr(session, method, failing)
        with Pipeline(session, store.keys.cutter, Progress()) as ingest:
            ingest.write(data)
            ingest.end_stream(lambda _ref: None)
    (ref,) = put(store, [data])
    assert read(store, ref) == data


@pytest.mark.parametrize("rounds", range(3))
def test_two_threads_store_at_once_in_two_sessions(store, rounds):
    rng = random.Random(rounds)
    shared = rng.randbytes(400_000)
    inputs = [rng.randbytes(300_000) + shared, shared + rng.randbytes(300_000)]
    refs, errors = [None, None], []
    together = threading.Barrier(2)

    def work(number):
        try:
            together.wait(20)
            (refs[number],) = put(store, pieces(inputs[number], range(0, 700_000, 5000)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [read(store, ref) for ref in refs] == inputs
    assert put(store, *([data] for data in inputs)) == refs
    store.updater.rebuild()
    assert [read(store, ref) for ref in refs] == inputs
