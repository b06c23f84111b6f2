"""What only an admin may change: recipients, admins, the machines that add, the writer key.

Each change writes the next configuration, signed by the admin key of the identity at hand.
"""

from __future__ import annotations

import contextlib
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
from castore.state.writer_key_file import drop_next, keep_writer_key, local_writer_keys, next_of
from castore.store.format.config import (
    MAINTAIN,
    LabelledAdmin,
    LabelledRecipient,
    SealedConfig,
    StoreConfig,
    encode_config,
)
from castore.store.format.names import CONFIGS, config_name
from castore.store.format.rotation import rotation_numbers
from castore.store.keys import replicas
from castore.store.keys.keyring import wrong_identity
from castore.store.keys.new_config import labelled, with_certificate
from castore.store.keys.reseal import Resealing, check_opens, reseal
from castore.store.keys.rotation import Rotation, clean, rotate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from castore.crypto import Recipient, SigningKey
    from castore.model.refs import PackId
    from castore.state.service_state import ServiceState
    from castore.store.hosts import HostNames
    from castore.store.index_updater import IndexUpdater
    from castore.store.keys.key_manager import KeyManager


class KeyAdministration:
    """Changes the recipients, the admins, the certified machines and the writer key of an open store."""

    def __init__(
        self, keys: KeyManager, state: ServiceState, hosts: HostNames, updater: IndexUpdater
    ) -> None:
        self._storage = keys.storage
        self._location = keys.location
        self._keys = keys
        self._state = state
        self._hosts = hosts
        self._updater = updater

    @property
    def has_one_configuration(self) -> bool:
        """Whether the accepted configuration is the only one."""
        return len(self._keys.numbers) == 1

    def admin_key(self) -> SigningKey:
        """Return the admin key of the identity at hand. Raises IdentityError."""
        identity = self._keys.identity()
        if identity.admin.public not in self._keys.config.admin_keys:
            if all(entry.key != identity.recipient.key for entry in self._keys.config.recipients):
                raise IdentityError(wrong_identity(self._storage, identity, self._keys.config))
            raise IdentityError(
                f"the identity of {identity.recipient.text} is no admin of the store at {self._location}: "
                "changing recipients and writers needs the identity of an admin ('castore key list' names "
                "the admins; one of them makes this one an admin with 'castore key add PUB --admin KEY')"
                if self._keys.config.admins
                else f"no admin has signed the configuration of the store at {self._location} yet: run "
                "'castore key sign' with an identity of the store"
            )
        return identity.admin

    def sign(self) -> bool:
        """Make the identity at hand the first admin of a store without one; return whether it had none.

        Raises IdentityError, BusyError, StorageError.
        """
        identity = self._keys.identity()
        if self._keys.config.admins and self._keys.is_signed_by_admin:
            self.admin_key()
            return False
        if self._keys.config.admins:
            signer = self.admin_key()  # named when the store was created
        elif all(entry.key != identity.recipient.key for entry in self._keys.config.recipients):
            raise IdentityError(
                f"the identity of {identity.recipient.text} is not a recipient of the store at "
                f"{self._location}: use the identity of a recipient ('castore key list' names them)"
            )
        else:
            signer = identity.admin
        admin = LabelledAdmin(signer.public, recipient=identity.recipient.key)
        with self._state.keys_lock(), self._state.upkeep_lock(), self._storage.lock():
            self._keys.refresh()
            rest = tuple(admin for admin in self._keys.config.admins if admin.key != signer.public)
            self._put_config(msgspec.structs.replace(self._keys.config, admins=(*rest, admin)), signer)
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
        with self._state.keys_lock(), self._state.upkeep_lock(), self._storage.lock():
            self._keys.refresh()
            signer = self.admin_key()
            config = msgspec.structs.replace(
                self._keys.config,
                recipients=wanted,
                admins=self._keys.config.admins if admins is None else admins,
            )
            if signer.public not in config.admin_keys:
                raise UsageError("that is the admin key of the identity in use: use an identity that stays")
            number = self._keys.sealed.number
            if config != self._keys.config:
                number = self._next_number()
            request = Resealing(
                keyring=self._keys.ring,
                number=number,
                config=config,
                signer=signer,
                check_key=self._keys.refresh,
            )
            changed = reseal(self._storage, request)
            self._keys.refresh()
        return changed

    def _drop_admins(self, wanted: tuple[LabelledRecipient, ...], admins: tuple[LabelledAdmin, ...]) -> None:
        """Rotate the writer key if admins are removed, who know it. What they signed before is listed."""
        self._keys.refresh()
        dropped = self._keys.config.admin_keys - {admin.key for admin in admins}
        if not dropped:
            return
        if self.admin_key().public in dropped:
            raise UsageError("that is the admin key of the identity in use: use an identity that stays")
        config = msgspec.structs.replace(
            self._keys.config,
            recipients=wanted,
            admins=admins,
            previous_admins=(*self._keys.config.previous_admins, *sorted(dropped)),
        )
        check_opens(self._storage, self._keys.ring, config)
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
        path = self._keys.key_file
        machine = MachineKey.generate() if new_key else self._own_machine(path)
        if replace:
            wanted, own = host or self._hosts.name, machine.signing.public
            holder = self._keys.config.live(wanted)
            if holder is not None and holder.key != own:
                self._revoke(wanted, replaced=True)
        with self._state.keys_lock():
            self._keys.refresh()
            signer = self.admin_key()
            writer = self._keys.writer_key
            key = WriterKey(
                writer.store_id, writer.secret, machine=machine, trusted_signers=writer.trusted_signers
            )
            present = self._keys.config.certificate(machine.signing.public)
            if present is not None and present.revoked:
                machine = MachineKey.generate()
                key = WriterKey(
                    writer.store_id, key.secret, machine=machine, trusted_signers=key.trusted_signers
                )
                present = None
            name = host or (present.host if present is not None else self._hosts.name)
            self._refuse_taken(name, machine)
            # The keys are durable before they are certified.
            keep_writer_key(path, key, self._storage)
            drop_next(path)
            maintain = maintain or (replace and MAINTAIN in self._replaced_roles(name))
            config = with_certificate(self._keys.config, machine, name, maintain=maintain)
            if config != self._keys.config:
                self._put_config(config, signer)
        self._keys.reload(local_key=True)
        self._updater.drop_revoked()

    def _refuse_taken(self, name: str, machine: MachineKey) -> None:
        """Raise UsageError if another machine is certified, or was earlier, under this name."""
        holder = self._keys.config.holder(name)
        if holder is None or holder.key == machine.signing.public:
            return
        if holder.host != name:
            raise UsageError(
                f"{name} is an earlier name of the machine {holder.host} at {self._location}, which may "
                "remove generations under its names: give this one another name with --host NAME"
            )
        raise UsageError(
            f"another machine is a writer of the store at {self._location} under the name {name}: give this "
            "one another name with --host NAME, or, if it replaces that machine, use --replace"
        )

    def _own_machine(self, path: str) -> MachineKey:
        """Return the keys of this machine; new ones if it has none."""
        with contextlib.suppress(UsageError):
            for key in local_writer_keys(path, self._keys.store_id, self._storage):
                if key.machine is not None:
                    return key.machine
        return MachineKey.generate()

    def _replaced_roles(self, name: str) -> tuple[str, ...]:
        """Return the roles of the last machine with this name, if it was replaced rather than revoked."""
        former = [writer for writer in self._keys.config.writers if writer.host == name and writer.revoked]
        last = max(former, key=lambda one: one.revoked, default=None)
        return last.roles if last is not None and last.replaced else ()

    def rotate(self, *, new_ids: bool = False) -> None:
        """Create a new writer key: what is added with the present one from now on is not accepted.

        It is sealed to the recipients, and to the certified machines. With `new_ids`, chunks get new ids, so
        later snapshots share no content with what is stored now.
        Raises IdentityError, BusyError, StorageError.
        """
        self._rotate(self._keys.config, new_ids=new_ids)

    def revoke(self, host: str) -> None:
        """End the certificate of a host, and rotate the writer key, so that what it adds now is refused.

        What it added before stays. Raises NotFoundError, IdentityError, BusyError, StorageError.
        """
        self._revoke(host, replaced=False)

    def _revoke(self, host: str, *, replaced: bool) -> None:
        self._keys.refresh()
        certificate = self._keys.config.live(host)
        if certificate is None:
            raise NotFoundError(
                f"no machine is a writer of the store at {self._location} under the name {host!r}; see "
                "'castore key list'"
            )
        ended = msgspec.structs.replace(certificate, revoked=time.time_ns(), replaced=replaced)
        writers = tuple(ended if writer is certificate else writer for writer in self._keys.config.writers)
        self._rotate(msgspec.structs.replace(self._keys.config, writers=writers), new_ids=False)

    def _rotate(self, config: StoreConfig, *, new_ids: bool) -> None:
        signer = self.admin_key()
        path = self._keys.key_file
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._state.keys_lock())
            stack.enter_context(self._state.upkeep_lock())
            self._updater.sync()
            for service in self._updater.generations.services():
                stack.enter_context(self._state.lock(service))
            # What is committed or moved while packs are listed would not be accepted.
            stack.enter_context(self._storage.lock(exclusive=True))
            before = self._keys.config
            self._keys.refresh()
            if self._keys.config != before:
                raise BusyError("another castore has just changed the keys of this store; try again")
            if self._keys.writer_key.previous_keys:
                # Without this list, the next list would lack everything under former keys, for good.
                self._keys.writer_key.listed()
            successor = self._keys.writer_key.successor()
            keep = self._keys.writer_key.machine is not None and os.path.exists(path)
            if keep:
                keep_writer_key(next_of(path), successor, self._storage)
            rotation = Rotation(
                writer=self._keys.writer_key,
                successor=successor,
                config=config,
                number=self._keys.sealed.number,
                known=self._keys.numbers,
                signer=signer,
                new_ids=new_ids,
                accepted_packs=self._accepted_packs,
                is_rival=self._is_rival,
            )
            number = rotate(self._storage, rotation)
            if keep:
                keep_writer_key(path, successor, self._storage)
                drop_next(path)
            clean(self._storage, number)
            self._keys.reload()
            self._updater.drop_revoked()

    def _is_rival(self, number: int) -> bool:
        """Return whether an admin signed a configuration with this number that exists."""
        boxes = [self._keys.identity()]
        if self._keys.writer_key.machine is not None:
            boxes.append(self._keys.writer_key.machine.identity)
        for data in replicas.variants(self._storage, CONFIGS, number):
            with contextlib.suppress(DamageError, FormatError):
                sealed = SealedConfig(number, data)
                secrets = [sealed.secret(box) for box in boxes]
                secret = next((known for known in secrets if known is not None), self._keys.writer_key.secret)
                if sealed.open(WriterKey(self._keys.store_id, secret))[1] in self._keys.config.admin_keys:
                    return True
        return False

    def _accepted_packs(self) -> set[PackId]:
        self._updater.sync()
        return self._updater.index.packs.ids()

    # Configurations

    def _next_number(self) -> int:
        # Do not skip a configuration that was written since: its changes would be lost.
        used_numbers = {*self._keys.numbers, *rotation_numbers(self._storage)}
        return replicas.free_above(self._keys.sealed.number, used_numbers)

    def _put_config(self, config: StoreConfig, signer: SigningKey) -> None:
        """Write the next configuration under the same writer key, remove earlier ones, and use it."""
        number = self._next_number()
        data = encode_config(number, config, self._keys.writer_key, signer)
        try:
            self._storage.put(config_name(number), data)
        except ObjectExistsError:
            raise BusyError(f"another castore has just written {config_name(number)}; try again") from None
        replicas.put_copy(self._storage, CONFIGS, number, data)
        # The machine that created the store, or one without a writer key, may not trust the signer yet.
        self._keys.trust(signer.public)
        self._keys.refresh()
        if self._keys.sealed.number != number:
            self._storage.delete_all(replicas.names(self._storage, CONFIGS, number))
            raise BusyError("another castore has just changed the keys of this store; try again")
        self._storage.delete_all(replicas.older_than(self._storage, CONFIGS, number))

    def repair_copies(self) -> None:
        """Write the objects that are stored twice again where one of the two is damaged.

        Raises DamageError, FormatError, StorageError, BusyError.
        """
        with self._state.keys_lock():
            self._keys.refresh()
            for folder, number, read in self._keys.replicated():
                replicas.repair(self._storage, folder, number, read())
