"""Signatures and MACs: made by the service, checked here with another implementation."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import load_der_public_key

from kms_core import (
    MAC_ALGORITHMS,
    SIGNATURE_ALGORITHMS,
    AccessDenied,
    InvalidRequest,
    KeyDisabled,
    Signature,
    Throttled,
    Unavailable,
)

if TYPE_CHECKING:
    from tests.conftest import Aws, Providers

SPECS = {
    "ECC_NIST_P256": ("ECDSA-SHA256",),
    "ECC_NIST_P384": ("ECDSA-SHA384",),
    "ECC_NIST_P521": ("ECDSA-SHA512",),
    "ECC_SECG_P256K1": ("ECDSA-SHA256",),
    "ECC_NIST_EDWARDS25519": ("Ed25519",),
    "ML_DSA_44": ("ML-DSA-44",),
    "ML_DSA_65": ("ML-DSA-65",),
    "ML_DSA_87": ("ML-DSA-87",),
    "RSA_2048": (
        *("RSA-PSS-SHA256", "RSA-PSS-SHA384", "RSA-PSS-SHA512"),
        *("RSA-PKCS1-SHA256", "RSA-PKCS1-SHA384", "RSA-PKCS1-SHA512"),
    ),
}
MACS = {"HMAC_256": "HMAC-SHA256", "HMAC_384": "HMAC-SHA384", "HMAC_512": "HMAC-SHA512"}
SIGNING = [(spec, algorithm) for spec, algorithms in SPECS.items() for algorithm in algorithms]
HASHES = {"SHA256": SHA256(), "SHA384": SHA384(), "SHA512": SHA512()}
#: Those whose longer messages have a representative that is short enough.
HASHED = [(spec, algorithm) for spec, algorithm in SIGNING if algorithm != "Ed25519"]
LONG = b"m" * 4097


def usage(spec: str) -> dict[str, str]:
    """How a key of this spec is made that signs."""
    return {"spec": spec, "usage": "GENERATE_VERIFY_MAC" if spec in MACS else "SIGN_VERIFY"}


def verify_locally(der: bytes, data: bytes, signature: bytes, algorithm: str) -> None:
    """Raises ``InvalidSignature`` unless it is one."""
    key: Any = load_der_public_key(der)
    digest = HASHES.get(algorithm.rpartition("-")[2])
    if isinstance(key, ec.EllipticCurvePublicKey):
        assert digest is not None
        key.verify(signature, data, ec.ECDSA(digest))
    elif isinstance(key, rsa.RSAPublicKey):
        assert digest is not None
        pss = padding.PSS(padding.MGF1(digest), digest.digest_size)
        key.verify(signature, data, pss if "PSS" in algorithm else padding.PKCS1v15(), digest)
    else:
        assert isinstance(key, ed25519.Ed25519PublicKey) or algorithm.startswith("ML-DSA")
        key.verify(signature, data)


@pytest.mark.parametrize(("spec", "algorithm"), SIGNING)
@pytest.mark.parametrize("size", [1, 4096])
def test_signature_verifies_here_and_there(
    aws: Aws, make: Providers, spec: str, algorithm: str, size: int
) -> None:
    """A signature is what everybody else takes for one."""
    arn = aws.add_key(**usage(spec))
    provider = make(aws, arn)
    data = b"m" * size
    signature = provider.sign(str(arn), data, algorithm)
    assert (signature.key_uri, signature.algorithm) == (arn.uri, algorithm)
    assert aws.requests[-1].body["MessageType"] == "RAW"
    public = provider.public_key(str(arn))
    verify_locally(public.der, data, signature.data, algorithm)
    assert provider.verify(str(arn), data, signature, algorithm) is True
    with pytest.raises(InvalidSignature):
        verify_locally(public.der, data + b"x", signature.data, algorithm)


@pytest.mark.parametrize(("spec", "algorithm"), HASHED)
@pytest.mark.parametrize("data", [b"", LONG], ids=["empty", "long"])
def test_message_the_service_would_not_take_is_represented(
    aws: Aws, make: Providers, spec: str, algorithm: str, data: bytes
) -> None:
    """What is sent in its place gives the same signature as the message itself."""
    arn = aws.add_key(**usage(spec))
    provider = make(aws, arn)
    signature = provider.sign(str(arn), data, algorithm)
    kind = "EXTERNAL_MU" if algorithm.startswith("ML-DSA") else "DIGEST"
    assert aws.requests[-1].body["MessageType"] == kind
    verify_locally(provider.public_key(str(arn)).der, data, signature.data, algorithm)
    assert provider.verify(str(arn), data, signature, algorithm) is True
    assert provider.verify(str(arn), data + b"x", signature, algorithm) is False


@pytest.mark.parametrize("data", [b"", LONG], ids=["empty", "long"])
@pytest.mark.parametrize(
    ("spec", "algorithm"), [("ECC_NIST_EDWARDS25519", "Ed25519"), ("HMAC_256", "HMAC-SHA256")]
)
def test_message_that_cannot_be_represented_is_refused(
    aws: Aws, make: Providers, spec: str, algorithm: str, data: bytes
) -> None:
    """Neither is there anything shorter to send, nor can the service have signed it."""
    arn = aws.add_key(**usage(spec))
    provider = make(aws, arn)
    with pytest.raises(InvalidRequest, match="1 to 4096 bytes"):
        provider.sign(str(arn), data, algorithm)
    signature = Signature(bytes(64), arn.uri, algorithm)
    assert provider.verify(str(arn), data, signature, algorithm) is False
    assert aws.requests == []


@pytest.mark.parametrize(("spec", "algorithm"), MACS.items())
def test_mac_is_an_hmac_that_the_service_checks(
    aws: Aws, make: Providers, spec: str, algorithm: str
) -> None:
    """MACs go the same way as signatures, and nobody else can check them."""
    arn = aws.add_key(**usage(spec))
    provider = make(aws, arn)
    mac = provider.sign(str(arn), b"message", algorithm)
    assert len(mac.data) == int(algorithm[-3:]) // 8
    assert mac == provider.sign(str(arn), b"message", algorithm)
    assert provider.verify(str(arn), b"message", mac, algorithm) is True
    assert provider.verify(str(arn), b"massage", mac, algorithm) is False
    altered = evolve(mac, data=bytes([mac.data[0] ^ 1]) + mac.data[1:])
    assert provider.verify(str(arn), b"message", altered, algorithm) is False
    assert not hmac.compare_digest(mac.data, hashlib.sha256(b"message").digest())


@pytest.mark.parametrize(("spec", "algorithm"), [*SIGNING, *MACS.items()])
def test_altered_signature_is_not_one(aws: Aws, make: Providers, spec: str, algorithm: str) -> None:
    """A wrong signature is an answer, not an error."""
    arn = aws.add_key(**usage(spec))
    provider = make(aws, arn)
    good = provider.sign(str(arn), b"message", algorithm)
    for data in (
        bytes([good.data[0] ^ 1]) + good.data[1:],
        good.data[:-1] + bytes([good.data[-1] ^ 1]),
        good.data[:-1],
        good.data + b"\0",
        b"",
        bytes(6145),
    ):
        assert provider.verify(str(arn), b"message", evolve(good, data=data), algorithm) is False


def test_one_request_signs(aws: Aws, make: Providers) -> None:
    """No key is asked what it is before it signs."""
    arn = aws.add_key(**usage("ECC_NIST_P256"))
    provider = make(aws, arn)
    signature = provider.sign(str(arn), b"message", "ECDSA-SHA256")
    provider.verify(str(arn), b"message", signature, "ECDSA-SHA256")
    assert aws.operations == ["Sign", "Verify"]


def test_ml_dsa_key_is_asked_for_once(aws: Aws, make: Providers) -> None:
    """Requests do not name the parameter set, so the key has to be known."""
    arn = aws.add_key(**usage("ML_DSA_65"), alias="alias/app")
    provider = make(aws, "alias/app", region=arn.region)
    for _ in range(2):
        provider.sign("alias/app", LONG, "ML-DSA-65")
    assert aws.operations == ["GetPublicKey", "Sign", "Sign"]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    ("key", "algorithm", "has"),
    [
        (usage("ECC_NIST_P256"), "ECDSA-SHA384", "ECDSA-SHA256"),
        (usage("ECC_NIST_P256"), "Ed25519", "ECDSA-SHA256"),
        (usage("ECC_NIST_P256"), "HMAC-SHA256", "ECDSA-SHA256"),
        (usage("ECC_NIST_P256"), "ML-DSA-65", "ECDSA-SHA256"),
        (usage("ML_DSA_44"), "ML-DSA-65", "ML-DSA-44"),
        (usage("RSA_2048"), "ECDSA-SHA256", "RSA-PSS-SHA256, RSA-PSS-SHA384"),
        (usage("HMAC_256"), "HMAC-SHA512", "HMAC-SHA256"),
        (usage("HMAC_256"), "RSA-PSS-SHA256", "HMAC-SHA256"),
        (usage("HMAC_256"), "ML-DSA-65", "no public key"),
        ({"spec": "RSA_2048"}, "RSA-PSS-SHA256", "RSA-OAEP-SHA256"),
        ({}, "ECDSA-SHA256", "no algorithm to sign with"),
    ],
)
def test_algorithm_of_another_kind_of_key_is_refused(
    aws: Aws, make: Providers, key: dict[str, str], algorithm: str, has: str, *, known: bool
) -> None:
    """The refusal names what the key has; nothing is sent if that is known."""
    arn = aws.add_key(**key)
    provider = make(aws, arn)
    if known:
        provider.health(str(arn))
        aws.requests.clear()
        has = has.replace("no public key", "HMAC-SHA256")
    with pytest.raises(InvalidRequest, match=has):
        provider.sign(str(arn), b"message", algorithm)
    with pytest.raises(InvalidRequest):
        provider.verify(str(arn), b"message", Signature(bytes(64), arn.uri, algorithm), algorithm)
    assert not known or aws.requests == []


@pytest.mark.parametrize("algorithm", ["", "ECDSA-SHA1", "ecdsa-sha256", "ECDSA_SHA_256"])
def test_unknown_algorithm_is_refused(aws: Aws, make: Providers, algorithm: str) -> None:
    """Names are the contract's, not the service's."""
    arn = aws.add_key(**usage("ECC_NIST_P256"))
    with pytest.raises(InvalidRequest, match="ECDSA-SHA256"):
        make(aws, arn).sign(str(arn), b"message", algorithm)
    assert aws.requests == []


@pytest.mark.parametrize("data", ["text", None, 5, memoryview(b"m")])
def test_message_is_bytes(aws: Aws, make: Providers, data: Any) -> None:
    """Text has no one encoding."""
    arn = aws.add_key(**usage("ECC_NIST_P256"))
    provider = make(aws, arn)
    with pytest.raises(InvalidRequest):
        provider.sign(str(arn), data, "ECDSA-SHA256")
    with pytest.raises(InvalidRequest):
        provider.verify(str(arn), b"m", Signature(data, arn.uri, "ECDSA-SHA256"), "ECDSA-SHA256")
    assert aws.requests == []


def test_refusal_stands_if_the_key_may_not_be_looked_at(aws: Aws, make: Providers) -> None:
    """Signers need no permission to describe the key."""
    arn = aws.add_key(**usage("ECC_NIST_P256"))
    aws.fail_with("AccessDeniedException", operation="DescribeKey")
    with pytest.raises(InvalidRequest, match="InvalidKeyUsageException"):
        make(aws, arn).sign(str(arn), b"message", "ECDSA-SHA384")


def test_refusal_for_another_reason_is_passed_on(aws: Aws, make: Providers) -> None:
    """The key has the algorithm, and yet the service objects."""
    arn = aws.add_key(**usage("ECC_NIST_P256"))
    aws.fail_with("ValidationException", operation="Sign")
    with pytest.raises(InvalidRequest, match="ValidationException"):
        make(aws, arn).sign(str(arn), b"message", "ECDSA-SHA256")


@pytest.mark.parametrize("hook", ["sign", "verify", "public_key"])
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("DisabledException", KeyDisabled),
        ("KMSInvalidStateException", KeyDisabled),
        ("AccessDeniedException", AccessDenied),
        ("ThrottlingException", Throttled),
        ("KMSInternalException", Unavailable),
    ],
)
def test_faults_are_those_of_any_call(
    aws: Aws, make: Providers, hook: str, code: str, kind: type[Exception]
) -> None:
    """One table, one request."""
    arn = aws.add_key(**usage("ECC_NIST_P256"))
    given: dict[str, dict[str, Any]] = {
        "sign": {"data": b"m", "algorithm": "ECDSA-SHA256"},
        "verify": {
            "data": b"m",
            "signature": Signature(b"s", arn.uri, "ECDSA-SHA256"),
            "algorithm": "ECDSA-SHA256",
        },
    }
    aws.fail_with(code)
    with pytest.raises(kind):
        getattr(make(aws, arn), hook)(key_id=str(arn), **given.get(hook, {}))
    assert len(aws.requests) == 1


@pytest.mark.parametrize(
    ("code", "spec", "algorithm"),
    [
        ("KMSInvalidSignatureException", "ECC_NIST_P256", "ECDSA-SHA256"),
        ("KMSInvalidMacException", "HMAC_256", "HMAC-SHA256"),
    ],
)
def test_verdict_of_the_service_is_an_answer(
    aws: Aws, make: Providers, code: str, spec: str, algorithm: str
) -> None:
    """AWS says "no" by an error."""
    arn = aws.add_key(**usage(spec))
    aws.fail_with(code)
    signature = Signature(bytes(32), arn.uri, algorithm)
    assert make(aws, arn).verify(str(arn), b"m", signature, algorithm) is False


def test_verdict_in_the_answer_is_believed(aws: Aws, make: Providers) -> None:
    """Emulators say "no" in the answer itself."""
    arn = aws.add_key(**usage("ECC_NIST_P256"))
    provider = make(aws, arn)
    signature = provider.sign(str(arn), b"m", "ECDSA-SHA256")
    aws.alter = lambda answer: {**answer, "SignatureValid": False}
    assert provider.verify(str(arn), b"m", signature, "ECDSA-SHA256") is False


# Replicas


@pytest.mark.parametrize(
    ("spec", "algorithm"),
    [("ECC_NIST_P256", "ECDSA-SHA256"), ("ML_DSA_65", "ML-DSA-65"), ("HMAC_256", "HMAC-SHA256")],
)
def test_signature_of_a_replica_is_recognised(
    aws: Aws, make: Providers, spec: str, algorithm: str
) -> None:
    """What one region signed another one verifies, by its own replica."""
    arn = aws.add_key("us-east-1", "eu-west-1", multi_region=True, **usage(spec))
    signature = make(aws, arn).sign(str(arn), b"message", algorithm)
    provider = make(aws, arn.seen_from("eu-west-1"), replica_regions=("us-east-1",))
    key_id = provider.match(signature.key_uri)
    assert key_id == str(arn.seen_from("eu-west-1"))
    assert provider.verify(key_id, b"message", signature, algorithm) is True
    assert aws.requests[-1].region == "eu-west-1"


# Public keys


@pytest.mark.parametrize(("spec", "algorithms"), SPECS.items())
def test_public_key_tells_what_it_is_for(
    aws: Aws, make: Providers, spec: str, algorithms: tuple[str, ...]
) -> None:
    """By the contract's names, the preferred one first."""
    arn = aws.add_key(**usage(spec))
    public = make(aws, arn).public_key(str(arn))
    assert (public.key_uri, public.key_version) == (arn.uri, None)
    assert (public.algorithms, public.wrap_alg) == (algorithms, None)


