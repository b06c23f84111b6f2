"""The errors of decoding bytes that are not valid MessagePack."""

from __future__ import annotations

from typing import Final

import msgspec

UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""msgspec's own root, and two errors that it passes on: text that is not UTF-8, endless nesting."""
