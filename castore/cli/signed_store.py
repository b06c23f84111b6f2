"""Opening a store whose configuration no admin has signed yet: it is shown, and signed if the user agrees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from castore.cli.document import times

if TYPE_CHECKING:
    from castore.api.store import Store
    from castore.cli.context import CliContext
    from castore.store.format.config import Certificate, StoreConfig


yes_option = click.option(
    "--yes", is_flag=True, help="Do not ask before the configuration of a store is signed for the first time."
)
"""Adds --yes."""


def signed_store(context: CliContext, *, yes: bool, use_writer_key: bool = True) -> Store:
    """Open a store whose configuration an admin has signed, or signs now if the user agrees.

    Raises UsageError if the user does not agree.
    """
    asked: list[StoreConfig] = []

    def confirm_configuration(config: StoreConfig, signer: bytes) -> bool:
        return _is_agreed(config, signer, asked, yes=yes)

    store = context.open_store(use_writer_key=use_writer_key, confirm_configuration=confirm_configuration)
    try:
        keys = store.internal.keys
        if not keys.is_signed_by_admin:
            is_agreed = bool(asked) or confirm_configuration(keys.config, keys.signer)
            _refuse(
                "" if is_agreed else "nothing was signed",
                # The configuration with the highest number may be an attacker's.
                "there are several configurations: run the command without --yes to compare them"
                if yes and not store.internal.admin.has_one_configuration
                else "",
            )
            store.keys.sign()
    except BaseException:
        store.close()
        raise
    return store


def _is_agreed(config: StoreConfig, signer: bytes, asked: list[StoreConfig], *, yes: bool) -> bool:
    """Show a configuration, and return whether the user agrees. asked: gets what was shown."""
    import sys

    from castore.cli import formatting
    from castore.cli.options import confirm
    from castore.crypto import Admin

    by_admin = signer in config.admin_keys
    if by_admin and not sys.stdin.isatty():
        return False  # a script names the admin with --trust-admin
    lines = [f"{recipient.recipient.text}  {recipient.label}".rstrip() for recipient in config.recipients]
    lines += [f"{admin.text}  {admin.label}".rstrip() for admin in config.admins]
    lines += [described(writer) for writer in config.writers]
    host = config.certificate(signer)
    by = f"the machine {host.host}" if host is not None else Admin(signer).text
    click.echo(
        f"The configuration of the store is signed by {formatting.one_line(by)}. It names:", err=True
    )
    for line in lines:
        click.echo(f"    {formatting.one_line(line)}", err=True)
    asked.append(config)
    return (yes and not by_admin) or confirm("Are these all yours, and is the configuration right?")


def _refuse(*reasons: str) -> None:
    from castore.errors import UsageError

    for reason in reasons:
        if reason:
            raise UsageError(reason)


def described(certificate: Certificate) -> str:
    """Return a line that describes a machine that adds to the store."""
    import datetime as dt

    def day(ns: int) -> str:
        return dt.datetime.fromtimestamp(ns / 1e9).astimezone().date().isoformat()

    line = f"writer {certificate.host}  since {day(certificate.since)}"
    line += "".join(f"  {role}" for role in certificate.roles)
    if certificate.revoked:
        what = "replaced" if certificate.replaced else "revoked"
        line += f"  {what} {day(certificate.revoked)}"
    return line


def plain_writer(certificate: Certificate) -> dict[str, Any]:
    """Return a machine that adds to the store for JSON."""
    return {
        "host": certificate.host,
        "key": certificate.key.hex(),
        "roles": list(certificate.roles),
        **times("since", certificate.since),
        **times("revoked", certificate.revoked or None),
        "replaced": certificate.replaced,
    }
