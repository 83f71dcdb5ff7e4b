"""Blobs are what the format says, and vendors' ways of making IVs are understood."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.keywrap import (
    aes_key_unwrap_with_padding,
    aes_key_wrap_with_padding,
)
from cryptography.hazmat.primitives.serialization import load_der_public_key

from kms_core import (
    Ciphertext,
    Context,
    InvalidCiphertext,
    InvalidRequest,
    Unavailable,
    bind_context,
    unbind_context,
)
from kms_pkcs11.provider import Pkcs11Provider
from kms_pkcs11.sessions import Session
from kms_pkcs11.wrapping import GCM, KWP, OAEP_SHA1, AesGcm, wrapping_for

if TYPE_CHECKING:
    from tests.conftest import Providers, SettingsFor

CONTEXT = Context({"tenant": "42"})
DATA_KEY = bytes(range(32))
VALUE = bytes(range(100, 132))


@pytest.fixture
def known(make: Providers) -> str:
    """The label of an AES key whose value is known, and which only this process has."""
    import pkcs11

    provider = make()
    provider.encrypt("aes", DATA_KEY, CONTEXT)
    label = "known"

    def import_key(session: Any) -> None:
        session.raw.create_object(
            {
                pkcs11.Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY,
                pkcs11.Attribute.KEY_TYPE: pkcs11.KeyType.AES,
                pkcs11.Attribute.LABEL: label,
                pkcs11.Attribute.VALUE: VALUE,
                **{
                    getattr(pkcs11.Attribute, use): True
                    for use in ("ENCRYPT", "DECRYPT", "WRAP", "UNWRAP")
                },
            }
        )

    provider._sessions.run(import_key)
    return label


def test_gcm_blob_opens_with_the_key_alone(make: Providers, known: str) -> None:
    """IV, ciphertext and tag; the context is the associated data."""
    provider = make(known)
    wrapped = provider.encrypt(known, DATA_KEY, CONTEXT)
    iv, sealed = wrapped.data[:12], wrapped.data[12:]
    assert wrapped.wrap_alg == GCM
    assert AESGCM(VALUE).decrypt(iv, sealed, CONTEXT.encoded) == DATA_KEY
    ours = b"abcdefghijkl" + AESGCM(VALUE).encrypt(b"abcdefghijkl", DATA_KEY, CONTEXT.encoded)
    theirs = Ciphertext(ours, provider.key_uri, wrap_alg=GCM)
    assert provider.decrypt(known, theirs, CONTEXT) == DATA_KEY


def test_kwp_blob_is_rfc_5649(make: Providers, known: str) -> None:
    """Around the digest of the context and the key."""
    provider = make(known, mechanism="aes-kwp")
    wrapped = provider.encrypt(known, DATA_KEY, CONTEXT)
    assert wrapped.wrap_alg == KWP
    bound = aes_key_unwrap_with_padding(VALUE, wrapped.data)
    assert unbind_context(bound, CONTEXT) == DATA_KEY
    ours = aes_key_wrap_with_padding(VALUE, bytes(bind_context(DATA_KEY, CONTEXT)))
    assert ours == wrapped.data


def test_oaep_blob_is_what_the_public_key_makes(make: Providers) -> None:
    """Around the digest of the context and the key."""
    provider = make("rsa", mechanism="rsa-oaep-sha1")
    der = make("rsa").public_key("rsa").der
    public = load_der_public_key(der)
    assert isinstance(public, RSAPublicKey)
    bound = hashlib.sha256(CONTEXT.encoded).digest() + DATA_KEY
    oaep = padding.OAEP(padding.MGF1(SHA1()), SHA1(), label=None)  # noqa: S303
    blob = public.encrypt(bound, oaep)
    wrapped = Ciphertext(blob, provider.key_uri, wrap_alg=OAEP_SHA1)
    assert provider.decrypt("rsa", wrapped, CONTEXT) == DATA_KEY


def test_instance_opens_what_another_mechanism_wrapped(make: Providers) -> None:
    """The configuration says how to wrap; what is there goes on opening."""
    old = make("aes", mechanism="aes-kwp").encrypt("aes", DATA_KEY, CONTEXT)
    assert make("aes").decrypt("aes", old, CONTEXT) == DATA_KEY


@pytest.mark.parametrize("mechanism", ["aes-gcm", "aes-kwp", "rsa-oaep-sha1"])
def test_blob_under_another_number_is_refused_or_does_not_open(
    make: Providers, mechanism: str
) -> None:
    """A wrap cannot be passed off as one of another kind."""
    key = "rsa" if mechanism.startswith("rsa") else "aes"
    provider = make(key, mechanism=mechanism)
    wrapped = provider.encrypt(key, DATA_KEY, CONTEXT)
    for number in {0x0401, 0x0402, 0x7FFF} - {wrapped.wrap_alg}:
        other = Ciphertext(wrapped.data, wrapped.key_uri, wrap_alg=number)
        with pytest.raises((InvalidCiphertext, Exception)) as caught:
            provider.decrypt(key, other, CONTEXT)
        assert caught.type.__module__ == "kms_core.errors"


def test_kwp_takes_whole_blocks_only(make: Providers) -> None:
    """Some tokens would give back more than they were given."""
    with pytest.raises(InvalidRequest, match="multiples of 8"):
        make("aes", mechanism="aes-kwp").encrypt("aes", b"seven b", CONTEXT)


class ModuleWithIvs:
    """A key as CloudHSM's (``writes``) or Luna's (``appends``) module offers it."""

    def __init__(self, way: str) -> None:
        self._way = way
        self._aead = AESGCM(VALUE)

    def encrypt(self, plaintext: bytes, mechanism: Any, mechanism_param: Any) -> bytes:
        import ctypes

        iv = b"drawn by hsm"
        sealed = self._aead.encrypt(iv, plaintext, mechanism_param.aad)
        if self._way == "writes":
            # as the C function does: straight into the caller's buffer
            ctypes.memmove(ctypes.c_char_p(mechanism_param.nonce), iv, len(iv))
            return sealed
        return sealed + iv

    def decrypt(self, sealed: bytes, mechanism: Any, mechanism_param: Any) -> bytes:
        return self._aead.decrypt(mechanism_param.nonce, sealed, mechanism_param.aad)


class SessionWith:
    """A session that finds one key."""

    def __init__(self, key: Any) -> None:
        from pkcs11 import Mechanism

        self._key = key
        self.mechanisms = {Mechanism.AES_GCM}

    def key(self, _name: Any, _kind: Any) -> Any:
        return self._key


@pytest.mark.parametrize(("setting", "way"), [("module", "writes"), ("appended", "appends")])
def test_iv_of_the_module_ends_up_in_front(
    settings_for: SettingsFor, setting: Any, way: str
) -> None:
    """The blob is the same whoever drew the IV."""
    wrapping = AesGcm(settings_for(gcm_iv=setting))
    session: Any = SessionWith(ModuleWithIvs(way))
    name = settings_for().name
    blob = wrapping.wrap(session, name, DATA_KEY, CONTEXT)
    assert blob[:12] == b"drawn by hsm"
    assert AESGCM(VALUE).decrypt(blob[:12], blob[12:], CONTEXT.encoded) == DATA_KEY
    assert wrapping.unwrap(session, name, blob, CONTEXT) == DATA_KEY


def test_module_that_draws_no_iv_is_found_out(settings_for: SettingsFor) -> None:
    """An IV of zeros twice would give the key away."""

    class Forgets(ModuleWithIvs):
        def encrypt(self, plaintext: bytes, mechanism: Any, mechanism_param: Any) -> bytes:
            return self._aead.encrypt(bytes(12), plaintext, mechanism_param.aad)

    session: Any = SessionWith(Forgets(""))
    settings = settings_for(gcm_iv="module")
    with pytest.raises(Unavailable, match="gcm_iv"):
        AesGcm(settings).wrap(session, settings.name, DATA_KEY, CONTEXT)


def test_vendors_number_goes_with_the_raw_structure(make: Providers) -> None:
    """0x1087 is AES-GCM's own number: the structure we build is the one that the module reads."""
    provider = make("aes", gcm_mechanism=0x1087)
    wrapped = provider.encrypt("aes", DATA_KEY, CONTEXT)
    assert provider.decrypt("aes", wrapped, CONTEXT) == DATA_KEY
    assert make("aes").decrypt("aes", wrapped, CONTEXT) == DATA_KEY


