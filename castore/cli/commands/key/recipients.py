"""The commands `key list`, `add`, `remove` and `sign`: recipients and admins of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castore.cli.messages import summarize
from castore.cli.options import common, json_option, print_json
from castore.cli.signed_store import described, plain_writer, signed_store, yes_option

if TYPE_CHECKING:
    from castore.cli.context import CliContext


@click.command(name="list", epilog="Example: castore key list")
@json_option
@common
def list_(context: CliContext, as_json: bool) -> None:
    """List the store's recipients, admin keys and writers."""
    from castore.cli import formatting

    with context.open_store() as store:
        recipients, admins, writers = store.keys.recipients, store.keys.admins, store.keys.writers
    if as_json:
        print_json({
            "recipients": [
                {"recipient": holder.key, "label": holder.label, "admin": holder.admin or None}
                for holder in recipients
            ],
            "admins": [{"admin": holder.key, "label": holder.label} for holder in admins],
            "writers": [plain_writer(writer) for writer in writers],
        })
        return
    for holder in (*recipients, *admins):
        print(formatting.one_line(f"{holder.key}  {holder.label}".rstrip()))
    for writer in writers:
        print(formatting.one_line(described(writer)))


@click.command(epilog="Example: castore key add castore-pub-... --label 'offsite, 2026'")
@click.argument("recipient", metavar="PUB")
@click.option("--label", default="", help="Free text, such as the owner's name.")
@click.option(
    "--admin", metavar="KEY", help="Let the admin key of the same identity change recipients and writers."
)
@yes_option
@json_option
@common
def add(
    context: CliContext, recipient: str, label: str, admin: str | None, yes: bool, as_json: bool
) -> None:
    """Encrypt the store to one more recipient. Needs an admin's identity; no data is rewritten."""
    from castore.crypto import Recipient

    added = Recipient.parse(recipient)
    with signed_store(context, yes=yes) as store:
        store.keys.add(added, label, admin=admin)
    if as_json:
        print_json({"recipient": added.text, "label": label})
    else:
        summarize(f"{added.text} can decrypt this store now, including all earlier generations")


@click.command(epilog="Example: castore key remove castore-pub-...")
@click.argument("recipient", metavar="PUB")
@json_option
@common
def remove(context: CliContext, recipient: str, as_json: bool) -> None:
    """Remove a recipient of the store. Needs the identity of an admin other than the removed one.

    The admin key of the same identity is also removed; PUB may also be an admin key alone. The
    removed recipient can still decrypt copies of the store that were made before. The writer key does not
    change.
    """
    is_admin_key = recipient.startswith("castore-admin-")
    with context.open_store() as store:
        (store.keys.remove_admin if is_admin_key else store.keys.remove)(recipient)
    kind = "admin" if is_admin_key else "recipient"
    if as_json:
        print_json({kind: recipient})
    else:
        summarize(f"{recipient} is no longer {'an' if is_admin_key else 'a'} {kind} of this store")


@click.command(epilog="Example: castore key sign --identity /media/usb/identity")
@yes_option
@json_option
@common
def sign(context: CliContext, yes: bool, as_json: bool) -> None:
    """Sign the configuration of a store that was made with --recipient, as its admin.

    Print the recipients and writers, and ask for confirmation. Other machines accept later signatures of
    this identity after they were given its admin key with --trust-admin.
    """
    with signed_store(context, yes=yes) as store:
        location, admin = store.location, store.keys.sign()
    if as_json:
        print_json({"store": location})
    else:
        summarize(f"the configuration of {location} is signed by an admin")
        summarize(
            "on each machine that does not trust this admin yet, run any command once with: "
            f"--trust-admin {admin}"
        )
