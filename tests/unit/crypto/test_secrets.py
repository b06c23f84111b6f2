"""Secrets stay in castore's own memory: they are wiped, and no error or repr shows them."""

from __future__ import annotations

import pytest

from castore.crypto import (
    Cipher,
    Identity,
    RecordSealer,
)
from castore.crypto import (
    identity as keys,
)
from castore.errors import CastoreError


def test_keys_are_wiped_when_they_go():
    identity = Identity(bytes(range(32)))
    sealer = RecordSealer(Cipher.AEGIS_256, bytes(range(32)), bytes(16))
    buffers = [identity._secret._data, sealer._key._data]
    assert all(buffer == bytes(range(32)) for buffer in buffers)
    del identity, sealer
    assert all(buffer == bytes(32) for buffer in buffers)


def test_a_key_of_a_passphrase_is_wiped(monkeypatch):
    wiped = []
    real = keys.wipe
    monkeypatch.setattr(keys, "wipe", lambda buffer: (real(buffer), wiped.append(bytes(keys.taken(buffer, 8) if not isinstance(buffer, bytearray) else buffer))))
    locked = Identity.generate().locked_text("sesame and more")
    Identity.parse(locked, lambda: "sesame and more")
    assert len(wiped) == 4, "the passphrase and the key, twice"
    assert not any(any(one) for one in wiped)


def test_errors_and_reprs_hold_no_secret():
    identity = Identity.generate()
    secret = bytes(identity._secret)
    assert secret.hex() not in repr([identity, identity._secret])
    assert repr(identity._secret) == "Secret(...)"
    wrong = identity.text()[:-2]
    for attempt in (lambda: Identity.parse(wrong, None), lambda: keys.check_identity(wrong)):
        with pytest.raises(CastoreError) as refused:
            attempt()
        assert wrong[20:30] not in str(refused.value)
