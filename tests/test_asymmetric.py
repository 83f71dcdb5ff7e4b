"""What the core does with public keys: verify, and wrap offline."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.mldsa import (
    MLDSA44PrivateKey,
    MLDSA65PrivateKey,
    MLDSA87PrivateKey,
)
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kms_core import (
    SIGNATURE_ALGORITHMS,
    AccessDenied,
    BreakerOpen,
    Context,
    DeadlineExceeded,
    InvalidCiphertext,
    InvalidRequest,
    KeyDisabled,
    KMSError,
    PublicKey,
    Throttled,
    Unavailable,
    unbind_context,
)
from kms_core.asymmetric import PUBLIC_KEY_MAX_AGE, OfflineWrapper, can_load, verify_signature
from tests.support import Clock

HASHES: dict[str, Any] = {"SHA256": SHA256(), "SHA384": SHA384(), "SHA512": SHA512()}
RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_RSA_KEY = rsa.generate_private_key(65537, 2048)
CONTEXT = Context({"tenant": "42"})


def ml_dsa(algorithm: str) -> Any:
    """A new key, or a skip where OpenSSL is too old."""
    kinds: dict[str, Any] = {
        "44": MLDSA44PrivateKey,
        "65": MLDSA65PrivateKey,
        "87": MLDSA87PrivateKey,
    }
    try:
        return kinds[algorithm[-2:]].generate()
    except UnsupportedAlgorithm:
        pytest.skip("this build of cryptography has no ML-DSA")


def new_key(algorithm: str) -> Any:
    """A private key that signs with ``algorithm``."""
    if algorithm.startswith("RSA"):
        return RSA_KEY
    if algorithm.startswith("ECDSA"):
        curves = {"256": ec.SECP256R1(), "384": ec.SECP384R1(), "512": ec.SECP521R1()}
        return ec.generate_private_key(curves[algorithm[-3:]])
    return ed25519.Ed25519PrivateKey.generate() if algorithm == "Ed25519" else ml_dsa(algorithm)


def sign(key: Any, data: bytes, algorithm: str) -> bytes:
    """A signature made without the code under test."""
    family, _, name = algorithm.rpartition("-")
    digest = HASHES.get(name)
    arguments: dict[str, tuple[Any, ...]] = {
        "ECDSA": (ec.ECDSA(digest),) if digest else (),
        "RSA-PSS": (padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        if digest
        else (),
        "RSA-PKCS1": (padding.PKCS1v15(), digest),
    }
    return bytes(key.sign(data, *arguments.get(family, ())))


def public(key: Any, *algorithms: str, wrap_alg: int | None = None) -> PublicKey:
    """What a provider would tell of it."""
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(der, "memory://store/key/1", "1", algorithms, wrap_alg)


@pytest.mark.parametrize("algorithm", sorted(SIGNATURE_ALGORITHMS))
def test_good_signature_verifies_and_no_other(algorithm: str) -> None:
    """Other data, an altered, empty or cut signature and another key do not."""
    key = new_key(algorithm)
    signature = sign(key, b"data", algorithm)
    ours = public(key, algorithm)
    assert verify_signature(ours, b"data", signature, algorithm)
    assert not verify_signature(ours, b"date", signature, algorithm)
    flipped = bytes((*signature[:-1], signature[-1] ^ 1))
    for wrong in (flipped, signature[:-1], signature + b"\0", b""):
        assert not verify_signature(ours, b"data", wrong, algorithm)
    other = OTHER_RSA_KEY if key is RSA_KEY else new_key(algorithm)
    assert not verify_signature(public(other, algorithm), b"data", signature, algorithm)


def test_algorithm_that_is_not_the_keys_is_refused() -> None:
    """A signature cannot choose the algorithm by which it is judged."""
    signature = sign(RSA_KEY, b"data", "RSA-PKCS1-SHA256")
    with pytest.raises(InvalidRequest, match="has RSA-PSS-SHA256, not RSA-PKCS1-SHA256"):
        verify_signature(public(RSA_KEY, "RSA-PSS-SHA256"), b"data", signature, "RSA-PKCS1-SHA256")
    with pytest.raises(InvalidRequest, match="no signature algorithm"):
        verify_signature(public(RSA_KEY), b"data", signature, "RSA-PKCS1-SHA256")


@pytest.mark.parametrize("algorithm", ["ECDSA-SHA256", "Ed25519", "ML-DSA-65", "RSA-PSS-SHA256"])
def test_key_of_another_kind_verifies_nothing(algorithm: str) -> None:
    """A service that claims an algorithm its key cannot have proves nothing."""
    key: Any = RSA_KEY if algorithm != "RSA-PSS-SHA256" else new_key("Ed25519")
    assert not verify_signature(public(key, algorithm), b"data", b"signature", algorithm)


def test_only_public_keys_load() -> None:
    """What is not SubjectPublicKeyInfo is told from what is."""
    der = public(RSA_KEY).der
    assert can_load(der)
    for wrong in (b"", der[:-1], b"\x30\x00", os.urandom(64)):
        assert not can_load(wrong)


# --- wrapping offline ----------------------------------------------------------------------------


def wrapper(policy: Any = "fallback", clock: Clock | None = None) -> OfflineWrapper:
    """One that knows no key yet."""
    return OfflineWrapper(policy, clock or Clock())


def test_offline_wrap_opens_with_the_private_key() -> None:
    """RSA-OAEP with SHA-256 around the digest of the context and the key."""
    offline = wrapper()
    offline.learn(public(RSA_KEY, "RSA-OAEP-SHA256", wrap_alg=0x0201))
    dek = os.urandom(32)
    wrapped = offline.wrap(bytearray(dek), CONTEXT)
    oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), label=None)
    bound = RSA_KEY.decrypt(wrapped.data, oaep)
    assert bound == hashlib.sha256(CONTEXT.encoded).digest() + dek
    assert (wrapped.key_uri, wrapped.key_version) == ("memory://store/key/1", "1")
    assert wrapped.wrap_alg == 0x0201
    with pytest.raises(InvalidCiphertext):
        unbind_context(bound, Context())


@pytest.mark.parametrize(
    ("error", "falls_back"),
    [
        (Unavailable("down"), True),
        (DeadlineExceeded("slow"), True),
        (Throttled("busy"), True),
        (BreakerOpen("open"), True),
        (KeyDisabled("disabled"), False),
        (AccessDenied("denied"), False),
        (InvalidRequest("wrong"), False),
    ],
    ids=lambda value: getattr(value, "code", ""),
)
def test_fallback_is_for_outages_not_refusals(error: KMSError, falls_back: bool) -> None:  # noqa: FBT001
    """A disabled key must not go on being sealed to."""
    offline = wrapper()
    assert not offline.after(error)  # no key is known
    offline.learn(public(RSA_KEY, "RSA-OAEP-SHA256", wrap_alg=0x0201))
    assert offline.after(error) is falls_back
    assert not offline.instead()


def test_never_means_never() -> None:
    """Whatever is known."""
    offline = wrapper("never")
    offline.learn(public(RSA_KEY, "RSA-OAEP-SHA256", wrap_alg=0x0201))
    assert not offline.after(Unavailable("down"))
    assert not offline.instead()
    assert not offline.begin_learning()


def test_always_asks_for_the_key_once_an_age() -> None:
    """An old key still serves as a fallback."""
    clock = Clock()
    offline = wrapper("always", clock)
    assert not offline.instead()
    assert offline.begin_learning()
    assert not offline.begin_learning()  # somebody is at it
    offline.learn(public(RSA_KEY, "RSA-OAEP-SHA256", wrap_alg=0x0201))
    assert offline.instead()
    assert not offline.begin_learning()
    clock.advance(PUBLIC_KEY_MAX_AGE)
    assert not offline.instead()
    assert offline.begin_learning()
    offline.give_up_learning()
    assert offline.begin_learning()
    assert offline.after(Unavailable("down"))


@pytest.mark.parametrize(
    "key",
    [
        public(RSA_KEY, "RSA-OAEP-SHA256"),
        public(RSA_KEY, "RSA-PSS-SHA256", wrap_alg=0x0201),
        public(ed25519.Ed25519PrivateKey.generate(), "RSA-OAEP-SHA256", wrap_alg=0x0201),
    ],
    ids=["no number", "a signing key", "no RSA key"],
)
def test_key_that_is_not_for_wrapping_is_refused(key: PublicKey) -> None:
    """Nobody could unwrap what was wrapped to it."""
    offline = wrapper()
    with pytest.raises(InvalidRequest, match="remove offline_wrap"):
        offline.learn(key)
    with pytest.raises(InvalidRequest, match="no public key is known"):
        offline.wrap(b"key", CONTEXT)
