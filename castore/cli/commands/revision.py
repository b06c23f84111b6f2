"""The command `revision`: print the configured revision of a service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castore.cli.options import common, json_option, print_json

if TYPE_CHECKING:
    from castore.cli.context import CliContext


@click.command(epilog="Example: castore revision drupal")
@click.argument("service")
@json_option
@common
def revision(context: CliContext, service: str, as_json: bool) -> None:
    """Print the configured revision of SERVICE, and its source."""
    from castore.errors import UsageError
    from castore.model.names import short_revision
    from castore.services.revision import current, source_of

    settings = context.required_settings().of(service)
    if settings is None or settings.revision is None:
        raise UsageError(
            f"castore.toml does not say where the revision of {service!r} comes from: set 'revision' of it"
        )
    now = current(settings.revision, settings.timeout) or ""
    source = source_of(settings.revision)
    with context.open_store() as store:
        live = store.service(service).live_revision
    if as_json:
        print_json({"service": service, "revision": now, "source": source, "state": live})
        return
    print(f"{now}  ({source})")
    if live is not None and live != now:
        print(f"the state is that of revision {short_revision(live)}: castore follow {service}")
