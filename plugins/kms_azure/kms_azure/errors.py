"""What Azure and its SDK report, and the class each report leaves the plugin as.

The three tables below are the documentation.  They are read by error code, HTTP status and
exception class, never by message text: vendor texts may repeat tokens or what was sent, so none of
them enters a message of ours, and an exception whose text may do so is not chained either.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from attrs import frozen

from kms_azure.answer import Reply
from kms_core import (
    AccessDenied,
    ConfigError,
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


#: By the inner code of an error, else by its code.  Others are judged by the HTTP status.
BY_CODE: Final = _table(
    {
        KeyDisabled: "KeyDisabled KeyExpired KeyNotYetValid ObjectIsDeletedButRecoverable",
        KeyNotFound: "KeyNotFound",
        AccessDenied: """
            AccessDenied ForbiddenByPolicy ForbiddenByRbac ForbiddenByFirewall
            ForbiddenByConnection Unauthorized
        """,
        Throttled: "Throttled TooManyRequests",
    }
)

#: By HTTP status; 400 when unwrapping or verifying is ``InvalidCiphertext``: Azure has one code for
#: all that may be wrong with a request, and there only the ciphertext is not ours.
BY_STATUS: Final = _table(
    {
        InvalidRequest: "400 409 412 413",
        AccessDenied: "401 403 407",
        KeyNotFound: "404",
        DeadlineExceeded: "408 504",
        Throttled: "429",
        Unavailable: "500 502 503",
    }
)

#: By exception class or the nearest of its bases, by name so that no SDK is imported for a table.
BY_CLASS: Final = _table(
    {
        DeadlineExceeded: "ServiceRequestTimeoutError ServiceResponseTimeoutError TimeoutError",
        # Refused, unknown host, reset, cut off, proxy, TLS; no JSON; 5xx of Entra.
        Unavailable: """
            ServiceRequestError ServiceResponseError IncompleteReadError DecodeError
            UnicodeDecodeError MsalServiceError
        """,
        # CredentialUnavailableError and AuthenticationRequiredError are kinds of the first.  A bare
        # ValueError is a challenge for another domain, or a credential that lacks something.
        AccessDenied: "ClientAuthenticationError ValueError",
        ConfigError: "NotImplementedError",
        ServiceError: "AzureError",
    }
)

#: Statuses of whoever gives out tokens that mean it is unwell, not that we are refused.
_TOKENS_OUT_OF_REACH: Final = frozenset({404, 408, 410, 429, *range(500, 600)})

#: Classes whose text names hosts and ports, and nothing that is secret.
_CHAINED: Final = frozenset({"ServiceRequestError", "ServiceResponseError"})

#: The operations on what somebody else may have altered.
OPENING: Final = frozenset({"unwrapkey", "decrypt", "verify"})

_ADVICE: Final[Mapping[type[KMSError], str]] = {
    DeadlineExceeded: "check the network, or raise connect_timeout or attempt_timeout",
    Unavailable: "try again or use another instance, and look at the service's status page",
    Throttled: "slow down, or spread the load over several vaults",
    AccessDenied: "check the identity, its role or access policy, the vault's firewall, and that "
    "the key permits this operation",
    KeyNotFound: "check key and vault_url, and whether the key was deleted",
    KeyDisabled: "enable the key, change its dates, or take it out of the configuration",
    InvalidCiphertext: "it is altered, or belongs to another key or another context",
    InvalidRequest: "the request does not fit this kind of key or the limits of Azure",
    ConfigError: "check api_version and the version of azure-keyvault-keys",
    ServiceError: "look it up in the Azure documentation",
}
_UNIDENTIFIED: Final = "no access token; check the credential settings and the identity behind them"
_IDENTITY_DOWN: Final = "whoever gives out access tokens could not be reached; try again"
_UNTRUSTED: Final = "the TLS certificate is not trusted: check vault_url and ca_file"
_NOT_SENT: Final = "the SDK refused to send a token there: check vault_url"
_CHALLENGED: Final = (
    "the vault asks for a token of another domain, or the credential lacks a setting; "
    "check vault_url, credential, tenant_id and verify_challenge"
)

_CODE: Final = re.compile(r"[A-Za-z0-9_.]{1,80}")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9-]{1,80}")
_WHOLE_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_RETRY_AFTER: Final = (
    ("retry-after-ms", 1e-3),
    ("x-ms-retry-after-ms", 1e-3),
    ("retry-after", 1.0),
)


@frozen
class Fault:
    """``error`` is to be raised from ``cause``; ``stale`` if the client should be built anew."""

    error: KMSError
    cause: Exception | None = None
    stale: bool = False


def refused(reply: Reply, operation: str, key: str) -> Fault:
    """What an answer without success, to ``operation`` on ``key``, means."""
    code = _code(reply.body)
    kind = BY_CODE.get(code) or _by_status(reply.status)
    if kind is InvalidRequest and reply.status == 400 and operation in OPENING:
        return Fault(ciphertext_refused(key, _request(reply)))
    shown = code if _CODE.fullmatch(code) else f"HTTP status {reply.status}"
    message = f"Azure answered {shown} for {key}{_request(reply)}; {_ADVICE[kind]}"
    if kind is Throttled:
        return Fault(Throttled(message, retry_after=_retry_after(reply.headers)))
    return Fault(kind(message), stale=reply.status == 401)


def translate(exc: Exception, operation: str, key: str) -> Fault:
    """What ``exc``, raised by the SDK in ``operation`` on ``key``, means."""
    names = [cls.__name__ for cls in type(exc).__mro__]
    kind = _by_class(exc)
    unasked = f"Azure was not asked about {key} ({names[0]}): "
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(exc)):
        return Fault(AccessDenied(unasked + _UNTRUSTED), cause=exc)
    if "ClientAuthenticationError" in names:
        return _without_token(exc, unasked)
    if names[0] == "ServiceRequestError" and getattr(exc, "inner_exception", None) is None:
        return Fault(ConfigError(unasked + _NOT_SENT))
    if kind is AccessDenied:
        return Fault(AccessDenied(unasked + _CHALLENGED), stale=True)
    if kind is None:  # the SDK trips over a malformed answer in many ways
        message = f"the SDK failed in {operation} for {key} ({names[0]}); {_ADVICE[Unavailable]}"
        return Fault(Unavailable(message))
    message = f"no answer from Azure about {key} ({names[0]}); {_ADVICE[kind]}"
    return Fault(kind(message), cause=None if _CHAINED.isdisjoint(names) else exc)


def ciphertext_refused(key: str, request: str = "") -> InvalidCiphertext:
    """The one error of every ciphertext that does not authenticate, whoever noticed it."""
    advice = _ADVICE[InvalidCiphertext]
    return InvalidCiphertext(f"the ciphertext does not open with {key}{request}: {advice}")


def _without_token(exc: Exception, unasked: str) -> Fault:
    """An identity of the SDK failed; only what lies beneath tells an outage from a refusal.

    A chain of credentials hides that, so its failures all look like refusals.
    """
    for cause in _causes(exc):
        kind = _by_class(cause)
        if kind in {DeadlineExceeded, Unavailable}:
            return Fault(kind(unasked + _IDENTITY_DOWN))
        if getattr(cause, "status_code", None) in _TOKENS_OUT_OF_REACH:
            return Fault(Unavailable(unasked + _IDENTITY_DOWN))
    return Fault(AccessDenied(unasked + _UNIDENTIFIED), stale=True)


def _by_class(exc: BaseException) -> type[KMSError] | None:
    names = (cls.__name__ for cls in type(exc).__mro__)
    return next((BY_CLASS[name] for name in names if name in BY_CLASS), None)


def _code(body: bytes) -> str:
    """The innermost error code that means something to us, else the outer one."""
    error = _member(_parsed(body), "error")
    codes: list[str] = []
    while isinstance(error, Mapping) and len(codes) < 8:  # deeper than any answer goes
        codes.append(str(error.get("code", "")))
        error = error.get("innererror")
    return next((code for code in reversed(codes) if code in BY_CODE), codes[0] if codes else "")


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _member(value: object, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def _by_status(status: int) -> type[KMSError]:
    """As much as the status tells, which is never a verdict on the data."""
    return BY_STATUS.get(str(status)) or (Unavailable if status >= 500 else ServiceError)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    for header, unit in _RETRY_AFTER:
        value = headers.get(header, "")
        if _WHOLE_NUMBER.fullmatch(value):
            return int(value) * unit
    return None


def _request(reply: Reply) -> str:
    request_id = reply.headers.get("x-ms-request-id", "")
    return f" (request id {request_id})" if _REQUEST_ID.fullmatch(request_id) else ""


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    """An exception, what it was raised from, and what that was raised from."""
    while exc is not None:
        yield exc
        exc = exc.__cause__ or getattr(exc, "inner_exception", None) or exc.__context__