@pytest.mark.parametrize(
    ("mechanism", "key"), [("aes-gcm", "aes"), ("aes-kwp", "aes"), ("rsa-oaep-sha1", "rsa")]
)
def test_token_without_the_mechanism_is_named(make: Providers, mechanism: str, key: str) -> None:
    """Before it is asked for it, with the setting to change."""
    provider = make(key, mechanism=mechanism)
    provider.describe_key(key)
    pool = provider._sessions._pool
    assert pool is not None
    pool.mechanisms = frozenset()
    pool.idle.clear()
    with pytest.raises(InvalidRequest, match=r"the token has no .* choose another with mechanism"):
        provider.encrypt(key, DATA_KEY, CONTEXT)


def test_plaintext_too_long_for_the_modulus_is_refused(make: Providers) -> None:
    """With what this key takes."""
    with pytest.raises(InvalidRequest, match="1 to 182 bytes"):
        make("rsa", mechanism="rsa-oaep-sha1").encrypt("rsa", bytes(183), CONTEXT)


@pytest.mark.parametrize("data", ["text", None])
def test_other_things_than_bytes_are_the_callers(make: Providers, data: Any) -> None:
    """Named by type, not shown."""
    provider = make()
    with pytest.raises(InvalidRequest, match="is bytes, not"):
        provider.encrypt("aes", data, CONTEXT)
    with pytest.raises(InvalidRequest, match="is bytes, not"):
        provider.decrypt("aes", Ciphertext(data, provider.key_uri, wrap_alg=GCM), CONTEXT)


