"""`generations/T-N`: the records of generations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.errors import DamageError, FormatError, SignerError
from castore.model.generation import MAX_NUMBER, decode_generation, encode
from castore.store.format.envelope import open_object, seal_object
from castore.store.format.header import GENERATION
from castore.store.format.names import generation_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.crypto import WriterKey
    from castore.model.generation import Generation
    from castore.model.removals import Removals

MAX_JUMP = 1 << 16
"""A number that is further than this above all others is ignored when the next number is chosen."""


def last_in_sequence(numbers: Iterable[int], removed: Removals) -> int:
    """Return the highest number that is at most MAX_JUMP above another one, or above 0.

    removed: the numbers of removed generations. A machine that may remove only its own can name any number at
    no cost, so removals by such machines raise the result by at most MAX_JUMP.
    """
    spans = [(number, number) for number in numbers]
    spans = sorted([*spans, *removed.by_maintainers.spans])
    highest = _followed(spans, 0)
    lasts = (last for by_host in removed.by_hosts.values() for _, last in by_host.spans)
    return _followed(spans, max((last for last in lasts if last - highest <= MAX_JUMP), default=0), highest)


def _followed(spans: list[tuple[int, int]], *reached: int) -> int:
    """Return the highest number that these ascending spans reach without a gap of more than MAX_JUMP."""
    highest = max(reached)
    for first, last in spans:
        if first - highest <= MAX_JUMP:
            highest = max(highest, last)
    return highest


def encode_generation(generation: Generation, writer: WriterKey) -> tuple[bytes, bytes]:
    """Return the bytes of the object, and its plaintext."""
    plain = encode(generation)
    name = generation_name(writer.tag(generation.service), generation.number)
    return seal_object(GENERATION, name, plain, writer), plain


def open_generation(name: str, data: bytes, writer: WriterKey) -> tuple[Generation, bytes]:
    """Return the generation in the object `name`, and its plaintext.

    Raises DamageError, FormatError; their messages name the object.
    """
    plain, key, signer = open_object(GENERATION, name, data, writer)
    try:
        generation = decode_generation(plain)
    except DamageError as error:
        raise DamageError(f"{name} is damaged: {error}") from None
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from None
    # A holder of the writer key can seal records that castore never writes.
    if not 0 < generation.number <= MAX_NUMBER:
        raise DamageError(f"{name} is damaged: no generation has the number {generation.number}")
    names = writer.signers.names(signer)
    if generation.host_id != signer.hex() or (names and generation.host not in names):
        raise SignerError(
            f"{name} is damaged: it names the host {generation.host!r}, and is signed by another machine"
        )
    if generation_name(key.tag(generation.service), generation.number) != name:
        raise DamageError(f"{name} is damaged: it is the record of another generation")
    return generation, plain
