"""Signatures and MACs: digests are made here, and the service signs or checks them."""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from kms_azure.algorithms import hash_name
from kms_azure.answer import encoded
from kms_azure.keys import KeyFacts
from kms_azure.service import Service
from kms_core import InvalidCiphertext, InvalidRequest

MAX_MESSAGE_BYTES: Final = 1 << 20  # the contract's; only a digest of it leaves this process


def check_message(data: object, facts: KeyFacts, algorithm: str) -> None:
    """Raise unless this key signs such data with this algorithm."""
    if not isinstance(data, bytes | bytearray):
        raise InvalidRequest(f"a message is bytes, not {type(data).__name__}; encode it")
    if len(data) > MAX_MESSAGE_BYTES:
        raise InvalidRequest(
            f"a message has at most {MAX_MESSAGE_BYTES} bytes, not {len(data)}; sign its digest"
        )
    if algorithm not in facts.signs_with:
        raise InvalidRequest(
            f"key {facts.key} is {facts.type} and does not do {algorithm}; it does "
            f"{', '.join(facts.signs_with)}"
        )


def sign(service: Service, facts: KeyFacts, data: bytes, algorithm: str) -> bytes:
    """The signature in the contract's encoding."""
    digest = _digest(data, algorithm)
    answer = service.perform(
        "sign", facts.key, alg=facts.signs_with[algorithm], value=encoded(digest)
    )
    answer.kid()
    if facts.family == "EC":
        raw, half = answer.octets("value", 2 * facts.curve_bytes), facts.curve_bytes
        return encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))
    return answer.octets("value", len(digest) if facts.family == "oct" else facts.rsa_bytes)


def verify(
    service: Service, facts: KeyFacts, data: bytes, signature: bytes, algorithm: str
) -> bool:
    """Whether the service accepts it; one of impossible form is not sent."""
    digest = _digest(data, algorithm)
    raw = _sent(facts, signature, len(digest))
    if raw is None:
        return False
    try:
        answer = service.perform(
            "verify",
            facts.key,
            alg=facts.signs_with[algorithm],
            digest=encoded(digest),
            value=encoded(raw),
        )
    except InvalidCiphertext:  # the service found more wrong with it than that it does not verify
        return False
    return answer.flag("value")


def _digest(data: bytes, algorithm: str) -> bytes:
    return hashlib.new(hash_name(algorithm), data).digest()


def _sent(facts: KeyFacts, signature: object, digest_size: int) -> bytes | None:
    """The signature as the service has it, ``None`` if it cannot be one of this key."""
    if not isinstance(signature, bytes | bytearray):
        return None
    if facts.family == "EC":
        return _halves(bytes(signature), facts.curve_bytes)
    expected = digest_size if facts.family == "oct" else facts.rsa_bytes
    return bytes(signature) if len(signature) == expected else None


def _halves(signature: bytes, size: int) -> bytes | None:
    try:
        return b"".join(number.to_bytes(size) for number in decode_dss_signature(signature))
    except (ValueError, OverflowError):
        return None
