"""The provider type ``gcp-kms``: one key of Google Cloud KMS, and those it also opens for.

The hooks of the contract, each done by one of the parts: wrapping, signing, description.
"""

from __future__ import annotations

from typing import Any, ClassVar

from kms_core import (
    Ciphertext,
    Context,
    Health,
    KeyInfo,
    Protection,
    PublicKey,
    Signature,
    hookimpl,
)
from kms_gcp.algorithms import WRAP_RSA, WRAP_SYMMETRIC
from kms_gcp.description import Description
from kms_gcp.keys import Keys
from kms_gcp.names import KeyName
from kms_gcp.publickeys import PublicKeys
from kms_gcp.service import Service
from kms_gcp.settings import GcpKmsSettings
from kms_gcp.signing import Signing
from kms_gcp.wrapping import Wrapping


class GcpKmsProvider:
    """One key of Google Cloud KMS, with the keys it also opens for."""

    type_name: ClassVar[str] = "gcp-kms"
    settings: ClassVar[type[Any]] = GcpKmsSettings
    wrap_algs: ClassVar[frozenset[int]] = frozenset({WRAP_SYMMETRIC, WRAP_RSA})

    def __init__(self, settings: GcpKmsSettings) -> None:
        self._hsm = settings.hsm
        self._service = Service(settings)
        self._keys = Keys(settings, self._service)
        public_keys = PublicKeys(self._service)
        self._wrapping = Wrapping(self._keys, public_keys, self._service)
        self._signing = Signing(self._keys, public_keys, self._service)
        self._description = Description(self._keys, self._service)

    @property
    def protection(self) -> Protection:
        """As configured: the service is not asked for it."""
        return "hsm" if self._hsm else "software"

    @property
    def key_uri(self) -> str:
        """Of the configured key; with the version if one is configured."""
        return self._keys.uri

    def match(self, key_uri: str) -> str | None:
        """The name of the configured or retired key that ``key_uri`` names, with its version."""
        name = self._keys.match(key_uri)
        return None if name is None else str(name)

    def domain(self, key_uri: str) -> str:
        """The project: its owner can lock us out of all its keys, in every location."""
        name = KeyName.of_uri(key_uri)
        return f"{self.type_name}:{name.project}" if name else self.type_name

    def prepare(self) -> None:
        """Import the SDK and build the channel; credentials are looked up by the first call."""
        self._service.prepare()

    def close(self) -> None:
        """Close the channel."""
        self._service.close()

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        """Wrap 1 to 4096 bytes with a symmetric key; less with an RSA key, which is done here."""
        return self._wrapping.wrap(self._keys.sent(key_id), plaintext, context)

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytes | bytearray:
        """Unwrap with exactly the key that ``key_id`` names, and with its version if it is RSA."""
        return self._wrapping.unwrap(self._keys.sent(key_id), ciphertext, context)

    @hookimpl
    def sign(self, key_id: str, data: bytes, algorithm: str) -> Signature:
        """Sign, or make a MAC of, the message."""
        return self._signing.sign(self._keys.sent(key_id), data, algorithm)

    @hookimpl
    def verify(self, key_id: str, data: bytes, signature: Signature, algorithm: str) -> bool:
        """Let the service check a MAC; check a signature with the public key."""
        return self._signing.verify(self._keys.sent(key_id), data, signature.data, algorithm)

    @hookimpl
    def public_key(self, key_id: str) -> PublicKey:
        """The public key of a key that signs, or that unwraps what was encrypted with RSA-OAEP."""
        return self._signing.public_key(self._keys.sent(key_id))

    @hookimpl
    def health(self, key_id: str) -> Health:
        """Whether the key may be used: no key material is involved."""
        return self._description.health(self._keys.sent(key_id))

    @hookimpl
    def describe_key(self, key_id: str) -> KeyInfo:
        """State and versions; versions are numbers."""
        return self._description.describe(self._keys.sent(key_id))

    @hookimpl
    def rotate_key(self, key_id: str) -> KeyInfo:
        """Make a new version, and make it primary if the key is symmetric."""
        return self._description.rotate(self._keys.sent(key_id))
