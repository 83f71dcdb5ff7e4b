"""The keys of a ``MemoryStore``: what each kind can do, with real cryptography."""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kms_core import asymmetric
from kms_core.aead import bind_context, unbind_context
from kms_core.context import Context
from kms_core.errors import InvalidCiphertext
from kms_core.types import RSA_OAEP, PublicKey

KeyKind = Literal[
    "AES-256-GCM",
    "RSA-OAEP",
    "RSA",
    "ECDSA-P256",
    "ECDSA-P384",
    "ECDSA-P521",
    "Ed25519",
    "HMAC-SHA256",
    "HMAC-SHA384",
    "HMAC-SHA512",
]

WRAPPING_KINDS: Final[frozenset[KeyKind]] = frozenset({"AES-256-GCM", "RSA-OAEP"})
MAX_PLAINTEXT_BYTES: Final = 4096  # what the contract asks of a provider, and what AWS takes

_IV_BYTES: Final = 12
_TAG_BYTES: Final = 16
_RSA_BITS: Final = 2048
_DIGEST_BYTES: Final = 32
_HASHES: Final[Mapping[str, HashAlgorithm]] = {
    "SHA256": SHA256(),
    "SHA384": SHA384(),
    "SHA512": SHA512(),
}
_OAEP: Final = padding.OAEP(padding.MGF1(SHA256()), SHA256(), label=None)


class Unsuited(Exception):
    """The key does not do this; the message says what it does not do."""


class NotAuthentic(Exception):
    """The blob, the key and the context do not belong together."""


class Material:
    """One version of one key; whatever its kind does not do raises ``Unsuited``."""

    #: What ``sign`` takes, the preferred one first.
    algorithms: tuple[str, ...] = ()
    #: Most bytes of a plaintext; 0 if the key does not wrap.
    max_plaintext: ClassVar[int] = 0

    def wrap(self, plaintext: bytes | bytearray, context: Context) -> bytes:  # noqa: ARG002
        """Encrypt ``plaintext``, bound to ``context``."""
        raise Unsuited("does not encrypt")

    def unwrap(self, blob: bytes, context: Context) -> bytearray:  # noqa: ARG002
        """Undo ``wrap``; raises ``NotAuthentic``."""
        raise Unsuited("does not decrypt")

    def sign(self, data: bytes, algorithm: str) -> bytes:  # noqa: ARG002
        """A signature or MAC of ``data``."""
        raise Unsuited(f"does not sign with {algorithm!r}")

    def verify(self, data: bytes, signature: bytes, algorithm: str) -> bool:  # noqa: ARG002
        """Whether ``sign`` could have made it."""
        raise Unsuited(f"does not sign with {algorithm!r}")

    def public(self) -> bytes:
        """SubjectPublicKeyInfo in DER."""
        raise Unsuited("has no public key")


class AesKey(Material):
    """AES-256-GCM; the context is the associated data."""

    max_plaintext = MAX_PLAINTEXT_BYTES

    def __init__(self) -> None:
        self._aead = AESGCM(AESGCM.generate_key(bit_length=256))

    def wrap(self, plaintext: bytes | bytearray, context: Context) -> bytes:
        """IV, ciphertext and tag."""
        iv = os.urandom(_IV_BYTES)
        return iv + self._aead.encrypt(iv, plaintext, context.encoded)

    def unwrap(self, blob: bytes, context: Context) -> bytearray:
        """The plaintext."""
        if len(blob) <= _IV_BYTES + _TAG_BYTES:
            raise NotAuthentic
        iv, sealed = blob[:_IV_BYTES], blob[_IV_BYTES:]
        try:
            return bytearray(self._aead.decrypt(iv, sealed, context.encoded))
        except InvalidTag:
            raise NotAuthentic from None


