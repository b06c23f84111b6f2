"""What is shown of long work, and to whom."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from castore.cli.progress import ProgressDisplay, fitted, progress_paused, remaining, show_progress
from castore.progress import Progress

WORK = """
import sys, time
from castore.cli.progress import progress_paused, show_progress
from castore.progress import Progress
with show_progress() as progress:
    tally = Progress(total={total})
    progress("sites\\x1b", tally)
    for step in range({steps}):
        tally.read += 1 << 20
        tally.files += 100
        tally.chunks += 10
        tally.new_bytes += 1 << 10
        time.sleep(0.1)
    with progress_paused():
        print("ASKED", file=sys.stderr, flush=True)
        time.sleep(0.3)
        print("ANSWERED", file=sys.stderr, flush=True)
    time.sleep(0.3)
print("rich" in sys.modules)
"""


def on_terminal(script):
    """Run Python with a terminal of its own as standard error; return both outputs."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        )
        os.close(theirs)
        drawn = b""
        try:
            while data := os.read(ours, 4096):
                drawn += data
        except OSError:
            pass  # EIO: the terminal has no other side any more
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        return out.decode(), drawn.decode()
    finally:
        os.close(ours)


def test_nothing_is_shown_nor_imported_where_there_is_no_terminal():
    run = subprocess.run(
        [sys.executable, "-c", WORK.format(steps=8, total=0)], capture_output=True, check=True
    )
    assert run.stdout == b"False\n"
    assert run.stderr == b"ASKED\nANSWERED\n"


def test_long_work_is_shown_on_a_terminal():
    out, drawn = on_terminal(WORK.format(steps=15, total=0))
    assert out == "True\n"
    assert re.search(r"sites\\x1b  1\d MiB  [\d.]+ MiB/s  1,\d00 files  1\d KiB new", drawn)
    assert "%" not in drawn
    before, _, rest = drawn.partition("ASKED")
    assert "MiB" in before
    assert rest.partition("ANSWERED")[0].strip() == ""
    assert "MiB" in rest.partition("ANSWERED")[2]
    # What is left is an empty line.
    assert drawn.endswith(("\x1b[2K", "\x1b[?25h", "\x1b[1A\x1b[2K"))


def test_work_of_a_known_size_has_a_share():
    _, drawn = on_terminal(WORK.format(steps=15, total=30 << 20))
    assert re.search(r"\x1b?.*4\d %.*about \d s left.*1\d MiB", drawn)


@pytest.mark.parametrize(
    ("done", "total", "seconds", "expected"),
    [
        (0, 100, 10, ""),
        (50, 100, 0.1, ""),
        (99, 100, 10, ""),
        (100, 100, 10, ""),
        (50, 100, 10, "about 10 s left"),
        (10, 100, 60, "about 9 min 00 s left"),
    ],
)
def test_the_time_that_is_left(done, total, seconds, expected):
    assert remaining(done, total, seconds) == expected


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (100, " 42 %|about 12 s left|sites|1.2 GiB of 3.0 GiB|120 MiB/s|1,234 files"),
        (56, " 42 %|about 12 s left|sites|1.2 GiB of 3.0 GiB"),
        (40, " 42 %|about 12 s left|sites"),
        (10, "sites"),
    ],
)
def test_a_narrow_terminal_shows_what_matters_most(width, expected):
    words = [" 42 %", "about 12 s left", "sites", "1.2 GiB of 3.0 GiB", "120 MiB/s", "1,234 files"]
    pieces = list(zip([1, 2, 0, 3, 4, 5], words, strict=True))
    assert fitted(pieces, width) == expected.split("|")


def test_work_that_is_resumed_has_an_estimate_by_what_it_did_since():
    display = ProgressDisplay()
    tally = Progress(read=90, total=100)
    display("restoring", tally)
    display("part", Progress())
    display("restoring", tally)
    assert display._before == 90
    assert len(display._tasks) == 2


def test_short_work_is_not_shown():
    script = "import sys\nfrom castore.cli.progress import show_progress\nwith show_progress(): pass\n"
    out, drawn = on_terminal(script + "print('rich' in sys.modules)")
    assert (out, drawn) == ("False\n", "")


def test_the_warnings_of_all_work_are_kept():
    with show_progress() as progress:
        for name in ("db", "sites"):
            tally = Progress()
            progress(name, tally)
            tally.warn(b"path", "vanished")
    assert progress.warnings == [("db", b"path", "vanished"), ("sites", b"path", "vanished")]


def test_an_error_ends_the_drawing():
    display = ProgressDisplay()
    with pytest.raises(KeyboardInterrupt), display.shown(), progress_paused():
        raise KeyboardInterrupt


def test_a_summary_that_is_printed_during_work_has_its_own_line():
    lines = WORK.format(steps=15, total=16 << 20).replace('print("ANSWERED"', "say('SUMMARY'); print('ANSWERED'")
    script = (
        "import contextlib\nfrom castore.cli.messages import summarize\n"
        "def say(line):\n    with contextlib.redirect_stdout(sys.stderr):\n        summarize(line)\n" + lines
    )
    _, drawn = on_terminal(script.replace("    time.sleep(0.3)\nprint(", "    say('SECOND')\nprint("))
    # Nested in another block that keeps the screen clear: nothing is drawn until that ends.
    assert re.search(r"SUMMARY\r\nANSWERED\r\n", drawn)
    # The line of the progress bar is erased first.
    assert re.search(r"\x1b\[2K(\x1b\[\?25h)?SECOND\r\n", drawn)
