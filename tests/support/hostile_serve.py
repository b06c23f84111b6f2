"""Servers of the protocol of `castore serve` that answer as no castore does: CASTORE_SSH starts them."""

from __future__ import annotations

import sys
import time

import msgspec

from castore.storage.wire import Answer, Frames, Request


def _answers(kind: str, request: Request) -> tuple[Answer, bytes]:
    number = request.number
    if request.operation == "hello":
        return Answer(number), b""
    if kind == "long":
        return Answer(number, size=-1), b"x" * 100
    if kind == "endless":
        return Answer(number, names=("a", "b"), more=True), b""
    return Answer(number, error="failed", message="\x1b[31mred"), b""


def main(kind: str) -> None:
    """Answer as `kind` says: deaf (not at all), stuck (reads nothing after hello), long, endless, red."""
    frames = Frames(sys.stdin.buffer, sys.stdout.buffer)
    while (frame := frames.read()) is not None:
        request = msgspec.msgpack.decode(frame[0], type=Request)
        if kind != "deaf":
            frames.write(*_answers(kind, request))
        if kind == "stuck":
            time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1])
