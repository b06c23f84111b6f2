"""What decoding MessagePack raises where the bytes are not what was encoded."""

from __future__ import annotations

from typing import Final

import msgspec

UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""msgspec's own root, and two that it lets through: text that is not UTF-8, nesting without end."""
