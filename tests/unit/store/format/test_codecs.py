"""Records: what is compressed is returned; a frame that claims too much is refused before it is opened."""

from __future__ import annotations

import random
import struct

import pytest
import zstandard

from castore.errors import DamageError
from castore.kernel import encode_delta
from castore.store.format.codecs import Codecs, Groups, member_of
from castore.store.format.pack import MAX_PLAIN, RAW, ZSTD

TEXT = b"what is stored is restored\n" * 100
NOISE = random.Random(1).randbytes(len(TEXT))
ZEROS_32_MIB = zstandard.compress(bytes(MAX_PLAIN))


def frame_of(length):
    """Return a frame that claims `length` bytes, and has two."""
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", length) + b"\x11\0\0ab"


def deltas(count):
    buffer = bytearray(TEXT + b"end")
    found = encode_delta(TEXT, buffer, 0, len(buffer), 1000)
    assert found is not None
    return [found] * count


@pytest.mark.parametrize(("plain", "codec"), [(TEXT, ZSTD), (NOISE, RAW), (b"", RAW), (b"ab", RAW)])
def test_a_record_is_compressed_only_if_that_saves_something(plain, codec):
    codecs = Codecs()
    chosen, data = codecs.compress(plain)
    assert chosen == codec
    assert codecs.plain(chosen, bytes(data), len(plain)) == plain


def test_a_record_that_saves_less_than_a_32nd_is_stored_as_it_is():
    codecs = Codecs()
    worth = NOISE + bytes(len(NOISE) // 16)
    scarcely = NOISE + bytes(len(NOISE) // 64)
    assert codecs.compress(worth)[0] == ZSTD
    assert codecs.compress(scarcely)[0] == RAW


def test_a_frame_of_another_length_than_its_chunk_is_refused():
    with pytest.raises(DamageError, match="its frame has 5 bytes instead of 4"):
        Codecs().plain(ZSTD, frame_of(5), 4)


def test_a_frame_that_does_not_say_its_length_is_refused():
    unsized = zstandard.ZstdCompressor(write_content_size=False)
    with pytest.raises(DamageError, match="its frame does not say how many bytes it has"):
        Codecs().plain(ZSTD, unsized.compress(TEXT), len(TEXT))


def test_a_chunk_has_at_most_the_bytes_that_castore_writes():
    assert Codecs().plain(ZSTD, ZEROS_32_MIB, MAX_PLAIN) == bytes(MAX_PLAIN)
    with pytest.raises(DamageError, match="more than a chunk can have"):
        Codecs().plain(ZSTD, ZEROS_32_MIB, MAX_PLAIN + 1)


@pytest.mark.parametrize("data", [b"", b"no frame", frame_of(4)])
def test_what_does_not_decompress_is_damage(data):
    with pytest.raises(DamageError):
        Codecs().plain(ZSTD, data, 4)


def test_a_group_returns_its_deltas():
    codecs = Codecs()
    assert codecs.group(codecs.compress_group(deltas(3))) == deltas(3)
    only_copies = encode_delta(TEXT, bytearray(TEXT), 0, len(TEXT), 1000)
    assert codecs.group(codecs.compress_group([only_copies])) == [only_copies]
    only_literals = encode_delta(b"", bytearray(b"abc"), 0, 3, 1000)
    assert codecs.group(codecs.compress_group([only_literals])) == [only_literals]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bytes(11), "too short"),
        (bytes(12), "does not decompress"),
        (struct.pack("<III", 18, 0, 0) + frame_of(MAX_PLAIN + 1), "longer than castore writes"),
        (struct.pack("<III", 18, 18, 18) + 4 * frame_of(1), "does not decompress"),
        (struct.pack("<III", 11, 11, 11) + 4 * zstandard.compress(b"\xff\xff"), "not a group"),
    ],
)
def test_what_is_not_a_group_is_damage(data, reason):
    with pytest.raises(DamageError, match=reason):
        Codecs().group(data)


def test_the_streams_of_a_group_are_bounded_together():
    """Otherwise four frames of 32 MiB each would be opened."""
    frames = [zstandard.compress(bytes(MAX_PLAIN)), *[zstandard.compress(b"\0")] * 3]
    with pytest.raises(DamageError, match="longer than castore writes"):
        Codecs().group(struct.pack("<III", *map(len, frames[:3])) + b"".join(frames))


def test_a_delta_that_a_group_does_not_have_is_damage():
    assert member_of([b"a", b"b"], 1) == b"b"
    with pytest.raises(DamageError, match="its group has 2 deltas, and it should be number 2"):
        member_of([b"a", b"b"], 2)


def test_a_group_that_is_kept_is_not_read_again():
    codecs = Codecs()
    groups = Groups(codecs)
    data = codecs.compress_group(deltas(2))
    assert groups.get("a") is None
    assert groups.open("a", lambda: data) == deltas(2)
    assert groups.open("a", lambda: pytest.fail("it is kept")) == deltas(2)
    assert groups.get("a") == deltas(2)


def test_the_groups_used_last_are_kept(monkeypatch):
    class Stored:
        def group(self, data):
            return [data]

    monkeypatch.setattr("castore.store.format.codecs._KEPT_BYTES", 3 * 164)
    groups = Groups(Stored())
    for key in "abc":
        groups.open(key, lambda: bytes(100))
    assert groups.get("a") is not None
    groups.open("d", lambda: bytes(100))
    assert [key for key in "abcd" if groups.get(key) is not None] == ["a", "c", "d"]
    groups.open("long", lambda: bytes(1000))
    assert [key for key in ("a", "c", "d", "long") if groups.get(key) is not None] == ["long"]
