"""Errors: every row of the tables, told by a server that speaks the service's protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration as ProtoDuration
from google.rpc.error_details_pb2 import ErrorInfo, PreconditionFailure, RetryInfo

from kms_core import (
    AccessDenied,
    Ciphertext,
    ConfigError,
    Context,
    DeadlineExceeded,
    InvalidCiphertext,
    InvalidRequest,
    KeyDisabled,
    KeyNotFound,
    KMSError,
    ServiceError,
    Throttled,
    Unavailable,
)
from kms_gcp.errors import BY_CLASS, BY_STATUS, NoToken, leaves_no_connection, translate

if TYPE_CHECKING:
    from tests.conftest import Providers, Scripted

CONTEXT = Context({"tenant": "42"})
KEY = "projects/demo/locations/europe-west1/keyRings/ring/cryptoKeys/app"
VERSION = f"{KEY}/cryptoKeyVersions/1"
SECRET_TEXT = "vendor text with a token in it"
CHECKSUM = "The checksum in field plaintext_crc32c did not match the data in field plaintext."
WRAPPED = Ciphertext(b"\x0a$\x00" + bytes(60), f"gcp-kms://{VERSION}", "1", 0x0301)
Status = grpc.StatusCode


def encrypt(provider: Any) -> KMSError:
    """What wrapping comes to."""
    with pytest.raises(KMSError) as caught:
        provider.encrypt(KEY, b"k" * 32, CONTEXT)
    return caught.value


def decrypt(provider: Any) -> KMSError:
    """What unwrapping comes to."""
    with pytest.raises(KMSError) as caught:
        provider.decrypt(provider.match(WRAPPED.key_uri), WRAPPED, CONTEXT)
    return caught.value


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Status.UNAVAILABLE, Unavailable),
        (Status.INTERNAL, Unavailable),
        (Status.UNKNOWN, Unavailable),
        (Status.ABORTED, Unavailable),
        (Status.DATA_LOSS, Unavailable),
        (Status.CANCELLED, Unavailable),
        (Status.DEADLINE_EXCEEDED, DeadlineExceeded),
        (Status.RESOURCE_EXHAUSTED, Throttled),
        (Status.PERMISSION_DENIED, AccessDenied),
        (Status.UNAUTHENTICATED, AccessDenied),
        (Status.NOT_FOUND, KeyNotFound),
        (Status.INVALID_ARGUMENT, InvalidRequest),
        (Status.OUT_OF_RANGE, InvalidRequest),
        (Status.ALREADY_EXISTS, InvalidRequest),
        (Status.FAILED_PRECONDITION, ServiceError),
        (Status.UNIMPLEMENTED, ServiceError),
    ],
)
def test_status_chooses_the_class(
    scripted: Scripted, make: Providers, code: Any, kind: type[KMSError]
) -> None:
    """Each status leaves as its class, with the status and the key in the message."""
    scripted.refusal = (code, SECRET_TEXT, ())
    error = encrypt(make(scripted))
    assert type(error) is kind
    assert code.name in str(error)
    assert KEY in str(error)
    assert SECRET_TEXT not in str(error)
    assert "\n" not in str(error)


def test_table_has_every_status_but_success() -> None:
    """None is left to chance."""
    assert set(BY_STATUS) == {code.name for code in Status} - {"OK"}


@pytest.mark.parametrize(
    "state", ["DISABLED", "DESTROYED", "DESTROY_SCHEDULED", "PENDING_GENERATION"]
)
@pytest.mark.parametrize("told", ["text", "details"])
def test_state_of_the_key_is_told(
    scripted: Scripted, make: Providers, state: str, told: str
) -> None:
    """Whether in the machine-readable details or only in the text."""
    text = f"{VERSION} is not enabled, current state is: {state}."
    violation = PreconditionFailure.Violation(type=f"KEY_{state}", subject=VERSION)
    details = [PreconditionFailure(violations=[violation])]
    scripted.refusal = (
        Status.FAILED_PRECONDITION,
        *((text, ()) if told == "text" else (SECRET_TEXT, details)),
    )
    for error in (encrypt(make(scripted)), decrypt(make(scripted))):
        assert type(error) is KeyDisabled
        assert state in str(error)
    assert len(scripted.requests) == 2  # nobody asks what kind of key it is


def test_other_violations_are_no_state(scripted: Scripted, make: Providers) -> None:
    """An external key manager in trouble says nothing about the key."""
    violation = PreconditionFailure.Violation(type="EKM_UNREACHABLE", subject=VERSION)
    details = [PreconditionFailure(violations=[violation])]
    scripted.refusal = (Status.FAILED_PRECONDITION, SECRET_TEXT, details)
    assert type(encrypt(make(scripted))) is ServiceError


def test_reason_is_shown_if_it_is_a_word(scripted: Scripted, make: Providers) -> None:
    """It tells an API that is not enabled from a missing role."""
    details = [ErrorInfo(reason="SERVICE_DISABLED", domain="googleapis.com")]
    scripted.refusal = (Status.PERMISSION_DENIED, SECRET_TEXT, details)
    assert "SERVICE_DISABLED" in str(encrypt(make(scripted)))
    scripted.refusal = (Status.PERMISSION_DENIED, "", [ErrorInfo(reason=SECRET_TEXT)])
    assert SECRET_TEXT not in str(encrypt(make(scripted)))


@pytest.mark.parametrize("seconds", [0.25, 7.0, None])
def test_throttling_says_how_long(
    scripted: Scripted, make: Providers, seconds: float | None
) -> None:
    """Seconds, where the service tells them."""
    details = []
    if seconds is not None:
        delay = ProtoDuration()
        delay.FromMilliseconds(int(seconds * 1000))
        details = [RetryInfo(retry_delay=delay)]
    scripted.refusal = (Status.RESOURCE_EXHAUSTED, "", details)
    error = encrypt(make(scripted))
    assert isinstance(error, Throttled)
    assert error.retry_after == seconds


def test_unreadable_details_are_passed_over() -> None:
    """What is garbled there takes nothing from the status."""
    error = _Error(Status.RESOURCE_EXHAUSTED, trailing=(("grpc-status-details-bin", b"\xff"),))
    assert type(translate(error, "Encrypt", KEY).error) is Throttled


def test_invalid_argument_is_a_verdict_on_a_ciphertext(scripted: Scripted, make: Providers) -> None:
    """Where the ciphertext is all that may be wrong."""
    scripted.refusal = (Status.INVALID_ARGUMENT, "Decryption failed: verify that …", ())
    assert type(decrypt(make(scripted))) is InvalidCiphertext
    assert len(scripted.requests) == 1


def test_altered_request_is_an_outage(scripted: Scripted, make: Providers) -> None:
    """A checksum that does not match says that the line is bad, not the ciphertext."""
    scripted.refusal = (Status.INVALID_ARGUMENT, CHECKSUM, ())
    assert type(encrypt(make(scripted))) is Unavailable
    assert type(decrypt(make(scripted))) is Unavailable


@pytest.mark.parametrize("code", [Status.INTERNAL, Status.UNKNOWN, Status.INVALID_ARGUMENT])
def test_texts_that_may_show_parameters_are_not_chained(
    scripted: Scripted, make: Providers, code: Any
) -> None:
    """Neither as cause nor as context."""
    scripted.refusal = (code, SECRET_TEXT, ())
    error = encrypt(make(scripted))
    assert error.__cause__ is None
    assert error.__context__ is None


def test_texts_that_name_keys_are_chained(scripted: Scripted, make: Providers) -> None:
    """Who is denied what helps whoever has to grant it."""
    scripted.refusal = (Status.PERMISSION_DENIED, "Permission 'x' denied on resource 'y'", ())
    assert isinstance(encrypt(make(scripted)).__cause__, grpc.RpcError)


@pytest.mark.parametrize("body", [b"\xff\xff\xff", b"", b"\x0a\x03abc"])
def test_answer_without_sense_is_an_outage(
    scripted: Scripted, make: Providers, body: bytes
) -> None:
    """Bytes that are no message, an empty one, and one with a name only."""
    scripted.answer = lambda _asked: body
    assert type(encrypt(make(scripted))) is Unavailable
    assert type(decrypt(make(scripted))) is Unavailable


class _Error(Exception):
    """What grpc raises, as far as it is looked at."""

    def __init__(self, code: Any, details: Any = "", trailing: Any = None) -> None:
        super().__init__(SECRET_TEXT)
        self._told = code, details, trailing

    def code(self) -> Any:
        return self._told[0]

    def details(self) -> Any:
        return self._told[1]

    def trailing_metadata(self) -> Any:
        return self._told[2]


class _FutureStatus:
    name = "SOMETHING_NEW"


def test_unknown_status_is_a_service_error() -> None:
    """One that gRPC has not thought of yet is neither an outage nor a verdict."""
    assert type(translate(_Error(_FutureStatus()), "Encrypt", KEY).error) is ServiceError


def test_missing_text_is_no_accident() -> None:
    """What was not sent is left out."""
    error = translate(_Error(Status.UNAVAILABLE, None), "Encrypt", KEY).error
    assert type(error) is Unavailable


@pytest.mark.parametrize(
    ("exc", "ends"),
    [
        (_Error(Status.DEADLINE_EXCEEDED), True),
        (_Error(Status.UNAVAILABLE, "failed to connect to all addresses"), True),
        (_Error(Status.UNAVAILABLE, "errors resolving kms.example:443"), True),
        (_Error(Status.UNAVAILABLE, "The service is currently unavailable."), False),
        (_Error(Status.INTERNAL, "failed to connect"), False),
        (ValueError("failed to connect"), False),
    ],
)
def test_connections_that_are_none_are_told(exc: Exception, ends: bool) -> None:  # noqa: FBT001
    """The others are worth keeping."""
    assert leaves_no_connection(exc) is ends


@pytest.mark.parametrize(
    "text", ["… CERTIFICATE_VERIFY_FAILED: …", "Hostname Verification Check failed."]
)
def test_untrusted_certificate_is_no_outage(text: str) -> None:
    """It takes an operator to change that."""
    error = translate(_Error(Status.UNAVAILABLE, text), "Encrypt", KEY).error
    assert type(error) is AccessDenied
    assert "ca_file" in str(error)


def test_anything_else_is_an_outage_without_text() -> None:
    """What the SDK trips over may show what it was given."""
    fault = translate(ValueError(SECRET_TEXT), "Encrypt", KEY)
    assert type(fault.error) is Unavailable
    assert SECRET_TEXT not in str(fault.error)
    assert fault.cause is None


def test_our_own_errors_pass() -> None:
    """What the configuration did wrong is not the service's fault."""
    error = ConfigError("ca_file: …")
    assert translate(error, "prepare", KEY).error is error


