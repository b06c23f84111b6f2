"""What is stored comes back as it was, and nothing that is not of the format gets in."""

from __future__ import annotations

import contextlib
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castore.errors import DamageError, FormatError
from castore.model import generation as generations
from castore.model import refs, tree

U32 = st.integers(0, (1 << 32) - 1)
U63 = st.integers(0, (1 << 63) - 1)
I64 = st.integers(-(1 << 63), (1 << 63) - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ids = st.binary(min_size=32, max_size=32)
sizes = st.integers(1, (1 << 56) - 1)
references = st.builds(refs.Ref, st.sampled_from(refs.RefKind), ids, sizes)
nodes = st.lists(references, min_size=1, max_size=40)


@st.composite
def file_names(draw):
    name = draw(st.binary(min_size=1, max_size=255)).translate(None, b"/\0")
    return name + b"_" if name in {b"", b".", b".."} else name


@st.composite
def extents(draw, size):
    borders = sorted(draw(st.sets(st.integers(0, size), max_size=10)))
    return tuple((start, end - start) for start, end in zip(borders[::2], borders[1::2], strict=False))


xattrs = st.lists(st.tuples(st.binary(min_size=1, max_size=30), st.binary(max_size=40)), max_size=4).map(tuple)


@st.composite
def entries(draw, names=None):
    kind = draw(st.sampled_from([1, 2, 4, 6, 8, 10, 12]))
    size = draw(U63) if kind == 8 else 0
    places = {4: (tree.Content.NONE, tree.Content.OWN), 8: tree.Content}
    content = draw(st.sampled_from(places.get(kind, (tree.Content.NONE,))))
    if content is tree.Content.SMALL_FILES:
        size = min(size, tree.MAX_SMALL_FILE) or 1
    extra = tree.Extra(
        target=draw(st.binary(min_size=1, max_size=100).map(lambda b: b.replace(b"\0", b"_"))) if kind == 10 else b"",
        device=draw(U32) if kind in {2, 6} else 0,
        link=draw(st.none() | st.tuples(U63, U63)),
        xattrs=draw(xattrs.map(lambda pairs: tuple((k.replace(b"\0", b"_"), v) for k, v in pairs))),
        extents=draw(st.none() | extents(size)) if kind == 8 and content is not tree.Content.SMALL_FILES else None,
    )
    return tree.Entry(
        name=draw(file_names() if names is None else names),
        type=kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(U32),
        gid=draw(U32),
        mtime=draw(I64),
        size=size,
        content=content,
        extra=extra if kind == 10 else draw(st.sampled_from([extra, tree.NO_EXTRA])),
    )


owners = st.builds(
    tree.Owners,
    version=st.just(1),
    users=st.dictionaries(U32, texts, max_size=4),
    groups=st.dictionaries(U32, texts, max_size=4),
)
listings = st.lists(entries(), max_size=6, unique_by=lambda entry: entry.name).map(
    lambda found: sorted(found, key=lambda entry: entry.name)
)
stored_refs = st.builds(generations.StoredRef, st.sampled_from(refs.RefKind), ids, sizes)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
labels = texts.filter(lambda text: text.isprintable() and text == text.strip() and "/" not in text and text not in {"*", "latest"})
strings = texts.filter(lambda text: "\0" not in text)
paths = st.just(b"") | st.binary(max_size=50).map(lambda path: b"/" + path.replace(b".", b"x").replace(b"\0", b"x"))
parts = st.builds(
    lambda kind, root, filler, **fields: generations.Part(kind=kind, root=root or (filler if kind == "tree" else None), **fields),
    name=names,
    kind=st.sampled_from(["tree", "dump"]),
    root=st.none() | stored_refs,
    filler=stored_refs,
    size=U63,
    files=U32,
    chunks=U63,
    new_chunks=U63,
    new_bytes=U63,
    stored_bytes=U63,
    skipped_files=U63,
)
records = st.builds(
    generations.Generation,
    service=names,
    number=U32,
    time=U63,
    revision=labels,
    host=labels,
    parts=st.lists(parts, max_size=4, unique_by=lambda part: part.name).map(tuple),
    details=stored_refs,
    session=st.binary(min_size=16, max_size=16),
    parent=U32,
    pre_rollback=st.booleans(),
    duration=U63,
    version=st.just(1),
)
origins = st.builds(
    generations.Origin,
    path=paths,
    dump=st.lists(strings, max_size=3).map(tuple),
    restore=st.lists(strings, max_size=3).map(tuple),
    exclude=st.lists(strings, max_size=3).map(tuple),
    one_file_system=st.booleans(),
    exclude_caches=st.booleans(),
)
details = st.builds(
    generations.Details,
    origins=st.dictionaries(names, origins, max_size=3),
    warnings=st.lists(st.tuples(texts, st.binary(max_size=50).map(lambda path: path.replace(b"\0", b"")), texts), max_size=3).map(tuple),
)


def stream(head, listing):
    return tree.encode_owners(head) + tree.encode_entries(listing)


# Round trips


@given(nodes)
def test_a_node_comes_back(node):
    data = refs.encode_node(node)
    assert len(data) == 40 * len(node)
    assert refs.decode_node(data) == node


def test_a_node_of_the_most_references_comes_back_and_one_more_is_refused():
    ref = refs.Ref(refs.RefKind.CHUNK, refs.RecordId(bytes(32)), 1)
    full = [ref] * refs.MAX_NODE_REFS
    assert refs.decode_node(refs.encode_node(full)) == full
    with pytest.raises(DamageError):
        refs.decode_node(refs.encode_node([*full, ref]))


@given(references)
def test_a_reference_is_stored_in_a_node_as_the_format_says(ref):
    assert refs.encode_node([ref]) == ref.id + ref.size.to_bytes(7, "little") + bytes([ref.kind])


@given(owners, listings)
def test_a_directory_comes_back(head, listing):
    assert tree.decode_entries(stream(head, listing)) == (head, listing)


@given(owners, entries(names=st.just(tree.ROOT_NAME)))
def test_a_root_comes_back(head, root):
    assert tree.decode_entries(stream(head, [root])) == (head, [root])


@given(entries())
def test_an_entry_is_stored_in_its_stream_as_the_format_says(entry):
    data = tree.encode_entries([entry])
    assert int.from_bytes(data[:4], "little") == len(data) - 4
    extra = entry.extra
    assert msgspec.msgpack.decode(data[4:]) == [
        entry.name,
        entry.type,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime,
        entry.size,
        int(entry.content),
        [
            extra.target,
            extra.device,
            None if extra.link is None else list(extra.link),
            [list(pair) for pair in extra.xattrs],
            None if extra.extents is None else [list(pair) for pair in extra.extents],
        ],
    ]


@given(records)
def test_a_generation_comes_back(record):
    data = generations.encode(record)
    assert generations.decode_generation(data) == record
    assert generations.decode_generation(memoryview(data)) == record


@given(details)
def test_details_come_back(record):
    assert generations.decode_details(generations.encode(record)) == record


@given(records, st.dictionaries(st.text("xyz", min_size=1), st.integers().filter(lambda n: abs(n) < 1 << 60), max_size=3))
def test_fields_of_a_later_castore_are_ignored(record, more):
    fields = msgspec.msgpack.decode(generations.encode(record))
    assert generations.decode_generation(msgspec.msgpack.encode(fields | more)) == record


@given(records, st.integers(2, 1 << 31))
def test_a_generation_of_a_later_format_is_distinguished_from_damage(record, version):
    fields = msgspec.msgpack.decode(generations.encode(record))
    fields["version"] = version
    with pytest.raises(FormatError, match=str(version)):
        generations.decode_generation(msgspec.msgpack.encode(fields))
    fields["parts"] = "of another shape"
    with pytest.raises(FormatError, match=str(version)):
        generations.decode_generation(msgspec.msgpack.encode(fields))


@given(listings, st.integers(2, 1 << 31))
def test_a_directory_of_a_later_format_is_distinguished_from_damage(listing, version):
    with pytest.raises(FormatError, match=str(version)):
        tree.decode_entries(stream(tree.Owners(version=version), listing))


# Damage


@st.composite
def mutated(draw, wholes):
    """Bytes that once were right: with bytes flipped, cut out, doubled, put in."""
    data = bytearray(draw(wholes))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        end = min(at + draw(st.integers(0, 40)), len(data))
        match draw(st.sampled_from(["flip", "cut", "end", "double", "insert", "length"])):
            case "flip" if data:
                data[at] ^= draw(st.integers(1, 255))
            case "cut":
                del data[at:end]
            case "end":
                del data[at:]
            case "double":
                data[end:end] = data[at:end]
            case "insert":
                data[at:at] = draw(st.binary(max_size=10))
            case _:
                data[at : at + 4] = draw(st.sampled_from([0, 1, 255, 1 << 31, (1 << 32) - 1])).to_bytes(4, "little")
    return bytes(data)


def decode_frame(frame):
    """Decode one frame as an entry, after proper owners: whatever it holds is reached."""
    return tree.decode_entries(tree.encode_owners(tree.Owners()) + struct.pack("<I", len(frame)) + frame)


packed = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.binary(max_size=40) | texts | st.floats(),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(texts | U32, inner, max_size=5),
    max_leaves=20,
).map(msgspec.msgpack.encode)
entry_frames = entries().map(lambda entry: tree.encode_entries([entry])[4:])

