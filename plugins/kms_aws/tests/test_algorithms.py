"""Messages as they are put to the service."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import mldsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from kms_aws.algorithms import ML_DSA_BYTES, SCHEMES, Kind, represented, represented_ml_dsa
from kms_core import SIGNATURE_ALGORITHMS

PRIVATE: dict[str, Any] = {
    "ML-DSA-44": mldsa.MLDSA44PrivateKey,
    "ML-DSA-65": mldsa.MLDSA65PrivateKey,
    "ML-DSA-87": mldsa.MLDSA87PrivateKey,
}


def test_contract_is_covered() -> None:
    """Every signature algorithm has a name at the service."""
    assert SCHEMES.keys() == SIGNATURE_ALGORITHMS


@given(st.binary(max_size=5000))
def test_messages_that_fit_are_sent(data: bytes) -> None:
    """From 1 to 4096 bytes as they are, others as their digest."""
    message = represented(data, "sha384")
    if 1 <= len(data) <= 4096:
        assert (message.type, message.data) == ("RAW", data)
    else:
        assert (message.type, message.data) == ("DIGEST", hashlib.sha384(data).digest())


@pytest.mark.parametrize("algorithm", ML_DSA_BYTES)
@pytest.mark.parametrize("size", [0, 4097, 1 << 20])
def test_representative_is_that_of_fips_204(algorithm: str, size: int) -> None:
    """Compared with what another implementation makes of key and message."""
    if not hasattr(mldsa, "MLDSAMuHasher"):
        pytest.skip("this release of cryptography has no MLDSAMuHasher")
    public = PRIVATE[algorithm].generate().public_key()
    hasher = mldsa.MLDSAMuHasher(public)
    hasher.update(bytes(size))
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    message = represented_ml_dsa(bytes(size), algorithm, der)
    assert (message.type, message.data) == ("EXTERNAL_MU", hasher.finalize())


@pytest.mark.parametrize("algorithm", ML_DSA_BYTES)
def test_public_key_ends_its_encoding(algorithm: str) -> None:
    """The length of the key is that of FIPS 204, table 2."""
    public = PRIVATE[algorithm].generate().public_key()
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert der[-ML_DSA_BYTES[algorithm] :] == public.public_bytes(Encoding.Raw, PublicFormat.Raw)


@pytest.mark.parametrize(
    ("spec", "usage", "wrap_alg", "algorithms", "public"),
    [
        ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", 0x0101, (), False),
        ("RSA_2048", "ENCRYPT_DECRYPT", 0x0102, ("RSA-OAEP-SHA256",), True),
        ("ECC_NIST_P384", "SIGN_VERIFY", None, ("ECDSA-SHA384",), True),
        ("HMAC_384", "GENERATE_VERIFY_MAC", None, ("HMAC-SHA384",), False),
        ("HMAC_224", "GENERATE_VERIFY_MAC", None, (), False),
        ("ECC_NIST_P384", "KEY_AGREEMENT", None, (), False),
        ("SM2", "ENCRYPT_DECRYPT", None, (), False),
        ("SM2", "SIGN_VERIFY", None, (), False),
        ("ML_KEM_768", "ENCAPSULATE_DECAPSULATE", None, (), False),
    ],
)
def test_kind_tells_what_a_key_is_for(
    spec: str, usage: str, wrap_alg: int | None, algorithms: tuple[str, ...], *, public: bool
) -> None:
    """A key has one use, and some have none here."""
    kind = Kind(spec, usage)
    assert (kind.wrap_alg, kind.algorithms, kind.has_public_key) == (wrap_alg, algorithms, public)
    assert kind.usable == (wrap_alg is not None or bool(algorithms))
