"""A plugin whose services are folders, as in ``paper_plugin``: their keys sign, and do no more.

``<state>/<key>.<hook>`` holds the name of the error that the hook raises for that key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from attrs import frozen
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import kms_core
from kms_core import (
    Ciphertext,
    Context,
    Health,
    InvalidRequest,
    PublicKey,
    Signature,
    hookimpl,
)
from kms_core.types import Protection


@frozen
class SignerSettings:
    key: str
    state: Path = Path()


class SignerProvider:
    """Ed25519, or HMAC-SHA256 on request; every process has the same keys."""

    type_name: ClassVar[str] = "signer"
    settings: ClassVar[type[Any]] = SignerSettings
    wrap_algs: ClassVar[frozenset[int]] = frozenset({0x7FFF})
    protection: Protection = "software"

    def __init__(self, settings: SignerSettings) -> None:
        self._settings = settings
        self._secret = hashlib.sha256(settings.key.encode()).digest()
        self._key = Ed25519PrivateKey.from_private_bytes(self._secret)

    @property
    def key_uri(self) -> str:
        return f"signer://{self._settings.key}"

    def match(self, key_uri: str) -> str | None:
        return self._settings.key if key_uri == self.key_uri else None

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        raise InvalidRequest(f"key {key_id} signs and does not encrypt")

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytes:
        raise InvalidRequest(f"key {key_id} signs and does not decrypt")

    @hookimpl
    def health(self, key_id: str) -> Health:
        return Health(ok=True)

    @hookimpl
    def sign(self, key_id: str, data: bytes, algorithm: str) -> Signature:
        self._may("sign")
        if algorithm == "Ed25519":
            return Signature(self._key.sign(data), self.key_uri, algorithm)
        if algorithm == "HMAC-SHA256":
            return Signature(self._mac(data), self.key_uri, algorithm)
        raise InvalidRequest(f"key {key_id} does not sign with {algorithm}")

    @hookimpl
    def verify(self, key_id: str, data: bytes, signature: Signature, algorithm: str) -> bool:
        self._may("verify")
        return hmac.compare_digest(self._mac(data), signature.data)

    @hookimpl
    def public_key(self, key_id: str) -> PublicKey:
        self._may("public_key")
        spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        der = self._key.public_key().public_bytes(*spki)
        return PublicKey(der, self.key_uri, algorithms=("Ed25519",))

    def _mac(self, data: bytes) -> bytes:
        return hmac.digest(self._secret, data, "sha256")

    def _may(self, hook: str) -> None:
        script = self._settings.state / f"{self._settings.key}.{hook}"
        if script.exists():
            raise getattr(kms_core, script.read_text())(f"{hook} is scripted")


@hookimpl
def kms_register_providers(register: Callable[[type[Any]], None]) -> None:
    """Register ``SignerProvider``."""
    register(SignerProvider)