DECODERS = {
    "node": (refs.decode_node, nodes.map(refs.encode_node)),
    "entries": (tree.decode_entries, st.builds(stream, owners, listings)),
    "an entry": (decode_frame, entry_frames),
    "generation": (generations.decode_generation, records.map(generations.encode)),
    "details": (generations.decode_details, details.map(generations.encode)),
}
decoders = pytest.mark.parametrize(("decode", "wholes"), DECODERS.values(), ids=DECODERS)


@decoders
@given(data=st.data())
def test_random_bytes_are_decoded_or_refused(decode, wholes, data):
    with contextlib.suppress(DamageError, FormatError):
        decode(data.draw(st.binary(max_size=300) | packed))


@decoders
@given(data=st.data())
def test_damaged_bytes_are_decoded_or_refused(decode, wholes, data):
    with contextlib.suppress(DamageError, FormatError):
        decode(data.draw(mutated(wholes)))


@decoders
@given(data=st.data())
def test_a_cut_end_is_refused(decode, wholes, data):
    whole = data.draw(wholes)
    end = data.draw(st.integers(0, len(whole) - 1))
    try:
        found = decode(whole[:end])
    except DamageError:
        return
    # Only where the border between two entries or references was hit is there something left.
    assert found == _prefix(decode(whole), found)


