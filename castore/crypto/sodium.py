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


def wipe(buffer: Any) -> None:
    """Fill memory with zeros, which no compiler takes for needless: a `bytearray`, or a call's buffer."""
    view = ffi.from_buffer(buffer) if isinstance(buffer, bytearray) else buffer
    lib.sodium_memzero(view, ffi.sizeof(view))


class Secret:
    """Bytes that are wiped when nobody holds them any more.

    What Python makes of them on the way (`bytes` and `str` from a file, a terminal, a text form) it copies
    and frees as it likes, and nobody can wipe that: this bounds how long a secret lies in memory, and a
    process that is done with it does not keep it. The command line sees to it that no other process reads
    its memory, and that it leaves no core.
    """

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = bytearray(data)
        self.pointer: Any = ffi.from_buffer(self._data)
        """What a call takes to read it."""

    def __repr__(self) -> str:
        return "Secret(...)"

    def __bytes__(self) -> bytes:
        return bytes(self._data)

    def __del__(self, _zero: Any = lib.sodium_memzero) -> None:
        _zero(self.pointer, len(self._data))


def taken(buffer: Any, length: int) -> bytes:
    """Return the first `length` bytes of a buffer that a call has filled."""
    return bytes(ffi.buffer(buffer, length))
