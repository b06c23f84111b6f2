"""The command group `store`: the place that a store is kept in."""

from __future__ import annotations

import click

from castore.cli.options import SubcommandGroup, json_option, print_json


@click.group(cls=SubcommandGroup)
def store() -> None:
    """Test the places that stores are kept in."""


@store.command(epilog="Example: castore store probe s3://bucket/castore")
@click.argument("address", metavar="STORE")
@json_option
def probe(address: str, as_json: bool) -> None:
    """Test whether a store can be kept at STORE, a directory or a URL.

    Writes, reads and deletes some objects there. 'castore init' runs these tests for a URL.
    """
    import contextlib
    import shlex

    from castore.cli import formatting
    from castore.errors import NotFoundError, StorageError
    from castore.state.directories import store_address
    from castore.storage import open_storage
    from castore.storage.probe import probe as run_probe

    address = store_address(address)
    try:
        with contextlib.closing(open_storage(address)) as storage:
            checks = run_probe(storage)
    except NotFoundError as error:
        raise NotFoundError(
            f"{error}; create the directory first, or with a store: castore init {shlex.quote(address)}"
        ) from None
    if as_json:
        print_json([check._asdict() for check in checks])
    else:
        for check in checks:
            passed = (
                "passed"
                if check.failure is None
                else f"FAILED: {formatting.printable(check.failure)}; {check.consequence}"
            )
            click.echo(f"{check.name + ':':20} {passed}")
    if failed := [check.name for check in checks if check.failure is not None]:
        raise StorageError(f"{address} does not pass all tests: {', '.join(failed)}")
