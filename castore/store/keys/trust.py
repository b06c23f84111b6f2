"""Choose the accepted configuration: the highest one that opens, verifies, and is signed by a trusted admin.

Anyone who can add objects to the store, or has its writer secret, can add configurations. A configuration
that does not open, or that no trusted admin signed, is ignored, whatever its number: it blocks nothing.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import msgspec

from castore.crypto import Admin, WriterKey
from castore.crypto.writer_key import how_to_adopt
from castore.errors import (
    CastoreError,
    DamageError,
    FormatError,
    IdentityError,
    KeyRotatedError,
    NotFoundError,
    StorageError,
    UntrustedError,
)
from castore.state.freshness import seen_at
from castore.state.writer_key_file import local_writer_keys
from castore.store.format.config import NewerConfigError, SealedConfig, config_numbers, is_empty
from castore.store.format.names import CONFIGS, config_name
from castore.store.format.rotation import rotation_numbers
from castore.store.keys import replicas
from castore.store.keys.keyring import wrong_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from castore.state.paths import MachinePaths
    from castore.storage import Storage
    from castore.store.format.config import StoreConfig
    from castore.store.keys.keyring import IdentitySource

    Agree = Callable[[StoreConfig, bytes], bool]

_WITHOUT_CONFIG: Final = (
    "without it nothing in the store can be opened; restore config/ from the newest copy of the store "
    "(nothing was changed)"
)


class Accepted(msgspec.Struct, frozen=True):
    """A configuration that was accepted."""

    sealed: SealedConfig
    config: StoreConfig
    writer: WriterKey
    """The key that opens it, without the keys that it replaced."""
    signer: bytes
    passed_over: dict[str, str] = {}
    """Configurations with higher numbers that are not accepted, by name, with the reasons."""
    names: frozenset[int] = frozenset()
    """The numbers of all configurations that existed."""

    @property
    def trusted_signers(self) -> tuple[bytes, ...]:
        """The public keys whose configurations are accepted from now on.

        If no admin has signed the store yet, the machine that created it is included.
        """
        admins = sorted(self.config.admin_keys)
        return (*admins, self.signer) if self.signer not in admins else tuple(admins)


class Opener(msgspec.Struct, frozen=True):
    """The keys with which this process opens configurations, and the signers that it accepts."""

    storage: Storage
    paths: MachinePaths
    identity: IdentitySource
    """Opens configurations if this machine has no writer key."""
    local_key: bool = True
    """Whether to use the writer key that this machine keeps."""
    trusted: frozenset[bytes] = frozenset()
    """Keys whose configurations are accepted in addition to those that this machine trusts."""
    agree: Agree | None = None
    """Asks the user whether to accept a configuration that no trusted key signed."""

    def keys(self, store_id: bytes) -> list[WriterKey]:
        """Return the writer keys of this machine for a store. Raises UsageError, StorageError."""
        if not self.local_key:
            return []
        return local_writer_keys(self.paths.writer_key_of(store_id), store_id, self.storage)

    def _accepts(self, store_id: bytes, keys: list[WriterKey], signer: bytes) -> bool:
        if signer in self.trusted:
            return True
        if keys:
            return signer in keys[0].trusted_signers
        return signer in seen_at(self.paths, store_id, self.storage).admins()

    def open(self, sealed: SealedConfig, keys: list[WriterKey]) -> Accepted:
        """Return a configuration as accepted. Raises CastoreError, which says why it is not accepted."""
        try:
            writer = _by_machine(sealed, keys) if keys else self._through_identity(sealed)
            config, signer = sealed.open(writer)
        except NewerConfigError as error:
            is_own = not keys and self.identity.get().admin.public == error.signer
            if is_own or self._accepts(sealed.store_id, keys, error.signer):
                raise _NewerStoreError(str(error)) from None
            raise
        if not self._accepts(sealed.store_id, keys, signer) and (keys or not self._is_agreed(config, signer)):
            raise _untrusted(sealed, config, signer, self.storage.location)
        return Accepted(sealed, config, writer, signer)

    def _through_identity(self, sealed: SealedConfig) -> WriterKey:
        try:
            identity = self.identity.get()
        except IdentityError as error:
            location = self.storage.location
            missing = f"this machine has no writer key for the store at {location}"
            if not self.local_key:  # `castore key adopt` must not advise itself
                raise IdentityError(f"{missing}, and {error}") from None
            raise IdentityError(f"{missing}: {how_to_adopt(location)} ({error})") from None
        secret = sealed.secret(identity)
        if secret is None:
            raise _NoSealError(f"{sealed.name} is not sealed to the identity")
        return WriterKey(sealed.store_id, secret)

    def _is_agreed(self, config: StoreConfig, signer: bytes) -> bool:
        """Return whether the identity at hand is the admin that signed, or the user accepts the signer."""
        if signer in config.admin_keys and self.identity.get().admin.public == signer:
            return True
        return self.agree is not None and self.agree(config, signer)


def _by_machine(sealed: SealedConfig, keys: list[WriterKey]) -> WriterKey:
    """Return the key that opens a configuration: one of these, or the key that is sealed to this machine."""
    for writer in keys:
        with contextlib.suppress(DamageError):
            sealed.open(writer)
            return writer
    for writer in keys:
        if writer.machine is not None and (secret := sealed.secret(writer.machine.identity)) is not None:
            return writer.with_secret(secret)
    return keys[0]  # opening with it reports what is wrong


class _NewerStoreError(FormatError):
    """An admin has signed that the store has a format that this castore does not know."""


class _UntrustedConfigError(UntrustedError):
    """A configuration is signed by a key that this machine does not trust."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message
        """The short form, for a configuration that is ignored."""


