"""What castore ends: processes that it has looked at through a descriptor, never just a number."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from castore.errors import ProgramError
from castore.process import termination
from castore.process.runners import output_of


def test_no_signal_is_sent_by_number(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_args: object) -> None:
        raise AssertionError("a signal by number")

    monkeypatch.setattr(os, "kill", refuse)
    began = time.monotonic()
    with pytest.raises(ProgramError, match="longer than"):
        output_of([sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '60'])"], timeout=0.5)
    assert time.monotonic() - began < 20


def test_a_number_that_another_process_has_by_now_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    with subprocess.Popen(["sleep", "60"]) as stranger, subprocess.Popen(["sleep", "60"]) as own:
        monkeypatch.setattr(termination, "children_of", lambda _pid: [stranger.pid])
        monkeypatch.setattr(termination, "_marked", lambda _mark: [stranger.pid])
        descriptor = os.pidfd_open(own.pid)
        termination.kill_tree(own.pid, descriptor, "mark")
        os.close(descriptor)
        assert own.wait(10) == -signal.SIGKILL
        assert stranger.poll() is None
        with open(f"/proc/{stranger.pid}/stat", encoding="ascii") as file:
            assert file.read().split()[2] == "S"
        stranger.kill()


def test_a_program_is_killed_although_no_descriptor_is_left(monkeypatch: pytest.MonkeyPatch):
    with subprocess.Popen(["sh", "-c", "sleep 60 & wait"]) as own:
        descriptor = os.pidfd_open(own.pid)
        while not (children := termination.children_of(own.pid)):
            time.sleep(0.01)

        def refuse(_pid: int) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as patched:
            patched.setattr(os, "pidfd_open", refuse)
            termination.kill_tree(own.pid, descriptor)
        os.close(descriptor)
        assert own.wait(10) == -signal.SIGKILL
        for child in children:
            os.kill(child, signal.SIGKILL)


def test_what_has_left_its_parent_is_ended_by_its_mark(tmp_path: Path):
    pid = tmp_path / "pid"
    script = f"sleep 60 & echo $! > {pid}; exec sleep 60"
    with pytest.raises(ProgramError, match="longer than"):
        output_of(["sh", "-c", f"({script}) & sleep 0.3; sleep 60"], timeout=1)
    number = int(pid.read_text())
    end = time.monotonic() + 5
    while os.path.exists(f"/proc/{number}") and time.monotonic() < end:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{number}")


def test_no_descriptor_is_left_open():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        output_of(["true"], timeout=5)
        with pytest.raises(ProgramError):
            output_of(["sleep", "60"], timeout=0.05)
    assert len(os.listdir("/proc/self/fd")) == before
