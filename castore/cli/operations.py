"""What `castore guard` and `castore follow` share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from castore.cli import formatting
from castore.cli.quiet import is_quiet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castore.cli.context import CliContext
    from castore.cli.progress import Watch
    from castore.services.operations import ServiceOperations
    from castore.store import Store


def work_of(context: CliContext, store: Store, progress: Watch, services: Sequence[str]) -> ServiceOperations:
    """Return the operations on services of castore.toml. Raises ConfigError, UsageError."""
    from castore.cli.progress import hushed
    from castore.content.restore.metadata import Ownership
    from castore.services.operations import ServiceOperations

    def say(line: str) -> None:
        with hushed():
            click.echo(f"castore: {formatting.one_line(line)}", err=True)

    settings = context.required_settings()
    for service in services:
        settings.of(service)  # refuses one whose description has mistakes
    return ServiceOperations(
        store,
        settings.service,
        Ownership(change=os.geteuid() == 0),
        leave_out=context.own_paths(),
        progress=progress,
        say=say,
        note=lambda line: None if is_quiet() else say(line),
        hushed=hushed,
    )
