"""castore init, key."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from castore.cli.options import LocalPath, answered, common, json_option, print_json
from castore.cli.quiet import is_quiet, summarize
from castore.cli.signing import described, signed_store, yes_option

if TYPE_CHECKING:
    from castore.cli.context import CliContext
    from castore.cli.recovery_sheet import Sheet


def _new_passphrase(variable: str = "CASTORE_PASSPHRASE_COMMAND") -> str:
    """Ask for a passphrase twice, or take what that command prints."""
    from castore.cli.places import passphrase_from_command

    given = passphrase_from_command(variable)
    if given is not None:
        return given
    import getpass
    import warnings

    otherwise = f"nobody gave a passphrase: {variable} names a program that prints it"
    with answered(otherwise), warnings.catch_warnings():
        # Where there is no terminal it is read from standard input, and nothing to be warned of.
        warnings.simplefilter("ignore", getpass.GetPassWarning)
        text: str = click.prompt("New passphrase", hide_input=True, confirmation_prompt=True, err=True)
    return text


@click.command(epilog="Example: castore init /var/backups/castore")
@click.argument("path", metavar="[STORE]", required=False, type=LocalPath())
@click.option(
    "--recipient",
    "recipients",
    metavar="PUB",
    multiple=True,
    help="Encrypt to this public key; then no identity is made.",
)
@click.option(
    "--admin",
    "admins",
    metavar="KEY",
    multiple=True,
    help="Let this admin key (castore-admin-...) change recipients and writers, too.",
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
    help="Make a new store although this machine has used one there that is missing now.",
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
    as_json: bool,
) -> None:
    """Make a store in the directory STORE, and an identity unless recipients are given.

    Only the identity decrypts what is stored: move it off this machine. It is written to --identity FILE,
    else to CASTORE_IDENTITY. An identity that exists there, or that CASTORE_IDENTITY_COMMAND prints, is used
    instead. Its admin key signs for whom the store is encrypted, and which machines add to it. With
    --recipient an admin signs that later: 'castore key sign'.
    """
    made = context.make_store(
        *(path, recipients),
        average=average,
        passphrase=_new_passphrase if passphrase else None,
        replace_lost=replace_lost,
        admins=admins,
    )
    if as_json:
        print_json(made)
        return
    summarize(f"store:     {made['store']}")
    for recipient in made["recipients"]:
        summarize(f"recipient: {recipient}")
    if made["identity"]:
        summarize(f"identity:  {made['identity']}")
        click.echo(context.keep_safe(made["identity"]), err=is_quiet())


@click.group()
def key() -> None:
    """Manage identities, and the recipients, admins and machines of a store."""


@key.command(epilog="Example: castore key new /media/usb/identity --passphrase")
@click.argument("file", type=LocalPath())
@click.option("--passphrase", is_flag=True, help="Protect it with a passphrase.")
@json_option
def new(file: str, passphrase: bool, as_json: bool) -> None:
    """Make an identity in FILE, and print its public key; 'castore key show' prints its admin key, too."""
    from castore.cli.places import write_identity
    from castore.crypto import Admin, Identity

    identity = Identity.generate()
    write_identity(file, identity, _new_passphrase() if passphrase else None)
    if as_json:
        found = {"recipient": identity.recipient.text, "admin": Admin(identity.admin.public).text}
        print_json({"identity": file, **found, "locked": passphrase})
    else:
        print(identity.recipient.text)


@key.command(epilog="Example: castore key show --identity /media/usb/identity")
@json_option
@common
def show(context: CliContext, as_json: bool) -> None:
    """Print the public keys of an identity: its recipient, and its admin key."""
    from castore.crypto import Admin

    identity = context.identity()()
    text, admin = identity.recipient.text, Admin(identity.admin.public).text
    if as_json:
        print_json({"recipient": text, "admin": admin})
    else:
        print(text)
        print(admin)


@key.command(name="list", epilog="Example: castore key list")
@json_option
@common
def list_(context: CliContext, as_json: bool) -> None:
    """List the recipients of the store, the admin keys that sign, and the machines that add."""
    from castore.cli import formatting

    with context.open_store() as store:
        admins = {one.recipient: one.text for one in store.config.admins}
        found = [
            {"recipient": r.text, "label": label, "admin": admins.get(r.key)} for r, label in store.recipients
        ]
        others = [described(one) for one in store.config.writers]
        keys = [f"{one.text}  {one.label}".rstrip() for one in store.config.admins]
    if as_json:
        print_json(found)
        return
    for entry in found:
        print(f"{entry['recipient']}  {formatting.one_line(entry['label'] or '')}".rstrip())
    for line in [*keys, *others]:
        print(formatting.one_line(line))


@key.command(epilog="Example: castore key add castore-pub-... --label 'offsite, 2026'")
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
        admins = list(store.config.admins)
        if admin is not None and (key := Admin.parse(admin).key) not in store.config.admin_keys:
            admins.append(LabelledAdmin(key, label, added.key))
        if all(added != existing for existing, _ in store.recipients):
            store.reseal([*store.recipients, (added, label)], admins=admins)
        elif len(admins) > len(store.config.admins):
            store.reseal(store.recipients, admins=admins)
        elif not store.reseal(store.recipients):  # else an earlier try did not end, and now has
            raise UsageError(f"{added.text} is a recipient of this store already")
    if as_json:
        print_json({"recipient": added.text, "label": label})
    else:
        summarize(f"{added.text} opens this store now, including all earlier generations")


@key.command(epilog="Example: castore key remove castore-pub-...")
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
    with context.open_store() as store:
        rest = [(one, label) for one, label in store.recipients if one != removed]
        if not rest:
            raise UsageError("a store needs a recipient: add another before removing the last")
        if len(rest) < len(store.recipients) and store.identity().recipient == removed:
            raise UsageError("that is the recipient of the identity in use: use an identity that stays")
        admins = [one for one in store.config.admins if one.recipient != removed.key]
        if not store.reseal(rest, admins=admins):  # what an earlier try did not end has ended otherwise
            raise NotFoundError(f"{removed.text} is no recipient of this store; see 'castore key list'")
    if as_json:
        print_json({"recipient": removed.text})
    else:
        summarize(f"{removed.text} is no longer a recipient of this store")


def _remove_admin(context: CliContext, text: str, *, as_json: bool) -> None:
    from castore.crypto import Admin
    from castore.errors import NotFoundError

    key = Admin.parse(text).key
    with context.open_store() as store:
        rest = [one for one in store.config.admins if one.key != key]
        if len(rest) == len(store.config.admins):
            raise NotFoundError(f"{text} is no admin of this store; see 'castore key list'")
        store.reseal(store.recipients, admins=rest)
    if as_json:
        print_json({"admin": text})
    else:
        summarize(f"{text} is no longer an admin of this store")


@key.command(epilog="Example: castore key sign --identity /media/usb/identity")
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
        store.sign()
        location, admin = store.location, Admin(store.admin().public).text
    if as_json:
        print_json({"store": location})
    else:
        summarize(f"the configuration of {location} is signed by an admin")
        summarize(f"machines that do not trust this admin yet need, with one command: --trust-admin {admin}")


@key.command(epilog="Example: castore key adopt --store /mnt/old --identity /media/usb/identity")
@click.option("--host", metavar="NAME", default="", help="The machine's name in the store; else its own.")
@click.option("--maintain", is_flag=True, help="Let this machine remove what others added, too.")
@click.option(
    "--replace", is_flag=True, help="It replaces the machine that had the name, with its role."
)
@click.option("--new-key", is_flag=True, help="Give it another key: a copy of its own is on another machine.")
@yes_option
@json_option
@common
def adopt(
    context: CliContext, host: str, maintain: bool, replace: bool, new_key: bool, yes: bool, as_json: bool
) -> None:
    """Make this machine a writer of the store. Needs the identity of an admin, who certifies its key.

    An outdated writer key of this machine is replaced.
    """
    with signed_store(context, yes=yes, local_key=False) as store:
        store.adopt(host, maintain=maintain, replace=replace, new_key=new_key)
        location, name, maintains = store.location, store.certified_host, store.writer_key.may_maintain
    if as_json:
        print_json({"store": location, "host": name})
    else:
        may = "add to, and remove what others added from," if maintains else "add to"
        summarize(f"this machine may {may} {location} now, as {name}")


@key.command(name="rotate-writer", epilog="Example: castore key rotate-writer")
@click.option(
    "--new-ids", is_flag=True, help="Also rename chunks: later snapshots share nothing with earlier ones."
)
@json_option
@common
def rotate_writer(context: CliContext, new_ids: bool, as_json: bool) -> None:
    """Draw a new writer key, after somebody may have read it. Needs the identity of an admin.

    Stored data stays, and restores. Data under the former key is refused from now on, also that of
    snapshots that other machines are taking. Machines that are writers of the store get the new key by
    themselves. A holder of the former key still knows the names of earlier services and generations, and,
    unless --new-ids is given, can test whether the store holds a chunk that they know.
    """
    with context.open_store() as store:
        store.rotate_writer(new_ids=new_ids)
        context.warn_damaged(store)
        location = store.location
    if as_json:
        print_json({"store": location, "new_ids": new_ids})
        return
    summarize(f"the store at {location} has a new writer key, and so has this machine")
    summarize("the other machines that add to it take it with their next command")


@key.command(name="revoke-writer", epilog="Example: castore key revoke-writer web1")
@click.argument("host", metavar="HOST")
@json_option
@common
def revoke_writer(context: CliContext, host: str, as_json: bool) -> None:
    """End the certificate of a machine that was stolen or lost. Needs the identity of an admin.

    What the machine added before stays, and restores; 'castore key list' names the machines. It also draws
    a new writer key, as 'castore key rotate-writer' does, which the revoked machine does not get.
    """
    with context.open_store() as store:
        store.revoke_writer(host)
        context.warn_damaged(store)
        location = store.location
    if as_json:
        print_json({"store": location, "host": host})
        return
    summarize(f"{host} is no longer a writer of {location}; what it adds from now on is refused")
    summarize("give the store new credentials, too, if that machine had any")


@key.command(epilog="Example: castore key audit")
@json_option
@common
def audit(context: CliContext, as_json: bool) -> None:
    """Show what each machine and admin has added, and what is not accepted.

    After a theft this shows what the machine could have done before 'castore key revoke-writer'.
    """
    from castore.cli import formatting
    from castore.maintenance.audit import audit as look

    with context.open_store() as store:
        found = look(store)
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(found))
        return
    for one in found.added:
        words = [f"{one.kind} {formatting.printable(one.host)}", one.key[:16], *one.roles]
        words += [f"since {formatting.local_time(one.since)}"] if one.since else []
        ended = "replaced" if one.replaced else "revoked"
        words += [f"{ended} {formatting.local_time(one.revoked)}"] if one.revoked else []
        print("  ".join(words))
        if one.generations:
            times = f"from {formatting.local_time(one.first)} to {formatting.local_time(one.last)}"
            print(f"    {formatting.count(one.generations, 'generation')}, {times}")
        if one.packs or one.sessions:
            packs = f"{formatting.count(one.packs, 'pack')} of {formatting.size(one.bytes)}"
            print(f"    {formatting.count(one.sessions, 'session')}, {packs}")
    if found.former:
        print(f"accepted under former writer keys: {formatting.count(found.former, 'object')}")
    for name, reason in sorted(found.refused.items()):
        print(f"not accepted: {name}: {formatting.one_line(reason)}")


@key.command(epilog="Example: castore key paper --out sheet.html")
@click.option(
    "--out",
    metavar="FILE",
    type=LocalPath(),
    help="Write a .html page, .svg picture or .txt file; else it is printed here.",
)
@common
def paper(context: CliContext, out: str | None) -> None:
    """Print the identity on a sheet that outlives disks: to type, and as a QR code.

    A locked identity stays locked on it. The file is secret like the identity: remove it once it is
    printed.
    """
    import sys

    from castore.cli import recovery_sheet as printing
    from castore.cli.places import write_secret
    from castore.errors import UsageError

    forms = {"html": printing.as_html, "svg": printing.as_svg, "txt": printing.as_text}
    kind = "txt" if out is None else out.rpartition(".")[2].lower()
    if kind not in forms:
        raise UsageError(f"{out}: a sheet is a .html page, a .svg picture or a .txt file")
    sheet = _sheet(context)
    if out is None:
        click.echo(printing.as_text(sheet, terminal=sys.stdout.isatty()), nl=False)
        return
    write_secret(out, forms[kind](sheet))
    click.echo(f"{out} holds the identity: print it, remove it, and keep the sheet somewhere safe", err=True)


def _sheet(context: CliContext) -> Sheet:
    """Return what is to be printed of the identity at hand."""
    import datetime as dt
    import re

    from castore.cli.recovery_sheet import Sheet
    from castore.crypto.identity import Identity, check_identity, is_locked
    from castore.errors import CastoreError, IdentityError
    from castore.storage import LocalStorage
    from castore.store import Store

    text, source = context.identity_text()
    try:
        line = check_identity(text)
    except IdentityError as error:
        raise IdentityError(f"{source}: {error}") from None
    if is_locked(line):
        noted = re.search(r"^#\s*(castore-pub-[a-z2-7]+)\s*$", text, re.MULTILINE)
        recipient = noted[1] if noted else ""
    else:
        recipient = Identity.parse(line, None).recipient.text
    store, store_id = context.store_path(), ""
    # A sheet for a store that is elsewhere, or whose disk is not here, is as good.
    with contextlib.suppress(CastoreError):
        store_id = Store.read_id(LocalStorage(store)).hex()
    return Sheet(line, recipient, store, store_id, dt.datetime.now().astimezone().date().isoformat())


@key.command(epilog="Example: castore key enter ./identity")
@click.argument("file", type=LocalPath())
@json_option
def enter(file: str, as_json: bool) -> None:
    """Make FILE of an identity that is typed, or pasted, from a sheet of 'castore key paper'.

    Case, spaces, dashes and line ends do not matter. If the check does not match, the group that is
    mistyped is named.
    """
    import os
    import sys

    from castore.cli.places import write_secret
    from castore.crypto.identity import Identity, check_identity, is_locked, is_whole
    from castore.errors import UsageError

    text = ""
    if sys.stdin.isatty():
        click.echo("Type the identity, in as many lines as you like; an empty line ends it.", err=True)
        while not is_whole(text) and (line := sys.stdin.readline()).strip():
            text += line
    else:
        text = sys.stdin.read(1 << 16)
    line = check_identity(text)
    if not os.path.isdir(folder := os.path.dirname(os.path.abspath(file))):
        raise UsageError(f"there is no directory {folder}")
    note = "# castore identity, typed from paper"
    if is_locked(line):
        write_secret(file, f"{note}; it takes its passphrase\n{line}\n")
        if as_json:
            print_json({"identity": file, "recipient": None, "locked": True})
        else:
            summarize(f"{file} holds the identity, locked with its passphrase")
        return
    recipient = Identity.parse(line, None).recipient.text
    write_secret(file, f"{note}: opens all state sealed to\n# {recipient}\n{line}\n")
    if as_json:
        print_json({"identity": file, "recipient": recipient, "locked": False})
    else:
        print(recipient)


@key.command(epilog="Example: castore key passphrase /media/usb/identity")
@click.argument("file", required=False, type=LocalPath())
@click.option("--remove", is_flag=True, help="Leave the identity without a passphrase.")
@json_option
@common
def passphrase(context: CliContext, file: str | None, remove: bool, as_json: bool) -> None:
    """Set, change or remove the passphrase of an identity's file.

    That is FILE, --identity, or where init wrote it. CASTORE_PASSPHRASE_COMMAND prints the present one,
    CASTORE_NEW_PASSPHRASE_COMMAND the new one; else they are asked for. Copies of the file keep the
    passphrase that they had.
    """
    from castore.cli.places import change_passphrase

    path = file or context.identity_file or context.default_identity()
    variable = "CASTORE_NEW_PASSPHRASE_COMMAND"
    identity = change_passphrase(path, lambda: None if remove else _new_passphrase(variable))
    if as_json:
        print_json({"identity": path, "recipient": identity.recipient.text, "locked": not remove})
        return
    state = "no passphrase" if remove else "a new passphrase"
    summarize(f"{path} has {state} now; it is the identity of {identity.recipient.text} as before")
