"""`sessions/S.N`: the key of a session, sealed to each recipient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from castore.crypto import Cipher  # noqa: TC001 - msgspec reads the annotation
from castore.errors import DamageError, FormatError, MissingError, SignerError
from castore.store.format.envelope import decode_record, open_object, seal_object
from castore.store.format.header import HEADER_BYTES, SESSION, check_header
from castore.store.format.names import SESSIONS, any_session_name, session_name, split_session

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from castore.crypto import Identity, Recipient, SigningKey, WriterKey
    from castore.model.refs import SessionId
    from castore.storage import Storage

_VERSION: Final = 1
_BOX: Final = HEADER_BYTES + 16


class SessionRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The content of a session object."""

    version: int
    time: int
    """When the session began: nanoseconds since 1970."""
    host: str
    cipher: Cipher
    sealed_keys: tuple[tuple[bytes, bytes], ...]
    """(recipient, session id | data key sealed to it)."""
    writer: bytes
    """The public key that added to the session: a machine's, or an admin's."""
    node_key: bytes = b""
    """The key of the session's nodes; empty if it is derived from the key that seals this record."""

    def __repr__(self) -> str:
        return f"SessionRecord(of {self.host})"

    def data_key(self, name: str, session: SessionId, identity: Identity) -> bytes | None:
        """Return the key of the session's chunks; None if it is not sealed to this identity.

        Raises DamageError; IdentityError if the seal does not open.
        """
        for key, sealed in self.sealed_keys:
            if key == identity.recipient.key:
                opened = identity.open(sealed)
                if len(opened) != 48 or opened[:16] != session:
                    raise DamageError(f"{name} is damaged: it holds the key of another session")
                return opened[16:]
        return None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SessionRecord)


def session_numbers(storage: Storage) -> dict[SessionId, list[int]]:
    """Return the numbers of each session's objects, in ascending order."""
    numbers_of: dict[SessionId, list[int]] = {}
    for name in storage.list(SESSIONS):
        if named := split_session(name):
            session, number = named
            numbers_of.setdefault(session, []).append(number)
    for numbers in numbers_of.values():
        numbers.sort()
    return numbers_of


def sealed_to(
    recipients: Iterable[Recipient], session: SessionId, data_key: bytes
) -> tuple[tuple[bytes, bytes], ...]:
    """Return a session's seals for these recipients."""
    return tuple((recipient.key, recipient.seal(session + data_key)) for recipient in recipients)


def encode_session(
    session: SessionId,
    number: int,
    record: SessionRecord,
    writer: WriterKey,
    signer: SigningKey | None = None,
) -> bytes:
    """Return the bytes of `sessions/S.number`. signer: by default the writer's."""
    name, plain = session_name(session, number), _encoder.encode(record)
    return seal_object(SESSION, name, plain, writer, more=session, signer=signer)


def decode_session(session: SessionId, number: int, data: bytes, writer: WriterKey) -> SessionRecord:
    """Return the record in the bytes of `sessions/S.number`. Raises DamageError, FormatError.

    For a session under a former writer key, the key of its nodes is filled in, so that sealing the record
    again keeps it.
    """
    name = session_name(session, number)
    check_header(name, data, SESSION)
    if data[HEADER_BYTES:_BOX] != session:
        raise DamageError(f"{name} is damaged: it names another session, or is cut off")
    opened = open_object(SESSION, name, data, writer, more=16)
    record = decode_record(name, opened.plain, _decoder, _VERSION)
    # Only an admin seals a session again: a machine could otherwise replace another machine's object.
    if (record.writer != opened.signer or number > 0) and not writer.signers.is_admin(opened.signer):
        raise SignerError(f"{name} is damaged: it is signed by another machine than its session's")
    if opened.opener is not writer and not record.node_key:
        record = msgspec.structs.replace(record, node_key=opened.opener.node_key(session))
    return record


def read_session(
    storage: Storage, session: SessionId, numbers: Sequence[int], writer: WriterKey
) -> tuple[int, SessionRecord]:
    """Return the number and record of a session's highest object that is accepted.

    An object that does not open, or whose signer may not sign it, must not hide the right one.
    Raises DamageError, FormatError, StorageError.
    """
    refused: DamageError | FormatError | None = None
    for number in reversed(numbers):
        data = storage.get(session_name(session, number))
        try:
            return number, decode_session(session, number, data, writer)
        except (DamageError, FormatError) as error:
            refused = refused or error
    raise refused or MissingError(f"the session object {any_session_name(session)} is missing")


def new_session_record(
    time: int, host: str, cipher: Cipher, seals: tuple[tuple[bytes, bytes], ...], writer: bytes
) -> SessionRecord:
    """Return the record of a new session."""
    return SessionRecord(_VERSION, time, host, cipher, seals, writer)
