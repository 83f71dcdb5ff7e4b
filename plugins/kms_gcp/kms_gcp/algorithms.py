"""What Google calls its algorithms, and what each is called and good for in the contract.

The table is the documentation.  All versions of a key have one purpose, but not one algorithm, so
an algorithm is that of a version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from attrs import frozen

WRAP_SYMMETRIC: Final = 0x0301  # Encrypt, with the context as additional authenticated data
WRAP_RSA: Final = 0x0302  # RSA-OAEP with SHA-256, the context's digest before the plaintext

MAX_DATA_BYTES: Final = 65536  # of a message that is sent whole, to keys held in software

RSA_BYTES: Final = frozenset({256, 384, 512})  # of the moduli of RSA_DECRYPT_OAEP_*_SHA256
_OAEP: Final = "RSA-OAEP-SHA256"  # the contract's name
_OAEP_OVERHEAD: Final = 2 * 32 + 2  # RFC 8017, section 7.1.1, with SHA-256

#: Sizes of raw ML-DSA public keys (FIPS 204, table 2).
ML_DSA_BYTES: Final[Mapping[str, int]] = {
    "ML-DSA-44": 1312,
    "ML-DSA-65": 1952,
    "ML-DSA-87": 2592,
}
MAC_BYTES: Final[Mapping[str, int]] = {
    "HMAC-SHA256": 32,
    "HMAC-SHA384": 48,
    "HMAC-SHA512": 64,
}


@frozen
class Algorithm:
    """The algorithm of a key version: ``name`` is Google's.

    ``does`` is the contract's name for what it does; empty for symmetric keys, and for what the
    contract does not have.  ``digest`` is what a message is hashed with before it is sent; without
    one it is sent whole.
    """

    name: str
    does: str = ""
    wrap_alg: int | None = None
    digest: str = ""
    rsa_bytes: int = 0

    @property
    def is_mac(self) -> bool:
        """Whether it makes MACs."""
        return self.does in MAC_BYTES

    @property
    def signs(self) -> bool:
        """Whether it makes signatures."""
        return bool(self.does) and self.wrap_alg is None and not self.is_mac

    @property
    def has_public_key(self) -> bool:
        """Whether there is a public key, and a use for it."""
        return self.signs or self.wrap_alg == WRAP_RSA

    @property
    def is_usable(self) -> bool:
        """Whether this plugin can do anything with it."""
        return bool(self.does) or self.wrap_alg is not None

    @property
    def max_oaep_plaintext(self) -> int:
        """How many bytes an RSA key encrypts."""
        return self.rsa_bytes - _OAEP_OVERHEAD

    def represented(self, message: bytes | bytearray) -> bytes:
        """What is sent of a message: its digest, or all of it."""
        return hashlib.new(self.digest, message).digest() if self.digest else bytes(message)

    def __str__(self) -> str:
        return self.name


def _symmetric(name: str) -> Algorithm:
    return Algorithm(name, wrap_alg=WRAP_SYMMETRIC)


def _oaep(bits: int) -> Algorithm:
    name = f"RSA_DECRYPT_OAEP_{bits}_SHA256"
    return Algorithm(name, _OAEP, wrap_alg=WRAP_RSA, rsa_bytes=bits // 8)


def _rsa(padding: str, bits: int, hash_bits: int) -> Algorithm:
    name = f"RSA_SIGN_{padding}_{bits}_SHA{hash_bits}"
    return Algorithm(name, f"RSA-{padding}-SHA{hash_bits}", digest=f"sha{hash_bits}")


def _ecdsa(curve: str, hash_bits: int) -> Algorithm:
    name = f"EC_SIGN_{curve}_SHA{hash_bits}"
    return Algorithm(name, f"ECDSA-SHA{hash_bits}", digest=f"sha{hash_bits}")


_RSA_SIZES: Final = ((2048, 256), (3072, 256), (4096, 256), (4096, 512))
_KNOWN: Final[Mapping[str, Algorithm]] = {
    algorithm.name: algorithm
    for algorithm in (
        _symmetric("GOOGLE_SYMMETRIC_ENCRYPTION"),
        _symmetric("EXTERNAL_SYMMETRIC_ENCRYPTION"),
        *(_oaep(bits) for bits in (2048, 3072, 4096)),
        *(_rsa("PSS", *sizes) for sizes in _RSA_SIZES),
        *(_rsa("PKCS1", *sizes) for sizes in _RSA_SIZES),
        *(_ecdsa(*curve) for curve in (("P256", 256), ("P384", 384), ("SECP256K1", 256))),
        Algorithm("EC_SIGN_ED25519", "Ed25519"),
        *(Algorithm(f"PQ_SIGN_{name.replace('-', '_')}", name) for name in ML_DSA_BYTES),
        *(Algorithm(name.replace("-", "_"), name) for name in MAC_BYTES),
    )
}

#: The contract's names of all that some key does.
SIGNING: Final = tuple(dict.fromkeys(a.does for a in _KNOWN.values() if a.signs or a.is_mac))


def named(name: str) -> Algorithm:
    """The algorithm that the service calls so, which may be one there is no use for."""
    return _KNOWN.get(name) or Algorithm(name)
