"""Memory of Python objects that calls of the kernel read and write in place."""

from __future__ import annotations

import subprocess
import sys

import pytest

from castore.kernel import ffi, view_of
from castore.kernel.dir_compare import Window

_CYCLES = """
import gc
from castore.kernel.dir_compare import Window

class Frame:
    pass

for _ in range(200):
    room = memoryview(bytearray(100_000))  # the oldest of the cycle is cleared first
    frame = Frame()
    frame.frame, frame.room, frame.window = frame, room, Window(0, 0, [10], room)
    del frame, room
    gc.collect()
"""


def test_a_garbage_collection_breaks_a_cycle_with_memory_that_a_call_used() -> None:
    done = subprocess.run([sys.executable, "-c", _CYCLES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_view_of_a_part_of_a_buffer_begins_there_and_pins_the_buffer() -> None:
    data = bytearray(range(100))
    view = view_of(memoryview(data)[10:20])
    assert bytes(ffi.buffer(view, 10)) == bytes(range(10, 20))
    view[0] = 200
    assert data[10] == 200
    with pytest.raises(BufferError):
        data.extend(b"more")
    with view:
        pass
    del view
    data.extend(b"more")
    assert bytes(ffi.buffer(view_of(memoryview(data)), 104)) == bytes(data)


def test_a_window_writes_into_its_room() -> None:
    room = bytearray(32)
    window = Window(0, 0, [10, 20], memoryview(room))
    window.in_kernel.out[3] = 7
    assert room[3] == 7
