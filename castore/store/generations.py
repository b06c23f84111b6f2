"""`generations/T-N`: the records of generations."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from castore.errors import DamageError, FormatError
from castore.model.generation import decode_generation, encode
from castore.store.header import GENERATION, HEADER_BYTES, check_header, header

if TYPE_CHECKING:
    from castore.model.generation import Generation
    from castore.sealing import WriterKey

MAX_NUMBER = 0xFFFFFFFF
NAME = re.compile(r"[0-9a-f]{16}-[0-9]{10}")
"""What the names in `generations/` look like."""


def generation_name(writer: WriterKey, service: str, number: int) -> str:
    """Return the name of the object."""
    return f"generations/{writer.tag(service).hex()}-{number:010d}"


def encode_generation(generation: Generation, writer: WriterKey) -> tuple[bytes, bytes]:
    """Return the bytes of the object, and its plaintext."""
    plain = encode(generation)
    name = generation_name(writer, generation.service, generation.number)
    start = header(GENERATION)
    return start + writer.objects.seal(name.encode() + writer.store_id + start, plain), plain


def open_generation(name: str, data: bytes, writer: WriterKey) -> tuple[Generation, bytes]:
    """Return the generation that the object `name` holds, and its plaintext.

    Raises DamageError, FormatError; they name the object.
    """
    check_header(name, data, GENERATION)
    start = data[:HEADER_BYTES]
    try:
        plain = writer.objects.open(name.encode() + writer.store_id + start, data[HEADER_BYTES:])
        generation = decode_generation(plain)
    except DamageError as error:
        raise DamageError(f"{name} is damaged: {error}") from None
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from None
    if generation_name(writer, generation.service, generation.number) != name:
        raise DamageError(f"{name} is damaged: it is the record of another generation")
    return generation, plain
