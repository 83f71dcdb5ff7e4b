"""What AWS KMS calls its algorithms and kinds of keys, and how a message is put to it.

The tables are the documentation: which algorithms a key of each spec has, in order of preference,
and what the contract's names are called at the service.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final, Literal

from attrs import field, frozen

SYMMETRIC_DEFAULT: Final = "SYMMETRIC_DEFAULT"
OAEP: Final = "RSAES_OAEP_SHA_256"

WRAP_SYMMETRIC: Final = 0x0101  # SYMMETRIC_DEFAULT with the context as EncryptionContext
WRAP_RSA: Final = 0x0102  # RSAES_OAEP_SHA_256 of the plaintext with the context's digest before it

MAX_MESSAGE_BYTES: Final = 4096  # what Sign, Verify, GenerateMac and VerifyMac take as it is

_RSA_OAEP: Final = "RSA-OAEP-SHA256"  # the contract's name
_OAEP_OVERHEAD: Final = 2 * 32 + 2  # RFC 8017, section 7.1.1, with SHA-256

RSA_BYTES: Final[Mapping[str, int]] = {"RSA_2048": 256, "RSA_3072": 384, "RSA_4096": 512}
#: Of an ML-DSA public key as FIPS 204, table 2, has it; it ends the SubjectPublicKeyInfo.
ML_DSA_BYTES: Final[Mapping[str, int]] = {
    "ML-DSA-44": 1312,
    "ML-DSA-65": 1952,
    "ML-DSA-87": 2592,
}

_RSA_SIGNS: Final = (
    *("RSA-PSS-SHA256", "RSA-PSS-SHA384", "RSA-PSS-SHA512"),
    *("RSA-PKCS1-SHA256", "RSA-PKCS1-SHA384", "RSA-PKCS1-SHA512"),
)
_SIGNS: Final[Mapping[str, tuple[str, ...]]] = {
    "RSA_2048": _RSA_SIGNS,
    "RSA_3072": _RSA_SIGNS,
    "RSA_4096": _RSA_SIGNS,
    "ECC_NIST_P256": ("ECDSA-SHA256",),
    "ECC_NIST_P384": ("ECDSA-SHA384",),
    "ECC_NIST_P521": ("ECDSA-SHA512",),
    "ECC_SECG_P256K1": ("ECDSA-SHA256",),
    "ECC_NIST_EDWARDS25519": ("Ed25519",),
    "ML_DSA_44": ("ML-DSA-44",),
    "ML_DSA_65": ("ML-DSA-65",),
    "ML_DSA_87": ("ML-DSA-87",),
}
_MACS: Final[Mapping[str, tuple[str, ...]]] = {
    "HMAC_256": ("HMAC-SHA256",),
    "HMAC_384": ("HMAC-SHA384",),
    "HMAC_512": ("HMAC-SHA512",),
}


@frozen
class Scheme:
    """A signature algorithm; ``digest`` is that of messages that are too long to be sent."""

    name: str
    digest: str | None = None


SCHEMES: Final[Mapping[str, Scheme]] = {
    **{f"ECDSA-SHA{n}": Scheme(f"ECDSA_SHA_{n}", f"sha{n}") for n in (256, 384, 512)},
    **{f"RSA-PSS-SHA{n}": Scheme(f"RSASSA_PSS_SHA_{n}", f"sha{n}") for n in (256, 384, 512)},
    **{
        f"RSA-PKCS1-SHA{n}": Scheme(f"RSASSA_PKCS1_V1_5_SHA_{n}", f"sha{n}")
        for n in (256, 384, 512)
    },
    "Ed25519": Scheme("ED25519_SHA_512"),
    **dict.fromkeys(ML_DSA_BYTES, Scheme("ML_DSA_SHAKE_256")),
}


@frozen
class MacScheme:
    """A MAC algorithm and the length of its MACs."""

    name: str
    size: int


MAC_SCHEMES: Final[Mapping[str, MacScheme]] = {
    f"HMAC-SHA{bits}": MacScheme(f"HMAC_SHA_{bits}", bits // 8) for bits in (256, 384, 512)
}


@frozen
class Kind:
    """What a key is for: told by the service, and the same for as long as the key exists."""

    spec: str
    usage: str

    @property
    def wrap_alg(self) -> int | None:
        """How it wraps, if it does."""
        if self.usage != "ENCRYPT_DECRYPT":
            return None
        if self.spec == SYMMETRIC_DEFAULT:
            return WRAP_SYMMETRIC
        return WRAP_RSA if self.spec in RSA_BYTES else None

    @property
    def algorithms(self) -> tuple[str, ...]:
        """What it does, by the contract's names; nothing for symmetric and unsupported keys."""
        if self.wrap_alg == WRAP_RSA:
            return (_RSA_OAEP,)
        if self.usage == "SIGN_VERIFY":
            return _SIGNS.get(self.spec, ())
        return _MACS.get(self.spec, ()) if self.usage == "GENERATE_VERIFY_MAC" else ()

    @property
    def has_public_key(self) -> bool:
        """Whether there is a public key, and a use for it."""
        return bool(self.algorithms) and self.spec not in _MACS

    @property
    def usable(self) -> bool:
        """Whether this plugin can do anything with it."""
        return self.wrap_alg is not None or bool(self.algorithms)

    @property
    def max_oaep_plaintext(self) -> int:
        """How many bytes an RSA key encrypts."""
        return RSA_BYTES[self.spec] - _OAEP_OVERHEAD

    def __str__(self) -> str:
        return f"{self.spec} for {self.usage}"


@frozen
class Message:
    """What is sent to be signed: the message, its digest, or ML-DSA's representative of it."""

    data: bytes = field(repr=False)
    type: Literal["RAW", "DIGEST", "EXTERNAL_MU"]


def fits(data: bytes) -> bool:
    """Whether the service takes this message as it is."""
    return 1 <= len(data) <= MAX_MESSAGE_BYTES


def represented(data: bytes, digest: str) -> Message:
    """The message, or its digest if the service would not take it."""
    if fits(data):
        return Message(data, "RAW")
    return Message(hashlib.new(digest, data).digest(), "DIGEST")


def represented_ml_dsa(data: bytes, algorithm: str, public_key: bytes) -> Message:
    """The message, or what FIPS 204, algorithm 7, line 6 makes of it with an empty context."""
    if fits(data):
        return Message(data, "RAW")
    raw_key = public_key[-ML_DSA_BYTES[algorithm] :]
    tr = hashlib.shake_256(raw_key).digest(64)
    return Message(hashlib.shake_256(tr + b"\x00\x00" + data).digest(64), "EXTERNAL_MU")