class OaepKey(Material):
    """RSA-OAEP-SHA256, to which anybody can wrap; the context is bound inside."""

    algorithms = (RSA_OAEP,)
    max_plaintext = _RSA_BITS // 8 - 2 * _DIGEST_BYTES - 2 - _DIGEST_BYTES

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(65537, _RSA_BITS)

    def wrap(self, plaintext: bytes | bytearray, context: Context) -> bytes:
        """One RSA block."""
        return self._key.public_key().encrypt(bytes(bind_context(plaintext, context)), _OAEP)

    def unwrap(self, blob: bytes, context: Context) -> bytearray:
        """The plaintext."""
        try:
            return unbind_context(self._key.decrypt(blob, _OAEP), context)
        except (ValueError, InvalidCiphertext):
            raise NotAuthentic from None

    def public(self) -> bytes:
        """The key to wrap to."""
        return _spki(self._key)


class SigningKey(Material):
    """RSA, ECDSA or Ed25519."""

    def __init__(self, key: Any, *algorithms: str) -> None:
        self._key = key
        self.algorithms = algorithms

    def sign(self, data: bytes, algorithm: str) -> bytes:
        """A signature, of ECDSA in DER."""
        if algorithm not in self.algorithms:
            return super().sign(data, algorithm)
        return bytes(self._key.sign(data, *_parameters(algorithm)))

    def verify(self, data: bytes, signature: bytes, algorithm: str) -> bool:
        """Whether it is one by this key."""
        if algorithm not in self.algorithms:
            return super().verify(data, signature, algorithm)
        public = PublicKey(self.public(), "this key", algorithms=self.algorithms)
        return asymmetric.verify_signature(public, data, signature, algorithm)

    def public(self) -> bytes:
        """The key to verify with."""
        return _spki(self._key)


class MacKey(Material):
    """HMAC with one hash."""

    def __init__(self, algorithm: str) -> None:
        self.algorithms = (algorithm,)
        self._digest = algorithm.rpartition("-")[2]
        self._key = secrets.token_bytes(_HASHES[self._digest].digest_size)

    def sign(self, data: bytes, algorithm: str) -> bytes:
        """A MAC."""
        if algorithm not in self.algorithms:
            return super().sign(data, algorithm)
        return hmac.digest(self._key, data, self._digest)

    def verify(self, data: bytes, signature: bytes, algorithm: str) -> bool:
        """Whether it is one by this key, in constant time."""
        return hmac.compare_digest(self.sign(data, algorithm), signature)


_MAKERS: Final[Mapping[KeyKind, Callable[[], Material]]] = {
    "AES-256-GCM": AesKey,
    "RSA-OAEP": OaepKey,
    "RSA": lambda: SigningKey(
        rsa.generate_private_key(65537, _RSA_BITS),
        *(f"RSA-PSS-{name}" for name in _HASHES),
        *(f"RSA-PKCS1-{name}" for name in _HASHES),
    ),
    "ECDSA-P256": lambda: SigningKey(ec.generate_private_key(ec.SECP256R1()), "ECDSA-SHA256"),
    "ECDSA-P384": lambda: SigningKey(ec.generate_private_key(ec.SECP384R1()), "ECDSA-SHA384"),
    "ECDSA-P521": lambda: SigningKey(ec.generate_private_key(ec.SECP521R1()), "ECDSA-SHA512"),
    "Ed25519": lambda: SigningKey(ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
    "HMAC-SHA256": lambda: MacKey("HMAC-SHA256"),
    "HMAC-SHA384": lambda: MacKey("HMAC-SHA384"),
    "HMAC-SHA512": lambda: MacKey("HMAC-SHA512"),
}


def fresh(kind: KeyKind) -> Material:
    """New material of this kind."""
    return _MAKERS[kind]()


def _parameters(algorithm: str) -> tuple[Any, ...]:
    """What cryptography's ``sign`` takes after the message."""
    family, _, name = algorithm.rpartition("-")
    digest = _HASHES.get(name)
    match family:
        case "ECDSA" if digest:
            return (ec.ECDSA(digest),)
        case "RSA-PSS" if digest:
            return padding.PSS(padding.MGF1(digest), digest.digest_size), digest
        case "RSA-PKCS1" if digest:
            return padding.PKCS1v15(), digest
    return ()


def _spki(key: Any) -> bytes:
    der: bytes = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return der
