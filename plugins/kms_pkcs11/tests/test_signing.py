"""Signing, MACs and public keys: what the suite of the contract does not ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import mldsa, padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from kms_core import (
    Ciphertext,
    Context,
    InvalidRequest,
    KeyNotFound,
    Signature,
    Unavailable,
    bind_context,
)
from kms_pkcs11 import signing
from kms_pkcs11.signing import MAX_SIGNED_BYTES
from kms_pkcs11.uri import KeyName
from kms_pkcs11.wrapping import OAEP_SHA256

if TYPE_CHECKING:
    from tests.conftest import Providers

CONTEXT = Context({"tenant": "42"})
MESSAGE = b"attack at dawn"


@pytest.mark.parametrize(
    ("data", "algorithm", "complaint"),
    [
        ("text", "ECDSA-SHA256", "a message is bytes, not str"),
        (bytes(MAX_SIGNED_BYTES + 1), "ECDSA-SHA256", "up to 1048576 bytes"),
        (MESSAGE, "ROT13", "no algorithm 'ROT13'"),
        (MESSAGE, "RSA-PSS-SHA256", "(signs with|has) ECDSA-SHA256, .*, not RSA-PSS-SHA256"),
        (MESSAGE, "Ed25519", "(signs with|has) ECDSA-SHA256, .*, not Ed25519"),
        (MESSAGE, "HMAC-SHA256", "is a key pair, which makes no MACs"),
    ],
)
def test_what_the_key_cannot_sign_is_the_callers(
    make: Providers, data: Any, algorithm: str, complaint: str
) -> None:
    """By name, for signing and verifying alike; messages are not repeated."""
    provider = make("ec")
    with pytest.raises(InvalidRequest, match=complaint):
        provider.sign("ec", data, algorithm)
    signature = Signature(b"s", provider.key_uri, algorithm)
    with pytest.raises(InvalidRequest, match=complaint):
        provider.verify("ec", data, signature, algorithm)


@pytest.mark.parametrize(
    ("key", "kind"), [("aes", "an AES key"), ("hmac", "a secret key")], ids=str
)
def test_secret_keys_have_no_public_half(make: Providers, key: str, kind: str) -> None:
    """Nor do they make signatures."""
    provider = make(key)
    with pytest.raises(InvalidRequest, match=f"is {kind}, which has no public half"):
        provider.public_key(key)
    with pytest.raises(InvalidRequest, match=f"is {kind}, which has no public half"):
        provider.sign(key, MESSAGE, "ECDSA-SHA256")


def test_aes_key_makes_no_macs(make: Providers) -> None:
    """Keys are for one thing."""
    with pytest.raises(InvalidRequest, match="is an AES key, which makes no MACs"):
        make("aes").sign("aes", MESSAGE, "HMAC-SHA256")


@pytest.mark.parametrize(
    ("key", "first"),
    [("ec", "ECDSA-SHA256"), ("p384", "ECDSA-SHA384"), ("p521", "ECDSA-SHA512")],
)
def test_hash_that_fits_the_curve_comes_first(make: Providers, key: str, first: str) -> None:
    """The core signs with the first unless it is told otherwise."""
    provider = make(key)
    assert provider.public_key(key).algorithms[0] == first
    signature = provider.sign(key, MESSAGE, first)
    assert provider.verify(key, MESSAGE, signature, first)


def test_missing_key_pair_is_told(make: Providers) -> None:
    """Neither a public key nor a signature comes of it."""
    provider = make("nobody")
    with pytest.raises(KeyNotFound):
        provider.public_key("nobody")
    with pytest.raises(KeyNotFound):
        provider.sign("nobody", MESSAGE, "Ed25519")


def test_public_key_for_wrapping_is_one_that_others_can_wrap_with(make: Providers) -> None:
    """SoftHSM refuses to unwrap that, as it knows SHA-1 only: no ciphertext is to blame."""
    provider = make("rsa", mechanism="rsa-oaep-sha256")
    published = provider.public_key("rsa")
    assert (published.wrap_alg, published.algorithms) == (OAEP_SHA256, ("RSA-OAEP-SHA256",))
    public = load_der_public_key(published.der)
    assert isinstance(public, RSAPublicKey)
    oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), label=None)
    blob = public.encrypt(bytes(bind_context(bytes(32), CONTEXT)), oaep)
    with pytest.raises(InvalidRequest, match="ArgumentsBad"):
        provider.decrypt("rsa", Ciphertext(blob, provider.key_uri, wrap_alg=OAEP_SHA256), CONTEXT)


def test_public_key_that_cannot_wrap_is_not_given_out_for_it(make: Providers) -> None:
    """An elliptic curve, or OAEP with SHA-1."""
    with pytest.raises(InvalidRequest, match="is no RSA key"):
        make("ec", mechanism="rsa-oaep-sha256").public_key("ec")
    with pytest.raises(InvalidRequest, match="SHA-1"):
        make("rsa", mechanism="rsa-oaep-sha1").public_key("rsa")


class KeyWith:
    """A key object with these attributes, which signs nothing of use."""

    def __init__(self, key_type: Any, value: bytes = b"") -> None:
        self.key_type = key_type
        self._value = value

    def __getitem__(self, _attribute: Any) -> bytes:
        return self._value

    def sign(self, data: bytes, mechanism: Any, mechanism_param: Any) -> bytes:
        return f"signed with {mechanism.name}".encode()


class TokenWith:
    """A session that finds this key pair."""

    def __init__(self, key: KeyWith) -> None:
        import pkcs11

        self._key = key
        self.mechanisms = frozenset(pkcs11.Mechanism)

    def key(self, _name: Any, _kind: Any) -> KeyWith:
        return self._key

    def kind_of(self, _name: Any) -> str:
        return "a key pair"


@pytest.mark.parametrize("size", [44, 65, 87])
def test_ml_dsa_is_for_tokens_that_have_it(size: int) -> None:
    """The public half comes as the standard encodes it; the token signs whole messages."""
    import pkcs11

    private = getattr(mldsa, f"MLDSA{size}PrivateKey").generate()
    key = KeyWith(pkcs11.KeyType.ML_DSA, private.public_key().public_bytes_raw())
    session: Any = TokenWith(key)
    name = KeyName("t", "", "k")
    der = signing.public_key(session, name)
    spki = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert der == spki
    assert signing.algorithms(der) == (f"ML-DSA-{size}",)
    made = signing.sign(session, name, MESSAGE, f"ML-DSA-{size}")
    assert made == b"signed with ML_DSA"


def test_key_of_another_type_signs_nothing() -> None:
    """Diffie-Hellman, for one."""
    import pkcs11

    session: Any = TokenWith(KeyWith(pkcs11.KeyType.DH))
    with pytest.raises(InvalidRequest, match="type DH, which signs nothing"):
        signing.public_key(session, KeyName("t", "", "k"))


def test_token_without_the_mechanism_is_named(make: Providers) -> None:
    """Before it is asked for it."""
    provider = make("ec")
    provider.describe_key("ec")
    pool = provider._sessions._pool
    assert pool is not None
    pool.mechanisms = frozenset()
    pool.idle.clear()
    with pytest.raises(InvalidRequest, match="has no mechanism ECDSA"):
        provider.sign("ec", MESSAGE, "ECDSA-SHA256")


@pytest.mark.parametrize("raw", [b"", b"odd"])
def test_ecdsa_signature_of_an_odd_length_is_no_answer(raw: bytes) -> None:
    """Half of it cannot be a number."""
    with pytest.raises(Unavailable, match="odd length"):
        signing._der(raw)
