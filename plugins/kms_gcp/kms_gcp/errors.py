"""What Google and its SDK report, and the class each report leaves the plugin as.

The tables below are the documentation.  They are read by gRPC status, by the machine-readable
details of an error, and by exception class.  Four things only a text tells, and the patterns match
nothing but fixed words: the state of a key where the details are missing, a checksum that did not
match, a certificate that is not trusted, and that there is no connection.  Vendor texts may repeat
tokens or parameters, so none of them enters a message of ours, and an exception whose text may do
so is not chained either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, NoReturn

from attrs import frozen

from kms_core import (
    AccessDenied,
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

_Kinds = Mapping[str, type[KMSError]]


def _table(rows: Mapping[type[KMSError], str]) -> _Kinds:
    return MappingProxyType({name: kind for kind, text in rows.items() for name in text.split()})


#: By gRPC status.  FAILED_PRECONDITION with the state of a key is ``KeyDisabled``; INVALID_ARGUMENT
#: when unwrapping is ``InvalidCiphertext``, because there only the ciphertext is not ours, and
#: ``Unavailable`` if it says that a checksum did not match: what arrived is not what we sent.
BY_STATUS: Final = _table(
    {
        # Refused, unknown host, reset, TLS, 5xx, an answer that is no message of the service's.
        Unavailable: "UNAVAILABLE INTERNAL UNKNOWN ABORTED DATA_LOSS CANCELLED",
        DeadlineExceeded: "DEADLINE_EXCEEDED",
        Throttled: "RESOURCE_EXHAUSTED",
        AccessDenied: "PERMISSION_DENIED UNAUTHENTICATED",
        KeyNotFound: "NOT_FOUND",
        InvalidRequest: "INVALID_ARGUMENT OUT_OF_RANGE ALREADY_EXISTS",
        # What is left of the first: an external key manager in trouble, an access justification
        # that was refused, an API that is not switched on.  UNIMPLEMENTED is another service.
        ServiceError: "FAILED_PRECONDITION UNIMPLEMENTED",
    }
)

#: Failures to get an access token, by exception class or the nearest of its bases, by name so that
#: no SDK is imported for a table.  An error that calls itself retryable, or that was caused by one
#: of the first row, is of the first row; what is not here is ``AccessDenied``.
BY_CLASS: Final = _table(
    {
        Unavailable: "OutOfReach TransportError TimeoutError ResponseError",
        AccessDenied: "DefaultCredentialsError RefreshError GoogleAuthError OSError ValueError",
    }
)

#: The RPCs on what somebody else may have altered.
OPENING: Final = frozenset({"Decrypt", "AsymmetricDecrypt"})

#: Statuses whose text names keys, hosts and principals, and nothing that is secret.
_CHAINED: Final = frozenset(
    {
        *("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"),
        *("PERMISSION_DENIED", "NOT_FOUND", "FAILED_PRECONDITION"),
    }
)

_ADVICE: Final[Mapping[type[KMSError], str]] = {
    DeadlineExceeded: "check the network, or raise attempt_timeout",
    Unavailable: "try again or use another instance, and look at the service's status page",
    Throttled: "slow down, or ask Google for a higher quota",
    AccessDenied: "check the credentials and the roles they have on the key, and that the key "
    "exists: Google does not tell these apart",
    KeyNotFound: "check project, location, key ring, key and version",
    KeyDisabled: "enable or restore the version, or take it out of the configuration",
    InvalidCiphertext: "it is altered, or belongs to another key or another context",
    InvalidRequest: "the request does not fit this kind of key or the limits of Cloud KMS",
    ServiceError: "check endpoint, that the Cloud KMS API is enabled, and what the key depends on",
}
_UNAUTHENTICATED: Final = "the access token is not accepted: check the credentials"
_UNTRUSTED: Final = "the endpoint's TLS certificate is not trusted: check its address and ca_file"
_ALTERED: Final = "the request arrived altered; check what stands between this host and the service"
_NO_TOKEN: Final = "no access token; check the credentials and whose they are"  # noqa: S105
_NO_TOKEN_NOW: Final = "no access token, as those who give them out are out of reach; try again"  # noqa: S105

_DETAILS: Final = "grpc-status-details-bin"
_STATES: Final = (
    "DISABLED|DESTROYED|DESTROY_SCHEDULED|PENDING_GENERATION|PENDING_IMPORT|IMPORT_FAILED|"
    "GENERATION_FAILED|PENDING_EXTERNAL_DESTRUCTION|EXTERNAL_DESTRUCTION_FAILED"
)
_VIOLATION: Final = re.compile(rf"KEY_({_STATES})")
_STATE_TEXT: Final = re.compile(rf"is not enabled, current state is: ({_STATES})\b")
_CHECKSUM_TEXT: Final = re.compile(r"checksum in field [a-z0-9_.]+ did not match")
_UNTRUSTED_TEXT: Final = re.compile(r"CERTIFICATE_VERIFY_FAILED|Hostname Verification Check failed")
_UNCONNECTED_TEXT: Final = re.compile(r"failed to connect|errors resolving|resolution failed")
_REASON: Final = re.compile(r"[A-Z][A-Z0-9_]{1,62}")


class OutOfReach(Exception):
    """Whoever gives out access tokens did not answer in time, or is unwell.

    None of the SDK's own classes, which its loops would catch to try again.
    """


class NoToken(Exception):
    """There is no access token to send with a request; ``cause`` says why.

    Raised and translated within this package.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(type(cause).__name__)
        self.cause = cause


