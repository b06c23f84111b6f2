"""Interrupts of castore while it starts programs that must not see them.

Each test runs in a process of its own: a test runner has threads that take signals.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

_BEGINNING = """
    import os, signal, subprocess, sys, threading, time
    from castore.process.signal_shield import DeferInterrupts, start_without_signals, ignoring_sigint

    from castore.process.own_process import declare_own_process

    declare_own_process()
    announced = threading.Event()
    start_without_signals(threading.Thread(target=time.sleep, args=(60,), daemon=True))
"""


def run(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_BEGINNING) + textwrap.dedent(script)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_an_interrupt_while_a_program_starts_arrives_afterwards():
    run("""
        command = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
        with DeferInterrupts(announced.set):
            with ignoring_sigint():
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)
                assert not announced.is_set()
                ignored = subprocess.run([sys.executable, "-c", command], capture_output=True, check=True)
            assert announced.wait(10)
        assert ignored.stdout == b"True\\n"
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    """)


def test_an_interrupt_that_waits_is_not_dropped_where_a_program_starts():
    run("""
        with DeferInterrupts(announced.set):
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
            os.kill(os.getpid(), signal.SIGINT)
            with ignoring_sigint():
                assert announced.wait(10)
    """)
