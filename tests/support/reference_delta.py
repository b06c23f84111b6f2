"""Sketches and deltas in slow Python, written from sketch.h and docs/format.md, to hold the kernel against."""

from __future__ import annotations

import struct

from tests.support.reference_chunker import gear_words

_WORD = (1 << 64) - 1


def apply(base: bytes, delta: bytes, length: int) -> bytes | None:
    """Return what a delta makes of its base; None if it is none of this base and length."""
    out = bytearray()
    at = place = 0

    def number() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 35, 7):
            byte = delta[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise IndexError

    try:
        while True:
            literals = number()
            if literals > len(delta) - at:
                return None
            out += delta[at : at + literals]
            at += literals
            if at == len(delta) or len(out) > length:
                return bytes(out) if len(out) == length else None
            copied, moved = number(), number()
            place += moved // 2 if moved % 2 == 0 else -(moved + 1) // 2
            if not 0 <= place <= place + copied <= len(base):
                return None
            out += base[place : place + copied]
            place += copied
            if len(out) > length:
                return None
    except IndexError:
        return None


def join(streams: list[bytes], most: int) -> list[bytes] | None:
    """Return the deltas, each as a record of its own would hold it, of a group; None if it is none."""
    at = [0, 0, 0, 0]

    def number(stream: int) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = streams[stream][at[stream]]
            at[stream] += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise IndexError

    def varint(value: int) -> bytes:
        out = bytearray()
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*out, value])

    deltas: list[bytes] = []
    try:
        while at[0] < len(streams[0]):
            if len(deltas) == most:
                return None
            delta = b""
            while True:
                literals = number(0)
                if literals > len(streams[3]) - at[3]:
                    return None
                delta += varint(literals) + streams[3][at[3] : at[3] + literals]
                at[3] += literals
                copied = number(1)
                if not copied:
                    break
                moved = number(2)
                moved = (moved // 2 if moved % 2 == 0 else -(moved + 1) // 2) + literals
                delta += varint(copied) + varint(2 * moved if moved >= 0 else -2 * moved - 1)
            deltas.append(delta)
    except IndexError:
        return None
    return deltas if at == [len(stream) for stream in streams] else None


def sketch(gear: bytes, key: bytes, data: bytes) -> tuple[bytes, ...]:
    """Return the sketch of a chunk."""
    words = gear_words(gear)
    numbers = struct.unpack("<24Q", key)
    samples = []
    value = 0
    for i, byte in enumerate(data):
        value = (value << 1) + words[byte] & _WORD
        if i >= 63 and value < 1 << 57:
            samples.append(value)
    if len(data) < 128 or len(samples) < 4:
        return ()
    features = [max(sample * (numbers[j] | 1) + numbers[12 + j] & _WORD for sample in samples) for j in range(12)]
    out = []
    for third in range(3):
        mixed = 0
        for feature in features[4 * third : 4 * third + 4]:
            mixed = (mixed ^ feature) * 0x9E3779B97F4A7C15 & _WORD
            mixed ^= mixed >> 29
        out.append(mixed >> 32 | 1)
    return tuple(struct.pack("<I", feature) for feature in out)