class _NoSealError(CastoreError):
    """A configuration is not sealed to the identity."""


class _Rejections(msgspec.Struct):
    """The configurations that are not accepted."""

    errors: list[CastoreError] = []
    reasons: dict[str, str] = {}
    """The reasons for people, by the name of the configuration."""

    def add(self, name: str, error: CastoreError) -> None:
        self.errors.append(error)
        self.reasons.setdefault(name, _reason(name, error))

    def try_open(self, opener: Opener, sealed: SealedConfig, keys: list[WriterKey]) -> Accepted | None:
        """Return a configuration as accepted; if it is not, add it, and return None."""
        try:
            return opener.open(sealed, keys)
        except _NewerStoreError:
            raise
        except (UntrustedError, DamageError, FormatError, _NoSealError) as error:
            self.add(sealed.name, error)
            return None


def choose(opener: Opener) -> Accepted:
    """Return the accepted configuration of a store.

    Raises NotFoundError, UntrustedError, IdentityError, KeyRotatedError, DamageError, FormatError.
    """
    storage = opener.storage
    for _ in range(3):
        numbers = config_numbers(storage)
        rejected = _Rejections()
        has_key = False
        waiting: list[SealedConfig] = []
        for sealed, keys in _candidates(numbers, opener, rejected):
            if not keys:
                waiting.append(sealed)
            elif found := rejected.try_open(opener, sealed, keys):
                # The other configurations name another store: they do not belong here.
                rejected.reasons |= {config.name: "it is of another store" for config in waiting}
                return _accepted(found, numbers, rejected.reasons)
            else:
                has_key = True
        for sealed in () if has_key else waiting:
            if found := rejected.try_open(opener, sealed, []):
                return _accepted(found, numbers, rejected.reasons)
        if numbers == config_numbers(storage):
            break  # otherwise another castore has just replaced it
    if not rejected.errors:
        raise _missing(storage)
    raise _refusal(storage, rejected.errors, numbers[-1], opener.identity)


