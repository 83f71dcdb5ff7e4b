"""Public keys: fetched, checked, and kept for as long as they are taken for usable."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from attrs import frozen
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key

from kms_core import InvalidRequest, PublicKey
from kms_gcp.algorithms import ML_DSA_BYTES, Algorithm, named
from kms_gcp.keys import MAX_AGE
from kms_gcp.names import KeyName
from kms_gcp.service import Service

MAX_DER_BYTES: Final = 8192  # twice what the largest, ML-DSA-87's, has

_DER: Final = 2  # PublicKeyFormat: SubjectPublicKeyInfo
_NIST_PQC: Final = 3  # PublicKeyFormat: the raw key; post-quantum keys come in no other
#: SubjectPublicKeyInfo of an ML-DSA key (RFC 9881, section 4) up to the last byte of its OID.
_ML_DSA_ALGORITHM: Final = bytes.fromhex("300b06096086480165030403")
_ML_DSA_OID_END: Final = {"ML-DSA-44": 0x11, "ML-DSA-65": 0x12, "ML-DSA-87": 0x13}


@frozen
class _Kept:
    key: PublicKey
    fetched_at: float


class PublicKeys:
    """The public keys of this instance's versions."""

    def __init__(self, service: Service, clock: Callable[[], float] = time.monotonic) -> None:
        self._service = service
        self._clock = clock
        self._kept: dict[KeyName, _Kept] = {}

    def recent(self, version: KeyName, algorithm: Algorithm) -> PublicKey:
        """The public key, fetched within the last hour."""
        kept = self._kept.get(version)
        if kept is not None and self._clock() - kept.fetched_at < MAX_AGE:
            return kept.key
        return self.fetch(version, algorithm)

    def fetch(self, version: KeyName, algorithm: Algorithm) -> PublicKey:
        """The public key as the service tells it now."""
        if not algorithm.has_public_key:
            raise InvalidRequest(f"{version} is {algorithm}: there is no public key to use")
        der = self._der(version, algorithm)
        key = PublicKey(
            der=der,
            key_uri=version.uri,
            key_version=version.version,
            algorithms=(algorithm.does,),
            wrap_alg=algorithm.wrap_alg,
        )
        self._kept[version] = _Kept(key, self._clock())
        return key

    def _der(self, version: KeyName, algorithm: Algorithm) -> bytes:
        size = ML_DSA_BYTES.get(algorithm.does)
        form = _DER if size is None else _NIST_PQC
        answer = self._service.ask("GetPublicKey", version, public_key_format=form)
        answer.version()
        told = answer.inside("public_key")
        if told is None or named(answer.word("algorithm")) != algorithm:
            raise answer.malformed("public_key" if told is None else "algorithm")
        if size is not None:
            raw = told.blob("data", size, size, checksum="crc32c_checksum")
            return _ml_dsa_der(raw, algorithm.does)
        der = told.blob("data", 1, MAX_DER_BYTES, checksum="crc32c_checksum")
        if not _is_public_key(der, algorithm):
            raise answer.malformed("public_key")
        return der


def loaded(key: PublicKey) -> Any:
    """The key as cryptography has it; raises its ``UnsupportedAlgorithm``."""
    return load_der_public_key(key.der)


def _is_public_key(der: bytes, algorithm: Algorithm) -> bool:
    try:
        key = load_der_public_key(der)
    except UnsupportedAlgorithm:
        return True  # of a kind that only this host does not know
    except (TypeError, ValueError):
        return False
    size = getattr(key, "key_size", 0)
    return not algorithm.rsa_bytes or size == algorithm.rsa_bytes * 8


def _ml_dsa_der(raw: bytes, name: str) -> bytes:
    algorithm = _ML_DSA_ALGORITHM + bytes((_ML_DSA_OID_END[name],))
    bits = b"\x03\x82" + (len(raw) + 1).to_bytes(2, "big") + b"\x00" + raw
    return b"\x30\x82" + (len(algorithm) + len(bits)).to_bytes(2, "big") + algorithm + bits
