"""Keys, their texts, and what is sealed with them."""

from __future__ import annotations

import pytest
from blake3 import blake3
from nacl import bindings

from castore.crypto import (
    Admin,
    Cipher,
    Identity,
    Recipient,
    RecordSealer,
    WriterKey,
    random_key,
)
from castore.errors import DamageError, IdentityError, UsageError

ZEROS = bytes(32)


def flipped(text: str, at: int) -> str:
    return text[:at] + ("a" if text[at] != "a" else "b") + text[at + 1 :]


def test_what_is_sealed_to_a_recipient_opens_with_its_identity_only():
    identity = Identity.generate()
    sealed = identity.recipient.seal(b"secret")
    assert len(sealed) == 6 + 48
    assert identity.open(sealed) == b"secret"
    for wrong in (sealed[:-1], sealed[:47], b"", bytes([sealed[0] ^ 1]) + sealed[1:]):
        with pytest.raises(IdentityError):
            identity.open(wrong)
    with pytest.raises(IdentityError):
        Identity.generate().open(sealed)


def test_key_texts_round_trip_with_comments_and_any_mistyped_letter_is_refused():
    identity, writer = Identity.generate(), WriterKey.generate()
    assert Identity.parse(f"# note\n\n{identity.text()}\n", None).text() == identity.text()
    assert Recipient.parse(identity.recipient.text) == identity.recipient
    assert len({identity.recipient, Recipient.parse(identity.recipient.text)}) == 1
    assert WriterKey.parse(f"# note\n{writer.text()}\n") == writer
    for at in range(len("castore-identity-"), len(identity.text())):
        with pytest.raises(IdentityError):
            Identity.parse(flipped(identity.text(), at), None)
    for at in range(len(writer.text())):
        with pytest.raises(UsageError):
            WriterKey.parse(flipped(writer.text(), at))
    for text in ("", identity.text(), identity.recipient.text[:-1], "castore-pub-", "castore-pub-1!"):
        with pytest.raises(UsageError):
            Recipient.parse(text)
    for text in ("", identity.recipient.text, writer.text(), identity.text() + "\n" + identity.text()):
        with pytest.raises(IdentityError):
            Identity.parse(text, None)


def test_an_identity_opens_under_its_passphrase_only():
    identity = Identity.generate()
    locked = identity.locked_text("pässword")
    assert locked.startswith("castore-locked-")
    assert Identity.parse(locked, lambda: "pässword").text() == identity.text()
    with pytest.raises(IdentityError, match="wrong passphrase"):
        Identity.parse(locked, lambda: "password")
    with pytest.raises(IdentityError, match="none was given"):
        Identity.parse(locked, None)


def test_no_secret_is_shown_by_repr():
    identity, writer = Identity.generate(), WriterKey.generate()
    shown = repr([identity, writer, writer.objects, RecordSealer(Cipher.AEGIS_256, ZEROS, bytes(16))])
    assert identity.text() not in shown
    assert writer.text() not in shown
    assert writer.secret.hex() not in shown
    assert repr(writer.secret)[2:-1] not in shown


def test_a_recipient_does_not_change_and_a_low_order_one_is_refused():
    recipient = Identity.generate().recipient
    with pytest.raises(AttributeError):
        recipient.key = ZEROS
    with pytest.raises(UsageError):
        Recipient(ZEROS).seal(b"x")


def test_a_box_opens_only_with_its_associated_data():
    objects = WriterKey.generate().objects
    box = objects.seal(b"name", b"plain")
    assert len(box) == 5 + objects.OVERHEAD
    assert objects.open(b"name", box) == b"plain"
    assert objects.open(b"", objects.seal(b"", b"")) == b""
    for ad, wrong in [(b"nbme", box), (b"name", box[:-1]), (b"name", box[:39]), (b"name", b"")]:
        with pytest.raises(DamageError):
            objects.open(ad, wrong)
    with pytest.raises(DamageError):
        WriterKey.generate().objects.open(b"name", box)