def test_public_key_of_an_rsa_encryption_key_wraps(aws: Aws, make: Providers) -> None:
    """It names the one encryption algorithm, and the number it is unwrapped under."""
    arn = aws.add_key(spec="RSA_3072")
    public = make(aws, arn).public_key(str(arn))
    assert (public.algorithms, public.wrap_alg) == (("RSA-OAEP-SHA256",), 0x0102)
    assert isinstance(load_der_public_key(public.der), rsa.RSAPublicKey)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("key", [{}, usage("HMAC_256")])
def test_keys_without_public_key_say_so(
    aws: Aws, make: Providers, key: dict[str, str], *, known: bool
) -> None:
    """Symmetric and MAC keys have none."""
    arn = aws.add_key(**key)
    provider = make(aws, arn)
    if known:
        provider.health(str(arn))
        aws.requests.clear()
    with pytest.raises(InvalidRequest, match="no public key"):
        provider.public_key(str(arn))
    assert not known or aws.requests == []


@pytest.mark.parametrize(
    ("spec", "usage"), [("SM2", "SIGN_VERIFY"), ("ECC_NIST_P256", "KEY_AGREEMENT")]
)
def test_public_key_of_no_use_is_refused(aws: Aws, make: Providers, spec: str, usage: str) -> None:
    """There is one, and nothing here does anything with it."""
    arn = aws.add_key(spec="ECC_NIST_P256", usage="SIGN_VERIFY")
    aws.alter = lambda answer: {**answer, "KeySpec": spec, "KeyUsage": usage}
    with pytest.raises(InvalidRequest, match=f"{spec} for {usage}"):
        make(aws, arn).public_key(str(arn))


def test_public_key_of_a_kind_unknown_to_this_host_is_passed_on(aws: Aws, make: Providers) -> None:
    """Whoever asked for it may know what to do with it."""
    arn = aws.add_key(**usage("ECC_NIST_P256"))
    der = bytes.fromhex("300b300506032a0304030200 00")  # an algorithm that does not exist
    aws.alter = lambda answer: {**answer, "PublicKey": base64.b64encode(der).decode()}
    assert make(aws, arn).public_key(str(arn)).der == der


def test_public_key_refused_for_another_reason_is_passed_on(aws: Aws, make: Providers) -> None:
    """The key has one, and yet the service objects."""
    arn = aws.add_key(**usage("ECC_NIST_P256"))
    aws.fail_with("UnsupportedOperationException", operation="GetPublicKey")
    with pytest.raises(InvalidRequest, match="UnsupportedOperationException"):
        make(aws, arn).public_key(str(arn))


def test_every_algorithm_of_the_contract_is_covered() -> None:
    """AWS KMS has keys for all of them."""
    assert {algorithm for _, algorithm in SIGNING} == SIGNATURE_ALGORITHMS
    assert set(MACS.values()) == MAC_ALGORITHMS
