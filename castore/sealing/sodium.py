"""libsodium, initialised, and what every caller of it here needs.

The extension module is imported itself: `nacl.bindings` adds 20 ms to each start of the command
line, and copies every message once more. The calls release the GIL.
"""

from __future__ import annotations

import threading
from typing import Any, Final

from nacl._sodium import ffi, lib

if lib.sodium_init() < 0:
    raise ImportError("libsodium cannot be initialised: the system gives it no random numbers")

NULL: Final = ffi.NULL

allocate: Any = ffi.new_allocator(should_clear_after_alloc=False)
"""As ffi.new, but does not fill with zeros what is about to be overwritten."""


_local = threading.local()


def room(length: int) -> Any:
    """Return memory of this thread's for at least `length` bytes, until it is asked for again."""
    found = getattr(_local, "room", None)
    if found is None or _local.length < length:
        _local.length = max(length, 1 << 17)
        found = _local.room = allocate("unsigned char[]", _local.length)
    return found


def pointer(data: bytes | bytearray | memoryview) -> Any:
    """Return what a call takes to read `data` where it lies, without a copy."""
    return ffi.from_buffer(data)


def taken(buffer: Any, length: int) -> bytes:
    """Return the first `length` bytes of a buffer that a call has filled."""
    return bytes(ffi.buffer(buffer, length))
