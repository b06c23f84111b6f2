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

    with context.open_internal() as store:
        admins = {admin.recipient: admin.text for admin in store.keys.config.admins}
        recipients = store.keys.recipients
        config = store.keys.config
    if as_json:
        print_json({
            "recipients": [
                {"recipient": recipient.text, "label": label, "admin": admins.get(recipient.key)}
                for recipient, label in recipients
            ],
            "admins": [{"admin": admin.text, "label": admin.label} for admin in config.admins],
            "writers": [plain_writer(writer) for writer in config.writers],
        })
        return
    for recipient, label in recipients:
        print(f"{recipient.text}  {formatting.one_line(label or '')}".rstrip())
    for admin in config.admins:
        print(formatting.one_line(f"{admin.text}  {admin.label}".rstrip()))
    for writer in config.writers:
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
    from castore.crypto import Admin, Recipient
    from castore.errors import UsageError
    from castore.store.format.config import LabelledAdmin

    added = Recipient.parse(recipient)
    with signed_store(context, yes=yes) as store:
        admins = list(store.keys.config.admins)
        if admin is not None and (key := Admin.parse(admin).key) not in store.keys.config.admin_keys:
            admins.append(LabelledAdmin(key, label, added.key))
        if all(added != existing for existing, _ in store.keys.recipients):
            store.admin.reseal([*store.keys.recipients, (added, label)], admins=admins)
        elif len(admins) > len(store.keys.config.admins):
            store.admin.reseal(store.keys.recipients, admins=admins)
        elif not store.admin.reseal(store.keys.recipients):  # true: an earlier call was interrupted
            raise UsageError(f"{added.text} is a recipient of this store already")
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
    from castore.crypto import Recipient
    from castore.errors import NotFoundError, UsageError

    if recipient.startswith("castore-admin-"):
        _remove_admin(context, recipient, as_json=as_json)
        return
    removed = Recipient.parse(recipient)
    with context.open_internal() as store:
        rest = [(one, label) for one, label in store.keys.recipients if one != removed]
        if not rest:
            raise UsageError("a store needs a recipient: add another before removing the last")
        if len(rest) < len(store.keys.recipients) and store.keys.identity().recipient == removed:
            raise UsageError("that is the recipient of the identity in use: use an identity that stays")
        admins = [admin for admin in store.keys.config.admins if admin.recipient != removed.key]
        if not store.admin.reseal(rest, admins=admins):  # true also if an earlier call was interrupted
            raise NotFoundError(f"{removed.text} is not a recipient of this store; see 'castore key list'")
    if as_json:
        print_json({"recipient": removed.text})
    else:
        summarize(f"{removed.text} is no longer a recipient of this store")


def _remove_admin(context: CliContext, text: str, *, as_json: bool) -> None:
    from castore.crypto import Admin
    from castore.errors import NotFoundError

    key = Admin.parse(text).key
    with context.open_internal() as store:
        rest = [admin for admin in store.keys.config.admins if admin.key != key]
        if len(rest) == len(store.keys.config.admins):
            raise NotFoundError(f"{text} is not an admin of this store; see 'castore key list'")
        store.admin.reseal(store.keys.recipients, admins=rest)
    if as_json:
        print_json({"admin": text})
    else:
        summarize(f"{text} is no longer an admin of this store")


@click.command(epilog="Example: castore key sign --identity /media/usb/identity")
@yes_option
@json_option
@common
def sign(context: CliContext, yes: bool, as_json: bool) -> None:
    """Sign the configuration of a store that was made with --recipient, as its admin.

    Print the recipients and writers, and ask for confirmation. Other machines accept later signatures of
    this identity after they were given its admin key with --trust-admin.
    """
    from castore.crypto import Admin

    with signed_store(context, yes=yes) as store:
        store.admin.sign()
        location, admin = store.location, Admin(store.admin.admin_key().public).text
    if as_json:
        print_json({"store": location})
    else:
        summarize(f"the configuration of {location} is signed by an admin")
        summarize(
            "on each machine that does not trust this admin yet, run any command once with: "
            f"--trust-admin {admin}"
        )
