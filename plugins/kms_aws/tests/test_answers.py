"""Answers that cannot be trusted: a success is believed only if all of it makes sense."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve, frozen

from kms_aws.answer import Answer
from kms_aws.names import KeyArn
from kms_core import Ciphertext, Context, Signature, Unavailable

if TYPE_CHECKING:
    from kms_aws.provider import AwsKmsProvider
    from tests.conftest import Aws, Providers

CONTEXT = Context({"tenant": "42"})
FOREIGN = KeyArn("aws", "us-east-1", "999999999999", "1234abcd-12ab-34cd-56ef-1234567890ab")
RSA = {"spec": "RSA_2048"}
P256 = {"spec": "ECC_NIST_P256", "usage": "SIGN_VERIFY"}
HMAC = {"spec": "HMAC_256", "usage": "GENERATE_VERIFY_MAC"}


def arguments(hook: str, provider: AwsKmsProvider, key_id: str, algorithm: str) -> dict[str, Any]:
    """What the hook is called with; what has to be made first is made before the fault."""
    match hook:
        case "encrypt":
            return {"plaintext": b"k", "context": CONTEXT}
        case "decrypt":
            return {"ciphertext": provider.encrypt(key_id, b"k", CONTEXT), "context": CONTEXT}
        case "generate_data_key":
            return {"context": CONTEXT}
        case "sign":
            return {"data": b"message", "algorithm": algorithm}
        case "verify":
            signature = provider.sign(key_id, b"message", algorithm)
            return {"data": b"message", "signature": signature, "algorithm": algorithm}
        case _:
            return {}


def broken(**fields: Any) -> Any:
    """Change fields that an answer or its KeyMetadata has; ``...`` takes a field out."""

    def alter(answer: dict[str, Any]) -> dict[str, Any]:
        inner = answer.get("KeyMetadata", answer)
        new = {name: value for name, value in fields.items() if name in inner}
        changed = {name: value for name, value in {**inner, **new}.items() if value is not ...}
        return {"KeyMetadata": changed} if "KeyMetadata" in answer else changed

    return alter


def encoded(size: int) -> str:
    """Zeros as they travel."""
    return base64.b64encode(bytes(size)).decode()


SYMMETRIC: list[tuple[str, str, list[Any]]] = [
    ("encrypt", "CiphertextBlob", [..., "", None, 5, encoded(6145), "A", [], {}]),
    ("encrypt", "KeyId", [..., "", None, 5, FOREIGN.key_id, str(FOREIGN)]),
    ("encrypt", "EncryptionAlgorithm", ["RSAES_OAEP_SHA_256", 5, ""]),
    ("decrypt", "Plaintext", [..., "", None, 5, encoded(4097), "A"]),
    ("decrypt", "KeyId", [..., FOREIGN.key_id, str(FOREIGN)]),
    ("decrypt", "EncryptionAlgorithm", ["RSAES_OAEP_SHA_256", 5]),
    ("generate_data_key", "Plaintext", [..., encoded(31), encoded(33), "!"]),
    ("generate_data_key", "CiphertextBlob", [..., ""]),
    ("generate_data_key", "KeyId", [..., str(FOREIGN)]),
    ("generate_data_key", "KeyMaterialId", [5, "", "x" * 200, "a b"]),
    ("describe_key", "Arn", [..., "", 5, str(FOREIGN)]),
    ("describe_key", "KeyState", [..., "", 5, "a\nb"]),
    ("describe_key", "CurrentKeyMaterialId", [5]),
    ("describe_key", "Rotations", [..., 5, [5], [{"RotationDate": "soon"}]]),
    ("describe_key", "Rotations", [[{"KeyMaterialId": 5}], [{"KeyMaterialState": 5}]]),
    ("describe_key", "KeyRotationEnabled", [..., 5, "yes"]),
    ("health", "Arn", [..., str(FOREIGN)]),
    ("health", "KeyState", [..., 5]),
    ("health", "KeySpec", [5, "a b"]),
    ("health", "KeyUsage", [5]),
]
OF_RSA: list[tuple[str, str, list[Any]]] = [
    ("encrypt", "CiphertextBlob", [..., encoded(255), encoded(257), encoded(384)]),
    ("encrypt", "KeyId", [..., FOREIGN.key_id, str(FOREIGN)]),
    ("encrypt", "EncryptionAlgorithm", ["SYMMETRIC_DEFAULT", 5]),
    ("decrypt", "Plaintext", [..., None, 5]),
    ("decrypt", "KeyId", [..., str(FOREIGN)]),
    ("decrypt", "EncryptionAlgorithm", ["SYMMETRIC_DEFAULT"]),
    ("public_key", "PublicKey", [..., "", encoded(8193), encoded(294), 5]),
    ("public_key", "KeyId", [..., FOREIGN.key_id, str(FOREIGN)]),
    ("public_key", "KeySpec", ["RSA_4096", 5, ""]),
    ("public_key", "KeyUsage", [..., 5, "SIGN_VERIFY"]),
]
OF_P256: list[tuple[str, str, list[Any]]] = [
    ("sign", "Signature", [..., "", 5, encoded(6145)]),
    ("sign", "KeyId", [..., str(FOREIGN)]),
    ("sign", "SigningAlgorithm", ["ECDSA_SHA_384", 5]),
    ("verify", "SignatureValid", [..., "true", 1, None]),
    ("verify", "KeyId", [..., str(FOREIGN)]),
    ("verify", "SigningAlgorithm", ["ECDSA_SHA_384"]),
]
OF_HMAC: list[tuple[str, str, list[Any]]] = [
    ("sign", "Mac", [..., "", encoded(31), encoded(33)]),
    ("sign", "KeyId", [..., str(FOREIGN)]),
    ("sign", "MacAlgorithm", ["HMAC_SHA_512"]),
    ("verify", "MacValid", [..., "true", 1]),
    ("verify", "KeyId", [..., str(FOREIGN)]),
]


@frozen
class Malformed:
    """One field that is wrong, in the answer to one hook, about a key of one kind."""

    key: dict[str, str]
    algorithm: str
    hook: str
    field: str
    value: Any


MALFORMED = [
    Malformed(key, algorithm, hook, field, value)
    for key, algorithm, rows in [
        ({}, "", SYMMETRIC),
        (RSA, "", OF_RSA),
        (P256, "ECDSA-SHA256", OF_P256),
        (HMAC, "HMAC-SHA256", OF_HMAC),
    ]
    for hook, field, values in rows
    for value in values
]


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: f"{case.hook}-{case.field}")
def test_malformed_success_is_an_outage(aws: Aws, make: Providers, case: Malformed) -> None:
    """A 2xx whose fields are missing, odd or about another key is no success."""
    arn = aws.add_key(**case.key)
    provider = make(aws, arn)
    provider.health(str(arn))
    given = arguments(case.hook, provider, str(arn), case.algorithm)
    aws.alter = broken(**{case.field: case.value})
    with pytest.raises(Unavailable):
        getattr(provider, case.hook)(key_id=str(arn), **given)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"5",
        b'"text"',
        b"<html></html>",
        b"\xff\xfe",
        b'{"KeyId": ',
        json.dumps({"KeyMetadata": []}).encode(),
        json.dumps({"KeyMetadata": {"CreationDate": "never"}}).encode(),
        b'{"KeyMetadata": ' + b"[" * 100_000,
    ],
)
@pytest.mark.parametrize(
    "hook", ["encrypt", "decrypt", "generate_data_key", "sign", "verify", "public_key", "health"]
)
def test_body_that_is_no_answer_is_an_outage(
    aws: Aws, make: Providers, hook: str, body: bytes
) -> None:
    """Whatever a 200 carries, nothing but an outage comes of it."""
    arn = aws.add_key()
    aws.answer_with(body)
    every: dict[str, dict[str, Any]] = {
        "encrypt": {"plaintext": b"k", "context": CONTEXT},
        "decrypt": {"ciphertext": Ciphertext(b"x", arn.uri, wrap_alg=0x0101), "context": CONTEXT},
        "generate_data_key": {"context": CONTEXT},
        "sign": {"data": b"m", "algorithm": "ECDSA-SHA256"},
        "verify": {
            "data": b"m",
            "signature": Signature(b"s", arn.uri, "ECDSA-SHA256"),
            "algorithm": "ECDSA-SHA256",
        },
    }
    with pytest.raises(Unavailable):
        getattr(make(aws, arn), hook)(key_id=str(arn), **every.get(hook, {}))
    assert len(aws.requests) == 1


def test_text_is_no_point_in_time() -> None:
    """The SDK parses dates; whatever else it may let through is not compared with one."""
    with pytest.raises(Unavailable, match="RotationDate"):
        Answer("key", {"RotationDate": "soon"}).moment("RotationDate")


def test_algorithm_may_be_left_out(aws: Aws, make: Providers) -> None:
    """Emulators do not echo the algorithm; an answer without one is no contradiction."""
    arn = aws.add_key()
    aws.alter = broken(EncryptionAlgorithm=...)
    provider = make(aws, arn)
    assert provider.decrypt(str(arn), provider.encrypt(str(arn), b"k", CONTEXT), CONTEXT) == b"k"


def test_first_answer_for_an_alias_must_fit_its_name(aws: Aws, make: Providers) -> None:
    """What the configured name tells is checked even before the ARN is known."""
    arn = aws.add_key(alias="alias/app")
    provider = make(aws, "alias/app", region="us-east-1")
    aws.alter = broken(KeyId=str(evolve(arn, region="us-west-2")))
    with pytest.raises(Unavailable):
        provider.encrypt("alias/app", b"k", CONTEXT)
    aws.alter = lambda answer: answer
    assert provider.encrypt("alias/app", b"k", CONTEXT).key_uri == arn.uri
