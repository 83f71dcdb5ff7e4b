"""Every row of the error tables, over a real connection: the class, and exactly one request."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import botocore.exceptions
import pytest
from botocore.exceptions import BotoCoreError

from kms_aws import errors
from kms_core import (
    AccessDenied,
    Ciphertext,
    ConfigError,
    Context,
    DeadlineExceeded,
    Duration,
    InvalidCiphertext,
    InvalidRequest,
    KeyDisabled,
    KeyNotFound,
    KMSError,
    ServiceError,
    Throttled,
    Unavailable,
)

if TYPE_CHECKING:
    from kms_aws.provider import AwsKmsProvider
    from tests.conftest import Aws, Providers

CONTEXT = Context({"tenant": "x-marks-the-tenant"})
PLAINTEXT = b"x-marks-the-plaintext"
BLOB = b"x-marks-the-ciphertext"

SERVICE_CODES: dict[type[KMSError], list[str]] = {
    Unavailable: [
        "KMSInternalException",
        "DependencyTimeoutException",
        "KeyUnavailableException",
        "InternalFailure",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "RequestTimeout",
        "RequestTimeoutException",
        "CustomKeyStoreInvalidStateException",
        "CloudHsmClusterNotActiveException",
        "XksProxyUriUnreachableException",
    ],
    Throttled: [
        "ThrottlingException",
        "Throttling",
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "SlowDown",
    ],
    AccessDenied: [
        "AccessDeniedException",
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "IncompleteSignature",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "ExpiredTokenException",
        "OptInRequired",
        "InvalidGrantTokenException",
    ],
    KeyNotFound: ["NotFoundException"],
    KeyDisabled: ["DisabledException", "KMSInvalidStateException"],
    InvalidCiphertext: ["InvalidCiphertextException", "IncorrectKeyException"],
    InvalidRequest: [
        "ValidationException",
        "UnsupportedOperationException",
        "InvalidArnException",
        "MalformedPolicyDocumentException",
        "TagException",
        "LimitExceededException",
        "IncorrectKeyMaterialException",
        "InvalidImportTokenException",
        "ExpiredImportTokenException",
        "AlreadyExistsException",
        "ConflictException",
    ],
}

SDK_CLASSES: dict[type[KMSError], list[str]] = {
    DeadlineExceeded: ["ReadTimeoutError", "ConnectTimeoutError"],
    Unavailable: [
        "EndpointConnectionError",
        "ConnectionClosedError",
        "ProxyConnectionError",
        "HTTPClientError",
        "ResponseStreamingError",
        "SSLError",
        "IncompleteReadError",
        "CredentialRetrievalError",
        "MetadataRetrievalError",
    ],
    AccessDenied: [
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "ConfigParseError",
        "TokenRetrievalError",
        "UnauthorizedSSOTokenError",
        "SSOTokenLoadError",
    ],
    InvalidRequest: ["ParamValidationError"],
    ConfigError: ["NoRegionError", "InvalidEndpointConfigurationError"],
    ServiceError: ["UnknownSignatureVersionError"],
}


@pytest.fixture
def provider(aws: Aws, make: Providers) -> AwsKmsProvider:
    """An instance whose key exists, on a server that is about to fail."""
    return make(aws, aws.add_key(), attempt_timeout=Duration(20.0))


def caught_from(provider: AwsKmsProvider, operation: str) -> KMSError:
    """What the operation raises."""
    every: dict[str, dict[str, Any]] = {
        "encrypt": {"plaintext": PLAINTEXT, "context": CONTEXT},
        "decrypt": {
            "ciphertext": Ciphertext(BLOB, provider.key_uri, wrap_alg=0x0101),
            "context": CONTEXT,
        },
        "generate_data_key": {"context": CONTEXT},
    }
    key_id = provider.match(provider.key_uri)
    with pytest.raises(KMSError) as caught:
        getattr(provider, operation)(key_id=key_id, **every.get(operation, {}))
    return caught.value


OPERATIONS = ["encrypt", "decrypt", "generate_data_key", "describe_key", "health"]
ROWS = [(code, kind) for kind, codes in SERVICE_CODES.items() for code in codes]


@pytest.mark.parametrize(("code", "kind"), ROWS, ids=[code for code, _ in ROWS])
def test_service_code_becomes_its_class(
    aws: Aws, provider: AwsKmsProvider, code: str, kind: type[KMSError]
) -> None:
    """The code alone decides, and the request is not repeated."""
    aws.fail_with(code, 400)
    assert type(caught_from(provider, "decrypt")) is kind
    assert len(aws.requests) == 1


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("encrypt", InvalidRequest),
        ("decrypt", InvalidCiphertext),
        ("generate_data_key", InvalidRequest),
        ("describe_key", InvalidRequest),
    ],
)
def test_wrong_kind_of_key_is_the_callers_mistake_but_for_ciphertexts(
    aws: Aws, provider: AwsKmsProvider, operation: str, kind: type[KMSError]
) -> None:
    """How it was wrapped stands in the envelope, so decrypting blames that."""
    aws.fail_with("InvalidKeyUsageException")
    assert type(caught_from(provider, operation)) is kind


@pytest.mark.parametrize("operation", OPERATIONS)
def test_all_operations_share_the_table(aws: Aws, provider: AwsKmsProvider, operation: str) -> None:
    """No operation translates on its own, and none is tried twice."""
    aws.fail_with("KMSInternalException", 500)
    assert type(caught_from(provider, operation)) is Unavailable
    assert len(aws.requests) == 1


def test_status_does_not_overrule_a_known_code(aws: Aws, provider: AwsKmsProvider) -> None:
    """Nearly everything arrives as status 400, so a known code is believed before it."""
    for code, kind in errors.BY_CODE.items():
        aws.fail_with(code, 418)
        assert type(caught_from(provider, "encrypt")) is kind, code
    assert aws.operations.count("Encrypt") == len(errors.BY_CODE)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, Unavailable),
        (400, ServiceError),
        (401, AccessDenied),
        (403, AccessDenied),
        (404, ServiceError),
        (407, AccessDenied),
        (408, Unavailable),
        (429, Throttled),
        (500, Unavailable),
        (502, Unavailable),
        (503, Unavailable),
        (504, Unavailable),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>no</html>", b'{"__type": "NewException"}'])
def test_unknown_code_is_judged_by_status(
    aws: Aws, provider: AwsKmsProvider, status: int, kind: type[KMSError], body: bytes
) -> None:
    """Where the code says nothing, the class of the status does; it never condemns a ciphertext."""
    aws.answer_with(body, status)
    error = caught_from(provider, "decrypt")
    assert type(error) is kind
    assert len(aws.requests) == 1


def test_answer_without_a_body_shows_its_status(aws: Aws, provider: AwsKmsProvider) -> None:
    """A bare status stands where the code would."""
    aws.answer_with(b"", 502)
    assert "answered 502 for" in str(caught_from(provider, "encrypt"))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"x-amz-retry-after": "1500"}, 1.5),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "inf"}, None),
    ],
)
def test_throttled_says_how_long(
    aws: Aws, provider: AwsKmsProvider, headers: dict[str, str], seconds: float | None
) -> None:
    """The wait comes from a header, if there is one that makes sense."""
    aws.fail_with("ThrottlingException", 400, headers)
    error = caught_from(provider, "encrypt")
    assert isinstance(error, Throttled)
    assert error.retry_after == seconds


def test_message_carries_code_key_and_request_id(aws: Aws, provider: AwsKmsProvider) -> None:
    """An operator can look the request up in CloudTrail."""
    aws.fail_with("AccessDeniedException")
    message = str(caught_from(provider, "encrypt"))
    arn = provider.match(provider.key_uri)
    assert f"AccessDeniedException for {arn} (request id request-1);" in message


def test_refused_ciphertexts_look_alike(aws: Aws, provider: AwsKmsProvider) -> None:
    """Whether the key or the bytes were wrong is not for the caller to know."""
    messages = set()
    for code in SERVICE_CODES[InvalidCiphertext]:
        aws.fail_with(code)
        messages.add(str(caught_from(provider, "decrypt")))
    assert len(messages) == 1


def test_denied_decrypt_hints_at_a_missing_key(aws: Aws, provider: AwsKmsProvider) -> None:
    """AWS hides missing keys behind AccessDeniedException when decrypting, and only then."""
    aws.fail_with("AccessDeniedException")
    assert "exists in this region" in str(caught_from(provider, "decrypt"))
    assert "exists in this region" not in str(caught_from(provider, "encrypt"))


@pytest.mark.parametrize("operation", ["encrypt", "decrypt"])
def test_vendor_text_does_not_enter_messages(
    aws: Aws, provider: AwsKmsProvider, operation: str
) -> None:
    """Messages are ours, in one line, and repeat nothing that was sent."""
    for code in [*errors.BY_CODE, "NewException"]:
        aws.fail_with(code)
        message = str(caught_from(provider, operation))
        assert re.search("vendor text|x-marks|\n", message) is None, code


@pytest.mark.parametrize("code", ["InvalidSignatureException", "ValidationException", "New"])
def test_text_that_may_repeat_the_request_is_not_chained(
    aws: Aws, provider: AwsKmsProvider, code: str
) -> None:
    """Signature and validation errors quote signed headers and parameters."""
    aws.fail_with(code)
    error = caught_from(provider, "encrypt")
    assert error.__cause__ is None
    assert error.__context__ is None


def test_harmless_cause_is_chained(aws: Aws, provider: AwsKmsProvider) -> None:
    """A denial's text tells which policy was missing, so a traceback may show it."""
    aws.fail_with("AccessDeniedException")
    assert "vendor text" in str(caught_from(provider, "encrypt").__cause__)