def _prefix(whole, part):
    return (whole[0], whole[1][: len(part[1])]) if isinstance(part, tuple) else whole[: len(part)]


@decoders
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1x", b"\x99\xc4\x01a\x08\x00\x00\x00\x00\x00\x00\x91", b"\xa1\xff", b"\x81\xa7service\xa1\xff"])
def test_deep_nesting_and_broken_text_are_refused(decode, wholes, opening):
    with pytest.raises(DamageError):
        decode(opening + b"\x91" * 50_000 + b"\xc0")


deep = b"\x91" * 50_000 + b"\xc0"


@pytest.mark.parametrize("shape", ["entry", "owners", "generation", "version", "details"])
def test_deep_nesting_where_an_unknown_field_may_be_is_refused(shape):
    entry = [b"x", 8, 0o644, 0, 0, 0, 0, 0, [b"", 0, None, [], None]]
    pack = msgspec.msgpack.encode
    with pytest.raises(DamageError):
        match shape:
            case "entry":
                decode_frame(b"\x9a" + b"".join(map(pack, entry)) + deep)
            case "owners":
                head = b"\x94" + pack(1) + pack({}) + pack({}) + deep
                tree.decode_entries(struct.pack("<I", len(head)) + head)
            case "generation":
                generations.decode_generation(b"\x82" + pack("x") + deep + pack("version") + pack(1))
            case "version":
                generations.decode_generation(b"\x81" + pack("version") + deep)
            case "details":
                generations.decode_details(b"\x82" + pack("origins") + pack({}) + pack("later") + deep)


# What decodes is safe to act on


