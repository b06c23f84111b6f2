"""The keys of a store: its recipients, its admins, and the machines that add to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from castore.crypto import Admin, Recipient
from castore.errors import NotFoundError, UsageError
from castore.process.signal_shield import interrupt_note
from castore.store.format.config import LabelledAdmin

if TYPE_CHECKING:
    from castore.api.store import Store
    from castore.maintenance.audit import Audit
    from castore.store.format.config import Certificate

_REPEAT: Final = "the store can be used; repeat the command to complete the change"


class KeyHolder(msgspec.Struct, frozen=True):
    """A recipient or an admin of a store."""

    key: str
    """The public key, as text: `castore-pub-...` or `castore-admin-...`."""
    label: str
    """What was noted when it was added."""
    admin: str = ""
    """Of a recipient: the admin key of the same identity, or empty if it has none in this store."""


class Keys:
    """The keys of an open store. Changing them needs the identity of an admin.

    Changes raise IdentityError without it, and BusyError, StorageError, UsageError.
    """

    def __init__(self, store: Store) -> None:
        self._owner = store

    def __repr__(self) -> str:
        return f"<castore keys of {self._owner.location}>"

    # Who may read and add

    @property
    def recipients(self) -> list[KeyHolder]:
        """The public keys that the store is encrypted to."""
        keys = self._owner.internal.keys
        admins = {admin.recipient: admin.text for admin in keys.config.admins}
        return [
            KeyHolder(recipient.text, label or "", admins.get(recipient.key, ""))
            for recipient, label in keys.recipients
        ]

    @property
    def admins(self) -> list[KeyHolder]:
        """The admin keys that sign the configuration."""
        return [KeyHolder(admin.text, admin.label) for admin in self._owner.internal.keys.config.admins]

    @property
    def writers(self) -> list[Certificate]:
        """The certificates of the machines that add, or could add earlier."""
        return list(self._owner.internal.keys.config.writers)

    @property
    def host(self) -> str:
        """The certified name of this machine, or empty if it is not a writer."""
        return self._owner.internal.keys.certified_host

    @property
    def may_maintain(self) -> bool:
        """Whether this machine may remove what others added."""
        return self._owner.internal.keys.writer_key.may_maintain

    def audit(self) -> Audit:
        """Return what each machine and admin has added, and what is not accepted."""
        from castore.maintenance.audit import audit

        return audit(self._owner.internal)

    # Recipients and admins

    def add(self, recipient: Recipient | str, label: str = "", *, admin: str | None = None) -> None:
        """Encrypt the store to one more recipient. No data is rewritten.

        label: free text, such as the owner's name.
        admin: the admin key of the same identity, as text, which may then change keys, or None.
        Raises UsageError if that changes nothing.
        """
        store, added = self._owner.internal, _recipient(recipient)
        admins = list(store.keys.config.admins)
        if admin is not None and (key := Admin.parse(admin).key) not in store.keys.config.admin_keys:
            admins.append(LabelledAdmin(key, label, added.key))
        with interrupt_note(_REPEAT):
            if all(added != existing for existing, _ in store.keys.recipients):
                store.admin.reseal([*store.keys.recipients, (added, label)], admins=admins)
            elif len(admins) > len(store.keys.config.admins):
                store.admin.reseal(store.keys.recipients, admins=admins)
            elif not store.admin.reseal(store.keys.recipients):  # true: an earlier call was interrupted
                raise UsageError(f"{added.text} is a recipient of this store already")

    def remove(self, recipient: Recipient | str) -> None:
        """Remove a recipient, and the admin key of the same identity.

        The removed recipient can still decrypt copies of the store that were made before.
        Raises NotFoundError if the store is not encrypted to it.
        """
        store, removed = self._owner.internal, _recipient(recipient)
        rest = [(known, label) for known, label in store.keys.recipients if known != removed]
        if not rest:
            raise UsageError("a store needs a recipient: add another before removing the last")
        if len(rest) < len(store.keys.recipients) and store.keys.identity().recipient == removed:
            raise UsageError("that is the recipient of the identity in use: use an identity that stays")
        admins = [admin for admin in store.keys.config.admins if admin.recipient != removed.key]
        with interrupt_note(_REPEAT):
            if not store.admin.reseal(rest, admins=admins):  # true also if an earlier call was interrupted
                raise NotFoundError(
                    f"{removed.text} is not a recipient of this store; see 'castore key list'"
                )

    def remove_admin(self, admin: str) -> None:
        """Remove an admin key; its identity still decrypts. Raises NotFoundError if it is no admin."""
        store, key = self._owner.internal, Admin.parse(admin).key
        rest = [known for known in store.keys.config.admins if known.key != key]
        if len(rest) == len(store.keys.config.admins):
            raise NotFoundError(f"{admin} is not an admin of this store; see 'castore key list'")
        with interrupt_note(_REPEAT):
            store.admin.reseal(store.keys.recipients, admins=rest)

    def sign(self) -> str:
        """Make the identity an admin of a store that has none; return its admin key, as text."""
        store = self._owner.internal
        with interrupt_note(_REPEAT):
            store.admin.sign()
        return Admin(store.admin.admin_key().public).text

    # Machines

    def adopt(
        self, host: str = "", *, maintain: bool = False, replace: bool = False, new_key: bool = False
    ) -> None:
        """Make this machine a writer of the store.

        host: its name in the store, or empty for its host name.
        maintain: whether it may remove what others added.
        replace: replace the machine that had the name, with its role.
        new_key: give it another key, because a copy of its own is on another machine.
        """
        with interrupt_note(_REPEAT):
            self._owner.internal.admin.adopt(host, maintain=maintain, replace=replace, new_key=new_key)

    def rotate(self, *, new_ids: bool = False) -> None:
        """Create a new writer key: what is added with the previous one from now on is refused.

        new_ids: also rename chunks, so that later snapshots share nothing with earlier ones.
        """
        with interrupt_note(_REPEAT):
            self._owner.internal.admin.rotate(new_ids=new_ids)

    def revoke(self, host: str) -> None:
        """End the certificate of a machine, and create a new writer key. Raises NotFoundError.

        What the machine added before stays.
        """
        with interrupt_note(_REPEAT):
            self._owner.internal.admin.revoke(host)


def _recipient(recipient: Recipient | str) -> Recipient:
    return Recipient.parse(recipient) if isinstance(recipient, str) else recipient
