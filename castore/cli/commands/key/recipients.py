"""castore key list, add, remove, sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castore.cli.messages import summarize
from castore.cli.options import common, json_option, print_json
from castore.cli.signed_store import described, signed_store, yes_option

if TYPE_CHECKING:
    from castore.cli.context import CliContext


@click.command(name="list", epilog="Example: castore key list")
@json_option
@common
def list_(context: CliContext, as_json: bool) -> None:
    """List the recipients of the store, the admin keys that sign, and the machines that add."""
    from castore.cli import formatting

    with context.open_internal() as store:
        admins = {admin.recipient: admin.text for admin in store.keys.config.admins}
        found = [
            {"recipient": recipient.text, "label": label, "admin": admins.get(recipient.key)}
            for recipient, label in store.keys.recipients
        ]
        others = [described(writer) for writer in store.keys.config.writers]
        keys = [f"{admin.text}  {admin.label}".rstrip() for admin in store.keys.config.admins]
    if as_json:
        print_json(found)
        return
    for entry in found:
        print(f"{entry['recipient']}  {formatting.one_line(entry['label'] or '')}".rstrip())
    for line in [*keys, *others]:
        print(formatting.one_line(line))


@click.command(epilog="Example: castore key add castore-pub-... --label 'offsite, 2026'")
@click.argument("recipient", metavar="PUB")
@click.option("--label", default="", help="A note on whose it is.")
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
    """Remove a recipient of the store. Needs an admin's identity, and not that one.

    The admin key of the same identity is removed, too; PUB may also be an admin key alone. The
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

    Shows for whom the store is encrypted and which machines add to it, and asks. Other machines accept
    what this identity signs later, once they were given its admin key with --trust-admin.
    """
    from castore.crypto import Admin

    with signed_store(context, yes=yes) as store:
        store.admin.sign()
        location, admin = store.location, Admin(store.admin.admin_key().public).text
    if as_json:
        print_json({"store": location})
    else:
        summarize(f"the configuration of {location} is signed by an admin")
        summarize(f"on machines that do not trust this admin yet, give a command: --trust-admin {admin}")
