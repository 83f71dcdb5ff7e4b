"""Public keys: what can be done with them here, without asking the service."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from kms_core import asymmetric
from kms_core.errors import InvalidCiphertext, InvalidRequest, KMSError
from kms_core.testing.checks import (
    CONTEXT,
    KEY_BYTES,
    decrypt,
    expect,
    expect_ciphertext,
    expect_key_uri,
    expect_opens,
    expect_version,
    public_key,
    refused,
    sign,
)
from kms_core.testing.suite.declared import Declared, needs
from kms_core.testing.suite.wrapping import OTHER_CONTEXTS
from kms_core.types import MAC_ALGORITHMS, RSA_OAEP, SIGNATURE_ALGORITHMS, PublicKey, Signature

Signer = tuple[Any, str]


@needs("has_public_key")
class Publishing(Declared):
    """Keys that sign, keys that unwrap, and keys that have no public half."""

    def test_public_key_says_what_it_is(self, signer: Signer, algorithm: str) -> None:
        """It loads, names its exact version and lists what the service signs with it."""
        _skip_macs(algorithm)
        provider, key_id = signer
        key = public_key(provider, key_id)
        _expect_public_key(provider, key)
        expect(algorithm in key.algorithms, f"algorithms {key.algorithms} lack {algorithm}")
        unknown = set(key.algorithms) - SIGNATURE_ALGORITHMS
        expect(not unknown, f"algorithms has what no signature is made with: {sorted(unknown)}")
        expect(key.wrap_alg is None, "wrap_alg is set for a key that signs")

    @needs("has_sign")
    @pytest.mark.parametrize("size", ["min", "1", "4096", "max"])
    def test_signature_verifies_here(self, signer: Signer, algorithm: str, size: str) -> None:
        """The signature of every size of message holds under the public key that it names."""
        _skip_macs(algorithm)
        message = self.message(algorithm, size)
        signature = sign(*signer, message, algorithm)
        _expect_verifies_here(signer[0], signature, message)

    @needs("has_sign")
    def test_mac_key_has_no_public_key(self, signer: Signer, algorithm: str) -> None:
        """Asking for it is the caller's mistake."""
        if algorithm not in MAC_ALGORITHMS:
            pytest.skip(f"not so: {algorithm} has a public key")
        with refused("public_key of a MAC key", InvalidRequest):
            public_key(*signer)

    @needs("has_sign")
    def test_public_key_is_that_of_the_version(
        self,
        signer: Signer,
        algorithm: str,
        rotate_signing_key: Callable[[], None] | None,
    ) -> None:
        """A rotated key still tells the public keys of its old versions, each under its URI."""
        _skip_macs(algorithm)
        if rotate_signing_key is None:
            pytest.skip("declared: the fixture rotate_signing_key returns None")
        message = b"message"
        old = sign(*signer, message, algorithm)
        rotate_signing_key()
        for signature in (old, sign(*signer, message, algorithm)):
            _expect_verifies_here(signer[0], signature, message)

    @needs("encrypts")
    def test_key_that_only_wraps_there_has_no_public_key(self, provider: Any, key_id: str) -> None:
        """A symmetric key has none; a provider of another kind declares ``wraps_offline``."""
        if self.wraps_offline:
            pytest.skip("declared: wraps_offline = True")
        with refused("public_key of a symmetric key", InvalidRequest):
            public_key(provider, key_id)

    @needs("encrypts", "wraps_offline")
    def test_public_key_for_wrapping_says_what_it_is(self, provider: Any, key_id: str) -> None:
        """An RSA key for OAEP, with the number of the wrap that it is good for."""
        key = public_key(provider, key_id)
        _expect_public_key(provider, key)
        expect(RSA_OAEP in key.algorithms, f"algorithms {key.algorithms} lack {RSA_OAEP}")
        expect(
            key.wrap_alg in type(provider).wrap_algs, f"wrap_alg {key.wrap_alg!r} is not declared"
        )
        loaded = load_der_public_key(key.der)
        expect(isinstance(loaded, rsa.RSAPublicKey), "the public key for RSA-OAEP is not RSA")

    @needs("encrypts", "wraps_offline")
    def test_wrap_made_here_opens_there(self, provider: Any, key_id: str) -> None:
        """What the core wraps while the service is down, the service unwraps later."""
        plaintext = os.urandom(KEY_BYTES)
        sealed = _wrapped_here(public_key(provider, key_id), plaintext)
        expect_ciphertext(provider, sealed)
        expect_opens(provider, sealed, plaintext)

    @needs("encrypts", "wraps_offline", "binds_context")
    @pytest.mark.parametrize("way", OTHER_CONTEXTS)
    def test_wrap_made_here_is_bound_to_its_context(
        self, provider: Any, key_id: str, way: str
    ) -> None:
        """The context is checked although no service saw it when the wrap was made."""
        sealed = _wrapped_here(public_key(provider, key_id), os.urandom(KEY_BYTES))
        with refused(f"another context ({way})", InvalidCiphertext):
            decrypt(provider, sealed, OTHER_CONTEXTS[way])

    @needs("encrypts", "wraps_offline")
    def test_wrap_made_for_a_stranger_is_refused(self, provider: Any, key_id: str) -> None:
        """A wrap to another public key does not open by being given our key's name."""
        key = public_key(provider, key_id)
        loaded = load_der_public_key(key.der)
        if not isinstance(loaded, rsa.RSAPublicKey):
            pytest.fail("the public key for RSA-OAEP is not RSA")
        foreign = attrs.evolve(key, der=_stranger(loaded.key_size))
        with refused("a wrap made for another key", *self.altered_raises):
            decrypt(provider, _wrapped_here(foreign, os.urandom(KEY_BYTES)))


def _skip_macs(algorithm: str) -> None:
    if algorithm in MAC_ALGORITHMS:
        pytest.skip(f"not so: {algorithm} has no public key")


def _expect_public_key(provider: Any, key: PublicKey) -> None:
    __tracebackhide__ = True
    expect(type(key.der) is bytes, "der is not bytes")
    expect(asymmetric.can_load(key.der), "der is not SubjectPublicKeyInfo in DER")
    expect_key_uri(provider, key.key_uri)
    expect_version(key.key_uri, key.key_version)
    expect(provider.match(key.key_uri) is not None, f"match refuses {key.key_uri!r}")


def _expect_verifies_here(provider: Any, signature: Signature, message: bytes) -> None:
    """As the core verifies: with the public key of the version that the signature names."""
    __tracebackhide__ = True
    key = public_key(provider, provider.match(signature.key_uri))
    expect(
        key.key_uri == signature.key_uri,
        f"the public key asked for as {signature.key_uri!r} is called {key.key_uri!r}",
    )
    try:
        good = asymmetric.verify_signature(key, message, signature.data, signature.algorithm)
    except UnsupportedAlgorithm:
        pytest.skip(f"not here: this host's cryptography has no {signature.algorithm}")
    except KMSError as exc:
        pytest.fail(f"the public key cannot verify: {exc}")
    expect(good, f"the signature does not verify under the public key of {key.key_uri}")


def _wrapped_here(key: PublicKey, plaintext: bytes) -> Any:
    """Exactly as the core does it."""
    wrapper = asymmetric.OfflineWrapper("always", time.monotonic)
    wrapper.learn(key)
    return wrapper.wrap(plaintext, CONTEXT)


def _stranger(bits: int) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = rsa.generate_private_key(65537, bits).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
