"""libsodium, initialised, with the helpers that all of its callers here need.

The extension module is imported directly: `nacl.bindings` adds 20 ms to each start of the command
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
"""Like ffi.new, but does not zero memory that is about to be overwritten."""


_local = threading.local()


def room(length: int) -> Any:
    """Return this thread's buffer of at least `length` bytes. It is valid until the thread's next call."""
    buffer = getattr(_local, "room", None)
    if buffer is None or _local.length < length:
        _local.length = max(length, 1 << 17)
        buffer = _local.room = allocate("unsigned char[]", _local.length)
    return buffer


def pointer(data: bytes | bytearray | memoryview) -> Any:
    """Return the argument with which a call reads `data` in place, without a copy."""
    return ffi.from_buffer(data)


def wipe(buffer: Any) -> None:
    """Fill a `bytearray` or a call's buffer with zeros, in a way that no compiler optimises away."""
    view = ffi.from_buffer(buffer) if isinstance(buffer, bytearray) else buffer
    lib.sodium_memzero(view, ffi.sizeof(view))


class Secret:
    """Bytes that are wiped when the last reference to them is dropped.

    Python copies and frees the `bytes` and `str` that a secret passes through (from a file, a terminal, a
    text form) as it likes, and nobody can wipe those. This class bounds how long a secret stays in memory,
    and a process that no longer needs it does not keep it. The command line prevents other processes from
    reading its memory, and prevents core dumps.
    """

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = bytearray(data)
        self.pointer: Any = ffi.from_buffer(self._data)
        """The argument with which a call reads it."""

    def __repr__(self) -> str:
        return "Secret(...)"

    def __bytes__(self) -> bytes:
        return bytes(self._data)

    def __del__(self, _zero: Any = lib.sodium_memzero) -> None:
        _zero(self.pointer, len(self._data))


def taken(buffer: Any, length: int) -> bytes:
    """Return the first `length` bytes of a buffer that a call has filled."""
    return bytes(ffi.buffer(buffer, length))