def _raised(name: str, cause: Exception | None = None, **options: Any) -> Exception:
    from google.auth import exceptions

    error: Exception = getattr(exceptions, name)(SECRET_TEXT, **options)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (_raised("TransportError"), Unavailable),
        (_raised("TimeoutError"), Unavailable),
        (_raised("ResponseError"), Unavailable),
        (_raised("RefreshError", retryable=True), Unavailable),
        (_raised("RefreshError", _raised("TransportError")), Unavailable),
        (_raised("RefreshError"), AccessDenied),
        (_raised("DefaultCredentialsError"), AccessDenied),
        (_raised("MalformedError"), AccessDenied),
        (_raised("OAuthError"), AccessDenied),
        (FileNotFoundError("credentials.json"), AccessDenied),
        (ValueError(SECRET_TEXT), AccessDenied),
        (ArithmeticError(SECRET_TEXT), AccessDenied),
    ],
)
def test_missing_token_is_an_outage_or_a_refusal(cause: Exception, kind: type[KMSError]) -> None:
    """A revoked identity is not an outage, and a metadata server that is down is no refusal."""
    fault = translate(NoToken(cause), "Encrypt", KEY)
    assert type(fault.error) is kind
    assert fault.stale is (kind is AccessDenied)
    assert SECRET_TEXT not in str(fault.error)
    assert type(cause).__name__ in str(fault.error)


def test_classes_of_the_table_exist() -> None:
    """A class that the SDK renamed would be told wrongly from then on."""
    from google.auth import exceptions

    for name in set(BY_CLASS) - {"OutOfReach", "ValueError"}:
        assert hasattr(exceptions, name)
