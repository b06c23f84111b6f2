"""Create a store and its identity, for `castore init` and the first snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from castore.cli import identity_files, missing_store
from castore.cli.messages import report
from castore.storage import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from castore.cli.context import CliContext
    from castore.crypto import Identity, Recipient


class NewStore(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `castore init`."""

    path: str | None = None
    recipients: Sequence[str] = ()
    admins: Sequence[str] = ()
    """Keys of admins in addition to that of the identity."""
    average: int | None = None
    passphrase: Callable[[], str] | None = None
    """Asks for the passphrase of a new identity; None: it has none."""
    replace_lost: bool = False
    """Create it even if this machine has used a store there that is missing now."""
    no_conditional_writes: bool = False
    """Accept a place that replaces objects, so that only one machine may add at a time."""


class _Owners(msgspec.Struct, frozen=True):
    """Who can read a new store."""

    recipients: list[Recipient]
    admin: Identity | None = None
    place: str | None = None
    """Where a new identity is written; None: at its default path."""
    is_new: bool = False


def make_store(context: CliContext, wanted: NewStore) -> dict[str, Any]:
    """Create a store, and an identity unless recipients are given; return what `--json` prints."""
    from castore.api.opening import CreateRequest, create_store
    from castore.state.directories import identity_path, machine_paths
    from castore.state.identity_file import write_identity
    from castore.store.format.config import DEFAULT_AVERAGE

    owners = _owners(context, wanted.recipients)
    phrase = wanted.passphrase() if wanted.passphrase is not None and owners.is_new else None
    address = context.store_address(wanted.path)
    written = None

    def keep_identity(store_id: bytes) -> None:
        # Before the store is usable: nobody could ever read its content without the identity.
        nonlocal written
        if owners.is_new and owners.admin is not None:
            written = owners.place or identity_path(store_id)
            write_identity(written, owners.admin, phrase)

    if not wanted.replace_lost:
        missing_store.refuse_replacement(address)
    if is_url(address):
        _refuse_unsound(address, no_conditional_writes=wanted.no_conditional_writes)
    request = CreateRequest(
        address=address,
        paths=machine_paths(),
        recipients=owners.recipients,
        owner=owners.admin,
        admins=wanted.admins,
        average_chunk_size=wanted.average or DEFAULT_AVERAGE,
        host=(context.settings.host or "") if context.settings is not None else "",
        limits=context.limits(),
        keep=keep_identity,
    )
    create_store(request).close()
    texts = [recipient.text for recipient in owners.recipients]
    return {"store": address, "identity": written, "recipients": texts}


def _refuse_unsound(address: str, *, no_conditional_writes: bool) -> None:
    """Refuse a place that does not keep what a store needs. Raises StorageError."""
    from castore.errors import StorageError
    from castore.storage import open_storage
    from castore.storage.probe import CREATE_ONLY, DELETION, probe

    accepted = {DELETION} | ({CREATE_ONLY} if no_conditional_writes else set())
    storage = open_storage(address, create=True)
    try:
        failed = [check for check in probe(storage) if check.failure is not None]
    finally:
        storage.close()
    for check in failed:
        if check.name not in accepted:
            way_out = (
                "; if only one machine at a time will ever add, --no-conditional-writes accepts the place"
                if check.name == CREATE_ONLY
                else ""
            )
            raise StorageError(
                f"no store can be kept at {address}: {check.name}: {check.failure}; {check.consequence}"
                f"{way_out}"
            )
        report(f"{address}: {check.name}: {check.failure}; {check.consequence}")


def _owners(context: CliContext, recipients: Sequence[str]) -> _Owners:
    """Return who can read a new store: the recipients on the command line or in castore.toml, or an identity.

    Raises UsageError, IdentityError.
    """
    from castore.crypto import Identity, Recipient
    from castore.errors import UsageError

    configured = context.settings.recipients if context.settings is not None else ()
    if recipients and context.identity_file:
        raise UsageError("give --recipient or --identity: with recipients no identity is created")
    if given := recipients or configured:
        return _Owners([Recipient.parse(recipient) for recipient in given])
    admin, place = identity_files.identity_of_new_store(context.identity_file)
    if admin is not None:
        return _Owners([admin.recipient], admin)
    made = Identity.generate()
    return _Owners([made.recipient], made, place, is_new=True)


def make_first(context: CliContext, path: str) -> None:
    """Create the default store for the first snapshot. Raises UsageError if this machine has used one."""
    missing_store.refuse_lost(path)
    made = make_store(context, NewStore())
    report(f"created a store in {path}")
    if made["identity"]:
        report(f"created an identity in {made['identity']}")
        report(keep_safe(made["identity"]))


def keep_safe(path: str) -> str:
    """Return the advice to copy an identity file to another machine."""
    return (
        f"Copy {path} somewhere safe, off this machine: without it nothing in the store can be read, "
        "and everybody who has it can read everything."
    )
