"""The configuration of a new store, and the certificates in it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import msgspec

from castore.crypto import MachineKey
from castore.errors import UsageError
from castore.model.names import check_host, host_name
from castore.model.odd_text import escaped
from castore.store.format.config import (
    MAINTAIN,
    Certificate,
    LabelledAdmin,
    LabelledRecipient,
    StoreConfig,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castore.crypto import Identity, Recipient, SigningKey, WriterKey
    from castore.store.options import NewStore


def labelled(recipients: Sequence[tuple[Recipient, str]]) -> tuple[LabelledRecipient, ...]:
    """Return recipients as stored in a configuration. Raises UsageError for none, or more than 1000."""
    if not recipients:
        raise UsageError("a store needs at least one recipient: without one nobody could read it")
    label_of = dict(recipients)
    if len(label_of) > 1000:
        raise UsageError(f"a store has at most 1000 recipients, not {len(label_of)}")
    return tuple(LabelledRecipient(recipient.key, label) for recipient, label in label_of.items())


def first_config(
    writer: WriterKey,
    recipients: tuple[LabelledRecipient, ...],
    identity: Identity | None,
    new: NewStore,
) -> tuple[StoreConfig, SigningKey]:
    """Return the configuration of a new store, and the key that must sign it."""
    machine = writer.machine or MachineKey.generate()
    named = {key: LabelledAdmin(key) for key in new.admins}
    signer = machine.signing
    if identity is not None:
        signer = identity.admin
        named[signer.public] = LabelledAdmin(signer.public, recipient=identity.recipient.key)
    now = time.time_ns()
    host = new.host or host_name(escaped(os.uname().nodename))
    certificate = _certificate(machine, host, now, maintain=True)
    config = StoreConfig(
        1,
        now,
        new.average_chunk_size,
        recipients,
        admins=tuple(named.values()),
        writers=(certificate,),
    )
    return config, signer


def _certificate(machine: MachineKey, host: str, since: int, *, maintain: bool) -> Certificate:
    roles = (MAINTAIN,) if maintain else ()
    return Certificate(machine.signing.public, machine.identity.recipient.key, check_host(host), since, roles)


def with_certificate(config: StoreConfig, machine: MachineKey, name: str, *, maintain: bool) -> StoreConfig:
    """Return a configuration with a machine certified under this name."""
    now = time.time_ns()
    fresh = _certificate(machine, name, now, maintain=maintain)
    certificates = []
    for writer in config.writers:
        if writer.key == fresh.key:
            names = tuple(dict.fromkeys([*writer.names, *([writer.host] if writer.host != name else [])]))
            roles = tuple(sorted({*writer.roles, *fresh.roles}))
            certificates.append(msgspec.structs.replace(writer, host=name, names=names, roles=roles))
        else:
            certificates.append(writer)
    if all(certificate.key != fresh.key for certificate in certificates):
        certificates.append(fresh)
    return msgspec.structs.replace(config, writers=tuple(certificates))
