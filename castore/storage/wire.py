"""The protocol between `castore serve --stdio` and its client: frames over a pair of pipes.

A frame is the length of its head (4 bytes, big-endian), the length of its body (4 bytes), the head in
MessagePack, and the body: bytes of objects. The client sends `Request`s, and the server answers each with one
`Answer` of the same number, in any order. The first request is `hello`.
"""

from __future__ import annotations

import struct
from typing import IO, Final

import msgspec

from castore.errors import StorageError, UnreachableError

VERSION: Final = 1
MAX_BODY: Final = 256 << 20
"""Bytes of the longest body: the longest object that is read at once."""
MAX_HEAD: Final = 1 << 20
"""Bytes of the longest head: a page of a listing."""
PAGE: Final = 10_000
"""Names in one answer to a listing or request to delete."""

_SIZES: Final = struct.Struct(">II")


class Request(msgspec.Struct, frozen=True, omit_defaults=True, array_like=True):
    """What the client asks for; `operation` says which fields it uses."""

    number: int
    operation: str
    """hello, put, get, size, list, delete, sync_dir, lock, unlock, hash"""
    name: str = ""
    """An object, or a folder."""
    offset: int = 0
    length: int | None = None
    after: str = ""
    names: tuple[str, ...] = ()
    exclusive: bool = False
    version: int = VERSION


class Answer(msgspec.Struct, frozen=True, omit_defaults=True, array_like=True):
    """The answer to the request `number`; the bytes of an object are the body of its frame."""

    number: int
    error: str | None = None
    """The kind of an error, a key of `castore.storage.serve.KINDS`; None: done."""
    message: str = ""
    size: int = 0
    names: tuple[str, ...] = ()
    more: bool = False
    """Whether a listing has more names."""
    flag: bool = False
    """hello: whether the server only adds and reads; lock: whether all processes take the lock."""


class Frames:
    """Reads frames from one stream, and writes frames to another; one thread each at a time."""

    def __init__(self, source: IO[bytes], target: IO[bytes]) -> None:
        self._source = source
        self._target = target
        self._encoder = msgspec.msgpack.Encoder()

    def write(self, head: Request | Answer, body: bytes | bytearray | memoryview = b"") -> None:
        """Write a frame. Raises OSError."""
        encoded = self._encoder.encode(head)
        view = memoryview(body).cast("B")
        self._target.write(_SIZES.pack(len(encoded), len(view)) + encoded)
        if view:
            self._target.write(view)
        self._target.flush()

    def read(self, max_body: int = MAX_BODY) -> tuple[bytes, bytes] | None:
        """Read the head and the body of a frame; None at the end of the stream.

        Raises UnreachableError in the middle of a frame, StorageError for what is no frame, OSError.
        """
        sizes = self._source.read(_SIZES.size)
        if not sizes:
            return None
        if len(sizes) < _SIZES.size:
            raise UnreachableError("the connection broke")
        head_length, body_length = _SIZES.unpack(sizes)
        if not 0 < head_length <= MAX_HEAD or body_length > max_body:
            raise StorageError("what arrives is not from 'castore serve': does the login print something?")
        head, body = self._source.read(head_length), self._source.read(body_length)
        if len(head) < head_length or len(body) < body_length:
            raise UnreachableError("the connection broke")
        return head, body
