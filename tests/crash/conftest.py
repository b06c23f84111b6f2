"""Fixtures of the tests that take the power away, or kill, and the counts of what they looked at."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest

import castore.store.format.pack
from tests.support import store_histories
from tests.support.fault_sweep import Machine


@pytest.fixture
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of a few KB."""
    monkeypatch.setattr(castore.store.format.pack, "PACK_BYTES", store_histories.PACK_BYTES)


@pytest.fixture
def folder():
    """A folder in memory, where there is one: neither the index nor what is taken is lost with the power."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="castore-power-", dir=memory) as path:
        yield Path(path)


@pytest.fixture
def machine():
    """A home in memory, where there is room: a killed process, unlike a lost power, leaves what was not synced."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="castore-sweep-", dir=memory) as path:
        found = Machine(Path(path, "machine"))
        found.begin()
        yield found


def pytest_terminal_summary(terminalreporter) -> None:
    """Say what was counted, over all tests that counted (also those of other processes)."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "power loss":
                counts.update(value)
    if counts:
        summary = ", ".join(f"{count} {what}" for what, count in counts.items())
        terminalreporter.write_line(f"power loss: {summary}")
