"""`generations/T-N`: the records of generations."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from castore.errors import DamageError, FormatError, SignerError
from castore.model.generation import MAX_NUMBER, decode_generation, encode
from castore.store.format.envelope import open_object, seal_object
from castore.store.format.header import GENERATION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.crypto import WriterKey
    from castore.model.generation import Generation
    from castore.model.removals import Removals

NAME = re.compile(r"[0-9a-f]{16}-[0-9]{10}")
"""What the names in `generations/` look like."""


MAX_JUMP = 1 << 16
"""A generation whose number is further above all others is not followed by the next."""


def last_in_sequence(numbers: Iterable[int], removed: Removals) -> int:
    """Return the highest number that is no more than MAX_JUMP above another one, or above 0.

    removed: those of generations that were removed. A machine that may remove only its own names numbers at
    no cost, so all that such machines say leads no further than MAX_JUMP.
    """
    spans = [(number, number) for number in numbers]
    spans = sorted([*spans, *removed.by_maintainers.spans])
    highest = _followed(spans, 0)
    lasts = (last for one in removed.by_hosts.values() for _, last in one.spans)
    return _followed(spans, max((last for last in lasts if last - highest <= MAX_JUMP), default=0), highest)


def _followed(spans: list[tuple[int, int]], *reached: int) -> int:
    """Return the highest number that is reached by these ascending spans without a large gap."""
    highest = max(reached)
    for first, last in spans:
        if first - highest <= MAX_JUMP:
            highest = max(highest, last)
    return highest


def generation_name(writer: WriterKey, service: str, number: int) -> str:
    """Return the name of the object, under this key; it may be there under a former one's."""
    return f"generations/{writer.tag(service).hex()}-{number:010d}"


def split_name(name: str) -> tuple[bytes, int]:
    """Return the tag and number in a name; (b"", 0) if it is not a generation's."""
    short = name.removeprefix("generations/")
    if not NAME.fullmatch(short) or int(short[17:]) > MAX_NUMBER:
        return b"", 0
    return bytes.fromhex(short[:16]), int(short[17:])


def encode_generation(generation: Generation, writer: WriterKey) -> tuple[bytes, bytes]:
    """Return the bytes of the object, and its plaintext."""
    plain = encode(generation)
    name = generation_name(writer, generation.service, generation.number)
    return seal_object(GENERATION, name, plain, writer), plain


def open_generation(name: str, data: bytes, writer: WriterKey) -> tuple[Generation, bytes]:
    """Return the generation that the object `name` holds, and its plaintext.

    Raises DamageError, FormatError; they name the object.
    """
    plain, key, signer = open_object(GENERATION, name, data, writer)
    try:
        generation = decode_generation(plain)
    except DamageError as error:
        raise DamageError(f"{name} is damaged: {error}") from None
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from None
    # Whoever has the writer key can seal what no castore writes.
    if not 0 < generation.number <= MAX_NUMBER:
        raise DamageError(f"{name} is damaged: no generation has the number {generation.number}")
    names = writer.signers.names(signer)
    if generation.host_id != signer.hex() or (names and generation.host not in names):
        raise SignerError(
            f"{name} is damaged: it names the host {generation.host!r}, and is signed by another machine"
        )
    if generation_name(key, generation.service, generation.number) != name:
        raise DamageError(f"{name} is damaged: it is the record of another generation")
    return generation, plain
