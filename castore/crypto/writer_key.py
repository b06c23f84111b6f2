"""The keys of a machine that adds to a store: the store's writer secret, and the machine's own keys."""

from __future__ import annotations

import os
import shlex
from functools import cached_property
from typing import TYPE_CHECKING, Final

import msgspec
from blake3 import blake3

from castore.crypto.identity import Identity
from castore.crypto.key_derivation import derive
from castore.crypto.key_text import one_line, read, write
from castore.crypto.object_aead import ObjectSealer
from castore.crypto.public_key import PUBLIC_BYTES
from castore.crypto.signing import SigningKey
from castore.crypto.sodium import Secret
from castore.errors import DamageError, IdentityError, RevokedKeyError, SignerError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_WRITER: Final = "castore-writer-"
_FIXED: Final = 16 + 32 + 32
"""Bytes of a writer key before the signers that it trusts."""


class MachineKey:
    """The secret of one machine that adds to a store. It is wiped when it is deallocated."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != 32:
            raise ValueError(f"a machine's seed has 32 bytes, not {len(seed)}")
        self._seed = Secret(seed)

    def __repr__(self) -> str:
        return "MachineKey(...)"

    @classmethod
    def generate(cls) -> MachineKey:
        """Return a new machine key."""
        return cls(os.urandom(32))

    @property
    def seed(self) -> bytes:
        """The 32 bytes from which the machine's other keys are derived."""
        return bytes(self._seed)

    @cached_property
    def signing(self) -> SigningKey:
        """The key that signs what this machine adds."""
        return SigningKey(derive("castore 1 writer sign", self.seed))

    @cached_property
    def identity(self) -> Identity:
        """The identity that opens seals of the writer secret for this machine."""
        return Identity(derive("castore 1 writer seal", self.seed))


class KeyHistory(msgspec.Struct, frozen=True):
    """The keys that a writer key replaced, and what was stored under them."""

    previous_secrets: tuple[bytes, ...]
    """The replaced secrets, the oldest first."""
    id_secret: bytes
    """The secret from which ids, cuts and sketches are derived: a replaced one, or the present one."""
    accepted_objects: Callable[[], Mapping[str, bytes]]
    """Returns the hash, by name, of each object that existed when the last of them was replaced."""

    __repr__ = object.__repr__  # without the secrets


class Signers(msgspec.Struct, frozen=True):
    """The Ed25519 public keys whose signatures the configuration accepts."""

    admins: frozenset[bytes] = frozenset()
    machines: Mapping[bytes, frozenset[str]] = {}
    """The present and earlier host names of each machine with a valid certificate."""
    ended: Mapping[bytes, frozenset[str]] = {}
    """The same for revoked machines and former admins: what they signed before is accepted."""
    maintainers: frozenset[bytes] = frozenset()
    """The machines and former admins that may remove what others added."""

    def names(self, signer: bytes) -> frozenset[str]:
        """Return the host names of a machine; none for an admin."""
        return self.machines.get(signer) or self.ended.get(signer) or frozenset()

    def is_admin(self, signer: bytes) -> bool:
        """Return whether a signer is an admin, or was one."""
        return signer in self.admins or (signer in self.ended and not self.ended[signer])

    def may_maintain(self, signer: bytes) -> bool:
        """Return whether a signer may remove what others added."""
        return signer in self.admins or signer in self.maintainers


def how_to_adopt(location: str = "") -> str:
    """Return which commands make this machine a writer of a store, for messages.

    location: that of the store, or empty if it is not known.
    """
    command = "castore key adopt" + (f" --store {shlex.quote(location)}" if location else "")
    return (
        f"with the identity of an admin, run '{command} --replace' if this machine was a writer of it, "
        f"or '{command} --host NAME' if it is new to the store"
    )