@frozen
class Fault:
    """``error`` is to be raised from ``cause``; ``status`` is gRPC's, empty if nobody was asked.

    ``stale``: the credentials are to be found anew.
    """

    error: KMSError
    cause: Exception | None = None
    status: str = ""
    stale: bool = False


def fail(fault: Fault) -> NoReturn:
    """Raise what a fault means, not inside the handler of what the SDK raised.

    A cause whose text may show parameters is then not even the context of the error.
    """
    raise fault.error from fault.cause


def translate(exc: Exception, rpc: str, key: str) -> Fault:
    """What ``exc``, raised by the SDK in ``rpc`` on ``key``, means."""
    if isinstance(exc, KMSError):
        return Fault(exc, exc.__cause__ if isinstance(exc.__cause__, Exception) else None)
    if isinstance(exc, NoToken):
        return _without_token(exc.cause, key)
    if status := _status(exc):
        return _of_service(exc, status, rpc, key)
    failed = f"the SDK failed in {rpc} for {key} ({type(exc).__name__})"
    return Fault(Unavailable(f"{failed}; {_ADVICE[Unavailable]}"))


def leaves_no_connection(exc: Exception) -> bool:
    """Whether a call failed because no connection came about, or because one fell silent."""
    status = _status(exc)
    return status == "DEADLINE_EXCEEDED" or (
        status == "UNAVAILABLE" and _UNCONNECTED_TEXT.search(_text(exc)) is not None
    )


def ciphertext_refused(key: object) -> InvalidCiphertext:
    """The one error of every ciphertext that does not authenticate, whoever noticed it."""
    advice = _ADVICE[InvalidCiphertext]
    return InvalidCiphertext(f"the ciphertext does not open with {key}: {advice}")


@frozen
class _Told:
    """The machine-readable part of an error: all that is known beyond its status."""

    state: str = ""
    reason: str = ""
    retry_after: float | None = None


def _of_service(exc: Any, status: str, rpc: str, key: str) -> Fault:
    text = _text(exc)
    told = _told(exc)
    state = _state(status, told, text)
    kind = KeyDisabled if state else BY_STATUS.get(status, ServiceError)
    shown = " ".join(filter(None, (status, state, told.reason)))
    advice = _UNAUTHENTICATED if status == "UNAUTHENTICATED" else _ADVICE[kind]
    if status == "INVALID_ARGUMENT" and _CHECKSUM_TEXT.search(text):
        kind, advice = Unavailable, _ALTERED
    elif status == "INVALID_ARGUMENT" and rpc in OPENING:
        return Fault(ciphertext_refused(key), status=status)
    elif status == "UNAVAILABLE" and _UNTRUSTED_TEXT.search(text):
        kind, advice = AccessDenied, _UNTRUSTED
    return Fault(
        _error(kind, f"Google Cloud KMS: {shown} in {rpc} for {key}; {advice}", told),
        cause=exc if status in _CHAINED else None,
        status=status,
        stale=status == "UNAUTHENTICATED",
    )


def _error(kind: type[KMSError], message: str, told: _Told) -> KMSError:
    if kind is Throttled:
        return Throttled(message, retry_after=told.retry_after)
    return kind(message)


def _without_token(exc: Exception, key: str) -> Fault:
    """Where tokens come from failed; what lies beneath tells an outage from a refusal."""
    shown = f"Google Cloud KMS was not asked about {key} ({type(exc).__name__}): "
    if getattr(exc, "retryable", False) or any(_out_of_reach(cause) for cause in _causes(exc)):
        return Fault(Unavailable(shown + _NO_TOKEN_NOW))
    return Fault(AccessDenied(shown + _NO_TOKEN), stale=True)


def _out_of_reach(exc: BaseException) -> bool:
    names = (cls.__name__ for cls in type(exc).__mro__)
    return next((BY_CLASS[name] for name in names if name in BY_CLASS), None) is Unavailable


def _status(exc: Exception) -> str:
    """The gRPC status of an error, empty if it has none."""
    code = getattr(exc, "code", None)
    name = getattr(code() if callable(code) else None, "name", "")
    return name if isinstance(name, str) else ""


def _text(exc: Any) -> str:
    return str(exc.details() or "")


def _state(status: str, told: _Told, text: str) -> str:
    """The state that keeps a version from being used, if that is why it was refused."""
    if status != "FAILED_PRECONDITION":
        return ""
    found = _STATE_TEXT.search(text)
    return told.state or (found[1] if found else "")


def _told(exc: Any) -> _Told:
    from google.rpc.error_details_pb2 import ErrorInfo, PreconditionFailure, RetryInfo

    state = reason = ""
    retry_after = None
    for detail in _details(exc):
        for kind in (ErrorInfo, PreconditionFailure, RetryInfo):
            if not detail.Is(kind.DESCRIPTOR):
                continue
            told = kind.FromString(detail.value)
            if kind is RetryInfo:
                retry_after = told.retry_delay.ToNanoseconds() / 1e9
            elif kind is ErrorInfo:
                reason = told.reason if _REASON.fullmatch(told.reason) else ""
            else:
                types = (_VIOLATION.fullmatch(violation.type) for violation in told.violations)
                state = next((match[1] for match in types if match), "")
    return _Told(state, reason, retry_after)


def _details(exc: Any) -> list[Any]:
    from google.protobuf.message import DecodeError
    from google.rpc.status_pb2 import Status

    for name, value in exc.trailing_metadata() or ():
        if name == _DETAILS:
            try:
                return list(Status.FromString(value).details)
            except DecodeError:
                break
    return []


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__