@pytest.mark.parametrize("code", ["Bad\nCode", "x" * 200, "<script>"])
def test_odd_codes_are_not_repeated(aws: Aws, provider: AwsKmsProvider, code: str) -> None:
    """A hostile answer cannot write lines into logs."""
    aws.fail_with(code, 400, {"x-amzn-RequestId": "x" * 200})
    message = str(caught_from(provider, "encrypt"))
    assert "answered HTTP status 400 for" in message
    assert "request id" not in message


CLASSES = [(name, kind) for kind, names in SDK_CLASSES.items() for name in names]


class Anything(dict[str, Any]):
    """Arguments for the message of any SDK exception."""

    def __missing__(self, key: str) -> str:
        return "x-marks-the-argument"


@pytest.mark.parametrize(("name", "kind"), CLASSES, ids=[name for name, _ in CLASSES])
def test_sdk_exception_becomes_its_class(name: str, kind: type[KMSError]) -> None:
    """The nearest base that the table knows decides; arguments do not enter the message."""
    cls: type[BotoCoreError] = getattr(botocore.exceptions, name)
    fields = re.findall(r"\{(\w+)", cls.fmt)
    error = errors.translate(cls(**{field: Anything()[field] for field in fields}), "encrypt", "k")
    assert type(error.error) is kind
    assert name in str(error.error)
    assert "x-marks" not in str(error.error)


def test_every_class_of_the_table_exists() -> None:
    """A name that the SDK does not have would never match."""
    newer_than_the_oldest_sdk = {"LoginError", "UnknownTokenProviderError"}
    absent = {name for name in errors.BY_CLASS if not hasattr(botocore.exceptions, name)}
    assert absent <= newer_than_the_oldest_sdk


def test_refused_parameters_are_not_chained() -> None:
    """The SDK's own check shows the values it refuses."""
    refused = botocore.exceptions.ParamValidationError(report="x-marks-the-plaintext")
    assert errors.translate(refused, "encrypt", "k").cause is None


def test_bad_signature_is_no_error_of_the_table() -> None:
    """Where one is checked, "no" is the answer."""
    assert errors.NOT_AUTHENTIC.isdisjoint(errors.BY_CODE)


def test_unforeseen_exception_is_a_fault_of_the_answer() -> None:
    """The SDK's parsers raise whatever a malformed answer makes them raise."""
    fault = errors.translate(AttributeError("x-marks-the-body"), "decrypt", "k")
    assert type(fault.error) is Unavailable
    assert "x-marks" not in str(fault.error)
    assert fault.cause is None
