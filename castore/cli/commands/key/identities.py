"""The commands `key new`, `show`, `paper`, `enter` and `passphrase`: files of identities."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from castore.cli.identity_files import new_passphrase
from castore.cli.messages import summarize
from castore.cli.options import LocalPath, common, json_option, print_json

if TYPE_CHECKING:
    from castore.cli.context import CliContext
    from castore.cli.recovery_sheet import Sheet


@click.command(epilog="Example: castore key new /media/usb/identity --passphrase")
@click.argument("file", type=LocalPath())
@click.option("--passphrase", is_flag=True, help="Protect it with a passphrase.")
@json_option
def new(file: str, passphrase: bool, as_json: bool) -> None:
    """Create an identity in FILE, and print its public key. 'castore key show' also prints its admin key."""
    from castore.crypto import Admin, Identity
    from castore.state.identity_file import write_identity

    identity = Identity.generate()
    write_identity(file, identity, new_passphrase() if passphrase else None)
    if as_json:
        public_keys = {"recipient": identity.recipient.text, "admin": Admin(identity.admin.public).text}
        print_json({"identity": file, **public_keys, "locked": passphrase})
    else:
        print(identity.recipient.text)


@click.command(epilog="Example: castore key show --identity /media/usb/identity")
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


@click.command(epilog="Example: castore key paper --out sheet.html")
@click.option(
    "--out",
    metavar="FILE",
    type=LocalPath(),
    help="Write a .html page, .svg picture or .txt file. Default: print to standard output.",
)
@common
def paper(context: CliContext, out: str | None) -> None:
    """Write the identity on a sheet to print, as text to type and as a QR code.

    A locked identity stays locked on the sheet. The file is as secret as the identity: remove it after
    printing.
    """
    import sys

    from castore.cli import recovery_sheet as printing
    from castore.errors import UsageError
    from castore.state.identity_file import write_secret

    forms = {"html": printing.as_html, "svg": printing.as_svg, "txt": printing.as_text}
    kind = "txt" if out is None else out.rpartition(".")[2].lower()
    if kind not in forms:
        raise UsageError(f"{out}: the name of a sheet must end with .html, .svg or .txt")
    sheet = _sheet(context)
    if out is None:
        click.echo(printing.as_text(sheet, terminal=sys.stdout.isatty()), nl=False)
        return
    write_secret(out, forms[kind](sheet))
    click.echo(f"{out} holds the identity: print it, remove it, and keep the sheet somewhere safe", err=True)


def _sheet(context: CliContext) -> Sheet:
    """Return the sheet of the identity in use. Raises IdentityError."""
    import datetime as dt
    import re

    from castore.cli.recovery_sheet import Sheet
    from castore.crypto.identity import Identity, check_identity, is_locked
    from castore.errors import CastoreError, IdentityError
    from castore.storage import open_storage
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
    store, store_id = context.store_address(), ""
    # The store may be on another machine, or its disk not mounted: the sheet then has no store id.
    with contextlib.suppress(CastoreError), contextlib.closing(open_storage(store)) as storage:
        store_id = Store.read_id(storage).hex()
    return Sheet(line, recipient, store, store_id, dt.datetime.now().astimezone().date().isoformat())


@click.command(epilog="Example: castore key enter ./identity")
@click.argument("file", type=LocalPath())
@json_option
def enter(file: str, as_json: bool) -> None:
    """Write FILE from an identity that is typed, or pasted, from a sheet of 'castore key paper'.

    Case, spaces, dashes and line ends do not matter. The mistyped group is named if a checksum does not
    match.
    """
    import os
    import sys

    from castore.crypto.identity import Identity, check_identity, is_locked, is_whole
    from castore.errors import UsageError
    from castore.state.identity_file import write_secret

    text = ""
    if sys.stdin.isatty():
        click.echo("Type the identity, in as many lines as you like; an empty line ends it.", err=True)
        while not is_whole(text) and (line := sys.stdin.readline()).strip():
            text += line
    else:
        text = sys.stdin.read(1 << 16)
    line = check_identity(text)
    if not os.path.isdir(folder := os.path.dirname(os.path.abspath(file))):
        raise UsageError(f"there is no directory {folder}: create it, or name another FILE")
    note = "# castore identity, typed from paper"
    if is_locked(line):
        write_secret(file, f"{note}; it is locked with its passphrase\n{line}\n")
        if as_json:
            print_json({"identity": file, "recipient": None, "locked": True})
        else:
            summarize(f"{file} holds the identity, locked with its passphrase")
        return
    recipient = Identity.parse(line, None).recipient.text
    write_secret(file, f"{note}: decrypts all state encrypted to\n# {recipient}\n{line}\n")
    if as_json:
        print_json({"identity": file, "recipient": recipient, "locked": False})
    else:
        print(recipient)


@click.command(epilog="Example: castore key passphrase /media/usb/identity")
@click.argument("file", required=False, type=LocalPath())
@click.option("--remove", is_flag=True, help="Leave the identity without a passphrase.")
@json_option
@common
def passphrase(context: CliContext, file: str | None, remove: bool, as_json: bool) -> None:
    """Set, change or remove the passphrase of an identity's file.

    The file is FILE, else --identity, else where init wrote it. CASTORE_PASSPHRASE_COMMAND prints the present
    passphrase, CASTORE_NEW_PASSPHRASE_COMMAND the new one; else castore asks for them. Copies of the file
    keep their passphrase.
    """
    from castore.cli.identity_files import stored_passphrase
    from castore.state.identity_file import change_passphrase

    path = file or context.identity_file or context.default_identity()
    variable = "CASTORE_NEW_PASSPHRASE_COMMAND"
    identity = change_passphrase(
        path, stored_passphrase, lambda: None if remove else new_passphrase(variable)
    )
    if as_json:
        print_json({"identity": path, "recipient": identity.recipient.text, "locked": not remove})
        return
    state = "no passphrase" if remove else "a new passphrase"
    summarize(f"{path} has {state} now; it is still the identity of {identity.recipient.text}")