def test_first_way_to_wrap_is_the_configured_one(settings_for: SettingsFor) -> None:
    """And all of them unwrap."""
    ways = wrapping_for(settings_for(mechanism="aes-kwp"))
    assert next(iter(ways)) == KWP
    assert set(ways) == Pkcs11Provider.wrap_algs


# --- what is left in memory ----------------------------------------------------------------------


class Watched:
    """A key of the token; ``seen`` gets every secret that goes to python-pkcs11 or comes from it.

    They are kept as they are, not copied.
    """

    def __init__(self, key: Any, seen: list[bytes]) -> None:
        self._key = key
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._key, name)

    def __getitem__(self, attribute: Any) -> Any:
        return self._kept(self._key[attribute])

    def encrypt(self, data: bytes, **options: Any) -> Any:
        return self._key.encrypt(self._kept(data), **options)

    def decrypt(self, data: bytes, **options: Any) -> Any:
        return self._kept(self._key.decrypt(data, **options))

    def unwrap_key(self, *arguments: Any, **options: Any) -> Any:
        return Watched(self._key.unwrap_key(*arguments, **options), self._seen)

    def _kept(self, secret: bytes) -> bytes:
        assert DATA_KEY in secret
        self._seen.append(secret)
        return secret


@pytest.mark.parametrize(
    ("key", "mechanism", "passed"),
    [("aes", "aes-gcm", 2), ("aes", "aes-kwp", 1), ("rsa", "rsa-oaep-sha1", 2)],
)
def test_what_python_pkcs11_was_given_and_gave_is_erased(
    make: Providers, monkeypatch: pytest.MonkeyPatch, key: str, mechanism: str, passed: int
) -> None:
    """Its interface takes and returns ``bytes``, which are zeros when the provider is done."""
    seen: list[bytes] = []
    find = Session._find
    monkeypatch.setattr(Session, "_find", lambda *where: Watched(find(*where), seen))
    provider = make(key, mechanism=mechanism)

    wrapped = provider.encrypt(key, DATA_KEY, CONTEXT)
    opened = provider.decrypt(key, wrapped, CONTEXT)

    assert opened == DATA_KEY == bytes(range(32))
    assert type(opened) is bytearray
    assert [any(secret) for secret in seen] == [False] * passed


def test_what_does_not_belong_to_the_context_is_erased(
    make: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key comes out of the token before the context is compared."""
    wrapped = make("rsa", mechanism="rsa-oaep-sha1").encrypt("rsa", DATA_KEY, CONTEXT)
    seen: list[bytes] = []
    find = Session._find
    monkeypatch.setattr(Session, "_find", lambda *where: Watched(find(*where), seen))

    with pytest.raises(InvalidCiphertext):
        make("rsa").decrypt("rsa", wrapped, Context({"tenant": "43"}))

    assert seen
    assert not any(map(any, seen))
