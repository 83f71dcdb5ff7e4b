"""What keys of Azure can do, in the words of the contract and in those of the service.

Which of it a particular key does depends on its type, its curve and its permitted operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from attrs import frozen

Family = Literal["RSA", "EC", "oct"]

DIGEST_BYTES: Final = 32  # what bind_context adds
RSA_BLOCKS: Final = frozenset({256, 384, 512})  # bytes, of keys of 2048, 3072 and 4096 bits
OAEP_OVERHEAD: Final = 66  # bytes: two SHA-256 digests and two more (RFC 8017 section 7.1.1)
KW_BLOCK: Final = 8  # bytes: RFC 3394 wraps whole blocks, and adds one
IV_BYTES: Final = 12
TAG_BYTES: Final = 16


@frozen
class Wrap:
    """A way to wrap: its number, the service's name for it, and the operations there and back."""

    number: int
    name: str
    family: Family
    wraps: str
    unwraps: str


RSA_OAEP_256: Final = Wrap(0x0201, "RSA-OAEP-256", "RSA", "wrapkey", "unwrapkey")
A256KW: Final = Wrap(0x0202, "A256KW", "oct", "wrapkey", "unwrapkey")
A256GCM: Final = Wrap(0x0203, "A256GCM", "oct", "encrypt", "decrypt")

WRAPS: Final[Mapping[int, Wrap]] = MappingProxyType(
    {wrap.number: wrap for wrap in (RSA_OAEP_256, A256KW, A256GCM)}
)
#: What a key is used with unless the configuration says otherwise.
PREFERRED: Final[Mapping[Family, Wrap]] = MappingProxyType({"RSA": RSA_OAEP_256, "oct": A256GCM})

#: What an operation is called in ``key_ops``, where it is not the name in the path.
PERMITTED_AS: Final = MappingProxyType({"wrapkey": "wrapKey", "unwrapkey": "unwrapKey"})

#: The preferred one first.
_RSA: Final = {
    f"RSA-{scheme}-SHA{bits}": f"{jwa}{bits}"
    for scheme, jwa in (("PSS", "PS"), ("PKCS1", "RS"))
    for bits in (256, 384, 512)
}
_MACS: Final = {f"HMAC-SHA{bits}": f"HS{bits}" for bits in (256, 384, 512)}
_ECDSA: Final = {
    "P-256": {"ECDSA-SHA256": "ES256"},
    "P-256K": {"ECDSA-SHA256": "ES256K"},
    "P-384": {"ECDSA-SHA384": "ES384"},
    "P-521": {"ECDSA-SHA512": "ES512"},
}


def signature_algorithms(family: Family, curve: str | None) -> Mapping[str, str]:
    """What such a key signs with: the service's name by ours."""
    if family == "EC":
        return _ECDSA.get(curve or "", {})
    return _RSA if family == "RSA" else _MACS


def hash_name(algorithm: str) -> str:
    """The hash of one of our algorithms, as hashlib calls it."""
    return algorithm.rpartition("-")[2].lower()
