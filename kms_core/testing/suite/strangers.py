"""Signatures by keys that the provider under test has never seen."""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm

_HASHES: Final[Mapping[str, HashAlgorithm]] = {
    "SHA256": SHA256(),
    "SHA384": SHA384(),
    "SHA512": SHA512(),
}


def stranger_signature(algorithm: str, message: bytes, size: int) -> bytes | None:
    """A good signature of ``message`` by a fresh key; ``None`` if this host cannot make one.

    ``size`` is that of a signature by the key to be taken for: it tells how large the key is.
    """
    family, _, hash_name = algorithm.rpartition("-")
    digest = _HASHES.get(hash_name)
    try:
        if digest is None:
            key = _plain_key(algorithm)
            return bytes(key.sign(message))
        return _hashed(family, message, digest, size)
    except UnsupportedAlgorithm:
        return None


def _plain_key(algorithm: str) -> Any:
    if algorithm == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    from cryptography.hazmat.primitives.asymmetric import mldsa

    return getattr(mldsa, f"MLDSA{algorithm.rpartition('-')[2]}PrivateKey").generate()


def _hashed(family: str, message: bytes, digest: HashAlgorithm, size: int) -> bytes:
    match family:
        case "HMAC":
            return hmac.digest(os.urandom(32), message, digest.name)
        case "ECDSA":
            return ec.generate_private_key(_curve(size)).sign(message, ec.ECDSA(digest))
    key = rsa.generate_private_key(65537, size * 8)
    if family == "RSA-PSS":
        pss = padding.PSS(padding.MGF1(digest), digest.digest_size)
        return key.sign(message, pss, digest)
    return key.sign(message, padding.PKCS1v15(), digest)


def _curve(size: int) -> ec.EllipticCurve:
    """The curve whose signatures in DER have at most ``size`` bytes or hardly more."""
    if size <= 72:
        return ec.SECP256R1()
    return ec.SECP384R1() if size <= 104 else ec.SECP521R1()
