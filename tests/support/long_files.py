"""The order of tests in a run of several processes: files that take long come first in each process."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

LONG_FILES = (
    "crash/test_power_loss.py",
    "integration/test_engines.py",
    "integration/test_applications.py",
    "integration/test_hostile_dumps.py",
    "integration/test_mariadb_cases.py",
    "integration/test_mariadb_machine.py",
    "integration/test_mariadb.py",
    "integration/test_postgresql.py",
    "integration/test_mariadb_inventory.py",
    "cli/test_guard.py",
    "integration/test_rollback_postgres.py",
    "integration/test_run_as.py",
    "integration/test_lost_machine.py",
    "integration/test_postgresql_cases.py",
    "crash/test_interrupts.py",
    "crash/test_range_writes.py",
    "cli/test_rollback_steps.py",
    "crash/test_full_disks.py",
    "crash/test_disk_errors.py",
    "crash/test_rollback_kills.py",
    "integration/test_readme.py",
    "integration/test_machine_trees.py",
    "integration/test_story.py",
    "cli/test_restore.py",
    "property/test_scan.py",
    "crash/test_error_sweep.py",
    "crash/test_kill_sweep.py",
    "cli/test_hostile_arguments.py",
    "cli/test_startup.py",
    "cli/test_tools_castore.py",
    "cli/test_in_place_limits.py",
    "cli/test_benchmarks.py",
    "integration/test_wordpress.py",
    "crash/test_in_place.py",
    "cli/test_dumps.py",
)
"""Files that take more than 25 s, or have a test of more than 10 s; the longest one first."""


def long_files_first(items: list[pytest.Item], workers: int) -> None:
    """Sort items for so many processes of pytest-xdist, which at first have equal numbers of items in order.

    A process that is done takes over the last items of another one: none of these shall take long.
    """
    found: dict[str, list[pytest.Item]] = {name: [] for name in LONG_FILES}
    others: list[pytest.Item] = []
    for item in items:
        found.get(item.nodeid.partition("::")[0].removeprefix("tests/"), others).append(item)
    heads: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for number, name in enumerate(LONG_FILES):
        heads[number % workers] += found[name]
    rest = iter(others)
    ordered: list[pytest.Item] = []
    for number, head in enumerate(heads):
        share = (len(items) - len(ordered)) // (workers - number)
        ordered += [*head, *islice(rest, max(0, share - len(head)))]
    items[:] = [*ordered, *rest]
