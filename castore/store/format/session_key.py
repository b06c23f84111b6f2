"""`sessions/S.N`: the key of a session, sealed to each recipient."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from castore.crypto import Cipher  # noqa: TC001 - msgspec reads the annotation
from castore.errors import DamageError, FormatError, MissingError, SignerError
from castore.model.refs import SessionId
from castore.store.format.envelope import decode_record, open_object, seal_object
from castore.store.format.header import HEADER_BYTES, SESSION, check_header

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from castore.crypto import Identity, Recipient, SigningKey, WriterKey
    from castore.storage import Storage

_VERSION: Final = 1
_BOX: Final = HEADER_BYTES + 16


class SessionRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a session object holds."""

    version: int
    time: int
    """When the session began: nanoseconds since 1970."""
    host: str
    cipher: Cipher
    seals: tuple[tuple[bytes, bytes], ...]
    """(recipient, session id | data key sealed to it)."""
    nodes: bytes = b""
    """The key of the session's nodes; empty where it follows from the key that this is sealed under."""
    writer: bytes = b""
    """The public key of who added to the session: a machine's, or an admin's."""

    def __repr__(self) -> str:
        return f"SessionRecord(of {self.host})"

    def data_key(self, name: str, session: SessionId, identity: Identity) -> bytes | None:
        """Return the key of the session's chunks; None if it is not sealed to this identity."""
        for key, sealed in self.seals:
            if key == identity.recipient.key:
                opened = identity.open(sealed)
                if len(opened) != 48 or opened[:16] != session:
                    raise DamageError(f"{name} is damaged: it holds the key of another session")
                return opened[16:]
        return None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SessionRecord)


def session_name(session: SessionId, number: int) -> str:
    """Return the name of the object."""
    return f"sessions/{session.hex()}.{number}"


def session_numbers(storage: Storage) -> dict[SessionId, list[int]]:
    """Return the numbers there are of each session, in ascending order."""
    found: dict[SessionId, list[int]] = {}
    for name in storage.list("sessions"):
        if match := re.fullmatch(r"([0-9a-f]{32})\.(0|[1-9][0-9]{0,17})", name):
            found.setdefault(SessionId(bytes.fromhex(match[1])), []).append(int(match[2]))
    for numbers in found.values():
        numbers.sort()
    return found


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
    """Return the bytes of `sessions/S.number`. signer: else the writer's."""
    name, plain = session_name(session, number), _encoder.encode(record)
    return seal_object(SESSION, name, plain, writer, more=session, signer=signer)


def decode_session(
    session: SessionId, number: int, data: bytes, writer: WriterKey
) -> SessionRecord:
    """Return what the bytes of `sessions/S.number` hold. Raises DamageError, FormatError.

    Of a session under a former writer key, the key of its nodes is filled in: sealed anew, it keeps it.
    """
    name = session_name(session, number)
    check_header(name, data, SESSION)
    if data[HEADER_BYTES:_BOX] != session:
        raise DamageError(f"{name} is damaged: it names another session, or is cut")
    opened = open_object(SESSION, name, data, writer, more=16)
    record = decode_record(name, opened.plain, _decoder, _VERSION)
    # Only an admin seals a session again: another machine could put its own object in the place of that.
    if (record.writer != opened.signer or number > 0) and not writer.signers.is_admin(opened.signer):
        raise SignerError(f"{name} is damaged: it is signed by another machine than its session is of")
    if opened.opener is not writer and not record.nodes:
        record = msgspec.structs.replace(record, nodes=opened.opener.node_key(session))
    return record


def read_session(
    storage: Storage, session: SessionId, numbers: Sequence[int], writer: WriterKey
) -> tuple[int, SessionRecord]:
    """Return the highest of a session's objects that is accepted: its number, and what it holds.

    One that does not open, or is signed by somebody who may not, must not hide the right one.
    Raises DamageError, FormatError, StorageError.
    """
    refused: DamageError | FormatError | None = None
    for number in reversed(numbers):
        data = storage.get(session_name(session, number))
        try:
            return number, decode_session(session, number, data, writer)
        except (DamageError, FormatError) as error:
            refused = refused or error
    raise refused or MissingError(f"the session object sessions/{session.hex()}.* is gone")


def new_session_record(
    time: int, host: str, cipher: Cipher, seals: tuple[tuple[bytes, bytes], ...], writer: bytes
) -> SessionRecord:
    """Return the record of a session that begins."""
    return SessionRecord(_VERSION, time, host, cipher, seals, writer=writer)
