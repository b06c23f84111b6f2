"""Interrupts of castore while it runs programs that must not see them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

from castore.services.interrupts import Shield, start_without_signals, unheard

_PRINT_IGNORED = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"


def test_an_interrupt_while_a_program_starts_arrives_afterwards():
    announced = threading.Event()
    over = threading.Event()
    start_without_signals(threading.Thread(target=over.wait, daemon=True))
    try:
        with Shield(announced.set):
            with unheard():
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)
                assert not announced.is_set()
                ignored = subprocess.run(
                    [sys.executable, "-c", _PRINT_IGNORED], capture_output=True, check=True
                )
            assert announced.wait(10)
        assert ignored.stdout == b"True\n"
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        over.set()


def test_an_interrupt_that_waits_is_not_dropped_where_a_program_starts():
    for _ in range(50):
        announced = threading.Event()
        with Shield(announced.set):
            killer = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT))
            start_without_signals(killer)
            with unheard():
                killer.join()
            assert announced.wait(10)
