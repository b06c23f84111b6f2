"""Sizes as text: `5 GB`, `500 MiB`, `64K`."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"": 1, "B": 1} | {
    prefix + suffix: factor**power
    for power, prefix in enumerate("KMGT", 1)
    for suffix, factor in {"": 1024, "IB": 1024, "B": 1000}.items()
}
_SIZE: Final = re.compile(r"([0-9]{1,15}(?:[.][0-9]{1,15})?) ?([KMGT]?(?:i?B)?)", re.IGNORECASE | re.ASCII)
_MOST: Final = 1 << 62
"""No disk is larger."""


def parse_size(text: str) -> int | None:
    """Return the bytes of a size; None if it is not one. K and KiB are 1024 bytes, KB is 1000."""
    found = _SIZE.fullmatch(text.strip())
    factor = None if found is None else _UNITS.get(found[2].upper())
    if found is None or factor is None:
        return None
    return min(int(found[1]) * factor if found[1].isdecimal() else int(float(found[1]) * factor), _MOST)