@pytest.mark.parametrize("cipher", Cipher)
def test_a_record_is_bound_to_every_field_of_its_entry(cipher):
    key, store = random_key(), bytes(16)
    sealer = RecordSealer(cipher, key, store)
    fields = [7, b"i" * 32, 5, 0, 1]
    sealed = sealer.seal(*fields, memoryview(b"plain"))
    assert len(sealed) == 5 + sealer.overhead
    assert sealer.open(*fields, memoryview(sealed)) == b"plain"
    for at, other in enumerate([8, b"j" * 32, 6, 1, 0]):
        changed = [*fields[:at], other, *fields[at + 1 :]]
        with pytest.raises(DamageError):
            sealer.open(*changed, sealed)
    for at in range(len(sealed)):
        with pytest.raises(DamageError):
            sealer.open(*fields, sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
    with pytest.raises(DamageError):
        sealer.open(*fields, sealed[: sealer.overhead - 1])
    with pytest.raises(DamageError):
        RecordSealer(cipher, key, b"x" * 16).open(*fields, sealed)
    empty = sealer.seal(9, *fields[1:], b"")
    assert sealer.open(9, *fields[1:], empty) == b""


@pytest.mark.parametrize(("codec", "hashed"), [(0, b""), (1, b""), (2, b"plain")])
@pytest.mark.parametrize("cipher", Cipher)
def test_records_are_what_the_format_says(cipher, codec, hashed):
    key, store, record_id = random_key(), b"s" * 16, b"i" * 32
    ad = store + record_id + (5).to_bytes(4, "little") + bytes([1, codec, 0, 0])
    counter = (7).to_bytes(8, "little")
    nonce_key = blake3(key, derive_key_context="castore 1 nonce").digest()
    digest = blake3(counter + ad + hashed, key=nonce_key).digest(16)
    sealed = RecordSealer(cipher, key, store).seal(7, record_id, 5, 1, codec, b"plain")
    encrypt, length = {
        Cipher.XCHACHA20_POLY1305: (bindings.crypto_aead_xchacha20poly1305_ietf_encrypt, 24),
        Cipher.AEGIS_256: (bindings.crypto_aead_aegis256_encrypt, 32),
    }[cipher]
    assert sealed == digest + encrypt(b"plain", ad, (counter + digest).ljust(length, b"\0"), key)


@pytest.mark.parametrize("cipher", Cipher)
def test_a_counter_used_twice_gives_other_contents_another_nonce(cipher):
    """A virtual machine that is resumed twice from one snapshot of its memory takes a counter twice."""
    key = random_key()
    first, second = (RecordSealer(cipher, key, bytes(16)) for _ in range(2))
    group = [7, ZEROS, 0, 0, 2]  # a group of deltas has no id of its own
    one, other = first.seal(*group, b"some delta"), second.seal(*group, b"other data")
    assert one[:16] != other[:16]
    streams = [bytes(a ^ b for a, b in zip(sealed[16:26], plain, strict=False)) for sealed, plain in ((one, b"some delta"), (other, b"other data"))]
    assert streams[0] != streams[1]
    assert second.seal(*group, b"some delta") == one
    assert first.seal(8, *group[1:], b"some delta")[:16] != one[:16]
    chunks = [[7, name * 32, 4, 0, 1] for name in (b"a", b"b")]
    assert first.seal(*chunks[0], b"some")[:16] != second.seal(*chunks[1], b"else")[:16]


def test_public_keys_of_two_roles_are_never_equal_and_never_taken_for_each_other():
    recipient, admin = Recipient(bytes(32)), Admin(bytes(32))
    assert recipient != admin
    assert Recipient.parse(recipient.text) == recipient
    assert Admin.parse(admin.text) == admin
    assert (repr(recipient), repr(admin)) == (f"Recipient({recipient.text})", f"Admin({admin.text})")
    for kind, text, message in (
        (Recipient, admin.text, "not a recipient: one looks like castore-pub-"),
        (Admin, recipient.text, "not an admin key: one looks like castore-admin-.*key show"),
        (Recipient, recipient.text[:-1], "a recipient was expected: .*checksum"),
        (Admin, admin.text[:-1], "an admin key was expected: .*checksum"),
    ):
        with pytest.raises(UsageError, match=message):
            kind.parse(text)
    for kind in (Recipient, Admin):
        with pytest.raises(ValueError, match="32 bytes"):
            kind(b"short")
