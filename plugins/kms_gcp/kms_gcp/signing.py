"""Signatures and MACs, and public keys.

The service signs digests, or whole messages with algorithms that hash them in a way of their own.
It checks MACs only: a signature is verified here, with the public key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm

from kms_core import InvalidRequest, KeyDisabled, PublicKey, Signature, UnsupportedOperation
from kms_gcp.algorithms import MAC_BYTES, MAX_DATA_BYTES, SIGNING, Algorithm
from kms_gcp.answer import checked
from kms_gcp.keys import Keys
from kms_gcp.names import KeyName
from kms_gcp.publickeys import PublicKeys, loaded
from kms_gcp.service import Service

MAX_SIGNATURE_BYTES: Final = 8192  # the largest, ML-DSA-87's, has 4627

_HASHES: Final[Mapping[str, HashAlgorithm]] = {
    "sha256": SHA256(),
    "sha384": SHA384(),
    "sha512": SHA512(),
}


class Signing:
    """What ``sign``, ``verify`` and ``public_key`` do with a key of this instance."""

    def __init__(self, keys: Keys, public_keys: PublicKeys, service: Service) -> None:
        self._keys = keys
        self._public_keys = public_keys
        self._service = service

    def sign(self, key: KeyName, data: bytes, algorithm: str) -> Signature:
        """A signature or a MAC of ``data``."""
        version, known = self._checked(key, data, algorithm)
        if not _fits(data, known):
            raise InvalidRequest(
                f"Google Cloud KMS takes 1 to {MAX_DATA_BYTES} bytes for {algorithm}, not "
                f"{len(data)}; use a digest of the message in its place"
            )
        make = self._mac if known.is_mac else self._signature
        try:
            made = make(version, data, known)
        except KeyDisabled:
            self._keys.forget_newest(key)
            raise
        return Signature(made, version.uri, algorithm, version.version)

    def verify(self, key: KeyName, data: bytes, signature: bytes, algorithm: str) -> bool:
        """Whether ``signature`` is one of ``data``."""
        version, known = self._checked(key, data, algorithm)
        if not isinstance(signature, bytes | bytearray):
            raise InvalidRequest(f"a signature is bytes, not {type(signature).__name__}")
        if not _fits(data, known):
            return False  # the service makes no such signature
        if known.is_mac:
            return self._accepts_mac(version, data, bytes(signature), MAC_BYTES[algorithm])
        public_key = self._public_keys.recent(version, known)
        return _verified(public_key, bytes(data), bytes(signature), known)

    def public_key(self, key: KeyName) -> PublicKey:
        """The public key, and what it is for."""
        return self._public_keys.fetch(*self._keys.in_use(key))

    def _checked(self, key: KeyName, data: object, algorithm: str) -> tuple[KeyName, Algorithm]:
        """The version to use, if it does what is asked for."""
        if not isinstance(data, bytes | bytearray):
            raise InvalidRequest(f"a message is bytes, not {type(data).__name__}; encode it")
        if algorithm not in SIGNING:
            raise InvalidRequest(
                f"Google Cloud KMS does not sign with {algorithm!r}; it has {', '.join(SIGNING)}"
            )
        version, known = self._keys.in_use(key)
        if known.does != algorithm:
            does = known.does or "nothing to sign with"
            raise InvalidRequest(f"{version} is {known} and has {does}, not {algorithm}")
        return version, known

    def _signature(self, version: KeyName, data: bytes, algorithm: Algorithm) -> bytes:
        part = "digest" if algorithm.digest else "data"
        fields = checked(part, algorithm.represented(data))
        if algorithm.digest:
            fields["digest"] = {algorithm.digest: fields["digest"]}
        answer = self._service.ask("AsymmetricSign", version, **fields)
        answer.version()
        answer.check_received(part)
        return answer.blob("signature", 1, MAX_SIGNATURE_BYTES)

    def _mac(self, version: KeyName, data: bytes, algorithm: Algorithm) -> bytes:
        answer = self._service.ask("MacSign", version, **checked("data", data))
        answer.version()
        answer.check_received("data")
        size = MAC_BYTES[algorithm.does]
        return answer.blob("mac", size, size)

    def _accepts_mac(self, version: KeyName, data: bytes, mac: bytes, size: int) -> bool:
        if len(mac) != size:
            return False
        answer = self._service.ask(
            "MacVerify", version, **checked("data", data), **checked("mac", mac)
        )
        answer.version()
        answer.check_received("data", "mac")
        success = answer.flag("success")
        if answer.flag("verified_success_integrity") != success:
            raise answer.malformed("verified_success_integrity")
        return success


def _fits(data: bytes, algorithm: Algorithm) -> bool:
    """Whether the service takes this message; of most it is sent the digest."""
    return bool(algorithm.digest) or 1 <= len(data) <= MAX_DATA_BYTES


def _verified(key: PublicKey, data: bytes, signature: bytes, algorithm: Algorithm) -> bool:
    try:
        loaded(key).verify(signature, data, *_scheme(algorithm))
    except InvalidSignature:
        return False
    except UnsupportedAlgorithm as exc:
        raise UnsupportedOperation(
            f"this host's OpenSSL does not verify {algorithm.does}; use a newer one"
        ) from exc
    return True


def _scheme(algorithm: Algorithm) -> tuple[Any, ...]:
    """What cryptography wants to know beside key, signature and message."""
    if not algorithm.digest:
        return ()
    digest = _HASHES[algorithm.digest]
    if algorithm.does.startswith("ECDSA"):
        return (ec.ECDSA(digest),)
    if algorithm.does.startswith("RSA-PSS"):
        return padding.PSS(padding.MGF1(digest), digest.digest_size), digest
    return padding.PKCS1v15(), digest
