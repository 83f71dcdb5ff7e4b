"""Signatures and MACs by keys of the token, and the public halves of its key pairs."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from kms_core import MAC_ALGORITHMS, SIGNATURE_ALGORITHMS, InvalidRequest, Unavailable
from kms_pkcs11.sessions import Session
from kms_pkcs11.uri import KeyName

MAX_SIGNED_BYTES: Final = 1 << 20

_HASHES: Final = ("SHA256", "SHA384", "SHA512")
RSA: Final = tuple(f"RSA-{form}-{name}" for form in ("PSS", "PKCS1") for name in _HASHES)
_ECDSA: Final = tuple(f"ECDSA-{name}" for name in _HASHES)
_BY_CURVE_BITS: Final = {
    256: _ECDSA,
    384: (*_ECDSA[1:], _ECDSA[0]),
    521: (*_ECDSA[2:], *_ECDSA[:2]),
}
_RAW_ED25519: Final = 32


def check(data: object, algorithm: str) -> None:
    """Raises ``InvalidRequest`` for what no key could sign."""
    if not isinstance(data, bytes):
        raise InvalidRequest(f"a message is bytes, not {type(data).__name__}; encode it")
    if len(data) > MAX_SIGNED_BYTES:
        raise InvalidRequest(f"up to {MAX_SIGNED_BYTES} bytes are signed, not {len(data)}")
    if algorithm not in SIGNATURE_ALGORITHMS | MAC_ALGORITHMS:
        raise InvalidRequest(f"no algorithm {algorithm!r}")


def sign(session: Session, name: KeyName, data: bytes, algorithm: str) -> bytes:
    """The signature (ECDSA in DER) or MAC."""
    if algorithm in MAC_ALGORITHMS:
        return bytes(_mac_key(session, name).sign(data, mechanism=_mac(session, algorithm)))
    _check_algorithm(session, name, algorithm)
    private = session.key(name, "PRIVATE_KEY")
    message, mechanism = _prepared(session, data, algorithm)
    made = bytes(private.sign(message, **mechanism))
    return _der(made) if algorithm in _ECDSA else made


def verify_mac(session: Session, name: KeyName, data: bytes, mac: bytes, algorithm: str) -> bool:
    """Whether the token makes the same MAC."""
    key = _mac_key(session, name)
    return bool(key.verify(data, mac, mechanism=_mac(session, algorithm)))


def public_key(session: Session, name: KeyName) -> bytes:
    """SubjectPublicKeyInfo in DER; raises ``NoSuchKey`` if there is no key pair."""
    from pkcs11 import Attribute, KeyType
    from pkcs11.util.ec import encode_ec_public_key

    public = session.key(name, "PUBLIC_KEY")
    if public.key_type == KeyType.RSA:
        modulus, exponent = public[Attribute.MODULUS], public[Attribute.PUBLIC_EXPONENT]
        numbers = rsa.RSAPublicNumbers(
            int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big")
        )
        return _spki(numbers.public_key())
    if public.key_type == KeyType.EC:
        return bytes(encode_ec_public_key(public))
    if public.key_type == KeyType.EC_EDWARDS:
        point = bytes(public[Attribute.EC_POINT])
        return _spki(ed25519.Ed25519PublicKey.from_public_bytes(point[-_RAW_ED25519:]))
    if public.key_type == KeyType.ML_DSA:
        return _spki(_ml_dsa(bytes(public[Attribute.VALUE])))
    raise InvalidRequest(f"{name.uri} is a key of type {public.key_type.name}, which signs nothing")


def algorithms(der: bytes) -> tuple[str, ...]:
    """What a key pair with this public half signs with, the fitting one first."""
    match load_der_public_key(der):
        case rsa.RSAPublicKey():
            return RSA
        case ec.EllipticCurvePublicKey() as key:
            return _BY_CURVE_BITS.get(key.key_size, _ECDSA)
        case ed25519.Ed25519PublicKey():
            return ("Ed25519",)
        case key:
            size = _ML_DSA_BYTES.get(len(key.public_bytes_raw()))  # type: ignore[union-attr]
            return (f"ML-DSA-{size}",)


_ML_DSA_BYTES: Final = {1312: 44, 1952: 65, 2592: 87}


def _ml_dsa(raw: bytes) -> Any:
    from cryptography.hazmat.primitives.asymmetric import mldsa

    kind = getattr(mldsa, f"MLDSA{_ML_DSA_BYTES[len(raw)]}PublicKey")
    return kind.from_public_bytes(raw)


def _spki(key: Any) -> bytes:
    der: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return der


def check_key_pair(session: Session, name: KeyName) -> None:
    """Raises ``InvalidRequest`` for a key without a public half, ``NoSuchKey`` for none at all."""
    kind = session.kind_of(name)
    if kind != "a key pair":
        raise InvalidRequest(f"{name.uri} is {kind}, which has no public half")


def _check_algorithm(session: Session, name: KeyName, algorithm: str) -> None:
    check_key_pair(session, name)
    has = algorithms(public_key(session, name))
    if algorithm not in has:
        raise InvalidRequest(f"{name.uri} signs with {', '.join(has)}, not {algorithm}")


def _prepared(session: Session, data: bytes, algorithm: str) -> tuple[bytes, dict[str, Any]]:
    """What to hand to the token, and how."""
    from pkcs11 import MGF, Mechanism

    family, _, hash_name = algorithm.rpartition("-")
    message, parameters = data, None
    match family:
        case "ECDSA":  # tokens that hash for themselves are the exception
            mechanism = Mechanism.ECDSA
            message = hashlib.new(hash_name, data).digest()
        case "RSA-PSS":
            mechanism = Mechanism[f"{hash_name}_RSA_PKCS_PSS"]
            salt = hashlib.new(hash_name).digest_size
            parameters = (Mechanism[hash_name], MGF[hash_name], salt)
        case "RSA-PKCS1":
            mechanism = Mechanism[f"{hash_name}_RSA_PKCS"]
        case "ML-DSA":
            mechanism = Mechanism.ML_DSA
        case _:
            mechanism = Mechanism.EDDSA
    _need(session, mechanism)
    return message, {"mechanism": mechanism, "mechanism_param": parameters}


def _mac(session: Session, algorithm: str) -> Any:
    from pkcs11 import Mechanism

    mechanism = Mechanism[f"{algorithm.removeprefix('HMAC-')}_HMAC"]
    _need(session, mechanism)
    return mechanism


def _mac_key(session: Session, name: KeyName) -> Any:
    kind = session.kind_of(name)
    if kind != "a secret key":
        raise InvalidRequest(f"{name.uri} is {kind}, which makes no MACs")
    return session.key(name, "SECRET_KEY")


def _need(session: Session, mechanism: Any) -> None:
    if mechanism not in session.mechanisms:
        raise InvalidRequest(f"the token has no mechanism {mechanism.name} for this algorithm")


def _der(raw: bytes) -> bytes:
    """PKCS#11 has r and s side by side, each as long as the group's order."""
    half = len(raw) // 2
    if not half or len(raw) % 2:
        raise Unavailable("the module made an ECDSA signature of an odd length")
    r, s = int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
    return encode_dss_signature(r, s)