def newest_numbers(storage: Storage) -> list[tuple[bytes, int]]:
    """Return the ids of stores that configurations name, unverified, each with its highest number.

    Raises NotFoundError, DamageError, FormatError.
    """
    numbers_of: dict[bytes, int] = {}
    problem: CastoreError | None = None
    for number in reversed(config_numbers(storage)):
        for data in replicas.variants(storage, CONFIGS, number):
            try:
                numbers_of.setdefault(SealedConfig(number, data).store_id, number)
            except (DamageError, FormatError) as error:
                problem = problem or error
    if not numbers_of:
        raise problem or _missing(storage)
    return list(numbers_of.items())


def _missing(storage: Storage) -> CastoreError:
    """Return the error for a location without a readable configuration."""
    if numbers := config_numbers(storage):
        name = config_name(numbers[-1])
        return DamageError(f"{name} is missing, and its copy is damaged: {_WITHOUT_CONFIG}")
    if not is_empty(storage):
        return DamageError(f"config/ is missing in {storage.location}: {_WITHOUT_CONFIG}")
    return NotFoundError(f"no store at {storage.location}: the directory holds no castore store")


def _candidates(
    numbers: list[int], opener: Opener, rejected: _Rejections
) -> Iterator[tuple[SealedConfig, list[WriterKey]]]:
    """Yield the configurations, highest first, each with this machine's keys for its store."""
    for number in reversed(numbers):
        for data in replicas.variants(opener.storage, CONFIGS, number):
            try:
                sealed = SealedConfig(number, data)
            except (DamageError, FormatError) as error:
                rejected.add(config_name(number), error)
                continue
            yield sealed, opener.keys(sealed.store_id)


def _accepted(accepted: Accepted, numbers: list[int], passed: dict[str, str]) -> Accepted:
    """Return the accepted configuration, with the higher ones that were ignored for it."""
    higher = {name for name in passed if int(name.rpartition("/")[2]) > accepted.sealed.number}
    reasons = {name: passed[name] for name in sorted(higher)}
    return msgspec.structs.replace(accepted, passed_over=reasons, names=frozenset(numbers))


def _refusal(
    storage: Storage, errors: list[CastoreError], number: int, identity: IdentitySource
) -> CastoreError:
    """Return the error for a store of which no configuration is accepted."""
    for kind in (UntrustedError, FormatError):
        if matching := [error for error in errors if isinstance(error, kind)]:
            return matching[0]
    if any(isinstance(error, _NoSealError) for error in errors):
        return IdentityError(wrong_identity(storage, identity.get(), None))
    damage = next((error for error in errors if isinstance(error, DamageError)), errors[0])
    try:
        was_replaced = any(rotation_number <= number for rotation_number in rotation_numbers(storage))
    except StorageError:
        was_replaced = False
    if not was_replaced:
        return damage
    return KeyRotatedError(
        f"the writer key of the store at {storage.location} was replaced, and this machine has a former one: "
        f"it was revoked, or another machine replaced it; to make it a writer again, "
        f"{how_to_adopt(storage.location)} (if that also fails, {config_name(number)} is damaged)"
    )


def _reason(name: str, error: CastoreError) -> str:
    if isinstance(error, _UntrustedConfigError):
        return error.reason
    return str(error).removeprefix(name).removeprefix(" is damaged").lstrip(": ")


def _untrusted(
    sealed: SealedConfig, config: StoreConfig, signer: bytes, location: str
) -> _UntrustedConfigError:
    text = Admin(signer).text
    what = f"{sealed.name} of the store at {location}"
    if signer in config.admin_keys:
        reason = f"it is signed by a key that this machine does not trust: --trust-admin {text} accepts it"
        return _UntrustedConfigError(
            f"{what} is signed by {text}, which this machine does not trust: compare that key with the one "
            "that 'castore key show' prints for the identity of the store's admin, and if both are equal, "
            f"repeat the command with --trust-admin {text}",
            reason,
        )
    return _UntrustedConfigError(
        f"{what} is not signed by an admin, but by the machine that created the store: run 'castore key "
        "sign' with an identity of the store, which shows the recipients of the store",
        "it is not signed by an admin",
    )