@given(st.sampled_from([b".", b"..", b"/", b"a/b", b"../x", b"\0", b"a\0b"]), entries())
def test_a_name_that_is_a_path_is_refused(name, entry):
    bad = msgspec.structs.replace(entry, name=name)
    with pytest.raises(DamageError):
        tree.decode_entries(stream(tree.Owners(), [bad]))


@given(listings.filter(lambda listing: len(listing) > 1), st.data())
def test_entries_out_of_order_or_twice_are_refused(listing, data):
    at = data.draw(st.integers(1, len(listing) - 1))
    swapped = [*listing[: at - 1], listing[at], listing[at - 1], *listing[at + 1 :]]
    doubled = [*listing[:at], listing[at - 1], *listing[at:]]
    for wrong in (swapped, doubled):
        with pytest.raises(DamageError):
            tree.decode_entries(stream(tree.Owners(), wrong))


@given(entries(), entries(names=st.just(tree.ROOT_NAME)))
def test_a_root_among_others_is_refused(entry, root):
    with pytest.raises(DamageError):
        tree.decode_entries(stream(tree.Owners(), [root, entry]))


def _entry(**fields):
    return msgspec.structs.replace(
        tree.Entry(b"x", 8, 0o644, 0, 0, 0, 10, tree.Content.OWN), **fields
    )


IMPOSSIBLE = {
    "size": {"size": -1},
    "mode": {"mode": 0o10000},
    "negative mode": {"mode": -1},
    "type 0": {"type": 0},
    "type 16": {"type": 16},
    "type 3": {"type": 3, "content": tree.Content.NONE, "size": 0},
    "a link without a target": {"type": 10, "content": tree.Content.NONE, "size": 0},
    "a directory in a small-file stream": {"type": 4, "content": tree.Content.SMALL_FILES},
    "nothing in a small-file stream": {"content": tree.Content.SMALL_FILES, "size": 0},
    "holes in a small-file stream": {"content": tree.Content.SMALL_FILES, "extra": tree.Extra(extents=((0, 5),))},
    "uid": {"uid": -1},
    "long uid": {"uid": 1 << 32},
    "gid": {"gid": -1},
    "long gid": {"gid": 1 << 32},
    "content of a fifo": {"type": 1, "size": 0},
    "device": {"type": 2, "size": 0, "content": tree.Content.NONE, "extra": tree.Extra(device=-1)},
    "extent beyond the end": {"extra": tree.Extra(extents=((5, 6),))},
    "empty extent": {"extra": tree.Extra(extents=((5, 0),))},
    "extents that overlap": {"extra": tree.Extra(extents=((0, 5), (4, 2)))},
    "long size": {"size": 1 << 63},
    "negative extent": {"extra": tree.Extra(extents=((-1, 2),))},
    "zero in a target": {"type": 10, "size": 0, "content": tree.Content.NONE, "extra": tree.Extra(target=b"a\0b")},
    "zero in an attribute's name": {"extra": tree.Extra(xattrs=((b"user.\0", b""),))},
}


@pytest.mark.parametrize("name", [b"x", tree.ROOT_NAME], ids=["entry", "root"])
@pytest.mark.parametrize("fields", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_entry_is_refused(fields, name):
    with pytest.raises(DamageError):
        tree.decode_entries(stream(tree.Owners(), [_entry(name=name, **fields)]))


@given(records, st.binary(max_size=40).filter(lambda data: len(data) != 32), st.booleans())
def test_a_generation_with_an_id_of_a_wrong_length_is_refused(record, wrong, in_details):
    bad = generations.StoredRef(refs.RefKind.LIST, wrong, 1)
    part = generations.Part("p", "tree", bad, 0, 0, 0, 0, 0, 0)
    broken = (
        msgspec.structs.replace(record, details=bad)
        if in_details
        else msgspec.structs.replace(record, parts=(*record.parts, part))
    )
    with pytest.raises(DamageError):
        generations.decode_generation(generations.encode(broken))


@given(ids, sizes, st.integers(3, 255))
def test_a_reference_of_an_unknown_kind_is_refused(record_id, size, kind):
    with pytest.raises(DamageError):
        refs.decode_node(record_id + size.to_bytes(7, "little") + bytes([kind]))
