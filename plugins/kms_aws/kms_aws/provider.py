"""The provider type ``aws-kms``: one key of AWS KMS, and those it also opens for.

The hooks of the contract, each done by one of the parts: wrapping, signing, description.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from kms_aws.algorithms import WRAP_RSA, WRAP_SYMMETRIC
from kms_aws.description import Description
from kms_aws.keys import Keys
from kms_aws.service import Service
from kms_aws.settings import AwsKmsSettings
from kms_aws.signing import Signing
from kms_aws.wrapping import Wrapping
from kms_core import (
    Ciphertext,
    Context,
    DataKey,
    Health,
    KeyInfo,
    PublicKey,
    Signature,
    hookimpl,
)


class AwsKmsProvider:
    """One key of AWS KMS in one region, with the keys it also opens for."""

    type_name: ClassVar[str] = "aws-kms"
    settings: ClassVar[type[Any]] = AwsKmsSettings
    wrap_algs: ClassVar[frozenset[int]] = frozenset({WRAP_SYMMETRIC, WRAP_RSA})
    protection: Literal["hsm", "software", "local"] = "hsm"

    def __init__(self, settings: AwsKmsSettings) -> None:
        self._service = Service(settings)
        self._keys = Keys(settings, self._service)
        self._wrapping = Wrapping(self._keys, self._service)
        self._signing = Signing(self._keys, self._service)
        self._description = Description(self._keys, self._service)

    @property
    def key_uri(self) -> str:
        """With the ARN if one is configured, else with the region and the name as configured."""
        return self._keys.uri

    def match(self, key_uri: str) -> str | None:
        """The ARN, in this region, of the configured or retired key that ``key_uri`` names.

        Asks the service once if the configured name is not a key ARN and may stand for that key.
        """
        arn = self._keys.match(key_uri)
        return None if arn is None else str(arn)

    def domain(self, key_uri: str) -> str:
        """The account: its owner can lock us out of all its keys, in every region."""
        account = self._keys.account(key_uri)
        return f"{self.type_name}:{account}" if account else self.type_name

    def prepare(self) -> None:
        """Import the SDK, find the credentials and build the client."""
        self._service.prepare()

    def close(self) -> None:
        """Close the connections."""
        self._service.close()

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        """Wrap 1 to 4096 bytes with a symmetric key, less with an RSA key."""
        return self._wrapping.wrap(self._keys.sent(key_id), plaintext, context)

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytes | bytearray:
        """Unwrap with exactly the key that ``key_id`` names."""
        return self._wrapping.unwrap(self._keys.sent(key_id), ciphertext, context)

    @hookimpl
    def generate_data_key(self, key_id: str, context: Context) -> DataKey:
        """A 32-byte key, drawn by the service if the key is symmetric."""
        return self._wrapping.data_key(self._keys.sent(key_id), context)

    @hookimpl
    def sign(self, key_id: str, data: bytes, algorithm: str) -> Signature:
        """Sign, or make a MAC of, the message."""
        return self._signing.sign(self._keys.sent(key_id), data, algorithm)

    @hookimpl
    def verify(self, key_id: str, data: bytes, signature: Signature, algorithm: str) -> bool:
        """Let the service check a signature or a MAC."""
        return self._signing.verify(self._keys.sent(key_id), data, signature.data, algorithm)

    @hookimpl
    def public_key(self, key_id: str) -> PublicKey:
        """The public key of a key that signs, or that unwraps what was encrypted with RSA-OAEP."""
        return self._signing.public_key(self._keys.sent(key_id))

    @hookimpl
    def health(self, key_id: str) -> Health:
        """Whether the key may be used: one DescribeKey, no key material involved."""
        return self._description.health(self._keys.sent(key_id))

    @hookimpl
    def describe_key(self, key_id: str) -> KeyInfo:
        """State and versions; a version is the id of the key material."""
        return self._description.describe(self._keys.sent(key_id))

    @hookimpl
    def rotate_key(self, key_id: str) -> KeyInfo:
        """Ask for new key material; until the service has made it, the old one is still told."""
        return self._description.rotate(self._keys.sent(key_id))
