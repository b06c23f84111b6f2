"""What only an admin may change: recipients, admins, the machines that add, the writer key.

Each change writes the next configuration, signed by the admin key of the identity at hand.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from typing import TYPE_CHECKING

import msgspec

from castore.crypto import MachineKey, WriterKey
from castore.errors import (
    BusyError,
    DamageError,
    FormatError,
    IdentityError,
    NotFoundError,
    ObjectExistsError,
    UsageError,
)
from castore.model.names import check_host, host_name
from castore.model.odd_text import escaped
from castore.state.writer_key_file import drop_next, keep_writer_key, local_writer_keys, next_of
from castore.store.format.config import (
    CONFIGS,
    MAINTAIN,
    Certificate,
    LabelledAdmin,
    LabelledRecipient,
    SealedConfig,
    StoreConfig,
    config_name,
    encode_config,
)
from castore.store.format.rotation import rotation_numbers
from castore.store.generation_log import History
from castore.store.keys import replicas
from castore.store.keys.keyring import wrong_identity
from castore.store.keys.reseal import check_opens, reseal
from castore.store.keys.rotation import clean, rotate
from castore.store.keys.trust import choose

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from castore.crypto import Identity, Recipient, SigningKey
    from castore.model.refs import PackId


def labelled(recipients: Sequence[tuple[Recipient, str]]) -> tuple[LabelledRecipient, ...]:
    """Return recipients as stored in a configuration. Raises UsageError for none, or more than 1000."""
    if not recipients:
        raise UsageError("a store needs at least one recipient: without one nobody could read it")
    found = dict(recipients)
    if len(found) > 1000:
        raise UsageError(f"a store has at most 1000 recipients, not {len(found)}")
    return tuple(LabelledRecipient(recipient.key, label) for recipient, label in found.items())


def first_config(
    writer: WriterKey,
    recipients: tuple[LabelledRecipient, ...],
    average: int,
    host: str,
    identity: Identity | None,
    admins: Sequence[bytes],
) -> tuple[StoreConfig, SigningKey]:
    """Return the configuration of a new store, and the key that must sign it."""
    machine = writer.machine or MachineKey.generate()
    named = {key: LabelledAdmin(key) for key in admins}
    signer = machine.signing
    if identity is not None:
        signer = identity.admin
        named[signer.public] = LabelledAdmin(signer.public, recipient=identity.recipient.key)
    now = time.time_ns()
    host = host or host_name(escaped(os.uname().nodename))
    certificate = _certificate(machine, host, now, maintain=True)
    config = StoreConfig(1, now, average, recipients, admins=tuple(named.values()), writers=(certificate,))
    return config, signer


def _certificate(machine: MachineKey, host: str, since: int, *, maintain: bool) -> Certificate:
    roles = (MAINTAIN,) if maintain else ()
    return Certificate(machine.signing.public, machine.identity.recipient.key, check_host(host), since, roles)


class Authority(History):
    """A store with the changes that only an admin may make."""

    @property
    def signer(self) -> bytes:
        """The public key that signed the configuration."""
        return self._sealed.open(self.writer_key)[1]

    @property
    def is_signed_by_admin(self) -> bool:
        """Whether an admin signed the configuration, and not only the machine that created the store."""
        return self.signer in self.config.admin_keys

    @property
    def has_one_configuration(self) -> bool:
        """Whether the accepted configuration is the only one."""
        return len(self._numbers) == 1

    def admin(self) -> SigningKey:
        """Return the admin key of the identity at hand. Raises IdentityError."""
        identity = self.identity()
        if identity.admin.public not in self.config.admin_keys:
            if all(entry.key != identity.recipient.key for entry in self.config.recipients):
                raise IdentityError(wrong_identity(self.storage, identity, self.config))
            raise IdentityError(
                f"the identity of {identity.recipient.text} is no admin of the store at {self.location}: "
                "changing recipients and writers needs the identity of an admin ('castore key list' names "
                "the admins; one of them makes this one an admin with 'castore key add PUB --admin KEY')"
                if self.config.admins
                else f"no admin has signed the configuration of the store at {self.location} yet: run "
                "'castore key sign' with an identity of the store"
            )
        return identity.admin

    def sign(self) -> bool:
        """Make the identity at hand the first admin of a store without one; return whether it had none.

        Raises IdentityError, BusyError, StorageError.
        """
        identity = self.identity()
        if self.config.admins and self.is_signed_by_admin:
            self.admin()
            return False
        if self.config.admins:
            signer = self.admin()  # named when the store was created
        elif all(entry.key != identity.recipient.key for entry in self.config.recipients):
            raise IdentityError(
                f"the identity of {identity.recipient.text} is not a recipient of the store at "
                f"{self.location}: use the identity of a recipient ('castore key list' names them)"
            )
        else:
            signer = identity.admin
        admin = LabelledAdmin(signer.public, recipient=identity.recipient.key)
        with self._writer_key_lock(), self.upkeep_lock(), self.storage.lock():
            self.refresh_config()
            rest = tuple(one for one in self.config.admins if one.key != signer.public)
            self._put_config(msgspec.structs.replace(self.config, admins=(*rest, admin)), signer)
        return True

    def reseal(
        self,
        recipients: Sequence[tuple[Recipient, str]],
        *,
        admins: Iterable[LabelledAdmin] | None = None,
    ) -> bool:
        """Seal the store to exactly these (recipient, label) pairs; return whether that changed anything.

        admins: the admins it will have; None keeps the present ones. If it is interrupted, calling it again
        completes it. Raises UsageError, IdentityError, DamageError, StorageError, BusyError.
        """
        wanted = labelled(recipients)
        if admins is not None:
            admins = tuple(admins)
            self._drop_admins(wanted, admins)
        # Sessions that are sealed again under a writer key that is being replaced would not be accepted.
        with self._writer_key_lock(), self.upkeep_lock(), self.storage.lock():
            self.refresh_config()
            signer = self.admin()
            config = msgspec.structs.replace(
                self.config,
                recipients=wanted,
                admins=self.config.admins if admins is None else admins,
            )
            if signer.public not in config.admin_keys:
                raise UsageError("that is the admin key of the identity in use: use an identity that stays")
            number = self._sealed.number
            if config != self.config:
                number = self._next_number()
            changed = reseal(self.storage, self._keyring, number, config, signer, self.refresh_config)
            self.refresh_config()
        return changed

    def _drop_admins(self, wanted: tuple[LabelledRecipient, ...], admins: tuple[LabelledAdmin, ...]) -> None:
        """Rotate the writer key if admins are removed, who know it. What they signed before is listed."""
        self.refresh_config()
        gone = self.config.admin_keys - {one.key for one in admins}
        if not gone:
            return
        if self.admin().public in gone:
            raise UsageError("that is the admin key of the identity in use: use an identity that stays")
        config = msgspec.structs.replace(
            self.config,
            recipients=wanted,
            admins=admins,
            previous_admins=(*self.config.previous_admins, *sorted(gone)),
        )
        check_opens(self.storage, self._keyring, config)
        self._rotate(config, new_ids=False)

    def adopt(
        self, host: str = "", *, maintain: bool = False, replace: bool = False, new_key: bool = False
    ) -> None:
        """Keep the writer key on this machine, and certify the machine as a host of the store.

        host: the name; by default the present name of this machine. maintain: it may remove what others
        added. replace: revoke a certificate of this name for other keys, and take over its roles. new_key:
        the machine gets a new key, because another machine has a copy of the present one.
        Raises IdentityError, UsageError, BusyError, StorageError.
        """
        path = self.places.writer_key_of(self.store_id)
        machine = MachineKey.generate() if new_key else self._own_machine(path)
        if replace:
            wanted, own = host or self.host_name, machine.signing.public
            holder = self.config.live(wanted)
            if holder is not None and holder.key != own:
                self._revoke(wanted, replaced=True)
        with self._writer_key_lock():
            self.refresh_config()
            signer = self.admin()
            key = WriterKey(self.store_id, self.writer_key.secret, machine=machine, pins=self.writer_key.pins)
            present = self.config.certificate(machine.signing.public)
            if present is not None and present.revoked:
                machine = MachineKey.generate()
                key = WriterKey(self.store_id, key.secret, machine=machine, pins=key.pins)
                present = None
            name = host or (present.host if present is not None else self.host_name)
            holder = self.config.holder(name)
            if holder is not None and holder.key != machine.signing.public:
                if holder.host != name:
                    raise UsageError(
                        f"{name} is an earlier name of the machine {holder.host} at {self.location}, which "
                        "may remove generations under its names: give this one another name with --host NAME"
                    )
                raise UsageError(
                    f"another machine is a writer of the store at {self.location} under the name {name}: "
                    "give this one another name with --host NAME, or, if it replaces that machine, use "
                    "--replace"
                )
            # The keys are durable before they are certified.
            keep_writer_key(path, key, self.storage)
            drop_next(path)
            maintain = maintain or (replace and MAINTAIN in self._replaced_roles(name))
            config = self._with_certificate(machine, name, maintain=maintain)
            if config != self.config:
                self._put_config(config, signer)
        self._opener = dataclasses.replace(self._opener, local_key=True)
        accepted = choose(self._opener)
        self._remember(accepted)
        self._hold(accepted)

    def _own_machine(self, path: str) -> MachineKey:
        """Return the keys of this machine; new ones if it has none."""
        with contextlib.suppress(UsageError):
            for kept in local_writer_keys(path, self.store_id, self.storage):
                if kept.machine is not None:
                    return kept.machine
        return MachineKey.generate()

    def _replaced_roles(self, name: str) -> tuple[str, ...]:
        """Return the roles of the last machine with this name, if it was replaced rather than revoked."""
        former = [one for one in self.config.writers if one.host == name and one.revoked]
        last = max(former, key=lambda one: one.revoked, default=None)
        return last.roles if last is not None and last.replaced else ()

    def _with_certificate(self, machine: MachineKey, name: str, *, maintain: bool) -> StoreConfig:
        """Return the configuration with a machine certified under this name."""
        now = time.time_ns()
        fresh = _certificate(machine, name, now, maintain=maintain)
        certificates = []
        for one in self.config.writers:
            if one.key == fresh.key:
                names = tuple(dict.fromkeys([*one.names, *([one.host] if one.host != name else [])]))
                roles = tuple(sorted({*one.roles, *fresh.roles}))
                certificates.append(msgspec.structs.replace(one, host=name, names=names, roles=roles))
            else:
                certificates.append(one)
        if all(one.key != fresh.key for one in certificates):
            certificates.append(fresh)
        return msgspec.structs.replace(self.config, writers=tuple(certificates))

    def rotate_writer(self, *, new_ids: bool = False) -> None:
        """Create a new writer key: what is added with the present one from now on is not accepted.

        It is sealed to the recipients, and to the certified machines. With `new_ids`, chunks get new ids, so
        later snapshots share no content with what is stored now.
        Raises IdentityError, BusyError, StorageError.
        """
        self._rotate(self.config, new_ids=new_ids)

    def revoke_writer(self, host: str) -> None:
        """End the certificate of a host, and rotate the writer key, so that what it adds now is refused.

        What it added before stays. Raises NotFoundError, IdentityError, BusyError, StorageError.
        """
        self._revoke(host, replaced=False)

    def _revoke(self, host: str, *, replaced: bool) -> None:
        self.refresh_config()
        found = self.config.live(host)
        if found is None:
            raise NotFoundError(
                f"no machine is a writer of the store at {self.location} under the name {host!r}; see "
                "'castore key list'"
            )
        ended = msgspec.structs.replace(found, revoked=time.time_ns(), replaced=replaced)
        writers = tuple(ended if one is found else one for one in self.config.writers)
        self._rotate(msgspec.structs.replace(self.config, writers=writers), new_ids=False)

    def _rotate(self, config: StoreConfig, *, new_ids: bool) -> None:
        signer = self.admin()
        path = self.places.writer_key_of(self.store_id)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._writer_key_lock())
            stack.enter_context(self.upkeep_lock())
            self.sync()
            for service in self.services():
                stack.enter_context(self.lock(service))
            # What is committed or moved while packs are listed would not be accepted.
            stack.enter_context(self.storage.lock(exclusive=True))
            before = self.config
            self.refresh_config()
            if self.config != before:
                raise BusyError("another castore has just changed the keys of this store; try again")
            if self.writer_key.previous_keys:
                # Without this list, the next list would lack everything under former keys, for good.
                self.writer_key.listed()
            successor = self.writer_key.successor()
            keep = self.writer_key.machine is not None and os.path.exists(path)
            if keep:
                keep_writer_key(next_of(path), successor, self.storage)
            number = rotate(
                *(self.storage, self.writer_key, successor, config, self._sealed.number),
                self._numbers,
                self._accepted_packs,
                signer,
                self._is_rival,
                new_ids=new_ids,
            )
            if keep:
                keep_writer_key(path, successor, self.storage)
                drop_next(path)
            clean(self.storage, number)
            accepted = choose(self._opener)
            self._remember(accepted)
            self._hold(accepted)

    def _is_rival(self, number: int) -> bool:
        """Return whether an admin signed a configuration with this number that exists."""
        boxes = [self.identity()]
        if self.writer_key.machine is not None:
            boxes.append(self.writer_key.machine.identity)
        for data in replicas.variants(self.storage, CONFIGS, number):
            with contextlib.suppress(DamageError, FormatError):
                sealed = SealedConfig(number, data)
                secrets = [sealed.secret(one) for one in boxes]
                secret = next((one for one in secrets if one is not None), self.writer_key.secret)
                if sealed.open(WriterKey(self.store_id, secret))[1] in self.config.admin_keys:
                    return True
        return False

    def _accepted_packs(self) -> set[PackId]:
        self.sync()
        return self.index.packs.ids()

    # Configurations

    def _next_number(self) -> int:
        # Do not skip a configuration that was written since: its changes would be lost.
        return replicas.free_above(self._sealed.number, {*self._numbers, *rotation_numbers(self.storage)})

    def _put_config(self, config: StoreConfig, signer: SigningKey) -> None:
        """Write the next configuration under the same writer key, remove earlier ones, and use it."""
        number = self._next_number()
        data = encode_config(number, config, self.writer_key, signer)
        try:
            self.storage.put(config_name(number), data)
        except ObjectExistsError:
            raise BusyError(f"another castore has just written {config_name(number)}; try again") from None
        replicas.put_copy(self.storage, CONFIGS, number, data)
        # The machine that created the store, or one without a writer key, may not pin the signer yet.
        self._opener = dataclasses.replace(self._opener, trusted=self._opener.trusted | {signer.public})
        self.refresh_config()
        if self._sealed.number != number:
            self.storage.delete_all(replicas.names(self.storage, CONFIGS, number))
            raise BusyError("another castore has just changed the keys of this store; try again")
        self.storage.delete_all(replicas.older_than(self.storage, CONFIGS, number))


