"""Fixtures of the tests that take the power away, and the counts of what they looked at."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest

import castore.store.pack
from tests.support import histories


@pytest.fixture
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of a few KB."""
    monkeypatch.setattr(castore.store.pack, "PACK_BYTES", histories.PACK_BYTES)


@pytest.fixture
def folder():
    """A folder in memory, where there is one: neither the index nor what is taken is lost with the power."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="castore-power-", dir=memory) as path:
        yield Path(path)


def pytest_terminal_summary(terminalreporter) -> None:
    """Say what was counted, over all tests that counted (also those of other processes)."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "power loss":
                counts.update(value)
    if counts:
        told = ", ".join(f"{count} {what}" for what, count in counts.items())
        terminalreporter.write_line(f"power loss: {told}")
