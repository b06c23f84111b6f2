"""The keys of a machine that adds to a store: the store's writer secret, and the machine's own keys."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from castore.crypto.identity import Identity
from castore.crypto.key_derivation import derive
from castore.crypto.key_text import one_line, read, write
from castore.crypto.object_aead import ObjectSealer
from castore.crypto.signing import PUBLIC_BYTES, SigningKey
from castore.crypto.sodium import Secret
from castore.errors import DamageError, IdentityError, RevokedKeyError, SignerError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_WRITER: Final = "castore-writer-"
_FIXED: Final = 16 + 32 + 32
"""Bytes of a writer key before the admins that it pins."""


class MachineKey:
    """The secret of one machine that adds to a store. It is wiped when it is no longer used."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != 32:
            raise ValueError(f"a machine's seed has 32 bytes, not {len(seed)}")
        self._seed = Secret(seed)

    def __repr__(self) -> str:
        return "MachineKey(...)"

    @classmethod
    def generate(cls) -> MachineKey:
        """Return a new one."""
        return cls(os.urandom(32))

    @property
    def seed(self) -> bytes:
        """The 32 bytes that the other keys are derived from."""
        return bytes(self._seed)

    @cached_property
    def signing(self) -> SigningKey:
        """Signs what this machine adds."""
        return SigningKey(derive("castore 1 writer sign", self.seed))

    @cached_property
    def box(self) -> Identity:
        """Opens the seals of the writer secret that are for this machine."""
        return Identity(derive("castore 1 writer box", self.seed))


@dataclass(frozen=True, repr=False)
class KeyHistory:
    """What came before a writer key that took the place of others."""

    former: tuple[bytes, ...]
    """The secrets of those, the oldest first."""
    ids: bytes
    """The secret that ids, cuts and sketches come from: one of those, or the present one."""
    listed: Callable[[], Mapping[str, bytes]]
    """Returns the hash of each object, by name, that was there when the last of them was replaced."""


@dataclass(frozen=True, repr=False)
class Signers:
    """Whose signatures are accepted, as the configuration says: Ed25519 public keys."""

    admins: frozenset[bytes] = frozenset()
    machines: Mapping[bytes, frozenset[str]] = field(default_factory=dict)
    """Of each machine whose certificate is valid, the host names that it has, or had."""
    ended: Mapping[bytes, frozenset[str]] = field(default_factory=dict)
    """The same of those that were revoked, and of former admins: what they signed before is accepted."""
    maintainers: frozenset[bytes] = frozenset()
    """Machines that may remove what others added."""

    def names(self, signer: bytes) -> frozenset[str]:
        """Return the host names of a machine; none for an admin."""
        return self.machines.get(signer) or self.ended.get(signer) or frozenset()

    def is_admin(self, signer: bytes) -> bool:
        """Whether a signer is an admin, or was one."""
        return signer in self.admins or (signer in self.ended and not self.ended[signer])

    def may_maintain(self, signer: bytes) -> bool:
        """Whether a signer may remove what others added."""
        return signer in self.admins or signer in self.maintainers