class WriterKey:
    """The secret of a machine that may add: it names, cuts and lists objects, but cannot read state.

    Its secrets stay in memory as long as the object does: every step needs them, and Python's `bytes` cannot
    be wiped.
    """

    def __init__(
        self,
        store_id: bytes,
        secret: bytes,
        past: KeyHistory | None = None,
        *,
        machine: MachineKey | None = None,
        trusted_signers: Iterable[bytes] = (),
        signer: SigningKey | None = None,
        signers: Signers | None = None,
    ) -> None:
        if len(store_id) != 16 or len(secret) != 32:
            raise ValueError(f"16 and 32 bytes were expected, not {len(store_id)}, {len(secret)}")
        self.store_id = store_id
        self.secret = secret
        self.machine = machine
        """This machine's own keys; None if it has none for this store."""
        self.trusted_signers = tuple(trusted_signers)
        """The public keys of the admins whose configurations this machine accepts."""
        self._signer = signer
        self.signers = signers or Signers()
        self.previous_keys = (
            tuple(WriterKey(store_id, secret) for secret in past.previous_secrets) if past else ()
        )
        """The keys that this one replaced, the oldest first."""
        self.id_secret = past.id_secret if past else secret
        """The secret from which ids, cuts and sketches are derived."""
        self.chunk_id_key = derive("castore 1 chunk id", self.id_secret)
        self.node_id_key = derive("castore 1 node id", self.id_secret)
        self._listed = past.accepted_objects if past else dict
        self._index_key = derive("castore 1 index", secret)
        self._tag_key = derive("castore 1 tag", self._index_key)
        self._objects = ObjectSealer(derive("castore 1 objects", self._index_key))

    def __repr__(self) -> str:
        return f"WriterKey(of store {self.store_id.hex()})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WriterKey):
            return NotImplemented
        return (self.store_id, self.secret) == (other.store_id, other.secret)

    def __hash__(self) -> int:
        return hash(self.store_id)

    @classmethod
    def generate(cls) -> WriterKey:
        """Return the key of a new store."""
        return cls(os.urandom(16), os.urandom(32), machine=MachineKey.generate())

    def successor(self) -> WriterKey:
        """Return a new key of the same store and machine, without former keys."""
        return self.with_secret(os.urandom(32))

    def with_secret(self, secret: bytes) -> WriterKey:
        """Return the key of the same store and machine with another secret."""
        return WriterKey(self.store_id, secret, machine=self.machine, trusted_signers=self.trusted_signers)

    def with_trusted_signers(self, signers: Iterable[bytes]) -> WriterKey:
        """Return the same key that trusts these signers, for its file; without former keys."""
        return WriterKey(self.store_id, self.secret, machine=self.machine, trusted_signers=signers)

    @classmethod
    def parse(cls, text: str) -> WriterKey:
        """Return the key of a `castore-writer-...` text. Raises UsageError."""
        line = one_line(text)
        data = read(_WRITER, line) if line.startswith(_WRITER) else None
        if data is None or len(data) < _FIXED or (len(data) - _FIXED) % PUBLIC_BYTES:
            raise UsageError("this is not a writer key (castore-writer-...), or it is mistyped or incomplete")
        signers = [data[at : at + PUBLIC_BYTES] for at in range(_FIXED, len(data), PUBLIC_BYTES)]
        return cls(data[:16], data[16:48], machine=MachineKey(data[48:_FIXED]), trusted_signers=signers)

    def text(self) -> str:
        """Return the secrets and trusted signers as text, for a file that only its owner can read."""
        if self.machine is None:
            raise ValueError("a writer key without a machine's key is not kept")
        return write(
            _WRITER, b"".join([self.store_id, self.secret, self.machine.seed, *self.trusted_signers])
        )

    @property
    def gear(self) -> bytes:
        """The table with which chunks are cut: 2048 bytes."""
        return blake3(b"", key=derive("castore 1 gear", self.id_secret)).digest(2048)

    @property
    def sketch(self) -> bytes:
        """The constants with which sketches are computed: 192 bytes."""
        return blake3(b"", key=derive("castore 1 sketch", self.id_secret)).digest(192)

    def dump_key(self, service: str, part: str) -> str:
        """Return a secret word for a dump program: always the same for one part of one service."""
        part_of = len(service.encode()).to_bytes(4, "little") + service.encode() + part.encode()
        return blake3(part_of, key=derive("castore 1 dump", self.store_id + self.secret)).hexdigest()

    @property
    def id_keys(self) -> list[tuple[bytes, bytes]]:
        """The (chunk, node) keys of ids: the pair for new records, then former ones."""
        pairs = [(self.chunk_id_key, self.node_id_key)]
        return pairs + [
            (key.chunk_id_key, key.node_id_key)
            for key in reversed(self.previous_keys)
            if key.secret != self.id_secret
        ]

    @property
    def objects(self) -> ObjectSealer:
        """The sealer of the store's objects."""
        return self._objects

    def open(
        self, name: str, ad: bytes, sealed: bytes | memoryview, digest: Callable[[], bytes]
    ) -> tuple[bytes, WriterKey]:
        """Return the plaintext of a sealed object, and the key that opened it: this or a former one.

        digest: returns the hash of the whole object; called only if a former key opened it.
        Raises DamageError, RevokedKeyError, which do not name the object.
        """
        plain = self._objects.attempt(ad, sealed)
        if plain is not None:
            return plain, self
        for key in reversed(self.previous_keys):
            plain = key.objects.attempt(ad, sealed)
            if plain is None:
                continue
            if self.listed().get(name) != digest():
                raise RevokedKeyError(
                    "it was sealed under a former writer key after that was replaced: a thief of that key "
                    "may have forged it"
                )
            return plain, key
        raise DamageError("it does not open with the store's key: it is damaged, cut off or foreign")

    @property
    def signer(self) -> SigningKey:
        """The key that signs what this process adds. Raises IdentityError if it may not add."""
        if self._signer is None:
            raise IdentityError(f"this machine is not certified as a writer of the store: {how_to_adopt()}")
        return self._signer

    @property
    def may_add(self) -> bool:
        """Whether this process may add to the store."""
        return self._signer is not None

    @property
    def may_maintain(self) -> bool:
        """Whether this process may remove what others added."""
        return self._signer is not None and self.signers.may_maintain(self._signer.public)

    def check_signer(self, signer: bytes, opener: WriterKey) -> None:
        """Refuse an object whose signer may not sign it. opener: the key that opened it.

        Raises SignerError, which does not name the object.
        """
        if signer in self.signers.admins or signer in self.signers.machines:
            return
        if signer in self.signers.ended:
            # What a former key opens is listed: it existed when the signer was revoked.
            if opener is not self:
                return
            raise SignerError("it was signed by a machine or an admin that had been revoked")
        raise SignerError("it is signed by a key that the configuration does not list")

    def listed(self) -> Mapping[str, bytes]:
        """Return the hash, by name, of each object that existed when the last former key was replaced.

        Raises DamageError, FormatError, StorageError.
        """
        return self._listed()

    @property
    def oldest(self) -> WriterKey:
        """The store's first key: names that are derived from it never change."""
        return self.previous_keys[0] if self.previous_keys else self

    def tags(self, service: str) -> list[bytes]:
        """Return the tags of a service in names: under this key, then under former ones."""
        return [self.tag(service), *(key.tag(service) for key in reversed(self.previous_keys))]

    def tag(self, service: str) -> bytes:
        """Return the 8 bytes that represent a service in names of objects."""
        return blake3(service.encode(), key=self._tag_key).digest(8)

    def node_key(self, session_id: bytes) -> bytes:
        """Return the key with which a session's nodes are sealed."""
        return derive("castore 1 nodes", self._index_key + session_id)
