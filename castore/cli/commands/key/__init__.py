"""The command group `key`: identities, recipients and writers."""

from __future__ import annotations

import click

from castore.cli.commands.key import identities, recipients, writers
from castore.cli.options import SubcommandGroup


@click.group(cls=SubcommandGroup)
def key() -> None:
    """Manage identities, and the recipients, admins and machines of a store."""


for _command in (
    *(identities.new, identities.show, identities.paper, identities.enter, identities.passphrase),
    *(recipients.list_, recipients.add, recipients.remove, recipients.sign),
    *(writers.adopt, writers.rotate_writer, writers.revoke_writer, writers.audit),
):
    key.add_command(_command)