class WriterKey:
    """The secret of a machine that may add: names, cuts and lists, and reads no state.

    Its secrets stay in memory as long as it does: they are asked for at every step, and Python's
    `bytes` cannot be wiped.
    """

    def __init__(
        self,
        store_id: bytes,
        secret: bytes,
        past: KeyHistory | None = None,
        *,
        machine: MachineKey | None = None,
        pins: Iterable[bytes] = (),
        signer: SigningKey | None = None,
        signers: Signers | None = None,
    ) -> None:
        if len(store_id) != 16 or len(secret) != 32:
            raise ValueError(f"16 and 32 bytes were expected, not {len(store_id)}, {len(secret)}")
        self.store_id = store_id
        self.secret = secret
        self.machine = machine
        """This machine's own keys; None where it has none for this store."""
        self.pins = tuple(pins)
        """The public keys of the admins whose configurations this machine accepts."""
        self._signer = signer
        self.signers = signers or Signers()
        self.former = tuple(WriterKey(store_id, one) for one in past.former) if past else ()
        """Those that it took the place of, the oldest first."""
        self.ids = past.ids if past else secret
        """The secret that ids, cuts and sketches come from."""
        self.chunk_id_key = derive("castore 1 chunk id", self.ids)
        self.node_id_key = derive("castore 1 node id", self.ids)
        self._listed = past.listed if past else dict
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
        """Return a new key of the same store and machine, which knows of no other."""
        return self.with_secret(os.urandom(32))

    def with_secret(self, secret: bytes) -> WriterKey:
        """Return the key of the same store and machine with another secret."""
        return WriterKey(self.store_id, secret, machine=self.machine, pins=self.pins)

    def with_pins(self, pins: Iterable[bytes]) -> WriterKey:
        """Return the same key, which pins these admins, for its file; it knows of no former key."""
        return WriterKey(self.store_id, self.secret, machine=self.machine, pins=pins)

    @classmethod
    def parse(cls, text: str) -> WriterKey:
        """Return the key of a `castore-writer-...` text. Raises UsageError."""
        line = one_line(text)
        data = read(_WRITER, line) if line.startswith(_WRITER) else None
        if data is None or len(data) < _FIXED or (len(data) - _FIXED) % PUBLIC_BYTES:
            raise UsageError("this is no writer key (castore-writer-...), or it is mistyped or cut")
        pins = [data[at : at + PUBLIC_BYTES] for at in range(_FIXED, len(data), PUBLIC_BYTES)]
        return cls(data[:16], data[16:48], machine=MachineKey(data[48:_FIXED]), pins=pins)

    def text(self) -> str:
        """Return the secrets and pins as text, for a file that only its owner can read."""
        if self.machine is None:
            raise ValueError("a writer key without a machine's key is not kept")
        return write(_WRITER, b"".join([self.store_id, self.secret, self.machine.seed, *self.pins]))

    @property
    def gear(self) -> bytes:
        """The table that chunks are cut with: 2048 bytes."""
        return blake3(b"", key=derive("castore 1 gear", self.ids)).digest(2048)

    @property
    def sketch(self) -> bytes:
        """The numbers that sketches are drawn with: 192 bytes."""
        return blake3(b"", key=derive("castore 1 sketch", self.ids)).digest(192)

    def dump_key(self, service: str, part: str) -> str:
        """Return a secret word for a dump program: the same each time for one part of one service."""
        part_of = len(service.encode()).to_bytes(4, "little") + service.encode() + part.encode()
        return blake3(part_of, key=derive("castore 1 dump", self.store_id + self.secret)).hexdigest()

    @property
    def id_keys(self) -> list[tuple[bytes, bytes]]:
        """The keys of ids of chunks and nodes: of those that are given now, then of former ones."""
        found = [(self.chunk_id_key, self.node_id_key)]
        return found + [
            (key.chunk_id_key, key.node_id_key)
            for key in reversed(self.former)
            if key.secret != self.ids
        ]

    @property
    def objects(self) -> ObjectSealer:
        """Seals the store's objects."""
        return self._objects

    def open(
        self, name: str, ad: bytes, box: bytes | memoryview, digest: Callable[[], bytes]
    ) -> tuple[bytes, WriterKey]:
        """Return the plaintext of an object's box, and the key, this or a former one, that opened it.

        digest: returns the hash of the whole object, which is asked for if it was a former one.
        Raises DamageError, RevokedKeyError, which do not name the object.
        """
        plain = self._objects.attempt(ad, box)
        if plain is not None:
            return plain, self
        for key in reversed(self.former):
            plain = key.objects.attempt(ad, box)
            if plain is None:
                continue
            if self.listed().get(name) != digest():
                raise RevokedKeyError(
                    "it was sealed under a former writer key after that was replaced: somebody who has "
                    "that key may have forged it"
                )
            return plain, key
        raise DamageError("it does not open with the store's key: damaged, cut or foreign")

    @property
    def signer(self) -> SigningKey:
        """The key that signs what this process adds. Raises IdentityError if it may add nothing."""
        if self._signer is None:
            raise IdentityError(
                "this machine is not certified as a writer of the store: run 'castore key adopt' with the "
                "identity of an admin"
            )
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
        """Refuse an object that was signed by somebody who may not. opener: the key that opened it.

        Raises SignerError, which does not name the object.
        """
        if signer in self.signers.admins or signer in self.signers.machines:
            return
        if signer in self.signers.ended:
            # What a former key opens is listed: it was there when the signer was revoked.
            if opener is not self:
                return
            raise SignerError("it was signed by a machine or an admin that was revoked before")
        raise SignerError("it is signed by nobody whom the configuration names")

    def listed(self) -> Mapping[str, bytes]:
        """Return the hash, by name, of what was there when the last former key was replaced.

        Raises DamageError, FormatError, StorageError.
        """
        return self._listed()

    @property
    def oldest(self) -> WriterKey:
        """The store's first key: what it names stays as it is."""
        return self.former[0] if self.former else self

    def tags(self, service: str) -> list[bytes]:
        """Return what stands for a service in names: under this key, then under former ones."""
        return [self.tag(service), *(key.tag(service) for key in reversed(self.former))]

    def tag(self, service: str) -> bytes:
        """Return the 8 bytes that stand for a service in names of objects."""
        return blake3(service.encode(), key=self._tag_key).digest(8)

    def node_key(self, session_id: bytes) -> bytes:
        """Return the key that a session's nodes are sealed with."""
        return derive("castore 1 nodes", self._index_key + session_id)
