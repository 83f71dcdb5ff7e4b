"""Checking signatures with a public key, for callers of the hook itself.

The core does this by its own means; a token is asked for MACs only.
"""

from __future__ import annotations

from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key

from kms_core import InvalidRequest
from kms_pkcs11.signing import algorithms


def verifies(der: bytes, data: bytes, signature: bytes, algorithm: str) -> bool:
    """Whether the signature is one of ``data`` under this public key."""
    has = algorithms(der)
    if algorithm not in has:
        raise InvalidRequest(f"the key signs with {', '.join(has)}, not {algorithm}")
    key: Any = load_der_public_key(der)
    try:
        key.verify(signature, data, *_arguments(algorithm))
    except InvalidSignature:
        return False
    return True


def _arguments(algorithm: str) -> tuple[Any, ...]:
    family, _, name = algorithm.rpartition("-")
    hashes: dict[str, HashAlgorithm] = {"SHA256": SHA256(), "SHA384": SHA384(), "SHA512": SHA512()}
    match family:
        case "ECDSA":
            return (ec.ECDSA(hashes[name]),)
        case "RSA-PSS":
            digest = hashes[name]
            return (padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        case "RSA-PKCS1":
            return (padding.PKCS1v15(), hashes[name])
    return ()
