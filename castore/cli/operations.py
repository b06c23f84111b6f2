"""The operations on services for the commands that change the state of services."""

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
    from castore.content.restore.metadata import Ownership
    from castore.services.operations import ServiceOperations
    from castore.store import Store


def operations_of(
    context: CliContext,
    store: Store,
    progress: Watch,
    services: Sequence[str],
    *,
    ownership: Ownership | None = None,
) -> ServiceOperations:
    """Return the operations on services, as castore.toml describes them. Raises ConfigError.

    ownership: the ownership of restored files; None: the stored one if castore runs as root, else the user's.
    """
    from castore.cli.progress import hushed
    from castore.content.restore.metadata import Ownership
    from castore.services.operations import ServiceOperations

    def say(line: str) -> None:
        with hushed():
            click.echo(f"castore: {formatting.one_line(line)}", err=True)

    # Only these: the description of another service may have mistakes.
    described = {service: context.service_settings(service) for service in services}
    return ServiceOperations(
        store,
        {service: settings for service, settings in described.items() if settings is not None},
        ownership if ownership is not None else Ownership(change=os.geteuid() == 0),
        leave_out=context.own_paths(),
        progress=progress,
        say=say,
        note=lambda line: None if is_quiet() else say(line),
        hushed=hushed,
    )
