"""Counts in messages: one place for singular and plural forms."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=1 << 16)
def count(number: int, what: str, several: str = "") -> str:
    """Return a number of things: `1 pack`, `2 packs`, `12,000 packs`; several: an irregular plural."""
    return f"{number:,} {what if number == 1 else several or what + 's'}"
