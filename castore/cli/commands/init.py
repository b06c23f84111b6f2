"""The command `init`: options and output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castore.cli.identity_files import new_passphrase
from castore.cli.messages import is_quiet, summarize
from castore.cli.options import StoreAddress, common, json_option, print_json

if TYPE_CHECKING:
    from castore.cli.context import CliContext


@click.command(epilog="Example: castore init /var/backups/castore")
@click.argument("path", metavar="[STORE]", required=False, type=StoreAddress())
@click.option(
    "--recipient",
    "recipients",
    metavar="PUB",
    multiple=True,
    help="Encrypt to this public key; then no identity is created.",
)
@click.option(
    "--admin",
    "admins",
    metavar="KEY",
    multiple=True,
    help="Also let this admin key (castore-admin-...) change recipients and writers.",
)
@click.option(
    "--average",
    metavar="BYTES",
    type=int,
    default=1 << 18,
    show_default=True,
    help="Mean length of chunks; it cannot be changed later.",
)
@click.option("--passphrase", is_flag=True, help="Protect the new identity with a passphrase.")
@click.option(
    "--replace-lost",
    is_flag=True,
    help="Create a new store although this machine has used one there that is missing now.",
)
@click.option(
    "--no-conditional-writes",
    is_flag=True,
    help="Accept a server that replaces objects; only one machine at a time may add then.",
)
@json_option
@common
def init(
    context: CliContext,
    path: str | None,
    recipients: tuple[str, ...],
    admins: tuple[str, ...],
    average: int,
    passphrase: bool,
    replace_lost: bool,
    no_conditional_writes: bool,
    as_json: bool,
) -> None:
    """Create a store at STORE, a directory or a URL, and an identity unless recipients are given.

    Only the identity decrypts what is stored: move it off this machine. It is written to --identity FILE,
    else to CASTORE_IDENTITY. An identity that exists there, or that CASTORE_IDENTITY_COMMAND prints, is used
    instead. Its admin key signs for whom the store is encrypted, and which machines add to it. With
    --recipient an admin signs that later: 'castore key sign'.
    """
    from castore.cli.new_store import NewStore, keep_safe, make_store

    wanted = NewStore(
        path=path,
        recipients=recipients,
        admins=admins,
        average=average,
        passphrase=new_passphrase if passphrase else None,
        replace_lost=replace_lost,
        no_conditional_writes=no_conditional_writes,
    )
    made = make_store(context, wanted)
    if as_json:
        print_json(made)
        return
    summarize(f"store:     {made['store']}")
    for recipient in made["recipients"]:
        summarize(f"recipient: {recipient}")
    if made["identity"]:
        summarize(f"identity:  {made['identity']}")
        click.echo(keep_safe(made["identity"]), err=is_quiet())
