"""The small-file streams of directories that a later scan keeps."""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from castore.errors import DamageError
from castore.model.refs import REF_BYTES, decode_node, encode_node

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castore.kernel.dir_listing import Record
    from castore.model.refs import Ref

_HEAD: Final = struct.Struct("<QQ")
"""Number of streams, and whether the runs may be used. The streams and the runs follow."""


class SmallStreams(NamedTuple):
    """The small-file streams of a directory, as a scan cache has them."""

    refs: Sequence[Ref]
    runs: Sequence[int]
    """Where the small files are: see castore.model.tree.Owners."""
    usable: bool
    """Whether the listing has the sizes that the small files have in the streams."""


def places_length(streams: int, runs: Sequence[int]) -> int:
    """Return the length of what `encode_places` returns for so many streams."""
    return _HEAD.size + REF_BYTES * streams + 8 * len(runs) if streams else 0


def encode_places(streams: SmallStreams) -> bytes:
    """Return the places in a record of a scan cache; empty if the directory has no small-file stream."""
    refs, runs, usable = streams
    if not refs:
        return b""
    return _HEAD.pack(len(refs), usable) + encode_node([*refs]) + array("Q", runs).tobytes()


def decode_places(record: Record) -> SmallStreams:
    """Return the small-file streams of a record. Raises DamageError if they are not valid."""
    if not record.places:
        return SmallStreams((), (), usable=True)
    try:
        count, usable = _HEAD.unpack_from(record.places)
        at = _HEAD.size + REF_BYTES * count
        refs, runs = decode_node(record.places[_HEAD.size : at]), array("Q", record.places[at:])
    except (struct.error, ValueError) as error:
        raise DamageError(f"a record of a scan cache is damaged: {error}") from None
    return SmallStreams(refs, runs, usable=bool(usable))


_MOST_STREAMS: Final = 8
_MOST_UNUSED: Final = 0.5


def streams_to_drop(sizes: Sequence[int], used: Sequence[int]) -> set[int]:
    """Return the streams of which no file should be kept: they are read again, into the new stream.

    sizes: the bytes of each stream. used: the bytes of each that would be kept.
    """
    streams = [number for number, size in enumerate(used) if size]
    if len(streams) >= _MOST_STREAMS or sum(used) < _MOST_UNUSED * sum(sizes):
        return {*streams}
    return set()
