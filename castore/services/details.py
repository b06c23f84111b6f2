"""Read the encrypted details of a generation: where its parts came from, and what is missing in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.content.streams import StreamReader
from castore.model.generation import MAX_DETAILS, decode_details

if TYPE_CHECKING:
    from castore.model.generation import Details, Generation
    from castore.store import Store


def read_details(store: Store, generation: Generation) -> Details:
    """Return the encrypted details of a generation. Raises IdentityError, DamageError."""
    with StreamReader(store) as reader:
        return decode_details(reader.read_all(generation.details.ref, MAX_DETAILS))
